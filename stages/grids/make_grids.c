/* Makes the tables of grids beside this file: points that quantize a standard normal variable of 1 to 4
 * dimensions with the least mean square error. A program of its own, run by hand:
 *
 *   cmake --build build/dev --target make_grids && build/dev/make_grids stages/grids
 *
 * One dimension: the conditions of Lloyd and Max (each border in the middle of two levels, each level the mean
 * of its interval), solved by Newton's method on the gradient of the error. Source: Max, "Quantizing for
 * minimum distortion", 1960; Lloyd, "Least squares quantization in PCM", 1982.
 *
 * More dimensions: Lloyd's iterations on a low-discrepancy sequence of normal places, which stands for the
 * integrals of the mean; the start are places of the density that the optimum approaches, φ^(p / (p + 2))
 * (Zador 1982). Early iterations look at a new, small part of the sequence each time, whose noise leads out of
 * poor optima; late ones look at more and more of it. Errors are measured on other places than those fitted to.
 *
 * NF4: the 16 values of QLoRA (arXiv 2305.14314, appendix E): quantiles of the normal distribution at evenly
 * spaced probabilities between 1/2 and 1 − ½ (1/32 + 1/30), seven below zero, zero, eight above, scaled to [−1,
 * 1]. */
#include "kernels/grid_cells.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    SEQUENCE = 1 << 22,
    MEASURED = 1 << 23,
    DIMENSIONS = DECANT_GRID_DIMENSION_MAXIMUM,
    STARTS = 512,            /* points over all starts: 32 starts of 16 points, one of 512 or more */
    ROUNDS_EARLY_2 = 1200,   /* of Lloyd in two dimensions, on parts of EARLY_PLACES places a point … */
    ROUNDS_EARLY_MORE = 300, /* … in more, where they get dear … */
    EARLY_PLACES = 48,
    ROUNDS_LATE = 120, /* … then on parts that double every DOUBLING rounds */
    DOUBLING = 12,
};

static const double RELAXATION = 1.8; /* early steps go beyond the mean by this factor */

typedef struct grid {
    int dimension, code_bits;
    float *points;
    double error; /* mean square error of a coordinate */
} grid;

static void *allocate(size_t size_bytes)
{
    void *memory = calloc(size_bytes, 1);
    if (!memory) {
        fprintf(stderr, "make_grids: not enough memory\n");
        exit(1);
    }
    return memory;
}

/* ---- the normal distribution ---- */

static double density(double x)
{
    return exp(-0.5 * x * x) / sqrt(2 * M_PI);
}

static double probability_above(double x)
{
    return 0.5 * erfc(x / M_SQRT2);
}

/* The x that a standard normal variable exceeds with probability q: Newton's method on the logarithm, from a
 * start that is good at either end. */
static double quantile_above(double q)
{
    if (q > 0.5)
        return -quantile_above(1 - q);
    double x = sqrt(-2 * log(q));
    x = x > 2 ? x - log(x * sqrt(2 * M_PI)) / x : (0.5 - q) * sqrt(2 * M_PI);
    for (int round = 0; round < 60; round++) {
        double above = probability_above(x), step = log(above / q) * above / density(x);
        x += step;
        if (fabs(step) < 1e-15 * (1 + fabs(x)))
            break;
    }
    return x;
}

/* ---- one dimension ---- */

/* Probability and first moment of the normal distribution between two borders. */
static void interval(double low, double high, double *mass, double *moment)
{
    *mass = low >= 0 ? probability_above(low) - probability_above(high)
                     : probability_above(-high) - probability_above(-low);
    *moment = (isinf(low) ? 0 : density(low)) - (isinf(high) ? 0 : density(high));
}

static double border(const double *levels, int n, int i) /* below level i */
{
    return i == 0 ? -INFINITY : i == n ? INFINITY : 0.5 * (levels[i - 1] + levels[i]);
}

/* Solves the symmetric tridiagonal system with this diagonal and this line beside it; both are used up. */
static void solve_tridiagonal(double *diagonal, const double *beside, double *right, int n)
{
    for (int i = 1; i < n; i++) {
        double factor = beside[i - 1] / diagonal[i - 1];
        diagonal[i] -= factor * beside[i - 1];
        right[i] -= factor * right[i - 1];
    }
    right[n - 1] /= diagonal[n - 1];
    for (int i = n - 2; i >= 0; i--)
        right[i] = (right[i] - beside[i] * right[i + 1]) / diagonal[i];
}

/* One step of Newton's method on E = Σ ∫ (x − c)² φ; returns the largest change. */
static double newton_step(double *levels, int n)
{
    double *diagonal = allocate((size_t)n * sizeof(double)), *beside = allocate((size_t)n * sizeof(double)),
           *step = allocate((size_t)n * sizeof(double)), largest = 0;
    for (int i = 0; i < n; i++) {
        double low = border(levels, n, i), high = border(levels, n, i + 1), mass, moment;
        interval(low, high, &mass, &moment);
        step[i] =
            moment - levels[i] * mass; /* half the gradient, negative; likewise half the curvature below */
        double above = i + 1 < n ? density(high) * (levels[i + 1] - levels[i]) / 4 : 0;
        double below = i > 0 ? density(low) * (levels[i] - levels[i - 1]) / 4 : 0;
        diagonal[i] = mass - above - below;
        beside[i] = -above;
    }
    solve_tridiagonal(diagonal, beside, step, n);
    for (int i = 0; i < n; i++) {
        levels[i] += step[i];
        largest = fmax(largest, fabs(step[i]));
    }
    free(diagonal);
    free(beside);
    free(step);
    return largest;
}

static void lloyd_step(double *levels, int n)
{
    double *means = allocate((size_t)n * sizeof(double));
    for (int i = 0; i < n; i++) {
        double mass, moment;
        interval(border(levels, n, i), border(levels, n, i + 1), &mass, &moment);
        means[i] = moment / mass;
    }
    memcpy(levels, means, (size_t)n * sizeof(double));
    free(means);
}

static grid make_line(int code_bits)
{
    const int n = 1 << code_bits;
    double *levels = allocate((size_t)n * sizeof(double)), change = 1;
    for (int i = 0; i < n; i++) /* quantiles of the optimum's density for many levels, N(0, 3) */
        levels[i] = sqrt(3) * quantile_above(1 - (i + 0.5) / n);
    for (int round = 0; round < 200; round++)
        lloyd_step(levels, n);
    for (int round = 0; round < 50 && change > 1e-14; round++)
        change = newton_step(levels, n);
    grid made = {1, code_bits, allocate((size_t)n * sizeof(float)), 0};
    for (int i = 0; i < n; i++) {
        double mass, moment, low = border(levels, n, i), high = border(levels, n, i + 1);
        interval(low, high, &mass, &moment);
        double square = mass + (isinf(low) ? 0 : low * density(low)) - (isinf(high) ? 0 : high * density(high));
        made.error += square - 2 * levels[i] * moment + levels[i] * levels[i] * mass;
        made.points[i] = (float)levels[i];
    }
    free(levels);
    return made;
}

/* ---- more dimensions ---- */

/* Normal places number first, first + 1, … of the additive recurrence with the generalised golden ratio g, the
 * root of g^(p + 1) = g + 1: coordinate i of place k is k / g^(i + 1) modulo 1, through the normal quantile.
 * Source: Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018. */
static void fill_places(int dimension, int64_t first, int64_t count, double deviation, float *places)
{
    double ratio = 2, steps[DIMENSIONS];
    for (int round = 0; round < 60; round++)
        ratio = pow(1 + ratio, 1.0 / (dimension + 1));
    for (int i = 0; i < dimension; i++)
        steps[i] = pow(ratio, -(i + 1));
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < count; k++)
        for (int i = 0; i < dimension; i++) {
            double whole, part = modf(0.5 + (double)(first + k) * steps[i], &whole);
            part = fmin(fmax(part, 1e-12), 1 - 1e-12);
            places[k * dimension + i] = (float)(deviation * quantile_above(1 - part));
        }
}

static void find_codes(const grid *g, const float *places, int64_t count, uint16_t *codes)
{
    decant_grid_cells cells;
    decant_error err;
    if (decant_grid_cells_build(g->points, g->dimension, g->code_bits, &cells, &err) != DECANT_OK) {
        fprintf(stderr, "make_grids: %s\n", err.message);
        exit(1);
    }
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < count; k++)
        codes[k] = (uint16_t)decant_grid_nearest(&cells, places + k * g->dimension, g->dimension);
    decant_grid_cells_free(&cells);
}

/* Moves each point to `relaxation` times the way to the mean of its places. */
static void move_points(grid *g, const float *places, int64_t count, const uint16_t *codes, double relaxation)
{
    const int p = g->dimension, n = 1 << g->code_bits;
    double *sums = allocate((size_t)(n * p) * sizeof(double));
    int64_t *counts = allocate((size_t)n * sizeof(int64_t));
    for (int64_t k = 0; k < count; k++) {
        counts[codes[k]]++;
        for (int i = 0; i < p; i++)
            sums[codes[k] * p + i] += places[k * p + i];
    }
    for (int code = 0; code < n; code++)
        for (int i = 0; i < p && counts[code] > 0; i++) {
            float *x = &g->points[code * p + i];
            *x = (float)(*x + relaxation * (sums[code * p + i] / (double)counts[code] - *x));
        }
    free(sums);
    free(counts);
}

static double measure(const grid *g, const float *places, int64_t count, uint16_t *codes)
{
    const int p = g->dimension;
    double sum = 0;
    find_codes(g, places, count, codes);
    for (int64_t k = 0; k < count; k++)
        for (int i = 0; i < p; i++) {
            double miss = (double)places[k * p + i] - (double)g->points[codes[k] * p + i];
            sum += miss * miss;
        }
    return sum / (double)count / p;
}

/* Rounds the points to as many decimals as the table has. */
static int round_points(grid *g)
{
    const int decimals = g->error > 0.02 ? 2 : 3; /* adds 10^(−2 · decimals) / 12 to the error: below 0.05 % */
    const double unit = pow(10, decimals);
    for (int64_t i = 0; i < (int64_t)g->dimension << g->code_bits; i++)
        g->points[i] = (float)(round((double)g->points[i] * unit) / unit);
    return decimals;
}

/* Where the points start: the rest of a sequence that has no part in what is fitted to. */
static void start_points(grid *g, int start)
{
    const int64_t n = (int64_t)1 << g->code_bits;
    const int p = g->dimension;
    fill_places(p, n * start, n, sqrt((p + 2.0) / p), g->points);
    if (p != 2)
        return;
    for (int64_t k = 0; k < n; k++) {
        const double radius = sqrt(-4 * log(1 - ((double)k + 0.5) / (double)n));
        const double angle = (double)k * M_PI * (3 - sqrt(5)) * (1 + 0.01 * start);
        g->points[2 * k] = (float)(radius * cos(angle));
        g->points[2 * k + 1] = (float)(radius * sin(angle));
    }
}

static void improve(grid *g, const float *places, uint16_t *codes)
{
    const int early = g->dimension == 2 ? ROUNDS_EARLY_2 : ROUNDS_EARLY_MORE;
    int64_t part = ((int64_t)1 << g->code_bits) * EARLY_PLACES, first = 0;
    for (int round = 0; round < early + ROUNDS_LATE; round++) {
        const int late = round - early;
        if (late >= 0 && late % DOUBLING == 0)
            part *= 2;
        part = part < SEQUENCE ? part : SEQUENCE;
        first = first + part <= SEQUENCE ? first : 0;
        const float *own = places + first * g->dimension;
        find_codes(g, own, part, codes);
        move_points(g, own, part, codes, round < early * 3 / 4 ? RELAXATION : 1);
        first += part;
    }
}

static grid make_grid(int dimension, int code_bits, const float *places, const float *others, uint16_t *codes)
{
    const size_t points_bytes = ((size_t)dimension << code_bits) * sizeof(float);
    grid best = {dimension, code_bits, NULL, INFINITY};
    for (int start = 0; start == 0 || start < STARTS >> code_bits; start++) {
        grid g = {dimension, code_bits, allocate(points_bytes), 0};
        start_points(&g, start);
        improve(&g, places, codes);
        g.error = measure(&g, others, MEASURED, codes);
        float *worse = g.error < best.error ? best.points : g.points;
        best = g.error < best.error ? g : best;
        free(worse);
    }
    return best;
}

/* ---- tables ---- */

static FILE *open_table(const char *folder, const char *name, const char *what)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    if (!file) {
        fprintf(stderr, "make_grids: cannot write %s\n", path);
        exit(1);
    }
    fprintf(file, "/* %s. Made by make_grids.c. */\n", what);
    return file;
}

/* ".5", "-1.25", "0": a number of a C table, as short as it goes. */
static int shorten(double value, int decimals, char text[32])
{
    char whole[32];
    snprintf(whole, sizeof whole, "%.*f", decimals, fabs(value));
    char *start = whole[0] == '0' && decimals > 0 ? whole + 1 : whole, *end = start + strlen(start);
    while (end > start && end[-1] == '0')
        *--end = 0;
    if (end == start + 1 && *start == '.')
        return snprintf(text, 32, "0");
    return snprintf(text, 32, "%s%s", value < 0 ? "-" : "", start);
}

static void write_grid(FILE *file, const grid *g, int decimals)
{
    const int64_t count = (int64_t)g->dimension << g->code_bits;
    int width = 0;
    fprintf(file, "static const float points_%d_%d[] = {\n", g->dimension, g->code_bits);
    for (int64_t i = 0; i < count; i++) {
        char text[32];
        width += shorten((double)g->points[i], decimals, text) + 1;
        fprintf(file, "%s,%s", text, width > 105 || i == count - 1 ? "\n" : "");
        width = width > 105 ? 0 : width;
    }
    fprintf(file, "};\n#define ERROR_%d_%d %.6g\n", g->dimension, g->code_bits, g->error);
    printf("p %d, %2d code bits, %.3f bits: error %.6g, times 4^bits %.4f\n", g->dimension, g->code_bits,
           (double)g->code_bits / g->dimension, g->error,
           g->error * pow(4, (double)g->code_bits / g->dimension));
    fflush(stdout);
}

static void make_lines(const char *folder)
{
    FILE *file = open_table(folder, "points_1.inc", "Lloyd-Max levels of the standard normal distribution");
    for (int bits = 2; bits <= 8; bits++) {
        grid g = make_line(bits);
        write_grid(file, &g, 9);
        free(g.points);
    }
    fclose(file);
}

static void make_nf4(const char *folder)
{
    FILE *file = open_table(folder, "points_nf4.inc", "The values of NF4");
    const double outermost = 0.5 * (1.0 / 32 + 1.0 / 30), largest = quantile_above(outermost);
    fprintf(file, "static const float points_nf4[] = {\n");
    for (int i = 0; i < 7; i++)
        fprintf(file, "%.9g,", -quantile_above(outermost + (0.5 - outermost) * i / 7) / largest);
    fprintf(file, "0,\n");
    for (int i = 7; i >= 0; i--)
        fprintf(file, "%.9g,", quantile_above(outermost + (0.5 - outermost) * i / 8) / largest);
    fprintf(file, "\n");
    fprintf(file, "};\n");
    fclose(file);
}

static void make_grids(const char *folder, int dimension, int least_bits, int most_bits)
{
    char name[32], what[80];
    snprintf(name, sizeof name, "points_%d.inc", dimension);
    snprintf(what, sizeof what, "Grids of %d dimensions for the standard normal distribution", dimension);
    FILE *file = open_table(folder, name, what);
    float *places = allocate((size_t)SEQUENCE * (size_t)dimension * sizeof(float));
    float *others = allocate((size_t)MEASURED * (size_t)dimension * sizeof(float));
    uint16_t *codes = allocate(MEASURED * sizeof(uint16_t));
    fill_places(dimension, 1 << 13, SEQUENCE, 1, places);
    fill_places(dimension, (1 << 13) + SEQUENCE, MEASURED, 1, others);
    for (int bits = least_bits; bits <= most_bits; bits++) {
        grid g = make_grid(dimension, bits, places, others, codes);
        int decimals = round_points(&g);
        g.error = measure(&g, others, MEASURED, codes);
        write_grid(file, &g, decimals);
        free(g.points);
    }
    fclose(file);
    free(places);
    free(others);
    free(codes);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: make_grids FOLDER [DIMENSION]\n");
        return 2;
    }
    const int only = argc > 2 ? atoi(argv[2]) : 0;
    if (only <= 1) {
        make_lines(argv[1]);
        make_nf4(argv[1]);
    }
    if (only == 0 || only == 2)
        make_grids(argv[1], 2, 4, 12);
    if (only == 0 || only == 3)
        make_grids(argv[1], 3, 6, 12);
    if (only == 0 || only == 4)
        make_grids(argv[1], 4, 8, 12);
    return 0;
}
