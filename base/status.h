/* What a call can come to: a short list of codes, each with its sentence and the exit status of the program.
 * Knows nothing of who failed or why; that is error.h. */
#ifndef DECANT_BASE_STATUS_H
#define DECANT_BASE_STATUS_H

/* code, exit status, sentence. Larger codes are worse: when ranks disagree, the largest one wins. */
#define DECANT_STATUS_LIST(X)                                                                                  \
    X(DECANT_OK, 0, "done")                                                                                    \
    X(DECANT_INTERRUPTED, 75, "interrupted, can be resumed")                                                   \
    X(DECANT_ERROR_USAGE, 2, "wrong usage")                                                                    \
    X(DECANT_ERROR_INPUT, 3, "bad input")                                                                      \
    X(DECANT_ERROR_MEMORY, 4, "not enough memory")                                                             \
    X(DECANT_ERROR_DISK, 4, "cannot write to disk")                                                            \
    X(DECANT_ERROR_FILES, 4, "too many open files")                                                            \
    X(DECANT_ERROR_DEVICE, 5, "device failure")                                                                \
    X(DECANT_ERROR_MPI, 5, "MPI failure")                                                                      \
    X(DECANT_ERROR_BUG, 70, "internal error")

typedef enum decant_status {
#define DECANT_STATUS_CODE(code, exit_status, sentence) code,
    DECANT_STATUS_LIST(DECANT_STATUS_CODE)
#undef DECANT_STATUS_CODE
} decant_status;

/* The sentence of a code; a constant string, "unknown status" for a number outside the list. */
const char *decant_status_sentence(decant_status status);

/* The exit status of the program for a code, as documented in decant(1). */
int decant_status_exit(decant_status status);

#endif
