/* Making and checking the seal that container_seal.h describes. */
#include "io/container_seal.h"

#include "base/memory.h"
#include "io/checksum.h"
#include "io/file_bytes.h"
#include "io/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "containers are written in the machine's byte order");

enum { MAGIC_BYTES = 16, READ_BYTES = 1 << 20 };
static const char magic[MAGIC_BYTES + 1] = "decant sealed 1\n";
static const unsigned char hdf5_signature[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};

/* What follows the pairs. */
typedef struct seal_footer {
    uint64_t count, bytes, checksum;
    char magic[MAGIC_BYTES];
} seal_footer;
_Static_assert(sizeof(seal_footer) == 40, "the footer has no gaps");

/* ---- making ---- */

static int compare_stretches(const void *left, const void *right)
{
    const decant_stretch *a = left, *b = right;
    return (a->begin > b->begin) - (a->begin < b->begin);
}

int64_t decant_stretches_invert(decant_stretch *data, int64_t data_count, uint64_t bytes, decant_stretch *rest)
{
    int64_t count = 0;
    uint64_t at = 0;
    if (data_count)
        qsort(data, (size_t)data_count, sizeof *data, compare_stretches);
    for (int64_t i = 0; i < data_count; i++) {
        if (data[i].begin > at)
            rest[count++] = (decant_stretch){at, data[i].begin};
        at = data[i].end;
    }
    if (at < bytes)
        rest[count++] = (decant_stretch){at, bytes};
    return count;
}

static decant_status read_checksum(int descriptor, const char *path, decant_stretch stretch,
                                   unsigned char *buffer, uint32_t *checksum, decant_error *err)
{
    while (stretch.begin < stretch.end) {
        uint64_t left = stretch.end - stretch.begin;
        ssize_t got =
            pread(descriptor, buffer, left < READ_BYTES ? (size_t)left : READ_BYTES, (off_t)stretch.begin);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return DECANT_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be read back: %s", path,
                                got < 0 ? strerror(errno) : "it is too short");
        *checksum = decant_checksum(*checksum, buffer, (size_t)got);
        stretch.begin += (uint64_t)got;
    }
    return DECANT_OK;
}

/* Appends the seal to the open file. */
static decant_status append(int descriptor, const char *path, decant_stretch *data, int64_t data_count,
                            decant_error *err)
{
    decant_status status = DECANT_OK;
    void *memory = NULL, *buffer = NULL;
    struct stat about;
    seal_footer footer = {0};
    uint32_t checksum = 0;
    if (fstat(descriptor, &about) != 0)
        DECANT_FAIL(err, DECANT_ERROR_DISK, "%s: %s", path, strerror(errno));
    DECANT_TRY(
        decant_memory_allocate(((size_t)data_count + 1) * sizeof(decant_stretch), "the seal", &memory, err));
    DECANT_TRY(decant_memory_allocate(READ_BYTES, "the seal", &buffer, err));
    decant_stretch *rest = memory;
    footer.bytes = (uint64_t)about.st_size;
    footer.count = (uint64_t)decant_stretches_invert(data, data_count, footer.bytes, rest);
    for (uint64_t i = 0; i < footer.count; i++)
        DECANT_TRY(read_checksum(descriptor, path, rest[i], buffer, &checksum, err));
    size_t table_bytes = (size_t)footer.count * sizeof *rest;
    checksum = decant_checksum(checksum, rest, table_bytes);
    footer.checksum = decant_checksum(checksum, &footer, offsetof(seal_footer, checksum));
    memcpy(footer.magic, magic, MAGIC_BYTES);
    if (lseek(descriptor, (off_t)footer.bytes, SEEK_SET) < 0)
        DECANT_FAIL(err, DECANT_ERROR_DISK, "%s: cannot be sealed: %s", path, strerror(errno));
    DECANT_TRY(decant_file_write(descriptor, path, rest, table_bytes, err));
    DECANT_TRY(decant_file_write(descriptor, path, &footer, sizeof footer, err));
done:
    decant_memory_free(buffer);
    decant_memory_free(memory);
    return status;
}

decant_status decant_container_seal(const char *path, decant_stretch *data, int64_t data_count,
                                    decant_error *err)
{
    int descriptor = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (descriptor < 0)
        return DECANT_SYSTEM_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be opened again", path);
    decant_status status = append(descriptor, path, data, data_count, err);
    if (close(descriptor) != 0 && status == DECANT_OK)
        status = DECANT_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be sealed: %s", path, strerror(errno));
    return status;
}

/* ---- checking ---- */

/* The checksum of the stretches; false when they are not ascending and within the file. */
static bool sum_stretches(const decant_mapped_file *file, const seal_footer *footer, uint32_t *checksum)
{
    const unsigned char *table = file->data + footer->bytes;
    uint64_t at = 0;
    *checksum = 0;
    for (uint64_t i = 0; i < footer->count; i++) {
        decant_stretch stretch;
        memcpy(&stretch, table + i * sizeof stretch, sizeof stretch);
        if (stretch.begin < at || stretch.end <= stretch.begin || stretch.end > footer->bytes)
            return false;
        *checksum =
            decant_checksum(*checksum, file->data + stretch.begin, (size_t)(stretch.end - stretch.begin));
        at = stretch.end;
    }
    *checksum = decant_checksum(*checksum, table, (size_t)(footer->count * sizeof(decant_stretch)));
    *checksum = decant_checksum(*checksum, footer, offsetof(seal_footer, checksum));
    return true;
}

static decant_status check(const decant_mapped_file *file, const char *path, decant_error *err)
{
    seal_footer footer;
    uint32_t checksum = 0;
    if (file->size_bytes < sizeof hdf5_signature ||
        memcmp(file->data, hdf5_signature, sizeof hdf5_signature) != 0)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: is no HDF5 file", path);
    if (file->size_bytes >= sizeof footer)
        memcpy(&footer, file->data + file->size_bytes - sizeof footer, sizeof footer);
    if (file->size_bytes < sizeof footer || memcmp(footer.magic, magic, MAGIC_BYTES) != 0)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: has no seal at its end: it was cut short, or decant did not write it", path);
    uint64_t before = file->size_bytes - sizeof footer;
    if (footer.bytes > before || (before - footer.bytes) % sizeof(decant_stretch) != 0 ||
        (before - footer.bytes) / sizeof(decant_stretch) != footer.count ||
        !sum_stretches(file, &footer, &checksum) || checksum != footer.checksum)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: is damaged or was changed: its structure is not what decant sealed", path);
    return DECANT_OK;
}

decant_status decant_container_check_seal(const char *path, decant_error *err)
{
    decant_mapped_file file;
    decant_status status = decant_mapped_file_open(path, &file, err);
    if (status == DECANT_OK)
        status = decant_mapped_file_check(&file, path, check(&file, path, err), err);
    decant_mapped_file_close(&file);
    return status;
}
