/* See scratch_file.h. */
#include "io/scratch_file.h"

#include "io/file_bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

decant_status decant_scratch_file_open(const char *folder, decant_scratch_file *file, decant_error *err)
{
    char path[4096];
    *file = (decant_scratch_file){0};
    if (snprintf(path, sizeof path, "%s/decant-XXXXXX", folder) >= (int)sizeof path)
        return DECANT_ERROR(err, DECANT_ERROR_DISK, "%s: the path is too long", folder);
    file->descriptor = mkostemp(path, O_CLOEXEC);
    if (file->descriptor < 0)
        return DECANT_SYSTEM_ERROR(err, DECANT_ERROR_DISK, "%s: no scratch file can be made there", folder);
    file->folder = folder;
    unlink(path);
    return DECANT_OK;
}

void decant_scratch_file_close(decant_scratch_file *file)
{
    if (file->folder)
        close(file->descriptor);
    *file = (decant_scratch_file){0};
}

decant_status decant_scratch_file_write(const decant_scratch_file *file, uint64_t offset, const void *data,
                                        size_t size_bytes, decant_error *err)
{
    decant_status status =
        decant_file_write_at(file->descriptor, "its scratch file", offset, data, size_bytes, err);
    return decant_error_name(status, file->folder, err);
}

decant_status decant_scratch_file_read(const decant_scratch_file *file, uint64_t offset, void *data,
                                       size_t size_bytes, decant_error *err)
{
    for (size_t done = 0; done < size_bytes;) {
        ssize_t count = pread(file->descriptor, (char *)data + done, size_bytes - done, (off_t)(offset + done));
        if (count == 0 || (count < 0 && errno != EINTR))
            return DECANT_ERROR(err, DECANT_ERROR_DISK, "%s: the scratch file cannot be read: %s", file->folder,
                                count == 0 ? "it is too short" : strerror(errno));
        done += count > 0 ? (size_t)count : 0;
    }
    return DECANT_OK;
}

void decant_scratch_file_expect(const decant_scratch_file *file, uint64_t offset, size_t size_bytes)
{
    posix_fadvise(file->descriptor, (off_t)offset, (off_t)size_bytes, POSIX_FADV_WILLNEED);
}

void decant_scratch_file_discard(const decant_scratch_file *file, uint64_t offset, size_t size_bytes)
{
    fallocate(file->descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size_bytes);
}
