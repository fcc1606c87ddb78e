/* The element types that decant's arrays are made of, and views of two-dimensional arrays. */
#ifndef DECANT_BASE_ELEMENT_H
#define DECANT_BASE_ELEMENT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum decant_element {
    DECANT_F32,  /* IEEE 754 binary32 */
    DECANT_F16,  /* IEEE 754 binary16 */
    DECANT_BF16, /* the upper half of a binary32 */
} decant_element;

/* A row-major, gap-free two-dimensional array that somebody else owns. A vector has one row. */
typedef struct decant_matrix {
    void *data; /* where the backend that made it keeps its arrays; host memory for files */
    decant_element element;
    int64_t rows, columns;
} decant_matrix;

static inline size_t decant_element_bytes(decant_element element)
{
    return element == DECANT_F32 ? 4 : 2;
}

/* "F32", "F16", "BF16": the names that safetensors and the container use. */
static inline const char *decant_element_name(decant_element element)
{
    return element == DECANT_F32 ? "F32" : element == DECANT_F16 ? "F16" : "BF16";
}

static inline size_t decant_matrix_bytes(decant_matrix matrix)
{
    return (size_t)matrix.rows * (size_t)matrix.columns * decant_element_bytes(matrix.element);
}

/* The rows [first, first + count) of a matrix, as a view. */
static inline decant_matrix decant_matrix_rows(decant_matrix matrix, int64_t first, int64_t count)
{
    matrix.data =
        (char *)matrix.data + (size_t)first * (size_t)matrix.columns * decant_element_bytes(matrix.element);
    matrix.rows = count;
    return matrix;
}

static inline float decant_bf16_to_f32(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Exact. */
float decant_f16_to_f32(uint16_t bits);

/* Rounds to nearest, ties to even; beyond the range to infinity; NaN stays NaN. */
uint16_t decant_f32_to_f16(float value);

/* Rounds to nearest, ties to even; NaN stays NaN. */
uint16_t decant_f32_to_bf16(float value);

/* Converts count elements to F32. */
void decant_elements_to_f32(decant_element element, const void *source, int64_t count, float *target);

/* Converts count elements from F32, each rounded to nearest. */
void decant_elements_from_f32(decant_element element, const float *source, int64_t count, void *target);

/* The first of count elements that is infinite or undefined; −1 when there is none. */
int64_t decant_find_not_finite(decant_element element, const void *values, int64_t count);

#endif
