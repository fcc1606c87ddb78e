/* Which forms of a matrix on a grid there are. */
#include "kernels/grid_form.h"

decant_status decant_grid_form_check(const decant_grid_form *form, int64_t columns, decant_error *err)
{
    if (form->dimension < 1 || form->dimension > DECANT_GRID_DIMENSION_MAXIMUM)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "a grid of dimension %d; 1 to %d are possible",
                            form->dimension, (int)DECANT_GRID_DIMENSION_MAXIMUM);
    if (form->code_bits < DECANT_GRID_BITS_MINIMUM || form->code_bits > DECANT_GRID_BITS_MAXIMUM)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "a grid of 2^%d points; 2^%d to 2^%d are possible",
                            form->code_bits, (int)DECANT_GRID_BITS_MINIMUM, (int)DECANT_GRID_BITS_MAXIMUM);
    if (!form->points)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "a grid without points");
    if (form->group < 1)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "groups of %lld columns", (long long)form->group);
    const int64_t rotation = form->rotation;
    if (rotation < 1 || (rotation & (rotation - 1)) != 0 || columns % rotation != 0)
        return DECANT_ERROR(err, DECANT_ERROR_BUG,
                            "rotation in pieces of %lld, which is no power of two that divides %lld columns",
                            (long long)rotation, (long long)columns);
    return DECANT_OK;
}

decant_status decant_grid_scale_check(const decant_grid_form *form, decant_grid_scale scale, decant_error *err)
{
    if (scale == DECANT_SCALE_RANGE && (!form->has_offsets || form->dimension != 1))
        return DECANT_ERROR(err, DECANT_ERROR_BUG,
                            "scales from the range need offsets and a grid of dimension 1");
    return DECANT_OK;
}
