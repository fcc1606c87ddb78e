/* A container: the bytes as they come, against the seal; and, where the first byte is odd, with a seal put on
 * by this target, so that what stands behind the seal is reached too. */
#include "tests/fuzz/input_file.h"

#include "base/memory.h"
#include "io/container.h"
#include "io/container_seal.h"

static decant_status visit(void *context, const char *path, decant_stored type, const decant_shape *shape,
                           decant_error *err)
{
    (void)path;
    (void)type;
    (void)shape;
    (void)err;
    ++*(int64_t *)context;
    return DECANT_OK;
}

static void read_all(const char *path)
{
    decant_container *container;
    decant_error err;
    int64_t datasets = 0, bytes = 0;
    if (decant_container_open(path, &container, &err) != DECANT_OK)
        return;
    decant_container_each(container, visit, &datasets, &err);
    decant_container_verify(container, &datasets, &bytes, &err);
    decant_container_close(&container);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes)
{
    decant_error err;
    if (size_bytes < 1)
        return 0;
    const char *path = input_file(data + 1, size_bytes - 1);
    if (data[0] % 2 == 1 && decant_container_seal(path, NULL, 0, &err) != DECANT_OK)
        return 0;
    read_all(path);
    if (decant_memory_usage_now().blocks != 0)
        abort();
    return 0;
}
