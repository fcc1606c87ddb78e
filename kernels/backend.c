/* What all backends share, and the answer of a build without CUDA. */
#include "kernels/backend.h"

void decant_backend_destroy(decant_backend **backend)
{
    if (!*backend)
        return;
    (*backend)->destroy(*backend);
    *backend = NULL;
}

#ifndef DECANT_WITH_CUDA
decant_status decant_backend_create_cuda(int device, bool full_floats, decant_backend **backend,
                                         decant_error *err)
{
    (void)device, (void)full_floats;
    *backend = NULL;
    return DECANT_ERROR(err, DECANT_ERROR_DEVICE, "this decant was built without CUDA; use --device cpu");
}

int decant_backend_count_cuda(void)
{
    return 0;
}
#endif
