/* U is had by the ordinary factorization L Lᵀ of the columns in reverse: U_ij = L_{n−1−i, n−1−j}. LAPACK keeps
 * columns together, so L's column n − 1 − j, read backwards, is row j of what is wanted. */
#include "kernels/cpu/guided_feedback.h"

#include <cblas.h>

/* LAPACK's, in OpenBLAS; its header is not everywhere. */
extern void spotrf_(const char *uplo, const blasint *n, float *a, const blasint *lda, blasint *info,
                    size_t uplo_bytes);

static void gather_backwards(const float *hessian, int64_t n, float damping, const int32_t *order,
                             float *target)
{
    for (int64_t i = 0; i < n; i++) {
        const float *row = hessian + order[n - 1 - i] * n;
        for (int64_t j = i; j < n; j++)
            target[i * n + j] = row[order[n - 1 - j]];
        target[i * n + i] += damping;
    }
}

static void reverse(float *values, int64_t count)
{
    for (int64_t i = 0; i < count / 2; i++) {
        float value = values[i];
        values[i] = values[count - 1 - i];
        values[count - 1 - i] = value;
    }
}

bool decant_guided_feedback_factorize(const float *hessian, int64_t columns, float damping,
                                      const int32_t *order, float *feedback)
{
    const blasint n = (blasint)columns;
    blasint info;
    gather_backwards(hessian, columns, damping, order, feedback);
    spotrf_("L", &n, feedback, &n, &info, 1);
    if (info != 0)
        return false;
    reverse(feedback, columns * columns);
    for (int64_t j = 0; j < columns; j++)
        for (int64_t i = 0; i < j; i++)
            feedback[j * columns + i] /= feedback[j * columns + j];
    return true;
}

/* One row's codes in a block, column after column in the order. */
static void round_row(decant_guided_tile *tile, int64_t r, int64_t first, int64_t count)
{
    const int64_t n = tile->columns;
    const decant_code_book *book = &tile->books[r];
    float *handed = tile->handed + r * n + first;
    for (int64_t j = 0; j < count; j++) {
        const float *feedback = tile->feedback + (first + j) * n + first;
        const int64_t at = r * n + tile->order[first + j];
        float asked = tile->gradient[r * DECANT_GUIDED_BLOCK + j];
        handed[j] = 0;
        if (tile->is_sparse[at])
            continue;
        for (int64_t i = 0; i < j; i++)
            asked += handed[i] * feedback[i];
        int place = decant_guided_nearest_place(book, (1 << tile->bits) - 1, tile->weight[at] + asked);
        tile->codes[at] = book->code[place];
        tile->missing[at] = handed[j] = tile->weight[at] - book->level[place];
    }
}

void decant_guided_round_with_feedback(decant_guided_tile *tile)
{
    for (int64_t first = 0; first < tile->columns; first += DECANT_GUIDED_BLOCK) {
        /* What the columns before the block ask of it. */
        decant_guided_multiply_block(tile, tile->handed, first, tile->feedback, first);
        for (int64_t r = 0; r < tile->rows; r++)
            round_row(tile, r, first, decant_guided_block_length(tile, first));
    }
}
