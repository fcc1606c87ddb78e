/* See work_directory.h. */
#include "pipeline/work_directory.h"

#include "io/checksum.h"
#include "io/file_bytes.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NAME_BYTES = DECANT_WORK_PATH_BYTES + 32 };

static void name_file(const decant_work_directory *work, const char *file, char name[NAME_BYTES])
{
    snprintf(name, NAME_BYTES, "%s/%s", work->path, file);
}

void decant_work_directory_name(const char *output, decant_work_directory *work)
{
    *work = (decant_work_directory){.lock = -1, .left = -1};
    snprintf(work->path, sizeof work->path, "%s.work", output);
    snprintf(work->calibration, sizeof work->calibration, "%s.work/calibration.h5", output);
    snprintf(work->statistics, sizeof work->statistics, "%s.work/statistics.h5", output);
}

/* ---- the lock ---- */

/* Whose lock it is, as that process wrote it down. */
static decant_status refuse_locked(const decant_work_directory *work, int descriptor, decant_error *err)
{
    char holder[128] = "";
    ssize_t length = pread(descriptor, holder, sizeof holder - 1, 0);
    holder[length > 0 ? length : 0] = '\0';
    return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                        "%s is in use by another job%s%s; two jobs cannot make one output", work->path,
                        holder[0] ? ", " : "", holder);
}

static decant_status sign_lock(int descriptor, const char *path, decant_error *err)
{
    char host[64] = "", holder[128];
    gethostname(host, sizeof host - 1);
    int length = snprintf(holder, sizeof holder, "process %ld on %s", (long)getpid(), host);
    if (ftruncate(descriptor, 0) != 0)
        return DECANT_SYSTEM_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be emptied", path);
    return decant_file_write_at(descriptor, path, 0, holder, (size_t)length, err);
}

static bool leads_nowhere(const char *path)
{
    struct stat about;
    return lstat(path, &about) == 0 && S_ISLNK(about.st_mode) && stat(path, &about) != 0;
}

/* A lock ends with its process, however that ends, so one that is left behind is free. The job that held it may
 * have removed the file between open and flock: then there is another one, or none. */
static decant_status take_lock(decant_work_directory *work, decant_error *err)
{
    char path[NAME_BYTES];
    name_file(work, "lock", path);
    for (;;) {
        struct stat about;
        if (mkdir(work->path, 0777) != 0 && errno != EEXIST)
            return DECANT_SYSTEM_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be written", work->path);
        int descriptor = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
        if (descriptor < 0 && errno == ENOENT && leads_nowhere(work->path))
            return DECANT_ERROR(err, DECANT_ERROR_DISK, "%s: a link to where nothing is; remove it",
                                work->path);
        if (descriptor < 0 && errno == ENOENT)
            continue;
        if (descriptor < 0)
            return DECANT_SYSTEM_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be written", path);
        if (flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
            decant_status status = refuse_locked(work, descriptor, err);
            close(descriptor);
            return status;
        } /* some filesystems have no locks */
        if (fstat(descriptor, &about) == 0 && about.st_nlink > 0) {
            work->lock = descriptor;
            return sign_lock(descriptor, path, err);
        }
        close(descriptor);
    }
}

/* ---- the head ---- */

static uint32_t checksum_of(const char *text)
{
    return decant_checksum(0, text, strlen(text));
}

/* The head as it is on disk; empty when it is missing or not whole. */
static decant_status read_head(const decant_work_directory *work, char head[DECANT_WORK_HEAD_BYTES],
                               decant_error *err)
{
    char path[NAME_BYTES];
    unsigned checksum = 0;
    name_file(work, "head", path);
    FILE *file = fopen(path, "r");
    if (!file && errno != ENOENT)
        return DECANT_SYSTEM_ERROR(err, DECANT_ERROR_INPUT, "%s", path);
    size_t length = file ? fread(head, 1, DECANT_WORK_HEAD_BYTES - 1, file) : 0;
    if (file)
        fclose(file);
    head[length] = '\0';
    char *last = strstr(head, "\nchecksum = ");
    if (last && sscanf(last, "\nchecksum = %8x", &checksum) == 1)
        last[1] = '\0';
    if (!last || checksum != checksum_of(head))
        head[0] = '\0';
    return DECANT_OK;
}

static decant_status write_head(const decant_work_directory *work, const char *head, decant_error *err)
{
    char path[NAME_BYTES], partial[NAME_BYTES];
    name_file(work, "head", path);
    name_file(work, "head.partial", partial);
    FILE *file = fopen(partial, "w");
    bool good = file && fprintf(file, "%schecksum = %08x\n", head, checksum_of(head)) > 0 &&
                fflush(file) == 0 && fsync(fileno(file)) == 0;
    if (file)
        good = fclose(file) == 0 && good;
    if (good && rename(partial, path) == 0)
        return DECANT_OK;
    return DECANT_SYSTEM_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be written", path);
}

/* The first line in which two heads differ. */
static decant_status compare_heads(const decant_work_directory *work, const char *there, const char *mine,
                                   decant_error *err)
{
    while (*there && *mine) {
        int length = (int)strcspn(there, "\n"), own_length = (int)strcspn(mine, "\n");
        if (length != own_length || memcmp(there, mine, (size_t)length) != 0)
            return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                                "%s is of another job: there, %.*s; here, %.*s; --overwrite-work begins anew",
                                work->path, length, there, own_length, mine);
        there += length + (there[length] == '\n');
        mine += own_length + (mine[own_length] == '\n');
    }
    if (*there || *mine)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                            "%s is of another job, with other options; --overwrite-work begins anew",
                            work->path);
    return DECANT_OK;
}

/* ---- all of it ---- */

static bool is_there(const char *path)
{
    return access(path, F_OK) == 0;
}

static const char *const kinds[] = {"boundary", "gradient", "layer"};
enum { KINDS = sizeof kinds / sizeof *kinds };

void decant_work_directory_name_file(const decant_work_directory *work, decant_work_kind kind, int number,
                                     char path[DECANT_WORK_PATH_BYTES])
{
    int length = snprintf(path, DECANT_WORK_PATH_BYTES, "%s/%s.%d.h5", work->path, kinds[kind], number);
    if (length >= DECANT_WORK_PATH_BYTES)
        path[0] = '\0'; /* cannot be made: the output's name is shorter than that */
}

void decant_work_directory_drop_files(const decant_work_directory *work, decant_work_kind kind, int first,
                                      int end)
{
    for (int number = first; number < end; number++) {
        char path[DECANT_WORK_PATH_BYTES];
        decant_work_directory_name_file(work, kind, number, path);
        unlink(path);
    }
}

/* Is it a whole file of a streamed job? Which one? */
static bool is_streamed_file(const char *name, decant_work_kind *kind, int *number)
{
    for (int i = 0; i < KINDS; i++) {
        size_t length = strlen(kinds[i]);
        char *end;
        if (strncmp(name, kinds[i], length) != 0 || name[length] != '.')
            continue;
        *kind = (decant_work_kind)i;
        *number = (int)strtol(name + length + 1, &end, 10);
        return strcmp(end, ".h5") == 0;
    }
    return false;
}

/* Is it a file that was not finished, or what the MPI library tried beside one as it opened it? A kill at that
 * moment leaves NAME.h5.partial.locktest.0. */
static bool is_partial_file(const char *name)
{
    return strstr(name, ".h5.partial") != NULL;
}

/* Removes all of them, and what was not finished, when `removes`, else finds where they would go on. */
static void look_at_files(decant_work_directory *work, bool removes)
{
    DIR *folder = opendir(work->path);
    work->boundaries = 0;
    work->left = -1;
    for (struct dirent *entry = folder ? readdir(folder) : NULL; entry; entry = readdir(folder)) {
        decant_work_kind kind;
        int number;
        const bool is_whole = is_streamed_file(entry->d_name, &kind, &number);
        if (removes && (is_whole || is_partial_file(entry->d_name)))
            unlinkat(dirfd(folder), entry->d_name, 0);
        else if (is_whole && kind == DECANT_WORK_GRADIENT && (work->left < 0 || number < work->left))
            work->left = number;
    }
    if (folder)
        closedir(folder);
    for (char path[DECANT_WORK_PATH_BYTES];; work->boundaries++) {
        decant_work_directory_name_file(work, DECANT_WORK_BOUNDARY, work->boundaries, path);
        if (!is_there(path))
            break;
    }
}

static bool has_data(const decant_work_directory *work)
{
    return work->has_calibration || work->has_statistics || work->boundaries > 0 || work->left >= 0;
}

static void remove_data(decant_work_directory *work)
{
    if (work->left >= 0) /* first: it says that others are there */
        decant_work_directory_drop_files(work, DECANT_WORK_GRADIENT, work->left, work->left + 1);
    decant_work_directory_drop_calibration(work);
    unlink(work->statistics);
    work->has_statistics = false;
    look_at_files(work, true);
}

decant_status decant_work_directory_open(decant_work_directory *work, const char *head, bool overwrite,
                                         decant_error *err)
{
    char there[DECANT_WORK_HEAD_BYTES];
    decant_status status;
    DECANT_TRY(take_lock(work, err));
    look_at_files(work, false);
    if (overwrite)
        remove_data(work);
    work->has_calibration = is_there(work->calibration);
    work->has_statistics = is_there(work->statistics);
    look_at_files(work, false);
    if (!has_data(work)) {
        remove_data(work); /* what alone is of no use, and would be taken for this job's */
        return write_head(work, head, err);
    }
    DECANT_TRY(read_head(work, there, err));
    if (!there[0])
        DECANT_FAIL(err, DECANT_ERROR_USAGE,
                    "%s/head is damaged, so what is beside it cannot be used; --overwrite-work begins anew",
                    work->path);
    DECANT_TRY(compare_heads(work, there, head, err));
done:
    return status;
}

void decant_work_directory_drop_calibration(decant_work_directory *work)
{
    char partial[NAME_BYTES];
    unlink(work->calibration);
    snprintf(partial, sizeof partial, "%s.partial", work->calibration);
    unlink(partial);
    work->has_calibration = false;
}

void decant_work_directory_close(decant_work_directory *work)
{
    if (!work->path[0] || work->lock < 0)
        return;
    work->has_calibration = is_there(work->calibration);
    work->has_statistics = is_there(work->statistics);
    look_at_files(work, false);
    if (work->complete || !has_data(work)) {
        const char *const files[] = {"head.partial", "head", "lock"};
        remove_data(work);
        for (int i = 0; i < 3; i++) {
            char path[NAME_BYTES];
            name_file(work, files[i], path);
            unlink(path);
        }
        rmdir(work->path); /* unless someone else keeps something in it */
    }
    close(work->lock);
    work->lock = -1;
}
