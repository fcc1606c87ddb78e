/* A container, the bytes as they come: the seal, and what is behind one that is right (the corpus has one). */
#include "tests/fuzz/input_file.h"

#include "base/memory.h"
#include "io/container.h"

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
    read_all(input_file(data, size_bytes));
    if (decant_memory_usage_now().blocks != 0)
        abort();
    return 0;
}
