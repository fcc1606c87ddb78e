/* Solving for the change, not for the levels, keeps the rounding of sums in F32 small against what is sought.
 */
#include "kernels/cpu/guided_levels.h"

#include "kernels/cpu/levels.h"
#include "kernels/level_grid.h"

#include <math.h>
#include <string.h>

enum { LEVELS_MAXIMUM = 256 };

/* In place, the lower triangle; the upper one keeps A. false when A is not positive definite. */
static bool factorize(double *normal, const double *diagonal, int count, double *pivots)
{
    for (int i = 0; i < count; i++)
        for (int j = 0; j <= i; j++) {
            double sum = i == j ? diagonal[i] : normal[j * count + i];
            for (int k = 0; k < j; k++)
                sum -= normal[i * count + k] * normal[j * count + k];
            if (i == j && !(sum > 0))
                return false;
            if (i == j)
                pivots[i] = sqrt(sum);
            else
                normal[i * count + j] = sum / pivots[j];
        }
    return true;
}

static void substitute(const double *normal, const double *pivots, int count, double *x)
{
    for (int i = 0; i < count; i++) {
        for (int k = 0; k < i; k++)
            x[i] -= normal[i * count + k] * x[k];
        x[i] /= pivots[i];
    }
    for (int i = count - 1; i >= 0; i--) {
        for (int k = i + 1; k < count; k++)
            x[i] -= normal[k * count + i] * x[k];
        x[i] /= pivots[i];
    }
}

/* ΔᵀAΔ − 2 Δᵀb: what the objective changes by. */
static double change_of_objective(const double *normal, const double *diagonal, const double *right,
                                  const double *change, int count)
{
    double sum = 0;
    for (int i = 0; i < count; i++) {
        double half = 0.5 * diagonal[i] * change[i];
        for (int j = i + 1; j < count; j++)
            half += normal[i * count + j] * change[j];
        sum += 2 * change[i] * (half - right[i]);
    }
    return sum;
}

/* Insertion sort of the values; they are few and mostly in order. */
static void sort_levels(uint16_t *levels, int count, uint8_t *places)
{
    uint8_t order[LEVELS_MAXIMUM];
    for (int i = 0; i < count; i++) {
        uint16_t level = levels[i];
        int place = i;
        for (; place > 0 && decant_f16_to_f32(levels[place - 1]) > decant_f16_to_f32(level); place--) {
            levels[place] = levels[place - 1];
            order[place] = order[place - 1];
        }
        levels[place] = level;
        order[place] = (uint8_t)i;
    }
    for (int i = 0; i < count; i++)
        places[order[i]] = (uint8_t)i;
}

static void round_levels(const double *values, int count, uint16_t *rounded)
{
    double largest = 0;
    for (int i = 0; i < count; i++)
        largest = fmax(largest, fabs(decant_level_clamped(values[i])));
    const int exponent = decant_level_exponent(largest);
    const bool are_bytes = decant_levels_are_bytes(count);
    for (int i = 0; i < count; i++)
        rounded[i] = decant_finite_f16(
            are_bytes ? decant_level_rounded(decant_level_clamped(values[i]), exponent) : values[i]);
}

void decant_guided_levels_begin(uint16_t *levels, int count)
{
    double values[LEVELS_MAXIMUM];
    for (int i = 0; i < count; i++)
        values[i] = decant_f16_to_f32(levels[i]);
    round_levels(values, count, levels);
}

bool decant_guided_levels_solve(double *normal, double *right, int count, double stride, uint16_t *levels,
                                uint8_t *places)
{
    double diagonal[LEVELS_MAXIMUM], pivots[LEVELS_MAXIMUM], solution[LEVELS_MAXIMUM], change[LEVELS_MAXIMUM];
    double wanted[LEVELS_MAXIMUM] = {0};
    uint16_t rounded[LEVELS_MAXIMUM];
    for (int i = 0; i < count; i++) {
        diagonal[i] = normal[i * count + i];
        if (diagonal[i] == 0) { /* no weight has this level */
            diagonal[i] = 1;
            right[i] = 0;
        }
        places[i] = (uint8_t)i;
    }
    memcpy(solution, right, (size_t)count * sizeof *solution);
    if (!factorize(normal, diagonal, count, pivots))
        return false;
    substitute(normal, pivots, count, solution);
    for (int i = 0; i < count; i++)
        wanted[i] = decant_f16_to_f32(levels[i]) + stride * solution[i];
    round_levels(wanted, count, rounded);
    for (int i = 0; i < count; i++)
        change[i] = decant_f16_to_f32(rounded[i]) - decant_f16_to_f32(levels[i]);
    if (!(change_of_objective(normal, diagonal, right, change, count) < 0))
        return false;
    memcpy(levels, rounded, (size_t)count * sizeof *levels);
    sort_levels(levels, count, places);
    return true;
}
