/* io/safetensors on good models, whole and in shards, and on files that lie in every way the format allows. */
#include "io/safetensors.h"

#include "tests/io/scratch.h"

/* Writes a safetensors file with the length of the header as given, whatever the header really has. */
static void write_with_length(const scratch *at, const char *name, uint64_t length, const char *header,
                              const void *data, size_t data_bytes)
{
    char file[8192];
    size_t header_bytes = strlen(header);
    assert_true(8 + header_bytes + data_bytes <= sizeof file);
    memcpy(file, &length, 8);
    memcpy(file + 8, header, header_bytes);
    memcpy(file + 8 + header_bytes, data, data_bytes);
    scratch_write(at, name, file, 8 + header_bytes + data_bytes);
}

static void write_tensors(const scratch *at, const char *name, const char *header, const void *data,
                          size_t data_bytes)
{
    write_with_length(at, name, strlen(header), header, data, data_bytes);
}

static void expect_refusal(const scratch *at, const char *named)
{
    decant_error err = {0};
    decant_safetensors *model;
    assert_status(decant_safetensors_open(at->folder, &model, &err), DECANT_ERROR_INPUT);
    assert_null(model);
    assert_message(&err, at->folder);
    assert_message(&err, named);
}

static unsigned char bytes[64]; /* 0, 1, 2, … */

/* A matrix of each type, a vector, a scalar, an empty one, and some that are left out. Padded as writers do. */
static const char good[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                           "\"b.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                           "\"a.weight\":{\"dtype\":\"F16\",\"shape\":[3,2],\"data_offsets\":[24,36]},"
                           "\"c.weight\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[36,44]},"
                           "\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[44,48]},"
                           "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[48,48]},"
                           "\"position_ids\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[48,56]},"
                           "\"mask\":{\"dtype\":\"BOOL\",\"shape\":[3],\"data_offsets\":[56,59]},"
                           "\"five\":{\"dtype\":\"F16\",\"shape\":[1,1,1,1,2],\"data_offsets\":[59,63]},"
                           "\"nibble\":{\"dtype\":\"F4\",\"shape\":[2],\"data_offsets\":[63,64]}}   ";

static void one_file_is_read(void **state)
{
    const scratch *at = *state;
    decant_error err = {0};
    decant_safetensors *model;
    write_tensors(at, "model.safetensors", good, bytes, sizeof bytes);
    assert_ok(decant_safetensors_open(at->folder, &model, &err));
    static const char *const names[] = {"a.weight", "b.weight", "c.weight", "empty", "scalar"};
    assert_int_equal(decant_safetensors_count(model), 5);
    for (int64_t i = 0; i < 5; i++) {
        const decant_tensor *tensor = decant_safetensors_at(model, i);
        assert_string_equal(tensor->name, names[i]);
        assert_ptr_equal(decant_safetensors_find(model, names[i]), tensor);
        assert_int_equal(decant_safetensors_index(model, names[i]), i);
    }
    const decant_tensor *tensor = decant_safetensors_find(model, "a.weight");
    assert_int_equal(tensor->element, DECANT_F16);
    assert_int_equal(tensor->dimensions, 2);
    assert_int_equal(tensor->shape[0], 3);
    assert_int_equal(tensor->shape[1], 2);
    assert_int_equal(tensor->size_bytes, 12);
    assert_memory_equal(tensor->data, bytes + 24, 12);
    assert_int_equal(decant_safetensors_find(model, "scalar")->dimensions, 0);
    assert_memory_equal(decant_safetensors_find(model, "scalar")->data, bytes + 44, 4);
    assert_int_equal(decant_safetensors_find(model, "empty")->size_bytes, 0);
    assert_null(decant_safetensors_find(model, "mask"));
    assert_int_equal(decant_safetensors_index(model, "mask"), -1);
    assert_null(decant_safetensors_find(model, ""));
    decant_safetensors_close(&model);
    assert_null(model);
    decant_safetensors_close(&model);
}

static void matrices_are_checked_against_their_shape(void **state)
{
    const scratch *at = *state;
    decant_error err = {0};
    decant_safetensors *model;
    decant_matrix matrix;
    write_tensors(at, "model.safetensors", good, bytes, sizeof bytes);
    assert_ok(decant_safetensors_open(at->folder, &model, &err));
    assert_ok(decant_safetensors_matrix(model, "b.weight", 2, 3, &matrix, &err));
    assert_int_equal(matrix.element, DECANT_F32);
    assert_int_equal(matrix.rows, 2);
    assert_int_equal(matrix.columns, 3);
    assert_memory_equal(matrix.data, bytes, 24);
    assert_ok(decant_safetensors_matrix(model, "c.weight", 1, 4, &matrix, &err));
    assert_int_equal(matrix.element, DECANT_BF16);
    static const struct {
        const char *name;
        int64_t rows, columns;
        const char *named;
    } wrong[] = {
        {"b.weight", 5, 3, "needs [5, 3]"}, {"b.weight", 2, 4, "needs [2, 4]"}, {"b.weight", 3, 2, "is [2, 3]"},
        {"b.weight", 1, 6, "needs [1, 6]"}, {"c.weight", 4, 1, "is [1, 4]"},    {"scalar", 1, 1, "no matrix"},
        {"missing", 1, 1, "no tensor"},     {"position_ids", 1, 1, "F32"},      {"empty", 7, 0, "is [0, 7]"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_status(
            decant_safetensors_matrix(model, wrong[i].name, wrong[i].rows, wrong[i].columns, &matrix, &err),
            DECANT_ERROR_INPUT);
        assert_message(&err, wrong[i].named);
        assert_message(&err, wrong[i].name);
    }
    decant_safetensors_close(&model);
}

/* An odd header and a BOOL before it: neither the data nor the tensors within them are where their elements
 * need. */
static void unaligned_tensors_are_aligned(void **state)
{
    const scratch *at = *state;
    decant_error err = {0};
    decant_safetensors *model;
    for (int padding = 0; padding < 8; padding++) {
        char header[512];
        snprintf(header, sizeof header,
                 "{\"flag\":{\"dtype\":\"BOOL\",\"shape\":[1],\"data_offsets\":[0,1]},"
                 "\"w\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[1,13]},"
                 "\"e\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[13,13]},"
                 "\"v\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[13,17]}}%*s",
                 padding, "");
        write_tensors(at, "model.safetensors", header, bytes, 17);
        assert_ok(decant_safetensors_open(at->folder, &model, &err));
        const decant_tensor *w = decant_safetensors_find(model, "w"), *v = decant_safetensors_find(model, "v");
        assert_int_equal((uintptr_t)w->data % 4, 0);
        assert_int_equal((uintptr_t)v->data % 2, 0);
        assert_memory_equal(w->data, bytes + 1, 12);
        assert_memory_equal(v->data, bytes + 13, 4);
        decant_safetensors_close(&model);
    }
}

static const char shard_1[] = "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                              "\"skipped\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}";
static const char shard_2[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}";

static void write_index(const scratch *at, const char *text)
{
    scratch_write(at, "model.safetensors.index.json", text, strlen(text));
}

/* A matrix of several pages, read in the file, and behind a header of an odd length as a copy. */
static void dismissed_matrices_stay_what_they_are(void **state)
{
    enum { COLUMNS = 1 << 14, BYTES = 4 * COLUMNS };
    const scratch *at = *state;
    decant_error err = {0};
    decant_safetensors *model;
    static unsigned char file[8 + 128 + BYTES];
    int unaligned = 0;
    for (int padding = 0; padding < 4; padding++) {
        char header[128];
        snprintf(header, sizeof header,
                 "{\"w\":{\"dtype\":\"F32\",\"shape\":[1,16384],\"data_offsets\":[0,65536]}}%*s", padding, "");
        uint64_t length = strlen(header);
        memcpy(file, &length, sizeof length);
        memcpy(file + 8, header, length);
        unsigned char *values = file + 8 + length;
        memset(values, 0x3f, BYTES);
        unaligned += (8 + length) % sizeof(float) != 0;
        scratch_write(at, "model.safetensors", file, 8 + length + BYTES);
        assert_ok(decant_safetensors_open(at->folder, &model, &err));
        decant_matrix matrix;
        assert_ok(decant_safetensors_matrix(model, "w", 1, COLUMNS, &matrix, &err));
        decant_safetensors_expect(model, matrix);
        decant_safetensors_dismiss(model, matrix);
        assert_memory_equal(matrix.data, values, BYTES);
        decant_safetensors_close(&model);
    }
    assert_int_equal(unaligned, 3);
}

static void shards_are_read(void **state)
{
    const scratch *at = *state;
    decant_error err = {0};
    decant_safetensors *model;
    write_tensors(at, "model-00001-of-00002.safetensors", shard_1, bytes, 8);
    write_tensors(at, "model-00002-of-00002.safetensors", shard_2, bytes, 8);
    scratch_write(at, "other.safetensors", "rubbish", 7); /* the index does not name it */
    write_index(
        at, "{\"metadata\":{\"total_size\":16},\"weight_map\":{\"x\":\"model-00001-of-00002.safetensors\","
            "\"a\":\"model-00002-of-00002.safetensors\",\"skipped\":\"model-00001-of-00002.safetensors\"}}");
    assert_ok(decant_safetensors_open(at->folder, &model, &err));
    assert_int_equal(decant_safetensors_count(model), 2);
    assert_string_equal(decant_safetensors_at(model, 0)->name, "a");
    assert_non_null(strstr(decant_safetensors_at(model, 0)->file, "model-00002"));
    assert_non_null(strstr(decant_safetensors_at(model, 1)->file, "model-00001"));
    decant_safetensors_close(&model);
}

static void lying_indexes_are_refused(void **state)
{
    const scratch *at = *state;
    write_tensors(at, "1.safetensors", shard_1, bytes, 8);
    write_tensors(at, "2.safetensors", shard_2, bytes, 8);
    write_tensors(at, "again.safetensors", shard_1, bytes, 8);
    static const struct {
        const char *index, *named;
    } cases[] = {
        {"{\"weight_map\":{\"x\":\"1.safetensors\",\"a\":\"3.safetensors\"}}", "3.safetensors: No such file"},
        {"{\"weight_map\":{\"x\":\"1.safetensors\",\"a\":\"1.safetensors\"}}", "no tensor a"},
        {"{\"weight_map\":{\"x\":\"2.safetensors\",\"a\":\"1.safetensors\"}}",
         "2.safetensors: has no tensor x"},
        {"{\"weight_map\":{\"x\":\"1.safetensors\",\"b\":\"2.safetensors\"}}", "no tensor b"},
        {"{\"weight_map\":{\"x\":\"1.safetensors\",\"y\":\"again.safetensors\"}}", "named twice"},
        {"{\"weight_map\":{\"x\":\"../1.safetensors\"}}", "no plain file name"},
        {"{\"weight_map\":{\"x\":\"/etc/passwd\"}}", "no plain file name"},
        {"{\"weight_map\":{\"x\":\"..\"}}", "no plain file name"},
        {"{\"weight_map\":{\"x\":\"\"}}", "no plain file name"},
        {"{\"weight_map\":{\"x\":\"a\\nb\"}}", "no plain file name"},
        {"{\"weight_map\":{\"x\":1}}", "no plain file name"},
        {"{\"weight_map\":{}}", "is empty"},
        {"{\"weight_map\":[]}", "no \"weight_map\""},
        {"{\"weight_map\":{\"x\":\"1.safetensors\"},\"weight_map\":{}}", "twice"},
        {"{}", "no \"weight_map\""},
        {"[]", "no JSON object"},
        {"{\"weight_map\":", "no JSON"},
        {"", "no JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_index(at, cases[i].index);
        expect_refusal(at, cases[i].named);
    }
}

static void lying_headers_are_refused(void **state)
{
    static const struct {
        const char *header, *named;
    } cases[] = {
#define ONE(type, shape, offsets)                                                                              \
    "{\"w\":{\"dtype\":" type ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
        {ONE("\"F32\"", "[2,2]", "[0,17]"), "ends at byte 17 of the data, but the file has only 16"},
        {ONE("\"F32\"", "[2,2]", "[4,20]"), "ends at byte 20"},
        {ONE("\"F32\"", "[2,2]", "[0,9007199254740992]"), "ends at byte"},
        {ONE("\"F32\"", "[2,2]", "[0,1e300]"), "data_offsets"},
        {ONE("\"F32\"", "[2,2]", "[0,16.5]"), "data_offsets"},
        {ONE("\"F32\"", "[2,2]", "[16,0]"), "data_offsets"},
        {ONE("\"F32\"", "[2,2]", "[-16,0]"), "data_offsets"},
        {ONE("\"F32\"", "[2,2]", "[0]"), "data_offsets"},
        {ONE("\"F32\"", "[2,2]", "[0,16,16]"), "data_offsets"},
        {ONE("\"F32\"", "[2,2]", "\"0,16\""), "data_offsets"},
        {ONE("\"F32\"", "[2,3]", "[0,16]"), "has 16 bytes, its type and shape need 24"},
        {ONE("\"F16\"", "[2,2]", "[0,16]"), "need 8"},
        {ONE("\"F32\"", "[4294967296,4294967296]", "[0,16]"), "not possible"},
        {ONE("\"F32\"", "[4294967296,4294967296,0]", "[0,0]"), "not possible"},
        {ONE("\"F32\"", "[-4]", "[0,16]"), "not possible"},
        {ONE("\"F32\"", "[null]", "[0,16]"), "not possible"},
        {ONE("\"F32\"", "4", "[0,16]"), "no shape"},
        {ONE("\"F33\"", "[2,2]", "[0,16]"), "unknown type \"F33\""},
        {ONE("32", "[2,2]", "[0,16]"), "no dtype"},
        {ONE("\"F4\"", "[3]", "[0,1]"), "whole byte"},
        {ONE("\"I64\"", "[3]", "[0,16]"), "need 24"},
        {ONE("\"F32\"", "[3]", "[0,12]"), "the last 4 bytes are no tensor's"},
        {ONE("\"F32\"", "[3]", "[4,16]"), "bytes 0 to 4"},
        {"{\"w\":{\"shape\":[4],\"data_offsets\":[0,16]}}", "no dtype"},
        {"{\"w\":{\"dtype\":\"F32\",\"data_offsets\":[0,16]}}", "no shape"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[4]}}", "data_offsets"},
        {"{\"w\":{\"dtype\":\"F32\",\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,16]}}", "twice"},
        {"{\"w\":[]}", "no JSON object"},
        {"{\"\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}", "name"},
        {"{\"a\\u001bb\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}", "control characters"},
        {"{\"a/./b\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}", "a tensor named a/./b: "},
        {"{\"a//b\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}", "a tensor named a//b: "},
        {"{\"a/\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}", "a tensor named a/: "},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[4,16]}}",
         "tensors a and b overlap"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}",
         "named twice"},
        {"{}", "the last 16 bytes"},
        {"[]", "no JSON object"},
        {"{\"w\":{}", "no JSON"},
        {"{} x", "no JSON"},
        {"{\"w\":1,", "no JSON"},
        {"", "no JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_tensors(*state, "model.safetensors", cases[i].header, bytes, 16);
        expect_refusal(*state, cases[i].named);
    }
}

/* A container's paths have less than 256 bytes, the slash before the name and the last NUL among them. */
static void names_that_no_container_has_are_refused(void **state)
{
    const scratch *at = *state;
    for (int length = 253; length <= 256; length++)
        for (int listed = 0; listed < 2; listed++) {
            decant_error err = {0};
            decant_safetensors *model;
            char header[512], name[257];
            memset(name, 'a', sizeof name);
            name[length] = '\0';
            snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"%s\",\"shape\":[4],\"data_offsets\":[0,16]}}",
                     name, listed ? "F32" : "I32");
            write_tensors(at, "model.safetensors", header, bytes, 16);
            if (listed && length > 254) {
                expect_refusal(at, "no container can have a tensor named aaaa");
                continue;
            }
            assert_ok(decant_safetensors_open(at->folder, &model, &err));
            assert_int_equal(decant_safetensors_count(model), listed);
            decant_safetensors_close(&model);
        }
}

static void lying_header_lengths_are_refused(void **state)
{
    const scratch *at = *state;
    write_with_length(at, "model.safetensors", UINT64_MAX, good, bytes, sizeof bytes);
    expect_refusal(at, "damaged");
    write_with_length(at, "model.safetensors", UINT64_C(100000001), good, bytes, sizeof bytes);
    expect_refusal(at, "damaged");
    write_with_length(at, "model.safetensors", UINT64_C(100000000), good, bytes, sizeof bytes);
    expect_refusal(at, "ends within its header");
    write_with_length(at, "model.safetensors", sizeof good - 1 + sizeof bytes + 1, good, bytes, sizeof bytes);
    expect_refusal(at, "ends within its header");
    write_with_length(at, "model.safetensors", 0, good, bytes, sizeof bytes);
    expect_refusal(at, "no JSON");
}

static void truncated_files_are_refused(void **state)
{
    const scratch *at = *state;
    char whole[4096];
    write_tensors(at, "model.safetensors", good, bytes, sizeof bytes);
    size_t size = scratch_read(at, "model.safetensors", whole, sizeof whole);
    for (size_t length = 0; length < size; length++) {
        scratch_write(at, "model.safetensors", whole, length);
        expect_refusal(at, "model.safetensors");
    }
    whole[size] = 0;
    scratch_write(at, "model.safetensors", whole, size + 1);
    expect_refusal(at, "the last 1 bytes");
}

/* JSON deeper than any stack. */
static void deep_headers_are_refused(void **state)
{
    static char header[8000];
    memset(header, '[', sizeof header - 1);
    memcpy(header, "{\"w\":", 5);
    write_tensors(*state, "model.safetensors", header, bytes, 16);
    expect_refusal(*state, "no JSON");
}

static void folders_that_are_no_model_are_refused(void **state)
{
    const scratch *at = *state;
    decant_error err = {0};
    decant_safetensors *model;
    char path[128];
    expect_refusal(at, "is no model folder");
    scratch_path(at, "missing", path, sizeof path);
    assert_status(decant_safetensors_open(path, &model, &err), DECANT_ERROR_INPUT);
    scratch_write(at, "file", "x", 1);
    scratch_path(at, "file", path, sizeof path);
    assert_status(decant_safetensors_open(path, &model, &err), DECANT_ERROR_INPUT);
    scratch_path(at, "model.safetensors", path, sizeof path);
    assert_int_equal(mkdir(path, 0777), 0);
    expect_refusal(at, "no regular file");
}

int main(void)
{
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)i;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_file_is_read, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(matrices_are_checked_against_their_shape, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(unaligned_tensors_are_aligned, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(dismissed_matrices_stay_what_they_are, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(shards_are_read, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(lying_indexes_are_refused, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(lying_headers_are_refused, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(names_that_no_container_has_are_refused, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(lying_header_lengths_are_refused, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(truncated_files_are_refused, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(deep_headers_are_refused, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(folders_that_are_no_model_are_refused, scratch_make, scratch_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
