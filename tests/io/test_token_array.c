/* io/token_array on arrays as NumPy writes them, and on files that lie. */
#include "base/memory.h"
#include "io/checksum.h"
#include "io/token_array.h"

#include "tests/io/scratch.h"

#include <string.h>

enum { VOCABULARY = 1000 };

/* Writes a .npy file: magic, version, header of `header_bytes` and data. */
static void write_npy(const scratch *at, int version, const char *header, const void *data, size_t data_bytes)
{
    char file[4096] = "\x93NUMPY";
    size_t length = strlen(header), prefix = version == 1 ? 10 : 12;
    file[6] = (char)version;
    file[8] = (char)(length & 0xff);
    file[9] = (char)(length >> 8);
    memcpy(file + prefix, header, length);
    assert_true(prefix + length + data_bytes <= sizeof file);
    memcpy(file + prefix + length, data, data_bytes);
    scratch_write(at, "t.npy", file, prefix + length + data_bytes);
}

static decant_status read_npy(const scratch *at, int64_t window, int64_t maximum, decant_token_array *array,
                              decant_error *err)
{
    char path[128];
    scratch_path(at, "t.npy", path, sizeof path);
    return decant_token_array_read(path, window, "--window", maximum, VOCABULARY, array, err);
}

/* Expects DECANT_ERROR_INPUT with a message that has `named` in it and is one line. */
static void expect_refusal(const scratch *at, int64_t window, const char *named)
{
    decant_error err = {0};
    decant_token_array array;
    assert_status(read_npy(at, window, 0, &array, &err), DECANT_ERROR_INPUT);
    assert_message(&err, named);
    assert_message(&err, "t.npy");
    assert_null(array.tokens);
}

static const int32_t narrow[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 999};
static const int64_t wide[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 999};
#define HEADER(descr, order, shape)                                                                            \
    "{'descr': '" descr "', 'fortran_order': " order ", 'shape': " shape ", }          \n"

static void expect_twelve(const decant_token_array *array, int64_t sequences, int64_t length)
{
    assert_int_equal(array->sequences, sequences);
    assert_int_equal(array->length, length);
    assert_memory_equal(array->tokens, narrow, (size_t)(sequences * length) * sizeof *narrow);
    assert_int_equal(array->checksum,
                     decant_checksum(0, narrow, (size_t)(sequences * length) * sizeof *narrow));
}

static void all_versions_and_both_types_are_read(void **state)
{
    decant_error err = {0};
    for (int version = 1; version <= 3; version++)
        for (int is_wide = 0; is_wide < 2; is_wide++) {
            decant_token_array array;
            write_npy(*state, version,
                      is_wide ? HEADER("<i8", "False", "(3, 4)") : HEADER("<i4", "False", "(3, 4)"),
                      is_wide ? (const void *)wide : narrow, is_wide ? sizeof wide : sizeof narrow);
            assert_ok(read_npy(*state, 0, 0, &array, &err));
            expect_twelve(&array, 3, 4);
            assert_int_equal(decant_token_array_sequence(&array, 2)[3], 999);
            decant_token_array_free(&array);
            assert_null(array.tokens);
        }
}

static void header_is_read_in_any_order_and_spacing(void **state)
{
    decant_error err = {0};
    static const char *const headers[] = {
        "{'shape':(3,4),'fortran_order':False,'descr':'<i4'}",
        "{\"descr\": \"<i4\", \"fortran_order\": False, \"shape\": (3, 4)}",
        "  {  'descr'  :  '<i4'  ,  'shape'  :  ( 3 , 4 , )  ,  'fortran_order'  :  False  ,  }  \n",
    };
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        decant_token_array array;
        write_npy(*state, 1, headers[i], narrow, sizeof narrow);
        assert_ok(read_npy(*state, 0, 0, &array, &err));
        expect_twelve(&array, 3, 4);
        decant_token_array_free(&array);
    }
}

static void one_dimension_is_cut_into_windows(void **state)
{
    decant_error err = {0};
    decant_token_array array;
    write_npy(*state, 1, HEADER("<i4", "False", "(12,)"), narrow, sizeof narrow);
    assert_ok(read_npy(*state, 5, 0, &array, &err)); /* two are left over */
    expect_twelve(&array, 2, 5);
    decant_token_array_free(&array);
    assert_ok(read_npy(*state, 12, 0, &array, &err));
    expect_twelve(&array, 1, 12);
    decant_token_array_free(&array);
    assert_ok(read_npy(*state, 2, 4, &array, &err));
    expect_twelve(&array, 4, 2);
    decant_token_array_free(&array);
    /* Fortran order is no order in one dimension. */
    write_npy(*state, 1, HEADER("<i4", "True", "(12,)"), narrow, sizeof narrow);
    assert_ok(read_npy(*state, 3, 0, &array, &err));
    expect_twelve(&array, 4, 3);
    decant_token_array_free(&array);
    expect_refusal(*state, 13,
                   "its 12 tokens are fewer than one window of 13; take more of them, or a smaller --window");
    expect_refusal(*state, 0, "sequence length");
    expect_refusal(*state, 1, "sequence length");
}

static void an_uncut_row_is_one_sequence(void **state)
{
    decant_error err = {0};
    decant_token_array array;
    write_npy(*state, 1, HEADER("<i4", "False", "(12,)"), narrow, sizeof narrow);
    assert_ok(read_npy(*state, DECANT_TOKENS_UNCUT, 0, &array, &err));
    expect_twelve(&array, 1, 12);
    decant_token_array_free(&array);
    write_npy(*state, 1, HEADER("<i4", "False", "(1,)"), narrow, sizeof *narrow);
    assert_ok(read_npy(*state, DECANT_TOKENS_UNCUT, 0, &array, &err));
    expect_twelve(&array, 1, 1);
    decant_token_array_free(&array);
    write_npy(*state, 1, HEADER("<i4", "False", "(12, 1)"), narrow, sizeof narrow);
    assert_ok(read_npy(*state, DECANT_TOKENS_UNCUT, 0, &array, &err));
    expect_twelve(&array, 12, 1);
    decant_token_array_free(&array);
    write_npy(*state, 1, HEADER("<i4", "False", "(0,)"), narrow, 0);
    expect_refusal(*state, DECANT_TOKENS_UNCUT, "has no token");
    write_npy(*state, 1, HEADER("<i4", "False", "(3, 0)"), narrow, 0);
    expect_refusal(*state, DECANT_TOKENS_UNCUT, "has no token");
}

static void two_dimensions_keep_their_length(void **state)
{
    decant_error err = {0};
    decant_token_array array;
    write_npy(*state, 1, HEADER("<i8", "False", "(2, 6)"), wide, sizeof wide);
    assert_ok(read_npy(*state, 4, 0, &array, &err));
    expect_twelve(&array, 2, 6);
    decant_token_array_free(&array);
    assert_ok(read_npy(*state, 0, 1, &array, &err));
    expect_twelve(&array, 1, 6);
    decant_token_array_free(&array);
    write_npy(*state, 1, HEADER("<i8", "False", "(12, 1)"), wide, sizeof wide);
    expect_refusal(*state, 0, "no token to predict");
    write_npy(*state, 1, HEADER("<i8", "False", "(0, 6)"), wide, 0);
    expect_refusal(*state, 0, "no token to predict");
}

static void other_arrays_are_refused(void **state)
{
    static const struct {
        const char *header, *named;
    } cases[] = {
        {HEADER(">i4", "False", "(3, 4)"), ">i4"},
        {HEADER("<u4", "False", "(3, 4)"), "<u4"},
        {HEADER("<f4", "False", "(3, 4)"), "<f4"},
        {HEADER("|O", "False", "(3, 4)"), "|O"},
        {HEADER("<i4", "True", "(3, 4)"), "Fortran"},
        {HEADER("<i4", "False", "()"), "0 dimensions"},
        {HEADER("<i4", "False", "(3, 2, 2)"), "3 dimensions"},
        {HEADER("<i4", "False", "(3, 5)"), "cut short"},
        {HEADER("<i4", "False", "(3, 3)"), "after its elements"},
        {HEADER("<i4", "False", "(4294967296, 4294967296)"), "too large"},
        {HEADER("<i4", "False", "(99999999999999999999, 1)"), "header"},
        {HEADER("<i4", "False", "(-3, 4)"), "header"},
        {HEADER("<i4", "False", "(3 4)"), "header"},
        {HEADER("<i4", "False", "(3, 4"), "header"},
        {HEADER("<i4", "Maybe", "(3, 4)"), "header"},
        {HEADER("<i4<i4<i4<i4<i4<i4", "False", "(3, 4)"), "header"},
        {HEADER("<i4", "False", "(1,1,1,1,1,1,1,1,12)"), "header"},
        {"{'descr': '<i4', 'fortran_order': False}", "header"},
        {"{'descr': '<i4', 'descr': '<i4', 'fortran_order': False, 'shape': (12,)}", "header"},
        {"{'descr': '<i4', 'fortran_order': False, 'shape': (12,), 'more': 1}", "header"},
        {"{'descr': '<i4', 'fortran_order': False, 'shape': (12,)} x", "header"},
        {"{'descr': '<i4", "header"},
        {"", "header"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_npy(*state, 1, cases[i].header, narrow, sizeof narrow);
        expect_refusal(*state, 4, cases[i].named);
    }
}

static void tokens_outside_the_vocabulary_are_named(void **state)
{
    decant_error err = {0};
    decant_token_array array;
    int32_t high[12] = {0};
    high[7] = VOCABULARY;
    write_npy(*state, 1, HEADER("<i4", "False", "(3, 4)"), high, sizeof high);
    expect_refusal(*state, 0, "token 3 of sequence 1 is 1000");
    assert_ok(read_npy(*state, 0, 1, &array, &err)); /* it is in no sequence that is kept */
    decant_token_array_free(&array);
    int64_t low[12] = {0};
    low[11] = -1;
    write_npy(*state, 1, HEADER("<i8", "False", "(3, 4)"), low, sizeof low);
    expect_refusal(*state, 0, "token 3 of sequence 2 is -1");
    low[11] = INT64_C(1) << 32; /* 0 in 32 bits */
    write_npy(*state, 1, HEADER("<i8", "False", "(3, 4)"), low, sizeof low);
    expect_refusal(*state, 0, "4294967296");
}

/* Every beginning of a good file is refused, however short. */
static void truncated_files_are_refused(void **state)
{
    char whole[4096] = {0}, path[128];
    for (int version = 1; version <= 2; version++) {
        write_npy(*state, version, HEADER("<i4", "False", "(3, 4)"), narrow, sizeof narrow);
        size_t size = scratch_read(*state, "t.npy", whole, sizeof whole);
        for (size_t length = 0; length < size; length++) {
            scratch_write(*state, "t.npy", whole, length);
            expect_refusal(*state, 0, "");
        }
        memset(whole + 8, 0xff, version == 1 ? 2 : 4); /* a header longer than the file */
        scratch_write(*state, "t.npy", whole, size);
        expect_refusal(*state, 0, "ends within its header");
    }
    whole[6] = 4;
    scratch_write(*state, "t.npy", whole, sizeof whole);
    expect_refusal(*state, 0, "version 4.0");
    scratch_path(*state, "t.npy", path, sizeof path);
    assert_int_equal(unlink(path), 0);
    expect_refusal(*state, 0, "No such file");
    assert_int_equal(mkdir(path, 0777), 0);
    expect_refusal(*state, 0, "no regular file");
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(mkfifo(path, 0666), 0); /* refused, not waited for */
    expect_refusal(*state, 0, "no regular file");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(all_versions_and_both_types_are_read, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(header_is_read_in_any_order_and_spacing, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(one_dimension_is_cut_into_windows, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(an_uncut_row_is_one_sequence, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(two_dimensions_keep_their_length, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(other_arrays_are_refused, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(tokens_outside_the_vocabulary_are_named, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(truncated_files_are_refused, scratch_make, scratch_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
