/* Preloaded into the ranks of a job: lets one call of one of them fail, so that tests/faults/sweep.py can see
 * what becomes of the job. decant knows nothing of it.
 *
 *   DECANT_FAULT_FOLDER   only calls about files under this folder count
 *   DECANT_FAULT_REPORT   a folder elsewhere: every rank writes calls.RANK and, when it ends, status.RANK
 *   DECANT_FAULT_RANK     these three: the NUMBER-th call, from 1, of KIND on RANK fails;
 *   DECANT_FAULT_KIND     without them none fails, and all are reported
 *   DECANT_FAULT_NUMBER
 *
 * A line of calls.RANK: kind, number, file (- for memory), and the calling functions, innermost first, as
 * addresses in the program's own file. Files are known by the name that their descriptor has, whoever calls:
 * decant, HDF5 or MPI. */
#include "inject.h"

#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *const kind_names[KINDS] = {
    "memory", "library", "missing", "create", "read",          "short",  "end",  "map",     "page", "write",
    "part",   "space",   "sync",    "rename", "device_memory", "launch", "copy", "product", "wait", "lost"};

static struct {
    bool ready;
    char folder[512], report[512];
    int rank;
    bool fails; /* this rank is the one */
    fault_kind kind;
    long number;
    int calls;      /* descriptor of calls.RANK */
    uintptr_t base; /* where the program is loaded */
    uintptr_t program_end;
    struct {
        uintptr_t begin, end;
    } libraries[8];
    int library_count;
} fault;

static atomic_long counts[KINDS];
static _Thread_local bool inside; /* what this library itself calls does not count */

/* ---- which call ---- */

static void report(fault_kind kind, long number, const char *file)
{
    void *frames[48];
    char line[2048];
    int count = backtrace(frames, 48);
    int used = snprintf(line, sizeof line, "%s %ld %s", kind_names[kind], number, file);
    for (int i = 0; i < count && used < (int)sizeof line - 32; i++) {
        uintptr_t at = (uintptr_t)frames[i];
        if (at >= fault.base && at < fault.program_end)
            used += snprintf(line + used, sizeof line - (size_t)used, " %lx", (unsigned long)(at - fault.base));
    }
    line[used++] = '\n';
    if (REAL(write)(fault.calls, line, (size_t)used) != used)
        abort();
}

bool fault_is(fault_kind kind, const char *file)
{
    if (!fault.ready || inside)
        return false;
    long number = ++counts[kind];
    bool is_it = fault.fails && kind == fault.kind && number == fault.number;
    if (is_it || fault.number == 0) {
        inside = true;
        report(kind, number, file);
        inside = false;
    }
    return is_it;
}

void fault_begin_inside(void)
{
    inside = true;
}

void fault_end_inside(void)
{
    inside = false;
}

static bool is_in_folder(const char *path)
{
    return fault.ready && strncmp(path, fault.folder, strlen(fault.folder)) == 0;
}

static bool fails_on(fault_kind kind, int descriptor)
{
    char link[64], path[1024];
    if (!fault.ready || inside)
        return false;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = '\0';
    return is_in_folder(path) && fault_is(kind, path);
}

/* ---- memory ---- */

void *aligned_alloc(size_t alignment, size_t size_bytes)
{
    static void *(*real)(size_t, size_t);
    if (!real)
        real = REAL(aligned_alloc);
    if (fault_is(MEMORY, "-")) {
        errno = ENOMEM;
        return NULL;
    }
    return real(alignment, size_bytes);
}

static bool library_fails(const void *caller)
{
    for (int i = 0; fault.ready && i < fault.library_count; i++)
        if ((uintptr_t)caller >= fault.libraries[i].begin && (uintptr_t)caller < fault.libraries[i].end &&
            fault_is(LIBRARY, "-")) {
            errno = ENOMEM;
            return true;
        }
    return false;
}

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);

void *malloc(size_t size_bytes)
{
    return library_fails(__builtin_return_address(0)) ? NULL : __libc_malloc(size_bytes);
}

void *calloc(size_t count, size_t size_bytes)
{
    return library_fails(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size_bytes);
}

void *realloc(void *memory, size_t size_bytes)
{
    return library_fails(__builtin_return_address(0)) ? NULL : __libc_realloc(memory, size_bytes);
}

/* ---- opening ---- */

static bool open_fails(const char *path, bool writes)
{
    bool is_it = is_in_folder(path) && fault_is(writes ? CREATE : MISSING, path);
    if (is_it)
        errno = writes ? ENOSPC : ENOENT;
    return is_it;
}

#define DEFINE_OPEN(name)                                                                                      \
    int name(const char *path, int flags, ...)                                                                 \
    {                                                                                                          \
        va_list arguments;                                                                                     \
        va_start(arguments, flags);                                                                            \
        mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;                                         \
        va_end(arguments);                                                                                     \
        return open_fails(path, (flags & O_ACCMODE) != O_RDONLY) ? -1 : REAL(name)(path, flags, mode);         \
    }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)

#define DEFINE_FOPEN(name)                                                                                     \
    FILE *name(const char *path, const char *mode)                                                             \
    {                                                                                                          \
        return open_fails(path, mode[0] != 'r') ? NULL : REAL(name)(path, mode);                               \
    }
DEFINE_FOPEN(fopen)
DEFINE_FOPEN(fopen64)

/* ---- reading ---- */

/* -1: fails; else how many bytes may be read. */
static ssize_t readable(int descriptor, size_t size_bytes)
{
    if (fails_on(READ, descriptor)) {
        errno = EIO;
        return -1;
    }
    if (fails_on(END, descriptor))
        return 0;
    return (ssize_t)(fails_on(SHORT, descriptor) ? size_bytes / 2 : size_bytes);
}

ssize_t read(int descriptor, void *data, size_t size_bytes)
{
    ssize_t bytes = readable(descriptor, size_bytes);
    return bytes < 0 ? -1 : REAL(read)(descriptor, data, (size_t)bytes);
}

#define DEFINE_PREAD(name)                                                                                     \
    ssize_t name(int descriptor, void *data, size_t size_bytes, off_t offset)                                  \
    {                                                                                                          \
        ssize_t bytes = readable(descriptor, size_bytes);                                                      \
        return bytes < 0 ? -1 : REAL(name)(descriptor, data, (size_t)bytes, offset);                           \
    }
DEFINE_PREAD(pread)
DEFINE_PREAD(pread64)

size_t fread(void *data, size_t size_bytes, size_t count, FILE *file)
{
    ssize_t items = readable(fileno(file), count);
    return items < 0 ? 0 : REAL(fread)(data, size_bytes, (size_t)items, file);
}

/* ---- mapping ---- */

/* Puts pages that cannot be read in place of a mapping's second half: those behind the end of an empty file. */
static void *spoil(void *data, size_t size_bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), keep = size_bytes / 2 / page * page;
    int empty = memfd_create("empty", 0);
    void *spoilt =
        REAL(mmap)((char *)data + keep, size_bytes - keep, PROT_READ, MAP_PRIVATE | MAP_FIXED, empty, 0);
    close(empty);
    return spoilt == MAP_FAILED ? spoilt : data;
}

#define DEFINE_MMAP(name)                                                                                      \
    void *name(void *place, size_t size_bytes, int protection, int flags, int descriptor, off_t offset)        \
    {                                                                                                          \
        if (descriptor >= 0 && fails_on(MAP, descriptor)) {                                                    \
            errno = ENODEV;                                                                                    \
            return MAP_FAILED;                                                                                 \
        }                                                                                                      \
        void *data = REAL(name)(place, size_bytes, protection, flags, descriptor, offset);                     \
        bool is_spoilt = descriptor >= 0 && data != MAP_FAILED && fails_on(PAGE, descriptor);                  \
        return is_spoilt ? spoil(data, size_bytes) : data;                                                     \
    }
DEFINE_MMAP(mmap)
DEFINE_MMAP(mmap64)

/* ---- writing ---- */

/* -1: the disk is full; else how many bytes fit. */
static ssize_t writable(int descriptor, size_t size_bytes)
{
    static _Thread_local int full = -1; /* half was written to it: the next write does not fit */
    if (full == descriptor || fails_on(WRITE, descriptor)) {
        full = -1;
        errno = ENOSPC;
        return -1;
    }
    if (fails_on(PART, descriptor) && size_bytes > 1) {
        full = descriptor;
        return (ssize_t)(size_bytes / 2);
    }
    return (ssize_t)size_bytes;
}

ssize_t write(int descriptor, const void *data, size_t size_bytes)
{
    ssize_t bytes = writable(descriptor, size_bytes);
    return bytes < 0 ? -1 : REAL(write)(descriptor, data, (size_t)bytes);
}

#define DEFINE_PWRITE(name)                                                                                    \
    ssize_t name(int descriptor, const void *data, size_t size_bytes, off_t offset)                            \
    {                                                                                                          \
        ssize_t bytes = writable(descriptor, size_bytes);                                                      \
        return bytes < 0 ? -1 : REAL(name)(descriptor, data, (size_t)bytes, offset);                           \
    }
DEFINE_PWRITE(pwrite)
DEFINE_PWRITE(pwrite64)

#define DEFINE_PWRITEV(name)                                                                                   \
    ssize_t name(int descriptor, const struct iovec *parts, int count, off_t offset)                           \
    {                                                                                                          \
        return writable(descriptor, 1) < 0 ? -1 : REAL(name)(descriptor, parts, count, offset);                \
    }
DEFINE_PWRITEV(pwritev)
DEFINE_PWRITEV(pwritev64)

ssize_t writev(int descriptor, const struct iovec *parts, int count)
{
    return writable(descriptor, 1) < 0 ? -1 : REAL(writev)(descriptor, parts, count);
}

int fflush(FILE *file)
{
    if (file && writable(fileno(file), 1) < 0)
        return EOF;
    return REAL(fflush)(file);
}

static bool space_fails(int descriptor)
{
    bool is_it = fails_on(SPACE, descriptor);
    if (is_it)
        errno = ENOSPC;
    return is_it;
}

int ftruncate(int descriptor, off_t size_bytes)
{
    return space_fails(descriptor) ? -1 : REAL(ftruncate)(descriptor, size_bytes);
}

int ftruncate64(int descriptor, off_t size_bytes)
{
    return space_fails(descriptor) ? -1 : REAL(ftruncate64)(descriptor, size_bytes);
}

int fallocate(int descriptor, int mode, off_t offset, off_t size_bytes)
{
    return space_fails(descriptor) ? -1 : REAL(fallocate)(descriptor, mode, offset, size_bytes);
}

int fallocate64(int descriptor, int mode, off_t offset, off_t size_bytes)
{
    return space_fails(descriptor) ? -1 : REAL(fallocate64)(descriptor, mode, offset, size_bytes);
}

#define DEFINE_SYNC(name)                                                                                      \
    int name(int descriptor)                                                                                   \
    {                                                                                                          \
        if (!fails_on(SYNC, descriptor))                                                                       \
            return REAL(name)(descriptor);                                                                     \
        errno = EIO;                                                                                           \
        return -1;                                                                                             \
    }
DEFINE_SYNC(fsync)
DEFINE_SYNC(fdatasync)

int rename(const char *from, const char *to)
{
    if (!is_in_folder(from) || !fault_is(RENAME, from))
        return REAL(rename)(from, to);
    errno = EACCES;
    return -1;
}

/* ---- the report ---- */

static void write_status(int status, void *unused)
{
    char path[600], text[16];
    (void)unused;
    inside = true;
    snprintf(path, sizeof path, "%s/status.%d", fault.report, fault.rank);
    int descriptor = REAL(open)(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    int length = snprintf(text, sizeof text, "%d\n", status);
    if (descriptor < 0 || REAL(write)(descriptor, text, (size_t)length) != length)
        abort();
    close(descriptor);
}

/* Where the program is, and the libraries whose memory is counted. */
static int note_object(struct dl_phdr_info *object, size_t size, void *unused)
{
    uintptr_t end = object->dlpi_addr;
    (void)size;
    (void)unused;
    for (int i = 0; i < object->dlpi_phnum; i++)
        if (object->dlpi_phdr[i].p_type == PT_LOAD) {
            uintptr_t own = object->dlpi_addr + object->dlpi_phdr[i].p_vaddr + object->dlpi_phdr[i].p_memsz;
            end = own > end ? own : end;
        }
    if (!fault.program_end) { /* the program comes first */
        fault.base = object->dlpi_addr;
        fault.program_end = end;
    } else if ((strstr(object->dlpi_name, "libhdf5") || strstr(object->dlpi_name, "libcjson")) &&
               fault.library_count < 8) {
        fault.libraries[fault.library_count].begin = object->dlpi_addr;
        fault.libraries[fault.library_count++].end = end;
    }
    return 0;
}

__attribute__((constructor)) static void begin(void)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *folder = getenv("DECANT_FAULT_FOLDER");
    const char *report_folder = getenv("DECANT_FAULT_REPORT"), *number = getenv("DECANT_FAULT_NUMBER");
    const char *kind = getenv("DECANT_FAULT_KIND"), *victim = getenv("DECANT_FAULT_RANK");
    void *frames[4];
    char path[600];
    if (!rank || !folder || !report_folder || fault.ready)
        return;
    fault.rank = atoi(rank);
    snprintf(fault.folder, sizeof fault.folder, "%s/", folder);
    snprintf(fault.report, sizeof fault.report, "%s", report_folder);
    if (number && kind && victim) {
        fault.number = atol(number);
        fault.fails = atoi(victim) == fault.rank;
        while (fault.kind < KINDS && strcmp(kind, kind_names[fault.kind]) != 0)
            fault.kind++;
    }
    snprintf(path, sizeof path, "%s/calls.%d", report_folder, fault.rank);
    fault.calls = REAL(open)(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fault.calls < 0 || fault.kind == KINDS)
        abort();
    dl_iterate_phdr(note_object, NULL);
    backtrace(frames, 4); /* takes memory the first time */
    on_exit(write_status, NULL);
    fault.ready = true;
}
