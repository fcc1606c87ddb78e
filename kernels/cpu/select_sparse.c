/* Which weights leave the dense part: exact counts by selection, not by a sort. The n-th largest key of the
 * matrix is found digit by digit from histograms of all rows; then rows take what lies above it, and of what
 * equals it as many as are left, in row-major order. Histograms are sums of whole numbers: threads cannot show
 * in the result.
 *
 * Source: SqueezeLLM, section 4.2; there the share of outliers follows from a range set by hand, here it is a
 * count. */
#include "kernels/cpu/quantize.h"

#include "base/memory.h"

#include <inttypes.h>
#include <string.h>

enum { DIGITS = 3, DIGIT_BITS = 11, DIGIT_VALUES = 1 << DIGIT_BITS };

typedef struct sparse_choice {
    decant_matrix weight;
    const float *fisher;
    bool by_magnitude;
    int threads;
    uint8_t *chosen; /* [rows, columns] 1 for weights chosen already */
    int64_t *ties;   /* [rows] first how many keys equal the threshold, then how many do in the rows before */
    uint32_t *keys;  /* [threads, columns] */
} sparse_choice;

enum { CHUNK = 256 }; /* columns converted at a time */

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static void read_magnitudes(decant_matrix weight, int64_t row, uint32_t *keys)
{
    for (int64_t first = 0; first < weight.columns; first += CHUNK) {
        float values[CHUNK];
        int64_t count = weight.columns - first < CHUNK ? weight.columns - first : CHUNK;
        decant_cpu_read_row(weight, row, first, count, values);
        for (int64_t j = 0; j < count; j++)
            keys[first + j] = (bits_of(values[j]) & 0x7fffffffu) + 1;
    }
}

/* Negative values, which fit_levels refuses, come last. */
static void read_fisher(const float *fisher, int64_t columns, uint32_t *keys)
{
    for (int64_t j = 0; j < columns; j++) {
        uint32_t bits = bits_of(fisher[j]);
        keys[j] = bits >> 31 ? 1 : bits + 1;
    }
}

/* Keys in the order of what is compared, at least 1; 0 for what is chosen already. */
static void read_keys(const sparse_choice *choice, int64_t row, uint32_t *keys)
{
    const int64_t columns = choice->weight.columns;
    const uint8_t *chosen = choice->chosen + row * columns;
    if (choice->by_magnitude)
        read_magnitudes(choice->weight, row, keys);
    else if (choice->fisher)
        read_fisher(choice->fisher + row * columns, columns, keys);
    else
        for (int64_t j = 0; j < columns; j++)
            keys[j] = 1;
    for (int64_t j = 0; j < columns; j++)
        keys[j] = chosen[j] ? 0 : keys[j];
}

/* How often each value of the digit at `shift` occurs in keys whose digits above it are those of `prefix`. */
static void count_digits(const sparse_choice *choice, uint32_t prefix, int shift, int64_t counts[DIGIT_VALUES])
{
    memset(counts, 0, DIGIT_VALUES * sizeof *counts);
    const int64_t columns = choice->weight.columns;
    const uint64_t wanted = (uint64_t)prefix >> (shift + DIGIT_BITS);
#pragma omp parallel num_threads(choice->threads)
    {
        uint32_t *keys = choice->keys + decant_cpu_thread() * columns;
        int64_t mine[DIGIT_VALUES] = {0};
#pragma omp for schedule(dynamic, 16)
        for (int64_t row = 0; row < choice->weight.rows; row++) {
            read_keys(choice, row, keys);
            for (int64_t j = 0; j < columns; j++)
                if ((uint64_t)keys[j] >> (shift + DIGIT_BITS) == wanted)
                    mine[keys[j] >> shift & (DIGIT_VALUES - 1)]++;
        }
#pragma omp critical(decant_select_sparse)
        for (int digit = 0; digit < DIGIT_VALUES; digit++)
            counts[digit] += mine[digit];
    }
}

/* The count-th largest key; *of_ties receives how many of the keys equal to it belong to the count largest. */
static uint32_t find_threshold(const sparse_choice *choice, int64_t count, int64_t *of_ties)
{
    int64_t counts[DIGIT_VALUES];
    uint32_t threshold = 0;
    for (int d = DIGITS - 1; d >= 0; d--) {
        int shift = d * DIGIT_BITS, digit = DIGIT_VALUES - 1;
        count_digits(choice, threshold, shift, counts);
        for (; count > counts[digit]; digit--)
            count -= counts[digit];
        threshold |= (uint32_t)digit << shift;
    }
    *of_ties = count;
    return threshold;
}

static void count_ties(const sparse_choice *choice, uint32_t threshold)
{
    const int64_t columns = choice->weight.columns;
#pragma omp parallel for num_threads(choice->threads) schedule(dynamic, 16)
    for (int64_t row = 0; row < choice->weight.rows; row++) {
        uint32_t *keys = choice->keys + decant_cpu_thread() * columns;
        read_keys(choice, row, keys);
        int64_t ties = 0;
        for (int64_t j = 0; j < columns; j++)
            ties += keys[j] == threshold;
        choice->ties[row] = ties;
    }
    int64_t before = 0;
    for (int64_t row = 0; row < choice->weight.rows; row++) {
        int64_t ties = choice->ties[row];
        choice->ties[row] = before;
        before += ties;
    }
}

/* Marks the `count` weights with the largest keys. */
static void choose(const sparse_choice *choice, int64_t count)
{
    if (count == 0)
        return;
    int64_t of_ties;
    const uint32_t threshold = find_threshold(choice, count, &of_ties);
    count_ties(choice, threshold);
    const int64_t columns = choice->weight.columns;
#pragma omp parallel for num_threads(choice->threads) schedule(dynamic, 16)
    for (int64_t row = 0; row < choice->weight.rows; row++) {
        uint32_t *keys = choice->keys + decant_cpu_thread() * columns;
        uint8_t *chosen = choice->chosen + row * columns;
        int64_t tie = choice->ties[row];
        read_keys(choice, row, keys);
        for (int64_t j = 0; j < columns; j++)
            if (keys[j] > threshold || (keys[j] == threshold && tie++ < of_ties))
                chosen[j] = 1;
    }
}

static void fill_pattern(const sparse_choice *choice, decant_sparse_pattern *pattern)
{
    const int64_t columns = choice->weight.columns;
    uint32_t filled = 0;
    for (int64_t row = 0; row < choice->weight.rows; row++) {
        pattern->row_offsets[row] = filled;
        for (int64_t j = 0; j < columns; j++)
            if (choice->chosen[row * columns + j])
                pattern->columns[filled++] = (uint32_t)j;
    }
    pattern->row_offsets[choice->weight.rows] = filled;
}

static decant_status check_counts(decant_matrix weight, int64_t n_sensitive, int64_t n_outliers,
                                  const decant_sparse_pattern *pattern, decant_error *err)
{
    const int64_t size = weight.rows * weight.columns, count = n_sensitive + n_outliers;
    if (n_sensitive >= 0 && n_outliers >= 0 && count <= size && count <= UINT32_MAX && count == pattern->count)
        return DECANT_OK;
    return DECANT_ERROR(err, DECANT_ERROR_BUG,
                        "cannot choose %" PRId64 " + %" PRId64 " of %" PRId64
                        " weights into a pattern of %" PRId64,
                        n_sensitive, n_outliers, size, pattern->count);
}

decant_status decant_cpu_select_sparse(decant_backend *backend, decant_matrix weight, const float *fisher,
                                       int64_t n_sensitive, int64_t n_outliers, decant_sparse_pattern *pattern,
                                       decant_error *err)
{
    decant_status status;
    void *chosen = NULL, *ties = NULL, *keys;
    DECANT_TRY(check_counts(weight, n_sensitive, n_outliers, pattern, err));
    if (pattern->count == 0)
        goto done;
    sparse_choice choice = {.weight = weight, .fisher = fisher, .threads = decant_cpu_of(backend)->threads};
    size_t size = (size_t)(weight.rows * weight.columns), columns = (size_t)weight.columns;
    DECANT_TRY(decant_memory_allocate(size, "marks of sparse weights", &chosen, err));
    DECANT_TRY(
        decant_memory_allocate((size_t)weight.rows * sizeof(int64_t), "ties of sparse weights", &ties, err));
    DECANT_TRY(decant_cpu_scratch(backend, (size_t)choice.threads * columns * sizeof(uint32_t), &keys, err));
    choice.chosen = chosen;
    choice.ties = ties;
    choice.keys = keys;
    choose(&choice, n_sensitive);
    choice.by_magnitude = true;
    choose(&choice, n_outliers);
    fill_pattern(&choice, pattern);
done:
    decant_memory_free(chosen);
    decant_memory_free(ties);
    return status;
}
