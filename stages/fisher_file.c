/* See fisher_file.h. */
#include "stages/fisher_file.h"

#include "base/memory.h"

#include <stdio.h>

/* A dataset of a linear layer, and where it lies among the floats of the layer's sums. */
typedef struct sum_part {
    char path[DECANT_CONTAINER_PATH_BYTES];
    decant_shape shape;
    int64_t offset, count;
} sum_part;

/* Returns how many there are. */
static int list_parts(const char *prefix, int hessian_groups, const decant_linear *linear,
                      sum_part parts[DECANT_FISHER_DATASETS])
{
    int64_t rows = linear->rows, columns = linear->columns, groups = hessian_groups;
    parts[0] = (sum_part){.shape = {2, {rows, columns}}, .count = rows * columns};
    parts[1] = (sum_part){.shape = {3, {groups, columns, columns}},
                          .offset = rows * columns,
                          .count = groups * columns * columns};
    snprintf(parts[0].path, sizeof parts[0].path, "%s/%s/fisher", prefix, linear->name);
    snprintf(parts[1].path, sizeof parts[1].path, "%s/%s/hessian", prefix, linear->name);
    return groups > 0 ? 2 : 1;
}

decant_status decant_fisher_file_define_block(decant_container_writer *writer,
                                              const decant_model_config *config, const decant_family *family,
                                              int layer, int hessian_groups, const char *prefix, int *ids,
                                              decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int i = 0; i < family->linear_count; i++) {
        decant_linear linear;
        sum_part parts[DECANT_FISHER_DATASETS];
        family->linear(config, layer, i, &linear);
        int count = list_parts(prefix, hessian_groups, &linear, parts);
        for (int part = 0; part < count; part++)
            DECANT_TRY(decant_container_define(writer, parts[part].path, DECANT_STORED_F32, &parts[part].shape,
                                               &ids[i * DECANT_FISHER_DATASETS + part], err));
    }
done:
    return status;
}

decant_status decant_fisher_file_define(decant_container_writer *writer, const decant_model_config *config,
                                        const decant_family *family, int hessian_groups, const char *prefix,
                                        int *ids, decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int layer = 0; layer < config->layers && status == DECANT_OK; layer++)
        status =
            decant_fisher_file_define_block(writer, config, family, layer, hessian_groups, prefix,
                                            ids + layer * family->linear_count * DECANT_FISHER_DATASETS, err);
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

static size_t bytes_of(const decant_fisher_sums *fisher, const decant_linear *linear)
{
    return (size_t)decant_fisher_sums_floats(linear->rows, linear->columns, fisher->hessian_groups) *
           sizeof(float);
}

/* Sums that are no numbers would be refused by all that read them. */
static decant_status check_finite(const sum_part *part, const float *sum, decant_error *err)
{
    const int64_t columns = part->shape.extent[part->shape.dimensions - 1];
    const int64_t bad = decant_find_not_finite(DECANT_F32, sum, part->count);
    if (bad < 0)
        return DECANT_OK;
    return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                        "%s: a Fisher sum is not finite, at row %lld, column %lld: an embedding, norm, bias or "
                        "weight of the model is no number or too large",
                        part->path + 1, (long long)(bad / columns), (long long)(bad % columns));
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
        if (!sum) {
            size_t size_bytes = bytes_of(fisher, &linear);
            decant_memory_free(host);
            DECANT_TRY(decant_memory_allocate(size_bytes, "Fisher sums", (void **)&host, err));
            DECANT_TRY(backend->memory->download(backend, host, fisher->sums[i], size_bytes, err));
            sum = host;
        }
        sum_part parts[DECANT_FISHER_DATASETS];
        int count = list_parts("", fisher->hessian_groups, &linear, parts);
        const int *own = ids + (i - first) * DECANT_FISHER_DATASETS;
        for (int part = 0; part < count; part++) {
            DECANT_TRY(check_finite(&parts[part], sum + parts[part].offset, err));
            DECANT_TRY(
                decant_container_write(writer, own[part], 0, parts[part].count, sum + parts[part].offset, err));
        }
    }
done:
    decant_memory_free(host);
    return status;
}

decant_status decant_fisher_file_write(decant_container_writer *writer, const decant_fisher_sums *fisher,
                                       const int *ids, decant_error *err)
{
    int block_ids = fisher->family ? fisher->family->linear_count * DECANT_FISHER_DATASETS : 0;
    decant_status status = DECANT_OK;
    for (int block = 0; fisher->sums && block < fisher->layer_count && status == DECANT_OK; block++)
        status = decant_fisher_file_write_block(writer, fisher, block,
                                                ids + (fisher->first_layer + block) * block_ids, err);
    return status;
}

static decant_status require_hessian(const decant_container *file, const sum_part *part, decant_error *err)
{
    decant_stored type;
    decant_shape shape;
    decant_status status;
    if (!decant_container_has(file, part->path))
        DECANT_FAIL(err, DECANT_ERROR_INPUT,
                    "%s has no Hessians; make it with `decant calibrate --method guided`",
                    decant_container_path(file));
    DECANT_TRY(decant_container_describe(file, part->path, &type, &shape, err));
    if (shape.dimensions == 3 && shape.extent[0] != part->shape.extent[0])
        DECANT_FAIL(err, DECANT_ERROR_INPUT,
                    "%s has Hessians of %lld groups of output channels: --guided-groups %lld",
                    decant_container_path(file), (long long)shape.extent[0], (long long)shape.extent[0]);
done:
    return status;
}

/* sum: the layer's floats */
static decant_status read_part(const decant_container *file, const sum_part *part, float *sum,
                               decant_error *err)
{
    decant_status status = part->offset > 0 ? require_hessian(file, part, err) : DECANT_OK;
    if (status != DECANT_OK)
        return status;
    return decant_container_read(file, part->path, DECANT_STORED_F32, &part->shape, sum + part->offset, err);
}

/* All parts of a layer's sums into host memory, allocated here and freed by the caller, after a failure too. */
static decant_status read_sums(const decant_container *file, const char *prefix,
                               const decant_fisher_sums *fisher, int index, float **host, decant_error *err)
{
    decant_linear linear = linear_of(fisher, index);
    sum_part parts[DECANT_FISHER_DATASETS];
    int count = list_parts(prefix, fisher->hessian_groups, &linear, parts);
    decant_status status = decant_memory_allocate(bytes_of(fisher, &linear), parts[0].path, (void **)host, err);
    for (int part = 0; part < count && status == DECANT_OK; part++)
        status = read_part(file, &parts[part], *host, err);
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
        decant_memory_free(host);
        host = NULL;
        DECANT_TRY(read_sums(file, prefix, fisher, i, &host, err));
        DECANT_TRY(backend->memory->upload(backend, fisher->sums[i], host, bytes_of(fisher, &linear), err));
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
    return read_sums(file, prefix, fisher, index, &fisher->host_sums[index], err);
}
