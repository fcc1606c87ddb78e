/* See job_file.h. */
#include "pipeline/job_file.h"

#include <ini.h>
#include <string.h>

typedef struct job_file {
    const option_row *rows;
    int count;
    const bool *given;
    decant_options *options;
    decant_status status;
    decant_error *err;
} job_file;

static int take_line(void *context, const char *section, const char *name, const char *value)
{
    (void)section;
    job_file *file = context;
    int index = 0;
    while (index < file->count && strcmp(file->rows[index].name, name) != 0)
        index++;
    if (index == file->count)
        file->status = DECANT_ERROR(file->err, DECANT_ERROR_USAGE, "job file: there is no option '%s'", name);
    else if (!file->given[index])
        file->status = decant_option_set(&file->rows[index], value, file->options, file->err);
    return file->status == DECANT_OK;
}

decant_status decant_job_file_read(const char *path, const option_row *rows, int count, const bool *given,
                                   decant_options *options, decant_error *err)
{
    job_file file = {rows, count, given, options, DECANT_OK, err};
    int line = ini_parse(path, take_line, &file);
    if (file.status != DECANT_OK)
        return file.status;
    if (line < 0)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "cannot read the job file %s", path);
    if (line > 0)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "job file %s, line %d: expected `name = value`", path,
                            line);
    return DECANT_OK;
}
