/* The sparse part of a tile of rows times several tokens, by some warps of a block of packed_pairs.cu. x is
 * turned (token_sparse.h): groups of lanes, each lane with eight tokens, share the entries evenly, whatever
 * rows they lie in, and leave their sums as segments (token_entries.h).
 *
 * These warps are few beside those of the codes, so that what counts is how few instructions an entry takes and
 * how much is under way. An entry is one word (joined_entries.cu). Words and x are copied into shared memory,
 * where they take no registers: four entries, a quad, at a time, AHEAD quads before they are due; words as many
 * quads earlier, since x of a quad is asked for by its words. A lane alone reads the x that it has copied. */
#ifndef DECANT_KERNELS_CUDA_PAIR_ENTRIES_CUH
#define DECANT_KERNELS_CUDA_PAIR_ENTRIES_CUH

#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/token_entries.cuh"

enum { QUAD_ENTRIES = DECANT_ENTRIES_AT_ONCE };

/* What LANES lanes have in shared memory. */
template <int TOKENS, int LANES, int TILE_ROWS> struct entry_room {
    static constexpr int PIECES = TOKENS / DECANT_VECTOR_TOKENS, GROUPS = LANES / PIECES;
    static constexpr int AHEAD = TOKENS == 16 ? 3 : 2; /* as far as there is room */
    static constexpr int PLACES =
        (GROUPS + TILE_ROWS) | 1; /* odd: those of a token fall into different banks */
    uint4 x[AHEAD][QUAD_ENTRIES][LANES];
    uint4 words[2 * AHEAD][GROUPS];
    float segments[TOKENS][PLACES];
    uint32_t rows[TILE_ROWS]; /* places of each row's segments: the first, and behind the last above it */
};

/* Sixteen bytes, in the program's order. */
static __device__ __forceinline__ uint4 read_shared_16(uint32_t address)
{
    uint4 four;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(four.x), "=r"(four.y), "=r"(four.z), "=r"(four.w)
                 : "r"(address)
                 : "memory");
    return four;
}

/* A slot of a ring, and its address. */
template <int SLOTS, int BYTES> struct ring_place {
    uint32_t address, end;
    __device__ __forceinline__ ring_place(uint32_t first, int slot)
    {
        address = first + slot * BYTES;
        end = first + SLOTS * BYTES;
    }
    __device__ __forceinline__ void go_on(void)
    {
        address = address + BYTES == end ? end - SLOTS * BYTES : address + BYTES;
    }
};

/* ---- a lane's way through its entries of a tile ---- */

template <int TOKENS, int LANES, int TILE_ROWS> struct tile_entries {
    using room_type = entry_room<TOKENS, LANES, TILE_ROWS>;
    static constexpr int PIECES = room_type::PIECES, GROUPS = room_type::GROUPS, AHEAD = room_type::AHEAD,
                         WORDS_BYTES = GROUPS * 16, X_BYTES = LANES * 16;
    room_type &room;
    const uint32_t *entries; /* of the matrix */
    const char *x;           /* turned, the lane's piece of column 0 */
    decant_block_entries block;
    decant_entry_run run;
    int lane, group, piece;

    __device__ __forceinline__ uint32_t words_address(void) const
    {
        return decant_shared_address(&room.words[0][group]);
    }

    __device__ __forceinline__ uint32_t x_address(void) const
    {
        return decant_shared_address(&room.x[0][0][lane]);
    }

    /* Lanes of a group read words that one of them has copied. */
    static __device__ __forceinline__ void group_meets(void)
    {
        if constexpr (PIECES > 1)
            __syncwarp();
    }

    /* Asks for the words of the quad from `entry` on; zeros behind the run. */
    __device__ __forceinline__ void ask_for_words(uint32_t slot, uint32_t entry) const
    {
        if (piece == 0 && entry < run.end)
            decant_copy_bytes_16(slot, entries + entry, min((int)(run.end - entry), (int)QUAD_ENTRIES) * 4);
    }

    /* Asks for x of the quad from `entry` on, whose words have come. */
    __device__ __forceinline__ void ask_for_x(uint32_t slot, uint32_t words_slot, uint32_t entry) const
    {
        if (entry < run.end) {
            const uint4 words = read_shared_16(words_slot);
            const uint32_t of_entries[] = {words.x, words.y, words.z, words.w};
#pragma unroll
            for (int i = 0; i < QUAD_ENTRIES; i++)
                decant_copy_16(slot + i * X_BYTES, x + (uint64_t)(of_entries[i] & 0xffffu) * (TOKENS * 2),
                               true);
        }
    }

    /* Asks for what does not depend on x. offsets: of the block's entries of each row of the tile. */
    __device__ __forceinline__ tile_entries(room_type &own_room, const uint32_t *own_entries,
                                            const __nv_bfloat16 *turned, const uint32_t *offsets, int own_lane)
        : room(own_room), entries(own_entries)
    {
        lane = own_lane;
        group = lane / PIECES;
        piece = lane % PIECES;
        x = (const char *)(turned + piece * DECANT_VECTOR_TOKENS);
        block = decant_block_entries_of(offsets, TILE_ROWS, GROUPS);
        run = decant_entry_run_of(&block, group);
#pragma unroll
        for (int quad = 0; quad < AHEAD; quad++)
            ask_for_words(words_address() + quad * WORDS_BYTES, run.start + quad * QUAD_ENTRIES);
        decant_copy_commit();
        for (uint32_t entry = run.start + (AHEAD * QUAD_ENTRIES + piece * DECANT_WARP); entry < run.end;
             entry += PIECES * DECANT_WARP)
            decant_prefetch(entries + entry);
    }

    /* Asks for the first x. */
    __device__ __forceinline__ void start(void) const
    {
        decant_copy_wait<0>();
        group_meets();
#pragma unroll
        for (int quad = 0; quad < AHEAD; quad++) {
            const uint32_t entry = run.start + quad * QUAD_ENTRIES;
            ask_for_x(x_address() + quad * QUAD_ENTRIES * X_BYTES, words_address() + quad * WORDS_BYTES, entry);
            ask_for_words(words_address() + (quad + AHEAD) * WORDS_BYTES, entry + AHEAD * QUAD_ENTRIES);
            decant_copy_commit();
        }
    }

    /* Leaves the sums of the lane's row. */
    __device__ __forceinline__ void leave(float (&sums)[DECANT_VECTOR_TOKENS]) const
    {
        float *segment = &room.segments[piece * DECANT_VECTOR_TOKENS][group + run.row];
#pragma unroll
        for (int i = 0; i < DECANT_VECTOR_TOKENS; i++) {
            segment[i * room_type::PLACES] = sums[i];
            sums[i] = 0;
        }
    }

    /* Reads where the row behind the lane's ends, which it is to know at once when it gets there. */
    __device__ __forceinline__ uint32_t end_of_next_row(void) const
    {
        return block.offsets[min(run.row + 2, TILE_ROWS)];
    }

    /* Goes on to the row of a later entry of the run. */
    __device__ __forceinline__ void enter_row(uint32_t entry, uint32_t &next_end)
    {
        do {
            run.row++;
            run.row_end = next_end;
            next_end = end_of_next_row();
        } while (run.row_end <= entry);
        keep_last_row();
    }

    /* Nobody leaves the run's last row before its end. */
    __device__ __forceinline__ void keep_last_row(void)
    {
        if (run.row_end >= run.end)
            run.row_end = UINT32_MAX;
    }

    /* Multiplies all entries of the lane's run. */
    __device__ __forceinline__ void multiply(void)
    {
        float sums[DECANT_VECTOR_TOKENS] = {};
        ring_place<AHEAD, QUAD_ENTRIES * X_BYTES> x_place(x_address(), 0);
        ring_place<2 * AHEAD, WORDS_BYTES> words_place(words_address(), 0), next_words(words_address(), AHEAD);
        const uint32_t behind = run.start + block.run;
        if (lane < TILE_ROWS) {
            const decant_row_segments of_row = decant_segments_of_row(&block, lane);
            room.rows[lane] = (uint32_t)of_row.first | (uint32_t)of_row.end << 16;
        }
        keep_last_row();
        uint32_t next_end = end_of_next_row();
#pragma unroll 1
        for (uint32_t entry = run.start; entry != behind; entry += QUAD_ENTRIES) {
            decant_copy_wait<AHEAD - 1>();
            group_meets();
            if (entry < run.end) {
                const uint4 four = read_shared_16(words_place.address);
                uint32_t words[] = {four.x, four.y, four.z, four.w};
                uint4 own_x[QUAD_ENTRIES];
#pragma unroll
                for (int i = 0; i < QUAD_ENTRIES; i++)
                    own_x[i] = read_shared_16(x_place.address + i * X_BYTES);
                if (entry < run.first) {
#pragma unroll
                    for (int i = 0; i < QUAD_ENTRIES; i++)
                        words[i] = entry + i < run.first ? 0 : words[i];
                }
#pragma unroll
                for (int i = 0; i < QUAD_ENTRIES; i++) {
                    if (entry + i >= run.row_end) {
                        leave(sums);
                        enter_row(entry + i, next_end);
                    }
                    decant_add_entry(sums, own_x[i],
                                     __half2float(__ushort_as_half((unsigned short)(words[i] >> 16))));
                }
            }
            group_meets();
            ask_for_x(x_place.address, next_words.address, entry + AHEAD * QUAD_ENTRIES);
            ask_for_words(words_place.address, entry + 2 * AHEAD * QUAD_ENTRIES);
            decant_copy_commit();
            x_place.go_on();
            words_place.go_on();
            next_words.go_on();
        }
        if (run.first < run.end)
            leave(sums);
    }
};

/* ---- the sums ---- */

/* Of four rows of a token. Most rows have one or two segments, which are read at once. */
template <int TOKENS, int LANES, int TILE_ROWS>
static __device__ __forceinline__ float4 entry_sums_of(const entry_room<TOKENS, LANES, TILE_ROWS> &room,
                                                       int token, int row)
{
    constexpr int FOUR = 4, AT_ONCE = TOKENS > 8 ? 2 : 3;
    const float *segments = room.segments[token];
    const uint4 rows = *(const uint4 *)&room.rows[row];
    const uint32_t places[FOUR] = {rows.x, rows.y, rows.z, rows.w};
    float sums[FOUR][AT_ONCE];
    bool more = false;
#pragma unroll
    for (int i = 0; i < FOUR; i++) {
        const int first = (int)(places[i] & 0xffffu), behind = (int)(places[i] >> 16);
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            sums[i][j] = first + j < behind ? segments[first + j] : 0.0f;
        more = more || first + AT_ONCE < behind;
    }
#pragma unroll
    for (int i = 0; i < FOUR; i++)
#pragma unroll
        for (int j = 1; j < AT_ONCE; j++)
            sums[i][0] += sums[i][j];
    if (more) {
#pragma unroll
        for (int i = 0; i < FOUR; i++)
#pragma unroll 1
            for (int place = (int)(places[i] & 0xffffu) + AT_ONCE; place < (int)(places[i] >> 16); place++)
                sums[i][0] += segments[place];
    }
    return make_float4(sums[0][0], sums[1][0], sums[2][0], sums[3][0]);
}

#endif
