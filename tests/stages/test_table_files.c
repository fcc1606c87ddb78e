/* Statistics files and error tables whose seal and checksums are right, but whose numbers nobody can count
 * with: refused, naming the file. ranks: 1 */
#include "stages/error_table_file.h"
#include "stages/merge.h"
#include "tests/ranks/mpi_tests.h"

#include <string.h>

/* ---- statistics ---- */

static const decant_statistics_origin true_origin = {.form = DECANT_FISHER_TOKEN,
                                                     .sequences = 128,
                                                     .length = 2048,
                                                     .micro_batch = 4,
                                                     .replicas = 1,
                                                     .loss = 2.5};

static decant_status write_and_open(decant_ranks *ranks, const char *path,
                                    const decant_statistics_origin *origin, decant_statistics_origin *found,
                                    decant_error *err)
{
    decant_container_writer *writer = NULL;
    decant_container *file = NULL;
    decant_status status;
    DECANT_TRY(decant_container_create(ranks, path, true, &writer, err));
    DECANT_TRY(decant_statistics_set_origin(writer, origin, err));
    DECANT_TRY(decant_container_finish(&writer, err));
    DECANT_TRY(decant_statistics_open(path, &file, found, err));
done:
    decant_container_discard(&writer);
    decant_container_close(&file);
    return status;
}

static void counts_of_a_statistics_file_are_possible(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err;
    decant_statistics_origin found;
    char folder[64], path[96];
    make_folder(ranks, folder);
    snprintf(path, sizeof path, "%s/statistics.h5", folder);
    assert_ok(write_and_open(ranks, path, &true_origin, &found, &err));
    assert_int_equal(found.sequences, 128);
    assert_int_equal(found.replicas, 1);
    const struct {
        size_t place;
        int64_t value;
    } lies[] = {
        {offsetof(decant_statistics_origin, sequences), 0},
        {offsetof(decant_statistics_origin, sequences), INT64_MAX},
        {offsetof(decant_statistics_origin, length), 1},
        {offsetof(decant_statistics_origin, length), INT64_C(1) << 40},
        {offsetof(decant_statistics_origin, micro_batch), -1},
        {offsetof(decant_statistics_origin, micro_batch), INT64_MAX},
        {offsetof(decant_statistics_origin, replicas), 0},
        {offsetof(decant_statistics_origin, replicas), INT64_MAX},
    };
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        decant_statistics_origin lie = true_origin;
        memcpy((char *)&lie + lies[i].place, &lies[i].value, sizeof lies[i].value);
        assert_status(write_and_open(ranks, path, &lie, &found, &err), DECANT_ERROR_INPUT);
        assert_non_null(strstr(err.message, path));
    }
    remove_folder(ranks, folder);
}

static void statistics_combine_as_sums_do(void **state)
{
    (void)state;
    decant_error err;
    const char *const paths[] = {"first", "second"};
    decant_statistics_origin origins[] = {true_origin, true_origin}, merged;
    origins[1].sequences = 64;
    origins[1].micro_batch = 8;
    origins[1].replicas = 2;
    origins[1].loss = 4;
    assert_ok(decant_statistics_combine(origins, paths, 2, &merged, &err));
    assert_int_equal(merged.sequences, 192);
    assert_int_equal(merged.replicas, 3);
    assert_int_equal(merged.micro_batch, 8);
    assert_true(merged.loss == (128 * 2.5 + 64 * 4) / 192);
    origins[1].length = 1024;
    assert_status(decant_statistics_combine(origins, paths, 2, &merged, &err), DECANT_ERROR_INPUT);
    assert_non_null(strstr(err.message, "second"));
}

/* ---- error tables ---- */

static decant_status write_and_read(decant_ranks *ranks, const char *path, const decant_error_table *table,
                                    decant_error_table *found, decant_error *err)
{
    decant_error_table_datasets datasets;
    decant_container_writer *writer = NULL;
    decant_container *file = NULL;
    decant_status status;
    DECANT_TRY(decant_container_create(ranks, path, true, &writer, err));
    DECANT_TRY(decant_error_table_define(writer, table, &datasets, err));
    DECANT_TRY(decant_container_begin(writer, err));
    DECANT_TRY(decant_error_table_write(writer, table, &datasets, err));
    DECANT_TRY(decant_container_finish(&writer, err));
    DECANT_TRY(decant_container_open(path, &file, err));
    DECANT_TRY(decant_error_table_read(file, found, err));
done:
    decant_container_discard(&writer);
    decant_container_close(&file);
    return status;
}

static void numbers_of_an_error_table_can_be_added_up(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err;
    char folder[64], path[96];
    enum { LAYERS = 3 };
    static decant_table_row rows[LAYERS];
    const decant_error_table table = {LAYERS, rows};
    decant_error_table found;
    make_folder(ranks, folder);
    snprintf(path, sizeof path, "%s/model.h5", folder);
    for (int i = 0; i < LAYERS; i++) {
        rows[i].candidates = 2;
        for (int j = 0; j < 2; j++)
            rows[i].candidate[j] = (decant_candidate){.method = DECANT_METHOD_KMEANS,
                                                      .code_bits = 3 + j,
                                                      .dimension = 1,
                                                      .bytes = 1000 + j,
                                                      .predicted = 0.5};
    }
    assert_ok(write_and_read(ranks, path, &table, &found, &err));
    assert_int_equal(found.layers, LAYERS);
    assert_int_equal(found.rows[2].candidate[1].bytes, 1001);
    decant_error_table_free(&found);
    const int64_t lies[] = {0, -1, INT64_MIN, INT64_MAX, INT64_MAX / LAYERS + 1};
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        rows[1].candidate[1].bytes = lies[i];
        assert_status(write_and_read(ranks, path, &table, &found, &err), DECANT_ERROR_INPUT);
        assert_non_null(strstr(err.message, path));
        assert_null(found.rows);
    }
    rows[1].candidate[1].bytes = INT64_MAX / LAYERS;
    assert_ok(write_and_read(ranks, path, &table, &found, &err));
    decant_error_table_free(&found);
    for (int i = 0; i < LAYERS; i++) /* all layers have the same candidates */
        rows[i].candidate[0].code_bits = 13;
    assert_status(write_and_read(ranks, path, &table, &found, &err), DECANT_ERROR_INPUT);
    assert_non_null(strstr(err.message, path));
    remove_folder(ranks, folder);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_of_a_statistics_file_are_possible),
        cmocka_unit_test(statistics_combine_as_sums_do),
        cmocka_unit_test(numbers_of_an_error_table_can_be_added_up),
    };
    return run_mpi_tests(argc, argv, tests);
}
