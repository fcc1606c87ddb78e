/* See job_file.h. */
#include "pipeline/job_file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { LINE_BYTES = 4 * DECANT_OPTION_PATH_BYTES };

static const char blanks[] = " \t\r\n\v\f";

/* The text without blanks around it. */
static char *trim(char *text)
{
    text += strspn(text, blanks);
    size_t length = strlen(text);
    while (length > 0 && strchr(blanks, text[length - 1]))
        text[--length] = '\0';
    return text;
}

/* A comment is a line that begins with ; or #, and what follows a value behind a blank and a ;. */
static char *cut_comment(char *line)
{
    line = trim(line);
    if (line[0] == '#' || line[0] == ';')
        line[0] = '\0';
    for (char *sign = strchr(line, ';'); sign; sign = strchr(sign + 1, ';'))
        if (strchr(blanks, sign[-1])) {
            *sign = '\0';
            break;
        }
    return trim(line);
}

/* Sections are the reader's: names mean the same in all of them. */
static bool is_section(const char *line)
{
    return line[0] == '[' && line[strlen(line) - 1] == ']';
}

static decant_status take_line(char *line, const option_row *rows, int count, const bool *given,
                               decant_options *options, decant_error *err)
{
    int index = 0;
    line = cut_comment(line);
    if (!line[0] || is_section(line))
        return DECANT_OK;
    char *sign = line + strcspn(line, "=:");
    if (!*sign)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "expected `name = value`");
    *sign = '\0';
    const char *name = trim(line), *value = trim(sign + 1);
    while (index < count && strcmp(rows[index].name, name) != 0)
        index++;
    if (index == count)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "there is no option '%.200s'", name);
    return given[index] ? DECANT_OK : decant_option_set(&rows[index], value, options, err);
}

decant_status decant_job_file_read(const char *path, const option_row *rows, int count, const bool *given,
                                   decant_options *options, decant_error *err)
{
    static const char mark[] = "\xEF\xBB\xBF"; /* some editors begin UTF-8 with it */
    char line[LINE_BYTES], place[DECANT_OPTION_PATH_BYTES + 32];
    decant_status status = DECANT_OK;
    int number = 0;
    FILE *stream = fopen(path, "r");
    if (!stream)
        return DECANT_SYSTEM_ERROR(err, DECANT_ERROR_INPUT, "cannot read the job file %s", path);
    while (status == DECANT_OK && fgets(line, sizeof line, stream)) {
        const bool has_mark = ++number == 1 && strncmp(line, mark, strlen(mark)) == 0;
        if (strlen(line) == sizeof line - 1)
            status = DECANT_ERROR(err, DECANT_ERROR_INPUT, "is longer than %zu bytes", sizeof line - 2);
        else
            status = take_line(has_mark ? line + strlen(mark) : line, rows, count, given, options, err);
    }
    if (status == DECANT_OK && ferror(stream))
        status = DECANT_SYSTEM_ERROR(err, DECANT_ERROR_INPUT, "cannot read the job file %s", path);
    else {
        snprintf(place, sizeof place, "job file %s, line %d", path, number);
        status = decant_error_name(status, place, err);
    }
    fclose(stream);
    return status;
}
