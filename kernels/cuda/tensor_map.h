/* How an array in device memory, of BF16 or of 32-bit words, is described to Hopper's tensor memory
 * accelerator. */
#ifndef DECANT_KERNELS_CUDA_TENSOR_MAP_H
#define DECANT_KERNELS_CUDA_TENSOR_MAP_H

#include "kernels/cuda/context.h"

#include <cuda.h> /* CUtensorMap */

/* Three dimensions, the innermost first: elements lie side by side along it, and steps along the others are
 * multiples of 16 bytes. */
typedef struct decant_tensor_view {
    const void *data; /* a multiple of 16 bytes */
    uint64_t sizes[3];
    uint64_t strides_bytes[2]; /* of the second and third dimension */
    uint32_t box[3];           /* what one copy brings; of BF16 box[0] · 2 bytes are at most 128 */
    bool words;                /* elements are words, and boxes lie as they are */
} decant_tensor_view;

/* Fills *map, for boxes that lie in shared memory swizzled over 128 bytes, those of words not at all; what a
 * box reaches beyond the sizes is zero. DECANT_ERROR_DEVICE when the driver cannot do it. */
decant_status decant_cuda_map_tensor(decant_backend *backend, const decant_tensor_view *view, CUtensorMap *map,
                                     decant_error *err);

#endif
