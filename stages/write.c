/* First all ranks define every dataset, in model order, so that the layout of the file does not depend on who
 * writes what. Then every rank encodes and writes its own layers, and its share of the tensors that stay whole.
 * Every function that takes the writer and is named define_ or set_ is collective; the write_ functions are
 * local. */
#include "stages/write.h"

#include "base/memory.h"
#include "stages/departure.h"
#include "stages/error_table_file.h"
#include "stages/layer_file.h"
#include "stages/linear_weight.h"
#include "stages/write_sensitivity.h"

#include <stdio.h>
#include <string.h>

enum { QUANTIZED = -1 }; /* in place of a tensor's dataset */

typedef struct container_ids {
    decant_layer_datasets *layers; /* [table->layers] */
    decant_grid_datasets grids;
    int *tensors; /* [tensors of the model]; QUANTIZED for the weights of linear layers */
    decant_error_table_datasets table;
    int config, names, chosen;
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

/* A data-free job predicts no loss, unless it measured sensitivities. */
static bool predicts_loss(const decant_container_contents *contents)
{
    return contents->origin->sequences > 0 || contents->sensitivity->kind != DECANT_SENSITIVITY_FISHER;
}

/* ---- linear layers ---- */

static decant_status define_layers(decant_container_writer *writer, const decant_container_contents *contents,
                                   container_ids *ids, decant_error *err)
{
    for (int64_t i = 0; i < linear_total(contents); i++) {
        decant_linear linear;
        linear_at(contents, i, &linear);
        decant_layer_facts facts = {.row = &contents->table->rows[i],
                                    .choice = choice_at(contents, i),
                                    .seed = contents->seed,
                                    .predicts_loss = predicts_loss(contents)};
        decant_status status = decant_layer_define(writer, &linear, &facts, &ids->layers[i], err);
        if (status != DECANT_OK)
            return status;
    }
    return decant_grids_define(writer, contents->table, contents->chosen, &ids->grids, err);
}

/* The weight of this rank's i-th matrix: taken over where it still is on the device, else sent on its way. */
static decant_status begin_weight(const decant_container_contents *contents, int64_t i, decant_matrix *weight,
                                  decant_error *err)
{
    *weight = contents->weights[i];
    contents->weights[i].data = NULL;
    if (weight->data)
        return DECANT_OK;
    decant_linear linear;
    decant_linear_weight found;
    decant_status status;
    linear_at(contents, contents->matrices[i], &linear);
    DECANT_TRY(decant_linear_weight_find(contents->model, &linear, &found, err));
    DECANT_TRY(contents->backend->weights->begin_place(contents->backend, found.host, DECANT_PLACE_EXACT,
                                                       found.tensor, weight, err));
done:
    return status;
}

/* Encodes this rank's i-th matrix and begins its downloads; the weight and the packed form go as soon as that
 * is done. */
static decant_status depart_layer(const decant_container_contents *contents, const container_ids *ids,
                                  int64_t i, decant_matrix *weight, decant_departure *departure,
                                  decant_error *err)
{
    decant_backend *backend = contents->backend;
    decant_encoded_layer encoded = {0};
    int64_t index = contents->matrices[i];
    decant_quantized_layer *layer = &contents->quantized[i];
    decant_linear linear;
    decant_status status;
    linear_at(contents, index, &linear);
    DECANT_TRY(decant_quantized_layer_unpark(backend, layer, err));
    DECANT_TRY(decant_quantized_layer_encode(backend, layer, contents->chosen[index], *weight, &encoded, err));
    decant_layer_depart(departure, &ids->layers[index], &encoded);
    DECANT_TRY(decant_departure_begin(departure, err));
done:
    decant_encoded_layer_free(backend, &encoded);
    decant_quantized_layer_free(backend, layer); /* its levels are in the packed form */
    backend->weights->unplace(backend, weight);
    return decant_error_name(status, linear.name, err);
}

/* The next of this rank's matrices after the i-th that is to be encoded. */
static int64_t next_to_encode(const decant_container_contents *contents, int64_t i)
{
    do
        i++;
    while (i < contents->quantized_count && contents->is_taken[i]);
    return i;
}

/* While a layer is written, the next one is encoded and downloaded, and the weight after it is on its way. */
static decant_status write_layers(decant_container_writer *writer, const decant_container_contents *contents,
                                  const container_ids *ids, decant_error *err)
{
    decant_backend *backend = contents->backend;
    const int64_t count = contents->quantized_count;
    decant_departure departures[2] = {{.backend = backend}, {.backend = backend}};
    decant_matrix weights[2] = {0};
    decant_status status = DECANT_OK;
    int64_t own = next_to_encode(contents, -1), next;
    int turn = 0; /* of the two buffers */
    if (own < count)
        DECANT_TRY(begin_weight(contents, own, &weights[turn], err));
    for (; own < count; own = next, turn = 1 - turn) {
        next = next_to_encode(contents, own);
        if (next < count)
            DECANT_TRY(begin_weight(contents, next, &weights[1 - turn], err));
        DECANT_TRY(backend->memory->finish_downloads(backend, err)); /* of the layer before */
        DECANT_TRY(backend->weights->finish_place(backend, &weights[turn], err));
        DECANT_TRY(depart_layer(contents, ids, own, &weights[turn], &departures[turn], err));
        DECANT_TRY(decant_departure_write(&departures[1 - turn], writer, err)); /* the layer before */
    }
    DECANT_TRY(backend->memory->finish_downloads(backend, err));
    DECANT_TRY(decant_departure_write(&departures[1 - turn], writer, err));
done:
    for (int i = 0; i < 2; i++) {
        backend->weights->unplace(backend, &weights[i]);
        decant_departure_free(&departures[i]); /* waits for what is under way */
    }
    return status;
}

/* What an earlier container holds already. */
static decant_status copy_layers(decant_container_writer *writer, const decant_container_contents *contents,
                                 const container_ids *ids, decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int64_t i = 0; i < contents->quantized_count && status == DECANT_OK; i++) {
        decant_linear linear;
        if (!contents->is_taken[i])
            continue;
        linear_at(contents, contents->matrices[i], &linear);
        status =
            decant_layer_copy(writer, contents->earlier, &linear, &ids->layers[contents->matrices[i]], err);
    }
    return status;
}

/* ---- tensors that stay whole ---- */

/* Marks the weights of linear layers; the other tensors have no dataset yet. */
static void mark_quantized(const decant_container_contents *contents, container_ids *ids)
{
    for (int64_t i = 0; i < linear_total(contents); i++) {
        char name[DECANT_WEIGHT_NAME_BYTES];
        decant_linear linear;
        linear_at(contents, i, &linear);
        decant_linear_weight_name(&linear, name);
        int64_t tensor = decant_safetensors_index(contents->model, name);
        if (tensor >= 0)
            ids->tensors[tensor] = QUANTIZED;
    }
}

static decant_status define_tensors(decant_container_writer *writer, const decant_container_contents *contents,
                                    container_ids *ids, decant_error *err)
{
    mark_quantized(contents, ids);
    for (int64_t i = 0; i < decant_safetensors_count(contents->model); i++) {
        const decant_tensor *tensor = decant_safetensors_at(contents->model, i);
        if (ids->tensors[i] == QUANTIZED)
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
        if (ids->tensors[i] == QUANTIZED || turn++ % ranks->size != ranks->rank)
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
    decant_shape one = {1, {contents->table->layers}};
    decant_status status;
    DECANT_TRY(decant_container_define(writer, "/config", DECANT_STORED_U8,
                                       &(decant_shape){1, {(int64_t)contents->config->json_bytes}},
                                       &ids->config, err));
    DECANT_TRY(decant_container_define(writer, "/errors/layers", DECANT_STORED_U8,
                                       &(decant_shape){1, {name_bytes}}, &ids->names, err));
    DECANT_TRY(decant_error_table_define(writer, contents->table, &ids->table, err));
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
    /* A name's NUL becomes its newline, and one NUL follows the last. */
    decant_status status = decant_memory_allocate((size_t)linear_total(contents) * DECANT_NAME_BYTES + 1,
                                                  "names of layers", (void **)names, err);
    for (int64_t i = 0; status == DECANT_OK && i < linear_total(contents); i++) {
        decant_linear linear;
        linear_at(contents, i, &linear);
        used += (size_t)sprintf(*names + used, "%s\n", linear.name);
    }
    *size_bytes = (int64_t)used;
    return status;
}

/* Rank 0. */
static decant_status write_tables(decant_container_writer *writer, const decant_container_contents *contents,
                                  const container_ids *ids, const char *names, int64_t name_bytes,
                                  decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_container_write(writer, ids->config, 0, (int64_t)contents->config->json_bytes,
                                      contents->config->json, err));
    DECANT_TRY(decant_container_write(writer, ids->names, 0, name_bytes, names, err));
    DECANT_TRY(decant_container_write(writer, ids->chosen, 0, contents->table->layers, contents->chosen, err));
    DECANT_TRY(decant_error_table_write(writer, contents->table, &ids->table, err));
    DECANT_TRY(decant_grids_write(writer, &ids->grids, err));
    DECANT_TRY(decant_sensitivity_write(writer, contents->sensitivity, &ids->sensitivity, err));
done:
    return status;
}

/* ---- provenance ---- */

static uint32_t model_checksum(const decant_error_table *table)
{
    uint32_t checksum = 0;
    for (int64_t i = 0; i < table->layers; i++)
        checksum = decant_model_checksum_extend(checksum, table->rows[i].source_checksum);
    return checksum;
}

/* What a data-free run has nothing to say of. */
static decant_status set_calibration(decant_container_writer *writer, const decant_container_contents *contents,
                                     decant_error *err)
{
    const decant_statistics_origin *origin = contents->origin;
    decant_status status;
    DECANT_TRY(
        decant_container_set_integer(writer, "/", "calibration_crc32", origin->calibration_checksum, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "calibration_sequences", origin->sequences, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "calibration_length", origin->length, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "calibration_micro_batch", origin->micro_batch, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "calibration_replicas", origin->replicas, err));
    DECANT_TRY(decant_container_set_real(writer, "/", "calibration_loss", origin->loss, err));
    if (origin->model_checksum != model_checksum(contents->table))
        DECANT_TRY(
            decant_container_set_integer(writer, "/", "statistics_model_crc32", origin->model_checksum, err));
done:
    return status;
}

static decant_status set_provenance(decant_container_writer *writer, const decant_container_contents *contents,
                                    decant_error *err)
{
    const decant_plan_summary *summary = contents->summary;
    decant_status status;
    DECANT_TRY(decant_container_set_text(writer, "/", "kind", "model", err));
    DECANT_TRY(decant_container_set_text(writer, "/", "program_version", DECANT_VERSION, err));
    DECANT_TRY(decant_container_set_text(writer, "/", "options", contents->options, err));
    DECANT_TRY(decant_container_set_text(writer, "/", "device", contents->device, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "model_crc32", model_checksum(contents->table), err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "quantized_weights", summary->weights, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "quantized_bytes", summary->bytes, err));
    DECANT_TRY(decant_container_set_real(writer, "/", "bits", summary->bits, err));
    if (contents->origin->sequences > 0)
        DECANT_TRY(set_calibration(writer, contents, err));
    if (predicts_loss(contents)) {
        DECANT_TRY(decant_container_set_real(writer, "/", "predicted_loss_increase", summary->predicted, err));
        DECANT_TRY(decant_container_set_real(writer, "/", "predicted_lower_bound", summary->lower_bound, err));
    }
    if (contents->origin->sequences > 0 && contents->sensitivity->kind != DECANT_SENSITIVITY_FISHER)
        DECANT_TRY(decant_container_set_real(writer, "/", "predicted_from_sums", summary->from_sums, err));
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
    DECANT_TRY(copy_layers(writer, contents, ids, err));
    DECANT_TRY(write_tensors(writer, contents, ids, ranks, err));
    DECANT_TRY(decant_safetensors_check(contents->model, err));
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
