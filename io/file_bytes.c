/* See file_bytes.h. */
#include "io/file_bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum { PIECE_BYTES = 1 << 30 }; /* Linux writes no more than 2 GiB at once */

decant_status decant_file_create(const char *path, int *descriptor, decant_error *err)
{
    *descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (*descriptor < 0)
        return DECANT_SYSTEM_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be made", path);
    return DECANT_OK;
}

/* offset −1: where the descriptor stands. */
static decant_status write_all(int descriptor, const char *path, off_t offset, const char *data,
                               size_t size_bytes, decant_error *err)
{
    for (size_t done = 0; done < size_bytes;) {
        size_t left = size_bytes - done, piece = left < PIECE_BYTES ? left : PIECE_BYTES;
        ssize_t written = offset < 0 ? write(descriptor, data + done, piece)
                                     : pwrite(descriptor, data + done, piece, offset + (off_t)done);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return DECANT_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be written: %s", path,
                                strerror(written < 0 ? errno : ENOSPC));
        done += (size_t)written;
    }
    return DECANT_OK;
}

decant_status decant_file_write(int descriptor, const char *path, const void *data, size_t size_bytes,
                                decant_error *err)
{
    return write_all(descriptor, path, -1, data, size_bytes, err);
}

decant_status decant_file_write_at(int descriptor, const char *path, uint64_t offset, const void *data,
                                   size_t size_bytes, decant_error *err)
{
    return write_all(descriptor, path, (off_t)offset, data, size_bytes, err);
}

decant_status decant_file_finish(int *descriptor, const char *path, decant_error *err)
{
    int flushed = fsync(*descriptor), code = errno, closed = close(*descriptor);
    *descriptor = -1;
    if (flushed != 0 || closed != 0)
        return DECANT_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be written to the disk: %s", path,
                            strerror(flushed != 0 ? code : errno));
    return DECANT_OK;
}
