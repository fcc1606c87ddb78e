/* SwiGLU's element-wise part: silu(gate) ∘ up with silu(g) = g / (1 + e^−g), and its gradient.
 * Source: Shazeer, "GLU Variants Improve Transformer" (2020). */
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/operations.h"

/* Elements that one thread takes at a time: enough to hide the cost of taking them. */
enum { CHUNK = 4096 };

static inline decant_lanes sigmoid(decant_lanes x)
{
    return 1.0f / (1.0f + decant_lanes_exponential(-x));
}

static inline decant_lanes forward(decant_lanes gate, decant_lanes up)
{
    return gate * sigmoid(gate) * up;
}

/* silu'(g) = s + g s (1 − s) with s = sigmoid(g). */
static inline void backward(decant_lanes gate, decant_lanes up, decant_lanes dy, decant_lanes *dgate,
                            decant_lanes *dup)
{
    decant_lanes s = sigmoid(gate);
    *dup = dy * (gate * s);
    *dgate = dy * up * (s + gate * s * (1.0f - s));
}

static void forward_chunk(const float *gate, const float *up, int64_t count, float *y)
{
    int64_t i = 0;
    for (; i + DECANT_LANES <= count; i += DECANT_LANES)
        decant_lanes_store(y + i, forward(decant_lanes_load(gate + i), decant_lanes_load(up + i)));
    decant_lanes last_gate = decant_lanes_load_some(gate + i, count - i);
    decant_lanes last_up = decant_lanes_load_some(up + i, count - i);
    decant_lanes_store_some(y + i, forward(last_gate, last_up), count - i);
}

static void backward_chunk(const float *gate, const float *up, const float *dy, int64_t count, float *dgate,
                           float *dup)
{
    decant_lanes a, b;
    int64_t i = 0;
    for (; i + DECANT_LANES <= count; i += DECANT_LANES) {
        backward(decant_lanes_load(gate + i), decant_lanes_load(up + i), decant_lanes_load(dy + i), &a, &b);
        decant_lanes_store(dgate + i, a);
        decant_lanes_store(dup + i, b);
    }
    backward(decant_lanes_load_some(gate + i, count - i), decant_lanes_load_some(up + i, count - i),
             decant_lanes_load_some(dy + i, count - i), &a, &b);
    decant_lanes_store_some(dgate + i, a, count - i);
    decant_lanes_store_some(dup + i, b, count - i);
}

static inline int64_t chunk_length(int64_t first, int64_t count)
{
    return count - first < CHUNK ? count - first : CHUNK;
}

decant_status decant_cpu_silu_multiply(decant_backend *backend, decant_matrix gate, decant_matrix up,
                                       decant_matrix y, decant_error *err)
{
    (void)err;
    const float *g = gate.data, *u = up.data;
    float *out = y.data;
    int64_t count = y.rows * y.columns;
#pragma omp parallel for num_threads(decant_cpu_threads_for(backend, count)) schedule(static)
    for (int64_t i = 0; i < count; i += CHUNK)
        forward_chunk(g + i, u + i, chunk_length(i, count), out + i);
    return DECANT_OK;
}

decant_status decant_cpu_silu_multiply_backward(decant_backend *backend, decant_matrix gate, decant_matrix up,
                                                decant_matrix dy, decant_matrix dgate, decant_matrix dup,
                                                decant_error *err)
{
    (void)err;
    const float *g = gate.data, *u = up.data, *d = dy.data;
    float *dg = dgate.data, *du = dup.data;
    int64_t count = dy.rows * dy.columns;
#pragma omp parallel for num_threads(decant_cpu_threads_for(backend, count)) schedule(static)
    for (int64_t i = 0; i < count; i += CHUNK)
        backward_chunk(g + i, u + i, d + i, chunk_length(i, count), dg + i, du + i);
    return DECANT_OK;
}
