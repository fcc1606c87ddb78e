/* pipeline/host_lead: over a device that finishes what it is told to. */
#include "pipeline/host_lead.h"

#include "base/memory.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

typedef struct slow_device {
    int64_t issued, done; /* blocks */
    int moments;          /* that were not released */
} slow_device;

static decant_status create_moment(decant_backend *backend, void **moment, decant_error *err)
{
    ((slow_device *)backend->state)->moments++;
    return decant_memory_allocate(sizeof(int64_t), "a moment", moment, err);
}

static void release_moment(decant_backend *backend, void **moment)
{
    ((slow_device *)backend->state)->moments -= *moment != NULL;
    decant_memory_free(*moment);
    *moment = NULL;
}

static decant_status mark(decant_backend *backend, void *moment, decant_error *err)
{
    (void)err;
    *(int64_t *)moment = ((slow_device *)backend->state)->issued;
    return DECANT_OK;
}

static bool is_reached(decant_backend *backend, const void *moment)
{
    return ((slow_device *)backend->state)->done >= *(const int64_t *)moment;
}

static const decant_memory_kernels memory = {
    .create_moment = create_moment, .release_moment = release_moment, .mark = mark, .is_reached = is_reached};

static bool issue_block(decant_host_lead *lead, slow_device *device)
{
    device->issued++;
    return decant_host_lead_suffices(lead);
}

/* Whatever is finished meanwhile, the lead suffices when the block issued so many before is not done. */
static void a_lead_counts_the_blocks_that_are_not_done(void **state)
{
    (void)state;
    slow_device device = {0};
    decant_backend backend = {.memory = &memory, .state = &device};
    decant_host_lead lead;
    decant_error err;
    assert_int_equal(decant_host_lead_open(&backend, &lead, &err), DECANT_OK);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < DECANT_HOST_LEAD_BLOCKS; i++) /* those before are all done */
            assert_false(issue_block(&lead, &device));
        for (int i = 0; i < 10; i++) {
            assert_true(issue_block(&lead, &device));
            device.done = device.issued - DECANT_HOST_LEAD_BLOCKS;
        }
        device.done++; /* one block less before it than wanted */
        assert_false(issue_block(&lead, &device));
        device.done = device.issued;
    }
    decant_host_lead_close(&lead);
    assert_int_equal(device.moments, 0);
}

static void closing_takes_one_that_was_not_opened(void **state)
{
    (void)state;
    decant_host_lead lead = {0};
    decant_host_lead_close(&lead);
    assert_null(lead.backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lead_counts_the_blocks_that_are_not_done),
        cmocka_unit_test(closing_takes_one_that_was_not_opened),
    };
    return cmocka_run_group_tests_name("the host's lead", tests, NULL, NULL);
}
