/* io/container, written by all ranks and read back by each. ranks: 1 2 3
 *
 * With the arguments "write PATH SHIFT [TEXT]" the program writes its sample container there instead, which
 * rank writes what being moved on by SHIFT, and the text in it; tests/io/test_container_*.sh look at the files.
 */
#include "io/container.h"

#include "tests/ranks/mpi_tests.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

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

static int64_t elements_of(const decant_shape *shape)
{
    int64_t count = 1;
    for (int d = 0; d < shape->dimensions; d++)
        count *= shape->extent[d];
    return count;
}

static int64_t bytes_of(const sample *of)
{
    return elements_of(&of->shape) * (int64_t)decant_stored_bytes(of->type);
}

/* The bytes of a sample, the same on every rank. */
static void fill(const sample *of, unsigned char *bytes)
{
    uint32_t random = 2463534242u + (uint32_t)(of - samples);
    for (int64_t i = 0; i < bytes_of(of); i++) {
        random = random * 1664525u + 1013904223u;
        bytes[i] = (unsigned char)(random >> 24);
    }
}

/* Whole parts of a few elements each, dealt out to the ranks in turn; some ranks may get none. */
static decant_status write_mine(decant_container_writer *writer, const decant_ranks *ranks, int shift,
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

static decant_status define_sample(decant_container_writer *writer, const char *text, int *ids,
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

static decant_status write_sample_with(decant_ranks *ranks, const char *path, bool overwrite, int shift,
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

static decant_status write_sample(decant_ranks *ranks, const char *path, bool overwrite, decant_error *err)
{
    return write_sample_with(ranks, path, overwrite, 0, "decant test", err);
}

/* A folder with the path of a container in it. */
typedef struct place {
    char folder[64];
    char path[96], partial[128];
} place;

static place make_place(decant_ranks *ranks)
{
    place made;
    make_folder(ranks, made.folder);
    snprintf(made.path, sizeof made.path, "%s/model.h5", made.folder);
    snprintf(made.partial, sizeof made.partial, "%s.partial", made.path);
    return made;
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static void assert_nothing_left(decant_ranks *ranks, const place *at)
{
    decant_error err;
    assert_ok(decant_ranks_agree(ranks, DECANT_OK, &err));
    assert_false(exists(at->path));
    assert_false(exists(at->partial));
    assert_ok(decant_ranks_agree(ranks, DECANT_OK, &err));
}

/* ---- contents ---- */

static decant_status note_path(void *context, const char *path, decant_stored type, const decant_shape *shape,
                               decant_error *err)
{
    (void)type;
    (void)shape;
    (void)err;
    char *last = context;
    assert_true(strcmp(last, path) < 0); /* ascending */
    snprintf(last, DECANT_CONTAINER_PATH_BYTES, "%s", path);
    return DECANT_OK;
}

static void everything_comes_back(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    assert_ok(write_sample(ranks, at.path, false, &err));
    assert_false(exists(at.partial));
    decant_container *container;
    assert_ok(decant_container_open(at.path, &container, &err));
    int64_t total = 0;
    for (int i = 0; i < SAMPLES; i++) {
        unsigned char expected[SAMPLE_BYTES], got[SAMPLE_BYTES] = {0};
        decant_stored type;
        decant_shape shape;
        assert_true(decant_container_has(container, samples[i].path));
        assert_ok(decant_container_describe(container, samples[i].path, &type, &shape, &err));
        assert_int_equal(type, samples[i].type);
        assert_int_equal(shape.dimensions, samples[i].shape.dimensions);
        for (int d = 0; d < shape.dimensions; d++)
            assert_int_equal(shape.extent[d], samples[i].shape.extent[d]);
        assert_ok(decant_container_read(container, samples[i].path, type, &shape, got, &err));
        fill(&samples[i], expected);
        assert_memory_equal(got, expected, (size_t)bytes_of(&samples[i]));
        total += bytes_of(&samples[i]);
    }
    int64_t datasets, bytes;
    assert_ok(decant_container_verify(container, &datasets, &bytes, &err));
    assert_int_equal(datasets, SAMPLES);
    assert_int_equal(bytes, total);
    char last[DECANT_CONTAINER_PATH_BYTES] = "";
    assert_ok(decant_container_each(container, note_path, last, &err));
    assert_string_equal(last, "/norm");
    decant_container_close(&container);
    assert_null(container);
    remove_folder(ranks, at.folder);
}

static void attributes_come_back(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    assert_ok(write_sample(ranks, at.path, false, &err));
    decant_container *container;
    assert_ok(decant_container_open(at.path, &container, &err));
    char text[32] = "x";
    int64_t integer;
    double real;
    assert_ok(decant_container_get_text(container, "/", "program", text, sizeof text, &err));
    assert_string_equal(text, "decant test");
    assert_ok(decant_container_get_text(container, "/", "program", text, 4, &err));
    assert_string_equal(text, "dec");
    assert_ok(decant_container_get_text(container, "/config", "note", text, sizeof text, &err));
    assert_string_equal(text, "");
    assert_ok(decant_container_get_integer(container, "/model.layers.0.mlp.up_proj", "bits", &integer, &err));
    assert_int_equal(integer, -3);
    assert_ok(decant_container_get_real(container, "/model.layers.0.mlp.up_proj/levels", "error", &real, &err));
    assert_true(real == 0.125);
    assert_ok(decant_container_get_real(container, "/", "measured", &real, &err));
    assert_true(real == 18.463);
    assert_status(decant_container_get_text(container, "/", "measured", text, sizeof text, &err),
                  DECANT_ERROR_INPUT);
    assert_status(decant_container_get_integer(container, "/", "measured", &integer, &err), DECANT_ERROR_INPUT);
    assert_status(decant_container_get_real(container, "/", "program", &real, &err), DECANT_ERROR_INPUT);
    assert_status(decant_container_get_real(container, "/", "missing", &real, &err), DECANT_ERROR_INPUT);
    assert_status(decant_container_get_real(container, "/missing", "measured", &real, &err),
                  DECANT_ERROR_INPUT);
    decant_container_close(&container);
    remove_folder(ranks, at.folder);
}

/* Every range of a three-dimensional dataset, so that all ways of cutting it into boxes are met. */
static void every_part_can_be_read(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    assert_ok(write_sample(ranks, at.path, false, &err));
    decant_container *container;
    assert_ok(decant_container_open(at.path, &container, &err));
    const sample *of = &samples[0];
    uint32_t expected[SAMPLE_BYTES / 4], got[SAMPLE_BYTES / 4];
    int64_t elements = elements_of(&of->shape);
    fill(of, (unsigned char *)expected);
    for (int64_t first = 0; first <= elements; first++)
        for (int64_t count = 0; first + count <= elements; count++) {
            memset(got, 0, sizeof got);
            assert_ok(decant_container_read_part(container, of->path, of->type, first, count, got, &err));
            assert_memory_equal(got, expected + first, (size_t)count * sizeof *got);
            assert_int_equal(got[count], 0);
        }
    assert_status(decant_container_read_part(container, of->path, of->type, 1, elements, got, &err),
                  DECANT_ERROR_INPUT);
    assert_status(decant_container_read_part(container, of->path, of->type, -1, 1, got, &err),
                  DECANT_ERROR_INPUT);
    assert_status(decant_container_read_part(container, of->path, of->type, INT64_MAX, INT64_MAX, got, &err),
                  DECANT_ERROR_INPUT);
    decant_container_close(&container);
    remove_folder(ranks, at.folder);
}

/* Each range of a three-dimensional dataset as the part of one rank, the rest being another's. */
static void every_part_can_be_written(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    const decant_shape shape = {3, {3, 2, 4}};
    uint16_t values[24], got[24];
    for (int i = 0; i < 24; i++)
        values[i] = (uint16_t)(1000 + i);
    for (int first = 0; first < 24; first += 1 + ranks->size)
        for (int count = 1; first + count <= 24; count += ranks->size) {
            decant_container_writer *writer;
            decant_container *container;
            int id, rest = ranks->size - 1;
            assert_ok(decant_container_create(ranks, at.path, true, &writer, &err));
            assert_ok(decant_container_define(writer, "/a", DECANT_STORED_U16, &shape, &id, &err));
            assert_ok(decant_container_begin(writer, &err));
            if (ranks->rank == 0)
                assert_ok(decant_container_write(writer, id, first, count, values + first, &err));
            if (ranks->rank == rest)
                assert_ok(decant_container_write(writer, id, 0, first, values, &err));
            if (ranks->rank == rest)
                assert_ok(decant_container_write(writer, id, first + count, 24 - first - count,
                                                 values + first + count, &err));
            assert_ok(decant_container_finish(&writer, &err));
            assert_ok(decant_container_open(at.path, &container, &err));
            assert_ok(decant_container_verify(container, NULL, NULL, &err));
            assert_ok(decant_container_read(container, "/a", DECANT_STORED_U16, &shape, got, &err));
            assert_memory_equal(got, values, sizeof got);
            decant_container_close(&container);
            assert_ok(decant_ranks_agree(ranks, DECANT_OK, &err));
        }
    remove_folder(ranks, at.folder);
}

static void data_and_definitions_may_take_turns(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    decant_container_writer *writer;
    decant_container *container;
    int ids[4];
    char path[16];
    const decant_shape shape = {1, {50}};
    unsigned char bytes[50], got[50];
    memset(bytes, 7, sizeof bytes);
    assert_ok(decant_container_create(ranks, at.path, false, &writer, &err));
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "/g%d/a", i);
        assert_ok(decant_container_define(writer, path, DECANT_STORED_U8, &shape, &ids[i], &err));
        assert_ok(decant_container_begin(writer, &err));
        if (ranks->rank == i % ranks->size)
            assert_ok(decant_container_write(writer, ids[i], 0, i == 3 ? 50 : 20, bytes, &err));
        assert_ok(decant_container_set_integer(writer, path, "turn", i, &err));
    }
    for (int i = 0; i < 3; i++)
        if (ranks->rank == ranks->size - 1)
            assert_ok(decant_container_write(writer, ids[i], 20, 30, bytes, &err));
    assert_ok(decant_container_finish(&writer, &err));
    assert_ok(decant_container_open(at.path, &container, &err));
    assert_ok(decant_container_verify(container, NULL, NULL, &err));
    for (int i = 0; i < 4; i++) {
        int64_t turn;
        snprintf(path, sizeof path, "/g%d/a", i);
        assert_ok(decant_container_read(container, path, DECANT_STORED_U8, &shape, got, &err));
        assert_memory_equal(got, bytes, sizeof got);
        assert_ok(decant_container_get_integer(container, path, "turn", &turn, &err));
        assert_int_equal(turn, i);
    }
    decant_container_close(&container);
    remove_folder(ranks, at.folder);
}

/* Before it has its name the container can be read by all, and an attribute can still be put in. */
static void settled_container_is_whole_before_it_is_named(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    decant_container_writer *writer;
    decant_container *container;
    int id;
    double real;
    const decant_shape shape = {1, {10}};
    const float values[10] = {0};
    assert_ok(decant_container_create(ranks, at.path, false, &writer, &err));
    assert_ok(decant_container_define(writer, "/a", DECANT_STORED_F32, &shape, &id, &err));
    assert_ok(decant_container_begin(writer, &err));
    if (ranks->rank == ranks->size - 1)
        assert_ok(decant_container_write(writer, id, 0, 10, values, &err));
    assert_ok(decant_container_settle(writer, &err));
    assert_string_equal(decant_container_partial_path(writer), at.partial);
    assert_false(exists(at.path));
    assert_ok(decant_container_open(at.partial, &container, &err));
    assert_ok(decant_container_verify(container, NULL, NULL, &err));
    decant_container_close(&container);
    assert_ok(decant_container_set_real(writer, "/", "perplexity", 19.5, &err));
    assert_ok(decant_container_finish(&writer, &err));
    assert_false(exists(at.partial));
    assert_ok(decant_container_open(at.path, &container, &err));
    assert_ok(decant_container_verify(container, NULL, NULL, &err));
    assert_ok(decant_container_get_real(container, "/", "perplexity", &real, &err));
    assert_true(real == 19.5);
    decant_container_close(&container);
    remove_folder(ranks, at.folder);
}

static void settling_fails_when_parts_are_missing(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    decant_container_writer *writer;
    int id;
    const decant_shape shape = {1, {10}};
    assert_ok(decant_container_create(ranks, at.path, false, &writer, &err));
    assert_ok(decant_container_define(writer, "/a", DECANT_STORED_F32, &shape, &id, &err));
    assert_status(decant_container_settle(writer, &err), DECANT_ERROR_BUG);
    assert_non_null(writer);
    decant_container_discard(&writer);
    assert_nothing_left(ranks, &at);
    remove_folder(ranks, at.folder);
}

static void container_may_be_empty(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    decant_container_writer *writer;
    decant_container *container;
    int64_t datasets, bytes;
    assert_ok(decant_container_create(ranks, at.path, false, &writer, &err));
    assert_ok(decant_container_finish(&writer, &err));
    assert_ok(decant_container_open(at.path, &container, &err));
    assert_ok(decant_container_verify(container, &datasets, &bytes, &err));
    assert_int_equal(datasets, 0);
    assert_int_equal(bytes, 0);
    decant_container_close(&container);
    remove_folder(ranks, at.folder);
}

static void reading_is_refused_when_type_or_shape_differ(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    assert_ok(write_sample(ranks, at.path, false, &err));
    decant_container *container;
    assert_ok(decant_container_open(at.path, &container, &err));
    unsigned char got[SAMPLE_BYTES];
    const decant_shape right = {2, {11, 13}}, turned = {2, {13, 11}}, flat = {1, {143}};
    const char *path = "/model.embed_tokens.weight";
    assert_ok(decant_container_read(container, path, DECANT_STORED_BF16, &right, got, &err));
    assert_status(decant_container_read(container, path, DECANT_STORED_U16, &right, got, &err),
                  DECANT_ERROR_INPUT);
    assert_status(decant_container_read(container, path, DECANT_STORED_F16, &right, got, &err),
                  DECANT_ERROR_INPUT);
    assert_status(decant_container_read(container, path, DECANT_STORED_BF16, &turned, got, &err),
                  DECANT_ERROR_INPUT);
    assert_status(decant_container_read(container, path, DECANT_STORED_BF16, &flat, got, &err),
                  DECANT_ERROR_INPUT);
    assert_status(decant_container_read(container, "/missing", DECANT_STORED_BF16, &right, got, &err),
                  DECANT_ERROR_INPUT);
    assert_status(
        decant_container_read(container, "/model.layers.0.mlp.up_proj", DECANT_STORED_BF16, &right, got, &err),
        DECANT_ERROR_INPUT);
    static const char *const absent[] = {"",        "norm",       "/norm/",         "//norm",
                                         "/norm/x", "/missing/x", "/model.layers.0"};
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++)
        assert_false(decant_container_has(container, absent[i]));
    assert_true(decant_container_has(container, "/"));
    assert_true(decant_container_has(container, "/model.layers.0.mlp.up_proj/sparse"));
    decant_container_close(&container);
    remove_folder(ranks, at.folder);
}

/* ---- what goes wrong ---- */

static void existing_output_is_refused_without_overwrite(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    assert_ok(write_sample(ranks, at.path, false, &err));
    struct stat before, after;
    assert_int_equal(stat(at.path, &before), 0);
    decant_container_writer *writer;
    assert_status(decant_container_create(ranks, at.path, false, &writer, &err), DECANT_ERROR_USAGE);
    assert_null(writer);
    assert_int_equal(stat(at.path, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    assert_false(exists(at.partial));
    assert_ok(decant_ranks_agree(ranks, DECANT_OK, &err));
    assert_ok(write_sample(ranks, at.path, true, &err));
    assert_int_equal(stat(at.path, &after), 0);
    assert_int_not_equal(before.st_ino, after.st_ino);
    remove_folder(ranks, at.folder);
}

/* Writes "/a" [10] in the parts that the function wants, and expects a failure in finish that leaves nothing.
 */
static void expect_failure(decant_ranks *ranks, void (*parts)(decant_ranks *, decant_container_writer *, int),
                           decant_status expected, const char *named)
{
    decant_error err = {0};
    place at = make_place(ranks);
    decant_container_writer *writer;
    int id, other;
    const decant_shape shape = {1, {10}}, scalar = {0, {0}};
    assert_ok(decant_container_create(ranks, at.path, false, &writer, &err));
    assert_ok(decant_container_define(writer, "/before", DECANT_STORED_F32, &scalar, &other, &err));
    assert_ok(decant_container_define(writer, "/a", DECANT_STORED_F32, &shape, &id, &err));
    assert_ok(decant_container_begin(writer, &err));
    parts(ranks, writer, id);
    if (ranks->rank == 0)
        assert_ok(decant_container_write(writer, other, 0, 1, "1234", &err));
    assert_status(decant_container_finish(&writer, &err), expected);
    assert_null(writer);
    if (!strstr(err.message, named))
        print_error("message: %s\n", err.message);
    assert_non_null(strstr(err.message, named));
    assert_nothing_left(ranks, &at);
    remove_folder(ranks, at.folder);
}

static const float ten[10] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};

static void write_all_but_one(decant_ranks *ranks, decant_container_writer *writer, int id)
{
    decant_error err;
    if (ranks->rank == 0) {
        assert_ok(decant_container_write(writer, id, 0, 6, ten, &err));
        assert_ok(decant_container_write(writer, id, 7, 3, ten + 7, &err));
    }
}

static void write_nothing(decant_ranks *ranks, decant_container_writer *writer, int id)
{
    (void)ranks;
    (void)writer;
    (void)id;
}

static void write_one_twice(decant_ranks *ranks, decant_container_writer *writer, int id)
{
    decant_error err;
    if (ranks->rank == 0)
        assert_ok(decant_container_write(writer, id, 0, 6, ten, &err));
    if (ranks->rank == ranks->size - 1)
        assert_ok(decant_container_write(writer, id, 5, 5, ten + 5, &err));
}

static void write_outside(decant_ranks *ranks, decant_container_writer *writer, int id)
{
    decant_error err;
    if (ranks->rank == 0)
        assert_ok(decant_container_write(writer, id, 0, 10, ten, &err));
    if (ranks->rank == ranks->size - 1) {
        assert_status(decant_container_write(writer, id, 6, 5, ten, &err), DECANT_ERROR_BUG);
        assert_status(decant_container_write(writer, id, -1, 1, ten, &err), DECANT_ERROR_BUG);
        assert_status(decant_container_write(writer, id + 7, 0, 1, ten, &err), DECANT_ERROR_BUG);
        assert_status(decant_container_write(writer, id, INT64_MAX, INT64_MAX, ten, &err), DECANT_ERROR_BUG);
    }
}

static void write_before_begin(decant_ranks *ranks, decant_container_writer *writer, int id)
{
    decant_error err;
    int late;
    assert_ok(decant_container_write(writer, id, 0, ranks->rank ? 0 : 10, ten, &err));
    assert_ok(
        decant_container_define(writer, "/late", DECANT_STORED_I32, &(decant_shape){0, {0}}, &late, &err));
    assert_ok(decant_container_begin(writer, &err));
    assert_ok(
        decant_container_define(writer, "/later", DECANT_STORED_I32, &(decant_shape){0, {0}}, &late, &err));
    if (ranks->rank == ranks->size - 1)
        assert_status(decant_container_write(writer, late, 0, 1, ten, &err), DECANT_ERROR_BUG);
    assert_ok(decant_container_begin(writer, &err));
}

static void write_is_refused_before_begin(void **state)
{
    expect_failure(*state, write_before_begin, DECANT_ERROR_BUG, "decant_container_begin");
}

static void finish_fails_when_parts_are_missing(void **state)
{
    expect_failure(*state, write_all_but_one, DECANT_ERROR_BUG, "element 6 was not written");
    expect_failure(*state, write_nothing, DECANT_ERROR_BUG, "element 0 was not written");
}

static void finish_fails_when_parts_overlap(void **state)
{
    expect_failure(*state, write_one_twice, DECANT_ERROR_BUG, "element 5 was written twice");
}

static void finish_fails_when_one_rank_failed_to_write(void **state)
{
    expect_failure(*state, write_outside, DECANT_ERROR_BUG, "outside of its 10");
}

static void definitions_are_refused_when_impossible(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    decant_container_writer *writer;
    int id;
    const decant_shape shape = {1, {3}};
    static const char *const bad_paths[] = {"a", "/", "/a/", "//a", "/a//b", "/./a", "/a/.", ""};
    static const decant_shape bad_shapes[] = {
        {1, {-1}}, {5, {1, 1, 1, 1}}, {-1, {0}}, {2, {INT64_MAX, 2}}, {1, {INT64_MAX / 2}}};
    assert_ok(decant_container_create(ranks, at.path, false, &writer, &err));
    for (size_t i = 0; i < sizeof bad_paths / sizeof *bad_paths; i++)
        assert_status(decant_container_define(writer, bad_paths[i], DECANT_STORED_F32, &shape, &id, &err),
                      DECANT_ERROR_BUG);
    for (size_t i = 0; i < sizeof bad_shapes / sizeof *bad_shapes; i++)
        assert_status(decant_container_define(writer, "/a", DECANT_STORED_F32, &bad_shapes[i], &id, &err),
                      DECANT_ERROR_BUG);
    char long_path[DECANT_CONTAINER_PATH_BYTES + 1];
    memset(long_path, 'x', sizeof long_path);
    long_path[0] = '/';
    long_path[DECANT_CONTAINER_PATH_BYTES] = '\0';
    assert_status(decant_container_define(writer, long_path, DECANT_STORED_F32, &shape, &id, &err),
                  DECANT_ERROR_BUG);
    assert_ok(decant_container_define(writer, "/a", DECANT_STORED_F32, &shape, &id, &err));
    assert_int_not_equal(decant_container_define(writer, "/a", DECANT_STORED_F32, &shape, &id, &err),
                         DECANT_OK);
    assert_int_not_equal(decant_container_define(writer, "/a/b", DECANT_STORED_F32, &shape, &id, &err),
                         DECANT_OK);
    assert_status(decant_container_set_integer(writer, "/missing", "x", 1, &err), DECANT_ERROR_BUG);
    decant_container_discard(&writer);
    assert_null(writer);
    assert_nothing_left(ranks, &at);
    decant_container_discard(&writer);
    remove_folder(ranks, at.folder);
}

static void definitions_are_refused_when_ranks_differ(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    if (ranks->size == 1)
        skip();
    place at = make_place(ranks);
    decant_container_writer *writer;
    int id;
    const decant_shape shape = {1, {ranks->rank == 1 ? 4 : 3}};
    assert_ok(decant_container_create(ranks, at.path, false, &writer, &err));
    assert_status(decant_container_define(writer, "/a", DECANT_STORED_F32, &shape, &id, &err),
                  DECANT_ERROR_BUG);
    assert_status(decant_container_set_integer(writer, "/", "x", ranks->rank, &err), DECANT_ERROR_BUG);
    decant_container_discard(&writer);
    assert_nothing_left(ranks, &at);
    remove_folder(ranks, at.folder);
}

static void create_fails_on_all_ranks_when_the_place_is_wrong(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    char path[160];
    decant_container_writer *writer;
    snprintf(path, sizeof path, "%s/missing/model.h5", at.folder);
    assert_status(decant_container_create(ranks, path, false, &writer, &err), DECANT_ERROR_DISK);
    assert_non_null(strstr(err.message, "No such file"));
    /* A link under the partial's name is not followed. */
    snprintf(path, sizeof path, "%s/victim", at.folder);
    if (ranks->rank == 0)
        assert_int_equal(symlink(path, at.partial), 0);
    assert_ok(decant_ranks_agree(ranks, DECANT_OK, &err));
    assert_status(decant_container_create(ranks, at.path, false, &writer, &err), DECANT_ERROR_DISK);
    assert_false(exists(path));
    remove_folder(ranks, at.folder);
}

static void second_writer_of_one_output_is_refused(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    decant_container_writer *first, *second;
    assert_ok(decant_container_create(ranks, at.path, false, &first, &err));
    assert_status(decant_container_create(ranks, at.path, false, &second, &err), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "another job"));
    assert_ok(decant_container_finish(&first, &err));
    assert_true(exists(at.path));
    remove_folder(ranks, at.folder);
}

static void older_partial_file_is_replaced(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    if (ranks->rank == 0) {
        FILE *old = fopen(at.partial, "w");
        for (int i = 0; i < 100000; i++)
            fputs("remains of a killed job\n", old);
        fclose(old);
    }
    assert_ok(decant_ranks_agree(ranks, DECANT_OK, &err));
    assert_ok(write_sample(ranks, at.path, false, &err));
    struct stat about;
    assert_int_equal(stat(at.path, &about), 0);
    assert_true(about.st_size < 100000);
    remove_folder(ranks, at.folder);
}

static void define_fails_on_all_ranks_when_the_disk_is_too_small(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    decant_container_writer *writer;
    int id;
    const decant_shape shape = {2, {1 << 30, 1 << 20}}; /* 4 PiB */
    assert_ok(decant_container_create(ranks, at.path, false, &writer, &err));
    assert_status(decant_container_define(writer, "/a", DECANT_STORED_F32, &shape, &id, &err),
                  DECANT_ERROR_DISK);
    assert_int_equal(err.rank, 0);
    assert_non_null(strstr(err.message, "do not fit"));
    decant_container_discard(&writer);
    assert_nothing_left(ranks, &at);
    remove_folder(ranks, at.folder);
}

/* A limit on the size of files stands in for a disk that another program fills. */
static void limit_file_size(rlim_t bytes)
{
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = bytes;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static void finish_fails_on_all_ranks_when_the_disk_is_full(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    decant_container_writer *writer;
    int id, victim = ranks->size - 1;
    enum { ROW = 100000 };
    const decant_shape shape = {2, {ranks->size, ROW}};
    float *row = calloc(ROW, sizeof *row);
    assert_ok(decant_container_create(ranks, at.path, false, &writer, &err));
    assert_ok(decant_container_define(writer, "/a", DECANT_STORED_F32, &shape, &id, &err));
    assert_ok(decant_container_begin(writer, &err));
    if (ranks->rank == victim)
        limit_file_size(ROW);
    decant_status status = decant_container_write(writer, id, (int64_t)ranks->rank * ROW, ROW, row, &err);
    limit_file_size(RLIM_INFINITY);
    assert_status(status, ranks->rank == victim ? DECANT_ERROR_DISK : DECANT_OK);
    assert_status(decant_container_finish(&writer, &err), DECANT_ERROR_DISK);
    assert_int_equal(err.rank, victim);
    assert_non_null(strstr(err.message, "/a"));
    assert_nothing_left(ranks, &at);
    free(row);
    remove_folder(ranks, at.folder);
}

/* ---- damage ---- */

static decant_status check_file(const char *path, decant_error *err)
{
    decant_container *container;
    decant_status status = decant_container_open(path, &container, err);
    if (status == DECANT_OK)
        status = decant_container_verify(container, NULL, NULL, err);
    decant_container_close(&container);
    return status;
}

static void every_flipped_byte_is_detected(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    if (ranks->size > 1)
        skip(); /* the bytes are the same */
    place at = make_place(ranks);
    assert_ok(write_sample(ranks, at.path, false, &err));
    if (ranks->rank == 0) {
        struct stat about;
        int file = open(at.path, O_RDWR);
        assert_true(file >= 0 && fstat(file, &about) == 0);
        assert_ok(check_file(at.path, &err));
        for (off_t i = 0; i < about.st_size; i++) {
            unsigned char byte, other;
            assert_int_equal(pread(file, &byte, 1, i), 1);
            other = byte ^ (unsigned char)(1 << i % 8);
            assert_int_equal(pwrite(file, &other, 1, i), 1);
            if (check_file(at.path, &err) != DECANT_ERROR_INPUT)
                fail_msg("byte %lld of %lld can be changed unseen", (long long)i, (long long)about.st_size);
            assert_int_equal(pwrite(file, &byte, 1, i), 1);
        }
        assert_ok(check_file(at.path, &err));
        close(file);
    }
    remove_folder(ranks, at.folder);
}

static void every_other_length_is_detected(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    assert_ok(write_sample(ranks, at.path, false, &err));
    if (ranks->rank == 0) {
        struct stat about;
        assert_int_equal(stat(at.path, &about), 0);
        assert_int_equal(truncate(at.path, about.st_size + 1), 0);
        assert_status(check_file(at.path, &err), DECANT_ERROR_INPUT);
        for (off_t length = about.st_size - 1; length >= 0; length -= length > 200 ? 97 : 1) {
            assert_int_equal(truncate(at.path, length), 0);
            assert_status(check_file(at.path, &err), DECANT_ERROR_INPUT);
        }
    }
    remove_folder(ranks, at.folder);
}

/* Pieces of at most 1 GiB make up larger datasets. Needs 5 GB of disk and memory: asked for by hand. */
static void dataset_beyond_2_gigabytes_comes_back(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    if (!getenv("DECANT_TEST_LARGE"))
        skip();
    place at = make_place(ranks);
    enum { ROWS = 3, COLUMNS = 450000000 };
    const decant_shape shape = {2, {ROWS, COLUMNS}};
    void *block;
    decant_container_writer *writer;
    decant_container *container;
    int id;
    assert_ok(decant_memory_allocate((size_t)ROWS * COLUMNS * 2, "a large dataset", &block, &err));
    uint16_t *values = block;
    for (int64_t i = 0; i < (int64_t)ROWS * COLUMNS; i += 1021)
        values[i] = (uint16_t)(i / 1021);
    int64_t first = (int64_t)ROWS * COLUMNS * ranks->rank / ranks->size;
    int64_t end = (int64_t)ROWS * COLUMNS * (ranks->rank + 1) / ranks->size;
    assert_ok(decant_container_create(ranks, at.path, false, &writer, &err));
    assert_ok(decant_container_define(writer, "/large", DECANT_STORED_U16, &shape, &id, &err));
    assert_ok(decant_container_begin(writer, &err));
    assert_ok(decant_container_write(writer, id, first, end - first, values + first, &err));
    assert_ok(decant_container_finish(&writer, &err));
    memset(values, 0, (size_t)ROWS * COLUMNS * 2);
    assert_ok(decant_container_open(at.path, &container, &err));
    assert_ok(decant_container_read(container, "/large", DECANT_STORED_U16, &shape, values, &err));
    for (int64_t i = 0; i < (int64_t)ROWS * COLUMNS; i++)
        if (values[i] != (i % 1021 ? 0 : (uint16_t)(i / 1021)))
            fail_msg("element %lld differs", (long long)i);
    assert_ok(decant_container_verify(container, NULL, NULL, &err));
    decant_container_close(&container);
    decant_memory_free(block);
    remove_folder(ranks, at.folder);
}

/* "write PATH SHIFT [TEXT]" */
static int write_for_script(int argc, char **argv)
{
    decant_error err = {0};
    decant_ranks *ranks;
    MPI_Init(&argc, &argv);
    decant_status status = decant_ranks_create(MPI_COMM_WORLD, &ranks, &err);
    if (status == DECANT_OK)
        status =
            write_sample_with(ranks, argv[2], true, atoi(argv[3]), argc > 4 ? argv[4] : "decant test", &err);
    if (status != DECANT_OK)
        fprintf(stderr, "%s\n", err.message);
    decant_ranks_destroy(&ranks);
    MPI_Finalize();
    return decant_status_exit(status);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_comes_back),
        cmocka_unit_test(attributes_come_back),
        cmocka_unit_test(every_part_can_be_read),
        cmocka_unit_test(every_part_can_be_written),
        cmocka_unit_test(data_and_definitions_may_take_turns),
        cmocka_unit_test(settled_container_is_whole_before_it_is_named),
        cmocka_unit_test(settling_fails_when_parts_are_missing),
        cmocka_unit_test(container_may_be_empty),
        cmocka_unit_test(reading_is_refused_when_type_or_shape_differ),
        cmocka_unit_test(existing_output_is_refused_without_overwrite),
        cmocka_unit_test(write_is_refused_before_begin),
        cmocka_unit_test(finish_fails_when_parts_are_missing),
        cmocka_unit_test(finish_fails_when_parts_overlap),
        cmocka_unit_test(finish_fails_when_one_rank_failed_to_write),
        cmocka_unit_test(definitions_are_refused_when_impossible),
        cmocka_unit_test(definitions_are_refused_when_ranks_differ),
        cmocka_unit_test(create_fails_on_all_ranks_when_the_place_is_wrong),
        cmocka_unit_test(second_writer_of_one_output_is_refused),
        cmocka_unit_test(older_partial_file_is_replaced),
        cmocka_unit_test(define_fails_on_all_ranks_when_the_disk_is_too_small),
        cmocka_unit_test(finish_fails_on_all_ranks_when_the_disk_is_full),
        cmocka_unit_test(every_flipped_byte_is_detected),
        cmocka_unit_test(every_other_length_is_detected),
        cmocka_unit_test(dataset_beyond_2_gigabytes_comes_back),
    };
    if (argc >= 4 && strcmp(argv[1], "write") == 0)
        return write_for_script(argc, argv);
    return run_mpi_tests(argc, argv, tests);
}
