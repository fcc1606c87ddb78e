/* See job_file.h. */
#include "pipeline/job_file.h"

#include <errno.h>
#include <ini.h>
#include <stdio.h>
#include <string.h>

typedef struct job_file {
    const option_row *rows;
    int count;
    const bool *given;
    decant_options *options;
    FILE *stream;
    int line; /* that was read last */
    /* The first name or value that is wrong; inih goes on behind it. */
    decant_status status;
    int wrong_line;
    decant_error *err;
} job_file;

/* inih tells its handler no line numbers. */
static char *read_line(char *text, int size, void *context)
{
    job_file *file = context;
    file->line++;
    return fgets(text, size, file->stream);
}

/* Always true, so that what inih finds wrong are lines that it cannot read. */
static int take_line(void *context, const char *section, const char *name, const char *value)
{
    (void)section;
    job_file *file = context;
    int index = 0;
    if (file->status != DECANT_OK)
        return true;
    while (index < file->count && strcmp(file->rows[index].name, name) != 0)
        index++;
    if (index == file->count)
        file->status = DECANT_ERROR(file->err, DECANT_ERROR_USAGE, "there is no option '%s'", name);
    else if (!file->given[index])
        file->status = decant_option_set(&file->rows[index], value, file->options, file->err);
    file->wrong_line = file->line;
    return true;
}

decant_status decant_job_file_read(const char *path, const option_row *rows, int count, const bool *given,
                                   decant_options *options, decant_error *err)
{
    job_file file = {.rows = rows, .count = count, .given = given, .options = options, .err = err};
    char place[DECANT_OPTION_PATH_BYTES + 32];
    file.stream = fopen(path, "r");
    if (!file.stream)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "cannot read the job file %s: %s", path, strerror(errno));
    int unread_line = ini_parse_stream(read_line, &file, take_line, &file);
    bool is_read = !ferror(file.stream);
    fclose(file.stream);
    if (unread_line < 0 || !is_read)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "cannot read the job file %s", path);
    if (unread_line > 0 && (file.status == DECANT_OK || unread_line < file.wrong_line))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "job file %s, line %d: expected `name = value`", path,
                            unread_line);
    snprintf(place, sizeof place, "job file %s, line %d", path, file.wrong_line);
    return decant_error_name(file.status, place, err);
}
