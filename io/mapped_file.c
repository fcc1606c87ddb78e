/* Mapping declared in mapped_file.h. Only the pages that are touched are read, so a rank pays for its own part
 * alone.
 *
 * A page that the disk or the network cannot deliver, or that a file which was cut has no more, is told by the
 * signal SIGBUS to whoever touches it, a thread of a library among others. The handler puts zeros in its place
 * and notes it, so that the work goes on to the next check. What it needs to know is the program's, as signals
 * are: a table of the mappings. */
#include "io/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- pages that cannot be read ---- */

/* More than any model has shards; files beyond that end the process where they cannot be read. */
enum { MAPPINGS = 1024 };

/* Free while begin is 0. */
static struct {
    atomic_uintptr_t begin, end;
    atomic_size_t unread; /* 1 + the first byte that could not be read, 0: none */
} mappings[MAPPINGS];

static pthread_mutex_t mappings_lock = PTHREAD_MUTEX_INITIALIZER; /* for who adds; the handler takes no lock */

static void replace_page(int number, siginfo_t *about, void *context)
{
    (void)context;
    int code = errno;
    uintptr_t page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)about->si_addr;
    void *page = (void *)(at / page_bytes * page_bytes);
    for (int i = 0; i < MAPPINGS; i++) {
        uintptr_t begin = mappings[i].begin;
        if (begin == 0 || at < begin || at >= mappings[i].end)
            continue;
        size_t none = 0;
        atomic_compare_exchange_strong(&mappings[i].unread, &none, at - begin + 1);
        if (mmap(page, page_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != page)
            break;
        errno = code;
        return;
    }
    signal(number, SIG_DFL); /* not one of these: it comes again, and ends the process */
}

static void listen(void)
{
    struct sigaction action = {.sa_sigaction = replace_page, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
}

/* The mapping's place in the table, 0 when it is full, from 1. */
static int enter(const void *data, size_t size_bytes)
{
    int place = 0;
    listen(); /* each time: libraries have handlers of their own */
    pthread_mutex_lock(&mappings_lock);
    for (int i = 0; i < MAPPINGS && place == 0; i++)
        if (mappings[i].begin == 0) {
            mappings[i].unread = 0;
            mappings[i].end = (uintptr_t)data + size_bytes;
            mappings[i].begin = (uintptr_t)data;
            place = i + 1;
        }
    pthread_mutex_unlock(&mappings_lock);
    return place;
}

bool decant_mapped_file_is_unread(const decant_mapped_file *file, size_t *offset)
{
    size_t unread = file->place > 0 ? mappings[file->place - 1].unread : 0;
    *offset = unread - 1;
    return unread > 0;
}

decant_status decant_mapped_file_check(const decant_mapped_file *file, const char *path, decant_status status,
                                       decant_error *err)
{
    size_t offset;
    if (!decant_mapped_file_is_unread(file, &offset))
        return status;
    return DECANT_ERROR(
        err, DECANT_ERROR_INPUT,
        "%s: cannot be read at byte %zu: its disk fails, or it was changed while it was in use; "
        "put it there again",
        path, offset);
}

/* ---- mapping ---- */

static decant_status map(int descriptor, const char *path, decant_mapped_file *file, decant_error *err)
{
    struct stat about;
    if (fstat(descriptor, &about) != 0)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: %s", path, strerror(errno));
    if (!S_ISREG(about.st_mode))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: is no regular file", path);
    if ((uintmax_t)about.st_size > SIZE_MAX)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: too large to map", path);
    if (about.st_size == 0)
        return DECANT_OK;
    void *data = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (data == MAP_FAILED)
        return DECANT_ERROR(err, errno == ENOMEM ? DECANT_ERROR_MEMORY : DECANT_ERROR_INPUT,
                            "%s: cannot be mapped: %s", path, strerror(errno));
    file->data = data;
    file->size_bytes = (size_t)about.st_size;
    file->place = enter(data, file->size_bytes);
    return DECANT_OK;
}

decant_status decant_mapped_file_open(const char *path, decant_mapped_file *file, decant_error *err)
{
    *file = (decant_mapped_file){0};
    /* O_NONBLOCK: a pipe under this name is refused, not waited for. */
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0)
        return DECANT_SYSTEM_ERROR(err, DECANT_ERROR_INPUT, "%s", path);
    decant_status status = map(descriptor, path, file, err);
    close(descriptor);
    return status;
}

void decant_mapped_file_close(decant_mapped_file *file)
{
    if (file->place > 0)
        mappings[file->place - 1].begin = 0;
    if (file->data)
        munmap((void *)(uintptr_t)file->data, file->size_bytes);
    *file = (decant_mapped_file){0};
}

/* Advice is taken by whole pages; it is only advice, so a failure of it is none. */
void decant_mapped_file_expect(const void *data, size_t size_bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)data / page * page;
    madvise((void *)begin, (uintptr_t)data + size_bytes - begin, MADV_WILLNEED);
}

/* The pages that lie in it as a whole: the others hold neighbours too. */
void decant_mapped_file_dismiss(const void *data, size_t size_bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = ((uintptr_t)data + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)data + size_bytes) / page * page;
    if (begin < end)
        madvise((void *)begin, end - begin, MADV_DONTNEED);
}
