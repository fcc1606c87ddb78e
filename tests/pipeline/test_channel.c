/* Channels between ranks that follow the schedule, on a device that is always behind: what was issued is done
 * only after it has been asked for a few times. ranks: 1 2 3 4 */
#include "pipeline/channel.h"
#include "pipeline/schedule.h"
#include "tests/ranks/mpi_tests.h"

#include <stdlib.h>
#include <string.h>

enum { COLUMNS = 3000, BATCHES = 23, ASKED_BEFORE_DONE = 7, TASKS_MAXIMUM = 4096, FORWARD = 1, BACKWARD = 2 };

/* ---- a device that is behind ---- */

/* Adds `value` to each of COLUMNS floats, or copies them, as the device gets there. */
typedef struct task {
    float *target;
    const float *source; /* NULL: add */
    float value;
} task;

typedef struct late_device {
    decant_backend backend;
    decant_memory_kernels memory;
    task tasks[TASKS_MAXIMUM];
    int64_t issued, done, asked;
} late_device;

static late_device *device_of(decant_backend *backend)
{
    return backend->state;
}

static void issue(late_device *device, task next)
{
    assert_true(device->issued < TASKS_MAXIMUM);
    device->tasks[device->issued++] = next;
}

static void do_next(late_device *device)
{
    const task *next = &device->tasks[device->done++];
    for (int i = 0; i < COLUMNS; i++)
        next->target[i] = next->source ? next->source[i] : next->target[i] + next->value;
}

static decant_status begin_copy(decant_backend *backend, void *target, const void *source, size_t size_bytes,
                                decant_error *err)
{
    (void)err;
    assert_int_equal(size_bytes, COLUMNS * sizeof(float));
    issue(device_of(backend), (task){.target = target, .source = source});
    return DECANT_OK;
}

static decant_status allocate_host(decant_backend *backend, size_t size_bytes, const char *what, void **host,
                                   decant_error *err)
{
    (void)backend;
    return decant_memory_allocate(size_bytes, what, host, err);
}

static void release_host(decant_backend *backend, void **host)
{
    (void)backend;
    decant_memory_free(*host);
    *host = NULL;
}

static decant_status create_moment(decant_backend *backend, void **moment, decant_error *err)
{
    (void)backend;
    return decant_memory_allocate(sizeof(int64_t), "a moment", moment, err);
}

static decant_status mark(decant_backend *backend, void *moment, decant_error *err)
{
    (void)err;
    *(int64_t *)moment = device_of(backend)->issued;
    return DECANT_OK;
}

static bool is_reached(decant_backend *backend, const void *moment)
{
    late_device *device = device_of(backend);
    if (++device->asked % ASKED_BEFORE_DONE == 0 && device->done < device->issued)
        do_next(device);
    return device->done >= *(const int64_t *)moment;
}

static decant_status synchronize(decant_backend *backend, decant_error *err)
{
    late_device *device = device_of(backend);
    (void)err;
    while (device->done < device->issued)
        do_next(device);
    return DECANT_OK;
}

static late_device *make_device(void)
{
    late_device *device;
    decant_error err;
    assert_ok(decant_memory_allocate(sizeof *device, "a device", (void **)&device, &err));
    device->memory = (decant_memory_kernels){
        .allocate_host = allocate_host,
        .release_host = release_host,
        .begin_download = begin_copy,
        .begin_upload = begin_copy,
        .create_moment = create_moment,
        .release_moment = release_host,
        .mark = mark,
        .is_reached = is_reached,
        .synchronize = synchronize,
    };
    device->backend = (decant_backend){.leaves_host_free = true, .memory = &device->memory, .state = device};
    return device;
}

/* ---- a pipeline of ranks ---- */

/* Each stage adds its number plus one going forward, and takes it away going backward; a micro-batch begins as
 * its own number. The input of every micro-batch has a slot, as in pipeline/resident.c. */
static void run_pipeline(decant_ranks *ranks, int slack, int64_t withdraws_at)
{
    late_device *device = make_device();
    decant_backend *backend = &device->backend;
    decant_channels channels = {.ranks = ranks, .backend = backend};
    decant_channel *from_previous = NULL, *to_next = NULL, *from_next = NULL, *to_previous = NULL;
    const int stage = ranks->rank, last = ranks->size - 1;
    const size_t bytes = COLUMNS * sizeof(float);
    const int64_t in_flight = decant_schedule_in_flight(ranks->size, stage, slack, BATCHES);
    float *slots, *finished;
    bool withdrawn = false;
    decant_error err;
    assert_ok(decant_memory_allocate((size_t)in_flight * bytes, "slots", (void **)&slots, &err));
    assert_ok(decant_memory_allocate(BATCHES * bytes, "what came back", (void **)&finished, &err));
    if (stage > 0) {
        assert_ok(
            decant_channel_open(&channels, stage - 1, FORWARD, bytes, BATCHES, true, &from_previous, &err));
        assert_ok(
            decant_channel_open(&channels, stage - 1, BACKWARD, bytes, BATCHES, false, &to_previous, &err));
    }
    if (stage < last) {
        assert_ok(decant_channel_open(&channels, stage + 1, FORWARD, bytes, BATCHES, false, &to_next, &err));
        assert_ok(decant_channel_open(&channels, stage + 1, BACKWARD, bytes, BATCHES, true, &from_next, &err));
    }
    for (int64_t i = 0; i < 2 * BATCHES; i++) {
        decant_step step = decant_schedule_step(in_flight, BATCHES, i);
        bool is_forward = step.direction == DECANT_FORWARD;
        float *slot = slots + step.batch % in_flight * COLUMNS;
        decant_matrix matrix = {.data = slot, .element = DECANT_F32, .rows = 1, .columns = COLUMNS};
        decant_channel *from = is_forward ? from_previous : from_next, *to = is_forward ? to_next : to_previous;
        if (stage == last && i >= withdraws_at)
            withdrawn = true;
        if (from)
            assert_ok(decant_channel_receive(from, &matrix, 1, &withdrawn, &err));
        else if (is_forward) { /* 0, and then the micro-batch's number */
            issue(device, (task){.target = slot, .source = finished + step.batch * COLUMNS});
            issue(device, (task){.target = slot, .value = (float)step.batch});
        }
        issue(device, (task){.target = slot, .value = (float)(is_forward ? stage + 1 : -stage - 1)});
        if (to)
            assert_ok(decant_channel_send(to, &matrix, 1, withdrawn, &err));
        if (!is_forward && stage == 0)
            issue(device, (task){.target = finished + step.batch * COLUMNS, .source = slot});
    }
    decant_channels_flush(&channels);
    assert_ok(
        decant_ranks_agree(ranks, DECANT_OK, &err)); /* nobody waits for a message of a rank that is here */
    decant_channels_close(&channels);
    assert_ok(synchronize(backend, &err));
    assert_int_equal(withdrawn, withdraws_at < 2 * BATCHES);
    for (int64_t batch = 0; stage == 0 && !withdrawn && batch < BATCHES; batch++)
        for (int i = 0; i < COLUMNS; i += COLUMNS - 1)
            assert_true(finished[batch * COLUMNS + i] == (float)batch);
    decant_memory_free(slots);
    decant_memory_free(finished);
    decant_memory_free(device);
}

static void what_goes_forward_comes_back(void **state)
{
    decant_ranks *ranks = *state;
    for (int slack = 0; slack < ranks->size; slack++)
        run_pipeline(ranks, slack, INT64_MAX);
}

static void all_hear_that_one_withdrew(void **state)
{
    run_pipeline(*state, 0, 5);
    run_pipeline(*state, 1, 5);
}

static decant_status fail_to_copy(decant_backend *backend, void *target, const void *source, size_t size_bytes,
                                  decant_error *err)
{
    (void)backend;
    (void)target;
    (void)source;
    (void)size_bytes;
    return DECANT_ERROR(err, DECANT_ERROR_DEVICE, "a copy that failed");
}

/* The first rank sends what its device cannot copy to the second, which hears that there is nothing. */
static void a_copy_that_failed_goes_out_marked(void **state)
{
    decant_ranks *ranks = *state;
    late_device *device = make_device();
    decant_channels channels = {.ranks = ranks, .backend = &device->backend};
    decant_channel *channel = NULL;
    float row[COLUMNS] = {1};
    decant_matrix matrix = {.data = row, .element = DECANT_F32, .rows = 1, .columns = COLUMNS};
    bool withdrawn = false;
    decant_error err;
    device->memory.begin_download = fail_to_copy;
    if (ranks->size > 1 && ranks->rank == 0) {
        assert_ok(decant_channel_open(&channels, 1, FORWARD, sizeof row, 1, false, &channel, &err));
        assert_status(decant_channel_send(channel, &matrix, 1, false, &err), DECANT_ERROR_DEVICE);
    } else if (ranks->rank == 1) {
        assert_ok(decant_channel_open(&channels, 0, FORWARD, sizeof row, 1, true, &channel, &err));
        assert_ok(decant_channel_receive(channel, &matrix, 1, &withdrawn, &err));
        assert_true(withdrawn);
        assert_true(row[0] == 1 && device->issued == 0);
    }
    decant_channels_flush(&channels);
    assert_ok(decant_ranks_agree(ranks, DECANT_OK, &err));
    decant_channels_close(&channels);
    decant_memory_free(device);
}

int main(int argument_count, char **arguments)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_goes_forward_comes_back),
        cmocka_unit_test(all_hear_that_one_withdrew),
        cmocka_unit_test(a_copy_that_failed_goes_out_marked),
    };
    return run_mpi_tests(argument_count, arguments, tests);
}
