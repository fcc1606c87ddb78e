/* OUTPUT.work, a directory beside the output, where a job keeps what it would otherwise have to compute again:
 *
 *   lock             held (flock) by the job's rank 0; says which process on which machine that is
 *   head             which job this belongs to, a line `name = value` each, and a checksum
 *   calibration.h5   the Fisher sums after some micro-batches (pipeline/calibration_checkpoint.h)
 *   statistics.h5    the finished Fisher sums, in place of calibration.h5 (stages/statistics.h)
 *   boundary.K.h5, gradient.K.h5, layer.K.h5   of a streamed job (pipeline/streamed_checkpoint.h)
 *
 * All data files are containers, written as NAME.partial and renamed, so a kill never loses the one before.
 * This file knows names, the lock and the head; everything is local, and rank 0's to do. */
#ifndef DECANT_PIPELINE_WORK_DIRECTORY_H
#define DECANT_PIPELINE_WORK_DIRECTORY_H

#include "base/error.h"

#include <stdbool.h>

enum { DECANT_WORK_PATH_BYTES = 1088, DECANT_WORK_HEAD_BYTES = 4096 };

typedef struct decant_work_directory {
    char path[DECANT_WORK_PATH_BYTES];        /* empty: there is none */
    char calibration[DECANT_WORK_PATH_BYTES]; /* the data files' paths */
    char statistics[DECANT_WORK_PATH_BYTES];
    bool has_calibration, has_statistics;
    int boundaries; /* boundary.0.h5 … boundary.(boundaries − 1).h5 are there */
    int left;       /* the smallest K of gradient.K.h5; −1: there is none */
    bool complete;  /* nothing here is needed any more, as when the output has its name; set by the job */
    int lock;       /* rank 0's descriptor; -1 elsewhere */
    double saved_s; /* decant_clock_s() when the work began or was last saved */
} decant_work_directory;

/* The names for an output. Nothing is opened. */
void decant_work_directory_name(const char *output, decant_work_directory *work);

/* The files of a streamed job, of which there is one a layer. */
typedef enum decant_work_kind {
    DECANT_WORK_BOUNDARY,
    DECANT_WORK_GRADIENT,
    DECANT_WORK_LAYER
} decant_work_kind;
void decant_work_directory_name_file(const decant_work_directory *work, decant_work_kind kind, int number,
                                     char path[DECANT_WORK_PATH_BYTES]);
/* Removes files [first, end) of a kind, where they are. */
void decant_work_directory_drop_files(const decant_work_directory *work, decant_work_kind kind, int first,
                                      int end);

/* Makes the directory and takes its lock. DECANT_ERROR_USAGE when another process holds it.
 *
 * Data that is there belongs to this job when the head says the same; else, and when the head is damaged,
 * DECANT_ERROR_USAGE says what differs, and nothing is changed.
 *   head       lines `name = value`, each ended by a newline
 *   overwrite  begin anew, whatever is there */
decant_status decant_work_directory_open(decant_work_directory *work, const char *head, bool overwrite,
                                         decant_error *err);

/* What was saved of calibration is of no use any more. */
void decant_work_directory_drop_calibration(decant_work_directory *work);

/* Lets go of the lock, and removes the directory when the job is complete or when nothing in it was saved.
 * Takes one that was never opened. */
void decant_work_directory_close(decant_work_directory *work);

#endif
