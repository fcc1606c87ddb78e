/* What the job tells while it runs: progress lines for people on stderr, and JSON lines for programs in a file.
 * stdout is for results only. Rank 0 writes the lines for people; every rank's figures reach the file through
 * rank 0. Knows nothing of MPI: the owner tells it its rank. */
#ifndef DECANT_BASE_LOG_H
#define DECANT_BASE_LOG_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct decant_log {
    int rank;
    bool quiet;         /* no lines for people */
    bool terminal;      /* stderr is a terminal: a bar in place of lines */
    FILE *json;         /* rank 0's JSON-lines file, NULL when not asked for; owned */
    bool json_begun;    /* a line of this job is in it */
    double start_s;     /* monotonic clock at opening */
    double last_line_s; /* when progress was last shown */
    double stage_start_s;
    char stage[32]; /* the stage that progress speaks of */
    bool bar_shown; /* a bar stands on the current line */
} decant_log;

/* Opens the log; json_path NULL for no file, used by rank 0 alone. An earlier log stays until the first event,
 * so a job that is refused costs none. DECANT_ERROR_USAGE when anything but a log is in the file,
 * DECANT_ERROR_DISK when it cannot be made. */
decant_status decant_log_open(int rank, bool quiet, const char *json_path, decant_log *log, decant_error *err);
void decant_log_close(decant_log *log);

double decant_clock_s(void); /* monotonic, seconds */

/* One line for people, rank 0 alone: "decant: …". No newline at the end. */
void decant_log_say(decant_log *log, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A stage begins: progress counts start here. */
void decant_log_stage(decant_log *log, const char *stage);

/* `done` of `total` units of the stage, with the time left; shown at most every few seconds (4 times a second
 * on a terminal), and always when done == total. */
void decant_log_progress(decant_log *log, int64_t done, int64_t total, const char *unit);

/* One JSON line: {"time_s":…, "event":EVENT, FIELDS}. fields is printf's format for the inside of a JSON
 * object, beginning without a comma, e.g. "\"stage\":\"calibrate\",\"seconds\":%.3f". Nothing when there is no
 * file. */
void decant_log_event(decant_log *log, const char *event, const char *fields, ...)
    __attribute__((format(printf, 3, 4)));

#endif
