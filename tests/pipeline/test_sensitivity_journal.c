/* The journal of measurements: nothing whole is lost, nothing torn or foreign is believed. */
#include "pipeline/sensitivity_journal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { TASKS = 50, MARK = 0x1234abcd };

typedef struct fixture {
    char folder[32], output[64];
    decant_journal journal;
    double values[TASKS];
    bool done[TASKS];
    int64_t restored;
    bool foreign;
} fixture;

static int make(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    strcpy(f->folder, "/tmp/decant_journal_XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    snprintf(f->output, sizeof f->output, "%s/out.h5", f->folder);
    decant_journal_name(f->output, &f->journal);
    *state = f;
    return 0;
}

static int clean(void **state)
{
    fixture *f = *state;
    decant_journal_close(&f->journal);
    decant_journal_remove(&f->journal);
    assert_int_equal(rmdir(f->folder), 0); /* nothing else was left */
    free(f);
    return 0;
}

static decant_status begin(fixture *f, uint32_t mark, int64_t tasks)
{
    decant_error err;
    memset(f->values, 0, sizeof f->values);
    memset(f->done, 0, sizeof f->done);
    decant_journal_close(&f->journal);
    return decant_journal_begin(&f->journal, mark, tasks, f->values, f->done, &f->restored, &f->foreign, &err);
}

static double value_of(int task)
{
    return (task % 2 ? -1 : 1) * (0.1 + task) / 3;
}

static void write_tasks(fixture *f, int first, int end)
{
    decant_error err;
    assert_int_equal(decant_journal_join(&f->journal, &err), DECANT_OK);
    for (int i = first; i < end; i++)
        assert_int_equal(decant_journal_append(&f->journal, i, value_of(i), &err), DECANT_OK);
}

static void expect_tasks(const fixture *f, int first, int end)
{
    assert_int_equal(f->restored, end - first);
    for (int i = 0; i < TASKS; i++) {
        assert_int_equal(f->done[i], i >= first && i < end);
        assert_true(!f->done[i] || f->values[i] == value_of(i));
    }
}

static void values_come_back_to_the_bit(void **state)
{
    fixture *f = *state;
    assert_int_equal(begin(f, MARK, TASKS), DECANT_OK);
    assert_false(f->foreign);
    expect_tasks(f, 0, 0);
    write_tasks(f, 3, 20);
    assert_int_equal(begin(f, MARK, TASKS), DECANT_OK);
    expect_tasks(f, 3, 20);
    write_tasks(f, 20, 30);
    assert_int_equal(begin(f, MARK, TASKS), DECANT_OK);
    expect_tasks(f, 3, 30);
}

static void another_job_begins_anew(void **state)
{
    fixture *f = *state;
    assert_int_equal(begin(f, MARK, TASKS), DECANT_OK);
    write_tasks(f, 0, 5);
    assert_int_equal(begin(f, MARK + 1, TASKS), DECANT_OK);
    assert_true(f->foreign);
    expect_tasks(f, 0, 0);
    assert_int_equal(begin(f, MARK + 1, TASKS), DECANT_OK);
    assert_false(f->foreign);
    assert_int_equal(begin(f, MARK + 1, TASKS - 1), DECANT_OK);
    assert_true(f->foreign);
}

/* Replaces the file's text by what `change` makes of it. */
static void rewrite(const fixture *f, void (*change)(char *text))
{
    char text[8192];
    FILE *file = fopen(f->journal.path, "r");
    text[fread(text, 1, sizeof text - 64, file)] = '\0';
    fclose(file);
    change(text);
    file = fopen(f->journal.path, "w");
    fputs(text, file);
    fclose(file);
}

static void tear_last_line(char *text)
{
    text[strlen(text) - 5] = '\0';
}

static void change_one_digit(char *text)
{
    char *last = strrchr(text, 'p'); /* the exponent of the last value */
    last[-1] = last[-1] == '1' ? '2' : '1';
}

static void add_garbage(char *text)
{
    strcat(text, "17 nonsense\n\n-1 0x1p0 00000000\n999 0x1p0 00000000\n");
}

static void a_task_that_was_noted_twice_counts_once(void **state)
{
    fixture *f = *state;
    assert_int_equal(begin(f, MARK, TASKS), DECANT_OK);
    write_tasks(f, 0, 5);
    decant_journal_close(&f->journal);
    write_tasks(f, 3, 7);
    assert_int_equal(begin(f, MARK, TASKS), DECANT_OK);
    expect_tasks(f, 0, 7);
}

static void damaged_lines_count_as_not_written(void **state)
{
    fixture *f = *state;
    void (*const changes[])(char *) = {tear_last_line, change_one_digit};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        assert_int_equal(begin(f, MARK, TASKS), DECANT_OK);
        write_tasks(f, 0, 5);
        rewrite(f, changes[i]);
        assert_int_equal(begin(f, MARK, TASKS), DECANT_OK);
        expect_tasks(f, 0, 4);
        write_tasks(f, 4, 8); /* a clean file again: what follows is not glued to the torn line */
        assert_int_equal(begin(f, MARK, TASKS), DECANT_OK);
        expect_tasks(f, 0, 8);
        assert_int_equal(begin(f, MARK + 1, TASKS), DECANT_OK);
    }
    assert_int_equal(begin(f, MARK, TASKS), DECANT_OK);
    write_tasks(f, 0, 5);
    rewrite(f, add_garbage);
    assert_int_equal(begin(f, MARK, TASKS), DECANT_OK);
    expect_tasks(f, 0, 5);
}

static void place_that_cannot_be_written_is_told(void **state)
{
    fixture *f = *state;
    decant_journal journal;
    decant_error err;
    decant_journal_name("/nowhere/at/all.h5", &journal);
    assert_int_equal(
        decant_journal_begin(&journal, MARK, TASKS, f->values, f->done, &f->restored, &f->foreign, &err),
        DECANT_ERROR_DISK);
    assert_non_null(strstr(err.message, "/nowhere/at/all.h5.sensitivity.partial"));
    assert_int_equal(decant_journal_join(&journal, &err), DECANT_ERROR_DISK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(values_come_back_to_the_bit, make, clean),
        cmocka_unit_test_setup_teardown(another_job_begins_anew, make, clean),
        cmocka_unit_test_setup_teardown(a_task_that_was_noted_twice_counts_once, make, clean),
        cmocka_unit_test_setup_teardown(damaged_lines_count_as_not_written, make, clean),
        cmocka_unit_test_setup_teardown(place_that_cannot_be_written_is_told, make, clean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
