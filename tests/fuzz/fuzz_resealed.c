/* A container, with a seal put on by this target, so that what stands behind the seal is reached: HDF5, which
 * does not bear everything (tests/fuzz/run tells its failures from ours), and decant's own checks. Its bytes as
 * they come are fuzz_container's. */
#include "tests/fuzz/input_file.h"

#include "base/memory.h"
#include "io/container.h"
#include "io/container_seal.h"
#include "stages/model_check.h"

/* As `decant verify` does. */
static void read_all(const char *path)
{
    decant_container *container;
    decant_error err;
    int64_t datasets = 0, bytes = 0;
    if (decant_container_open(path, &container, &err) != DECANT_OK)
        return;
    decant_container_verify(container, &datasets, &bytes, &err);
    if (decant_model_check_shapes(container, &err) == DECANT_OK)
        decant_model_check_layers(container, &err);
    decant_container_close(&container);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes)
{
    decant_error err;
    const char *path = input_file(data, size_bytes);
    if (decant_container_seal(path, NULL, 0, &err) != DECANT_OK)
        return 0;
    read_all(path);
    if (decant_memory_usage_now().blocks != 0)
        abort();
    return 0;
}
