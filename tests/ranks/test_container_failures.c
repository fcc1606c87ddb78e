/* What goes wrong while a container is written: every rank hears of it, and nothing is left. ranks: 1 2 3 */
#include "tests/ranks/sample_container.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

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

/* Without overwrite, what took the name while the container was written stays. */
static void output_that_came_meanwhile_is_not_replaced(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    decant_container_writer *writer;
    struct stat before = {0}, after = {0};
    assert_ok(decant_container_create(ranks, at.path, false, &writer, &err));
    if (ranks->rank == 0)
        assert_int_equal(mkfifo(at.path, 0600), 0);
    assert_ok(decant_ranks_agree(ranks, DECANT_OK, &err));
    assert_int_equal(lstat(at.path, &before), 0);
    assert_status(decant_container_finish(&writer, &err), DECANT_ERROR_DISK);
    assert_non_null(strstr(err.message, "File exists"));
    assert_int_equal(lstat(at.path, &after), 0);
    assert_true(before.st_ino == after.st_ino && S_ISFIFO(after.st_mode));
    assert_ok(decant_ranks_agree(ranks, DECANT_OK, &err)); /* rank 0 has removed what it wrote */
    assert_false(exists(at.partial));
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

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(existing_output_is_refused_without_overwrite),
        cmocka_unit_test(write_is_refused_before_begin),
        cmocka_unit_test(finish_fails_when_parts_are_missing),
        cmocka_unit_test(finish_fails_when_parts_overlap),
        cmocka_unit_test(finish_fails_when_one_rank_failed_to_write),
        cmocka_unit_test(definitions_are_refused_when_impossible),
        cmocka_unit_test(definitions_are_refused_when_ranks_differ),
        cmocka_unit_test(create_fails_on_all_ranks_when_the_place_is_wrong),
        cmocka_unit_test(second_writer_of_one_output_is_refused),
        cmocka_unit_test(output_that_came_meanwhile_is_not_replaced),
        cmocka_unit_test(older_partial_file_is_replaced),
        cmocka_unit_test(define_fails_on_all_ranks_when_the_disk_is_too_small),
        cmocka_unit_test(finish_fails_on_all_ranks_when_the_disk_is_full),
    };
    return run_mpi_tests(argc, argv, tests);
}
