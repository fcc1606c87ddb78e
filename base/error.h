/* The record of a failure: a plain value that travels up the call chain and, between ranks, as bytes.
 *
 * Every function that can fail returns a decant_status and takes a decant_error * as its last parameter, never
 * NULL. The first function that knows what went wrong fills the record; nobody overwrites it on the way up. The
 * message is one line: what failed, in which file or tensor, and what the user can do. */
#ifndef DECANT_BASE_ERROR_H
#define DECANT_BASE_ERROR_H

#include "base/status.h"

#include <errno.h>

/* Two paths, as long as an option takes them, and what there is to say of them. */
enum { DECANT_ERROR_MESSAGE_BYTES = 2560 };

typedef struct decant_error {
    decant_status status;
    int rank;        /* who failed; set by decant_ranks_agree, 0 before */
    int line;        /* where in the source */
    char source[64]; /* source file, its tail when too long */
    char message[DECANT_ERROR_MESSAGE_BYTES];
} decant_error;

/* Fills *err and returns status, so that a function may end in `return decant_error_set(...)`.
 * format and what follows are printf's; a longer message is cut. */
decant_status decant_error_set(decant_error *err, decant_status status, const char *source, int line,
                               const char *format, ...) __attribute__((format(printf, 5, 6)));

/* The same for a call of the system that failed; code is its errno. Behind the message comes what that says.
 * Where it says that too many files are open, the status is DECANT_ERROR_FILES, whatever `status` is, since
 * nothing is wrong with the file then, and the message tells what helps. */
decant_status decant_error_set_system(decant_error *err, decant_status status, int code, const char *source,
                                      int line, const char *format, ...) __attribute__((format(printf, 6, 7)));

/* For callers that know the name of what failed where the callee does not: puts "NAME: " in front of the
 * message when status is not DECANT_OK, cutting its end when it grows too long. Returns status. */
decant_status decant_error_name(decant_status status, const char *name, decant_error *err);

/* Both use the caller's variable `status` and label `done`, where everything is released, success or not.
 *
 *   DECANT_TRY(call)                     leaves for `done` when the call did not return DECANT_OK
 *   DECANT_FAIL(err, code, "format", …)  fills the record and leaves for `done` */
#define DECANT_TRY(call)                                                                                       \
    do {                                                                                                       \
        status = (call);                                                                                       \
        if (status != DECANT_OK)                                                                               \
            goto done;                                                                                         \
    } while (0)

#define DECANT_FAIL(err, code, ...)                                                                            \
    do {                                                                                                       \
        status = decant_error_set((err), (code), __FILE__, __LINE__, __VA_ARGS__);                             \
        goto done;                                                                                             \
    } while (0)

/* For functions with nothing to release; the second one right behind the call of the system, for its errno. */
#define DECANT_ERROR(err, code, ...) decant_error_set((err), (code), __FILE__, __LINE__, __VA_ARGS__)
#define DECANT_SYSTEM_ERROR(err, code, ...)                                                                    \
    decant_error_set_system((err), (code), errno, __FILE__, __LINE__, __VA_ARGS__)

#endif
