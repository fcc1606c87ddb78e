/* The nearest point of a grid, exactly and quickly. Space is cut into cells by planes across each axis; each
 * cell lists the points that are nearest to some place in it, and a search looks at those alone. The outermost
 * cells reach to infinity, so every place has its cell.
 *
 * The search is for C and for CUDA and has the same bits on both. */
#ifndef DECANT_KERNELS_GRID_CELLS_H
#define DECANT_KERNELS_GRID_CELLS_H

#include "kernels/grid_form.h"
#include "kernels/rounding.h"

/* What a search reads. Cell (c₀, c₁ …) has the number Σ cᵢ · 2^(axis_bits · i). */
typedef struct decant_grid_cells {
    int dimension, code_bits, axis_bits;                 /* 2^axis_bits cells along each axis */
    float low[DECANT_GRID_DIMENSION_MAXIMUM];            /* where the cells of an axis start … */
    float cells_per_unit[DECANT_GRID_DIMENSION_MAXIMUM]; /* … and how dense they lie */
    const float *points;                                 /* [2^code_bits, dimension] */
    const uint32_t *offsets;                             /* [cells + 1] into candidates */
    const uint16_t *candidates;                          /* of one cell after another, ascending codes */
} decant_grid_cells;

/* Makes the cells of a grid.
 *   points   [2^code_bits, dimension], copied
 *   cells    receives the arrays, released by decant_grid_cells_free */
decant_status decant_grid_cells_build(const float *points, int dimension, int code_bits,
                                      decant_grid_cells *cells, decant_error *err);

/* Leaves the arrays NULL; takes NULL arrays too. */
void decant_grid_cells_free(decant_grid_cells *cells);

static inline int64_t decant_grid_cells_count(const decant_grid_cells *cells)
{
    return (int64_t)1 << (cells->axis_bits * cells->dimension);
}

/* The cell along one axis; NaN falls into the first. */
DECANT_ON_BOTH uint32_t decant_grid_axis_cell(float u, float low, float cells_per_unit, int axis_bits)
{
    const float place = decant_times(decant_minus(u, low), cells_per_unit),
                last = (float)((1 << axis_bits) - 1);
    return place > 0 ? (uint32_t)(place < last ? place : last) : 0;
}

/* The code of the point nearest to u [dimension], the lowest among equals. Squared distances are summed in F32,
 * one axis after another. `dimension` is cells->dimension, given apart so that a compiler that knows it unrolls
 * the loops. */
DECANT_ON_BOTH uint32_t decant_grid_nearest(const decant_grid_cells *cells, const float *u, int dimension)
{
    uint32_t cell = 0;
    for (int i = 0; i < dimension; i++)
        cell |= decant_grid_axis_cell(u[i], cells->low[i], cells->cells_per_unit[i], cells->axis_bits)
                << (cells->axis_bits * i);
    const uint32_t first = cells->offsets[cell], end = cells->offsets[cell + 1];
    uint32_t nearest = cells->candidates[first];
    if (end - first == 1)
        return nearest;
    float least = 3.402823466e+38f; /* the largest float: NaN and infinite distances take the first candidate */
    for (uint32_t k = first; k < end; k++) {
        const uint32_t code = cells->candidates[k];
        const float *point = cells->points + code * (uint32_t)dimension;
        float distance = 0;
        for (int i = 0; i < dimension; i++) {
            const float miss = decant_minus(u[i], point[i]);
            distance = decant_plus(distance, decant_times(miss, miss));
        }
        if (distance < least) {
            least = distance;
            nearest = code;
        }
    }
    return nearest;
}

#endif
