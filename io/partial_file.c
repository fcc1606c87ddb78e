/* The partial file that partial_file.h describes, in POSIX and Linux calls. */
#include "io/partial_file.h"

#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

decant_status decant_partial_file_check_place(const char *path, bool overwrite, decant_error *err)
{
    struct stat about;
    if (lstat(path, &about) != 0)
        return DECANT_OK;
    if (!S_ISREG(about.st_mode) && !S_ISLNK(about.st_mode))
        return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                            "%s: exists and is no file, so it is not replaced; take another --output", path);
    if (!overwrite)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "%s: exists already; --overwrite replaces it", path);
    return DECANT_OK;
}

decant_status decant_partial_file_name(const char *path, bool overwrite, decant_partial_file *file,
                                       decant_error *err)
{
    decant_status status = DECANT_OK;
    void *partial = NULL;
    size_t size = strlen(path) + sizeof ".partial";
    *file = (decant_partial_file){.overwrite = overwrite, .descriptor = -1};
    DECANT_TRY(decant_memory_copy_string(path, &file->path, err));
    DECANT_TRY(decant_memory_allocate(size, "a path", &partial, err));
    file->partial = partial;
    snprintf(file->partial, size, "%s.partial", path);
done:
    return status;
}

/* Only one process writes under a name; a lock is let go when its process ends, however it ends. */
static decant_status lock(decant_partial_file *file, decant_error *err)
{
    if (flock(file->descriptor, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)
        return DECANT_OK; /* some filesystems have no locks */
    return DECANT_ERROR(err, DECANT_ERROR_USAGE, "%s: another job is writing it", file->partial);
}

decant_status decant_partial_file_make(decant_partial_file *file, uint64_t *inode, decant_error *err)
{
    decant_status status = DECANT_OK;
    struct stat about;
    struct statvfs disk;
    DECANT_TRY(decant_partial_file_check_place(file->path, file->overwrite, err));
    /* An older file is emptied rather than replaced, so that no machine remembers another one under the name.
     */
    file->descriptor = open(file->partial, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
    if (file->descriptor < 0)
        DECANT_TRY(DECANT_SYSTEM_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be made", file->partial));
    if (fstat(file->descriptor, &about) != 0 || !S_ISREG(about.st_mode))
        DECANT_FAIL(err, DECANT_ERROR_DISK, "%s: is no regular file", file->partial);
    DECANT_TRY(lock(file, err));
    if (ftruncate(file->descriptor, 0) != 0)
        DECANT_FAIL(err, DECANT_ERROR_DISK, "%s: cannot be emptied: %s", file->partial, strerror(errno));
    file->is_mine = true;
    file->free_bytes = UINT64_MAX;
    if (fstatvfs(file->descriptor, &disk) == 0)
        file->free_bytes = (uint64_t)disk.f_bavail * (uint64_t)disk.f_frsize;
    *inode = (uint64_t)about.st_ino;
done:
    return status;
}

decant_status decant_partial_file_join(decant_partial_file *file, uint64_t inode, decant_error *err)
{
    struct stat about;
    file->descriptor = open(file->partial, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (file->descriptor < 0 && errno != ENOENT)
        return DECANT_SYSTEM_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be opened", file->partial);
    if (file->descriptor >= 0 && fstat(file->descriptor, &about) == 0 && (uint64_t)about.st_ino == inode)
        return DECANT_OK;
    return DECANT_ERROR(
        err, DECANT_ERROR_DISK,
        "%s: this rank does not see the file that rank 0 made; the output must be on a filesystem "
        "that all machines share",
        file->partial);
}

/* 0 when the bytes are taken, else an errno: of a disk that is too small, or of a filesystem that cannot. */
static int take_space(const decant_partial_file *file, uint64_t begin, uint64_t end)
{
    struct rlimit limit;
    if (end > INT64_MAX || (getrlimit(RLIMIT_FSIZE, &limit) == 0 && end > limit.rlim_cur))
        return EFBIG; /* met here, because the limit's signal would end the process later */
    int code = EINTR;
    while (code == EINTR)
        code = fallocate(file->descriptor, FALLOC_FL_KEEP_SIZE, (off_t)begin, (off_t)(end - begin)) ? errno : 0;
    return code;
}

decant_status decant_partial_file_reserve(decant_partial_file *file, uint64_t begin, uint64_t end,
                                          decant_error *err)
{
    int code = take_space(file, begin, end);
    bool is_full = code == ENOSPC || code == EDQUOT || code == EFBIG;
    if (!is_full && (code == 0 || end <= file->free_bytes))
        return DECANT_OK;
    return DECANT_ERROR(err, DECANT_ERROR_DISK, "%s: %.3f GB do not fit on the disk: %s", file->partial,
                        (double)end / 1e9, strerror(is_full ? code : ENOSPC));
}

void decant_partial_file_begin_flush(const decant_partial_file *file)
{
    sync_file_range(file->descriptor, 0, 0, SYNC_FILE_RANGE_WRITE); /* a hint: flush meets any failure */
}

decant_status decant_partial_file_flush(decant_partial_file *file, decant_error *err)
{
    if (fsync(file->descriptor) != 0)
        return DECANT_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be written to the disk: %s", file->partial,
                            strerror(errno));
    return DECANT_OK;
}

/* PARTIAL becomes PATH; without overwrite only when there is no PATH. */
static int rename_partial(const decant_partial_file *file)
{
    struct stat about;
    if (file->overwrite)
        return rename(file->partial, file->path);
    int result = renameat2(AT_FDCWD, file->partial, AT_FDCWD, file->path, RENAME_NOREPLACE);
    if (result == 0 || (errno != EINVAL && errno != ENOSYS))
        return result;
    /* This filesystem cannot rule it out in one step. */
    if (lstat(file->path, &about) == 0) {
        errno = EEXIST;
        return -1;
    }
    return rename(file->partial, file->path);
}

decant_status decant_partial_file_publish(decant_partial_file *file, decant_error *err)
{
    decant_status status = DECANT_OK;
    char *copy = NULL;
    int directory = -1;
    DECANT_TRY(decant_memory_copy_string(file->path, &copy, err));
    DECANT_TRY(decant_partial_file_flush(file, err));
    if (rename_partial(file) != 0)
        DECANT_FAIL(err, DECANT_ERROR_DISK, "%s: cannot be renamed to %s: %s", file->partial, file->path,
                    strerror(errno));
    file->is_mine = false;
    directory = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory >= 0)
        fsync(directory); /* some filesystems cannot, and lose nothing by it */
done:
    if (directory >= 0)
        close(directory);
    decant_memory_free(copy);
    return status;
}

void decant_partial_file_close(decant_partial_file *file)
{
    if (file->is_mine)
        unlink(file->partial);
    if (file->descriptor >= 0)
        close(file->descriptor);
    decant_memory_free(file->partial);
    decant_memory_free(file->path);
    *file = (decant_partial_file){.descriptor = -1};
}
