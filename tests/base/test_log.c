/* base/log: JSON lines are there at once and can be parsed; lines for people come from rank 0 alone. */
#include "base/log.h"

#include <cjson/cJSON.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* Lines of a file, the newlines cut off; as many as there are. */
static int read_lines(const char *path, char lines[][256], int most)
{
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    int count = 0;
    while (count < most && fgets(lines[count], 256, file)) {
        lines[count][strcspn(lines[count], "\n")] = '\0';
        count++;
    }
    fclose(file);
    return count;
}

/* Sends stderr into a file until put back. */
typedef struct capture {
    int saved;
    char path[32];
} capture;

static capture begin_capture(void)
{
    capture made = {.path = "/tmp/decant-test-XXXXXX"};
    fflush(stderr);
    made.saved = dup(STDERR_FILENO);
    int file = mkstemp(made.path);
    assert_true(file >= 0 && dup2(file, STDERR_FILENO) >= 0);
    close(file);
    return made;
}

static int end_capture(capture *made, char lines[][256], int most)
{
    fflush(stderr);
    dup2(made->saved, STDERR_FILENO);
    close(made->saved);
    int count = read_lines(made->path, lines, most);
    unlink(made->path);
    return count;
}

static void events_are_json_lines(void **state)
{
    (void)state;
    decant_error err;
    decant_log log;
    char path[] = "/tmp/decant-test-XXXXXX", lines[4][256];
    close(mkstemp(path));
    assert_int_equal(decant_log_open(0, true, path, &log, &err), DECANT_OK);
    decant_log_event(&log, "start", "%s", "");
    decant_log_event(&log, "stage", "\"stage\":\"%s\",\"seconds\":%.3f", "calibrate", 1.5);
    assert_int_equal(read_lines(path, lines, 4), 2); /* before closing */
    decant_log_close(&log);
    for (int i = 0; i < 2; i++) {
        cJSON *line = cJSON_Parse(lines[i]);
        assert_non_null(line);
        assert_true(cJSON_GetObjectItem(line, "time_s")->valuedouble >= 0);
        assert_string_equal(cJSON_GetObjectItem(line, "event")->valuestring, i ? "stage" : "start");
        if (i)
            assert_true(cJSON_GetObjectItem(line, "seconds")->valuedouble == 1.5);
        cJSON_Delete(line);
    }
    unlink(path);
}

/* A job that is refused has no event. */
static void an_earlier_log_stays_until_the_first_event(void **state)
{
    (void)state;
    decant_error err;
    decant_log log;
    char path[] = "/tmp/decant-test-XXXXXX", lines[4][256];
    close(mkstemp(path));
    for (int events = 3; events >= 0; events--) {
        assert_int_equal(decant_log_open(0, true, path, &log, &err), DECANT_OK);
        for (int i = 0; i < events; i++)
            decant_log_event(&log, "start", "\"number\":%d", events);
        decant_log_close(&log);
        int expected = events ? events : 1;
        assert_int_equal(read_lines(path, lines, 4), expected);
        for (int i = 0; i < expected; i++)
            assert_int_equal(strtol(strchr(strstr(lines[i], "number"), ':') + 1, NULL, 10), expected);
    }
    unlink(path);
}

static void what_is_no_log_is_not_replaced(void **state)
{
    (void)state;
    decant_error err;
    decant_log log;
    const char *contents[] = {"\x89HDF", "{", "{\"model_type\":\"llama\"}", "\n"};
    for (size_t i = 0; i < sizeof contents / sizeof *contents; i++) {
        char path[] = "/tmp/decant-test-XXXXXX", lines[4][256];
        FILE *file = fdopen(mkstemp(path), "w");
        assert_non_null(file);
        assert_true(fputs(contents[i], file) >= 0 && fclose(file) == 0);
        assert_int_equal(decant_log_open(0, true, path, &log, &err), DECANT_ERROR_USAGE);
        assert_non_null(strstr(err.message, path));
        decant_log_close(&log);
        assert_int_equal(read_lines(path, lines, 4), 1);
        assert_int_equal(strncmp(lines[0], contents[i], strcspn(contents[i], "\n")), 0);
        unlink(path);
    }
}

static void only_rank_0_opens_the_file(void **state)
{
    (void)state;
    decant_error err;
    decant_log log;
    const char *path = "/tmp/decant-test-missing/log.json";
    assert_int_equal(decant_log_open(1, false, path, &log, &err), DECANT_OK);
    decant_log_event(&log, "start", "%s", "");
    decant_log_close(&log);
    assert_int_equal(decant_log_open(0, false, path, &log, &err), DECANT_ERROR_DISK);
    assert_non_null(strstr(err.message, path));
}

static void a_full_disk_ends_the_file_and_not_the_job(void **state)
{
    (void)state;
    decant_error err;
    decant_log log;
    char lines[4][256];
    capture made = begin_capture();
    assert_int_equal(decant_log_open(0, false, "/dev/full", &log, &err), DECANT_OK);
    decant_log_event(&log, "start", "%s", "");
    decant_log_event(&log, "stage", "%s", "");
    decant_log_close(&log);
    assert_int_equal(end_capture(&made, lines, 4), 1);
    assert_non_null(strstr(lines[0], "No space left"));
}

static void progress_has_the_time_left(void **state)
{
    (void)state;
    decant_error err;
    decant_log log;
    char lines[8][256];
    capture made = begin_capture();
    assert_int_equal(decant_log_open(0, false, NULL, &log, &err), DECANT_OK);
    log.terminal = false;
    decant_log_say(&log, "%d ranks", 2);
    decant_log_stage(&log, "calibrate");
    decant_log_progress(&log, 1, 32, "sequences"); /* too early for a line */
    log.stage_start_s -= 60;
    log.last_line_s -= 60;
    decant_log_progress(&log, 12, 32, "sequences");
    decant_log_progress(&log, 13, 32, "sequences"); /* too early again */
    decant_log_progress(&log, 32, 32, "sequences");
    assert_int_equal(end_capture(&made, lines, 8), 3);
    assert_string_equal(lines[0], "decant: 2 ranks");
    assert_string_equal(lines[1], "decant: calibrate  12/32 sequences  1:40 left"); /* 60 s · 20 / 12 */
    assert_string_equal(lines[2], "decant: calibrate  32/32 sequences  1:00 taken");
}

static void terminal_has_a_bar(void **state)
{
    (void)state;
    decant_error err;
    decant_log log;
    char lines[8][256];
    capture made = begin_capture();
    assert_int_equal(decant_log_open(0, false, NULL, &log, &err), DECANT_OK);
    log.terminal = true;
    decant_log_stage(&log, "calibrate");
    log.stage_start_s -= 4000;
    log.last_line_s -= 4000;
    decant_log_progress(&log, 1, 4, "sequences");
    decant_log_say(&log, "a word");
    decant_log_progress(&log, 4, 4, "sequences");
    assert_int_equal(end_capture(&made, lines, 8), 2);
    assert_string_equal(lines[0],
                        "calibrate  [#####...............]  1/4 sequences  3:20:00 left\r\033[Kdecant: a word");
    assert_string_equal(lines[1], "calibrate  [####################]  4/4 sequences  1:06:40 taken");
}

static void others_are_silent(void **state)
{
    (void)state;
    decant_error err;
    decant_log log;
    char lines[4][256];
    capture made = begin_capture();
    for (int quiet = 0; quiet < 2; quiet++) {
        assert_int_equal(decant_log_open(1 - quiet, quiet, NULL, &log, &err), DECANT_OK);
        decant_log_say(&log, "a word");
        decant_log_stage(&log, "calibrate");
        decant_log_progress(&log, 4, 4, "sequences");
        decant_log_close(&log);
    }
    assert_int_equal(end_capture(&made, lines, 4), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(events_are_json_lines),
        cmocka_unit_test(an_earlier_log_stays_until_the_first_event),
        cmocka_unit_test(what_is_no_log_is_not_replaced),
        cmocka_unit_test(only_rank_0_opens_the_file),
        cmocka_unit_test(a_full_disk_ends_the_file_and_not_the_job),
        cmocka_unit_test(progress_has_the_time_left),
        cmocka_unit_test(terminal_has_a_bar),
        cmocka_unit_test(others_are_silent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
