/* base/error and base/status: the record, the two ways to leave a function, and the codes. */
#include "base/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void record_says_what_and_where(void **state)
{
    (void)state;
    decant_error err;
    memset(&err, 0xff, sizeof err);
    int line = __LINE__ + 1;
    assert_int_equal(DECANT_ERROR(&err, DECANT_ERROR_INPUT, "%s: tensor %d", "model.safetensors", 7), 3);
    assert_int_equal(err.status, DECANT_ERROR_INPUT);
    assert_int_equal(err.rank, 0);
    assert_int_equal(err.line, line);
    assert_string_equal(err.message, "model.safetensors: tensor 7");
    assert_non_null(strstr(err.source, "test_error.c"));
}

static void calls_of_the_system_say_why(void **state)
{
    (void)state;
    decant_error err;
    errno = ENOSPC;
    assert_int_equal(DECANT_SYSTEM_ERROR(&err, DECANT_ERROR_DISK, "%s: cannot be made", "m.h5"),
                     DECANT_ERROR_DISK);
    assert_int_equal(err.status, DECANT_ERROR_DISK);
    assert_string_equal(err.message, "m.h5: cannot be made: No space left on device");
    errno = EMFILE;
    assert_int_equal(DECANT_SYSTEM_ERROR(&err, DECANT_ERROR_INPUT, "m.h5"), DECANT_ERROR_FILES);
    assert_int_equal(err.status, DECANT_ERROR_FILES);
    assert_non_null(strstr(err.message, "m.h5; raise the limit of this process (ulimit -n)"));
    errno = ENFILE;
    assert_int_equal(DECANT_SYSTEM_ERROR(&err, DECANT_ERROR_INPUT, "m.h5"), DECANT_ERROR_FILES);
    assert_non_null(strstr(err.message, "fs.file-max"));
}

static void a_name_comes_first(void **state)
{
    (void)state;
    decant_error err;
    char name[2000];
    assert_int_equal(decant_error_name(DECANT_ERROR(&err, DECANT_ERROR_DEVICE, "no luck"), "a tensor", &err),
                     DECANT_ERROR_DEVICE);
    assert_string_equal(err.message, "a tensor: no luck");
    assert_int_equal(decant_error_name(DECANT_OK, "another", &err), DECANT_OK);
    assert_string_equal(err.message, "a tensor: no luck");
    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = '\0';
    decant_error_name(DECANT_ERROR_DEVICE, name, &err);
    assert_true(strlen(err.message) < DECANT_ERROR_MESSAGE_BYTES);
    assert_non_null(strstr(err.message, "n: a tensor: no luck"));
}

static void long_messages_and_sources_are_cut(void **state)
{
    (void)state;
    decant_error err;
    char message[2 * DECANT_ERROR_MESSAGE_BYTES], source[300];
    memset(message, 'm', sizeof message);
    message[sizeof message - 1] = '\0';
    memset(source, 's', sizeof source);
    strcpy(source + sizeof source - 9, "/tail.c");
    decant_error_set(&err, DECANT_ERROR_BUG, source, 5, "%s", message);
    assert_int_equal(strlen(err.message), DECANT_ERROR_MESSAGE_BYTES - 1);
    assert_int_equal(strlen(err.source), sizeof err.source - 1);
    assert_string_equal(err.source + strlen(err.source) - 7, "/tail.c");
}

/* Counts in *released how often it came by `done`. */
static decant_status run(decant_status inner, bool fail, int *released, decant_error *err)
{
    decant_status status = DECANT_OK;
    DECANT_TRY(inner);
    if (fail)
        DECANT_FAIL(err, DECANT_ERROR_DISK, "%s", "full");
    *released += 10;
done:
    ++*released;
    return status;
}

static void leaving_goes_by_the_cleanup(void **state)
{
    (void)state;
    decant_error err = {0};
    int released = 0;
    assert_int_equal(run(DECANT_OK, false, &released, &err), DECANT_OK);
    assert_int_equal(released, 11);
    assert_int_equal(run(DECANT_ERROR_MPI, false, &released, &err), DECANT_ERROR_MPI);
    assert_int_equal(released, 12);
    assert_string_equal(err.message, ""); /* the caller's record is its own */
    assert_int_equal(run(DECANT_OK, true, &released, &err), DECANT_ERROR_DISK);
    assert_int_equal(released, 13);
    assert_string_equal(err.message, "full");
}

static void codes_have_exit_statuses_and_sentences(void **state)
{
    (void)state;
    static const struct {
        decant_status status;
        int exit_status;
    } codes[] = {{DECANT_OK, 0},          {DECANT_INTERRUPTED, 75}, {DECANT_ERROR_USAGE, 2},
                 {DECANT_ERROR_INPUT, 3}, {DECANT_ERROR_MEMORY, 4}, {DECANT_ERROR_DISK, 4},
                 {DECANT_ERROR_FILES, 4}, {DECANT_ERROR_DEVICE, 5}, {DECANT_ERROR_MPI, 5},
                 {DECANT_ERROR_BUG, 70}};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        assert_int_equal(codes[i].status, i); /* in order of badness: agreement takes the largest */
        assert_int_equal(decant_status_exit(codes[i].status), codes[i].exit_status);
        assert_string_not_equal(decant_status_sentence(codes[i].status), "unknown status");
    }
    assert_string_equal(decant_status_sentence((decant_status)99), "unknown status");
    assert_string_equal(decant_status_sentence((decant_status)-1), "unknown status");
    assert_int_equal(decant_status_exit((decant_status)99), 70);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(record_says_what_and_where),  cmocka_unit_test(long_messages_and_sources_are_cut),
        cmocka_unit_test(calls_of_the_system_say_why), cmocka_unit_test(a_name_comes_first),
        cmocka_unit_test(leaving_goes_by_the_cleanup), cmocka_unit_test(codes_have_exit_statuses_and_sentences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
