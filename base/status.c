/* The table behind status.h. */
#include "base/status.h"

#include <stddef.h>

static const struct {
    const char *sentence;
    int exit_status;
} status_table[] = {
#define DECANT_STATUS_ROW(code, exit_status, sentence) [code] = {sentence, exit_status},
    DECANT_STATUS_LIST(DECANT_STATUS_ROW)
#undef DECANT_STATUS_ROW
};

static int is_listed(decant_status status)
{
    return (size_t)status < sizeof status_table / sizeof *status_table;
}

const char *decant_status_sentence(decant_status status)
{
    return is_listed(status) ? status_table[status].sentence : "unknown status";
}

int decant_status_exit(decant_status status)
{
    return is_listed(status) ? status_table[status].exit_status : decant_status_exit(DECANT_ERROR_BUG);
}
