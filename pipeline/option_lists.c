/* See option_lists.h. */
#include "pipeline/option_lists.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Puts a value in its place among `count` ascending ones; false when there is no room for it. */
static bool insert_value(double *values, int *count, int maximum, double value)
{
    int place = *count;
    while (place > 0 && values[place - 1] >= value)
        place--;
    if (place < *count && values[place] == value)
        return true;
    if (*count == maximum)
        return false;
    memmove(&values[place + 1], &values[place], (size_t)(*count - place) * sizeof *values);
    values[place] = value;
    ++*count;
    return true;
}

/* ---- code widths ---- */

/* A plain number: no sign, exponent, "nan" or "0x". */
static bool read_width(const char **at, double minimum, double maximum, double *width)
{
    if (strspn(*at, "0123456789.") == 0 || strspn(*at, "0123456789.") != strcspn(*at, ",-"))
        return false;
    char *end;
    *width = strtod(*at, &end);
    bool good = end != *at && (*end == ',' || *end == '-' || *end == '\0');
    *at = end;
    return good && *width >= minimum && *width <= maximum;
}

bool decant_parse_bit_widths(const char *text, double minimum, double maximum, decant_bit_widths *widths)
{
    *widths = (decant_bit_widths){0};
    for (const char *at = text;; at++) {
        double first, last;
        if (!read_width(&at, minimum, maximum, &first))
            return false;
        last = first;
        if (*at == '-') {
            at++;
            if (!read_width(&at, minimum, maximum, &last) || *at == '-' || first > last ||
                first != floor(first) || last != floor(last))
                return false;
        }
        for (double width = first; width <= last; width++)
            if (!insert_value(widths->width, &widths->count, DECANT_WIDTHS_MAXIMUM, width))
                return false;
        if (*at == '\0')
            return true;
    }
}

void decant_describe_bit_widths(const decant_bit_widths *widths, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < widths->count && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%.10g", i ? "," : "", widths->width[i]);
}

/* ---- whole numbers ---- */

static bool insert_number(decant_number_list *list, int64_t value)
{
    int place = list->count;
    while (place > 0 && list->value[place - 1] >= value)
        place--;
    if (place < list->count && list->value[place] == value)
        return true;
    if (list->count == DECANT_SETTINGS_MAXIMUM)
        return false;
    memmove(&list->value[place + 1], &list->value[place], (size_t)(list->count - place) * sizeof *list->value);
    list->value[place] = value;
    list->count++;
    return true;
}

bool decant_parse_numbers(const char *text, double minimum, double maximum, decant_number_list *list)
{
    *list = (decant_number_list){0};
    for (const char *at = text;; at++) {
        char *end;
        errno = 0;
        long long value = strtoll(at, &end, 10);
        if (at[0] < '0' || at[0] > '9' || errno == ERANGE || (*end != ',' && *end != '\0') ||
            (double)value < minimum || (double)value > maximum || !insert_number(list, value))
            return false;
        at = end;
        if (*at == '\0')
            return true;
    }
}

void decant_describe_numbers(const decant_number_list *list, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < list->count && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%lld", i ? "," : "", (long long)list->value[i]);
}

/* ---- fractions ---- */

bool decant_parse_fractions(const char *text, double minimum, double maximum, decant_fraction_list *list)
{
    *list = (decant_fraction_list){0};
    for (const char *at = text;; at++) {
        char *end;
        if (strspn(at, "0123456789.") == 0 || strspn(at, "0123456789.") != strcspn(at, ",%"))
            return false;
        double value = strtod(at, &end) / 100;
        if (end == at)
            return false;
        end += *end == '%';
        if ((*end != ',' && *end != '\0') || value < minimum || value > maximum ||
            !insert_value(list->value, &list->count, DECANT_SETTINGS_MAXIMUM, value))
            return false;
        at = end;
        if (*at == '\0')
            return true;
    }
}

void decant_describe_fractions(const decant_fraction_list *list, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < list->count && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%.10g%%", i ? "," : "", 100 * list->value[i]);
}

/* ---- choices ---- */

int decant_find_choice(const char *choices, const char *text, size_t length)
{
    for (int index = 0;; index++) {
        size_t this = strcspn(choices, "|");
        if (this == length && memcmp(choices, text, length) == 0)
            return index;
        if (choices[this] == '\0')
            return -1;
        choices += this + 1;
    }
}

bool decant_parse_set(const char *choices, const char *text, unsigned *set)
{
    *set = 0;
    for (const char *at = text;; at++) {
        size_t length = strcspn(at, ",");
        int index = decant_find_choice(choices, at, length);
        if (index < 0)
            return false;
        *set |= 1u << index;
        at += length;
        if (*at == '\0')
            return true;
    }
}

void decant_describe_set(const char *choices, unsigned set, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (int index = 0; used < size; index++) {
        int length = (int)strcspn(choices, "|");
        if (set & 1u << index)
            used += (size_t)snprintf(text + used, size - used, "%s%.*s", used ? "," : "", length, choices);
        if (choices[length] == '\0')
            return;
        choices += length + 1;
    }
}
