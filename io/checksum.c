/* zlib's CRC-32 behind checksum.h. One core takes 1.8 GB/s, a fraction of what disks and GPUs deliver, so long
 * arrays are cut into stretches that threads take in turn; zlib joins the checksums of neighbouring stretches
 * exactly. */
#include "io/checksum.h"

#include <stdint.h>
#include <zlib.h>

enum { STRETCH_BYTES = 4 << 20, STRETCHES_AT_ONCE = 256 };

static uint32_t checksum_of_stretch(uint32_t previous, const unsigned char *data, size_t size_bytes)
{
    return (uint32_t)crc32_z(previous, size_bytes ? data : (const unsigned char *)"", size_bytes);
}

/* Up to STRETCHES_AT_ONCE stretches, going on from `previous`. */
static uint32_t checksum_of_stretches(uint32_t previous, const unsigned char *data, size_t size_bytes)
{
    uint32_t checksums[STRETCHES_AT_ONCE];
    int count = (int)((size_bytes + STRETCH_BYTES - 1) / STRETCH_BYTES);
#pragma omp parallel for schedule(static, 1)
    for (int i = 0; i < count; i++) {
        size_t first = (size_t)i * STRETCH_BYTES;
        size_t length = size_bytes - first < STRETCH_BYTES ? size_bytes - first : STRETCH_BYTES;
        checksums[i] = checksum_of_stretch(0, data + first, length);
    }
    for (int i = 0; i < count; i++) {
        size_t first = (size_t)i * STRETCH_BYTES;
        size_t length = size_bytes - first < STRETCH_BYTES ? size_bytes - first : STRETCH_BYTES;
        previous = (uint32_t)crc32_combine(previous, checksums[i], (z_off_t)length);
    }
    return previous;
}

uint32_t decant_checksum_join(uint32_t first, uint32_t second, int64_t second_bytes)
{
    return (uint32_t)crc32_combine(first, second, (z_off_t)second_bytes);
}

uint32_t decant_checksum(uint32_t previous, const void *data, size_t size_bytes)
{
    const size_t at_once = (size_t)STRETCH_BYTES * STRETCHES_AT_ONCE;
    const unsigned char *bytes = data;
    if (size_bytes <= STRETCH_BYTES)
        return checksum_of_stretch(previous, bytes, size_bytes);
    for (size_t first = 0; first < size_bytes; first += at_once) {
        size_t length = size_bytes - first < at_once ? size_bytes - first : at_once;
        previous = checksum_of_stretches(previous, bytes + first, length);
    }
    return previous;
}
