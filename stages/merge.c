/* See merge.h. Every rank opens every file and decides alone whether they belong together; all come to the same
 * answer. Then each adds every size-th matrix, a stretch at a time, so memory does not depend on the model. */
#include "stages/merge.h"

#include "base/memory.h"
#include "io/checksum.h"

#include <stdio.h>
#include <string.h>

enum { STRETCH_ELEMENTS = 1 << 20 };

typedef struct merge_matrix {
    char path[DECANT_CONTAINER_PATH_BYTES];
    decant_shape shape;
    int id;
} merge_matrix;

typedef struct merge {
    const char *const *paths;
    int count; /* files */
    decant_container **files;
    decant_statistics_origin *origins;
    const char *listed;     /* the file whose matrices are being listed, for messages */
    merge_matrix *matrices; /* of the first file, in path order */
    int64_t matrix_count, matrix_room;
    decant_statistics_part *parts; /* of all files, in their order */
    int64_t part_count;
} merge;

/* ---- do they belong together? ---- */

decant_status decant_statistics_combine(const decant_statistics_origin *origins, const char *const *paths,
                                        int count, decant_statistics_origin *merged, decant_error *err)
{
    *merged = origins[0];
    merged->loss = 0;
    for (int i = 0; i < count; i++) {
        const decant_statistics_origin *one = &origins[i];
        if (one->model_checksum != merged->model_checksum)
            return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s and %s are of two models (weights differ)",
                                paths[0], paths[i]);
        if (one->form != merged->form)
            return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s and %s differ in --fisher", paths[0], paths[i]);
        if (one->length != merged->length)
            return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s has sequences of %lld tokens, %s of %lld",
                                paths[0], (long long)merged->length, paths[i], (long long)one->length);
        merged->loss += one->loss * (double)one->sequences;
        if (i == 0)
            continue;
        merged->calibration_checksum =
            decant_checksum_join(merged->calibration_checksum, one->calibration_checksum,
                                 one->sequences * one->length * (int64_t)sizeof(int32_t));
        merged->sequences += one->sequences;
        merged->replicas += one->replicas;
        if (one->micro_batch > merged->micro_batch)
            merged->micro_batch = one->micro_batch;
    }
    merged->loss /= (double)merged->sequences;
    return DECANT_OK;
}

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

/* Visits datasets: takes those that are Fisher sums or Hessians. */
static decant_status list_matrix(void *context, const char *path, decant_stored type, const decant_shape *shape,
                                 decant_error *err)
{
    (void)type;
    merge *all = context;
    bool is_hessian = ends_with(path, "/hessian");
    if (!is_hessian && !ends_with(path, "/fisher"))
        return DECANT_OK;
    if (shape->dimensions != (is_hessian ? 3 : 2))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: %s has %d dimensions", all->listed, path,
                            shape->dimensions);
    decant_status status = decant_memory_grow(sizeof *all->matrices, all->matrix_count, &all->matrix_room,
                                              "matrices", (void **)&all->matrices, err);
    if (status != DECANT_OK)
        return status;
    merge_matrix *matrix = &all->matrices[all->matrix_count++];
    snprintf(matrix->path, sizeof matrix->path, "%s", path);
    matrix->shape = *shape;
    return DECANT_OK;
}

static bool same_shape(const decant_shape *a, const decant_shape *b)
{
    return a->dimensions == b->dimensions &&
           memcmp(a->extent, b->extent, (size_t)a->dimensions * sizeof *a->extent) == 0;
}

/* File i has the matrices of the first, no more and no others. */
static decant_status require_same_matrices(const merge *all, int i, decant_error *err)
{
    merge other = {.listed = all->paths[i]};
    decant_status status;
    DECANT_TRY(decant_container_each(all->files[i], list_matrix, &other, err));
    if (other.matrix_count != all->matrix_count)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s has %lld matrices, %s %lld", all->paths[0],
                    (long long)all->matrix_count, all->paths[i], (long long)other.matrix_count);
    for (int64_t j = 0; j < all->matrix_count; j++)
        if (strcmp(all->matrices[j].path, other.matrices[j].path) != 0 ||
            !same_shape(&all->matrices[j].shape, &other.matrices[j].shape))
            DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s and %s differ in the name or the shape of %s",
                        all->paths[0], all->paths[i], all->matrices[j].path);
done:
    decant_memory_free(other.matrices);
    return status;
}

/* The parts of file i join the list: those it was merged from, or itself. */
static decant_status list_parts(merge *all, int i, decant_error *err)
{
    decant_statistics_part self = {all->origins[i].calibration_checksum, all->origins[i].sequences};
    decant_shape shape = {2, {1, 2}};
    decant_stored type;
    decant_status status = DECANT_OK;
    bool is_merged = decant_container_has(all->files[i], "/parts");
    if (is_merged)
        status = decant_container_describe(all->files[i], "/parts", &type, &shape, err);
    if (status == DECANT_OK && (shape.dimensions != 2 || shape.extent[1] != 2 || shape.extent[0] < 1))
        status = DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s has a list of parts of an impossible shape",
                              all->paths[i]);
    if (status == DECANT_OK)
        status = decant_memory_resize((size_t)(all->part_count + shape.extent[0]) * sizeof *all->parts, "parts",
                                      (void **)&all->parts, err);
    if (status != DECANT_OK)
        return status;
    decant_statistics_part *added = all->parts + all->part_count;
    all->part_count += shape.extent[0];
    if (is_merged)
        return decant_container_read(all->files[i], "/parts", DECANT_STORED_I64, &shape, added, err);
    *added = self;
    return DECANT_OK;
}

/* No part of file i, the last in the list from `first` on, was there before. */
static decant_status refuse_repeated_parts(const merge *all, int64_t first, int i, decant_error *err)
{
    for (int64_t j = first; j < all->part_count; j++)
        for (int64_t k = 0; k < j; k++)
            if (all->parts[j].checksum == all->parts[k].checksum &&
                all->parts[j].sequences == all->parts[k].sequences)
                return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                                    "%s holds a calibration part of %lld sequences that is already in the sum; "
                                    "leave it out",
                                    all->paths[i], (long long)all->parts[j].sequences);
    return DECANT_OK;
}

static decant_status open_files(merge *all, decant_statistics_origin *merged, decant_error *err)
{
    decant_status status;
    DECANT_TRY(
        decant_memory_allocate((size_t)all->count * sizeof *all->files, "files", (void **)&all->files, err));
    DECANT_TRY(decant_memory_allocate((size_t)all->count * sizeof *all->origins, "origins",
                                      (void **)&all->origins, err));
    for (int i = 0; i < all->count; i++)
        DECANT_TRY(decant_statistics_open(all->paths[i], &all->files[i], &all->origins[i], err));
    DECANT_TRY(decant_statistics_combine(all->origins, all->paths, all->count, merged, err));
    DECANT_TRY(decant_container_each(all->files[0], list_matrix, all, err));
    for (int i = 0; i < all->count; i++) {
        int64_t first = all->part_count;
        DECANT_TRY(require_same_matrices(all, i, err));
        DECANT_TRY(list_parts(all, i, err));
        DECANT_TRY(refuse_repeated_parts(all, first, i, err));
    }
done:
    return status;
}

/* ---- adding ---- */

/* `whose` sum, a file's or that of all, is not finite at an element of the matrix. */
static decant_status refuse_element(const merge_matrix *matrix, int64_t element, const char *whose,
                                    const char *what_to_do, decant_error *err)
{
    const int64_t columns = matrix->shape.extent[matrix->shape.dimensions - 1];
    return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: %s is not finite in F32 at row %lld, column %lld; %s",
                        whose, matrix->path, (long long)(element / columns), (long long)(element % columns),
                        what_to_do);
}

/* Local. One stretch of one matrix: read from all files in their order, added in F64, rounded once.
 *   checksums   [files], those of the matrix in every file so far, brought forward */
static decant_status add_stretch(const merge *all, const merge_matrix *matrix, int64_t first, int64_t count,
                                 float *part, double *sum, uint32_t *checksums, decant_error *err)
{
    int64_t bad;
    memset(sum, 0, (size_t)count * sizeof *sum);
    for (int i = 0; i < all->count; i++) {
        decant_status status =
            decant_container_read_part(all->files[i], matrix->path, DECANT_STORED_F32, first, count, part, err);
        if (status != DECANT_OK)
            return status;
        bad = decant_find_not_finite(DECANT_F32, part, count);
        if (bad >= 0)
            return refuse_element(matrix, first + bad, all->paths[i], "make the file again", err);
        checksums[i] = decant_checksum(checksums[i], part, (size_t)count * sizeof *part);
        for (int64_t j = 0; j < count; j++)
            sum[j] += part[j];
    }
    for (int64_t j = 0; j < count; j++)
        part[j] = (float)sum[j];
    bad = decant_find_not_finite(DECANT_F32, part, count);
    if (bad >= 0)
        return refuse_element(matrix, first + bad, "the sum of all files", "merge fewer files", err);
    return DECANT_OK;
}

/* Local. One matrix; no file is trusted to hold what was written. */
static decant_status add_matrix(const merge *all, const merge_matrix *matrix, decant_container_writer *writer,
                                float *part, double *sum, uint32_t *checksums, decant_error *err)
{
    int64_t elements = 1;
    decant_status status = DECANT_OK;
    for (int j = 0; j < matrix->shape.dimensions; j++)
        elements *= matrix->shape.extent[j];
    memset(checksums, 0, (size_t)all->count * sizeof *checksums);
    for (int64_t first = 0; first < elements; first += STRETCH_ELEMENTS) {
        int64_t count = elements - first < STRETCH_ELEMENTS ? elements - first : STRETCH_ELEMENTS;
        DECANT_TRY(add_stretch(all, matrix, first, count, part, sum, checksums, err));
        DECANT_TRY(decant_container_write(writer, matrix->id, first, count, part, err));
    }
    for (int i = 0; i < all->count; i++)
        DECANT_TRY(decant_container_compare_checksum(all->files[i], matrix->path, checksums[i], err));
done:
    return status;
}

/* Local. This rank's share of the matrices. */
static decant_status add_matrices(const merge *all, const decant_ranks *ranks, decant_container_writer *writer,
                                  decant_error *err)
{
    float *part = NULL;
    double *sum = NULL;
    uint32_t *checksums = NULL;
    decant_status status;
    DECANT_TRY(decant_memory_allocate(STRETCH_ELEMENTS * sizeof *part, "a stretch", (void **)&part, err));
    DECANT_TRY(decant_memory_allocate(STRETCH_ELEMENTS * sizeof *sum, "a stretch", (void **)&sum, err));
    DECANT_TRY(
        decant_memory_allocate((size_t)all->count * sizeof *checksums, "checksums", (void **)&checksums, err));
    for (int64_t i = ranks->rank; i < all->matrix_count; i += ranks->size)
        DECANT_TRY(add_matrix(all, &all->matrices[i], writer, part, sum, checksums, err));
done:
    decant_memory_free(part);
    decant_memory_free(sum);
    decant_memory_free(checksums);
    return status;
}

/* Collective. */
static decant_status define_datasets(merge *all, decant_container_writer *writer, int *parts_id,
                                     decant_error *err)
{
    decant_status status;
    for (int64_t i = 0; i < all->matrix_count; i++)
        DECANT_TRY(decant_container_define(writer, all->matrices[i].path, DECANT_STORED_F32,
                                           &all->matrices[i].shape, &all->matrices[i].id, err));
    DECANT_TRY(decant_container_define(writer, "/parts", DECANT_STORED_I64,
                                       &(decant_shape){2, {all->part_count, 2}}, parts_id, err));
done:
    return status;
}

/* Local. */
static decant_status write_sums(const merge *all, const decant_ranks *ranks, decant_container_writer *writer,
                                int parts_id, decant_error *err)
{
    decant_status status = DECANT_OK;
    if (ranks->rank == 0)
        status = decant_container_write(writer, parts_id, 0, 2 * all->part_count, all->parts, err);
    return status == DECANT_OK ? add_matrices(all, ranks, writer, err) : status;
}

static void close_files(merge *all)
{
    for (int i = 0; all->files && i < all->count; i++)
        decant_container_close(&all->files[i]);
    decant_memory_free(all->files);
    decant_memory_free(all->origins);
    decant_memory_free(all->matrices);
    decant_memory_free(all->parts);
}

decant_status decant_statistics_merge(decant_ranks *ranks, const char *const *paths, int count,
                                      const char *output, bool overwrite, decant_statistics_origin *merged,
                                      decant_error *err)
{
    merge all = {.paths = paths, .count = count, .listed = paths[0]};
    decant_container_writer *writer = NULL;
    int parts_id;
    decant_status status;
    DECANT_TRY(decant_ranks_agree(ranks, open_files(&all, merged, err), err));
    DECANT_TRY(decant_container_create(ranks, output, overwrite, &writer, err));
    DECANT_TRY(define_datasets(&all, writer, &parts_id, err));
    DECANT_TRY(decant_statistics_set_origin(writer, merged, err));
    DECANT_TRY(decant_container_begin(writer, err));
    DECANT_TRY(decant_ranks_agree(ranks, write_sums(&all, ranks, writer, parts_id, err), err));
    DECANT_TRY(decant_container_finish(&writer, err));
done:
    decant_container_discard(&writer);
    close_files(&all);
    return status;
}
