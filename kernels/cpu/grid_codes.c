/* Codes of up to twelve bits in bit planes, and from codes to the values they stand for. */
#include "kernels/cpu/grid.h"

enum { WORD_BITS = 32 };

/* Each code of a word is spread over the planes; the loops over 32 codes become vector instructions. */
void decant_grid_codes_pack(const uint16_t *codes, int64_t count, int code_bits, uint32_t *planes)
{
    const int64_t words = (count + WORD_BITS - 1) / WORD_BITS;
    for (int64_t word = 0; word < words; word++) {
        const int64_t left = count - word * WORD_BITS, length = left < WORD_BITS ? left : WORD_BITS;
        uint32_t own[WORD_BITS] = {0};
        for (int64_t i = 0; i < length; i++)
            own[i] = codes[word * WORD_BITS + i];
        for (int bit = 0; bit < code_bits; bit++) {
            uint32_t plane = 0;
            for (uint32_t i = 0; i < WORD_BITS; i++)
                plane |= (own[i] >> bit & 1u) << i;
            planes[bit * words + word] = plane;
        }
    }
}

/* The codes [first, first + count) of a row; first is a multiple of 32. */
static void unpack_codes(const uint32_t *planes, int64_t words, int code_bits, int64_t first, int64_t count,
                         uint16_t *codes)
{
    for (int64_t start = 0; start < count; start += WORD_BITS) {
        const uint32_t *word = planes + (first + start) / WORD_BITS;
        uint32_t own[WORD_BITS] = {0};
        for (int bit = 0; bit < code_bits; bit++) {
            const uint32_t plane = word[bit * words];
            for (uint32_t i = 0; i < WORD_BITS; i++)
                own[i] |= (plane >> i & 1u) << bit;
        }
        const int64_t length = count - start < WORD_BITS ? count - start : WORD_BITS;
        for (int64_t i = 0; i < length; i++)
            codes[start + i] = (uint16_t)own[i];
    }
}

void decant_grid_row_read(const decant_grid_matrix *matrix, int64_t row, int64_t first, int64_t count,
                          uint16_t *codes, float *values)
{
    const decant_grid_form *form = &matrix->form;
    const int p = form->dimension;
    const int64_t words = decant_grid_words(matrix->columns, p);
    const int64_t groups = decant_grid_groups(matrix->columns, form->group);
    const int64_t first_code = first / p, n_codes = decant_grid_codes(count, p);
    unpack_codes(matrix->planes + row * form->code_bits * words, words, form->code_bits, first_code, n_codes,
                 codes);
    for (int64_t group = first / form->group; group < groups; group++) {
        int64_t begin = decant_grid_first_code(matrix->columns, p, form->group, group) - first_code;
        int64_t end = decant_grid_first_code(matrix->columns, p, form->group, group + 1) - first_code;
        begin = begin > 0 ? begin : 0;
        end = end < n_codes ? end : n_codes;
        if (begin >= n_codes)
            break;
        const float scale = decant_f16_to_f32(matrix->scales[row * groups + group]);
        const float offset = form->has_offsets ? decant_f16_to_f32(matrix->offsets[row * groups + group]) : 0;
        for (int64_t j = begin; j < end; j++)
            for (int i = 0; i < p && j * p + i < count; i++)
                values[j * p + i] = scale * form->points[codes[j] * p + i] + offset;
    }
}
