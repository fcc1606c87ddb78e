/* How long the quantize kernels of a backend take on matrices of the size of real layers, the way of the
 * weights from host memory included, and what that comes to for a whole model. Values are normal, rounded to
 * the element type; F is heavy-tailed as Fisher sums are.
 *
 *   bench_quantize [--device cpu|cuda] [--model 7b|65b] [--element bf16|f16|f32] [--shape ROWSxCOLUMNS]
 * [--repeat N]
 *
 * Without --element all three are run; --shape runs that matrix alone. Times are the least of N runs, in ns a
 * weight. */
#include "base/log.h"
#include "base/memory.h"
#include "kernels/backend.h"
#include "kernels/counter_random.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KINDS_OF_LAYER = 3, MOST_WIDTHS = 3, BITS_OF_CODES = 4 };

static const double sensitive_share = 0.0005, outlier_share = 0.0040;

typedef struct model_shape {
    const char *name;
    int blocks;
    int64_t rows[KINDS_OF_LAYER], columns[KINDS_OF_LAYER];
    int count[KINDS_OF_LAYER]; /* in a block */
} model_shape;

static const model_shape models[] = {
    {"7b", 32, {4096, 11008, 4096}, {4096, 4096, 11008}, {4, 2, 1}},
    {"65b", 80, {8192, 22016, 8192}, {8192, 8192, 22016}, {4, 2, 1}},
};

typedef enum bench_step { PLACE, SELECT, FIT_TO_4, FIT_5_6, MEASURE, ENCODE, WHOLE, STEPS } bench_step;

static const char *step_names[STEPS] = {"place", "select", "fit 2-4", "fit 5,6", "measure", "encode", "whole"};

/* One matrix under test. */
typedef struct bench {
    decant_backend *backend;
    decant_matrix host, weight; /* weight: placed, data NULL when not */
    void *fisher;
    decant_sparse_pattern pattern;
    int64_t sensitive, outliers;
    uint16_t *levels[DECANT_BITS_MAXIMUM + 1]; /* by bits; NULL where not needed */
    decant_packed_matrix packed;
} bench;

/* ---- values ---- */

static uint64_t next_random(uint64_t *state)
{
    return decant_random_mix(*state += 0x9e3779b97f4a7c15u);
}

static float normal(uint64_t *state)
{
    uint64_t bits = next_random(state);
    float u = ((float)(bits >> 40) + 0.5f) * 0x1p-24f, v = (float)(bits & 0xffffff) * 0x1p-24f;
    return sqrtf(-2 * logf(u)) * cosf(6.2831853f * v);
}

static void store(decant_element element, float value, void *array, int64_t index)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (element == DECANT_F32)
        ((uint32_t *)array)[index] = bits;
    else if (element == DECANT_F16)
        ((uint16_t *)array)[index] = decant_f32_to_f16(value);
    else
        ((uint16_t *)array)[index] = (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static void fill(decant_matrix matrix, float *fisher)
{
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < matrix.rows; row++) {
        uint64_t state = (uint64_t)row * 0x2545f4914f6cdd1du + (uint64_t)matrix.columns;
        for (int64_t i = row * matrix.columns; i < (row + 1) * matrix.columns; i++) {
            float z = normal(&state);
            fisher[i] = 1e-6f * z * z * z * z;
            store(matrix.element, 0.02f * normal(&state), matrix.data, i);
        }
    }
}

/* ---- one matrix ---- */

static decant_status create_arrays(bench *b, decant_error *err)
{
    decant_status status;
    decant_backend *backend = b->backend;
    const decant_memory_kernels *memory = backend->memory;
    const int64_t rows = b->host.rows, columns = b->host.columns, count = b->sensitive + b->outliers;
    const size_t plane_bytes = (size_t)(rows * BITS_OF_CODES * ((columns + 31) / 32)) * 4;
    b->pattern.count = count;
    DECANT_TRY(
        memory->allocate(backend, (size_t)(rows + 1) * 4, "offsets", (void **)&b->pattern.row_offsets, err));
    DECANT_TRY(memory->allocate(backend, (size_t)count * 4, "columns", (void **)&b->pattern.columns, err));
    for (int bits = 2; bits <= 6; bits++)
        DECANT_TRY(
            memory->allocate(backend, (size_t)rows << (bits + 1), "levels", (void **)&b->levels[bits], err));
    b->packed =
        (decant_packed_matrix){.rows = rows, .columns = columns, .bits = BITS_OF_CODES, .sparse = b->pattern};
    b->packed.levels = b->levels[BITS_OF_CODES];
    DECANT_TRY(memory->allocate(backend, plane_bytes, "planes", (void **)&b->packed.planes, err));
    DECANT_TRY(memory->allocate(backend, (size_t)count * 2, "values", (void **)&b->packed.sparse_values, err));
done:
    return status;
}

static decant_status create(decant_backend *backend, decant_element element, int64_t rows, int64_t columns,
                            bench *b, decant_error *err)
{
    decant_status status;
    const size_t fisher_bytes = (size_t)(rows * columns) * sizeof(float);
    void *fisher = NULL;
    *b = (bench){.backend = backend, .host = {NULL, element, rows, columns}};
    b->sensitive = llround(sensitive_share * (double)(rows * columns));
    b->outliers = llround(outlier_share * (double)(rows * columns));
    DECANT_TRY(decant_memory_allocate(decant_matrix_bytes(b->host), "weights", &b->host.data, err));
    DECANT_TRY(decant_memory_allocate(fisher_bytes, "F", &fisher, err));
    fill(b->host, fisher);
    DECANT_TRY(backend->memory->allocate(backend, fisher_bytes, "F", &b->fisher, err));
    DECANT_TRY(backend->memory->upload(backend, b->fisher, fisher, fisher_bytes, err));
    DECANT_TRY(create_arrays(b, err));
    DECANT_TRY(backend->memory->synchronize(backend, err));
done:
    decant_memory_free(fisher);
    return status;
}

static void destroy(bench *b)
{
    const decant_memory_kernels *memory = b->backend->memory;
    void *arrays[] = {b->fisher, b->pattern.row_offsets, b->pattern.columns, b->packed.planes,
                      b->packed.sparse_values};
    b->backend->weights->unplace(b->backend, &b->weight);
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        memory->release(b->backend, &arrays[i]);
    for (int bits = 0; bits <= DECANT_BITS_MAXIMUM; bits++)
        memory->release(b->backend, (void **)&b->levels[bits]);
    decant_memory_free(b->host.data);
}

/* ---- the steps ---- */

static decant_status fit(bench *b, int lowest, int highest, decant_error *err)
{
    int bits[MOST_WIDTHS], widths = 0;
    for (int i = lowest; i <= highest; i++)
        bits[widths++] = i;
    return b->backend->quantize->fit_levels(b->backend, b->weight, b->fisher, &b->pattern, DECANT_LEVELS_EXACT,
                                            0, bits, widths, b->levels + lowest, err);
}

static decant_status measure(bench *b, int bits, decant_error *err)
{
    decant_matrix_error error;
    return b->backend->quantize->measure(b->backend, b->weight, b->fisher, &b->pattern, bits, b->levels[bits],
                                         &error, err);
}

/* What the job does with a matrix whose candidates are 2, 3 and 4 bits. */
static decant_status quantize_whole(bench *b, decant_error *err)
{
    decant_status status;
    const decant_quantize_kernels *quantize = b->backend->quantize;
    b->backend->weights->unplace(b->backend, &b->weight);
    DECANT_TRY(
        b->backend->weights->place(b->backend, b->host, DECANT_PLACE_EXACT, "a weight", &b->weight, err));
    DECANT_TRY(
        quantize->select_sparse(b->backend, b->weight, b->fisher, b->sensitive, b->outliers, &b->pattern, err));
    DECANT_TRY(fit(b, 2, 4, err));
    for (int bits = 2; bits <= 4; bits++)
        DECANT_TRY(measure(b, bits, err));
    DECANT_TRY(quantize->encode(b->backend, b->weight, &b->packed, err));
done:
    return status;
}

static decant_status run_step(bench *b, bench_step step, decant_error *err)
{
    const decant_quantize_kernels *quantize = b->backend->quantize;
    switch (step) {
    case PLACE:
        b->backend->weights->unplace(b->backend, &b->weight);
        return b->backend->weights->place(b->backend, b->host, DECANT_PLACE_EXACT, "a weight", &b->weight, err);
    case SELECT:
        return quantize->select_sparse(b->backend, b->weight, b->fisher, b->sensitive, b->outliers, &b->pattern,
                                       err);
    case FIT_TO_4:
        return fit(b, 2, 4, err);
    case FIT_5_6:
        return fit(b, 5, 6, err);
    case MEASURE:
        return measure(b, BITS_OF_CODES, err);
    case ENCODE:
        return quantize->encode(b->backend, b->weight, &b->packed, err);
    default:
        return quantize_whole(b, err);
    }
}

/* Seconds of one run, from an idle device to an idle device. */
static decant_status time_step(bench *b, bench_step step, double *seconds, decant_error *err)
{
    decant_status status;
    DECANT_TRY(b->backend->memory->synchronize(b->backend, err));
    double start_s = decant_clock_s();
    DECANT_TRY(run_step(b, step, err));
    DECANT_TRY(b->backend->memory->synchronize(b->backend, err));
    *seconds = decant_clock_s() - start_s;
done:
    return status;
}

/* The least of `repeat` runs after one to warm up, for each step. */
static decant_status time_matrix(decant_backend *backend, decant_element element, int64_t rows, int64_t columns,
                                 int repeat, double seconds[STEPS], decant_error *err)
{
    decant_status status;
    bench b;
    DECANT_TRY(create(backend, element, rows, columns, &b, err));
    for (bench_step step = 0; step < STEPS; step++) {
        seconds[step] = INFINITY;
        for (int run = 0; run <= repeat; run++) {
            double taken;
            DECANT_TRY(time_step(&b, step, &taken, err));
            if (run > 0 || repeat == 0)
                seconds[step] = fmin(seconds[step], taken);
        }
    }
    const double weights = (double)(rows * columns);
    printf("%-4s %6" PRId64 " x %-6" PRId64, decant_element_name(element), rows, columns);
    for (bench_step step = 0; step < STEPS; step++)
        printf(" %9.4f", seconds[step] * 1e9 / weights);
    printf("   select %.3f ms\n", seconds[SELECT] * 1e3);
    fflush(stdout);
done:
    destroy(&b);
    return status;
}

/* ---- whole models ---- */

static double weights_of(const model_shape *model)
{
    double weights = 0;
    for (int i = 0; i < KINDS_OF_LAYER; i++)
        weights += (double)model->blocks * model->count[i] * (double)(model->rows[i] * model->columns[i]);
    return weights;
}

static decant_status bench_model(decant_backend *backend, const model_shape *model, decant_element element,
                                 int repeat, decant_error *err)
{
    decant_status status;
    double total[STEPS] = {0};
    for (int i = 0; i < KINDS_OF_LAYER; i++) {
        double seconds[STEPS];
        DECANT_TRY(time_matrix(backend, element, model->rows[i], model->columns[i], repeat, seconds, err));
        for (bench_step step = 0; step < STEPS; step++)
            total[step] += seconds[step] * model->blocks * model->count[i];
    }
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        const double factor = weights_of(&models[m]) / weights_of(model);
        printf("%-4s %-4s %s, seconds", decant_element_name(element), models[m].name,
               &models[m] == model ? "by shapes" : "by weights");
        for (bench_step step = 0; step < STEPS; step++)
            printf(" %9.3f", total[step] * factor);
        printf("\n");
    }
done:
    return status;
}

/* ---- the program ---- */

typedef struct options {
    const char *device;
    const model_shape *model;
    int first_element, last_element;
    int64_t rows, columns; /* 0: the model's */
    int repeat;
} options;

static bool read_option(const char *name, const char *value, options *o)
{
    if (strcmp(name, "--device") == 0) {
        o->device = value;
        return strcmp(value, "cpu") == 0 || strcmp(value, "cuda") == 0;
    }
    if (strcmp(name, "--model") == 0) {
        o->model = strcmp(value, "65b") == 0 ? &models[1] : &models[0];
        return strcmp(value, o->model->name) == 0;
    }
    if (strcmp(name, "--element") == 0) {
        o->first_element = o->last_element = strcmp(value, "f32") == 0   ? DECANT_F32
                                             : strcmp(value, "f16") == 0 ? DECANT_F16
                                                                         : DECANT_BF16;
        return o->first_element != DECANT_BF16 || strcmp(value, "bf16") == 0;
    }
    if (strcmp(name, "--shape") == 0)
        return sscanf(value, "%" SCNd64 "x%" SCNd64, &o->rows, &o->columns) == 2 && o->rows > 0 &&
               o->columns > 0;
    if (strcmp(name, "--repeat") == 0)
        return sscanf(value, "%d", &o->repeat) == 1 && o->repeat >= 0;
    return false;
}

static decant_status run(const options *o, decant_error *err)
{
    decant_status status;
    decant_backend *backend = NULL;
    if (strcmp(o->device, "cuda") == 0)
        DECANT_TRY(decant_backend_create_cuda(0, false, &backend, err));
    else
        DECANT_TRY(decant_backend_create_cpu(0, &backend, err));
    printf("%s; ns a weight\n%-20s", backend->device_name, "");
    for (bench_step step = 0; step < STEPS; step++)
        printf(" %9s", step_names[step]);
    printf("\n");
    for (int element = o->last_element; element >= o->first_element; element--) {
        double seconds[STEPS];
        if (o->rows > 0)
            DECANT_TRY(
                time_matrix(backend, (decant_element)element, o->rows, o->columns, o->repeat, seconds, err));
        else
            DECANT_TRY(bench_model(backend, o->model, (decant_element)element, o->repeat, err));
    }
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
    options o = {"cuda", &models[0], DECANT_F32, DECANT_BF16, 0, 0, 3};
    for (int i = 1; i < argc; i += 2)
        if (i + 1 >= argc || !read_option(argv[i], argv[i + 1], &o)) {
            fprintf(stderr, "bench_quantize: what is %s?\n", argv[i]);
            return decant_status_exit(DECANT_ERROR_USAGE);
        }
    decant_error err = {0};
    decant_status status = run(&o, &err);
    if (status != DECANT_OK)
        fprintf(stderr, "bench_quantize: %s\n", err.message);
    return decant_status_exit(status);
}
