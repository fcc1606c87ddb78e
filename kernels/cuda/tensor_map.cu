/* See tensor_map.h. The driver's function is found through the runtime: decant links no driver library. */
#include "kernels/cuda/tensor_map.h"

typedef CUresult (*map_encoder)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                const cuuint64_t *, const cuuint32_t *, const cuuint32_t *,
                                CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                CUtensorMapFloatOOBfill);

static decant_status find_encoder(decant_cuda_context *context, map_encoder *encode, decant_error *err)
{
    const unsigned since = 12000;
    if (!context->encode_map) {
        cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &context->encode_map,
                                                               since, cudaEnableDefault, &result),
                              "finding cuTensorMapEncodeTiled", err));
        if (result != cudaDriverEntryPointSuccess || !context->encode_map)
            return DECANT_ERROR(err, DECANT_ERROR_DEVICE,
                                "the driver has no cuTensorMapEncodeTiled: it is older than CUDA 12");
    }
    *encode = (map_encoder)context->encode_map;
    return DECANT_OK;
}

decant_status decant_cuda_map_tensor(decant_backend *backend, const decant_tensor_view *view, CUtensorMap *map,
                                     decant_error *err)
{
    map_encoder encode;
    DECANT_RETURN_ON_FAILURE(find_encoder(decant_cuda_context_of(backend), &encode, err));
    const cuuint64_t sizes[3] = {view->sizes[0], view->sizes[1], view->sizes[2]};
    const cuuint64_t strides_bytes[2] = {view->strides_bytes[0], view->strides_bytes[1]};
    const cuuint32_t box[3] = {view->box[0], view->box[1], view->box[2]}, steps[3] = {1, 1, 1};
    CUresult code =
        encode(map, view->words ? CU_TENSOR_MAP_DATA_TYPE_UINT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3,
               (void *)view->data, sizes, strides_bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
               view->words ? CU_TENSOR_MAP_SWIZZLE_NONE : CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (code != CUDA_SUCCESS)
        return DECANT_ERROR(err, DECANT_ERROR_DEVICE,
                            "CUDA: describing an array of %llu x %llu x %llu: error %d",
                            (unsigned long long)sizes[2], (unsigned long long)sizes[1],
                            (unsigned long long)sizes[0], (int)code);
    return DECANT_OK;
}
