/* io/container, written by all ranks and read back by each. ranks: 1 2 3
 *
 * With the arguments "write PATH SHIFT [TEXT]" the program writes its sample container there instead, which
 * rank writes what being moved on by SHIFT, and the text in it; tests/io/test_container_*.sh look at the files.
 */
#include "tests/ranks/sample_container.h"

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
    decant_container *container;
    place at = open_sample(ranks, &container);
    assert_false(exists(at.partial));
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
    close_sample(ranks, &at, &container);
}

static void attributes_come_back(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    decant_container *container;
    place at = open_sample(ranks, &container);
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
    close_sample(ranks, &at, &container);
}

/* Every range of a three-dimensional dataset, so that all ways of cutting it into boxes are met. */
static void every_part_can_be_read(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    decant_container *container;
    place at = open_sample(ranks, &container);
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
    close_sample(ranks, &at, &container);
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
    decant_container *container;
    place at = open_sample(ranks, &container);
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
    close_sample(ranks, &at, &container);
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
        cmocka_unit_test(dataset_beyond_2_gigabytes_comes_back),
    };
    if (argc >= 4 && strcmp(argv[1], "write") == 0)
        return write_for_script(argc, argv);
    return run_mpi_tests(argc, argv, tests);
}
