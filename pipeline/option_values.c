/* See option_values.h. */
#include "pipeline/option_values.h"

#include "pipeline/option_lists.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- from text ---- */

/* Stores the index of `value` among the choices "a|b|c"; false when it is none of them. */
static bool parse_choice(const char *choices, const char *value, int *index)
{
    *index = decant_find_choice(choices, value, strlen(value));
    return *index >= 0;
}

static bool parse_real(const option_row *row, const char *value, double *real)
{
    char *end;
    errno = 0;
    *real = strtod(value, &end);
    if (end == value || errno == ERANGE)
        return false;
    if (row->kind == OPTION_FRACTION) {
        *real /= 100;
        if (*end == '%')
            end++;
    }
    return *end == '\0' && *real >= row->minimum && *real <= row->maximum;
}

static bool parse_integer(const option_row *row, const char *value, int64_t *integer)
{
    char *end;
    errno = 0;
    *integer = strtoll(value, &end, 10);
    return end != value && *end == '\0' && errno != ERANGE && (double)*integer >= row->minimum &&
           (double)*integer <= row->maximum;
}

static bool parse_seed(const char *value, uint64_t *seed)
{
    char *end;
    errno = 0;
    *seed = strtoull(value, &end, 10);
    return value[0] >= '0' && value[0] <= '9' && *end == '\0' && errno != ERANGE;
}

/* "80G", "512MiB", "3.5GB", "1024": a letter alone and iB count in powers of 1024, B after a letter in powers
 * of 1000. */
static bool parse_size(const option_row *row, const char *value, int64_t *size_bytes)
{
    static const struct {
        const char *name;
        double bytes;
    } units[] = {{"", 1},       {"B", 1},        {"K", 0x1p10},   {"M", 0x1p20},   {"G", 0x1p30},
                 {"T", 0x1p40}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40},
                 {"kB", 1e3},   {"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},     {"TB", 1e12}};
    char *end;
    errno = 0;
    double number = strtod(value, &end);
    if (end == value || errno == ERANGE)
        return false;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        double bytes = number * units[i].bytes;
        if (strcmp(end, units[i].name) != 0 || !(bytes >= row->minimum && bytes <= row->maximum))
            continue;
        *size_bytes = (int64_t)bytes;
        return true;
    }
    return false;
}

/* "2.5:5:0.25" */
static bool parse_sweep(const option_row *row, const char *value, decant_sweep *sweep)
{
    double numbers[3];
    const char *at = value;
    for (int i = 0; i < 3; i++) {
        char *end;
        numbers[i] = strtod(at, &end);
        if (end == at || *end != (i < 2 ? ':' : '\0'))
            return false;
        at = end + 1;
    }
    *sweep = (decant_sweep){numbers[0], numbers[1], numbers[2]};
    return sweep->first >= row->minimum && sweep->last <= row->maximum && sweep->first <= sweep->last &&
           sweep->step > 0 && (sweep->last - sweep->first) / sweep->step < DECANT_SWEEP_POINTS_MAXIMUM;
}

static bool parse_flag(const char *value, bool *flag)
{
    int index;
    if (!parse_choice("no|yes|0|1|false|true|off|on", value, &index))
        return false;
    *flag = index % 2 == 1;
    return true;
}

/* What a row would have taken, for a message. */
static void describe_expected(const option_row *row, char *text, size_t size)
{
    const bool is_share = row->kind == OPTION_FRACTION || row->kind == OPTION_FRACTIONS;
    const double scale = is_share ? 100 : 1;
    char range[64];
    snprintf(range, sizeof range, "from %.10g to %.10g", scale * row->minimum, scale * row->maximum);
    switch (row->kind) {
    case OPTION_PATH:
        snprintf(text, size, "a path of at most %d bytes", DECANT_OPTION_PATH_BYTES - 1);
        break;
    case OPTION_INTEGER:
    case OPTION_NUMBER:
        snprintf(text, size, "a whole number %s", range);
        break;
    case OPTION_SEED:
        snprintf(text, size, "a whole number below 2^64");
        break;
    case OPTION_REAL:
        snprintf(text, size, "a number %s", range);
        break;
    case OPTION_FRACTION:
        snprintf(text, size, "a percentage %s", range);
        break;
    case OPTION_CHOICE:
        snprintf(text, size, "%s", row->argument);
        break;
    case OPTION_SET:
        snprintf(text, size, "%s, or several of them as in a,b", row->argument);
        break;
    case OPTION_WIDTHS:
        snprintf(text, size, "numbers %s, as in 3 or 2-4,6 or 2.5", range);
        break;
    case OPTION_NUMBERS:
        snprintf(text, size, "whole numbers %s, %d at most, as in 1,2", range, DECANT_SETTINGS_MAXIMUM);
        break;
    case OPTION_FRACTIONS:
        snprintf(text, size, "percentages %s, %d at most, as in 0,0.45", range, DECANT_SETTINGS_MAXIMUM);
        break;
    case OPTION_SIZE:
        snprintf(text, size, "a size, as 512MiB, 80G or 3.5GB");
        break;
    case OPTION_SWEEP:
        snprintf(text, size, "%s %s, fewer than %d steps, as in 2.5:5:0.25", row->argument, range,
                 DECANT_SWEEP_POINTS_MAXIMUM);
        break;
    case OPTION_FLAG:
        snprintf(text, size, "yes or no");
        break;
    }
}

decant_status decant_option_set(const option_row *row, const char *value, decant_options *options,
                                decant_error *err)
{
    void *field = (char *)options + row->offset;
    bool good = false;
    int64_t integer = 0;
    switch (row->kind) {
    case OPTION_PATH:
        good = value[0] != '\0' && strlen(value) < DECANT_OPTION_PATH_BYTES;
        if (good)
            memcpy(field, value, strlen(value) + 1);
        break;
    case OPTION_INTEGER:
        good = parse_integer(row, value, field);
        break;
    case OPTION_NUMBER:
        good = parse_integer(row, value, &integer);
        *(int *)field = (int)integer;
        break;
    case OPTION_SEED:
        good = parse_seed(value, field);
        break;
    case OPTION_REAL:
    case OPTION_FRACTION:
        good = parse_real(row, value, field);
        break;
    case OPTION_CHOICE:
        good = parse_choice(row->argument, value, field);
        break;
    case OPTION_WIDTHS:
        good = decant_parse_bit_widths(value, row->minimum, row->maximum, field);
        break;
    case OPTION_NUMBERS:
        good = decant_parse_numbers(value, row->minimum, row->maximum, field);
        break;
    case OPTION_FRACTIONS:
        good = decant_parse_fractions(value, row->minimum, row->maximum, field);
        break;
    case OPTION_SET:
        good = decant_parse_set(row->argument, value, field);
        break;
    case OPTION_SIZE:
        good = parse_size(row, value, field);
        break;
    case OPTION_SWEEP:
        good = parse_sweep(row, value, field);
        break;
    case OPTION_FLAG:
        good = parse_flag(value, field);
        break;
    }
    if (good)
        return DECANT_OK;
    char expected[160];
    describe_expected(row, expected, sizeof expected);
    return DECANT_ERROR(err, DECANT_ERROR_USAGE, "--%s: '%.200s' is no good value; it takes %s", row->name,
                        value, expected);
}

/* ---- to text ---- */

/* The index-th of the choices "a|b|c", into text. */
static void name_choice(const char *choices, int index, char *text, size_t size)
{
    while (index-- > 0)
        choices = strchr(choices, '|') + 1;
    snprintf(text, size, "%.*s", (int)strcspn(choices, "|"), choices);
}

void decant_option_describe(const option_row *row, const decant_options *options, char *text, size_t size)
{
    const void *field = (const char *)options + row->offset;
    switch (row->kind) {
    case OPTION_CHOICE:
        name_choice(row->argument, *(const int *)field, text, size);
        break;
    case OPTION_SEED:
        snprintf(text, size, "%llu", (unsigned long long)*(const uint64_t *)field);
        break;
    case OPTION_REAL:
        snprintf(text, size, "%.17g", *(const double *)field);
        break;
    case OPTION_FRACTION:
        snprintf(text, size, "%.17g%%", *(const double *)field * 100);
        break;
    case OPTION_FLAG:
        snprintf(text, size, "%s", *(const bool *)field ? "yes" : "no");
        break;
    case OPTION_SET:
        decant_describe_set(row->argument, *(const unsigned *)field, text, size);
        break;
    case OPTION_WIDTHS:
        decant_describe_bit_widths(field, text, size);
        break;
    case OPTION_NUMBERS:
        decant_describe_numbers(field, text, size);
        break;
    case OPTION_FRACTIONS:
        decant_describe_fractions(field, text, size);
        break;
    case OPTION_SIZE:
    case OPTION_INTEGER:
        snprintf(text, size, "%lld", (long long)*(const int64_t *)field);
        break;
    case OPTION_NUMBER:
        snprintf(text, size, "%d", *(const int *)field);
        break;
    case OPTION_PATH:
    case OPTION_SWEEP:
        snprintf(text, size, "?"); /* where things lie is recorded apart, as checksums */
        break;
    }
}
