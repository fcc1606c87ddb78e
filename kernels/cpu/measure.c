/* The error that nearest-level codes would leave, without storing them. Each row is summed by one thread in
 * four partial sums, columns 4i, 4i + 1, 4i + 2 and 4i + 3; rows are added in their order. */
#include "kernels/cpu/quantize.h"

#include "kernels/cpu/codes.h"
#include "kernels/cpu/lanes_f64.h"

enum { CHUNK = 256 }; /* columns at a time; a multiple of the partial sums */

typedef struct measure_job {
    decant_matrix weight;
    const float *fisher;
    const decant_sparse_pattern *pattern;
    int bits;
    const uint16_t *levels;
} measure_job;

typedef struct partial_sums {
    decant_f64x4 weighted, squared, norm;
} partial_sums;

/* What is missing from `count` weights of a row, from column `first` on; *sparse moves past their columns. */
static void find_misses(const decant_code_book *book, const float *values, int64_t first, int64_t count,
                        const uint32_t **sparse, const uint32_t *sparse_end, double *misses)
{
    uint8_t places[CHUNK];
    decant_code_book_find(book, values, count, places);
    for (int64_t j = 0; j < count; j++)
        misses[j] = (double)values[j] - (double)book->level[places[j]];
    for (; *sparse < sparse_end && **sparse < first + count; (*sparse)++) {
        int64_t j = **sparse - first;
        misses[j] -= (double)decant_f16_to_f32(decant_codes_remainder(values[j], book->level[places[j]]));
    }
}

static inline decant_f64x4 widen(const float *x)
{
    return (decant_f64x4){x[0], x[1], x[2], x[3]};
}

/* values, misses and fisher are filled up with zeros to a multiple of 4. */
static void add_chunk(const float *values, const double *misses, const float *fisher, int64_t count,
                      partial_sums *sums)
{
    for (int64_t j = 0; j < count; j += 4) {
        decant_f64x4 value = widen(values + j), miss = decant_f64x4_load(misses + j);
        decant_f64x4 square = miss * miss;
        sums->weighted += fisher ? widen(fisher + j) * square : square;
        sums->squared += square;
        sums->norm += value * value;
    }
}

static double total(decant_f64x4 sums)
{
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

static decant_matrix_error measure_row(const measure_job *job, int64_t row)
{
    decant_code_book book;
    decant_code_book_build(job->levels + (row << job->bits), job->bits, &book);
    const uint32_t *sparse;
    int64_t n_sparse = decant_cpu_sparse_columns(job->pattern, row, &sparse);
    const uint32_t *sparse_end = n_sparse > 0 ? sparse + n_sparse : sparse;
    int64_t columns = job->weight.columns;
    partial_sums sums = {{0}, {0}, {0}};
    for (int64_t first = 0; first < columns; first += CHUNK) {
        int64_t count = columns - first < CHUNK ? columns - first : CHUNK;
        float values[CHUNK] = {0}, fisher[CHUNK] = {0};
        double misses[CHUNK] = {0};
        decant_cpu_read_row(job->weight, row, first, count, values);
        find_misses(&book, values, first, count, &sparse, sparse_end, misses);
        if (job->fisher)
            memcpy(fisher, job->fisher + row * columns + first, (size_t)count * sizeof *fisher);
        add_chunk(values, misses, job->fisher ? fisher : NULL, count, &sums);
    }
    return (decant_matrix_error){total(sums.weighted), total(sums.squared), total(sums.norm)};
}

decant_status decant_cpu_measure(decant_backend *backend, decant_matrix weight, const float *fisher,
                                 const decant_sparse_pattern *pattern, int bits, const uint16_t *levels,
                                 decant_matrix_error *error, decant_error *err)
{
    const measure_job job = {weight, fisher, pattern, bits, levels};
    void *memory;
    decant_status status =
        decant_cpu_scratch(backend, (size_t)weight.rows * sizeof(decant_matrix_error), &memory, err);
    if (status != DECANT_OK)
        return status;
    decant_matrix_error *of_row = memory;
#pragma omp parallel for num_threads(decant_cpu_of(backend)->threads) schedule(dynamic, 16)
    for (int64_t row = 0; row < weight.rows; row++)
        of_row[row] = measure_row(&job, row);
    *error = (decant_matrix_error){0, 0, 0};
    for (int64_t row = 0; row < weight.rows; row++) {
        error->weighted += of_row[row].weighted;
        error->squared += of_row[row].squared;
        error->norm += of_row[row].norm;
    }
    return DECANT_OK;
}
