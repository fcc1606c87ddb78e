/* See statistics.h. */
#include "stages/statistics.h"

#include "base/memory.h"
#include "stages/gradients.h"

#include <stdio.h>
#include <string.h>

static const char *const form_names[] = {
    [DECANT_FISHER_SEQUENCE] = "sequence", [DECANT_FISHER_TOKEN] = "token"};

/* The datasets of a linear layer: F, and H where there are Hessians. */
enum { PARTS = 2 };

typedef struct sum_part {
    char path[DECANT_CONTAINER_PATH_BYTES];
    decant_shape shape;
    int64_t offset, count; /* among the floats of the layer's sums */
} sum_part;

/* Returns how many there are. */
static int list_parts(int hessian_groups, const decant_linear *linear, sum_part parts[PARTS])
{
    int64_t rows = linear->rows, columns = linear->columns, groups = hessian_groups;
    parts[0] = (sum_part){.shape = {2, {rows, columns}}, .count = rows * columns};
    parts[1] = (sum_part){.shape = {3, {groups, columns, columns}},
                          .offset = rows * columns,
                          .count = groups * columns * columns};
    snprintf(parts[0].path, sizeof parts[0].path, "/%s/fisher", linear->name);
    snprintf(parts[1].path, sizeof parts[1].path, "/%s/hessian", linear->name);
    return groups > 0 ? 2 : 1;
}

/* Collective: the datasets of every linear layer of the model; ids[(layer · linear_count + linear) · PARTS +
 * part].
 */
static decant_status define_sums(decant_container_writer *writer, const decant_model_config *config,
                                 const decant_family *family, int hessian_groups, int *ids, decant_error *err)
{
    int linears = family->linear_count;
    for (int i = 0; i < config->layers * linears; i++) {
        decant_linear linear;
        sum_part parts[PARTS];
        family->linear(config, i / linears, i % linears, &linear);
        for (int part = 0, count = list_parts(hessian_groups, &linear, parts); part < count; part++) {
            decant_status status = decant_container_define(writer, parts[part].path, DECANT_STORED_F32,
                                                           &parts[part].shape, &ids[i * PARTS + part], err);
            if (status != DECANT_OK)
                return status;
        }
    }
    return DECANT_OK;
}

static decant_status set_origin(decant_container_writer *writer, const decant_statistics_origin *origin,
                                decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_container_set_text(writer, "/", "kind", "statistics", err));
    DECANT_TRY(decant_container_set_text(writer, "/", "program_version", DECANT_VERSION, err));
    DECANT_TRY(decant_container_set_text(writer, "/", "fisher", form_names[origin->form], err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "sequences", origin->sequences, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "length", origin->length, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "micro_batch", origin->micro_batch, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "replicas", origin->replicas, err));
    DECANT_TRY(decant_container_set_real(writer, "/", "loss", origin->loss, err));
    DECANT_TRY(
        decant_container_set_integer(writer, "/", "calibration_crc32", origin->calibration_checksum, err));
done:
    return status;
}

/* Local: this rank's sums, one layer at a time through host memory. */
static decant_status write_sums(decant_container_writer *writer, const decant_fisher_sums *fisher,
                                const int *ids, decant_error *err)
{
    decant_backend *backend = fisher->backend;
    int linears = fisher->family->linear_count;
    float *host = NULL;
    decant_status status = DECANT_OK;
    for (int i = 0; i < fisher->layer_count * linears; i++) {
        const float *sum = fisher->host_sums[i];
        if (!sum && !fisher->sums[i])
            continue;
        decant_linear linear;
        fisher->family->linear(fisher->config, fisher->first_layer + i / linears, i % linears, &linear);
        int64_t count = decant_fisher_sums_floats(linear.rows, linear.columns, fisher->hessian_groups);
        if (!sum) {
            decant_memory_free(host);
            DECANT_TRY(
                decant_memory_allocate((size_t)count * sizeof *host, "Fisher sums", (void **)&host, err));
            DECANT_TRY(
                backend->memory->download(backend, host, fisher->sums[i], (size_t)count * sizeof *host, err));
            sum = host;
        }
        sum_part parts[PARTS];
        for (int part = 0, part_count = list_parts(fisher->hessian_groups, &linear, parts); part < part_count;
             part++)
            DECANT_TRY(decant_container_write(writer, ids[(fisher->first_layer * linears + i) * PARTS + part],
                                              0, parts[part].count, sum + parts[part].offset, err));
    }
done:
    decant_memory_free(host);
    return status;
}

/* Collective: an empty file in which all sums of a model have a place; ids is freed by the caller, also on
 * failure. */
static decant_status begin_file(decant_ranks *ranks, const char *path, bool overwrite,
                                const decant_model_config *config, const decant_family *family,
                                int hessian_groups, decant_container_writer **writer, int **ids,
                                decant_error *err)
{
    size_t count = (size_t)config->layers * (size_t)family->linear_count * PARTS;
    decant_status status;
    DECANT_TRY(decant_ranks_agree(
        ranks, decant_memory_allocate(count * sizeof **ids, "dataset numbers", (void **)ids, err), err));
    DECANT_TRY(decant_container_create(ranks, path, overwrite, writer, err));
    DECANT_TRY(define_sums(*writer, config, family, hessian_groups, *ids, err));
    DECANT_TRY(decant_container_begin(*writer, err));
done:
    return status;
}

decant_status decant_statistics_write(decant_ranks *ranks, const char *path, bool overwrite,
                                      const decant_fisher_sums *fisher, const decant_statistics_origin *origin,
                                      decant_error *err)
{
    decant_container_writer *writer = NULL;
    int *ids = NULL;
    decant_status status;
    DECANT_TRY(begin_file(ranks, path, overwrite, fisher->config, fisher->family, fisher->hessian_groups,
                          &writer, &ids, err));
    DECANT_TRY(set_origin(writer, origin, err));
    DECANT_TRY(decant_ranks_agree(ranks, write_sums(writer, fisher, ids, err), err));
    DECANT_TRY(decant_container_finish(&writer, err));
done:
    decant_container_discard(&writer);
    decant_memory_free(ids);
    return status;
}

/* Local: all sums, from another program's. */
static decant_status write_gradients(decant_container_writer *writer, const decant_model_config *config,
                                     const decant_family *family, const decant_safetensors *gradients,
                                     const int *ids, uint32_t *checksum, decant_error *err)
{
    float *sums = NULL;
    decant_status status = DECANT_OK;
    for (int i = 0; i < config->layers * family->linear_count; i++) {
        decant_linear linear;
        family->linear(config, i / family->linear_count, i % family->linear_count, &linear);
        int64_t count = linear.rows * linear.columns;
        decant_memory_free(sums);
        DECANT_TRY(decant_memory_allocate((size_t)count * sizeof *sums, linear.name, (void **)&sums, err));
        DECANT_TRY(decant_gradients_read(gradients, &linear, sums, checksum, err));
        DECANT_TRY(decant_container_write(writer, ids[i * PARTS], 0, count, sums, err));
    }
done:
    decant_memory_free(sums);
    return status;
}

decant_status decant_statistics_import(decant_ranks *ranks, const char *path, bool overwrite,
                                       const decant_model_config *config, const decant_family *family,
                                       const decant_safetensors *gradients,
                                       const decant_statistics_origin *origin, decant_error *err)
{
    decant_container_writer *writer = NULL;
    decant_statistics_origin imported = *origin;
    int *ids = NULL;
    uint32_t checksum = 0;
    decant_status status;
    DECANT_TRY(begin_file(ranks, path, overwrite, config, family, 0, &writer, &ids, err));
    if (ranks->rank == 0)
        status = write_gradients(writer, config, family, gradients, ids, &checksum, err);
    DECANT_TRY(decant_ranks_agree(ranks, status, err));
    DECANT_TRY(decant_ranks_broadcast(ranks, 0, &checksum, sizeof checksum, err));
    imported.calibration_checksum = checksum;
    DECANT_TRY(set_origin(writer, &imported, err));
    DECANT_TRY(decant_container_finish(&writer, err));
done:
    decant_container_discard(&writer);
    decant_memory_free(ids);
    return status;
}

static decant_status read_origin(const decant_container *file, const char *path,
                                 decant_statistics_origin *origin, decant_error *err)
{
    char kind[32], form[32];
    int64_t checksum;
    decant_status status;
    DECANT_TRY(decant_container_get_text(file, "/", "kind", kind, sizeof kind, err));
    if (strcmp(kind, "statistics") != 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s holds a %s, not statistics", path, kind);
    DECANT_TRY(decant_container_get_text(file, "/", "fisher", form, sizeof form, err));
    origin->form =
        strcmp(form, form_names[DECANT_FISHER_TOKEN]) == 0 ? DECANT_FISHER_TOKEN : DECANT_FISHER_SEQUENCE;
    if (strcmp(form, form_names[origin->form]) != 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s has Fisher sums of an unknown form, '%s'", path, form);
    DECANT_TRY(decant_container_get_integer(file, "/", "sequences", &origin->sequences, err));
    DECANT_TRY(decant_container_get_integer(file, "/", "length", &origin->length, err));
    DECANT_TRY(decant_container_get_integer(file, "/", "micro_batch", &origin->micro_batch, err));
    DECANT_TRY(decant_container_get_integer(file, "/", "replicas", &origin->replicas, err));
    DECANT_TRY(decant_container_get_real(file, "/", "loss", &origin->loss, err));
    DECANT_TRY(decant_container_get_integer(file, "/", "calibration_crc32", &checksum, err));
    origin->calibration_checksum = (uint32_t)checksum;
    if (origin->sequences < 1 || origin->length < 2)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s claims %lld sequences of %lld tokens", path,
                    (long long)origin->sequences, (long long)origin->length);
done:
    return status;
}

decant_status decant_statistics_open(const char *path, decant_container **file,
                                     decant_statistics_origin *origin, decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_container_open(path, file, err));
    DECANT_TRY(read_origin(*file, path, origin, err));
done:
    if (status != DECANT_OK)
        decant_container_close(file);
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

decant_status decant_statistics_read(const decant_container *file, decant_fisher_sums *fisher,
                                     decant_error *err)
{
    decant_backend *backend = fisher->backend;
    int linears = fisher->family->linear_count;
    float *host = NULL;
    decant_status status = DECANT_OK;
    for (int i = 0; i < fisher->layer_count * linears; i++) {
        if (!fisher->sums[i])
            continue;
        decant_linear linear;
        sum_part parts[PARTS];
        fisher->family->linear(fisher->config, fisher->first_layer + i / linears, i % linears, &linear);
        size_t size_bytes =
            (size_t)decant_fisher_sums_floats(linear.rows, linear.columns, fisher->hessian_groups) *
            sizeof *host;
        decant_memory_free(host);
        DECANT_TRY(decant_memory_allocate(size_bytes, linear.name, (void **)&host, err));
        for (int part = 0, count = list_parts(fisher->hessian_groups, &linear, parts); part < count; part++) {
            if (part > 0)
                DECANT_TRY(require_hessian(file, &parts[part], err));
            DECANT_TRY(decant_container_read(file, parts[part].path, DECANT_STORED_F32, &parts[part].shape,
                                             host + parts[part].offset, err));
        }
        DECANT_TRY(backend->memory->upload(backend, decant_fisher_sums_at(fisher, i / linears, i % linears),
                                           host, size_bytes, err));
    }
done:
    decant_memory_free(host);
    return status;
}
