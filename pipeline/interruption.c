/* See interruption.h. The flag is the program's one global variable that changes: a signal handler has no other
 * way to say anything, and blocking signals instead would not reach the threads that MPI and BLAS have begun.
 */
#include "pipeline/interruption.h"

#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t came;

static const int signals[] = {SIGTERM, SIGUSR1};

static void note(int number)
{
    (void)number;
    came = 1;
}

static void set_handlers(void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaction(signals[i], &action, NULL);
}

void decant_interruption_listen(void)
{
    came = 0;
    set_handlers(note, (int)(SA_RESETHAND | SA_RESTART));
}

void decant_interruption_ignore(void)
{
    set_handlers(SIG_DFL, 0);
}

bool decant_interruption_came(void)
{
    return came;
}
