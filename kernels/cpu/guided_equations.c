/* Levels of rows under guided search: the normal equations of least squares, summed block by block. Solving
 * them and rounding is guided_levels.h. */
#include "kernels/cpu/guided_levels.h"
#include "kernels/cpu/guided_tile.h"

#include <string.h>

/* level_sums[r, c, j] = Σ H[i, first + j] over the columns i whose code is c: a block of Pᵀ H */
static void sum_by_level(decant_guided_tile *tile, int64_t first, int64_t count)
{
    const int64_t n = tile->columns;
    memset(tile->level_sums, 0, (size_t)(tile->rows << tile->bits) * DECANT_GUIDED_BLOCK * sizeof(float));
    for (int64_t i = 0; i < n; i++) {
        const float *hessian = tile->hessian + i * n + first;
        for (int64_t r = 0; r < tile->rows; r++) {
            if (tile->is_sparse[r * n + i])
                continue;
            float *sums = tile->level_sums + ((r << tile->bits) + tile->codes[r * n + i]) * DECANT_GUIDED_BLOCK;
            if (count == DECANT_GUIDED_BLOCK) /* a length that the compiler knows */
                for (int64_t j = 0; j < DECANT_GUIDED_BLOCK; j++)
                    sums[j] += hessian[j];
            else
                for (int64_t j = 0; j < count; j++)
                    sums[j] += hessian[j];
        }
    }
}

/* Adds a block's part of Pᵀ(H + λ)P and Pᵀ(H + λ)δ of a row. */
static void add_normal_equations(decant_guided_tile *tile, int64_t r, int64_t first, int64_t count)
{
    const int64_t levels = (int64_t)1 << tile->bits;
    const float *sums = tile->level_sums + (r << tile->bits) * DECANT_GUIDED_BLOCK;
    double *normal = tile->normal + (r << tile->bits) * levels, *right = tile->right + (r << tile->bits);
    for (int64_t j = 0; j < count; j++) {
        int64_t at = r * tile->columns + first + j, code = tile->codes[at];
        double missing = tile->missing[at];
        if (tile->is_sparse[at])
            continue;
        for (int64_t c = 0; c < levels; c++) {
            normal[c * levels + code] += sums[c * DECANT_GUIDED_BLOCK + j];
            right[c] += missing * sums[c * DECANT_GUIDED_BLOCK + j];
        }
        normal[code * levels + code] += tile->damping;
        right[code] += missing * tile->damping;
    }
}

/* Rounding made the two halves of A differ in the last bits. */
static void make_symmetric(double *normal, int64_t levels)
{
    for (int64_t i = 0; i < levels; i++)
        for (int64_t j = i + 1; j < levels; j++)
            normal[i * levels + j] = normal[j * levels + i] =
                0.5 * (normal[i * levels + j] + normal[j * levels + i]);
}

static void solve_row(decant_guided_tile *tile, int64_t r, double stride)
{
    const int64_t levels = (int64_t)1 << tile->bits;
    double *normal = tile->normal + r * levels * levels;
    uint16_t *stored = decant_guided_levels_of(tile, r);
    uint8_t places[DECANT_LEVELS_MAXIMUM];
    make_symmetric(normal, levels);
    if (!decant_guided_levels_solve(normal, tile->right + r * levels, (int)levels, stride, stored, places))
        return;
    decant_code_book_build(stored, tile->bits, &tile->books[r]);
    for (int64_t at = r * tile->columns; at < (r + 1) * tile->columns; at++) {
        tile->codes[at] = places[tile->codes[at]];
        if (!tile->is_sparse[at])
            tile->missing[at] = tile->weight[at] - decant_f16_to_f32(stored[tile->codes[at]]);
    }
}

void decant_guided_improve_levels(decant_guided_tile *tile, double stride)
{
    memset(tile->normal, 0, (size_t)(tile->rows << 2 * tile->bits) * sizeof(double));
    memset(tile->right, 0, (size_t)(tile->rows << tile->bits) * sizeof(double));
    for (int64_t first = 0; first < tile->columns; first += DECANT_GUIDED_BLOCK) {
        int64_t count = decant_guided_block_length(tile, first);
        sum_by_level(tile, first, count);
        for (int64_t r = 0; r < tile->rows; r++)
            add_normal_equations(tile, r, first, count);
    }
    for (int64_t r = 0; r < tile->rows; r++)
        solve_row(tile, r, stride);
}
