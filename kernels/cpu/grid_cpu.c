/* The grid table of the CPU backend, and the cells that it keeps. */
#include "kernels/cpu/grid.h"

#include "base/memory.h"

/* Products here read planes as they are. */
static decant_status prepare(decant_backend *backend, decant_grid_matrix *matrix, decant_error *err)
{
    (void)backend;
    (void)matrix;
    (void)err;
    return DECANT_OK;
}

const decant_grid_kernels decant_cpu_grid_kernels = {
    .encode = decant_cpu_grid_encode,
    .prepare = prepare,
    .linear = decant_cpu_grid_linear,
    .decode = decant_cpu_grid_decode,
    .add_noise = decant_cpu_add_noise,
};

static bool is_of(const decant_grid_cells *cells, const decant_grid_form *form)
{
    const size_t points_bytes = ((size_t)form->dimension << form->code_bits) * sizeof(float);
    return cells->dimension == form->dimension && cells->code_bits == form->code_bits &&
           memcmp(cells->points, form->points, points_bytes) == 0;
}

decant_status decant_cpu_grid_cells(decant_backend *backend, const decant_grid_form *form,
                                    const decant_grid_cells **cells, decant_error *err)
{
    decant_cpu *cpu = decant_cpu_of(backend);
    decant_grid_cells *known = cpu->grids;
    for (int64_t i = 0; i < cpu->grid_count; i++)
        if (is_of(&known[i], form)) {
            *cells = &known[i];
            return DECANT_OK;
        }
    decant_status status = decant_memory_resize((size_t)(cpu->grid_count + 1) * sizeof *known,
                                                "the cells of grids", &cpu->grids, err);
    if (status != DECANT_OK)
        return status;
    decant_grid_cells *made = (decant_grid_cells *)cpu->grids + cpu->grid_count;
    status = decant_grid_cells_build(form->points, form->dimension, form->code_bits, made, err);
    if (status != DECANT_OK)
        return status;
    cpu->grid_count++;
    *cells = made;
    return DECANT_OK;
}

void decant_cpu_grid_release(decant_cpu *cpu)
{
    for (int64_t i = 0; i < cpu->grid_count; i++)
        decant_grid_cells_free((decant_grid_cells *)cpu->grids + i);
    decant_memory_free(cpu->grids);
}
