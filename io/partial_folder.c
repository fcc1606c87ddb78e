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

/* Whether everything in the open folder may go: it is empty, or has the mark and nothing but files. */
static decant_status check_replaceable(DIR *directory, const char *path, const char *mark, decant_error *err)
{
    bool has_mark = false, is_flat = true, is_empty = true;
    rewinddir(directory);
    for (struct dirent *entry; (entry = readdir(directory));) {
        struct stat about;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        is_empty = false;
        has_mark |= strcmp(entry->d_name, mark) == 0;
        is_flat &= fstatat(dirfd(directory), entry->d_name, &about, AT_SYMLINK_NOFOLLOW) == 0 &&
                   S_ISREG(about.st_mode);
    }
    if (is_empty || (has_mark && is_flat))
        return DECANT_OK;
    return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                        "%s: exists and is no earlier export (%s), so it is not replaced; take "
                        "another --output",
                        path, has_mark ? "it has more in it than files" : "it has no mark of one");
}

/* Removes the files of an open folder that was found replaceable. */
static void clear(DIR *directory)
{
    rewinddir(directory);
    for (struct dirent *entry; (entry = readdir(directory));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(dirfd(directory), entry->d_name, 0);
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
    DIR *directory = opendir(folder->path);
    if (!directory)
        return DECANT_SYSTEM_ERROR(err, DECANT_ERROR_USAGE, "%s: exists and cannot be read", folder->path);
    decant_status status = check_replaceable(directory, folder->path, folder->mark, err);
    closedir(directory);
    return status;
}

/* ---- making ---- */

/* Opens the partial folder; a link under its name is somebody's own. */
static decant_status open_partial(decant_partial_folder *folder, decant_error *err)
{
    int descriptor = open(folder->partial, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    folder->directory = descriptor < 0 ? NULL : fdopendir(descriptor);
    if (folder->directory)
        return DECANT_OK;
    decant_status status = DECANT_SYSTEM_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be opened", folder->partial);
    if (descriptor >= 0)
        close(descriptor);
    return status;
}

static decant_status make_partial(decant_partial_folder *folder, decant_error *err)
{
    const bool is_new = mkdir(folder->partial, 0777) == 0;
    if (!is_new && errno != EEXIST)
        return DECANT_SYSTEM_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be made", folder->partial);
    decant_status status = open_partial(folder, err);
    if (status != DECANT_OK) {
        if (is_new)
            rmdir(folder->partial);
        return status;
    }
    if (flock(dirfd(folder->directory), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "%s: another job is writing it", folder->partial);
    status = check_replaceable(folder->directory, folder->partial, folder->mark, err);
    if (status != DECANT_OK)
        return status;
    clear(folder->directory);
    folder->is_mine = true;
    return DECANT_OK;
}

decant_status decant_partial_folder_make(const char *path, bool overwrite, const char *mark, const char *text,
                                         decant_partial_folder *folder, decant_error *err)
{
    decant_status status;
    *folder = (decant_partial_folder){.mark = mark, .overwrite = overwrite};
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
    fsync(dirfd(folder->directory));
    if (exists)
        DECANT_TRY(check_place(folder, err)); /* it may have come while this one was written */
    if (renameat2(AT_FDCWD, folder->partial, AT_FDCWD, folder->path,
                  exists ? RENAME_EXCHANGE : RENAME_NOREPLACE) != 0)
        DECANT_FAIL(err, DECANT_ERROR_DISK, "%s: cannot be renamed to %s: %s%s", folder->partial, folder->path,
                    strerror(errno), exists ? "; remove the old folder first" : "");
    folder->is_mine = false;
    flush_parent(folder->path);
    if (exists) {
        /* Its descriptor is of the new folder now, and that of the old one is free again. */
        closedir(folder->directory);
        decant_error none;
        if (open_partial(folder, &none) == DECANT_OK)
            clear(folder->directory);
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
        clear(folder->directory);
        rmdir(folder->partial);
    }
    if (folder->directory)
        closedir(folder->directory);
    decant_memory_free(folder->partial);
    decant_memory_free(folder->path);
    *folder = (decant_partial_folder){0};
}
