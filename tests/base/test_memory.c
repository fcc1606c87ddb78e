/* base/memory: what is counted, and what happens when there is not enough. */
#include "base/memory.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

/* AddressSanitizer asks this: a request beyond all bounds is refused here as it is elsewhere. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}

static void blocks_are_zero_aligned_and_counted(void **state)
{
    (void)state;
    decant_error err;
    static const size_t sizes[] = {0, 1, 63, 64, 65, 4096, 1000001};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    void *blocks[SIZES];
    int64_t bytes = 0;
    decant_memory_usage before = decant_memory_usage_now();
    for (size_t i = 0; i < SIZES; i++) {
        assert_int_equal(decant_memory_allocate(sizes[i], "a test", &blocks[i], &err), DECANT_OK);
        assert_non_null(blocks[i]);
        assert_int_equal((uintptr_t)blocks[i] % 64, 0);
        for (size_t b = 0; b < sizes[i]; b++)
            assert_int_equal(((unsigned char *)blocks[i])[b], 0);
        memset(blocks[i], 0xff, sizes[i]);
        bytes += (int64_t)sizes[i];
        decant_memory_usage now = decant_memory_usage_now();
        assert_int_equal(now.blocks, before.blocks + (int64_t)i + 1);
        assert_int_equal(now.bytes, before.bytes + bytes);
        assert_true(now.peak_bytes >= now.bytes);
    }
    for (size_t i = 0; i < SIZES; i++)
        decant_memory_free(blocks[i]);
    decant_memory_free(NULL);
    decant_memory_usage after = decant_memory_usage_now();
    assert_int_equal(after.blocks, before.blocks);
    assert_int_equal(after.bytes, before.bytes);
    assert_int_equal(after.peak_bytes, before.bytes + bytes);
}

static void resizing_keeps_what_was_there(void **state)
{
    (void)state;
    decant_error err;
    void *block = NULL;
    assert_int_equal(decant_memory_resize(10, "a test", &block, &err), DECANT_OK);
    memcpy(block, "0123456789", 10);
    assert_int_equal(decant_memory_resize(1000, "a test", &block, &err), DECANT_OK);
    assert_memory_equal(block, "0123456789", 10);
    for (size_t i = 10; i < 1000; i++)
        assert_int_equal(((char *)block)[i], 0);
    assert_int_equal(decant_memory_resize(4, "a test", &block, &err), DECANT_OK);
    assert_memory_equal(block, "0123", 4);
    assert_int_equal(decant_memory_usage_now().bytes, 4);
    void *same = block;
    assert_int_equal(decant_memory_resize(SIZE_MAX / 2, "a test", &block, &err), DECANT_ERROR_MEMORY);
    assert_ptr_equal(block, same);
    assert_memory_equal(block, "0123", 4);
    decant_memory_free(block);
    assert_int_equal(decant_memory_usage_now().blocks, 0);
}

static void arrays_grow_by_doubling(void **state)
{
    (void)state;
    decant_error err;
    int64_t *numbers = NULL, count = 0, room = 0;
    for (int64_t i = 0; i < 1000; i++) {
        const int64_t before = room;
        assert_int_equal(decant_memory_grow(sizeof *numbers, count, &room, "numbers", (void **)&numbers, &err),
                         DECANT_OK);
        assert_true(room == before || (count == before && room == (before > 0 ? 2 * before : 64)));
        assert_true(count < room);
        numbers[count++] = i;
    }
    assert_int_equal(room, 1024);
    for (int64_t i = 0; i < count; i++)
        assert_int_equal(numbers[i], i);
    int64_t *same = numbers, full = room;
    assert_int_equal(decant_memory_grow(SIZE_MAX / 4096, full, &room, "numbers", (void **)&numbers, &err),
                     DECANT_ERROR_MEMORY);
    assert_ptr_equal(numbers, same);
    assert_int_equal(room, full);
    decant_memory_free(numbers);
    assert_int_equal(decant_memory_usage_now().blocks, 0);
}

static void refusals_name_what_the_memory_was_for(void **state)
{
    (void)state;
    decant_error err;
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 63, SIZE_MAX - 127, SIZE_MAX / 2};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        void *block = &err;
        memset(&err, 0, sizeof err);
        assert_int_equal(decant_memory_allocate(sizes[i], "Fisher sums of layer 3", &block, &err),
                         DECANT_ERROR_MEMORY);
        assert_null(block);
        assert_int_equal(err.status, DECANT_ERROR_MEMORY);
        assert_non_null(strstr(err.message, "Fisher sums of layer 3"));
    }
    assert_int_equal(decant_memory_usage_now().blocks, 0);
}

static void strings_are_copied(void **state)
{
    (void)state;
    decant_error err;
    char text[] = "a name", *copy;
    assert_int_equal(decant_memory_copy_string(text, &copy, &err), DECANT_OK);
    text[0] = 'X';
    assert_string_equal(copy, "a name");
    decant_memory_free(copy);
    assert_int_equal(decant_memory_copy_string("", &copy, &err), DECANT_OK);
    assert_string_equal(copy, "");
    decant_memory_free(copy);
    assert_int_equal(decant_memory_usage_now().blocks, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_zero_aligned_and_counted),
        cmocka_unit_test(resizing_keeps_what_was_there),
        cmocka_unit_test(arrays_grow_by_doubling),
        cmocka_unit_test(refusals_name_what_the_memory_was_for),
        cmocka_unit_test(strings_are_copied),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
