/* See fisher_file.h. */
#include "stages/fisher_file.h"

#include "base/memory.h"
#include "io/checksum.h"

#include <stdio.h>

static void name_dataset(const char *prefix, const decant_linear *linear,
                         char path[DECANT_CONTAINER_PATH_BYTES])
{
    snprintf(path, DECANT_CONTAINER_PATH_BYTES, "%s/%s/fisher", prefix, linear->name);
}

decant_status decant_fisher_file_define_block(decant_container_writer *writer,
                                              const decant_model_config *config, const decant_family *family,
                                              int layer, const char *prefix, int *ids, decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int i = 0; i < family->linear_count && status == DECANT_OK; i++) {
        decant_linear linear;
        char path[DECANT_CONTAINER_PATH_BYTES];
        family->linear(config, layer, i, &linear);
        name_dataset(prefix, &linear, path);
        decant_shape shape = {2, {linear.rows, linear.columns}};
        status = decant_container_define(writer, path, DECANT_STORED_F32, &shape, &ids[i], err);
    }
    return status;
}

decant_status decant_fisher_file_define(decant_container_writer *writer, const decant_model_config *config,
                                        const decant_family *family, const char *prefix, int *ids,
                                        decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int layer = 0; layer < config->layers && status == DECANT_OK; layer++)
        status = decant_fisher_file_define_block(writer, config, family, layer, prefix,
                                                 ids + layer * family->linear_count, err);
    return status;
}

/* Linear layer `index` of the list. */
static decant_linear linear_of(const decant_fisher_sums *fisher, int index)
{
    int linears = fisher->family->linear_count;
    decant_linear linear;
    fisher->family->linear(fisher->config, fisher->first_layer + index / linears, index % linears, &linear);
    return linear;
}

static int count_of(const decant_fisher_sums *fisher)
{
    return fisher->sums ? fisher->layer_count * fisher->family->linear_count : 0;
}

decant_status decant_fisher_file_write_block(decant_container_writer *writer, const decant_fisher_sums *fisher,
                                             int block, const int *ids, decant_error *err)
{
    decant_backend *backend = fisher->backend;
    int linears = fisher->family->linear_count, first = block * linears;
    float *host = NULL;
    decant_status status = DECANT_OK;
    for (int i = first; i < first + linears; i++) {
        const float *sum = fisher->host_sums[i];
        if (!sum && !fisher->sums[i])
            continue;
        decant_linear linear = linear_of(fisher, i);
        int64_t count = linear.rows * linear.columns;
        if (!sum) {
            size_t size_bytes = (size_t)count * sizeof *host;
            decant_memory_free(host);
            DECANT_TRY(decant_memory_allocate(size_bytes, "Fisher sums", (void **)&host, err));
            DECANT_TRY(backend->memory->download(backend, host, fisher->sums[i], size_bytes, err));
            sum = host;
        }
        DECANT_TRY(decant_container_write(writer, ids[i - first], 0, count, sum, err));
    }
done:
    decant_memory_free(host);
    return status;
}

decant_status decant_fisher_file_write(decant_container_writer *writer, const decant_fisher_sums *fisher,
                                       const int *ids, decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int block = 0; fisher->sums && block < fisher->layer_count && status == DECANT_OK; block++)
        status = decant_fisher_file_write_block(
            writer, fisher, block, ids + (fisher->first_layer + block) * fisher->family->linear_count, err);
    return status;
}

static decant_status read_sum(const decant_container *file, const char *path, const decant_linear *linear,
                              float *host, decant_error *err)
{
    int64_t expected = 0;
    decant_status status;
    DECANT_TRY(decant_container_read(file, path, DECANT_STORED_F32,
                                     &(decant_shape){2, {linear->rows, linear->columns}}, host, err));
    DECANT_TRY(decant_container_get_integer(file, path, "crc32", &expected, err));
    if (expected != decant_checksum(0, host, (size_t)(linear->rows * linear->columns) * sizeof *host))
        DECANT_FAIL(err, DECANT_ERROR_INPUT,
                    "%s: dataset %s is damaged: its checksum is not the one it was "
                    "written with",
                    decant_container_path(file), path);
done:
    return status;
}

decant_status decant_fisher_file_read(const decant_container *file, const char *prefix,
                                      decant_fisher_sums *fisher, decant_error *err)
{
    decant_backend *backend = fisher->backend;
    float *host = NULL;
    decant_status status = DECANT_OK;
    for (int i = 0; i < count_of(fisher); i++) {
        if (!fisher->sums[i])
            continue;
        decant_linear linear = linear_of(fisher, i);
        char path[DECANT_CONTAINER_PATH_BYTES];
        name_dataset(prefix, &linear, path);
        size_t size_bytes = (size_t)(linear.rows * linear.columns) * sizeof *host;
        decant_memory_free(host);
        DECANT_TRY(decant_memory_allocate(size_bytes, path, (void **)&host, err));
        DECANT_TRY(read_sum(file, path, &linear, host, err));
        DECANT_TRY(backend->memory->upload(backend, fisher->sums[i], host, size_bytes, err));
        DECANT_TRY(backend->memory->synchronize(backend, err)); /* `host` is about to be freed */
    }
done:
    decant_memory_free(host);
    return status;
}

decant_status decant_fisher_file_read_parked(const decant_container *file, const char *prefix,
                                             decant_fisher_sums *fisher, int block, int linear,
                                             decant_error *err)
{
    int index = block * fisher->family->linear_count + linear;
    decant_linear shape = linear_of(fisher, index);
    char path[DECANT_CONTAINER_PATH_BYTES];
    float **host = &fisher->host_sums[index];
    name_dataset(prefix, &shape, path);
    decant_status status =
        decant_memory_allocate((size_t)(shape.rows * shape.columns) * sizeof **host, path, (void **)host, err);
    return status == DECANT_OK ? read_sum(file, path, &shape, *host, err) : status;
}
