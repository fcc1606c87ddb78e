/* An option's value as text and as a field of decant_options: what kinds of values there are and how each is
 * read and told. Pure; knows no option by name. */
#ifndef DECANT_PIPELINE_OPTION_VALUES_H
#define DECANT_PIPELINE_OPTION_VALUES_H

#include "pipeline/options.h"

typedef enum option_kind {
    OPTION_PATH,
    OPTION_INTEGER,   /* int64_t */
    OPTION_NUMBER,    /* int */
    OPTION_SEED,      /* uint64_t */
    OPTION_REAL,      /* double */
    OPTION_FRACTION,  /* double, given in percent */
    OPTION_CHOICE,    /* int, an index into `argument` split at '|' */
    OPTION_SET,       /* unsigned, a bit for each choice of `argument` that is named */
    OPTION_WIDTHS,    /* decant_bit_widths */
    OPTION_NUMBERS,   /* decant_number_list */
    OPTION_FRACTIONS, /* decant_fraction_list, given in percent */
    OPTION_SIZE,      /* int64_t, bytes */
    OPTION_SWEEP,     /* decant_sweep */
    OPTION_FLAG,      /* bool */
} option_kind;

typedef struct option_row {
    const char *name;
    option_kind kind;
    const char *argument; /* as --help shows it; the choices of OPTION_CHOICE */
    const char *fallback; /* the default in the user's words; NULL: none */
    size_t offset;
    double minimum, maximum;
    bool shapes_output; /* part of the provenance line */
    const char *help;
} option_row;

/* Sets the row's field from text. DECANT_ERROR_USAGE, with the option's name, for what is no value of its kind
 * or outside of its range; the field may then be anything. */
decant_status decant_option_set(const option_row *row, const char *value, decant_options *options,
                                decant_error *err);

/* The row's field in the words that would set it, cut off at `size` bytes; "?" for a path or a sweep. */
void decant_option_describe(const option_row *row, const decant_options *options, char *text, size_t size);

#endif
