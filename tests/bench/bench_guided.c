/* How long guided quantization takes on matrices of the size of real layers: the Hessians of a batch of tokens,
 * and levels and codes under them; what that comes to for a whole model; and how far Hessians in the
 * activations' type are from F64.
 *
 *   bench_guided [--device cpu|cuda] [--shape ROWSxCOLUMNS] [--bits N] [--groups N] [--tokens N] [--batch N]
 *                [--passes N] [--rounds N] [--sweeps N] [--repeat N]
 *
 *   --tokens  of the calibration, for the whole model's figures; --batch of them are added at once
 *
 * Inputs have columns of unlike sizes and a part in common, as those of a model have. Times are the least of N
 * runs after one to warm up. */
#include "base/log.h"
#include "base/memory.h"
#include "kernels/backend.h"
#include "kernels/counter_random.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KINDS_OF_LAYER = 3, BLOCKS = 32, SAMPLES = 500 };

static const struct {
    int64_t rows, columns;
    int count; /* in a block of LLaMA-7B */
} layers[KINDS_OF_LAYER] = {{4096, 4096, 4}, {11008, 4096, 2}, {4096, 11008, 1}};

static const double damping = 0.01, outlier_share = 0.0045;

typedef struct options {
    const char *device;
    int64_t rows, columns; /* 0: the model's */
    int bits, groups, passes, rounds, sweeps, repeat;
    int64_t tokens, batch;
} options;

/* One matrix under test; device arrays. */
typedef struct bench {
    decant_backend *backend;
    const options *o;
    decant_matrix host, weight, x, dy;
    float *x_host, *dy_host; /* what the device holds, [batch, columns] and [batch, rows] */
    void *hessian;
    decant_packed_matrix packed;
} bench;

/* ---- values ---- */

static uint64_t next_random(uint64_t *state)
{
    return decant_random_mix(*state += 0x9e3779b97f4a7c15u);
}

/* The sum of four uniform numbers, scaled to variance 1: near enough to normal, and quick. */
static float normal(uint64_t *state)
{
    const uint64_t bits = next_random(state);
    const float sum = (float)((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48));
    return (sum / 65536.0f - 2.0f) * 1.7320508f;
}

static uint16_t bf16_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

typedef float value_at(uint64_t *state, int64_t row, int64_t column);

static float weight_value(uint64_t *state, int64_t row, int64_t column)
{
    (void)row;
    (void)column;
    return 0.02f * normal(state);
}

static float input_value(uint64_t *state, int64_t row, int64_t column)
{
    uint64_t shared = (uint64_t)row, sized = (uint64_t)column;
    const float size = expf(0.7f * normal(&sized)) * (column % 1021 == 7 ? 20.0f : 1.0f);
    return size * (0.8f * normal(state) + 0.6f * normal(&shared));
}

static float gradient_value(uint64_t *state, int64_t row, int64_t column)
{
    uint64_t shared = (uint64_t)row + 12345;
    (void)column;
    return 1e-5f * expf(normal(&shared)) * normal(state);
}

/* Host memory of the element type, F32 or BF16; `kept` (or NULL) receives the rounded values. */
static void fill(decant_matrix matrix, value_at *value, float *kept)
{
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < matrix.rows; row++) {
        uint64_t state = (uint64_t)row * 0x2545f4914f6cdd1du + (uint64_t)matrix.columns;
        for (int64_t j = 0; j < matrix.columns; j++) {
            const int64_t at = row * matrix.columns + j;
            const float exact = value(&state, row, j);
            const uint16_t narrow = bf16_of(exact);
            const uint32_t wide = (uint32_t)narrow << 16;
            if (matrix.element == DECANT_F32)
                ((float *)matrix.data)[at] = exact;
            else
                ((uint16_t *)matrix.data)[at] = narrow;
            if (kept && matrix.element == DECANT_F32)
                kept[at] = exact;
            else if (kept)
                memcpy(&kept[at], &wide, sizeof wide);
        }
    }
}

static decant_status upload_values(decant_backend *backend, int64_t rows, int64_t columns, value_at *value,
                                   decant_matrix *matrix, float **kept, decant_error *err)
{
    decant_status status;
    decant_matrix host = {NULL, backend->activation, rows, columns};
    *matrix = host;
    DECANT_TRY(decant_memory_allocate(decant_matrix_bytes(host), "values", &host.data, err));
    DECANT_TRY(decant_memory_allocate((size_t)(rows * columns) * 4, "values", (void **)kept, err));
    fill(host, value, *kept);
    DECANT_TRY(backend->memory->allocate(backend, decant_matrix_bytes(host), "values", &matrix->data, err));
    DECANT_TRY(backend->memory->upload(backend, matrix->data, host.data, decant_matrix_bytes(host), err));
    DECANT_TRY(backend->memory->synchronize(backend, err));
done:
    decant_memory_free(host.data);
    return status;
}

/* ---- one matrix ---- */

static decant_status create_packed(bench *b, decant_error *err)
{
    decant_status status;
    decant_backend *backend = b->backend;
    const decant_memory_kernels *memory = backend->memory;
    const int64_t rows = b->host.rows, columns = b->host.columns;
    const int64_t count = llround(outlier_share * (double)(rows * columns));
    decant_packed_matrix *p = &b->packed;
    *p = (decant_packed_matrix){.rows = rows, .columns = columns, .bits = b->o->bits};
    p->sparse.count = count;
    const size_t plane_bytes = (size_t)(rows * p->bits * ((columns + 31) / 32)) * 4;
    DECANT_TRY(
        memory->allocate(backend, (size_t)(rows + 1) * 4, "offsets", (void **)&p->sparse.row_offsets, err));
    DECANT_TRY(memory->allocate(backend, (size_t)count * 4, "columns", (void **)&p->sparse.columns, err));
    DECANT_TRY(memory->allocate(backend, (size_t)rows << (p->bits + 1), "levels", (void **)&p->levels, err));
    DECANT_TRY(memory->allocate(backend, plane_bytes, "planes", (void **)&p->planes, err));
    DECANT_TRY(memory->allocate(backend, (size_t)count * 2, "sparse values", (void **)&p->sparse_values, err));
    DECANT_TRY(backend->quantize->select_sparse(backend, b->weight, NULL, 0, count, &p->sparse, err));
done:
    return status;
}

static decant_status create(decant_backend *backend, const options *o, int64_t rows, int64_t columns, bench *b,
                            decant_error *err)
{
    decant_status status;
    const size_t hessian_bytes = (size_t)(o->groups * columns * columns) * sizeof(float);
    *b = (bench){.backend = backend, .o = o, .host = {NULL, DECANT_BF16, rows, columns}};
    DECANT_TRY(decant_memory_allocate(decant_matrix_bytes(b->host), "weights", &b->host.data, err));
    fill(b->host, weight_value, NULL);
    DECANT_TRY(backend->weights->place(backend, b->host, DECANT_PLACE_EXACT, "a weight", &b->weight, err));
    DECANT_TRY(upload_values(backend, o->batch, columns, input_value, &b->x, &b->x_host, err));
    DECANT_TRY(upload_values(backend, o->batch, rows, gradient_value, &b->dy, &b->dy_host, err));
    DECANT_TRY(backend->memory->allocate(backend, hessian_bytes, "Hessians", &b->hessian, err));
    DECANT_TRY(create_packed(b, err));
done:
    return status;
}

static void destroy(bench *b)
{
    const decant_memory_kernels *memory = b->backend->memory;
    void *arrays[] = {b->x.data,
                      b->dy.data,
                      b->hessian,
                      b->packed.sparse.row_offsets,
                      b->packed.sparse.columns,
                      b->packed.levels,
                      b->packed.planes,
                      b->packed.sparse_values};
    b->backend->weights->unplace(b->backend, &b->weight);
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        memory->release(b->backend, &arrays[i]);
    decant_memory_free(b->host.data);
    decant_memory_free(b->x_host);
    decant_memory_free(b->dy_host);
}

/* ---- accuracy ---- */

/* s of the first group, token by token, over the values that the device has. */
static void mean_squares(const bench *b, double *saliency)
{
    const int64_t channels = b->dy.columns;
    const int64_t end = decant_hessian_group_first(channels, b->o->groups, 1);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < b->dy.rows; t++) {
        saliency[t] = 0;
        for (int64_t c = 0; c < end; c++)
            saliency[t] += pow(b->dy_host[t * channels + c], 2) / (double)end;
    }
}

/* How far sampled elements of H are from F64: the largest and the root mean square difference, as a part of
 * sqrt(H_ii H_jj). */
static decant_status print_accuracy(bench *b, decant_error *err)
{
    decant_status status;
    const int64_t n = b->x.columns;
    void *memory = NULL, *kept = NULL;
    uint64_t state = 99;
    double worst = 0, squares = 0;
    DECANT_TRY(decant_memory_allocate((size_t)n * sizeof(float), "a row of H", &memory, err));
    DECANT_TRY(decant_memory_allocate((size_t)b->x.rows * sizeof(double), "s", &kept, err));
    const double *saliency = kept;
    const float *row = memory;
    mean_squares(b, kept);
    for (int sample = 0; sample < SAMPLES; sample++) {
        const int64_t i = (int64_t)(next_random(&state) % (uint64_t)n), j = (i + sample * 7) % n;
        double product = 0, left = 0, right = 0;
        for (int64_t t = 0; t < b->x.rows; t++) {
            const double x = b->x_host[t * n + i], y = b->x_host[t * n + j];
            product += saliency[t] * x * y;
            left += saliency[t] * x * x;
            right += saliency[t] * y * y;
        }
        DECANT_TRY(b->backend->memory->download(b->backend, memory, (float *)b->hessian + i * n,
                                                (size_t)n * sizeof(float), err));
        const double miss = fabs((double)row[j] - product) / sqrt(left * right);
        worst = fmax(worst, miss);
        squares += miss * miss;
    }
    printf("  H against F64, of sqrt(H_ii H_jj): %.1e at most, %.1e in the mean of squares\n", worst,
           sqrt(squares / SAMPLES));
done:
    decant_memory_free(memory);
    decant_memory_free(kept);
    return status;
}

/* ---- times ---- */

typedef enum bench_step { GRAM, LEVELS, GUIDE, STEPS } bench_step;

static decant_status run_step(bench *b, bench_step step, decant_matrix_error *error, decant_error *err)
{
    decant_backend *backend = b->backend;
    const options *o = b->o;
    const decant_guided_search search = {o->groups, b->hessian, damping, o->passes, o->rounds, o->sweeps};
    switch (step) {
    case GRAM:
        return backend->model->gram_add(backend, b->dy, b->x, o->groups, b->hessian, err);
    case LEVELS:
        return backend->quantize->fit_levels(backend, b->weight, NULL, &b->packed.sparse, DECANT_LEVELS_EXACT,
                                             0, &o->bits, 1, &b->packed.levels, err);
    default:
        return backend->quantize->guide(backend, b->weight, &search, &b->packed, error, err);
    }
}

static decant_status time_step(bench *b, bench_step step, double *seconds, decant_matrix_error *error,
                               decant_error *err)
{
    decant_status status;
    *seconds = INFINITY;
    for (int run = 0; run <= b->o->repeat; run++) {
        if (step == GRAM && run < 2) /* one call's sums are what accuracy is measured of */
            DECANT_TRY(b->backend->memory->zero(
                b->backend, b->hessian, (size_t)(b->o->groups * b->x.columns * b->x.columns) * sizeof(float),
                err));
        if (step == GUIDE)
            DECANT_TRY(run_step(b, LEVELS, error, err));
        DECANT_TRY(b->backend->memory->synchronize(b->backend, err));
        double start_s = decant_clock_s();
        DECANT_TRY(run_step(b, step, error, err));
        DECANT_TRY(b->backend->memory->synchronize(b->backend, err));
        if (run > 0 || b->o->repeat == 0)
            *seconds = fmin(*seconds, decant_clock_s() - start_s);
        if (step == GRAM && run == 0)
            DECANT_TRY(print_accuracy(b, err));
    }
done:
    return status;
}

static decant_status time_matrix(decant_backend *backend, const options *o, int64_t rows, int64_t columns,
                                 double seconds[STEPS], decant_error *err)
{
    decant_status status;
    bench b;
    decant_matrix_error before, after;
    const decant_guided_search none = {.groups = o->groups, .damping = damping};
    DECANT_TRY(create(backend, o, rows, columns, &b, err));
    printf("%" PRId64 " x %" PRId64 "\n", rows, columns);
    for (bench_step step = 0; step < STEPS; step++)
        DECANT_TRY(time_step(&b, step, &seconds[step], &after, err));
    DECANT_TRY(run_step(&b, LEVELS, &before, err));
    decant_guided_search search = none;
    search.hessian = b.hessian;
    DECANT_TRY(backend->quantize->guide(backend, b.weight, &search, &b.packed, &before, err));
    const double squares = (double)(columns * columns), sweeps = (double)(o->rounds * o->sweeps);
    printf(
        "  gram_add %.3f ms, %.0f TFLOP/s of the whole product; levels %.3f ms; guide %.3f ms, of which %.0f "
        "TFLOP/s in products of sweeps alone; error %.4f of k-means'\n",
        seconds[GRAM] * 1e3, 2 * (double)(o->batch * o->groups) * squares / seconds[GRAM] / 1e12,
        seconds[LEVELS] * 1e3, seconds[GUIDE] * 1e3,
        2 * (double)rows * squares * sweeps / seconds[GUIDE] / 1e12, after.weighted / before.weighted);
    fflush(stdout);
done:
    destroy(&b);
    return status;
}

/* ---- the program ---- */

static decant_status bench_model(decant_backend *backend, const options *o, decant_error *err)
{
    decant_status status;
    double total[STEPS] = {0};
    for (int i = 0; i < KINDS_OF_LAYER; i++) {
        double seconds[STEPS];
        DECANT_TRY(time_matrix(backend, o, layers[i].rows, layers[i].columns, seconds, err));
        for (bench_step step = 0; step < STEPS; step++)
            total[step] += seconds[step] * BLOCKS * layers[i].count *
                           (step == GRAM ? (double)o->tokens / (double)o->batch : 1);
    }
    printf("LLaMA-7B: Hessians of %" PRId64 " tokens %.1f s, levels %.1f s, guide %.1f s\n", o->tokens,
           total[GRAM], total[LEVELS], total[GUIDE]);
done:
    return status;
}

static bool read_option(const char *name, const char *value, options *o)
{
    const struct {
        const char *name;
        int *number;
    } numbers[] = {{"--bits", &o->bits},     {"--groups", &o->groups}, {"--passes", &o->passes},
                   {"--rounds", &o->rounds}, {"--sweeps", &o->sweeps}, {"--repeat", &o->repeat}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (strcmp(name, numbers[i].name) == 0)
            return sscanf(value, "%d", numbers[i].number) == 1 && *numbers[i].number >= 0;
    if (strcmp(name, "--device") == 0) {
        o->device = value;
        return strcmp(value, "cpu") == 0 || strcmp(value, "cuda") == 0;
    }
    if (strcmp(name, "--shape") == 0)
        return sscanf(value, "%" SCNd64 "x%" SCNd64, &o->rows, &o->columns) == 2 && o->rows > 0 &&
               o->columns > 0;
    if (strcmp(name, "--tokens") == 0)
        return sscanf(value, "%" SCNd64, &o->tokens) == 1 && o->tokens > 0;
    if (strcmp(name, "--batch") == 0)
        return sscanf(value, "%" SCNd64, &o->batch) == 1 && o->batch > 0;
    return false;
}

static decant_status run(const options *o, decant_error *err)
{
    decant_status status;
    decant_backend *backend = NULL;
    double seconds[STEPS];
    if (strcmp(o->device, "cuda") == 0)
        DECANT_TRY(decant_backend_create_cuda(0, false, &backend, err));
    else
        DECANT_TRY(decant_backend_create_cpu(0, &backend, err));
    printf("%s; %d bits, %d groups, %d passes, %d rounds of %d sweeps, %" PRId64 " tokens at once\n",
           backend->device_name, o->bits, o->groups, o->passes, o->rounds, o->sweeps, o->batch);
    if (o->rows > 0)
        DECANT_TRY(time_matrix(backend, o, o->rows, o->columns, seconds, err));
    else
        DECANT_TRY(bench_model(backend, o, err));
    int64_t bytes, peak_bytes, device_bytes;
    backend->memory->usage(backend, &bytes, &peak_bytes, &device_bytes);
    printf("peak %.2f GB on the device\n", (double)peak_bytes / 1e9);
done:
    if (backend)
        decant_backend_destroy(&backend);
    return status;
}

int main(int argc, char **argv)
{
    options o = {.device = "cuda",
                 .bits = 3,
                 .groups = 4,
                 .passes = 8,
                 .rounds = 3,
                 .sweeps = 4,
                 .repeat = 2,
                 .tokens = 100 * 2048,
                 .batch = 2048};
    for (int i = 1; i < argc; i += 2)
        if (i + 1 >= argc || !read_option(argv[i], argv[i + 1], &o)) {
            fprintf(stderr, "bench_guided: what is %s?\n", argv[i]);
            return decant_status_exit(DECANT_ERROR_USAGE);
        }
    decant_error err = {0};
    decant_status status = run(&o, &err);
    if (status != DECANT_OK)
        fprintf(stderr, "bench_guided: %s\n", err.message);
    return decant_status_exit(status);
}
