/* Bytes of a mapped file that cannot be read: a file that is cut after it was mapped stands in for a disk that
 * fails, as both are told by the same signal. */
#include "io/mapped_file.h"

#include "io/safetensors.h"
#include "tests/io/scratch.h"

enum { PAGES = 4 };

static void fill(const scratch *at, const char *name, size_t page_bytes)
{
    unsigned char *data = malloc(PAGES * page_bytes);
    memset(data, 7, PAGES * page_bytes);
    scratch_write(at, name, data, PAGES * page_bytes);
    free(data);
}

static void unread_bytes_are_zero_and_told(void **state)
{
    const scratch *at = *state;
    decant_mapped_file cut, whole;
    decant_error err;
    char path[256], other[256];
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE), offset;
    fill(at, "cut", page_bytes);
    fill(at, "whole", page_bytes);
    scratch_path(at, "cut", path, sizeof path);
    scratch_path(at, "whole", other, sizeof other);
    assert_ok(decant_mapped_file_open(path, &cut, &err));
    assert_ok(decant_mapped_file_open(other, &whole, &err));
    assert_int_equal(truncate(path, (off_t)(2 * page_bytes)), 0);
    const volatile unsigned char *data = cut.data;
    assert_int_equal(data[page_bytes], 7);
    assert_false(decant_mapped_file_is_unread(&cut, &offset));
    assert_ok(decant_mapped_file_check(&cut, path, DECANT_OK, &err));
    assert_int_equal(data[3 * page_bytes + 5], 0);
    assert_int_equal(data[2 * page_bytes], 0);
    assert_true(decant_mapped_file_is_unread(&cut, &offset));
    assert_int_equal(offset, 3 * page_bytes + 5); /* the first that was met */
    assert_status(decant_mapped_file_check(&cut, path, DECANT_OK, &err), DECANT_ERROR_INPUT);
    assert_message(&err, path);
    assert_status(decant_mapped_file_check(&cut, path, DECANT_ERROR_BUG, &err), DECANT_ERROR_INPUT);
    assert_status(decant_mapped_file_check(&whole, other, DECANT_ERROR_BUG, &err), DECANT_ERROR_BUG);
    assert_int_equal(whole.data[PAGES * page_bytes - 1], 7);
    decant_mapped_file_close(&cut);
    decant_mapped_file_close(&whole);
    assert_ok(decant_mapped_file_open(other, &whole, &err)); /* in the place of one that failed */
    assert_ok(decant_mapped_file_check(&whole, other, DECANT_OK, &err));
    decant_mapped_file_close(&whole);
}

/* One tensor of one page's floats after a header of one page. */
static void a_tensor_that_cannot_be_read_is_named(void **state)
{
    const scratch *at = *state;
    decant_safetensors *model;
    decant_error err;
    char path[256];
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *data = calloc(3, page_bytes);
    char *header = (char *)data + 8;
    memset(header, ' ', page_bytes - 8);
    int length = sprintf(header,
                         "{\"first\":{\"dtype\":\"F32\",\"shape\":[%zu],\"data_offsets\":[0,%zu]},"
                         "\"second\":{\"dtype\":\"F32\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}}",
                         page_bytes / 4, page_bytes, page_bytes / 4, page_bytes, 2 * page_bytes);
    header[length] = ' ';
    for (int i = 0; i < 8; i++)
        data[i] = (unsigned char)((page_bytes - 8) >> 8 * i);
    scratch_write(at, "model.safetensors", data, 3 * page_bytes);
    free(data);
    scratch_path(at, "model.safetensors", path, sizeof path);
    assert_ok(decant_safetensors_open(at->folder, &model, &err));
    assert_int_equal(truncate(path, (off_t)(2 * page_bytes)), 0);
    const volatile float *first = decant_safetensors_find(model, "first")->data;
    assert_true(first[3] == 0);
    assert_ok(decant_safetensors_check(model, &err));
    const volatile float *second = decant_safetensors_find(model, "second")->data;
    assert_true(second[3] == 0);
    assert_status(decant_safetensors_check(model, &err), DECANT_ERROR_INPUT);
    assert_message(&err, "second: ");
    assert_message(&err, path);
    decant_safetensors_close(&model);
    assert_ok(decant_safetensors_check(NULL, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(unread_bytes_are_zero_and_told, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(a_tensor_that_cannot_be_read_is_named, scratch_make, scratch_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
