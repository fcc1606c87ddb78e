/* First all ranks define every dataset, in model order, so that the layout of the file does not depend on who
 * writes what. Then every rank encodes and writes its own layers, and its share of the tensors that stay whole.
 * Every function that takes the writer and is named define_ or set_ is collective; the write_ functions are
 * local. */
#include "stages/write.h"

#include "base/memory.h"
#include "io/checksum.h"
#include "stages/departure.h"
#include "stages/write_sensitivity.h"

#include <stdio.h>
#include <string.h>

/* The dataset numbers of one linear layer; sparse ones are -1 where the layer has no sparse part. */
typedef struct layer_ids {
    int codes, levels, row_offsets, columns, values;
} layer_ids;

typedef struct container_ids {
    layer_ids *layers; /* [table->layers] */
    int *tensors;      /* [tensors of the model]; -1 for those that are quantized */
    int config, names, bits, bytes, predicted, relative, chosen;
    decant_sensitivity_ids sensitivity;
} container_ids;

static int64_t linear_total(const decant_container_contents *contents)
{
    return (int64_t)contents->config->layers * contents->family->linear_count;
}

static void linear_at(const decant_container_contents *contents, int64_t index, decant_linear *linear)
{
    int linears = contents->family->linear_count;
    contents->family->linear(contents->config, (int)(index / linears), (int)(index % linears), linear);
}

static const decant_candidate *choice_at(const decant_container_contents *contents, int64_t index)
{
    return &contents->table->rows[index].candidate[contents->chosen[index]];
}

/* ---- linear layers ---- */

static decant_status define_part(decant_container_writer *writer, const char *layer, const char *part,
                                 decant_stored type, decant_shape shape, int *id, decant_error *err)
{
    char path[DECANT_CONTAINER_PATH_BYTES];
    snprintf(path, sizeof path, "/%s/%s", layer, part);
    return decant_container_define(writer, path, type, &shape, id, err);
}

static decant_status define_layer(decant_container_writer *writer, const decant_linear *linear, int bits,
                                  int64_t sparse_count, layer_ids *ids, decant_error *err)
{
    const char *name = linear->name;
    int64_t rows = linear->rows, words = (linear->columns + 31) / 32;
    decant_status status;
    *ids = (layer_ids){-1, -1, -1, -1, -1};
    DECANT_TRY(define_part(writer, name, "codes", DECANT_STORED_U32, (decant_shape){3, {rows, bits, words}},
                           &ids->codes, err));
    DECANT_TRY(define_part(writer, name, "levels", DECANT_STORED_F16,
                           (decant_shape){2, {rows, (int64_t)1 << bits}}, &ids->levels, err));
    if (sparse_count == 0)
        goto done;
    decant_stored index_type =
        decant_sparse_index_bytes(linear->columns) == 2 ? DECANT_STORED_U16 : DECANT_STORED_U32;
    DECANT_TRY(define_part(writer, name, "sparse/row_offsets", DECANT_STORED_U32, (decant_shape){1, {rows + 1}},
                           &ids->row_offsets, err));
    DECANT_TRY(define_part(writer, name, "sparse/columns", index_type, (decant_shape){1, {sparse_count}},
                           &ids->columns, err));
    DECANT_TRY(define_part(writer, name, "sparse/values", DECANT_STORED_F16, (decant_shape){1, {sparse_count}},
                           &ids->values, err));
done:
    return status;
}

static decant_status set_layer_attributes(decant_container_writer *writer, const decant_linear *linear,
                                          const decant_table_row *row, const decant_candidate *choice,
                                          decant_error *err)
{
    char path[DECANT_CONTAINER_PATH_BYTES];
    snprintf(path, sizeof path, "/%s", linear->name);
    decant_status status;
    DECANT_TRY(decant_container_set_text(writer, path, "method", "kmeans", err));
    DECANT_TRY(decant_container_set_text(writer, path, "packing", "bit planes", err));
    DECANT_TRY(decant_container_set_integer(writer, path, "bits", choice->bits, err));
    DECANT_TRY(decant_container_set_integer(writer, path, "rows", linear->rows, err));
    DECANT_TRY(decant_container_set_integer(writer, path, "columns", linear->columns, err));
    DECANT_TRY(decant_container_set_integer(writer, path, "sparse_count", row->sparse_count, err));
    DECANT_TRY(decant_container_set_integer(writer, path, "stored_bytes", choice->bytes, err));
    DECANT_TRY(decant_container_set_integer(writer, path, "source_crc32", row->source_checksum, err));
    DECANT_TRY(decant_container_set_real(writer, path, "predicted_loss_increase", choice->predicted, err));
    DECANT_TRY(decant_container_set_real(writer, path, "relative_error", choice->relative, err));
done:
    return status;
}

static decant_status define_layers(decant_container_writer *writer, const decant_container_contents *contents,
                                   container_ids *ids, decant_error *err)
{
    for (int64_t i = 0; i < linear_total(contents); i++) {
        const decant_table_row *row = &contents->table->rows[i];
        decant_linear linear;
        linear_at(contents, i, &linear);
        decant_status status = define_layer(writer, &linear, choice_at(contents, i)->bits, row->sparse_count,
                                            &ids->layers[i], err);
        if (status == DECANT_OK)
            status = set_layer_attributes(writer, &linear, row, choice_at(contents, i), err);
        if (status != DECANT_OK)
            return status;
    }
    return DECANT_OK;
}

/* Notes the arrays of a packed matrix. Column indices are U32 on the device and, where they fit, U16 in the
 * file. */
static void depart_packed(decant_departure *departure, const layer_ids *ids, const decant_packed_matrix *packed)
{
    int64_t rows = packed->rows, words = (packed->columns + 31) / 32, count = packed->sparse.count;
    bool is_narrowed = decant_sparse_index_bytes(packed->columns) == 2;
    decant_departing_array arrays[] = {
        {ids->codes, packed->planes, rows * packed->bits * words, 4, false},
        {ids->levels, packed->levels, rows << packed->bits, 2, false},
        {ids->row_offsets, packed->sparse.row_offsets, rows + 1, 4, false},
        {ids->columns, packed->sparse.columns, count, 4, is_narrowed},
        {ids->values, packed->sparse_values, count, 2, false},
    };
    size_t dense = 2, all = sizeof arrays / sizeof *arrays;
    for (size_t i = 0; i < (count > 0 ? all : dense); i++)
        decant_departure_add(departure, arrays[i]);
}

/* The weight of this rank's i-th matrix: taken over where it still is on the device, else sent on its way. */
static decant_status begin_weight(const decant_container_contents *contents, int64_t i, decant_matrix *weight,
                                  decant_error *err)
{
    *weight = contents->weights[i];
    contents->weights[i].data = NULL;
    if (weight->data)
        return DECANT_OK;
    char tensor[DECANT_NAME_BYTES + 8];
    decant_linear linear;
    decant_matrix host;
    decant_status status;
    linear_at(contents, contents->matrices[i], &linear);
    snprintf(tensor, sizeof tensor, "%s.weight", linear.name);
    DECANT_TRY(decant_safetensors_matrix(contents->model, tensor, linear.rows, linear.columns, &host, err));
    DECANT_TRY(contents->backend->weights->begin_place(contents->backend, host, DECANT_PLACE_EXACT, tensor,
                                                       weight, err));
done:
    return status;
}

/* Encodes a layer and begins its downloads; the weight and the packed form go as soon as that is done. */
static decant_status depart_layer(const decant_container_contents *contents, const layer_ids *ids, int choice,
                                  decant_quantized_layer *layer, decant_matrix *weight,
                                  decant_departure *departure, decant_error *err)
{
    decant_backend *backend = contents->backend;
    decant_packed_matrix packed = {0};
    decant_status status;
    DECANT_TRY(backend->weights->finish_place(backend, weight, err));
    DECANT_TRY(decant_quantized_layer_unpark(backend, layer, err));
    DECANT_TRY(decant_quantized_layer_encode(backend, layer, choice, *weight, &packed, err));
    depart_packed(departure, ids, &packed);
    DECANT_TRY(decant_departure_begin(departure, err));
done:
    decant_packed_matrix_free(backend, &packed);
    decant_quantized_layer_free(backend, layer); /* its levels are in the packed form */
    backend->weights->unplace(backend, weight);
    return status;
}

/* While a layer is written, the next one is encoded and downloaded, and the weight after it is on its way. */
static decant_status write_layers(decant_container_writer *writer, const decant_container_contents *contents,
                                  const container_ids *ids, decant_error *err)
{
    decant_backend *backend = contents->backend;
    const int64_t count = contents->quantized_count, *matrices = contents->matrices;
    decant_departure departures[2] = {{.backend = backend}, {.backend = backend}};
    decant_matrix weights[2] = {0};
    decant_status status = DECANT_OK;
    if (count > 0)
        DECANT_TRY(begin_weight(contents, 0, &weights[0], err));
    for (int64_t i = 0; i < count; i++) {
        if (i + 1 < count)
            DECANT_TRY(begin_weight(contents, i + 1, &weights[(i + 1) % 2], err));
        DECANT_TRY(backend->memory->finish_downloads(backend, err)); /* of the layer before */
        DECANT_TRY(depart_layer(contents, &ids->layers[matrices[i]], contents->chosen[matrices[i]],
                                &contents->quantized[i], &weights[i % 2], &departures[i % 2], err));
        DECANT_TRY(decant_departure_write(&departures[(i + 1) % 2], writer, err)); /* the layer before */
    }
    DECANT_TRY(backend->memory->finish_downloads(backend, err));
    DECANT_TRY(decant_departure_write(&departures[(count + 1) % 2], writer, err));
done:
    for (int i = 0; i < 2; i++) {
        backend->weights->unplace(backend, &weights[i]);
        decant_departure_free(&departures[i]); /* waits for what is under way */
    }
    return status;
}

/* ---- tensors that stay whole ---- */

static bool is_quantized(const decant_container_contents *contents, const char *tensor)
{
    for (int64_t i = 0; i < linear_total(contents); i++) {
        decant_linear linear;
        linear_at(contents, i, &linear);
        size_t length = strlen(linear.name);
        if (strncmp(tensor, linear.name, length) == 0 && strcmp(tensor + length, ".weight") == 0)
            return true;
    }
    return false;
}

static decant_status define_tensors(decant_container_writer *writer, const decant_container_contents *contents,
                                    container_ids *ids, decant_error *err)
{
    for (int64_t i = 0; i < decant_safetensors_count(contents->model); i++) {
        const decant_tensor *tensor = decant_safetensors_at(contents->model, i);
        ids->tensors[i] = -1;
        if (is_quantized(contents, tensor->name))
            continue;
        char path[DECANT_CONTAINER_PATH_BYTES];
        snprintf(path, sizeof path, "/%s", tensor->name);
        decant_shape shape = {.dimensions = tensor->dimensions};
        memcpy(shape.extent, tensor->shape, sizeof shape.extent);
        decant_status status = decant_container_define(writer, path, decant_stored_of_element(tensor->element),
                                                       &shape, &ids->tensors[i], err);
        if (status != DECANT_OK)
            return status;
    }
    return DECANT_OK;
}

static decant_status write_tensors(decant_container_writer *writer, const decant_container_contents *contents,
                                   const container_ids *ids, const decant_ranks *ranks, decant_error *err)
{
    int64_t turn = 0;
    for (int64_t i = 0; i < decant_safetensors_count(contents->model); i++) {
        if (ids->tensors[i] < 0 || turn++ % ranks->size != ranks->rank)
            continue;
        const decant_tensor *tensor = decant_safetensors_at(contents->model, i);
        int64_t count = (int64_t)(tensor->size_bytes / decant_element_bytes(tensor->element));
        decant_status status = decant_container_write(writer, ids->tensors[i], 0, count, tensor->data, err);
        if (status != DECANT_OK)
            return status;
    }
    return DECANT_OK;
}

/* ---- the error table, the allocation, the config ---- */

static decant_status define_tables(decant_container_writer *writer, const decant_container_contents *contents,
                                   int64_t name_bytes, container_ids *ids, decant_error *err)
{
    int64_t layers = contents->table->layers, candidates = contents->table->rows[0].candidates;
    decant_shape one = {1, {layers}}, wide = {1, {candidates}}, all = {2, {layers, candidates}};
    decant_status status;
    DECANT_TRY(decant_container_define(writer, "/config", DECANT_STORED_U8,
                                       &(decant_shape){1, {(int64_t)contents->config->json_bytes}},
                                       &ids->config, err));
    DECANT_TRY(decant_container_define(writer, "/errors/layers", DECANT_STORED_U8,
                                       &(decant_shape){1, {name_bytes}}, &ids->names, err));
    DECANT_TRY(decant_container_define(writer, "/errors/bits", DECANT_STORED_I32, &wide, &ids->bits, err));
    DECANT_TRY(
        decant_container_define(writer, "/errors/stored_bytes", DECANT_STORED_I64, &all, &ids->bytes, err));
    DECANT_TRY(
        decant_container_define(writer, "/errors/predicted", DECANT_STORED_F64, &all, &ids->predicted, err));
    DECANT_TRY(
        decant_container_define(writer, "/errors/relative", DECANT_STORED_F64, &all, &ids->relative, err));
    DECANT_TRY(
        decant_container_define(writer, "/allocation/chosen", DECANT_STORED_I32, &one, &ids->chosen, err));
done:
    return status;
}

/* The names of all linear layers, a line each. */
static decant_status list_names(const decant_container_contents *contents, char **names, int64_t *size_bytes,
                                decant_error *err)
{
    size_t used = 0;
    decant_status status = decant_memory_allocate((size_t)linear_total(contents) * DECANT_NAME_BYTES, "names",
                                                  (void **)names, err);
    for (int64_t i = 0; status == DECANT_OK && i < linear_total(contents); i++) {
        decant_linear linear;
        linear_at(contents, i, &linear);
        used += (size_t)sprintf(*names + used, "%s\n", linear.name);
    }
    *size_bytes = (int64_t)used;
    return status;
}

/* Rank 0: the error table, column by column. */
static decant_status write_error_table(decant_container_writer *writer,
                                       const decant_container_contents *contents, const container_ids *ids,
                                       decant_error *err)
{
    const decant_error_table *table = contents->table;
    int64_t candidates = table->rows[0].candidates, count = table->layers * candidates;
    int32_t *bits = NULL;
    int64_t *bytes = NULL;
    double *predicted = NULL, *relative = NULL;
    decant_status status;
    DECANT_TRY(
        decant_memory_allocate((size_t)candidates * sizeof *bits, "the error table", (void **)&bits, err));
    DECANT_TRY(decant_memory_allocate((size_t)count * sizeof *bytes, "the error table", (void **)&bytes, err));
    DECANT_TRY(
        decant_memory_allocate((size_t)count * sizeof *predicted, "the error table", (void **)&predicted, err));
    DECANT_TRY(
        decant_memory_allocate((size_t)count * sizeof *relative, "the error table", (void **)&relative, err));
    for (int64_t i = 0; i < count; i++) {
        const decant_candidate *candidate = &table->rows[i / candidates].candidate[i % candidates];
        bits[i % candidates] = candidate->bits;
        bytes[i] = candidate->bytes;
        predicted[i] = candidate->predicted;
        relative[i] = candidate->relative;
    }
    DECANT_TRY(decant_container_write(writer, ids->bits, 0, candidates, bits, err));
    DECANT_TRY(decant_container_write(writer, ids->bytes, 0, count, bytes, err));
    DECANT_TRY(decant_container_write(writer, ids->predicted, 0, count, predicted, err));
    DECANT_TRY(decant_container_write(writer, ids->relative, 0, count, relative, err));
done:
    decant_memory_free(bits);
    decant_memory_free(bytes);
    decant_memory_free(predicted);
    decant_memory_free(relative);
    return status;
}

static decant_status write_tables(decant_container_writer *writer, const decant_container_contents *contents,
                                  const container_ids *ids, const char *names, int64_t name_bytes,
                                  decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_container_write(writer, ids->config, 0, (int64_t)contents->config->json_bytes,
                                      contents->config->json, err));
    DECANT_TRY(decant_container_write(writer, ids->names, 0, name_bytes, names, err));
    DECANT_TRY(decant_container_write(writer, ids->chosen, 0, contents->table->layers, contents->chosen, err));
    DECANT_TRY(write_error_table(writer, contents, ids, err));
    DECANT_TRY(decant_sensitivity_write(writer, contents->sensitivity, &ids->sensitivity, err));
done:
    return status;
}

/* ---- provenance ---- */

/* One number for all weights that were quantized: the checksum of their checksums, in model order. */
static uint32_t model_checksum(const decant_error_table *table)
{
    uint32_t checksum = 0;
    for (int64_t i = 0; i < table->layers; i++)
        checksum =
            decant_checksum(checksum, &table->rows[i].source_checksum, sizeof table->rows[i].source_checksum);
    return checksum;
}

static decant_status set_provenance(decant_container_writer *writer, const decant_container_contents *contents,
                                    decant_error *err)
{
    const decant_plan_summary *summary = contents->summary;
    const decant_statistics_origin *origin = contents->origin;
    decant_status status;
    DECANT_TRY(decant_container_set_text(writer, "/", "kind", "model", err));
    DECANT_TRY(decant_container_set_text(writer, "/", "program_version", DECANT_VERSION, err));
    DECANT_TRY(decant_container_set_text(writer, "/", "options", contents->options, err));
    DECANT_TRY(decant_container_set_text(writer, "/", "device", contents->device, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "model_crc32", model_checksum(contents->table), err));
    DECANT_TRY(
        decant_container_set_integer(writer, "/", "calibration_crc32", origin->calibration_checksum, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "calibration_sequences", origin->sequences, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "calibration_length", origin->length, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "calibration_micro_batch", origin->micro_batch, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "calibration_replicas", origin->replicas, err));
    DECANT_TRY(decant_container_set_real(writer, "/", "calibration_loss", origin->loss, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "quantized_weights", summary->weights, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "quantized_bytes", summary->bytes, err));
    DECANT_TRY(decant_container_set_real(writer, "/", "bits", summary->bits, err));
    DECANT_TRY(decant_container_set_real(writer, "/", "predicted_loss_increase", summary->predicted, err));
    DECANT_TRY(decant_container_set_real(writer, "/", "predicted_lower_bound", summary->lower_bound, err));
done:
    return status;
}

/* ---- all of it ---- */

static decant_status create_ids(const decant_container_contents *contents, container_ids *ids,
                                decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)contents->table->layers * sizeof *ids->layers, "dataset numbers",
                                      (void **)&ids->layers, err));
    DECANT_TRY(decant_memory_allocate((size_t)decant_safetensors_count(contents->model) * sizeof *ids->tensors,
                                      "dataset numbers", (void **)&ids->tensors, err));
done:
    return status;
}

/* Local: what this rank brings. */
static decant_status write_share(decant_container_writer *writer, const decant_container_contents *contents,
                                 const container_ids *ids, const decant_ranks *ranks, const char *names,
                                 int64_t name_bytes, decant_error *err)
{
    decant_status status;
    DECANT_TRY(write_layers(writer, contents, ids, err));
    DECANT_TRY(write_tensors(writer, contents, ids, ranks, err));
    if (ranks->rank == 0)
        DECANT_TRY(write_tables(writer, contents, ids, names, name_bytes, err));
done:
    return status;
}

decant_status decant_write_container(decant_ranks *ranks, const char *path, bool overwrite,
                                     const decant_container_contents *contents,
                                     decant_container_writer **writer, decant_error *err)
{
    container_ids ids = {0};
    char *names = NULL;
    int64_t name_bytes = 0;
    decant_status status, local;
    *writer = NULL;
    local = create_ids(contents, &ids, err);
    if (local == DECANT_OK)
        local = list_names(contents, &names, &name_bytes, err);
    DECANT_TRY(decant_ranks_agree(ranks, local, err));
    DECANT_TRY(decant_container_create(ranks, path, overwrite, writer, err));
    DECANT_TRY(define_layers(*writer, contents, &ids, err));
    DECANT_TRY(define_tensors(*writer, contents, &ids, err));
    DECANT_TRY(define_tables(*writer, contents, name_bytes, &ids, err));
    DECANT_TRY(decant_sensitivity_define(*writer, contents->sensitivity, &ids.sensitivity, err));
    DECANT_TRY(set_provenance(*writer, contents, err));
    DECANT_TRY(decant_container_begin(*writer, err));
    local = write_share(*writer, contents, &ids, ranks, names, name_bytes, err);
    DECANT_TRY(decant_ranks_agree(ranks, local, err));
    DECANT_TRY(decant_container_settle(*writer, err));
done:
    if (status != DECANT_OK)
        decant_container_discard(writer);
    decant_memory_free(ids.layers);
    decant_memory_free(ids.tensors);
    decant_memory_free(names);
    return status;
}
