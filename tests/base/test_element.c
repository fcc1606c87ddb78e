/* base/element: every half against the formula of IEEE 754, and rounding against arithmetic in double. */
#include "base/element.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* The value of a finite half by its definition, in double. */
static double half_by_definition(uint16_t half)
{
    int exponent = half >> 10 & 0x1f, mantissa = half & 0x3ff;
    double magnitude = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return half & 0x8000 ? -magnitude : magnitude;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void every_half_has_its_value(void **state)
{
    (void)state;
    for (uint32_t half = 0; half < 0x10000; half++) {
        float value = decant_f16_to_f32((uint16_t)half);
        if ((half & 0x7c00) != 0x7c00) {
            assert_true((double)value == half_by_definition((uint16_t)half));
            assert_int_equal(signbit(value) != 0, half >> 15);
        } else if (half & 0x3ff) {
            assert_true(isnan(value));
        } else {
            assert_true(isinf(value) && (value < 0) == (half >> 15));
        }
    }
}

static void every_half_comes_back(void **state)
{
    (void)state;
    for (uint32_t half = 0; half < 0x10000; half++) {
        uint16_t back = decant_f32_to_f16(decant_f16_to_f32((uint16_t)half));
        if ((half & 0x7c00) == 0x7c00 && half & 0x3ff)
            assert_true((back & 0x7c00) == 0x7c00 && back & 0x3ff); /* NaN stays NaN */
        else
            assert_int_equal(back, half);
    }
}

/* Between each two neighbours: the middle goes to the even one, and the floats beside it to the nearer one. */
static void ties_go_to_even(void **state)
{
    (void)state;
    for (uint32_t half = 0; half < 0x7bff; half++) {
        double low = half_by_definition((uint16_t)half), high = half_by_definition((uint16_t)(half + 1));
        float middle = (float)((low + high) / 2); /* exact: it takes one more bit than a half has */
        assert_true((double)middle == (low + high) / 2);
        uint16_t even = (uint16_t)(half + (half & 1));
        assert_int_equal(decant_f32_to_f16(middle), even);
        assert_int_equal(decant_f32_to_f16(-middle), even | 0x8000);
        assert_int_equal(decant_f32_to_f16(nextafterf(middle, 0)), half);
        assert_int_equal(decant_f32_to_f16(nextafterf(middle, INFINITY)), half + 1);
    }
}

static void beyond_the_range_is_infinity(void **state)
{
    (void)state;
    static const struct {
        float value;
        uint16_t half;
    } cases[] = {{65504, 0x7bff},    {65519.996f, 0x7bff}, {65520, 0x7c00},     {1e30f, 0x7c00},
                 {INFINITY, 0x7c00}, {-65520, 0xfc00},     {-INFINITY, 0xfc00}, {0x1p-25f, 0x0000},
                 {0x1.8p-25f, 1},    {1e-30f, 0},          {-1e-30f, 0x8000},   {0x1p-149f, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(decant_f32_to_f16(cases[i].value), cases[i].half);
    assert_int_equal(decant_f32_to_f16(NAN) & 0x7e00, 0x7e00);
    assert_int_equal(decant_f32_to_f16(float_of(0xff800001)) & 0xfe00, 0xfe00); /* a signalling one, negative */
}

static void brain_floats_are_the_upper_half(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 0x10000; bits++)
        assert_int_equal(bits_of(decant_bf16_to_f32((uint16_t)bits)), bits << 16);
}

/* Between each two neighbours the middle goes to the even one, and the floats beside it to the nearer one. */
static void rounding_to_brain_floats_ties_to_even(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 0x7f80; bits++) {
        uint32_t middle = bits << 16 | 0x8000u, even = bits + (bits & 1u);
        assert_int_equal(decant_f32_to_bf16(float_of(bits << 16)), bits);
        assert_int_equal(decant_f32_to_bf16(float_of(middle)), even);
        assert_int_equal(decant_f32_to_bf16(float_of(middle - 1)), bits);
        assert_int_equal(decant_f32_to_bf16(float_of(middle + 1)), bits + 1);
        assert_int_equal(decant_f32_to_bf16(float_of(middle | 0x80000000u)), even | 0x8000u);
    }
    assert_int_equal(decant_f32_to_bf16(INFINITY), 0x7f80);
    assert_int_equal(decant_f32_to_bf16(float_of(0x7f800001)) & 0x7fc0, 0x7fc0); /* NaN stays NaN */
}

static void arrays_are_rounded_like_single_values(void **state)
{
    (void)state;
    const float source[] = {1.0f / 3, -2e-6f, 1e30f, 0};
    float wide[5] = {0, 0, 0, 0, 77};
    uint16_t half[5] = {0, 0, 0, 0, 77}, brain[5] = {0, 0, 0, 0, 77};
    decant_elements_from_f32(DECANT_F32, source, 4, wide);
    decant_elements_from_f32(DECANT_F16, source, 4, half);
    decant_elements_from_f32(DECANT_BF16, source, 4, brain);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(bits_of(wide[i]), bits_of(source[i]));
        assert_int_equal(half[i], decant_f32_to_f16(source[i]));
        assert_int_equal(brain[i], decant_f32_to_bf16(source[i]));
    }
    assert_true(wide[4] == 77 && half[4] == 77 && brain[4] == 77);
}

/* All lengths up to a few vectors, from an odd place, without touching what lies behind. */
static void arrays_are_converted_like_single_values(void **state)
{
    (void)state;
    enum { MOST = 40 };
    uint16_t source[MOST + 1];
    float wide[MOST + 1], target[MOST + 1];
    for (int i = 0; i <= MOST; i++) {
        source[i] = (uint16_t)(i * 1619 + 3);
        wide[i] = (float)i / 3;
    }
    for (int64_t count = 0; count < MOST; count++) {
        static const decant_element elements[] = {DECANT_F32, DECANT_F16, DECANT_BF16};
        for (size_t e = 0; e < 3; e++) {
            for (int i = 0; i <= MOST; i++)
                target[i] = 77;
            decant_elements_to_f32(
                elements[e], elements[e] == DECANT_F32 ? (const void *)(wide + 1) : source + 1, count, target);
            for (int64_t i = 0; i < count; i++) {
                float expected = elements[e] == DECANT_F32   ? wide[i + 1]
                                 : elements[e] == DECANT_F16 ? decant_f16_to_f32(source[i + 1])
                                                             : decant_bf16_to_f32(source[i + 1]);
                if (!isnan(expected))
                    assert_int_equal(bits_of(target[i]), bits_of(expected));
                else
                    assert_true(isnan(target[i]));
            }
            assert_true(target[count] == 77);
        }
    }
}

static void views_and_sizes_fit(void **state)
{
    (void)state;
    float values[12] = {0};
    decant_matrix matrix = {values, DECANT_F32, 4, 3};
    assert_int_equal(decant_matrix_bytes(matrix), 48);
    decant_matrix rows = decant_matrix_rows(matrix, 1, 2);
    assert_ptr_equal(rows.data, values + 3);
    assert_int_equal(rows.rows, 2);
    assert_int_equal(rows.columns, 3);
    assert_int_equal(decant_element_bytes(DECANT_F16), 2);
    assert_int_equal(decant_element_bytes(DECANT_BF16), 2);
    assert_string_equal(decant_element_name(DECANT_F32), "F32");
    assert_string_equal(decant_element_name(DECANT_F16), "F16");
    assert_string_equal(decant_element_name(DECANT_BF16), "BF16");
}

/* Against the library's idea of each value, wherever it lies: at the ends of lots of 4096 and within. */
static void the_first_that_is_not_finite_is_found(void **state)
{
    (void)state;
    enum { COUNT = 3 * 4096 + 17 };
    static const int64_t places[] = {0, 1, 4095, 4096, 4097, 8191, 12288, COUNT - 1};
    static const float usual[] = {0, -0.f, 1, 65504, -3.4e38f, 1e-45f}, strange[] = {INFINITY, -INFINITY, NAN};
    static float values[COUNT], kept[COUNT];
    static uint16_t halves[COUNT];
    for (int64_t i = 0; i < COUNT; i++)
        values[i] = usual[i % 6];
    for (decant_element element = DECANT_F32; element <= DECANT_BF16; element++) {
        void *array = element == DECANT_F32 ? (void *)kept : halves;
        for (int64_t i = 0; element == DECANT_F16 && i < COUNT; i++)
            values[i] = i % 6 == 4 ? -65504 : values[i];
        decant_elements_from_f32(element, values, COUNT, array);
        assert_int_equal(decant_find_not_finite(element, array, COUNT), -1);
        assert_int_equal(decant_find_not_finite(element, array, 0), -1);
        for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
            const float before = values[places[i]], last = values[COUNT - 1];
            values[COUNT - 1] = NAN; /* not the first but where it is the place */
            values[places[i]] = strange[i % 3];
            decant_elements_from_f32(element, values, COUNT, array);
            assert_int_equal(decant_find_not_finite(element, array, COUNT), places[i]);
            assert_int_equal(decant_find_not_finite(element, array, places[i]), -1);
            values[COUNT - 1] = last;
            values[places[i]] = before;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_has_its_value),
        cmocka_unit_test(every_half_comes_back),
        cmocka_unit_test(ties_go_to_even),
        cmocka_unit_test(beyond_the_range_is_infinity),
        cmocka_unit_test(brain_floats_are_the_upper_half),
        cmocka_unit_test(rounding_to_brain_floats_ties_to_even),
        cmocka_unit_test(arrays_are_rounded_like_single_values),
        cmocka_unit_test(arrays_are_converted_like_single_values),
        cmocka_unit_test(views_and_sizes_fit),
        cmocka_unit_test(the_first_that_is_not_finite_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
