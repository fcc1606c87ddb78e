/* From the sums of a warp's products to y in grid_tokens.cu, always in the same order: the warps of a team, the
 * teams that share a tile, the slices of the columns. */
#ifndef DECANT_KERNELS_CUDA_GRID_SUMS_CUH
#define DECANT_KERNELS_CUDA_GRID_SUMS_CUH

#include "kernels/cuda/arrivals.cuh"
#include "kernels/cuda/grid_block.cuh"

/* What multiplies the sums: of the run's rows, and of the tokens. */
typedef struct sum_scales {
    const float *rows, *tokens;
} sum_scales;

/* y of a row of the block's run and a token. */
template <typename Kind>
static __device__ __forceinline__ void store(const tokens_call &call, const block_share &share,
                                             const sum_scales &scales, int row, int token, float sum)
{
    const int64_t place = (int64_t)token * call.rows + share.first_row + row;
    sum *= scales.tokens[token];
    if (!Kind::GROUPED)
        sum *= scales.rows[row];
    call.y[place] = __float2bfloat16_rn(call.accumulate ? __bfloat162float(call.y[place]) + sum : sum);
}

/* The sum of a row of the block's run: to y, or, of one slice of several, to scratch. */
template <typename Kind>
static __device__ __forceinline__ void leave(const tokens_call &call, const block_share &share,
                                             const sum_scales &scales, int row, int token, float sum)
{
    if (row >= share.rows || token >= call.tokens)
        return;
    if (call.slices == 1)
        store<Kind>(call, share, scales, row, token, sum);
    else
        call.parts[((int64_t)blockIdx.x * call.tokens + token) * call.run_rows + row] = sum;
}

/* Of the teams that share `items` evenly, the one that has item `item`. */
template <typename Kind> static __device__ __forceinline__ int team_of(int item, int items)
{
    return ((item + 1) * Kind::TEAMS - 1) / items;
}

/* Waits for the warps of the team. */
template <typename Kind> static __device__ __forceinline__ void team_barrier(int team)
{
    asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(Kind::TEAM * DECANT_WARP) : "memory");
}

/* A row's sum of a tile that this team has whole is left, others go to one of its two slots. */
template <typename Kind>
static __device__ __forceinline__ void keep(const tokens_call &call, const block_share &share,
                                            const sum_scales &scales, bool is_whole, float *slot, int tile,
                                            int c, float sum)
{
    const int lane = threadIdx.x % DECANT_WARP;
    const int row = lane / 4 + c % 4 / 2 * 8, token = c / 4 * TILE_TOKENS + lane % 4 * 2 + c % 2;
    if (is_whole)
        leave<Kind>(call, share, scales, tile * TILE_ROWS + row, token, sum);
    else if (token < call.tokens)
        slot[token * TILE_ROWS + row] = sum;
}

/* The sums of a tile of all warps of the team, in their order; sums are zeros then. */
template <typename Kind>
static __device__ __forceinline__ void flush(const tokens_call &call, const block_share &share,
                                             const sum_scales &scales, float (&sums)[Kind::SUMS][4], int tile,
                                             float *slots, float *exchange)
{
    constexpr int VALUES = Kind::TILES * 4, EACH = VALUES / Kind::TEAM;
    const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
    const int team = warp / Kind::TEAM, member = warp % Kind::TEAM, items = share.tiles * share.strips;
    const bool begins = team_of<Kind>(tile * share.strips, items) == team;
    const bool ends = team_of<Kind>((tile + 1) * share.strips - 1, items) == team;
    float *slot = slots + (TEAM_SLOTS * team + begins) * TILE_ROWS * call.tokens;
    float own[VALUES];
#pragma unroll
    for (int c = 0; c < VALUES; c++)
        own[c] = Kind::TILES == 1 ? sums[0][c % 4] + sums[1][c % 4] : sums[c / 4][c % 4];
#pragma unroll
    for (int i = 0; i < Kind::SUMS; i++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            sums[i][c] = 0;
    if constexpr (Kind::TEAM == 1) {
#pragma unroll
        for (int c = 0; c < VALUES; c++)
            keep<Kind>(call, share, scales, begins && ends, slot, tile, c, own[c]);
    } else {
        float *shared = exchange + team * Kind::TEAM * VALUES * DECANT_WARP + lane;
#pragma unroll
        for (int c = 0; c < VALUES; c++)
            shared[(member * VALUES + c) * DECANT_WARP] = own[c];
        team_barrier<Kind>(team);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int c = member * EACH + i;
            float sum = 0;
#pragma unroll
            for (int other = 0; other < Kind::TEAM; other++)
                sum += shared[(other * VALUES + c) * DECANT_WARP];
            keep<Kind>(call, share, scales, begins && ends, slot, tile, c, sum);
        }
        team_barrier<Kind>(team); /* before the next tile's sums take the room */
    }
}

/* The sums of tiles that several teams share, in the order of the teams. */
template <typename Kind>
static __device__ __forceinline__ void join_slots(const tokens_call &call, const block_share &share,
                                                  const sum_scales &scales, const float *slots)
{
    const int items = share.tiles * share.strips, each = TILE_ROWS * call.tokens;
    for (int i = threadIdx.x; i < share.tiles * each; i += THREADS) {
        const int tile = i / each, place = i % each;
        const int begin = team_of<Kind>(tile * share.strips, items);
        const int end = team_of<Kind>((tile + 1) * share.strips - 1, items);
        if (begin == end)
            continue;
        float sum = slots[(TEAM_SLOTS * begin + 1) * each + place];
        for (int team = begin + 1; team <= end; team++)
            if (items * team / Kind::TEAMS < items * (team + 1) / Kind::TEAMS) /* it has any */
                sum += slots[TEAM_SLOTS * team * each + place];
        leave<Kind>(call, share, scales, tile * TILE_ROWS + place % TILE_ROWS, place / TILE_ROWS, sum);
    }
}

/* The slices' parts of a run of rows, by the block that comes last, in order. */
template <typename Kind>
static __device__ __forceinline__ void join_slices(const tokens_call &call, const block_share &share,
                                                   const sum_scales &scales)
{
    enum { AT_ONCE = 8 }; /* loads of a thread under way */
    if (!decant_comes_last(call.arrivals + share.run, call.slices))
        return;
    const int count = call.tokens * call.run_rows;
    const float *parts = call.parts + (int64_t)share.run * call.slices * count;
    for (int first = threadIdx.x; first < count; first += THREADS * AT_ONCE) {
        float own[AT_ONCE] = {};
        for (int slice = 0; slice < call.slices; slice++)
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                if (first + i * THREADS < count)
                    own[i] += __ldcg(parts + (int64_t)slice * count + first + i * THREADS);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int place = first + i * THREADS, token = place / call.run_rows, row = place % call.run_rows;
            if (place < count && row < share.rows)
                store<Kind>(call, share, scales, row, token, own[i]);
        }
    }
}

#endif
