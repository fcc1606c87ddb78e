/* The checksum of long arrays, taken in stretches by several threads, is zlib's of the whole. */
#include "base/memory.h"
#include "io/checksum.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <zlib.h>

#include <cmocka.h>

static void same_as_zlib_when_short_or_long(void **state)
{
    (void)state;
    const size_t sizes[] = {0, 1, 4095, (4u << 20) - 1, 4u << 20, (4u << 20) + 1, (33u << 20) + 77};
    void *memory;
    decant_error err;
    assert_int_equal(decant_memory_allocate(34u << 20, "a test", &memory, &err), DECANT_OK);
    unsigned char *data = memory;
    uint32_t random = 1;
    for (size_t i = 0; i < 34u << 20; i++) {
        random = random * 1664525u + 1013904223u;
        data[i] = (unsigned char)(random >> 24);
    }
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (uint32_t previous = 0; previous < 2; previous++)
            assert_int_equal(decant_checksum(previous * 0xdeadbeef, data, sizes[i]),
                             crc32_z(previous * 0xdeadbeef, data, sizes[i]));
    assert_int_equal(decant_checksum(0, "123456789", 9), 0xcbf43926);
    decant_memory_free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_as_zlib_when_short_or_long)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
