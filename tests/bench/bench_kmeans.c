/* What the quantize kernels of the CPU cost, and how far each search is from the best clusters.
 *
 *     tests/bench/bench_kmeans [--gap]
 *
 * Rows are like those of real models: F16 weights of a normal distribution, or such rows after rounding to 16
 * values in each group of 32 (a model that was in 4 bits before has few distinct values), with squares of a
 * chi-squared variable as Fisher values. Times are of one thread. --gap compares with a plain dynamic program
 * in long double, which takes minutes; gaps are of levels as stored, so that rounding them to F16 is all that
 * is left when the clusters are the best.
 *
 * One core of a virtual machine on a Xeon of the Sapphire Rapids family; ns a weight, sorting included:
 *
 *     columns (distinct)    2    3    4    5    6    7    8 bits  2 to 4  5 and 6  2 to 8  Lloyd, 4 bits
 *     576 (234)            27   38   42   38   45   66   22           57       64     155             55
 *     1536 (607)           25   35   41   38   35   42   58           61       57     171             41
 *     4096 (3312)          37   61   72   73   72   66   79          119      130     349             55
 *     11008 (6629)         37   63   72   66   71   68   58          106      116     308             48
 *
 * and measure 2.2 to 8, encode 1.4 to 8 from 2 to 8 bits, select_sparse 9 to 15. Above the optimum, in % of the
 * weighted error, on average over 12 rows:
 *
 *     columns    search       2        3        4        5        6        7        8 bits
 *     576        exact        0.0001   0.0002   0.0011   0.0071   0.065
 *                Lloyd        5.9      11.6     13.7     15.8     15.7
 *     1536       exact        0.0000   0.0002   0.0007   0.0044   0.022    0.17     1.6
 *                Lloyd        2.3      6.3      13.4     12.0     14.8     14.8     14.1
 *     4096       exact        0.0000   0.0001   0.0007   0.0027   0.013    0.07     0.40
 *                Lloyd        0.5      3.8      9.2      12.8     13.1     13.8     14.0 */
#include "kernels/backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { REPEATS = 5, GAP_ROWS = 12, MOST_WIDTHS = 7, GROUP = 32 };

typedef struct bench_matrix {
    int64_t rows, columns;
    float *values, *fisher;
    uint16_t *weight;
    uint16_t *levels[MOST_WIDTHS];
    double distinct; /* values of a row, on average */
} bench_matrix;

static double uniform(uint64_t *seed)
{
    uint64_t bits = *seed += 0x9e3779b97f4a7c15u;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
    return ((double)((bits ^ bits >> 31) >> 11) + 0.5) * 0x1p-53;
}

static double normal(uint64_t *seed)
{
    double radius = sqrt(-2 * log(uniform(seed)));
    return radius * cos(6.283185307179586 * uniform(seed));
}

static float rounded(double value)
{
    return decant_f16_to_f32(decant_f32_to_f16((float)value));
}

/* As a format with a scale and a minimum for each group leaves them. */
static void round_group(float *values)
{
    float low = values[0], high = values[0];
    for (int i = 1; i < GROUP; i++) {
        low = fminf(low, values[i]);
        high = fmaxf(high, values[i]);
    }
    float scale = rounded((double)(high - low) / 15);
    for (int i = 0; i < GROUP; i++)
        values[i] = rounded((double)(low + scale * roundf((values[i] - low) / scale)));
}

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static int count_distinct(const float *values, int64_t n)
{
    float *sorted = malloc((size_t)n * sizeof *sorted);
    int distinct = 1;
    memcpy(sorted, values, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, compare_floats);
    for (int64_t i = 1; i < n; i++)
        distinct += sorted[i] != sorted[i - 1];
    free(sorted);
    return distinct;
}

static bench_matrix make_matrix(int64_t rows, int64_t columns, bool grouped)
{
    bench_matrix matrix = {.rows = rows, .columns = columns};
    const size_t size = (size_t)(rows * columns);
    uint64_t seed = 1;
    matrix.values = malloc(size * sizeof *matrix.values);
    matrix.fisher = malloc(size * sizeof *matrix.fisher);
    matrix.weight = malloc(size * sizeof *matrix.weight);
    for (int i = 0; i < MOST_WIDTHS; i++)
        matrix.levels[i] = malloc((size_t)rows * sizeof(uint16_t) * 256);
    for (size_t i = 0; i < size; i++) {
        double z = normal(&seed);
        matrix.values[i] = rounded(0.02 * normal(&seed));
        matrix.fisher[i] = (float)(1e-6 * z * z * z * z);
    }
    for (size_t i = 0; grouped && i < size; i += GROUP)
        round_group(matrix.values + i);
    for (size_t i = 0; i < size; i++)
        matrix.weight[i] = decant_f32_to_f16(matrix.values[i]);
    for (int64_t row = 0; row < rows; row++)
        matrix.distinct += count_distinct(matrix.values + row * columns, columns) / (double)rows;
    return matrix;
}

static void free_matrix(bench_matrix *matrix)
{
    free(matrix->values);
    free(matrix->fisher);
    free(matrix->weight);
    for (int i = 0; i < MOST_WIDTHS; i++)
        free(matrix->levels[i]);
}

static decant_matrix view_of(const bench_matrix *matrix)
{
    return (decant_matrix){matrix->weight, DECANT_F16, matrix->rows, matrix->columns};
}

/* The processor's time, so that neighbours on the machine count less. */
static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void require(decant_status status, const decant_error *err)
{
    if (status == DECANT_OK)
        return;
    fprintf(stderr, "bench_kmeans: %s\n", err->message);
    exit(1);
}

static void fit(decant_backend *backend, const bench_matrix *matrix, decant_level_search search,
                const int *bits, int n_widths)
{
    decant_error err = {0};
    decant_sparse_pattern none = {0, NULL, NULL};
    require(backend->quantize->fit_levels(backend, view_of(matrix), matrix->fisher, &none, search, 1, bits,
                                          n_widths, matrix->levels, &err),
            &err);
}

/* Nanoseconds a weight, the best of a few repeats. */
static double time_fit(decant_backend *backend, const bench_matrix *matrix, decant_level_search search,
                       const int *bits, int n_widths)
{
    double best_s = HUGE_VAL;
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        double start_s = now_s();
        fit(backend, matrix, search, bits, n_widths);
        best_s = fmin(best_s, now_s() - start_s);
    }
    return 1e9 * best_s / (double)(matrix->rows * matrix->columns);
}

static void print_fit_times(decant_backend *backend, const bench_matrix *matrix)
{
    static const struct {
        const char *name;
        int bits[MOST_WIDTHS], n_widths;
    } asked[] = {{"2", {2}, 1},       {"3", {3}, 1},
                 {"4", {4}, 1},       {"5", {5}, 1},
                 {"6", {6}, 1},       {"7", {7}, 1},
                 {"8", {8}, 1},       {"2, 3, 4", {2, 3, 4}, 3},
                 {"5, 6", {5, 6}, 2}, {"2 … 8", {2, 3, 4, 5, 6, 7, 8}, 7}};
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        double exact = time_fit(backend, matrix, DECANT_LEVELS_EXACT, asked[i].bits, asked[i].n_widths);
        double lloyd = time_fit(backend, matrix, DECANT_LEVELS_LLOYD, asked[i].bits, asked[i].n_widths);
        printf("  fit %-9s bits  exact %7.1f   Lloyd %7.1f\n", asked[i].name, exact, lloyd);
    }
}

static void print_other_times(decant_backend *backend, const bench_matrix *matrix)
{
    decant_error err = {0};
    const double weights = (double)(matrix->rows * matrix->columns);
    const size_t words = (size_t)((matrix->columns + 31) / 32);
    decant_sparse_pattern none = {0, NULL, NULL};
    for (int bits = DECANT_BITS_MINIMUM; bits <= DECANT_BITS_MAXIMUM; bits++) {
        decant_matrix_error error;
        decant_packed_matrix packed = {.rows = matrix->rows, .columns = matrix->columns, .bits = bits};
        packed.planes = malloc((size_t)matrix->rows * (size_t)bits * words * sizeof *packed.planes);
        packed.levels = matrix->levels[0];
        fit(backend, matrix, DECANT_LEVELS_EXACT, &bits, 1);
        double start_s = now_s();
        require(backend->quantize->measure(backend, view_of(matrix), matrix->fisher, &none, bits,
                                           matrix->levels[0], &error, &err),
                &err);
        double measured_s = now_s();
        require(backend->quantize->encode(backend, view_of(matrix), &packed, &err), &err);
        double encoded_s = now_s();
        printf("  %d bits: measure %5.2f   encode %5.2f\n", bits, 1e9 * (measured_s - start_s) / weights,
               1e9 * (encoded_s - measured_s) / weights);
        free(packed.planes);
    }
    decant_sparse_pattern pattern = {(int64_t)(0.0045 * weights), NULL, NULL};
    pattern.row_offsets = malloc((size_t)(matrix->rows + 1) * sizeof(uint32_t));
    pattern.columns = malloc((size_t)pattern.count * sizeof(uint32_t));
    const int64_t n_sensitive = pattern.count / 9;
    double start_s = now_s();
    require(backend->quantize->select_sparse(backend, view_of(matrix), matrix->fisher, n_sensitive,
                                             pattern.count - n_sensitive, &pattern, &err),
            &err);
    printf("  select 0.45 %%: %.2f\n", 1e9 * (now_s() - start_s) / weights);
    free(pattern.row_offsets);
    free(pattern.columns);
}

/* ---- the gap ---- */

typedef struct weighted_point {
    float value, mass;
} weighted_point;

/* The least cost for each number of clusters up to `clusters`: the plain program over all splits. */
static void slow_kmeans(weighted_point *points, int64_t n, int clusters, long double *best)
{
    const size_t stride = (size_t)n + 1;
    long double *cost = malloc((size_t)clusters * stride * sizeof *cost);
    qsort(points, (size_t)n, sizeof *points, compare_floats); /* by value, which comes first */
    for (size_t i = 0; i < (size_t)clusters * stride; i++)
        cost[i] = i % stride == 0 ? 0 : HUGE_VALL;
    for (size_t end = 1; end < stride; end++) {
        long double mass = 0, mean = 0, interval = 0;
        for (size_t begin = end; begin-- > 0;) {
            long double m = (long double)points[begin].mass, distance = (long double)points[begin].value - mean;
            mass += m;
            mean += distance * m / mass;
            interval += m * distance * ((long double)points[begin].value - mean);
            if (begin == 0)
                cost[end] = interval;
            for (size_t k = 1; k < (size_t)clusters; k++)
                cost[k * stride + end] =
                    fminl(cost[k * stride + end], cost[(k - 1) * stride + begin] + interval);
        }
    }
    for (size_t k = 0; k < (size_t)clusters; k++)
        best[k] = cost[k * stride + (size_t)n];
    free(cost);
}

/* Σ F (w − level)² of one row, which is above the cost of its clusters by what rounding the levels adds. */
static double cost_of_row(decant_backend *backend, const bench_matrix *matrix, int64_t row, int bits,
                          const uint16_t *levels)
{
    decant_error err = {0};
    decant_matrix_error error;
    decant_sparse_pattern none = {0, NULL, NULL};
    decant_matrix one = decant_matrix_rows(view_of(matrix), row, 1);
    require(backend->quantize->measure(backend, one, matrix->fisher + row * matrix->columns, &none, bits,
                                       levels + (row << bits), &error, &err),
            &err);
    return error.weighted;
}

static void print_gaps(decant_backend *backend, const bench_matrix *matrix, int most_bits)
{
    static const int all_bits[] = {2, 3, 4, 5, 6, 7, 8};
    static const decant_level_search searches[] = {DECANT_LEVELS_EXACT, DECANT_LEVELS_LLOYD};
    const int n_widths = most_bits - 1, most = 1 << most_bits;
    weighted_point *points = malloc((size_t)matrix->columns * sizeof *points);
    long double *best = malloc((size_t)(most * GAP_ROWS) * sizeof *best);
    for (int64_t row = 0; row < GAP_ROWS; row++) {
        for (int64_t j = 0; j < matrix->columns; j++) {
            int64_t at = row * matrix->columns + j;
            points[j] = (weighted_point){matrix->values[at], matrix->fisher[at]};
        }
        slow_kmeans(points, matrix->columns, most, best + row * most);
    }
    for (int s = 0; s < 2; s++) {
        fit(backend, matrix, searches[s], all_bits, n_widths);
        for (int i = 0; i < n_widths; i++) {
            double mean = 0, worst = -HUGE_VAL;
            for (int64_t row = 0; row < GAP_ROWS; row++) {
                double optimum = (double)best[row * most + (1 << all_bits[i]) - 1];
                double gap = cost_of_row(backend, matrix, row, all_bits[i], matrix->levels[i]) / optimum - 1;
                mean += gap / GAP_ROWS;
                worst = fmax(worst, gap);
            }
            printf("  %s %d bits: above the optimum by %.4f %% on average, %.4f %% at worst\n",
                   searches[s] == DECANT_LEVELS_EXACT ? "exact" : "Lloyd", all_bits[i], 100 * mean,
                   100 * worst);
        }
    }
    free(points);
    free(best);
}

int main(int argc, char **argv)
{
    static const struct {
        int64_t rows, columns;
        bool grouped;
        int most_bits; /* of the gap: rows of few values have none left for more */
    } shapes[] = {{600, 576, true, 6}, {200, 1536, true, 8}, {100, 4096, false, 8}, {40, 11008, false, 0}};
    const bool gap = argc > 1 && strcmp(argv[1], "--gap") == 0;
    decant_backend *backend;
    decant_error err = {0};
    require(decant_backend_create_cpu(1, &backend, &err), &err);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        bench_matrix matrix = make_matrix(shapes[i].rows, shapes[i].columns, shapes[i].grouped);
        printf("rows of %lld weights, %.0f distinct%s\n", (long long)matrix.columns, matrix.distinct,
               gap ? "" : "; ns a weight");
        if (!gap) {
            print_fit_times(backend, &matrix);
            print_other_times(backend, &matrix);
        } else if (shapes[i].most_bits > 0) {
            print_gaps(backend, &matrix, shapes[i].most_bits);
        }
        free_matrix(&matrix);
    }
    decant_backend_destroy(&backend);
    return 0;
}
