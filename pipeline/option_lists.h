/* Options whose value is a list: code widths, whole numbers, a set of named choices. Knows how they are
 * written; which option has one is in options.c. */
#ifndef DECANT_PIPELINE_OPTION_LISTS_H
#define DECANT_PIPELINE_OPTION_LISTS_H

#include "stages/candidate.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Code bits a weight, ascending, each once. */
typedef struct decant_bit_widths {
    int count;
    bool is_default; /* nobody asked for them by name */
    double width[DECANT_WIDTHS_MAXIMUM];
} decant_bit_widths;

/* Whole numbers, ascending, each once. */
typedef struct decant_number_list {
    int count;
    int64_t value[DECANT_SETTINGS_MAXIMUM];
} decant_number_list;

/* Fractions of a whole, ascending, each once. */
typedef struct decant_fraction_list {
    int count;
    double value[DECANT_SETTINGS_MAXIMUM];
} decant_fraction_list;

/* "3", "2,3,4", "2-4,6", "2.5,3": a range has whole ends and stands for the whole widths in it. False, and the
 * list unspecified, when it is written otherwise, leaves [minimum, maximum], or is too long. */
bool decant_parse_bit_widths(const char *text, double minimum, double maximum, decant_bit_widths *widths);

/* "0", "64,128". */
bool decant_parse_numbers(const char *text, double minimum, double maximum, decant_number_list *list);

/* "0,0.2%,0.45": percent, with or without the sign. */
bool decant_parse_fractions(const char *text, double minimum, double maximum, decant_fraction_list *list);

/* The number of the one of the choices "kmeans|higgs|rtn" that the first `length` bytes of text are, or -1. */
int decant_find_choice(const char *choices, const char *text, size_t length);

/* "kmeans,higgs" out of the choices "kmeans|higgs|rtn": bit i of *set is the i-th choice. */
bool decant_parse_set(const char *choices, const char *text, unsigned *set);

/* The same in the same notation, cut at size bytes. */
void decant_describe_bit_widths(const decant_bit_widths *widths, char *text, size_t size);
void decant_describe_numbers(const decant_number_list *list, char *text, size_t size);
void decant_describe_fractions(const decant_fraction_list *list, char *text, size_t size);
void decant_describe_set(const char *choices, unsigned set, char *text, size_t size);

#endif
