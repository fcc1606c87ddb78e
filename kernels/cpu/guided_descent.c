/* Codes of rows under guided search by cyclic coordinate descent: the gradient of a block of columns comes of
 * one product and is kept up to date code by code. */
#include "kernels/cpu/guided_tile.h"

/* One row's codes in a block, column after column. */
static bool descend_row(decant_guided_tile *tile, int64_t r, int64_t first, int64_t count)
{
    const int64_t n = tile->columns;
    const int thresholds = (1 << tile->bits) - 1;
    const decant_code_book *book = &tile->books[r];
    const float *weight = tile->weight + r * n + first;
    float *missing = tile->missing + r * n + first, *gradient = tile->gradient + r * DECANT_GUIDED_BLOCK;
    uint8_t *codes = tile->codes + r * n + first;
    const uint8_t *is_sparse = tile->is_sparse + r * n + first;
    bool changed = false;
    for (int64_t j = 0; j < count; j++) {
        const float *hessian = tile->hessian + (first + j) * n + first;
        float curvature = hessian[j] + tile->damping;
        if (is_sparse[j] || !(curvature > 0))
            continue;
        float best = weight[j] - missing[j] + (gradient[j] + tile->damping * missing[j]) / curvature;
        int place = decant_guided_nearest_place(book, thresholds, best);
        float now = weight[j] - book->level[place];
        float step = now - missing[j];
        if (step == 0)
            continue;
        changed = true;
        codes[j] = book->code[place];
        missing[j] = now;
        for (int64_t t = j + 1; t < count; t++)
            gradient[t] += step * hessian[t];
    }
    return changed;
}

bool decant_guided_sweep_codes(decant_guided_tile *tile)
{
    bool changed = false;
    for (int64_t first = 0; first < tile->columns; first += DECANT_GUIDED_BLOCK) {
        decant_guided_multiply_block(tile, tile->missing, tile->columns, tile->hessian, first);
        for (int64_t r = 0; r < tile->rows; r++)
            changed |= descend_row(tile, r, first, decant_guided_block_length(tile, first));
    }
    return changed;
}
