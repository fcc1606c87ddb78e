/* zlib's CRC-32 behind checksum.h; crc32_z takes sizes beyond 4 GB where crc32 does not. */
#include "io/checksum.h"

#include <zlib.h>

uint32_t decant_checksum(uint32_t previous, const void *data, size_t size_bytes)
{
    return (uint32_t)crc32_z(previous, size_bytes ? data : (const void *)"", size_bytes);
}
