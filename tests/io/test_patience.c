/* A call that does not return in time ends the process, and one that does leaves no trace. */
#include "io/patience.h"

#include "tests/io/scratch.h"

#include <sys/wait.h>

/* In a process of its own: a call that takes `call_us`, watched for `seconds`. Its exit status, and what it
 * printed. */
static int watched_call(const char *path, const char *reason, double seconds, useconds_t call_us, char *printed,
                        size_t size)
{
    int pipe_ends[2], status;
    assert_int_equal(pipe(pipe_ends), 0);
    pid_t child = fork();
    if (child == 0) {
        decant_patience patience;
        dup2(pipe_ends[1], STDERR_FILENO);
        decant_patience_begin(&patience, seconds, 2, path, "opening it", reason);
        usleep(call_us);
        decant_patience_end(&patience);
        _exit(0);
    }
    close(pipe_ends[1]);
    ssize_t length = read(pipe_ends[0], printed, size - 1);
    printed[length > 0 ? length : 0] = '\0';
    close(pipe_ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void a_call_that_hangs_ends_the_process(void **state)
{
    const scratch *at = *state;
    char path[256], printed[1024];
    scratch_write(at, "out.h5.partial", "half", 4);
    scratch_path(at, "out.h5.partial", path, sizeof path);
    assert_int_equal(watched_call(path, NULL, 1, 60 * 1000000, printed, sizeof printed), 4);
    assert_int_equal(strncmp(printed, "decant: rank 2: ", 16), 0);
    assert_non_null(strstr(printed, path));
    assert_ptr_equal(strchr(printed, '\n'), printed + strlen(printed) - 1);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(watched_call(path, "no space for /a", 1, 60 * 1000000, printed, sizeof printed), 4);
    assert_non_null(strstr(printed, "decant: rank 2: "));
    assert_non_null(strstr(printed, ": no space for /a (and opening it"));
}

static void a_call_that_returns_goes_on(void **state)
{
    const scratch *at = *state;
    char path[256], printed[1024];
    scratch_write(at, "out.h5.partial", "half", 4);
    scratch_path(at, "out.h5.partial", path, sizeof path);
    assert_int_equal(watched_call(path, NULL, 60, 1000, printed, sizeof printed), 0);
    assert_string_equal(printed, "");
    assert_int_equal(access(path, F_OK), 0);
}

/* LLaMA-65B at 4 bits is a file of 35 GB: an hour at 10 MB/s, and a job of a night is not lost to one slow
 * disk.
 */
static void large_files_may_take_longer(void **state)
{
    (void)state;
    assert_float_equal(decant_patience_for_bytes(0), 600, 1e-9);
    assert_float_equal(decant_patience_for_bytes(35000000000), 600 + 3500, 1e-6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_call_that_hangs_ends_the_process, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(a_call_that_returns_goes_on, scratch_make, scratch_remove),
        cmocka_unit_test(large_files_may_take_longer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
