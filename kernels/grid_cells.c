/* Makes the candidate lists of grid_cells.h by halving: all of space is one cell whose list is all points, and
 * a cell's halves take over from its list what may still be nearest in them.
 *
 * A point drops out of a cell's list when some other point is nearer at every place of the cell. The difference
 * of two squared distances is linear, so its largest value lies in a corner (or is infinite, where the cell
 * is). Cells are taken a little larger than they are, so that rounding in the search cannot lead beside its
 * list. */
#include "kernels/grid_cells.h"

#include "base/memory.h"

#include <math.h>

enum {
    JUDGES = 8, /* the points of a list nearest to the middle of the cell; a point must hold against these */
    MOST = DECANT_GRID_DIMENSION_MAXIMUM,
};

static const double MARGIN = 1e-3; /* by which a cell is taken larger, as part of its width */

typedef struct cell_box {
    double low[MOST], high[MOST], middle[MOST];
} cell_box;

/* The lists of all cells of one fineness. */
typedef struct cell_lists {
    int axis_bits;
    void *offsets;    /* uint32_t [cells + 1] */
    void *candidates; /* uint16_t [used] */
    uint32_t used;
    size_t candidates_bytes;
} cell_lists;

static void drop_lists(cell_lists *lists)
{
    decant_memory_free(lists->offsets);
    decant_memory_free(lists->candidates);
}

/* Cells enough that lists are short, and no more than pay: about 16 a point in one and two dimensions, 8 in
 * three and four. */
static int choose_axis_bits(int dimension, int code_bits)
{
    static const int extra_bits[] = {[1] = 3, [2] = 5, [3] = 4, [4] = 4};
    return (code_bits + extra_bits[dimension]) / dimension;
}

/* The range of the points along each axis; the finest cells divide it. */
static void measure_axes(decant_grid_cells *cells)
{
    const int count = 1 << cells->code_bits, p = cells->dimension;
    for (int i = 0; i < p; i++) {
        float low = cells->points[i], high = low;
        for (int code = 1; code < count; code++) {
            low = fminf(low, cells->points[code * p + i]);
            high = fmaxf(high, cells->points[code * p + i]);
        }
        cells->low[i] = low;
        cells->cells_per_unit[i] = high > low ? (float)(1 << cells->axis_bits) / (high - low) : 1.0f;
    }
}

/* The box of a cell when there are 2^axis_bits along each axis. */
static cell_box box_of(const decant_grid_cells *cells, int axis_bits, int64_t cell)
{
    cell_box box;
    for (int i = 0; i < cells->dimension; i++) {
        int64_t place = cell >> (axis_bits * i) & ((1 << axis_bits) - 1), last = (1 << axis_bits) - 1;
        double width = (double)(1 << (cells->axis_bits - axis_bits)) / (double)cells->cells_per_unit[i];
        double low = (double)cells->low[i] + (double)place * width;
        box.middle[i] = low + 0.5 * width;
        box.low[i] = place == 0 ? -INFINITY : low - MARGIN * width;
        box.high[i] = place == last ? INFINITY : low + width + MARGIN * width;
    }
    return box;
}

/* The cell of half the fineness that this one lies in. */
static int64_t parent_of(int dimension, int axis_bits, int64_t cell)
{
    int64_t parent = 0;
    for (int i = 0; i < dimension; i++) {
        int64_t place = cell >> (axis_bits * i) & ((1 << axis_bits) - 1);
        parent |= place / 2 << ((axis_bits - 1) * i);
    }
    return parent;
}

static double distance_to(const float *point, const double *place, int dimension)
{
    double sum = 0;
    for (int i = 0; i < dimension; i++)
        sum += (place[i] - (double)point[i]) * (place[i] - (double)point[i]);
    return sum;
}

/* Whether `judge` is nearer than `point` everywhere in the box: max over u of |u − judge|² − |u − point|². */
static bool loses(const float *point, const float *judge, const cell_box *box, int dimension)
{
    double most = 0;
    for (int i = 0; i < dimension; i++) {
        double p = point[i], q = judge[i], slope = 2 * (p - q);
        most += (q - p) * (q + p);
        if (slope > 0)
            most += slope * box->high[i];
        else if (slope < 0)
            most += slope * box->low[i];
    }
    return most < 0;
}

/* The codes of a list nearest to the middle of the box, nearest first; returns how many. */
static int choose_judges(const decant_grid_cells *cells, const cell_box *box, const uint16_t *list,
                         uint32_t length, uint16_t *judges)
{
    double distances[JUDGES];
    int count = 0;
    for (uint32_t k = 0; k < length; k++) {
        const float *point = cells->points + (int64_t)list[k] * cells->dimension;
        double distance = distance_to(point, box->middle, cells->dimension);
        if (count == JUDGES && distance >= distances[JUDGES - 1])
            continue;
        int place = count < JUDGES ? count++ : JUDGES - 1;
        for (; place > 0 && distances[place - 1] > distance; place--) {
            distances[place] = distances[place - 1];
            judges[place] = judges[place - 1];
        }
        distances[place] = distance;
        judges[place] = list[k];
    }
    return count;
}

/* Writes what is left of a list within a box; returns how many. */
static uint32_t thin(const decant_grid_cells *cells, const cell_box *box, const uint16_t *list, uint32_t length,
                     uint16_t *left)
{
    uint16_t judges[JUDGES];
    const int n_judges = choose_judges(cells, box, list, length, judges), p = cells->dimension;
    uint32_t count = 0;
    for (uint32_t k = 0; k < length; k++) {
        bool lost = false;
        for (int j = 0; j < n_judges && !lost; j++)
            lost = loses(cells->points + list[k] * p, cells->points + judges[j] * p, box, p);
        if (!lost)
            left[count++] = list[k];
    }
    return count;
}

static decant_status start_lists(int code_bits, cell_lists *lists, decant_error *err)
{
    decant_status status;
    const uint32_t count = 1u << code_bits;
    *lists = (cell_lists){.axis_bits = 0, .used = count, .candidates_bytes = count * sizeof(uint16_t)};
    DECANT_TRY(decant_memory_allocate(2 * sizeof(uint32_t), "the cells of a grid", &lists->offsets, err));
    DECANT_TRY(decant_memory_allocate(lists->candidates_bytes, "the cells of a grid", &lists->candidates, err));
    ((uint32_t *)lists->offsets)[1] = count;
    for (uint32_t code = 0; code < count; code++)
        ((uint16_t *)lists->candidates)[code] = (uint16_t)code;
done:
    return status;
}

/* The lists of cells half as wide. */
static decant_status halve(const decant_grid_cells *cells, const cell_lists *parents, cell_lists *lists,
                           decant_error *err)
{
    decant_status status;
    const int64_t count = (int64_t)1 << ((parents->axis_bits + 1) * cells->dimension);
    const uint32_t *parent_offsets = parents->offsets;
    *lists = (cell_lists){.axis_bits = parents->axis_bits + 1};
    DECANT_TRY(decant_memory_allocate((size_t)(count + 1) * sizeof(uint32_t), "the cells of a grid",
                                      &lists->offsets, err));
    for (int64_t cell = 0; cell < count; cell++) {
        int64_t parent = parent_of(cells->dimension, lists->axis_bits, cell);
        uint32_t first = parent_offsets[parent], length = parent_offsets[parent + 1] - first;
        size_t needed = (lists->used + length) * sizeof(uint16_t);
        if (needed > lists->candidates_bytes) {
            lists->candidates_bytes = 2 * needed;
            DECANT_TRY(
                decant_memory_resize(lists->candidates_bytes, "the cells of a grid", &lists->candidates, err));
        }
        cell_box box = box_of(cells, lists->axis_bits, cell);
        lists->used += thin(cells, &box, (const uint16_t *)parents->candidates + first, length,
                            (uint16_t *)lists->candidates + lists->used);
        ((uint32_t *)lists->offsets)[cell + 1] = lists->used;
    }
done:
    return status;
}

decant_status decant_grid_cells_build(const float *points, int dimension, int code_bits,
                                      decant_grid_cells *cells, decant_error *err)
{
    decant_status status;
    cell_lists lists = {0}, halves = {0};
    void *copy = NULL;
    const size_t points_bytes = ((size_t)dimension << code_bits) * sizeof(float);
    *cells = (decant_grid_cells){
        .dimension = dimension, .code_bits = code_bits, .axis_bits = choose_axis_bits(dimension, code_bits)};
    DECANT_TRY(decant_memory_allocate(points_bytes, "the cells of a grid", &copy, err));
    memcpy(copy, points, points_bytes);
    cells->points = copy;
    measure_axes(cells);
    DECANT_TRY(start_lists(code_bits, &lists, err));
    while (lists.axis_bits < cells->axis_bits) {
        DECANT_TRY(halve(cells, &lists, &halves, err));
        drop_lists(&lists);
        lists = halves;
        halves = (cell_lists){0};
    }
    cells->offsets = lists.offsets;
    cells->candidates = lists.candidates;
done:
    drop_lists(&halves);
    if (status != DECANT_OK) {
        drop_lists(&lists);
        cells->offsets = NULL;
        cells->candidates = NULL;
        decant_grid_cells_free(cells);
    }
    return status;
}

void decant_grid_cells_free(decant_grid_cells *cells)
{
    decant_memory_free((void *)cells->points);
    decant_memory_free((void *)cells->offsets);
    decant_memory_free((void *)cells->candidates);
    cells->points = NULL;
    cells->offsets = NULL;
    cells->candidates = NULL;
}
