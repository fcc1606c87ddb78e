/* Whether a GPU puts the planes of a row's codes into pieces of 512 columns when a matrix is loaded
 * (cuda/arranged_planes.cu, which also asks for other things), and how long planes are then. Pure, so that the
 * plan can count what it adds. */
#ifndef DECANT_KERNELS_ARRANGED_COLUMNS_H
#define DECANT_KERNELS_ARRANGED_COLUMNS_H

#include <stdbool.h>
#include <stdint.h>

enum { DECANT_PIECE_WORDS = 16 }; /* of a plane of a row, which lie side by side in both orders */

/* Words of a plane of a row; of whole pieces where planes are arranged, zeros behind the last column. */
static inline int decant_plane_words(int64_t columns, bool arranged)
{
    const int words = (int)((columns + 31) / 32);
    return arranged ? (words + DECANT_PIECE_WORDS - 1) / DECANT_PIECE_WORDS * DECANT_PIECE_WORDS : words;
}

/* Rows are copied by four words, and zeros are 5 % at most. */
static inline bool decant_columns_are_arranged(int64_t columns)
{
    enum { AT_ONCE_WORDS = 4, WORDS_FOR_ONE_MORE = 20 };
    const int words = decant_plane_words(columns, false), whole = decant_plane_words(columns, true);
    return words % AT_ONCE_WORDS == 0 && (whole - words) * WORDS_FOR_ONE_MORE <= whole;
}

#endif
