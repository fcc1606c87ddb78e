/* CRC-32 (zlib's polynomial) over arrays of any size. */
#ifndef DECANT_IO_CHECKSUM_H
#define DECANT_IO_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* The CRC-32 of size_bytes bytes, going on from `previous` (0 to start). */
uint32_t decant_checksum(uint32_t previous, const void *data, size_t size_bytes);

/* The checksum of two stretches one behind the other, from the checksums of each and the length of the second.
 */
uint32_t decant_checksum_join(uint32_t first, uint32_t second, int64_t second_bytes);

#endif
