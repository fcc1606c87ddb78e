/* Containers whose seal and checksums are right, but whose layers lie: who reads a layer refuses indices that a
 * kernel could not follow, and shapes that are claimed and not there, before any memory is taken for them; and
 * what looking at layers reads.
 * ranks: 1 */
#include "stages/model_check.h"
#include "stages/quantized_file.h"
#include "stages/source.h"
#include "tests/ranks/mpi_tests.h"

#include <string.h>

enum { ROWS = 3, COLUMNS = 1200, BITS = 2, WORDS = (COLUMNS + 31) / 32, COUNT = 6 };

/* A k-means layer as a file has it. */
typedef struct stored_layer {
    uint32_t row_offsets[ROWS + 1];
    uint16_t columns[COUNT];
} stored_layer;

static const stored_layer true_layer = {{0, 3, 3, 6}, {7, 1100, 1199, 0, 1, 1023}};

static void put(decant_container_writer *writer, int id, int64_t count, const void *data)
{
    decant_error err;
    assert_ok(decant_container_write(writer, id, 0, count, data, &err));
}

static void write_layer(decant_ranks *ranks, const char *path, const stored_layer *layer)
{
    static const uint32_t codes[ROWS * BITS * WORDS];
    static const uint16_t levels[ROWS << BITS], values[COUNT];
    const struct {
        const char *path;
        decant_stored type;
        decant_shape shape;
        const void *data;
    } parts[] = {
        {"/layer/codes", DECANT_STORED_U32, {3, {ROWS, BITS, WORDS}}, codes},
        {"/layer/levels", DECANT_STORED_F16, {2, {ROWS, 1 << BITS}}, levels},
        {"/layer/sparse/row_offsets", DECANT_STORED_U32, {1, {ROWS + 1}}, layer->row_offsets},
        {"/layer/sparse/columns", DECANT_STORED_U16, {1, {COUNT}}, layer->columns},
        {"/layer/sparse/values", DECANT_STORED_F16, {1, {COUNT}}, values},
    };
    enum { PARTS = sizeof parts / sizeof *parts };
    decant_container_writer *writer;
    decant_error err;
    int ids[PARTS];
    assert_ok(decant_container_create(ranks, path, true, &writer, &err));
    for (int i = 0; i < PARTS; i++)
        assert_ok(
            decant_container_define(writer, parts[i].path, parts[i].type, &parts[i].shape, &ids[i], &err));
    assert_ok(decant_container_set_text(writer, "/layer", "method", "kmeans", &err));
    assert_ok(decant_container_set_integer(writer, "/layer", "bits", BITS, &err));
    assert_ok(decant_container_begin(writer, &err));
    for (int i = 0; i < PARTS; i++) {
        int64_t count = 1;
        for (int d = 0; d < parts[i].shape.dimensions; d++)
            count *= parts[i].shape.extent[d];
        put(writer, ids[i], count, parts[i].data);
    }
    assert_ok(decant_container_finish(&writer, &err));
}

/* What reading the layer as [rows, columns] comes to. */
static decant_status read_layer(const char *path, int64_t rows, int64_t columns, decant_error *err)
{
    decant_backend *backend = NULL;
    decant_container *container = NULL;
    decant_container_source *source = NULL;
    decant_packed_matrix *packed = NULL;
    decant_status status;
    DECANT_TRY(decant_backend_create_cpu(1, &backend, err));
    DECANT_TRY(decant_container_open(path, &container, err));
    DECANT_TRY(decant_container_source_create(container, &source, err));
    const decant_weight_source weights = decant_source_of_container(source);
    DECANT_TRY(weights.packed(weights.context, backend, "layer", rows, columns, &packed, err));
done:
    if (packed)
        decant_packed_matrix_free(backend, packed);
    decant_memory_free(packed);
    decant_container_source_destroy(&source);
    decant_container_close(&container);
    decant_backend_destroy(&backend);
    return status;
}

static void sparse_indices_are_those_of_the_matrix(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err;
    char folder[64], path[96];
    make_folder(ranks, folder);
    snprintf(path, sizeof path, "%s/lie.h5", folder);
    write_layer(ranks, path, &true_layer);
    assert_ok(read_layer(path, ROWS, COLUMNS, &err));
    const stored_layer lies[] = {
        {{0, 3, 3, 6}, {1100, 1100, 1199, 0, 1, 1023}}, /* a column twice */
        {{0, 3, 3, 6}, {1100, 1199, 7, 0, 1, 1023}},    /* columns that descend: 7 is before its block */
        {{0, 3, 3, 6}, {7, 1100, 1200, 0, 1, 1023}},    /* one behind the last */
        {{0, 3, 2, 6}, {7, 1100, 1199, 0, 1, 1023}},    /* a row of less than nothing */
        {{0, 3, 3, 5}, {7, 1100, 1199, 0, 1, 1023}},    /* fewer than there are */
        {{1, 3, 3, 6}, {7, 1100, 1199, 0, 1, 1023}},    /* that do not begin with the first */
        {{0, 7, 3, 6}, {7, 1100, 1199, 0, 1, 1023}},    /* more than there are, in between */
    };
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        write_layer(ranks, path, &lies[i]);
        assert_status(read_layer(path, ROWS, COLUMNS, &err), DECANT_ERROR_INPUT);
        assert_non_null(strstr(err.message, path));
        assert_non_null(strstr(err.message, "/layer"));
    }
    remove_folder(ranks, folder);
}

/* 2^60 weights are no reason to run out of memory when the codes of 3600 are there. */
static void claimed_shapes_are_looked_at_before_memory_is_taken(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err;
    char folder[64], path[96];
    make_folder(ranks, folder);
    snprintf(path, sizeof path, "%s/lie.h5", folder);
    write_layer(ranks, path, &true_layer);
    assert_status(read_layer(path, INT64_C(1) << 30, INT64_C(1) << 30, &err), DECANT_ERROR_INPUT);
    assert_non_null(strstr(err.message, path));
    assert_non_null(strstr(err.message, "/layer/codes"));
    remove_folder(ranks, folder);
}

/* ---- a work directory's layers ---- */

/* Rows of 4 of 6 weights kept apart. */
static void write_work_file(decant_ranks *ranks, const char *path, const decant_recipe *recipe,
                            const decant_linear *linear, uint32_t *row_offsets, uint32_t *columns)
{
    decant_error err;
    decant_container_writer *writer;
    decant_quantized_datasets datasets;
    decant_candidate_list list;
    uint16_t levels[2 << BITS] = {0};
    decant_table_row row = {.source_checksum = 1};
    assert_ok(decant_recipe_offer(recipe, linear->rows, linear->columns, &list, &err));
    decant_quantized_layer layer = {
        .rows = linear->rows, .columns = linear->columns, .candidates = list.count, .is_parked = true};
    memcpy(layer.candidate, list.candidate, sizeof layer.candidate);
    layer.levels[0] = levels;
    layer.sparse = (decant_sparse_pattern){list.candidate[0].sparse_count, row_offsets, columns};
    assert_ok(decant_container_create(ranks, path, true, &writer, &err));
    assert_ok(decant_quantized_file_define(writer, recipe, linear, &datasets, &err));
    assert_ok(decant_container_begin(writer, &err));
    assert_ok(decant_quantized_file_write(writer, linear, &datasets, &layer, &row, &err));
    assert_ok(decant_container_finish(&writer, &err));
}

static decant_status read_work_file(const char *path, const decant_recipe *recipe, const decant_linear *linear,
                                    decant_error *err)
{
    decant_backend *backend = NULL;
    decant_container *file = NULL;
    decant_quantized_layer layer = {0};
    decant_table_row row;
    decant_status status;
    DECANT_TRY(decant_backend_create_cpu(1, &backend, err));
    DECANT_TRY(decant_container_open(path, &file, err));
    DECANT_TRY(decant_quantized_file_read(file, recipe, linear, &layer, &row, err));
done:
    decant_quantized_layer_free(backend, &layer);
    decant_container_close(&file);
    decant_backend_destroy(&backend);
    return status;
}

static void indices_of_a_work_directory_are_too(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err;
    char folder[64], path[96];
    const decant_linear linear = {.name = "layer", .rows = 2, .columns = 6};
    decant_recipe recipe = {
        .widths = 1, .width = {BITS}, .widths_asked = true, .sensitive = 0.25, .outliers = 0.25};
    recipe.uses[DECANT_METHOD_KMEANS] = true;
    make_folder(ranks, folder);
    snprintf(path, sizeof path, "%s/work.h5", folder);
    uint32_t offsets[] = {0, 3, 6}, columns[] = {0, 2, 5, 1, 3, 4};
    write_work_file(ranks, path, &recipe, &linear, offsets, columns);
    assert_ok(read_work_file(path, &recipe, &linear, &err));
    columns[2] = 6;
    write_work_file(ranks, path, &recipe, &linear, offsets, columns);
    assert_status(read_work_file(path, &recipe, &linear, &err), DECANT_ERROR_INPUT);
    columns[2] = 5;
    offsets[1] = 7;
    write_work_file(ranks, path, &recipe, &linear, offsets, columns);
    assert_status(read_work_file(path, &recipe, &linear, &err), DECANT_ERROR_INPUT);
    assert_non_null(strstr(err.message, path));
    assert_non_null(strstr(err.message, "/layer"));
    remove_folder(ranks, folder);
}

/* ---- what looking at layers costs ---- */

/* Bytes that this process has read, from files and caches. */
static int64_t bytes_read(void)
{
    char line[64];
    long long bytes = -1;
    FILE *file = fopen("/proc/self/io", "r");
    while (file && bytes < 0 && fgets(line, sizeof line, file))
        sscanf(line, "rchar: %lld", &bytes);
    if (file)
        fclose(file);
    return bytes;
}

/* `decant verify` has compared the checksums of codes by then: they are most of a container. */
static void layers_are_checked_without_reading_codes_again(void **state)
{
    enum { LAYER_ROWS = 64, LAYER_COLUMNS = 8192, CODES = LAYER_ROWS * BITS * LAYER_COLUMNS / 32 };
    static const uint32_t codes[CODES];
    static const uint16_t levels[LAYER_ROWS << BITS];
    decant_ranks *ranks = *state;
    decant_container_writer *writer;
    decant_container *container;
    decant_error err;
    char folder[64], path[96];
    int codes_id, levels_id, names_id;
    make_folder(ranks, folder);
    snprintf(path, sizeof path, "%s/codes.h5", folder);
    assert_ok(decant_container_create(ranks, path, true, &writer, &err));
    assert_ok(decant_container_define(writer, "/layer/codes", DECANT_STORED_U32,
                                      &(decant_shape){3, {LAYER_ROWS, BITS, LAYER_COLUMNS / 32}}, &codes_id,
                                      &err));
    assert_ok(decant_container_define(writer, "/layer/levels", DECANT_STORED_F16,
                                      &(decant_shape){2, {LAYER_ROWS, 1 << BITS}}, &levels_id, &err));
    assert_ok(decant_container_define(writer, "/errors/layers", DECANT_STORED_U8, &(decant_shape){1, {6}},
                                      &names_id, &err));
    assert_ok(decant_container_set_text(writer, "/layer", "method", "kmeans", &err));
    assert_ok(decant_container_set_integer(writer, "/layer", "bits", BITS, &err));
    assert_ok(decant_container_set_integer(writer, "/layer", "rows", LAYER_ROWS, &err));
    assert_ok(decant_container_set_integer(writer, "/layer", "columns", LAYER_COLUMNS, &err));
    assert_ok(decant_container_begin(writer, &err));
    put(writer, codes_id, CODES, codes);
    put(writer, levels_id, LAYER_ROWS << BITS, levels);
    put(writer, names_id, 6, "layer\n");
    assert_ok(decant_container_finish(&writer, &err));

    assert_ok(decant_container_open(path, &container, &err));
    const int64_t before = bytes_read();
    assert_ok(decant_model_check_layers(container, &err));
    const int64_t read = bytes_read() - before;
    decant_container_close(&container);
    remove_folder(ranks, folder);
    if (before < 0)
        skip();
    assert_in_range(read, sizeof levels, sizeof codes / 2);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sparse_indices_are_those_of_the_matrix),
        cmocka_unit_test(claimed_shapes_are_looked_at_before_memory_is_taken),
        cmocka_unit_test(indices_of_a_work_directory_are_too),
        cmocka_unit_test(layers_are_checked_without_reading_codes_again),
    };
    return run_mpi_tests(argc, argv, tests);
}
