/* The partial folder that partial_folder.h describes, in POSIX and Linux calls. */
#include "io/partial_folder.h"

#include "base/memory.h"
#include "io/file_bytes.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = 4096 };

/* ---- names ---- */

static decant_status name_folder(const char *path, decant_partial_folder *folder, decant_error *err)
{
    decant_status status;
    size_t length = strlen(path), size = length + sizeof ".partial";
    DECANT_TRY(decant_memory_copy_string(path, &folder->path, err));
    while (length > 1 && folder->path[length - 1] == '/')
        folder->path[--length] = '\0';
    DECANT_TRY(decant_memory_allocate(size, "a path", (void **)&folder->partial, err));
    snprintf(folder->partial, size, "%s.partial", folder->path);
done:
    return status;
}

/* ---- what stands in a place already ---- */

/* Whether everything in the folder may go: it is empty, or has the mark and nothing but files. */
static decant_status check_replaceable(const char *path, const char *mark, decant_error *err)
{
    bool has_mark = false, is_flat = true, is_empty = true;
    DIR *directory = opendir(path);
    if (!directory)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "%s: exists and is no folder that can be read: %s", path,
                            strerror(errno));
    for (struct dirent *entry; (entry = readdir(directory));) {
        struct stat about;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        is_empty = false;
        has_mark |= strcmp(entry->d_name, mark) == 0;
        is_flat &= fstatat(dirfd(directory), entry->d_name, &about, AT_SYMLINK_NOFOLLOW) == 0 &&
                   S_ISREG(about.st_mode);
    }
    closedir(directory);
    if (is_empty || (has_mark && is_flat))
        return DECANT_OK;
    return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                        "%s: exists and is no earlier export (%s), so it is not replaced; take "
                        "another --output",
                        path, has_mark ? "it has more in it than files" : "it has no mark of one");
}

/* Removes the files of a folder that was found replaceable. */
static void clear(int descriptor)
{
    int copy = openat(descriptor, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = copy < 0 ? NULL : fdopendir(copy);
    if (!directory) {
        if (copy >= 0)
            close(copy);
        return;
    }
    for (struct dirent *entry; (entry = readdir(directory));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(copy, entry->d_name, 0);
    closedir(directory);
}

static decant_status check_place(const decant_partial_folder *folder, decant_error *err)
{
    struct stat about;
    if (lstat(folder->path, &about) != 0)
        return DECANT_OK;
    if (!S_ISDIR(about.st_mode))
        return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                            "%s: exists and is no folder, so it is not replaced; take another --output",
                            folder->path);
    if (!folder->overwrite)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "%s: exists already; --overwrite replaces it",
                            folder->path);
    return check_replaceable(folder->path, folder->mark, err);
}

/* ---- making ---- */

static decant_status make_partial(decant_partial_folder *folder, decant_error *err)
{
    decant_status status = DECANT_OK;
    if (mkdir(folder->partial, 0777) != 0 && errno != EEXIST)
        DECANT_FAIL(err, DECANT_ERROR_DISK, "%s: cannot be made: %s", folder->partial, strerror(errno));
    folder->descriptor = open(folder->partial, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder->descriptor < 0)
        DECANT_FAIL(err, DECANT_ERROR_DISK, "%s: cannot be opened: %s", folder->partial, strerror(errno));
    if (flock(folder->descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        DECANT_FAIL(err, DECANT_ERROR_USAGE, "%s: another job is writing it", folder->partial);
    DECANT_TRY(check_replaceable(folder->partial, folder->mark, err));
    clear(folder->descriptor);
    folder->is_mine = true;
done:
    return status;
}

decant_status decant_partial_folder_make(const char *path, bool overwrite, const char *mark, const char *text,
                                         decant_partial_folder *folder, decant_error *err)
{
    decant_status status;
    *folder = (decant_partial_folder){.mark = mark, .overwrite = overwrite, .descriptor = -1};
    DECANT_TRY(name_folder(path, folder, err));
    DECANT_TRY(check_place(folder, err));
    DECANT_TRY(make_partial(folder, err));
    DECANT_TRY(decant_partial_folder_write(folder, mark, text, strlen(text), err));
done:
    if (status != DECANT_OK)
        decant_partial_folder_close(folder);
    return status;
}

decant_status decant_partial_folder_write(const decant_partial_folder *folder, const char *name,
                                          const void *data, size_t size_bytes, decant_error *err)
{
    char path[PATH_BYTES];
    int descriptor = -1;
    decant_status status;
    if (snprintf(path, sizeof path, "%s/%s", folder->partial, name) >= (int)sizeof path)
        DECANT_FAIL(err, DECANT_ERROR_USAGE, "%.128s…: the path is too long", folder->partial);
    DECANT_TRY(decant_file_create(path, &descriptor, err));
    DECANT_TRY(decant_file_write(descriptor, path, data, size_bytes, err));
    status = decant_file_finish(&descriptor, path, err);
done:
    if (descriptor >= 0)
        close(descriptor);
    return status;
}

/* ---- the final name ---- */

static void flush_parent(const char *path)
{
    char copy[PATH_BYTES];
    snprintf(copy, sizeof copy, "%s", path);
    int parent = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (parent < 0)
        return;
    fsync(parent); /* some filesystems cannot, and lose nothing by it */
    close(parent);
}

decant_status decant_partial_folder_publish(decant_partial_folder *folder, decant_error *err)
{
    struct stat about;
    bool exists = lstat(folder->path, &about) == 0;
    decant_status status = DECANT_OK;
    fsync(folder->descriptor);
    if (exists)
        DECANT_TRY(check_place(folder, err)); /* it may have come while this one was written */
    if (renameat2(AT_FDCWD, folder->partial, AT_FDCWD, folder->path,
                  exists ? RENAME_EXCHANGE : RENAME_NOREPLACE) != 0)
        DECANT_FAIL(err, DECANT_ERROR_DISK, "%s: cannot be renamed to %s: %s%s", folder->partial, folder->path,
                    strerror(errno), exists ? "; remove the old folder first" : "");
    folder->is_mine = false;
    flush_parent(folder->path);
    if (exists) {
        int old = open(folder->partial, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (old >= 0) {
            clear(old);
            close(old);
        }
        rmdir(folder->partial);
    }
done:
    return status;
}

void decant_partial_folder_close(decant_partial_folder *folder)
{
    if (!folder->path)
        return;
    if (folder->is_mine) {
        clear(folder->descriptor);
        rmdir(folder->partial);
    }
    if (folder->descriptor >= 0)
        close(folder->descriptor);
    decant_memory_free(folder->partial);
    decant_memory_free(folder->path);
    *folder = (decant_partial_folder){.descriptor = -1};
}
