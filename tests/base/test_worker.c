/* base/worker: order, results, failures, and an end that leaves nothing undone. */
#include "base/worker.h"

#include "base/memory.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

enum { TASKS = 1000 };

/* Each task writes down when its turn came. */
typedef struct turn_ledger {
    int turn; /* the worker's alone while tasks run */
    int turns[TASKS];
} turn_ledger;

typedef struct entry {
    turn_ledger *ledger;
    int number;
    decant_task task;
} entry;

static decant_status write_down(void *argument, decant_error *err)
{
    entry *mine = argument;
    mine->ledger->turns[mine->number] = mine->ledger->turn++;
    if (mine->number % 100 == 7)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "task %d", mine->number);
    return DECANT_OK;
}

static void submit_all(decant_worker *worker, turn_ledger *ledger, entry *entries)
{
    for (int i = 0; i < TASKS; i++) {
        entries[i] = (entry){.ledger = ledger, .number = i};
        entries[i].task = (decant_task){.run = write_down, .argument = &entries[i]};
        decant_worker_submit(worker, &entries[i].task);
    }
}

static void tasks_run_in_order_and_report(void **state)
{
    (void)state;
    static turn_ledger ledger;
    static entry entries[TASKS];
    decant_worker *worker;
    decant_error err;
    ledger.turn = 0;
    assert_int_equal(decant_worker_create(&worker, &err), DECANT_OK);
    submit_all(worker, &ledger, entries);
    for (int i = TASKS - 1; i >= 0; i--) {
        decant_status status = decant_task_wait(&entries[i].task, &err);
        assert_int_equal(ledger.turns[i], i);
        assert_int_equal(status, i % 100 == 7 ? DECANT_ERROR_INPUT : DECANT_OK);
        if (status != DECANT_OK)
            assert_int_equal(atoi(err.message + sizeof "task"), i);
        assert_int_equal(decant_task_wait(&entries[i].task, &err), DECANT_OK); /* nothing is left to wait for */
    }
    decant_worker_destroy(&worker);
    assert_null(worker);
}

static void a_task_can_be_submitted_again(void **state)
{
    (void)state;
    turn_ledger ledger = {0};
    entry one = {.ledger = &ledger, .number = 3};
    decant_worker *worker;
    decant_error err;
    assert_int_equal(decant_worker_create(&worker, &err), DECANT_OK);
    one.task = (decant_task){.run = write_down, .argument = &one};
    for (int i = 0; i < 100; i++) {
        decant_worker_submit(worker, &one.task);
        assert_int_equal(decant_task_wait(&one.task, &err), DECANT_OK);
        assert_int_equal(ledger.turns[3], i);
    }
    decant_worker_destroy(&worker);
}

static void the_end_waits_for_what_was_submitted(void **state)
{
    (void)state;
    static turn_ledger ledger;
    static entry entries[TASKS];
    decant_worker *worker;
    decant_error err;
    int64_t blocks = decant_memory_usage_now().blocks;
    ledger.turn = 0;
    assert_int_equal(decant_worker_create(&worker, &err), DECANT_OK);
    submit_all(worker, &ledger, entries);
    decant_worker_destroy(&worker);
    assert_int_equal(ledger.turn, TASKS);
    decant_worker_destroy(&worker); /* NULL now */
    assert_int_equal(decant_memory_usage_now().blocks, blocks);
}

static decant_status read_a_byte(void *argument, decant_error *err)
{
    char byte;
    if (read(*(int *)argument, &byte, 1) == 1)
        return DECANT_OK;
    return DECANT_ERROR(err, DECANT_ERROR_BUG, "nothing to read");
}

/* A task waits for what the caller does only after submitting it. */
static void the_caller_goes_on(void **state)
{
    (void)state;
    decant_worker *worker;
    decant_error err;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    decant_task task = {.run = read_a_byte, .argument = &ends[0]};
    assert_int_equal(decant_worker_create(&worker, &err), DECANT_OK);
    decant_worker_submit(worker, &task);
    assert_int_equal(write(ends[1], "!", 1), 1);
    assert_int_equal(decant_task_wait(&task, &err), DECANT_OK);
    decant_worker_destroy(&worker);
    close(ends[0]);
    close(ends[1]);
}

static void what_was_never_submitted_is_done(void **state)
{
    (void)state;
    decant_task task = {0};
    decant_error err;
    assert_int_equal(decant_task_wait(&task, &err), DECANT_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tasks_run_in_order_and_report),        cmocka_unit_test(a_task_can_be_submitted_again),
        cmocka_unit_test(the_end_waits_for_what_was_submitted), cmocka_unit_test(the_caller_goes_on),
        cmocka_unit_test(what_was_never_submitted_is_done),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
