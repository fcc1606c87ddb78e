/* Comparing a container's data with the checksums they were written with, declared in container.h. The
 * structure was checked when the container was opened, by its seal. */
#include "io/container.h"

#include "base/memory.h"
#include "io/checksum.h"

/* Large enough for the checksum's threads to share. */
enum { PIECE_BYTES = 64 << 20 };

typedef struct verification {
    const decant_container *container;
    int share, shares;
    int64_t seen, datasets, bytes;
} verification;

/* The checksum of a dataset's bytes, read in pieces. */
static decant_status sum_dataset(const decant_container *container, const char *path, decant_stored type,
                                 int64_t elements, uint32_t *checksum, decant_error *err)
{
    decant_status status = DECANT_OK;
    void *buffer = NULL;
    size_t element_bytes = decant_stored_bytes(type);
    int64_t most = PIECE_BYTES / (int64_t)element_bytes;
    most = elements < most ? elements : most;
    *checksum = 0;
    DECANT_TRY(decant_memory_allocate((size_t)most * element_bytes, "a buffer to verify with", &buffer, err));
    for (int64_t first = 0; first < elements; first += most) {
        int64_t count = elements - first < most ? elements - first : most;
        DECANT_TRY(decant_container_read_part(container, path, type, first, count, buffer, err));
        *checksum = decant_checksum(*checksum, buffer, (size_t)count * element_bytes);
    }
done:
    decant_memory_free(buffer);
    return status;
}

decant_status decant_container_compare_checksum(const decant_container *container, const char *path,
                                                uint32_t checksum, decant_error *err)
{
    int64_t expected = 0;
    decant_status status;
    DECANT_TRY(decant_container_get_integer(container, path, "crc32", &expected, err));
    if (expected != (int64_t)checksum)
        DECANT_FAIL(err, DECANT_ERROR_INPUT,
                    "%s: dataset %s is damaged: its checksum is %08lx, it was written with %08llx",
                    decant_container_path(container), path, (unsigned long)checksum,
                    (unsigned long long)expected);
done:
    return status;
}

static decant_status verify_dataset(void *context, const char *path, decant_stored type,
                                    const decant_shape *shape, decant_error *err)
{
    verification *progress = context;
    decant_status status = DECANT_OK;
    int64_t elements = 1;
    uint32_t checksum = 0;
    if (progress->seen++ % progress->shares != progress->share)
        goto done;
    for (int d = 0; d < shape->dimensions; d++)
        elements *= shape->extent[d];
    DECANT_TRY(sum_dataset(progress->container, path, type, elements, &checksum, err));
    DECANT_TRY(decant_container_compare_checksum(progress->container, path, checksum, err));
    progress->datasets++;
    progress->bytes += elements * (int64_t)decant_stored_bytes(type);
done:
    return status;
}

decant_status decant_container_verify(const decant_container *container, int64_t *datasets, int64_t *bytes,
                                      decant_error *err)
{
    verification progress = {.container = container, .shares = 1};
    decant_status status = decant_container_each(container, verify_dataset, &progress, err);
    if (datasets)
        *datasets = progress.datasets;
    if (bytes)
        *bytes = progress.bytes;
    return status;
}

decant_status decant_container_verify_share(const decant_container *container, int share, int shares,
                                            decant_error *err)
{
    verification progress = {.container = container, .share = share, .shares = shares};
    return decant_container_each(container, verify_dataset, &progress, err);
}
