/* Mapping declared in mapped_file.h. Only the pages that are touched are read, so a rank pays for its own part
 * alone. */
#include "io/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

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
    return DECANT_OK;
}

decant_status decant_mapped_file_open(const char *path, decant_mapped_file *file, decant_error *err)
{
    *file = (decant_mapped_file){0};
    /* O_NONBLOCK: a pipe under this name is refused, not waited for. */
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: %s", path, strerror(errno));
    decant_status status = map(descriptor, path, file, err);
    close(descriptor);
    return status;
}

void decant_mapped_file_close(decant_mapped_file *file)
{
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
