/* See interruption.h. What a signal handler needs to know is in global variables that change: it is given
 * nothing else, and blocking signals instead would not reach the threads that MPI and BLAS have begun. */
#include "pipeline/interruption.h"

#include "base/status.h"

#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t came;
static const char *volatile last_words;

static const int signals[] = {SIGTERM, SIGUSR1};

/* A launcher ends all ranks when the first has gone, and drops what it has not read of theirs until then. */
enum { PAUSE_MS = 500 };

/* Calls only what a handler may. */
static void leave(int number)
{
    (void)number;
    const char *words = last_words;
    ssize_t written = words ? write(STDERR_FILENO, words, strlen(words)) : 0;
    (void)written;
    poll(NULL, 0, PAUSE_MS);
    _exit(decant_status_exit(DECANT_INTERRUPTED));
}

static void note(int number)
{
    if (came)
        leave(number);
    came = 1;
}

static void set_handlers(void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaction(signals[i], &action, NULL);
}

void decant_interruption_begin(const char *said)
{
    last_words = said;
    came = 0;
    set_handlers(leave);
}

void decant_interruption_defer(void)
{
    came = 0;
    set_handlers(note);
}

void decant_interruption_act(void)
{
    set_handlers(leave);
    if (came)
        leave(0);
}

void decant_interruption_ignore(void)
{
    set_handlers(SIG_IGN);
}

bool decant_interruption_came(void)
{
    return came;
}
