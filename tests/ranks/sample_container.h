/* The container that the tests of io/container write, on all ranks together, and the folder it lies in. */
#ifndef DECANT_TESTS_RANKS_SAMPLE_CONTAINER_H
#define DECANT_TESTS_RANKS_SAMPLE_CONTAINER_H

#include "io/container.h"

#include "tests/ranks/mpi_tests.h"

#include <string.h>

typedef struct sample {
    const char *path;
    decant_stored type;
    decant_shape shape;
} sample;

/* In the order of definition, which is not path order. */
static const sample samples[] = {
    {"/model.layers.0.mlp.up_proj/codes", DECANT_STORED_U32, {3, {7, 3, 5}}},
    {"/model.layers.0.mlp.up_proj/levels", DECANT_STORED_F16, {2, {7, 8}}},
    {"/model.layers.0.mlp.up_proj/sparse/row_offsets", DECANT_STORED_I64, {1, {8}}},
    {"/model.layers.0.mlp.up_proj/sparse/columns", DECANT_STORED_U16, {1, {0}}},
    {"/model.layers.0.mlp.up_proj/sparse/values", DECANT_STORED_F16, {2, {0, 4}}},
    {"/config", DECANT_STORED_U8, {1, {333}}},
    {"/model.embed_tokens.weight", DECANT_STORED_BF16, {2, {11, 13}}},
    {"/errors", DECANT_STORED_F64, {4, {2, 3, 1, 4}}},
    {"/count", DECANT_STORED_I32, {0, {0}}},
    {"/norm", DECANT_STORED_F32, {1, {300}}},
    {"/model.layers.0.mlp.up_proj.bias",
     DECANT_STORED_F32,
     {1, {7}}}, /* in path order before what is in the group */
};
enum { SAMPLES = sizeof samples / sizeof *samples, SAMPLE_BYTES = 2000 };

static inline int64_t elements_of(const decant_shape *shape)
{
    int64_t count = 1;
    for (int d = 0; d < shape->dimensions; d++)
        count *= shape->extent[d];
    return count;
}

static inline int64_t bytes_of(const sample *of)
{
    return elements_of(&of->shape) * (int64_t)decant_stored_bytes(of->type);
}

/* The bytes of a sample, the same on every rank. */
static inline void fill(const sample *of, unsigned char *bytes)
{
    uint32_t random = 2463534242u + (uint32_t)(of - samples);
    for (int64_t i = 0; i < bytes_of(of); i++) {
        random = random * 1664525u + 1013904223u;
        bytes[i] = (unsigned char)(random >> 24);
    }
}

/* Whole parts of a few elements each, dealt out to the ranks in turn; some ranks may get none. */
static inline decant_status write_mine(decant_container_writer *writer, const decant_ranks *ranks, int shift,
                                       int sample_id, int id, decant_error *err)
{
    const sample *of = &samples[sample_id];
    unsigned char bytes[SAMPLE_BYTES];
    int64_t elements = elements_of(&of->shape), piece = 1 + elements / 5;
    decant_status status = DECANT_OK;
    fill(of, bytes);
    for (int64_t first = 0, turn = shift; first < elements && status == DECANT_OK; first += piece, turn++) {
        int64_t count = elements - first < piece ? elements - first : piece;
        if ((turn * turn + sample_id) % ranks->size == ranks->rank)
            status = decant_container_write(writer, id, first, count,
                                            bytes + (size_t)first * decant_stored_bytes(of->type), err);
    }
    return status;
}

static inline decant_status define_sample(decant_container_writer *writer, const char *text, int *ids,
                                          decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int i = 0; i < SAMPLES; i++)
        DECANT_TRY(
            decant_container_define(writer, samples[i].path, samples[i].type, &samples[i].shape, &ids[i], err));
    DECANT_TRY(decant_container_set_text(writer, "/", "program", text, err));
    DECANT_TRY(decant_container_set_text(writer, "/config", "note", "", err));
    DECANT_TRY(decant_container_set_integer(writer, "/model.layers.0.mlp.up_proj", "bits", -3, err));
    DECANT_TRY(decant_container_set_real(writer, "/model.layers.0.mlp.up_proj/levels", "error", 0.125, err));
done:
    return status;
}

static inline decant_status write_sample_with(decant_ranks *ranks, const char *path, bool overwrite, int shift,
                                              const char *text, decant_error *err)
{
    decant_status status = DECANT_OK;
    decant_container_writer *writer = NULL;
    int ids[SAMPLES];
    DECANT_TRY(decant_container_create(ranks, path, overwrite, &writer, err));
    DECANT_TRY(define_sample(writer, text, ids, err));
    DECANT_TRY(decant_container_begin(writer, err));
    for (int i = SAMPLES - 1; i >= 0; i--)
        status = status == DECANT_OK ? write_mine(writer, ranks, shift, i, ids[i], err) : status;
    DECANT_TRY(decant_ranks_agree(ranks, status, err));
    DECANT_TRY(decant_container_set_real(writer, "/", "measured", 18.463, err)); /* after the data, too */
    DECANT_TRY(decant_container_finish(&writer, err));
done:
    decant_container_discard(&writer);
    return status;
}

static inline decant_status write_sample(decant_ranks *ranks, const char *path, bool overwrite,
                                         decant_error *err)
{
    return write_sample_with(ranks, path, overwrite, 0, "decant test", err);
}

/* A folder with the path of a container in it. */
typedef struct place {
    char folder[64];
    char path[96], partial[128];
} place;

static inline place make_place(decant_ranks *ranks)
{
    place made;
    make_folder(ranks, made.folder);
    snprintf(made.path, sizeof made.path, "%s/model.h5", made.folder);
    snprintf(made.partial, sizeof made.partial, "%s.partial", made.path);
    return made;
}

static inline bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static inline void assert_nothing_left(decant_ranks *ranks, const place *at)
{
    decant_error err;
    assert_ok(decant_ranks_agree(ranks, DECANT_OK, &err));
    assert_false(exists(at->path));
    assert_false(exists(at->partial));
    assert_ok(decant_ranks_agree(ranks, DECANT_OK, &err));
}

/* Writes the sample container into a new folder and opens it. */
static inline place open_sample(decant_ranks *ranks, decant_container **container)
{
    decant_error err = {0};
    place at = make_place(ranks);
    assert_ok(write_sample(ranks, at.path, false, &err));
    assert_ok(decant_container_open(at.path, container, &err));
    return at;
}

static inline void close_sample(decant_ranks *ranks, const place *at, decant_container **container)
{
    decant_container_close(container);
    assert_null(*container);
    remove_folder(ranks, at->folder);
}

#endif
