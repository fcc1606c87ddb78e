/* See sensitivity_journal.h. Lines are "TASK VALUE CHECKSUM", the value in hexadecimal so that no bit is lost.
 */
#include "pipeline/sensitivity_journal.h"

#include "io/checksum.h"
#include "io/file_bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE_BYTES = 96 };

void decant_journal_name(const char *output, decant_journal *journal)
{
    snprintf(journal->path, sizeof journal->path, "%s.sensitivity.partial", output);
    journal->descriptor = -1;
}

static decant_status fail_to_write(const char *path, decant_error *err)
{
    return DECANT_SYSTEM_ERROR(err, DECANT_ERROR_DISK, "%s: finished measurements cannot be noted there", path);
}

/* ---- lines ---- */

static void write_head(char line[LINE_BYTES], uint32_t fingerprint, int64_t tasks)
{
    snprintf(line, LINE_BYTES, "decant sensitivity 1 %08x %lld\n", fingerprint, (long long)tasks);
}

static void write_line(char line[LINE_BYTES], int64_t task, double value)
{
    int length = snprintf(line, LINE_BYTES, "%lld %a", (long long)task, value);
    snprintf(line + length, (size_t)(LINE_BYTES - length), " %08x\n", decant_checksum(0, line, (size_t)length));
}

/* Is the line whole, and of a task that there is? It is when it reads as it would be written. */
static bool read_line(const char *line, int64_t tasks, int64_t *task, double *value)
{
    char again[LINE_BYTES], *end;
    *task = strtoll(line, &end, 10);
    if (end == line || *end != ' ' || *task < 0 || *task >= tasks)
        return false;
    *value = strtod(end, &end);
    write_line(again, *task, *value);
    return strcmp(line, again) == 0;
}

/* ---- reading ---- */

static void restore(FILE *file, uint32_t fingerprint, int64_t tasks, double *values, bool *done,
                    int64_t *restored, bool *foreign)
{
    char line[LINE_BYTES], head[LINE_BYTES];
    write_head(head, fingerprint, tasks);
    *foreign = !fgets(line, sizeof line, file) || strcmp(line, head) != 0;
    while (!*foreign && fgets(line, sizeof line, file)) {
        int64_t task;
        double value;
        if (!read_line(line, tasks, &task, &value))
            continue;
        *restored += !done[task];
        done[task] = true;
        values[task] = value;
    }
}

/* ---- writing ---- */

static bool write_clean(FILE *file, uint32_t fingerprint, int64_t tasks, const double *values, const bool *done)
{
    char line[LINE_BYTES];
    write_head(line, fingerprint, tasks);
    bool good = fputs(line, file) >= 0;
    for (int64_t i = 0; good && i < tasks; i++) {
        if (!done[i])
            continue;
        write_line(line, i, values[i]);
        good = fputs(line, file) >= 0;
    }
    return good && fflush(file) == 0;
}

decant_status decant_journal_begin(decant_journal *journal, uint32_t fingerprint, int64_t tasks, double *values,
                                   bool *done, int64_t *restored, bool *foreign, decant_error *err)
{
    char fresh[sizeof journal->path + 8];
    *restored = 0;
    *foreign = false;
    FILE *file = fopen(journal->path, "r");
    if (file) {
        restore(file, fingerprint, tasks, values, done, restored, foreign);
        fclose(file);
    }
    snprintf(fresh, sizeof fresh, "%s.new", journal->path);
    file = fopen(fresh, "w");
    if (!file)
        return fail_to_write(fresh, err);
    bool good = write_clean(file, fingerprint, tasks, values, done);
    good = fclose(file) == 0 && good;
    if (good && rename(fresh, journal->path) == 0)
        return DECANT_OK;
    decant_status status = fail_to_write(journal->path, err);
    unlink(fresh);
    return status;
}

decant_status decant_journal_join(decant_journal *journal, decant_error *err)
{
    journal->descriptor = open(journal->path, O_WRONLY | O_APPEND | O_CLOEXEC);
    return journal->descriptor >= 0 ? DECANT_OK : fail_to_write(journal->path, err);
}

decant_status decant_journal_append(decant_journal *journal, int64_t task, double value, decant_error *err)
{
    char line[LINE_BYTES];
    write_line(line, task, value);
    return decant_file_write(journal->descriptor, journal->path, line, strlen(line), err);
}

void decant_journal_close(decant_journal *journal)
{
    if (journal->descriptor >= 0)
        close(journal->descriptor);
    journal->descriptor = -1;
}

void decant_journal_remove(const decant_journal *journal)
{
    unlink(journal->path);
}
