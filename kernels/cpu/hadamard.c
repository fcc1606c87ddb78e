/* The fast Walsh–Hadamard transform: sums and differences of neighbours 1, 2, 4 … apart, then one product with
 * 1/√piece. The order is that of the CUDA backend, so both round alike. */
#include "kernels/cpu/hadamard.h"

#include "kernels/counter_random.h"

#include <math.h>

void decant_rotation_signs(uint64_t seed, int64_t columns, float *signs)
{
    for (int64_t column = 0; column < columns; column++)
        signs[column] = decant_random_sign(seed, column) ? -1.0f : 1.0f;
}

/* Neighbours 1, 2 and 4 apart of eight values. */
static void transform_eight(float *x)
{
    float a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = x[i] + x[i + 1];
        a[i + 1] = x[i] - x[i + 1];
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + j] = a[i + j] + a[i + j + 2];
            b[i + j + 2] = a[i + j] - a[i + j + 2];
        }
    for (int i = 0; i < 4; i++) {
        x[i] = b[i] + b[i + 4];
        x[i + 4] = b[i] - b[i + 4];
    }
}

static void transform_piece(float *x, int64_t piece)
{
    int64_t apart = 1;
    if (piece >= 8) {
        for (int64_t i = 0; i < piece; i += 8)
            transform_eight(x + i);
        apart = 8;
    }
    for (; apart < piece; apart *= 2)
        for (int64_t first = 0; first < piece; first += 2 * apart) {
            float *restrict low = x + first, *restrict high = x + first + apart;
            for (int64_t i = 0; i < apart; i++) {
                float sum = low[i] + high[i], difference = low[i] - high[i];
                low[i] = sum;
                high[i] = difference;
            }
        }
    const float scale = (float)(1.0 / sqrt((double)piece));
    for (int64_t i = 0; i < piece; i++)
        x[i] *= scale;
}

void decant_rotate_row(float *row, int64_t columns, int64_t piece, const float *signs)
{
    if (piece == 1)
        return;
    for (int64_t i = 0; i < columns; i++)
        row[i] *= signs[i];
    for (int64_t first = 0; first < columns; first += piece)
        transform_piece(row + first, piece);
}

void decant_rotate_row_back(float *row, int64_t columns, int64_t piece, const float *signs)
{
    if (piece == 1)
        return;
    for (int64_t first = 0; first < columns; first += piece)
        transform_piece(row + first, piece);
    for (int64_t i = 0; i < columns; i++)
        row[i] *= signs[i];
}
