/* Times every operation of the model and validation tables at the shapes of a model, beside the roofline: the
 * larger of the time that its operations and the time that its bytes must take. Ends with what a sequence of
 * the calibration comes to when the operations run one after the other.
 *
 *   bench_model_kernels [--device cpu|cuda|cuda_full_floats] [--tokens 512,2048] [--layers 32]
 *
 *       [--hidden 4096] [--intermediate 11008] [--heads 32] [--key-value-heads 32] [--vocabulary 32000]
 *
 *       [--repeats 7] [--tflops 790] [--gbytes 3000] [--only NAME]
 *
 * Bytes are counted as read once and written once, weights and Fisher sums from memory; activations of short
 * sequences live in a GPU's caches, so a figure over the roofline is possible. Weights and Fisher sums take
 * turns among several copies, so that no cache holds the one that is used next. */
#include "base/memory.h"
#include "kernels/backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum {
    COPIES = 3,
    ACTIVATIONS = 8,
    REPEATS_MAXIMUM = 64,
    TOKEN_COUNTS_MAXIMUM = 8,
    OPERATIONS_MAXIMUM = 64,
    SHAPE_BYTES = 32,
};

static const double ENOUGH_S = 0.02; /* of work between two readings of the clock */

/* What the command line says. */
typedef struct settings {
    const char *device, *only;
    int64_t tokens[TOKEN_COUNTS_MAXIMUM];
    int token_counts;
    int64_t hidden, intermediate, vocabulary;
    int heads, key_value_heads, layers, repeats;
    double tflops, gbytes;
} settings;

/* The arrays that the operations work on; views of any shape that fits are taken of them. */
typedef struct bench {
    settings set;
    decant_backend *backend;
    int64_t tokens;                         /* of the sequence that is timed now */
    decant_matrix activations[ACTIVATIONS]; /* [tokens, widest] */
    decant_matrix weights[COPIES];          /* [widest, hidden] */
    decant_matrix head, norm;               /* [vocabulary, hidden], [1, hidden] */
    float *fisher[COPIES];                  /* [widest, hidden] */
    decant_matrix logits[2];                /* [tokens, vocabulary] */
    float *figures;                         /* [heads, tokens]: log-sum-exp, or inverse_rms */
    float *angles;                          /* [tokens, head dimension / 2] */
    int32_t *sequence;                      /* host [tokens] */
    uint32_t *planes[COPIES];
    uint16_t *levels;
    decant_sparse_pattern sparse;
    uint16_t *sparse_values;
} bench;

typedef struct operation operation;
struct operation {
    const char *name;
    char shape[SHAPE_BYTES];
    decant_status (*run)(bench *b, const operation *op, int turn, decant_error *err);
    int64_t tokens, out, in; /* of a linear layer */
    int bits;
    decant_fisher_form form;
    double flops, bytes;
    int forward, backward, once; /* times a block's forward pass, its backward pass, a whole sequence has it */
};

/* ---- the operations ---- */

static decant_matrix view(decant_matrix matrix, int64_t rows, int64_t columns)
{
    matrix.rows = rows;
    matrix.columns = columns;
    return matrix;
}

static decant_matrix activation(const bench *b, int index, int64_t columns)
{
    return view(b->activations[index], b->tokens, columns);
}

static decant_status run_embed(bench *b, const operation *op, int turn, decant_error *err)
{
    (void)op, (void)turn;
    return b->backend->model->embed(b->backend, b->sequence, b->head, activation(b, 0, b->set.hidden), err);
}

static decant_status run_norm(bench *b, const operation *op, int turn, decant_error *err)
{
    (void)op, (void)turn;
    return b->backend->model->rms_norm(b->backend, activation(b, 0, b->set.hidden), b->norm, 1e-5f,
                                       activation(b, 1, b->set.hidden), b->figures, err);
}

static decant_status run_norm_backward(bench *b, const operation *op, int turn, decant_error *err)
{
    (void)op, (void)turn;
    return b->backend->model->rms_norm_backward(b->backend, activation(b, 0, b->set.hidden),
                                                activation(b, 1, b->set.hidden), b->norm, b->figures,
                                                activation(b, 2, b->set.hidden), err);
}

static decant_matrix weight_of(const bench *b, const operation *op, int turn)
{
    return op->out == b->set.vocabulary ? b->head : view(b->weights[turn % COPIES], op->out, op->in);
}

static decant_status run_linear(bench *b, const operation *op, int turn, decant_error *err)
{
    decant_matrix x = view(b->activations[0], op->tokens, op->in);
    decant_matrix y =
        op->out == b->set.vocabulary ? b->logits[0] : view(b->activations[7], op->tokens, op->out);
    return b->backend->model->linear(b->backend, x, weight_of(b, op, turn), false, y, err);
}

static decant_status run_linear_backward(bench *b, const operation *op, int turn, decant_error *err)
{
    decant_matrix dy = op->out == b->set.vocabulary ? b->logits[0] : activation(b, 0, op->out);
    return b->backend->model->linear_backward(b->backend, dy, weight_of(b, op, turn), false,
                                              activation(b, 7, op->in), err);
}

static decant_status run_fisher(bench *b, const operation *op, int turn, decant_error *err)
{
    return b->backend->model->fisher_add(b->backend, op->form, activation(b, 0, op->out),
                                         activation(b, 1, op->in), b->fisher[turn % COPIES], err);
}

static decant_status run_rotary(bench *b, const operation *op, int turn, decant_error *err)
{
    (void)op;
    return b->backend->model->rotary(b->backend, activation(b, 2, b->set.hidden), b->set.heads, b->angles,
                                     b->angles, turn % 2 != 0, err);
}

static decant_attention_shape attention_shape(const bench *b)
{
    return (decant_attention_shape){
        b->tokens, b->set.heads, b->set.key_value_heads, (int)(b->set.hidden / b->set.heads), 0, 1};
}

static int64_t key_value_width(const settings *set)
{
    return set->hidden / set->heads * set->key_value_heads;
}

static decant_status run_attention(bench *b, const operation *op, int turn, decant_error *err)
{
    (void)op, (void)turn;
    decant_attention_shape shape = attention_shape(b);
    int64_t width = b->set.hidden, narrow = key_value_width(&b->set);
    return b->backend->model->attention(b->backend, &shape, activation(b, 0, width), activation(b, 1, narrow),
                                        activation(b, 2, narrow), activation(b, 3, width), b->figures, err);
}

static decant_status run_attention_backward(bench *b, const operation *op, int turn, decant_error *err)
{
    (void)op, (void)turn;
    decant_attention_shape shape = attention_shape(b);
    int64_t width = b->set.hidden, narrow = key_value_width(&b->set);
    return b->backend->model->attention_backward(
        b->backend, &shape, activation(b, 0, width), activation(b, 1, narrow), activation(b, 2, narrow),
        activation(b, 3, width), b->figures, activation(b, 4, width), activation(b, 5, width),
        activation(b, 6, narrow), activation(b, 7, narrow), err);
}

static decant_status run_silu(bench *b, const operation *op, int turn, decant_error *err)
{
    (void)op, (void)turn;
    int64_t width = b->set.intermediate;
    return b->backend->model->silu_multiply(b->backend, activation(b, 0, width), activation(b, 1, width),
                                            activation(b, 7, width), err);
}

static decant_status run_silu_backward(bench *b, const operation *op, int turn, decant_error *err)
{
    (void)op, (void)turn;
    int64_t width = b->set.intermediate;
    return b->backend->model->silu_multiply_backward(b->backend, activation(b, 0, width),
                                                     activation(b, 1, width), activation(b, 2, width),
                                                     activation(b, 6, width), activation(b, 7, width), err);
}

static decant_status run_cross_entropy(bench *b, const operation *op, int turn, decant_error *err)
{
    (void)op, (void)turn;
    double loss;
    return b->backend->model->cross_entropy(b->backend, b->logits[0], b->sequence, true, &loss, err);
}

static decant_status run_compare(bench *b, const operation *op, int turn, decant_error *err)
{
    (void)op, (void)turn;
    decant_comparison comparison;
    return b->backend->validate->compare(b->backend, b->logits[0], b->logits[1], b->sequence, &comparison, err);
}

static decant_status run_packed(bench *b, const operation *op, int turn, decant_error *err)
{
    const decant_packed_matrix packed = {.rows = op->out,
                                         .columns = op->in,
                                         .bits = op->bits,
                                         .planes = b->planes[turn % COPIES],
                                         .levels = b->levels,
                                         .sparse = b->sparse,
                                         .sparse_values = b->sparse_values};
    decant_matrix x = view(b->activations[0], op->tokens, op->in),
                  y = view(b->activations[7], op->tokens, op->out);
    return b->backend->validate->packed_linear(b->backend, x, &packed, false, y, err);
}

/* ---- what each of them must cost ---- */

typedef struct operation_list {
    operation operations[OPERATIONS_MAXIMUM];
    int count;
} operation_list;

static operation *add(operation_list *list, operation op)
{
    if (list->count == OPERATIONS_MAXIMUM)
        return &list->operations[OPERATIONS_MAXIMUM - 1];
    list->operations[list->count] = op;
    return &list->operations[list->count++];
}

static double element_bytes(const bench *b)
{
    return (double)decant_element_bytes(b->backend->activation);
}

/* A layer's forward, backward and Fisher operations; `layers` of a block have this shape. */
static void add_linear(const bench *b, operation_list *list, int64_t out, int64_t in, int layers)
{
    double t = (double)b->tokens, o = (double)out, i = (double)in, e = element_bytes(b);
    const bool is_head = out == b->set.vocabulary;
    operation op = {.name = "linear", .run = run_linear, .tokens = b->tokens, .out = out, .in = in};
    snprintf(op.shape, sizeof op.shape, "%lld x %lld", (long long)out, (long long)in);
    op.flops = 2 * t * o * i;
    op.bytes = e * (o * i + t * o + t * i);
    op.forward = is_head ? 0 : layers;
    op.once = is_head;
    add(list, op);
    op.name = "linear_backward";
    op.run = run_linear_backward;
    op.backward = op.forward;
    op.forward = 0;
    add(list, op);
    if (is_head)
        return;
    op.name = "fisher sequence";
    op.run = run_fisher;
    op.form = DECANT_FISHER_SEQUENCE;
    op.bytes = 8 * o * i + e * (t * o + t * i);
    add(list, op);
    op.name = "fisher token";
    op.form = DECANT_FISHER_TOKEN;
    op.backward = 0;
    add(list, op);
}

/* The packed product beside the 16-bit one of as few tokens (bits 0). */
static void add_packed(const bench *b, operation_list *list, int64_t tokens, int bits)
{
    int64_t out = b->set.intermediate, in = b->set.hidden;
    double t = (double)tokens, o = (double)out, i = (double)in;
    operation op = {.name = bits > 0 ? "packed_linear" : "linear",
                    .run = bits > 0 ? run_packed : run_linear,
                    .tokens = tokens,
                    .out = out,
                    .in = in,
                    .bits = bits};
    op.flops = 2 * t * o * i;
    op.bytes = element_bytes(b) * t * (o + i);
    if (bits > 0) {
        snprintf(op.shape, sizeof op.shape, "%lld x %lld, %d bit, T %lld", (long long)out, (long long)in, bits,
                 (long long)tokens);
        op.bytes += o * i * bits / 8 + o * 2 * (1 << bits) + 6 * (double)b->sparse.count;
    } else {
        snprintf(op.shape, sizeof op.shape, "%lld x %lld, T %lld", (long long)out, (long long)in,
                 (long long)tokens);
        op.bytes += element_bytes(b) * o * i;
    }
    add(list, op);
}

/* An operation whose cost is the activations it reads and writes: `arrays` of [tokens, width]. */
static operation *add_elementwise(const bench *b, operation_list *list, const char *name, double arrays,
                                  int64_t width,
                                  decant_status (*run)(bench *, const operation *, int, decant_error *))
{
    operation op = {.name = name, .run = run, .tokens = b->tokens};
    snprintf(op.shape, sizeof op.shape, "%lld wide", (long long)width);
    op.bytes = arrays * element_bytes(b) * (double)b->tokens * (double)width;
    return add(list, op);
}

static void add_attention(const bench *b, operation_list *list)
{
    double t = (double)b->tokens, width = (double)b->set.hidden, narrow = (double)key_value_width(&b->set);
    double product = t * t * width; /* causal: half of 2 t² width */
    operation op = {.name = "attention", .run = run_attention, .tokens = b->tokens, .forward = 1};
    snprintf(op.shape, sizeof op.shape, "%d heads of %lld", b->set.heads,
             (long long)(b->set.hidden / b->set.heads));
    op.flops = 2 * product;
    op.bytes = element_bytes(b) * t * (2 * width + 2 * narrow);
    add(list, op);
    op.name = "attention_backward";
    op.run = run_attention_backward;
    op.flops = 5 * product;
    op.bytes = element_bytes(b) * t * (4 * width + 4 * narrow);
    op.forward = 0;
    op.backward = 1;
    add(list, op);
}

/* attention before attention_backward: the latter needs its log-sum-exp. */
static void list_operations(const bench *b, operation_list *list)
{
    const settings *set = &b->set;
    int64_t hidden = set->hidden, narrow = key_value_width(set), tokens = b->tokens;
    const int64_t few[] = {1, 4, 16};
    add_linear(b, list, hidden, hidden, narrow == hidden ? 4 : 2);
    if (narrow != hidden)
        add_linear(b, list, narrow, hidden, 2);
    add_linear(b, list, set->intermediate, hidden, 2);
    add_linear(b, list, hidden, set->intermediate, 1);
    add_linear(b, list, set->vocabulary, hidden, 1);
    add_attention(b, list);
    add_elementwise(b, list, "rms_norm", 2, hidden, run_norm)->forward = 2;
    add_elementwise(b, list, "rms_norm_backward", 4, hidden, run_norm_backward)->backward = 2;
    operation *rotary = add_elementwise(b, list, "rotary", 2, hidden, run_rotary);
    rotary->forward = rotary->backward = 2;
    add_elementwise(b, list, "silu_multiply", 3, set->intermediate, run_silu)->forward = 1;
    add_elementwise(b, list, "silu_multiply_backward", 5, set->intermediate, run_silu_backward)->backward = 1;
    add_elementwise(b, list, "embed", 2, hidden, run_embed)->once = 1;
    add_elementwise(b, list, "cross_entropy", 2, set->vocabulary, run_cross_entropy)->once = 1;
    add_elementwise(b, list, "compare", 2, set->vocabulary, run_compare);
    const int widths[] = {0, 3, 4};
    for (int w = 0; w < (int)(sizeof widths / sizeof *widths); w++) {
        for (int i = 0; i < (int)(sizeof few / sizeof *few); i++)
            add_packed(b, list, few[i], widths[w]);
        if (widths[w] > 0)
            add_packed(b, list, tokens, widths[w]);
    }
}

/* ---- arrays ---- */

/* splitmix64 (Steele, Lea, Flood 2014), as a number in [-1, 1). */
static float random_value(uint64_t *seed)
{
    uint64_t bits = *seed += 0x9e3779b97f4a7c15u;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
    bits ^= bits >> 31;
    return (float)((double)(bits >> 11) / 4503599627370496.0 - 1.0);
}

/* count random numbers in [-scale, scale) in the activations' type; freed by the caller. */
static decant_status random_elements(const bench *b, int64_t count, float scale, void **elements,
                                     decant_error *err)
{
    decant_element element = b->backend->activation;
    size_t size_bytes = (size_t)count * decant_element_bytes(element);
    decant_status status = decant_memory_allocate(size_bytes, "random numbers", elements, err);
    uint64_t seed = (uint64_t)count;
    for (int64_t i = 0; i < count && status == DECANT_OK; i++) {
        float value = scale * random_value(&seed);
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (element == DECANT_F32)
            ((float *)*elements)[i] = value;
        else
            ((uint16_t *)*elements)[i] = (uint16_t)(bits >> 16);
    }
    return status;
}

/* Device memory with a copy of host bytes in it. */
static decant_status device_copy(bench *b, const void *host, size_t size_bytes, void **device,
                                 decant_error *err)
{
    const decant_memory_kernels *memory = b->backend->memory;
    decant_status status = memory->allocate(b->backend, size_bytes, "an array of the bench", device, err);
    return status == DECANT_OK ? memory->upload(b->backend, *device, host, size_bytes, err) : status;
}

static decant_status make_activation(bench *b, int64_t rows, int64_t columns, decant_matrix *matrix,
                                     decant_error *err)
{
    decant_status status;
    void *host = NULL;
    *matrix = (decant_matrix){NULL, b->backend->activation, rows, columns};
    DECANT_TRY(random_elements(b, rows * columns, 1.0f, &host, err));
    DECANT_TRY(device_copy(b, host, decant_matrix_bytes(*matrix), &matrix->data, err));
done:
    decant_memory_free(host);
    return status;
}

static decant_status make_weight(bench *b, int64_t rows, int64_t columns, decant_matrix *weight,
                                 decant_error *err)
{
    decant_status status;
    decant_matrix host = {NULL, b->backend->activation, rows, columns};
    DECANT_TRY(random_elements(b, rows * columns, 0.03f, &host.data, err));
    if (strcmp(b->backend->name, "cpu") == 0) { /* borrows what it is given: hand over a copy that stays */
        *weight = host;
        host.data = NULL;
        DECANT_TRY(device_copy(b, weight->data, decant_matrix_bytes(*weight), &host.data, err));
        decant_memory_free(weight->data);
        weight->data = host.data;
        return DECANT_OK;
    }
    DECANT_TRY(b->backend->weights->place(b->backend, host, DECANT_PLACE_COMPUTE, "a weight of the bench",
                                          weight, err));
done:
    decant_memory_free(host.data);
    return status;
}

/* Random codes, levels and a sparse part of 0.45 %, evenly spread. */
static decant_status make_packed(bench *b, decant_error *err)
{
    decant_status status;
    const int64_t rows = b->set.intermediate, columns = b->set.hidden, bits = 4;
    const int64_t words = rows * bits * ((columns + 31) / 32), each = columns * 45 / 10000;
    void *planes = NULL, *levels = NULL, *offsets = NULL, *places = NULL;
    uint64_t seed = 1;
    DECANT_TRY(decant_memory_allocate((size_t)words * 4, "codes", &planes, err));
    DECANT_TRY(decant_memory_allocate((size_t)(rows << bits) * 2, "levels", &levels, err));
    DECANT_TRY(decant_memory_allocate((size_t)(rows + 1) * 4, "offsets", &offsets, err));
    DECANT_TRY(decant_memory_allocate((size_t)(rows * each + 1) * 4, "places", &places, err));
    for (int64_t i = 0; i < words; i++)
        ((uint32_t *)planes)[i] = (uint32_t)(int32_t)(2147483000.0f * random_value(&seed));
    for (int64_t i = 0; i < rows << bits; i++)
        ((uint16_t *)levels)[i] = decant_f32_to_f16(random_value(&seed));
    for (int64_t i = 0; i <= rows; i++)
        ((uint32_t *)offsets)[i] = (uint32_t)(i * each);
    for (int64_t i = 0; i < rows * each; i++)
        ((uint32_t *)places)[i] = (uint32_t)(i % each * columns / each);
    for (int i = 0; i < COPIES; i++)
        DECANT_TRY(device_copy(b, planes, (size_t)words * 4, (void **)&b->planes[i], err));
    DECANT_TRY(device_copy(b, levels, (size_t)(rows << bits) * 2, (void **)&b->levels, err));
    b->sparse.count = rows * each;
    DECANT_TRY(device_copy(b, offsets, (size_t)(rows + 1) * 4, (void **)&b->sparse.row_offsets, err));
    DECANT_TRY(device_copy(b, places, (size_t)(rows * each + 1) * 4, (void **)&b->sparse.columns, err));
    DECANT_TRY(device_copy(b, levels, (size_t)(rows * each < rows << bits ? rows * each : rows << bits) * 2,
                           (void **)&b->sparse_values, err));
done:
    decant_memory_free(planes);
    decant_memory_free(levels);
    decant_memory_free(offsets);
    decant_memory_free(places);
    return status;
}

static decant_status make_arrays(bench *b, int64_t tokens, decant_error *err)
{
    decant_status status;
    const settings *set = &b->set;
    const int64_t widest = set->intermediate > set->hidden ? set->intermediate : set->hidden;
    const int64_t at_least = tokens > 16 ? tokens : 16; /* packed_linear is timed with up to 16 */
    const decant_memory_kernels *memory = b->backend->memory;
    size_t weight_count = (size_t)(widest * set->hidden);
    void *sequence;
    uint64_t seed = 1;
    DECANT_TRY(decant_memory_allocate((size_t)tokens * sizeof(int32_t), "a sequence", &sequence, err));
    b->sequence = sequence;
    for (int64_t t = 0; t < tokens; t++)
        b->sequence[t] = (int32_t)((0.5f + 0.499f * random_value(&seed)) * (float)set->vocabulary);
    for (int i = 0; i < ACTIVATIONS; i++)
        DECANT_TRY(make_activation(b, at_least, widest, &b->activations[i], err));
    for (int i = 0; i < 2; i++)
        DECANT_TRY(make_activation(b, tokens, set->vocabulary, &b->logits[i], err));
    for (int i = 0; i < COPIES; i++) {
        DECANT_TRY(make_weight(b, widest, set->hidden, &b->weights[i], err));
        DECANT_TRY(memory->allocate(b->backend, weight_count * sizeof(float), "Fisher sums",
                                    (void **)&b->fisher[i], err));
    }
    DECANT_TRY(make_weight(b, set->vocabulary, set->hidden, &b->head, err));
    DECANT_TRY(make_weight(b, 1, set->hidden, &b->norm, err));
    DECANT_TRY(memory->allocate(b->backend, (size_t)(set->heads * tokens) * sizeof(float), "figures",
                                (void **)&b->figures, err));
    DECANT_TRY(memory->allocate(b->backend, (size_t)(tokens * set->hidden) * sizeof(float), "angles",
                                (void **)&b->angles, err));
    DECANT_TRY(make_packed(b, err));
done:
    return status;
}

static void free_arrays(bench *b)
{
    const bool placed = strcmp(b->backend->name, "cpu") != 0;
    const decant_memory_kernels *memory = b->backend->memory;
    decant_matrix *weights[COPIES + 2] = {&b->head, &b->norm};
    for (int i = 0; i < COPIES; i++) {
        weights[i + 2] = &b->weights[i];
        memory->release(b->backend, (void **)&b->fisher[i]);
        memory->release(b->backend, (void **)&b->planes[i]);
    }
    for (int i = 0; i < COPIES + 2; i++) {
        if (placed)
            b->backend->weights->unplace(b->backend, weights[i]);
        else
            memory->release(b->backend, &weights[i]->data);
    }
    for (int i = 0; i < ACTIVATIONS; i++)
        memory->release(b->backend, &b->activations[i].data);
    memory->release(b->backend, &b->logits[0].data);
    memory->release(b->backend, &b->logits[1].data);
    void **rest[] = {(void **)&b->figures,        (void **)&b->angles,
                     (void **)&b->levels,         (void **)&b->sparse.row_offsets,
                     (void **)&b->sparse.columns, (void **)&b->sparse_values};
    for (int i = 0; i < (int)(sizeof rest / sizeof *rest); i++)
        memory->release(b->backend, rest[i]);
    decant_memory_free(b->sequence);
    b->sequence = NULL;
}

/* ---- timing ---- */

static double clock_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int compare_numbers(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static decant_status run_times(bench *b, const operation *op, int times, double *elapsed_s, decant_error *err)
{
    decant_status status;
    DECANT_TRY(b->backend->memory->synchronize(b->backend, err));
    double start = clock_s();
    for (int turn = 0; turn < times; turn++)
        DECANT_TRY(op->run(b, op, turn, err));
    DECANT_TRY(b->backend->memory->synchronize(b->backend, err));
    *elapsed_s = clock_s() - start;
done:
    return status;
}

/* The median time of one run, after a warm-up that also says how many runs make a measurement. */
static decant_status measure(bench *b, const operation *op, double *seconds, decant_error *err)
{
    decant_status status;
    double elapsed, all[REPEATS_MAXIMUM];
    DECANT_TRY(run_times(b, op, 1, &elapsed, err));
    DECANT_TRY(run_times(b, op, 2, &elapsed, err));
    int times = elapsed / 2 < ENOUGH_S ? (int)ceil(ENOUGH_S / (elapsed / 2 + 1e-7)) : 1;
    if (times > 2000)
        times = 2000;
    for (int i = 0; i < b->set.repeats; i++) {
        DECANT_TRY(run_times(b, op, times, &elapsed, err));
        all[i] = elapsed / times;
    }
    qsort(all, (size_t)b->set.repeats, sizeof *all, compare_numbers);
    *seconds = all[b->set.repeats / 2];
done:
    return status;
}

static double floor_s(const settings *set, const operation *op)
{
    return fmax(op->flops / (set->tflops * 1e12), op->bytes / (set->gbytes * 1e9));
}

/* Times every operation and prints a line each; then the sums over a sequence. */
static decant_status run_all(bench *b, decant_error *err)
{
    decant_status status = DECANT_OK;
    const settings *set = &b->set;
    operation_list list = {.count = 0};
    double forward = 0, backward = 0, once = 0;
    list_operations(b, &list);
    printf("\n%-24s %-28s %10s %10s %9s %9s\n", "operation", "shape", "ms", "GFLOP/s", "GB/s", "roofline");
    for (int i = 0; i < list.count; i++) {
        const operation *op = &list.operations[i];
        double seconds;
        if (set->only && !strstr(op->name, set->only))
            continue;
        DECANT_TRY(measure(b, op, &seconds, err));
        printf("%-24s %-28s %10.4f %10.0f %9.0f %8.0f%%\n", op->name, op->shape, 1e3 * seconds,
               op->flops / seconds / 1e9, op->bytes / seconds / 1e9, 100 * floor_s(set, op) / seconds);
        forward += op->forward * seconds;
        backward += op->backward * seconds;
        once += op->once * seconds;
    }
    if (!set->only)
        printf("one sequence of %lld tokens, %d layers: %.1f ms; with every block computed twice: %.1f ms\n",
               (long long)b->tokens, set->layers, 1e3 * (set->layers * (forward + backward) + once),
               1e3 * (set->layers * (2 * forward + backward) + once));
done:
    return status;
}

/* ---- the command line ---- */

static void read_tokens(const char *text, settings *set)
{
    set->token_counts = 0;
    for (char *end; *text && set->token_counts < TOKEN_COUNTS_MAXIMUM; text = *end ? end + 1 : end)
        set->tokens[set->token_counts++] = strtoll(text, &end, 10);
}

static bool read_option(const char *name, const char *value, settings *set)
{
    const struct {
        const char *name;
        int64_t *wide;
        int *narrow;
        double *real;
        const char **text;
    } options[] = {
        {.name = "--device", .text = &set->device},
        {.name = "--only", .text = &set->only},
        {.name = "--hidden", .wide = &set->hidden},
        {.name = "--intermediate", .wide = &set->intermediate},
        {.name = "--vocabulary", .wide = &set->vocabulary},
        {.name = "--heads", .narrow = &set->heads},
        {.name = "--key-value-heads", .narrow = &set->key_value_heads},
        {.name = "--layers", .narrow = &set->layers},
        {.name = "--repeats", .narrow = &set->repeats},
        {.name = "--tflops", .real = &set->tflops},
        {.name = "--gbytes", .real = &set->gbytes},
    };
    if (strcmp(name, "--tokens") == 0) {
        read_tokens(value, set);
        return true;
    }
    for (int i = 0; i < (int)(sizeof options / sizeof *options); i++) {
        if (strcmp(name, options[i].name) != 0)
            continue;
        if (options[i].wide)
            *options[i].wide = strtoll(value, NULL, 10);
        if (options[i].narrow)
            *options[i].narrow = (int)strtol(value, NULL, 10);
        if (options[i].real)
            *options[i].real = strtod(value, NULL);
        if (options[i].text)
            *options[i].text = value;
        return true;
    }
    return false;
}

/* LLaMA-7B on a GPU, a model of a few million weights on a CPU. */
static settings default_settings(const char *device)
{
    settings gpu = {device, NULL, {512, 2048}, 2, 4096, 11008, 32000, 32, 32, 32, 7, 790, 3000};
    settings cpu = {device, NULL, {128}, 1, 512, 1376, 4096, 8, 8, 4, 3, 0.2, 20};
    return strcmp(device, "cpu") == 0 ? cpu : gpu;
}

static bool read_settings(int argc, char **argv, settings *set)
{
    const char *device = getenv("DECANT_TEST_DEVICE");
    if (!device || !*device)
        device = decant_backend_count_cuda() > 0 ? "cuda" : "cpu";
    for (int i = 1; i + 1 < argc; i += 2)
        if (strcmp(argv[i], "--device") == 0)
            device = argv[i + 1];
    *set = default_settings(device);
    if (argc % 2 == 0)
        return false;
    for (int i = 1; i < argc; i += 2)
        if (!read_option(argv[i], argv[i + 1], set))
            return false;
    return set->repeats > 0 && set->repeats <= REPEATS_MAXIMUM && set->token_counts > 0 && set->heads > 0 &&
           set->key_value_heads > 0 && set->heads % set->key_value_heads == 0 && set->hidden % set->heads == 0;
}

static decant_status open_backend(const char *device, decant_backend **backend, decant_error *err)
{
    if (strcmp(device, "cpu") == 0)
        return decant_backend_create_cpu(0, backend, err);
    return decant_backend_create_cuda(0, strcmp(device, "cuda_full_floats") == 0, backend, err);
}

int main(int argc, char **argv)
{
    decant_error error = {0}, *err = &error;
    decant_status status;
    bench b = {.backend = NULL};
    if (!read_settings(argc, argv, &b.set)) {
        fprintf(
            stderr,
            "usage: bench_model_kernels [--device cpu|cuda|cuda_full_floats] [--tokens 512,2048] …; see the "
            "top of its source\n");
        return 2;
    }
    DECANT_TRY(open_backend(b.set.device, &b.backend, err));
    printf("%s; roofline of %.1f TFLOP/s and %.0f GB/s; %s activations\n", b.backend->device_name, b.set.tflops,
           b.set.gbytes, decant_element_name(b.backend->activation));
    for (int i = 0; i < b.set.token_counts; i++) {
        b.tokens = b.set.tokens[i];
        status = make_arrays(&b, b.tokens, err);
        if (status == DECANT_OK)
            status = run_all(&b, err);
        free_arrays(&b);
        if (status != DECANT_OK)
            break;
    }
done:
    if (status != DECANT_OK)
        fprintf(stderr, "bench_model_kernels: %s\n", err->message);
    decant_backend_destroy(&b.backend);
    return decant_status_exit(status);
}
