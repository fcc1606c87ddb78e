/* How long the grid kernels of a backend take on matrices of the size of real layers, and what that comes to
 * for LLaMA-7B. Weights are normal, BF16, and lie on the device before.
 *
 *   bench_grids [--device cpu|cuda] [--dimension P] [--bits CODE_BITS] [--group N] [--repeat N]
 *
 * Times are the least of N runs: encoding in ns a weight and seconds for the model, products in microseconds.
 */
#include "base/memory.h"
#include "kernels/backend.h"
#include "kernels/gaussian_pair.h"
#include "stages/grid_tables.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct layer_shape {
    int64_t rows, columns, rotation;
    int count; /* in the model */
} layer_shape;

static const layer_shape shapes[] = {{4096, 4096, 1024, 128}, {11008, 4096, 1024, 64}, {4096, 11008, 256, 32}};

typedef struct options {
    const char *device;
    int dimension, code_bits, repeat;
    int64_t group;
} options;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void fill(decant_matrix matrix, uint64_t seed, float size)
{
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < matrix.rows; row++)
        for (int64_t j = 0; j < matrix.columns; j++) {
            float value = size * decant_gaussian_pair_at(seed, row, j).first;
            decant_elements_from_f32(matrix.element, &value, 1,
                                     (char *)matrix.data + (size_t)(row * matrix.columns + j) *
                                                               decant_element_bytes(matrix.element));
        }
}

static decant_status make_matrix(decant_backend *backend, decant_element element, int64_t rows, int64_t columns,
                                 float size, decant_matrix *matrix, decant_error *err)
{
    decant_status status;
    *matrix = (decant_matrix){NULL, element, rows, columns};
    decant_matrix host = *matrix;
    DECANT_TRY(decant_memory_allocate(decant_matrix_bytes(host), "a matrix", &host.data, err));
    fill(host, 1, size);
    DECANT_TRY(backend->memory->allocate(backend, decant_matrix_bytes(host), "a matrix", &matrix->data, err));
    DECANT_TRY(backend->memory->upload(backend, matrix->data, host.data, decant_matrix_bytes(host), err));
    DECANT_TRY(backend->memory->synchronize(backend, err));
done:
    decant_memory_free(host.data);
    return status;
}

static decant_status time_linear(decant_backend *backend, const options *o, const decant_grid_matrix *packed,
                                 int64_t tokens, double *least, decant_error *err)
{
    decant_status status;
    decant_matrix x = {0}, y = {0};
    DECANT_TRY(make_matrix(backend, backend->activation, tokens, packed->columns, 1, &x, err));
    DECANT_TRY(make_matrix(backend, backend->activation, tokens, packed->rows, 1, &y, err));
    *least = 1e9;
    for (int run = 0; run <= o->repeat; run++) {
        double start = now();
        for (int i = 0; i < 10; i++)
            DECANT_TRY(backend->grid->linear(backend, x, packed, false, y, err));
        DECANT_TRY(backend->memory->synchronize(backend, err));
        double seconds = (now() - start) / 10;
        *least = seconds < *least ? seconds : *least;
    }
done:
    backend->memory->release(backend, &x.data);
    backend->memory->release(backend, &y.data);
    return status;
}

static decant_status time_encode(decant_backend *backend, const options *o, decant_matrix weight,
                                 decant_grid_matrix *packed, decant_matrix_error *error, double *least,
                                 decant_error *err)
{
    *least = 1e9;
    for (int run = 0; run <= o->repeat; run++) {
        double start = now();
        decant_status status =
            backend->grid->encode(backend, weight, NULL, DECANT_SCALE_LEAST_ERROR, packed, error, err);
        if (status != DECANT_OK)
            return status;
        double seconds = now() - start;
        *least = seconds < *least ? seconds : *least;
    }
    return DECANT_OK;
}

static decant_status run_shape(decant_backend *backend, const options *o, const decant_grid *grid,
                               layer_shape shape, double *model_seconds, decant_error *err)
{
    decant_status status;
    decant_matrix weight = {0};
    decant_matrix_error error;
    double encode;
    const int p = grid->dimension;
    const int64_t group = o->group > 0 ? o->group : shape.columns;
    const int64_t words = ((shape.columns + p - 1) / p + 31) / 32, groups = (shape.columns + group - 1) / group;
    decant_grid_matrix packed = {.rows = shape.rows, .columns = shape.columns};
    packed.form = (decant_grid_form){p, grid->code_bits, grid->points, group, false, shape.rotation, 1};
    DECANT_TRY(make_matrix(backend, DECANT_BF16, shape.rows, shape.columns, 0.02f, &weight, err));
    DECANT_TRY(backend->memory->allocate(backend, (size_t)(shape.rows * grid->code_bits * words) * 4, "planes",
                                         (void **)&packed.planes, err));
    DECANT_TRY(backend->memory->allocate(backend, (size_t)(shape.rows * groups) * 2, "scales",
                                         (void **)&packed.scales, err));
    DECANT_TRY(time_encode(backend, o, weight, &packed, &error, &encode, err));
    *model_seconds += shape.count * encode;
    printf("%6lld x %5lld: encode %.3f ns a weight, error %.6f of %.6f;", (long long)shape.rows,
           (long long)shape.columns, encode / (double)(shape.rows * shape.columns) * 1e9,
           error.squared / error.norm, grid->error);
    static const int64_t tokens[] = {1, 4, 16, 512, 2048};
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens && strcmp(o->device, "cpu") != 0; i++) {
        double seconds;
        DECANT_TRY(time_linear(backend, o, &packed, tokens[i], &seconds, err));
        printf(" T=%lld %.1f us", (long long)tokens[i], seconds * 1e6);
    }
    printf("\n");
done:
    backend->memory->release(backend, &weight.data);
    backend->memory->release(backend, (void **)&packed.planes);
    backend->memory->release(backend, (void **)&packed.scales);
    return status;
}

static options read_options(int argc, char **argv)
{
    options o = {"cpu", 2, 8, 2, 0};
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--device") == 0)
            o.device = argv[i + 1];
        else if (strcmp(argv[i], "--dimension") == 0)
            o.dimension = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--bits") == 0)
            o.code_bits = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--group") == 0)
            o.group = atoll(argv[i + 1]);
        else if (strcmp(argv[i], "--repeat") == 0)
            o.repeat = atoi(argv[i + 1]);
    }
    return o;
}

int main(int argc, char **argv)
{
    const options o = read_options(argc, argv);
    decant_error err = {0};
    decant_backend *backend;
    decant_status status = strcmp(o.device, "cpu") == 0 ? decant_backend_create_cpu(0, &backend, &err)
                                                        : decant_backend_create_cuda(0, false, &backend, &err);
    const decant_grid *grid = decant_grid_find(DECANT_GRID_HIGGS, o.dimension, o.code_bits);
    if (!grid)
        fprintf(stderr, "there is no such grid\n");
    double model_seconds = 0;
    for (size_t i = 0; grid && status == DECANT_OK && i < sizeof shapes / sizeof *shapes; i++)
        status = run_shape(backend, &o, grid, shapes[i], &model_seconds, &err);
    if (status != DECANT_OK)
        fprintf(stderr, "%s\n", err.message);
    else if (grid)
        printf("%s, p = %d, %d code bits, groups of %lld: LLaMA-7B in %.3f s\n", backend->device_name,
               o.dimension, o.code_bits, (long long)o.group, model_seconds);
    decant_backend_destroy(&backend);
    return status == DECANT_OK && grid ? 0 : 1;
}
