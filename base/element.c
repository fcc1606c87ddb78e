/* Conversions between the element types, in integer arithmetic so that every machine gives the same bits, and
 * the search for values that are not finite. */
#include "base/element.h"

#include <stdbool.h>

#if defined(__F16C__)
#include <immintrin.h>
#endif

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

float decant_f16_to_f32(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = (half >> 10) & 0x1fu;
    uint32_t mantissa = half & 0x3ffu;
    if (exponent == 0x1f)
        return float_of(sign | 0x7f800000u | mantissa << 13);
    if (exponent != 0)
        return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
    float subnormal = (float)mantissa * 0x1p-24f;
    return sign ? -subnormal : subnormal;
}

uint16_t decant_f32_to_f16(float value)
{
    uint32_t bits = bits_of(value);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) { /* below 2^-14: adding 0.5 leaves the rounded subnormal in the low bits */
        uint32_t shifted = bits_of(float_of(magnitude) + 0.5f);
        return (uint16_t)(sign | (shifted - 0x3f000000u));
    }
    uint32_t odd = magnitude >> 13 & 1u;
    return (uint16_t)(sign | (magnitude - 0x38000000u + 0xfffu + odd) >> 13);
}

uint16_t decant_f32_to_bf16(float value)
{
    uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

void decant_elements_from_f32(decant_element element, const float *source, int64_t count, void *target)
{
    uint16_t *half = target;
    if (element == DECANT_F32)
        memcpy(target, source, (size_t)count * sizeof *source);
    else
        for (int64_t i = 0; i < count; i++)
            half[i] = element == DECANT_F16 ? decant_f32_to_f16(source[i]) : decant_f32_to_bf16(source[i]);
}

void decant_elements_to_f32(decant_element element, const void *source, int64_t count, float *target)
{
    const uint16_t *half = source;
    int64_t i = 0;
    switch (element) {
    case DECANT_F32:
        memcpy(target, source, (size_t)count * sizeof *target);
        break;
    case DECANT_F16:
#if defined(__F16C__)
        for (; i + 8 <= count; i += 8)
            _mm256_storeu_ps(target + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(half + i))));
#endif
        for (; i < count; i++)
            target[i] = decant_f16_to_f32(half[i]);
        break;
    case DECANT_BF16:
        for (; i < count; i++)
            target[i] = decant_bf16_to_f32(half[i]);
        break;
    }
}

/* Such values have all bits of their exponent set, which is in the upper half of an F32. Where one is, is asked
 * of a lot only once it is known that there is one: compilers make vectors of loops that do not end within. */
int64_t decant_find_not_finite(decant_element element, const void *values, int64_t count)
{
    enum { LOT = 4096 };
    const bool is_wide = element == DECANT_F32;
    const uint16_t *halves = values, exponent = element == DECANT_F16 ? 0x7c00 : 0x7f80;
    for (int64_t first = 0; first < count; first += LOT) {
        const int64_t end = count - first < LOT ? count : first + LOT;
        int found = 0;
        if (is_wide)
            for (int64_t i = first; i < end; i++)
                found |= (halves[2 * i + 1] & exponent) == exponent;
        else
            for (int64_t i = first; i < end; i++)
                found |= (halves[i] & exponent) == exponent;
        for (int64_t i = first; found && i < end; i++)
            if ((halves[is_wide ? 2 * i + 1 : i] & exponent) == exponent)
                return i;
    }
    return -1;
}
