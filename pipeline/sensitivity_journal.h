/* What has been measured so far, beside the output, so that a job that was killed goes on where it was. A text
 * file: a head that says which job it belongs to, then a line a finished task. Each line carries its checksum,
 * so that one that was torn, or that two machines wrote over each other, counts as not written. */
#ifndef DECANT_PIPELINE_SENSITIVITY_JOURNAL_H
#define DECANT_PIPELINE_SENSITIVITY_JOURNAL_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct decant_journal {
    char path[1088]; /* the output's, with ".sensitivity.partial" */
    int descriptor;  /* -1: not open */
} decant_journal;

/* Names the journal of an output. Nothing is opened. */
void decant_journal_name(const char *output, decant_journal *journal);

/* Local, on one rank. Reads what an earlier job of the same fingerprint has left and writes a clean journal
 * with it. values, done   [tasks]: filled where a line says so; done must be all false before restored how many
 * were found foreign        set when there was a journal, but of another job: it is begun anew
 * DECANT_ERROR_DISK when it cannot be written. */
decant_status decant_journal_begin(decant_journal *journal, uint32_t fingerprint, int64_t tasks, double *values,
                                   bool *done, int64_t *restored, bool *foreign, decant_error *err);

/* Local, on every rank, once it was begun: opens it for append. */
decant_status decant_journal_join(decant_journal *journal, decant_error *err);

/* Local. Adds a finished task in one write. */
decant_status decant_journal_append(decant_journal *journal, int64_t task, double value, decant_error *err);

void decant_journal_close(decant_journal *journal);
void decant_journal_remove(const decant_journal *journal); /* one rank, when the job is complete */

#endif
