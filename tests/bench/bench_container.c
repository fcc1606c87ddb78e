/* How fast ranks write a container, beside the plain write() calls that move as many bytes into one file on the
 * same disk; both include getting the bytes onto the disk (fsync).
 *
 *   mpirun -n RANKS bench_container [--gigabytes G] [--piece MEGABYTES] [--repeat N] DIRECTORY
 *
 * Each rank writes its own arrays of --piece MB of random bytes, in turn plainly and as datasets of a
 * container; the least of N runs counts, and the last column says what of the plain rate the container reaches.
 */
#include "base/log.h"
#include "base/memory.h"
#include "io/container.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4096 };

typedef struct bench {
    decant_ranks *ranks;
    double gigabytes;
    int64_t piece_bytes;
    int repeat;
    const char *directory;
    int64_t pieces; /* of each rank */
    void *data;     /* [piece_bytes] */
} bench;

typedef struct phase_times {
    double write_s, whole_s; /* until the last byte was handed over; until it was on the disk */
} phase_times;

static decant_status agree(bench *b, decant_status status, decant_error *err)
{
    return decant_ranks_agree(b->ranks, status, err);
}

/* ---- plain ---- */

static decant_status write_plainly(bench *b, int file, double start_s, phase_times *times, decant_error *err)
{
    for (int64_t i = 0; i < b->pieces; i++) {
        off_t place = (off_t)((b->ranks->rank * b->pieces + i) * b->piece_bytes);
        if (pwrite(file, b->data, (size_t)b->piece_bytes, place) != (ssize_t)b->piece_bytes)
            return DECANT_ERROR(err, DECANT_ERROR_DISK, "a plain write failed");
    }
    times->write_s = decant_clock_s() - start_s;
    if (fsync(file) != 0)
        return DECANT_ERROR(err, DECANT_ERROR_DISK, "fsync failed");
    return DECANT_OK;
}

static decant_status time_plain(bench *b, phase_times *times, decant_error *err)
{
    char path[PATH_BYTES];
    decant_status status;
    int file = -1;
    snprintf(path, sizeof path, "%s/bench_container.plain", b->directory);
    DECANT_TRY(agree(b, DECANT_OK, err));
    double start_s = decant_clock_s();
    file = open(path, O_CREAT | O_RDWR, 0666);
    if (file < 0)
        status = DECANT_ERROR(err, DECANT_ERROR_DISK, "%s cannot be made", path);
    else
        status = write_plainly(b, file, start_s, times, err);
    DECANT_TRY(agree(b, status, err));
    times->whole_s = decant_clock_s() - start_s;
done:
    if (file >= 0)
        close(file);
    if (b->ranks->rank == 0)
        unlink(path);
    return status;
}

/* ---- a container ---- */

static decant_status define_pieces(bench *b, decant_container_writer *writer, int *first_id, decant_error *err)
{
    const decant_shape shape = {1, {b->piece_bytes / 4}};
    for (int64_t i = 0; i < b->pieces * b->ranks->size; i++) {
        char path[64];
        int id;
        snprintf(path, sizeof path, "/piece.%lld/codes", (long long)i);
        decant_status status = decant_container_define(writer, path, DECANT_STORED_U32, &shape, &id, err);
        if (status != DECANT_OK)
            return status;
        if (i == 0)
            *first_id = id;
    }
    return DECANT_OK;
}

static decant_status time_container(bench *b, phase_times *times, decant_error *err)
{
    char path[PATH_BYTES];
    int id = 0;
    decant_container_writer *writer = NULL;
    decant_status status;
    snprintf(path, sizeof path, "%s/bench_container.h5", b->directory);
    DECANT_TRY(agree(b, DECANT_OK, err));
    double start_s = decant_clock_s();
    DECANT_TRY(decant_container_create(b->ranks, path, true, &writer, err));
    DECANT_TRY(define_pieces(b, writer, &id, err));
    DECANT_TRY(decant_container_begin(writer, err));
    for (int64_t i = 0; i < b->pieces; i++)
        DECANT_TRY(decant_container_write(writer, id + (int)(b->ranks->rank * b->pieces + i), 0,
                                          b->piece_bytes / 4, b->data, err));
    times->write_s = decant_clock_s() - start_s;
    DECANT_TRY(decant_container_finish(&writer, err));
    times->whole_s = decant_clock_s() - start_s;
done:
    decant_container_discard(&writer);
    if (b->ranks->rank == 0)
        unlink(path);
    return status;
}

/* ---- the program ---- */

static decant_status run(bench *b, decant_error *err)
{
    phase_times plain = {INFINITY, INFINITY}, container = plain, now = plain;
    decant_status status;
    b->pieces = (int64_t)ceil(b->gigabytes * 1e9 / (double)b->piece_bytes / b->ranks->size);
    DECANT_TRY(decant_memory_allocate((size_t)b->piece_bytes, "data", &b->data, err));
    for (int64_t i = 0; i < b->piece_bytes / 4; i++)
        ((uint32_t *)b->data)[i] = (uint32_t)i * 2654435761u ^ (uint32_t)b->ranks->rank;
    for (int i = 0; i < b->repeat; i++) {
        DECANT_TRY(time_plain(b, &now, err));
        plain.write_s = fmin(plain.write_s, now.write_s);
        plain.whole_s = fmin(plain.whole_s, now.whole_s);
        DECANT_TRY(time_container(b, &now, err));
        container.write_s = fmin(container.write_s, now.write_s);
        container.whole_s = fmin(container.whole_s, now.whole_s);
    }
    double gigabytes = (double)(b->pieces * b->ranks->size * b->piece_bytes) / 1e9;
    if (b->ranks->rank == 0)
        printf("%d ranks, %.2f GB: plain %.2f s (%.2f GB/s; %.2f s before fsync), container %.2f s (%.2f GB/s; "
               "%.2f s before), ratio %.2f\n",
               b->ranks->size, gigabytes, plain.whole_s, gigabytes / plain.whole_s, plain.write_s,
               container.whole_s, gigabytes / container.whole_s, container.write_s,
               plain.whole_s / container.whole_s);
done:
    decant_memory_free(b->data);
    return status;
}

static bool read_options(int argc, char **argv, bench *b)
{
    *b = (bench){.gigabytes = 2, .piece_bytes = 22 << 20, .repeat = 3};
    for (int i = 1; i + 1 < argc; i += 2) {
        double value = atof(argv[i + 1]);
        if (strcmp(argv[i], "--gigabytes") == 0)
            b->gigabytes = value;
        else if (strcmp(argv[i], "--piece") == 0)
            b->piece_bytes = (int64_t)value << 20;
        else if (strcmp(argv[i], "--repeat") == 0)
            b->repeat = (int)value;
        else
            return false;
    }
    b->directory = argv[argc - 1];
    return argc % 2 == 0 && b->gigabytes > 0 && b->piece_bytes > 0 && b->repeat > 0;
}

int main(int argc, char **argv)
{
    bench b;
    decant_error err = {0};
    MPI_Init(&argc, &argv);
    decant_status status = DECANT_ERROR_USAGE;
    if (!read_options(argc, argv, &b))
        fprintf(stderr, "usage: bench_container [--gigabytes G] [--piece MEGABYTES] [--repeat N] DIRECTORY\n");
    else
        status = decant_ranks_create(MPI_COMM_WORLD, &b.ranks, &err);
    if (status == DECANT_OK) {
        status = run(&b, &err);
        if (status != DECANT_OK && b.ranks->rank == 0)
            fprintf(stderr, "bench_container: %s\n", err.message);
        decant_ranks_destroy(&b.ranks);
    }
    MPI_Finalize();
    return decant_status_exit(status);
}
