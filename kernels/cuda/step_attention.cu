/* Attention of one more token over kept keys and values, rotary embedding and keeping included, as one launch:
 * a cluster of blocks takes a head, each block a share of the keys it sees, and they hand the parts of their
 * shares to the block that ends these components, in its shared memory: stores that its barrier counts, so that
 * nothing else need be complete. Sources: Dao et al., "Flash-Decoding" (2023); Milakov and Gimelshein, "Online
 * normalizer calculation for softmax" (2018).
 *
 * Some lanes, eight components each, take a key: they multiply it with the query, agree on the score, and weigh
 * its value, BATCH keys at a time. Earlier tokens' keys and values are complete before the step begins, so the
 * first batch is read before the kernel waits for the token's own q, k and v. The token's own key never passes
 * through memory: a warp of the last block of each head that sees it rotates it, and one of them keeps it for
 * later tokens.
 *
 * A head that no such kernel takes, and other devices, go through attention_step.cu. */
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/step.h"
#include "kernels/cuda/tensor_core.cuh"

#include <cmath>

enum {
    WARPS = 8,
    THREADS = WARPS * DECANT_WARP,
    OCTET = 8, /* components of a lane */
    BATCH = 4, /* keys of a lane at a time */
    HEADS_FOR_MANY = 24,
    /* Of a head, and with so many heads or more: clusters that find no room beside the blocks of the kernel
     * ahead begin when it ends, where the blocks of the kernel behind would have begun. */
    BLOCKS_OF_FEW = 8,
    BLOCKS_OF_MANY = 3,
};

/* The arguments of a launch. */
typedef struct attention_call {
    const __nv_bfloat16 *q, *k, *v; /* of the token, not rotated */
    __nv_bfloat16 *keys, *values;   /* [room, stride] */
    const float *cosines, *sines;   /* [room, dimension / 2] */
    const int32_t *position;
    __nv_bfloat16 *y;
    int window, group, stride; /* group: heads that share keys */
    float scale;               /* of scores, as exponents of two */
} attention_call;

/* A share of softmax-weighted values: Σ 2^(score − maximum) value over its keys, and Σ of the weights. */
typedef struct weighted_octet {
    float maximum, sum, values[OCTET];
} weighted_octet;

template <int COUNT> static __device__ __forceinline__ void to_floats(const uint4 &bits, float (&values)[COUNT])
{
    static_assert(COUNT == OCTET, "sixteen bytes");
    const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        values[2 * i] = __uint_as_float(pairs[i] << 16);
        values[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
}

/* A lane's eight components of a head, and those that a rotation mixes with them. */
typedef struct octet_pair {
    uint4 own, other;
} octet_pair;

/* `head` has DIMENSION elements. */
template <int DIMENSION>
static __device__ __forceinline__ octet_pair load_octets(const __nv_bfloat16 *head, int part)
{
    constexpr int LANES = DIMENSION / OCTET;
    return {((const uint4 *)head)[part], ((const uint4 *)head)[(part + LANES / 2) % LANES]};
}

/* Eight components, rotated and rounded as `rotary` does; first: they lie in the first half of the head. */
[[maybe_unused]] static __device__ __forceinline__ void rotate(const octet_pair &octets,
                                                               const float (&cosines)[OCTET],
                                                               const float (&sines)[OCTET], bool first,
                                                               float (&turned)[OCTET])
{
    float own[OCTET], other[OCTET];
    to_floats(octets.own, own);
    to_floats(octets.other, other);
#pragma unroll
    for (int i = 0; i < OCTET; i++)
        turned[i] =
            first ? own[i] * cosines[i] - other[i] * sines[i] : own[i] * cosines[i] + other[i] * sines[i];
#pragma unroll
    for (int i = 0; i < OCTET; i += 2) { /* two at a time: one instruction, and a faster one */
        const uint32_t pair = decant_pair(turned[i], turned[i + 1]);
        turned[i] = __uint_as_float(pair << 16);
        turned[i + 1] = __uint_as_float(pair & 0xffff0000u);
    }
}

/* The sum over the lanes of a key. */
template <int LANES> static __device__ __forceinline__ float key_sum(float value)
{
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2)
        value += __shfl_xor_sync(DECANT_ALL_LANES, value, offset);
    return value;
}

/* A lane's part of some keys of its head and of their values. */
typedef struct key_batch {
    uint4 keys[BATCH], values[BATCH];
} key_batch;

[[maybe_unused]] static __device__ __forceinline__ float dot_product(const float (&a)[OCTET],
                                                                     const float (&b)[OCTET])
{
    float even = a[0] * b[0], odd = a[1] * b[1];
#pragma unroll
    for (int i = 2; i < OCTET; i += 2) {
        even = fmaf(a[i], b[i], even);
        odd = fmaf(a[i + 1], b[i + 1], odd);
    }
    return even + odd;
}

/* Adds BATCH keys, those of places 0, step, 2 step … before `left`, to a share. */
template <int LANES>
static __device__ __forceinline__ void add_batch(weighted_octet &share, const float (&query)[OCTET],
                                                 const key_batch &batch, int step, int left)
{
    float scores[BATCH], maximum = share.maximum;
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
        float key[OCTET];
        to_floats(batch.keys[i], key);
        scores[i] = dot_product(query, key);
    }
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
        scores[i] = key_sum<LANES>(scores[i]);
        scores[i] = i * step < left ? scores[i] : -INFINITY;
        maximum = fmaxf(maximum, scores[i]);
    }
    if (maximum == -INFINITY)
        return; /* nothing yet; whole groups of lanes agree, and no shuffle follows */
    const float shrink = decant_exp2(share.maximum - maximum);
    share.maximum = maximum;
    share.sum *= shrink;
#pragma unroll
    for (int j = 0; j < OCTET; j++)
        share.values[j] *= shrink;
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
        float value[OCTET];
        const float weight = decant_exp2(scores[i] - maximum);
        to_floats(batch.values[i], value);
        share.sum += weight;
#pragma unroll
        for (int j = 0; j < OCTET; j++)
            share.values[j] = fmaf(weight, value[j], share.values[j]);
    }
}

/* Four bytes to the same place in the shared memory of block `rank` of the cluster, counted by its barrier. */
[[maybe_unused]] static __device__ __forceinline__ void store_in_cluster(const float *place, uint32_t barrier,
                                                                         uint32_t rank, float value)
{
#if __CUDA_ARCH__ >= 900
    uint32_t there, barrier_there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(there)
                 : "r"(decant_shared_address(place)), "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(barrier_there) : "r"(barrier), "r"(rank));
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(there),
                 "r"(__float_as_uint(value)), "r"(barrier_there)
                 : "memory");
#endif
}

/* Until the bytes that the barrier expects have come from the blocks of the cluster. */
[[maybe_unused]] static __device__ __forceinline__ void wait_for_cluster(uint32_t barrier)
{
#if __CUDA_ARCH__ >= 900
    uint32_t passed = 0;
    while (!passed)
        asm volatile("{\n"
                     ".reg .pred passed;\n"
                     "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 passed, [%1], 0;\n"
                     "selp.u32 %0, 1, 0, passed;\n"
                     "}"
                     : "=r"(passed)
                     : "r"(barrier)
                     : "memory");
#endif
}

/* BLOCKS: of a cluster. */
template <int DIMENSION, int BLOCKS>
__global__ void __launch_bounds__(THREADS, 2) step_attention_kernel(const __grid_constant__ attention_call call)
{
#if __CUDA_ARCH__ >= 900
    decant_let_next_kernel_begin();
    constexpr int LANES = DIMENSION / OCTET, GROUPS = THREADS / LANES;
    constexpr int GROUPS_OF_WARP = DECANT_WARP / LANES;
    __shared__ float maxima[GROUPS], sums[GROUPS], weighted[GROUPS][DIMENSION];
    /* of each block of the cluster, for the components that this one ends */
    constexpr int OWN_COMPONENTS = (DIMENSION + BLOCKS - 1) / BLOCKS; /* fewer of the last block */
    __shared__ float block_maxima[BLOCKS], block_sums[BLOCKS];
    __shared__ float block_weighted[BLOCKS][OWN_COMPONENTS];
    __shared__ uint64_t barrier;
    const int rank = (int)(blockIdx.x % BLOCKS), head = (int)(blockIdx.x / BLOCKS);
    const int own_components = min(OWN_COMPONENTS, DIMENSION - rank * OWN_COMPONENTS);
    const int shared_head = head / call.group;
    const int part = threadIdx.x % LANES, own_group = threadIdx.x / LANES;
    const uint32_t arrived = decant_shared_address(&barrier);
    const int position = *call.position;
    if (threadIdx.x == 0) {
        decant_barrier_create(arrived, 1);
        decant_barrier_expect(arrived, (uint32_t)(BLOCKS * (own_components + 2) * sizeof(float)));
        decant_barrier_publish();
    }
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); /* others may store here */
    const int64_t column = shared_head * DIMENSION + part * OCTET;
    /* Groups take the keys before the token's own in turn. */
    constexpr int STEP = BLOCKS * GROUPS;
    const int first = call.window > 0 && position >= call.window ? position - call.window + 1 : 0;
    int key = first + rank * GROUPS + own_group;
    const int behind_warp = own_group % GROUPS_OF_WARP; /* of its first group's key */
    key_batch batch;                                    /* of keys from `key` on */
    auto load_batch = [&]() {
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const bool present = key + i * STEP < position;
            const int64_t place = (int64_t)(key + i * STEP) * call.stride + column;
            batch.keys[i] = present ? *(const uint4 *)(call.keys + place) : make_uint4(0, 0, 0, 0);
            batch.values[i] = present ? *(const uint4 *)(call.values + place) : make_uint4(0, 0, 0, 0);
        }
    };
    float cosines[OCTET], sines[OCTET], query[OCTET];
    const int64_t angles = (int64_t)position * (DIMENSION / 2) + part % (LANES / 2) * OCTET;
    decant_load(call.cosines + angles, cosines);
    decant_load(call.sines + angles, sines);
    load_batch();
    decant_wait_for_earlier_kernels();

    /* one warp takes the token's own key, which is loaded with the query so that both come at once */
    const bool takes_own = rank == BLOCKS - 1 && own_group < GROUPS_OF_WARP;
    const bool in_first_half = part < LANES / 2;
    octet_pair key_bits = {};
    uint4 value_bits = {};
    const octet_pair query_bits = load_octets<DIMENSION>(call.q + (int64_t)head * DIMENSION, part);
    if (takes_own) {
        key_bits = load_octets<DIMENSION>(call.k + shared_head * DIMENSION, part);
        value_bits = *(const uint4 *)(call.v + column);
    }
    rotate(query_bits, cosines, sines, in_first_half, query);
#pragma unroll
    for (int i = 0; i < OCTET; i++)
        query[i] *= call.scale;
    weighted_octet share = {-INFINITY, 0, {}};
    if (takes_own) {
        float own[OCTET], value[OCTET];
        rotate(key_bits, cosines, sines, in_first_half, own);
        to_floats(value_bits, value);
        const float dot = key_sum<LANES>(dot_product(query, own));
        if (own_group == 0) {
            share.maximum = dot;
            share.sum = 1;
#pragma unroll
            for (int i = 0; i < OCTET; i++)
                share.values[i] = value[i];
            if (head % call.group == 0) {
                decant_store(call.keys + (int64_t)position * call.stride + column, own);
                *(uint4 *)(call.values + (int64_t)position * call.stride + column) = value_bits;
            }
        }
    }
    while (key - behind_warp < position) { /* as often for all lanes of a warp: shuffles are inside */
        add_batch<LANES>(share, query, batch, STEP, position - key);
        key += BATCH * STEP;
        if (key - behind_warp < position)
            load_batch();
    }

    /* the groups of the block */
    if (part == 0) {
        maxima[own_group] = share.maximum;
        sums[own_group] = share.sum;
    }
#pragma unroll
    for (int i = 0; i < OCTET; i++)
        weighted[own_group][part * OCTET + i] = share.values[i];
    __syncthreads();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); /* all blocks have begun */
    if (threadIdx.x < DIMENSION) {
        float maximum = -INFINITY, sum = 0, own = 0;
        for (int i = 0; i < GROUPS; i++)
            maximum = fmaxf(maximum, maxima[i]);
        for (int i = 0; i < GROUPS; i++) {
            const float weight = maxima[i] == -INFINITY ? 0.0f : decant_exp2(maxima[i] - maximum);
            sum += weight * sums[i];
            own += weight * weighted[i][threadIdx.x];
        }
        store_in_cluster(&block_weighted[rank][threadIdx.x % OWN_COMPONENTS], arrived,
                         threadIdx.x / OWN_COMPONENTS, own);
        if (threadIdx.x < BLOCKS) {
            store_in_cluster(&block_maxima[rank], arrived, threadIdx.x, maximum);
            store_in_cluster(&block_sums[rank], arrived, threadIdx.x, sum);
        }
    }
    /* the blocks of the head, once they have left their parts here; until then the block stays */
    wait_for_cluster(arrived);
    if ((int)threadIdx.x < own_components) {
        float maximum = -INFINITY, sum = 0, own = 0;
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
            maximum = fmaxf(maximum, block_maxima[i]);
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
            const float theirs = block_maxima[i];
            const float weight = theirs == -INFINITY ? 0.0f : decant_exp2(theirs - maximum);
            sum += weight * block_sums[i];
            own += weight * block_weighted[i][threadIdx.x];
        }
        call.y[(int64_t)head * DIMENSION + rank * OWN_COMPONENTS + threadIdx.x] =
            __float2bfloat16_rn(own / sum);
    }
#endif
}

static bool takes(decant_backend *backend, const decant_attention_shape *shape, decant_matrix q,
                  decant_matrix k, decant_matrix v, decant_matrix keys, decant_matrix values)
{
    const int dimension = shape->head_dimension;
    return decant_cuda_context_of(backend)->has_wgmma && backend->activation == DECANT_BF16 &&
           (dimension == 64 || dimension == 128) &&
           decant_has_vectors<__nv_bfloat16>(dimension, q.data, k.data, v.data, keys.data, values.data);
}

static decant_status attend_in_cluster(decant_backend *backend, const decant_attention_shape *shape,
                                       const attention_call &call, decant_error *err)
{
    const bool many = shape->heads >= HEADS_FOR_MANY, narrow = shape->head_dimension == 64;
    const unsigned cluster = many ? BLOCKS_OF_MANY : BLOCKS_OF_FEW;
    void (*kernel)(attention_call) =
        many ? narrow ? step_attention_kernel<64, BLOCKS_OF_MANY> : step_attention_kernel<128, BLOCKS_OF_MANY>
        : narrow ? step_attention_kernel<64, BLOCKS_OF_FEW>
                 : step_attention_kernel<128, BLOCKS_OF_FEW>;
    cudaError_t code = decant_keep_shared_memory(kernel);
    if (code == cudaSuccess)
        code = decant_launch_early(decant_cuda_context_of(backend), kernel, (unsigned)shape->heads * cluster,
                                   THREADS, 0, call, cluster);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "step_attention", err));
    return decant_cuda_launched(backend, "step_attention", err);
}

/* ---- the other way ---- */

/* A thread turns one pair of components. */
template <typename T>
__global__ void __launch_bounds__(THREADS) rotate_heads_kernel(T *x, int pairs, int half, const float *cosines,
                                                               const float *sines, const int32_t *position)
{
    const int pair = blockIdx.x * THREADS + threadIdx.x, i = pair % half;
    if (pair >= pairs)
        return;
    const int64_t angle = (int64_t)*position * half + i;
    T *first = x + pair / half * 2 * half + i, *second = first + half;
    const float a = decant_to_float(*first), b = decant_to_float(*second);
    *first = decant_from_float<T>(a * cosines[angle] - b * sines[angle]);
    *second = decant_from_float<T>(b * cosines[angle] + a * sines[angle]);
}

static decant_status rotate_heads(decant_backend *backend, decant_matrix x, int half, const float *cosines,
                                  const float *sines, const int32_t *position, decant_error *err)
{
    const int pairs = (int)x.columns / 2;
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        rotate_heads_kernel<T>
            <<<decant_blocks_for(pairs, THREADS, 1), THREADS, 0, decant_cuda_of(backend)->stream>>>(
                (T *)x.data, pairs, half, cosines, sines, position);
        return decant_cuda_launched(backend, "rotate_heads", err);
    });
}

decant_status decant_cuda_step_attention(decant_backend *backend, const decant_attention_shape *shape,
                                         const float *cosines, const float *sines, decant_matrix q,
                                         decant_matrix k, decant_matrix v, decant_matrix keys,
                                         decant_matrix values, const int32_t *position, decant_matrix y,
                                         decant_error *err)
{
    const int half = shape->head_dimension / 2;
    if (takes(backend, shape, q, k, v, keys, values)) {
        attention_call call = {};
        call.q = (const __nv_bfloat16 *)q.data;
        call.k = (const __nv_bfloat16 *)k.data;
        call.v = (const __nv_bfloat16 *)v.data;
        call.keys = (__nv_bfloat16 *)keys.data;
        call.values = (__nv_bfloat16 *)values.data;
        call.cosines = cosines;
        call.sines = sines;
        call.position = position;
        call.y = (__nv_bfloat16 *)y.data;
        call.window = (int)shape->window;
        call.group = shape->heads / shape->key_value_heads;
        call.stride = (int)k.columns;
        call.scale = (float)(1.4426950408889634 / sqrt((double)shape->head_dimension)); /* log2 e */
        return attend_in_cluster(backend, shape, call, err);
    }
    DECANT_RETURN_ON_FAILURE(rotate_heads(backend, q, half, cosines, sines, position, err));
    DECANT_RETURN_ON_FAILURE(rotate_heads(backend, k, half, cosines, sines, position, err));
    return decant_cuda_attention_step(backend, shape, q, k, v, keys, values, position, y, err);
}
