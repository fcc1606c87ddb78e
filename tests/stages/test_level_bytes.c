/* Levels of a byte each: what is stored comes back, in place too, and what cannot be stored is refused. */
#include "base/element.h"
#include "kernels/level_grid.h"
#include "stages/level_bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { ROWS = 5, COUNT = 4 };

static void levels_come_back_as_they_were(void **state)
{
    /* multiples of 2^-10, of the least power of two, of the largest, nothing but zeros, the ends of the range
     */
    const double step[ROWS] = {0x1p-10, 0x1p-24, 0x1p9, 1, 0x1p-3};
    const int multiple[ROWS][COUNT] = {
        {-127, -3, 0, 90}, {-1, 0, 2, 63}, {-126, 0, 1, 126}, {0, 0, 0, 0}, {-127, -127, 127, 127}};
    const int exponent[ROWS] = {-10, -24, 9, -24, -3};
    uint16_t levels[ROWS * COUNT], again[ROWS * COUNT], place[ROWS * COUNT];
    uint8_t bytes[ROWS * COUNT], exponents[ROWS];
    decant_error err;
    (void)state;
    for (int i = 0; i < ROWS * COUNT; i++)
        levels[i] = decant_f32_to_f16((float)(step[i / COUNT] * multiple[i / COUNT][i % COUNT]));
    assert_int_equal(decant_levels_to_bytes(levels, ROWS, COUNT, bytes, exponents, &err), DECANT_OK);
    for (int i = 0; i < ROWS * COUNT; i++)
        assert_int_equal(bytes[i], multiple[i / COUNT][i % COUNT] + 128);
    for (int row = 0; row < ROWS; row++)
        assert_int_equal(exponents[row], exponent[row] + 24);
    assert_int_equal(decant_levels_from_bytes(bytes, exponents, ROWS, COUNT, again, &err), DECANT_OK);
    assert_memory_equal(again, levels, sizeof levels);
    memcpy(place, levels, sizeof levels);
    assert_int_equal(decant_levels_to_bytes(place, ROWS, COUNT, (uint8_t *)place, exponents, &err), DECANT_OK);
    assert_memory_equal(place, bytes, sizeof bytes);
}

static void what_no_byte_holds_is_refused(void **state)
{
    const uint16_t levels[2] = {decant_f32_to_f16(1.0f), decant_f32_to_f16(0.001f)};
    const uint8_t bytes[2] = {0, 255}, exponents[1] = {24 + 10};
    uint16_t back[2];
    uint8_t made[2], exponent[1];
    decant_error err;
    (void)state;
    assert_int_equal(decant_levels_to_bytes(levels, 1, 2, made, exponent, &err), DECANT_ERROR_BUG);
    assert_int_equal(decant_levels_from_bytes(bytes, exponents, 1, 2, back, &err), DECANT_ERROR_INPUT);
}

static void every_row_has_the_least_exponent_that_will_do(void **state)
{
    (void)state;
    for (double largest = 0x1p-30; largest < 65000; largest *= 1.013) {
        const double clamped = decant_level_clamped(largest);
        const int exponent = decant_level_exponent(clamped);
        const double rounded = decant_level_rounded(clamped, exponent);
        assert_true(rounded <= ldexp(127, exponent));
        assert_true(exponent == -24 || clamped >= ldexp(127.5, exponent - 1));
        assert_true(fabs(rounded - clamped) <= ldexp(0.5, exponent));
        assert_true(rounded == (double)decant_f16_to_f32(decant_f32_to_f16((float)rounded)));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(levels_come_back_as_they_were),
        cmocka_unit_test(what_no_byte_holds_is_refused),
        cmocka_unit_test(every_row_has_the_least_exponent_that_will_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
