/* Filling the record declared in error.h. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void fill(decant_error *err, decant_status status, const char *source, int line, const char *format,
                 va_list arguments)
{
    memset(err, 0, sizeof *err);
    err->status = status;
    err->line = line;
    size_t length = strlen(source);
    const char *tail = length < sizeof err->source ? source : source + length - sizeof err->source + 1;
    snprintf(err->source, sizeof err->source, "%s", tail);
    vsnprintf(err->message, sizeof err->message, format, arguments);
}

decant_status decant_error_set(decant_error *err, decant_status status, const char *source, int line,
                               const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fill(err, status, source, line, format, arguments);
    va_end(arguments);
    return status;
}

decant_status decant_error_set_system(decant_error *err, decant_status status, int code, const char *source,
                                      int line, const char *format, ...)
{
    const char *reason = code == EMFILE   ? "; raise the limit of this process (ulimit -n)"
                         : code == ENFILE ? "; the machine has as many as it may (sysctl fs.file-max)"
                                          : NULL;
    va_list arguments;
    va_start(arguments, format);
    fill(err, reason ? DECANT_ERROR_FILES : status, source, line, format, arguments);
    va_end(arguments);
    size_t length = strlen(err->message);
    snprintf(err->message + length, sizeof err->message - length, "%s%s", reason ? "" : ": ",
             reason ? reason : strerror(code));
    return err->status;
}

decant_status decant_error_name(decant_status status, const char *name, decant_error *err)
{
    if (status == DECANT_OK)
        return status;
    char message[DECANT_ERROR_MESSAGE_BYTES];
    int length = snprintf(message, sizeof message, "%.*s: ", (int)sizeof message / 2, name);
    snprintf(message + length, sizeof message - (size_t)length, "%.*s", (int)sizeof message - length - 1,
             err->message);
    memcpy(err->message, message, sizeof message);
    return status;
}
