/* Safetensors as written: what safetensors.h reads back, shards at their borders, and data that are not those
 * of the list. */
#include "io/safetensors.h"
#include "io/safetensors_writer.h"

#include "scratch.h"

#include <cjson/cJSON.h>

/* Three tensors of 24, 24 and 60 bytes, and one without elements. */
static void make_list(decant_tensor_list *list)
{
    decant_error err;
    *list = (decant_tensor_list){0};
    assert_ok(decant_tensor_list_add(list, "a", "weight", DECANT_STORED_F32, (decant_shape){2, {2, 3}}, &err));
    assert_ok(decant_tensor_list_add(list, "b", "weight", DECANT_STORED_BF16, (decant_shape){1, {12}}, &err));
    assert_ok(decant_tensor_list_add(list, "c", NULL, DECANT_STORED_F16, (decant_shape){2, {5, 6}}, &err));
    assert_ok(decant_tensor_list_add(list, "d", NULL, DECANT_STORED_F16, (decant_shape){1, {0}}, &err));
}

static const size_t sizes[] = {24, 24, 60, 0};
enum { TENSORS = 4 };

static void fill(int tensor, unsigned char data[64])
{
    for (int i = 0; i < 64; i++)
        data[i] = (unsigned char)(16 * tensor + i);
}

/* Writes with shards of that size; they are read back, and so many files were made. */
static void check_round_trip(const scratch *at, int64_t shard_bytes, int files, bool has_index)
{
    decant_error err;
    decant_tensor_list list;
    decant_safetensors_writer *writer;
    decant_safetensors *model;
    unsigned char data[64];
    char folder[128], command[256], text[16] = "";
    make_list(&list);
    snprintf(folder, sizeof folder, "%s/%lld", at->folder, (long long)shard_bytes);
    assert_int_equal(mkdir(folder, 0777), 0);
    assert_ok(decant_safetensors_writer_create(folder, &list, shard_bytes, &writer, &err));
    for (int i = 0; i < TENSORS; i++) {
        fill(i, data);
        assert_ok(decant_safetensors_writer_append(writer, data, sizes[i], &err));
    }
    assert_ok(decant_safetensors_writer_finish(&writer, &err));
    assert_null(writer);
    assert_ok(decant_safetensors_open(folder, &model, &err));
    assert_int_equal(decant_safetensors_count(model), TENSORS);
    for (int i = 0; i < TENSORS; i++) {
        const decant_tensor *tensor = decant_safetensors_find(model, list.entries[i].name);
        assert_non_null(tensor);
        fill(i, data);
        assert_int_equal(tensor->size_bytes, sizes[i]);
        assert_int_equal(tensor->dimensions, list.entries[i].shape.dimensions);
        assert_memory_equal(tensor->shape, list.entries[i].shape.extent,
                            (size_t)tensor->dimensions * sizeof *tensor->shape);
        if (sizes[i] > 0)
            assert_memory_equal(tensor->data, data, sizes[i]);
    }
    assert_int_equal(decant_safetensors_find(model, "b.weight")->element, DECANT_BF16);
    decant_safetensors_close(&model);
    snprintf(command, sizeof command, "ls '%s' | grep -c 'safetensors$'", folder);
    FILE *listing = popen(command, "r");
    assert_non_null(listing);
    assert_non_null(fgets(text, sizeof text, listing));
    pclose(listing);
    assert_int_equal(atoi(text), files);
    snprintf(command, sizeof command, "%s/model.safetensors.index.json", folder);
    assert_int_equal(access(command, F_OK) == 0, has_index);
    decant_tensor_list_free(&list);
}

static void tensors_come_back_from_any_number_of_shards(void **state)
{
    check_round_trip(*state, 1000, 1, false);
    check_round_trip(*state, 108, 1, false); /* all of them, exactly */
    check_round_trip(*state, 107, 2, true);
    check_round_trip(*state, 48, 2, true); /* the third is larger than a shard */
    check_round_trip(*state, 47, 3, true);
    check_round_trip(*state, 1, 3, true); /* the fourth has no bytes and goes along */
}

static void data_of_another_size_are_refused(void **state)
{
    const scratch *at = *state;
    decant_error err;
    decant_tensor_list list;
    decant_safetensors_writer *writer;
    unsigned char data[64] = {0};
    make_list(&list);
    assert_ok(decant_safetensors_writer_create(at->folder, &list, 1000, &writer, &err));
    assert_status(decant_safetensors_writer_append(writer, data, 23, &err), DECANT_ERROR_BUG);
    assert_ok(decant_safetensors_writer_append(writer, data, 24, &err));
    assert_status(decant_safetensors_writer_finish(&writer, &err), DECANT_ERROR_BUG);
    assert_message(&err, "1 of 4 tensors");
    assert_status(decant_safetensors_writer_create(at->folder, &list, 1000, &writer, &err), DECANT_ERROR_DISK);
    assert_message(&err, "model.safetensors");
    assert_null(writer);
    decant_tensor_list_free(&list);
}

/* ---- memory that runs out while headers are made ---- */

static int allocations_before_failure = -1; /* one fails after so many; negative: none does */

static void *allocate_or_fail(size_t size_bytes)
{
    return allocations_before_failure-- == 0 ? NULL : malloc(size_bytes);
}

static decant_status write_shards(const char *folder, const decant_tensor_list *list, decant_error *err)
{
    decant_safetensors_writer *writer = NULL;
    static const unsigned char data[64];
    decant_status status;
    DECANT_TRY(decant_safetensors_writer_create(folder, list, 50, &writer, err));
    for (int i = 0; i < TENSORS; i++)
        DECANT_TRY(decant_safetensors_writer_append(writer, data, sizes[i], err));
    status = decant_safetensors_writer_finish(&writer, err);
done:
    decant_safetensors_writer_discard(&writer);
    return status;
}

/* Whichever of cJSON's allocations fails: a header that lacks a tensor is never written as if it were whole. */
static void headers_are_whole_or_memory_is_told(void **state)
{
    const scratch *at = *state;
    cJSON_Hooks hooks = {allocate_or_fail, free};
    decant_tensor_list list;
    decant_error err;
    decant_status status = DECANT_ERROR_MEMORY;
    int failures = 0;
    make_list(&list);
    cJSON_InitHooks(&hooks);
    for (; status != DECANT_OK; failures++) {
        char folder[128];
        snprintf(folder, sizeof folder, "%s/%d", at->folder, failures);
        assert_int_equal(mkdir(folder, 0777), 0);
        allocations_before_failure = failures;
        status = write_shards(folder, &list, &err);
        allocations_before_failure = -1;
        if (status != DECANT_OK) {
            assert_int_equal(status, DECANT_ERROR_MEMORY);
            continue;
        }
        decant_safetensors *model;
        assert_ok(decant_safetensors_open(folder, &model, &err));
        assert_int_equal(decant_safetensors_count(model), TENSORS);
        decant_safetensors_close(&model);
    }
    assert_true(failures > 50);
    cJSON_InitHooks(NULL);
    decant_tensor_list_free(&list);
}

static void absent_folder_is_told(void **state)
{
    const scratch *at = *state;
    decant_error err;
    decant_tensor_list list = {0};
    decant_safetensors_writer *writer;
    assert_ok(decant_tensor_list_add(&list, "a", NULL, DECANT_STORED_U8, (decant_shape){1, {8}}, &err));
    char path[128];
    scratch_path(at, "absent", path, sizeof path);
    assert_status(decant_safetensors_writer_create(path, &list, 1000, &writer, &err), DECANT_ERROR_DISK);
    assert_message(&err, "absent/model.safetensors");
    decant_tensor_list_free(&list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(tensors_come_back_from_any_number_of_shards, scratch_make,
                                        scratch_remove),
        cmocka_unit_test_setup_teardown(data_of_another_size_are_refused, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(absent_folder_is_told, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(headers_are_whole_or_memory_is_told, scratch_make, scratch_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
