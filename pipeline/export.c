/* See export.h. The tensors of a container are listed first, in the order of their names; then each is read,
 * checked against its checksum, turned into what the format asks for, and written. */
#include "pipeline/export.h"

#include "base/memory.h"
#include "io/mapped_file.h"
#include "io/partial_folder.h"
#include "pipeline/exported_tensors.h"
#include "stages/model_check.h"
#include "stages/quantize.h"
#include "stages/source.h"

#include <cjson/cJSON.h>
#include <malloc.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char mark[] = "decant_export.json";

/* Blocks from this size on go back to the system when they are freed. glibc raises the bound by itself, and
 * matrices of many sizes then leave gaps: 630 MB at the peak for SmolLM2-135M, 77 MB with a fixed bound. */
enum { RETURNED_BLOCK_BYTES = 128 << 10 };

typedef struct export_job {
    const decant_options *options;
    const decant_export_form *form;
    decant_container *container;
    decant_container_source *source;
    decant_weight_source weights;
    decant_backend *backend;
    decant_element element;           /* of decoded weights */
    decant_exported_tensors contents; /* of the container */
    decant_tensor_list list;
    decant_partial_folder folder;
    decant_safetensors_writer *writer;
} export_job;

/* ---- what the folder will hold ---- */

static decant_element element_asked_for(const export_job *job)
{
    switch ((decant_export_element)job->options->element) {
    case DECANT_EXPORT_BF16:
        return DECANT_BF16;
    case DECANT_EXPORT_F16:
        return DECANT_F16;
    case DECANT_EXPORT_F32:
        return DECANT_F32;
    default:
        return decant_exported_tensors_element(&job->contents);
    }
}

static decant_status list_tensors(export_job *job, decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_exported_tensors_list(job->container, &job->contents, err));
    job->element = element_asked_for(job);
    for (int64_t i = 0; i < job->contents.count; i++) {
        const decant_exported_tensor *tensor = &job->contents.tensors[i];
        if (tensor->is_layer)
            DECANT_TRY(job->form->list(&tensor->layer, job->element, &job->list, err));
        else
            DECANT_TRY(
                decant_tensor_list_add(&job->list, tensor->name, NULL, tensor->type, tensor->shape, err));
    }
done:
    return status;
}

/* The published loader takes one width for the whole model; 0 when there are several. */
static int single_width(const export_job *job)
{
    int width = -1;
    for (int64_t i = 0; i < job->contents.count; i++) {
        const decant_exported_tensor *tensor = &job->contents.tensors[i];
        if (tensor->is_layer)
            width = width < 0 || width == tensor->layer.bits ? tensor->layer.bits : 0;
    }
    return width;
}

static decant_status write_quant_config(const export_job *job, decant_error *err)
{
    char text[64];
    int width = single_width(job);
    if (width == 0)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: has layers of 3 and of 4 bits; SqueezeLLM's loader takes one width for all "
                            "layers (decant run --bit-widths 4)",
                            job->options->container);
    snprintf(text, sizeof text, "{\"wbits\": %d}\n", width);
    return decant_partial_folder_write(&job->folder, "quant_config.json", text, strlen(text), err);
}

/* ---- the small files ---- */

static decant_status write_config(const export_job *job, FILE *stream, decant_error *err)
{
    decant_stored type;
    decant_shape shape;
    void *text = NULL;
    decant_status status;
    DECANT_TRY(decant_container_describe(job->container, "/config", &type, &shape, err));
    if (type != DECANT_STORED_U8 || shape.dimensions != 1)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: /config is no text", job->options->container);
    DECANT_TRY(decant_memory_allocate((size_t)shape.extent[0], "the model's config", &text, err));
    DECANT_TRY(decant_container_read(job->container, "/config", type, &shape, text, err));
    if (shape.extent[0] > 0)
        DECANT_TRY(
            decant_partial_folder_write(&job->folder, "config.json", text, (size_t)shape.extent[0], err));
    else
        fprintf(stream, "no config.json: the container has none\n");
done:
    decant_memory_free(text);
    return status;
}

/* The folder of the tokenizer is there, and is no other model's where decant knows its config. */
static decant_status check_model_folder(const export_job *job, decant_error *err)
{
    const char *path = job->options->model, *container = job->options->container;
    struct stat about;
    decant_model_config config = {0}, own = {0};
    const decant_family *family;
    decant_error unread;
    decant_status status = DECANT_OK;
    if (!path[0])
        return DECANT_OK;
    if (stat(path, &about) != 0 || !S_ISDIR(about.st_mode))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: is no folder; --model names that of the tokenizer's files", path);
    if (decant_family_read(path, &config, &family, &unread) == DECANT_OK &&
        decant_container_config(job->container, container, &own, &unread) == DECANT_OK)
        status = decant_model_check_same(container, &own, path, &config, err);
    decant_model_config_free(&config);
    decant_model_config_free(&own);
    return status;
}

static decant_status copy_file(const export_job *job, const char *name, bool *is_there, decant_error *err)
{
    char path[DECANT_OPTION_PATH_BYTES + 64];
    decant_mapped_file file = {0};
    decant_status status = DECANT_OK;
    snprintf(path, sizeof path, "%s/%s", job->options->model, name);
    *is_there = access(path, F_OK) == 0;
    if (!*is_there)
        return DECANT_OK;
    DECANT_TRY(decant_mapped_file_open(path, &file, err));
    DECANT_TRY(decant_partial_folder_write(&job->folder, name, file.data, file.size_bytes, err));
done:
    decant_mapped_file_close(&file);
    return status;
}

static decant_status copy_tokenizer(const export_job *job, FILE *stream, decant_error *err)
{
    static const char *const names[] = {"tokenizer.json",    "tokenizer.model",     "tokenizer_config.json",
                                        "vocab.json",        "merges.txt",          "special_tokens_map.json",
                                        "added_tokens.json", "chat_template.jinja", "generation_config.json"};
    int copied = 0;
    if (!job->options->model[0]) {
        fprintf(stream,
                "no tokenizer files: they are not in the container; --model DIR copies them from there\n");
        return DECANT_OK;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        bool is_there;
        decant_status status = copy_file(job, names[i], &is_there, err);
        if (status != DECANT_OK)
            return status;
        copied += is_there;
    }
    if (copied == 0)
        fprintf(stream, "no tokenizer files: %s has none\n", job->options->model);
    return DECANT_OK;
}

static decant_status make_folder(export_job *job, decant_error *err)
{
    int64_t checksum;
    decant_status status;
    cJSON *root = cJSON_CreateObject();
    char *text = NULL;
    DECANT_TRY(decant_container_get_integer(job->container, "/", "model_crc32", &checksum, err));
    cJSON_AddStringToObject(root, "program", "decant " DECANT_VERSION);
    cJSON_AddStringToObject(root, "format", job->form->name);
    cJSON_AddStringToObject(root, "element", decant_element_name(job->element));
    cJSON_AddNumberToObject(root, "model_crc32", (double)checksum);
    text = cJSON_Print(root);
    if (!text)
        DECANT_FAIL(err, DECANT_ERROR_MEMORY, "what is said of the export");
    DECANT_TRY(decant_partial_folder_make(job->options->output, job->options->overwrite, mark, text,
                                          &job->folder, err));
done:
    cJSON_free(text);
    cJSON_Delete(root);
    return status;
}

/* ---- tensors ---- */

static decant_status write_whole(export_job *job, const decant_exported_tensor *tensor, decant_error *err)
{
    char path[DECANT_CONTAINER_PATH_BYTES + 1];
    size_t size_bytes = decant_stored_bytes(tensor->type);
    for (int d = 0; d < tensor->shape.dimensions; d++)
        size_bytes *= (size_t)tensor->shape.extent[d];
    void *data = NULL;
    decant_status status;
    snprintf(path, sizeof path, "/%s", tensor->name);
    DECANT_TRY(decant_memory_allocate(size_bytes, path, &data, err));
    DECANT_TRY(decant_container_read(job->container, path, tensor->type, &tensor->shape, data, err));
    DECANT_TRY(decant_safetensors_writer_append(job->writer, data, size_bytes, err));
done:
    decant_memory_free(data);
    return status;
}

static decant_status write_layer(export_job *job, const decant_export_layer *layer, decant_error *err)
{
    decant_packed_matrix *packed = NULL;
    decant_grid_matrix *grid = NULL;
    decant_weight_source *weights = &job->weights;
    decant_status status;
    DECANT_TRY(weights->packed(weights->context, job->backend, layer->name, layer->rows, layer->columns,
                               &packed, err));
    if (!packed)
        DECANT_TRY(weights->grid(weights->context, job->backend, layer->name, layer->rows, layer->columns,
                                 &grid, err));
    if (packed && (packed->sparse.count != layer->sparse_count || packed->bits != layer->bits))
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: %s has another sparse part than its attributes say",
                    job->options->container, layer->name);
    DECANT_TRY(job->form->write(job->backend, layer, packed, grid, job->element, job->writer, err));
done:
    if (packed)
        decant_packed_matrix_free(job->backend, packed);
    if (grid)
        decant_grid_matrix_free(job->backend, grid);
    decant_memory_free(packed);
    decant_memory_free(grid);
    return status;
}

static decant_status write_tensors(export_job *job, decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_safetensors_writer_create(job->folder.partial, &job->list, job->options->shard_bytes,
                                                &job->writer, err));
    for (int64_t i = 0; i < job->contents.count; i++) {
        const decant_exported_tensor *tensor = &job->contents.tensors[i];
        DECANT_TRY(tensor->is_layer ? write_layer(job, &tensor->layer, err) : write_whole(job, tensor, err));
    }
    DECANT_TRY(decant_safetensors_writer_finish(&job->writer, err));
done:
    return status;
}

/* ---- the command ---- */

static decant_status open_container(export_job *job, decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_container_open(job->options->container, &job->container, err));
    DECANT_TRY(decant_model_check_kind(job->container, job->options->container, err));
    DECANT_TRY(decant_container_verify(job->container, NULL, NULL, err));
    DECANT_TRY(decant_model_check_shapes(job->container, err));
    DECANT_TRY(decant_container_source_create(job->container, &job->source, err));
    job->weights = decant_source_of_container(job->source);
    DECANT_TRY(decant_backend_create_cpu(job->options->threads, &job->backend, err));
done:
    return status;
}

static void tell(const export_job *job, FILE *stream)
{
    bool is_dense = job->form == &decant_export_dense;
    fprintf(stream, "%s: %lld tensors, %s%s\n", job->options->output, (long long)job->list.count,
            is_dense ? "quantized weights as " : "quantized weights as SqueezeLLM packs them",
            is_dense ? decant_element_name(job->element) : "");
}

decant_status decant_export_command(const decant_options *options, FILE *stream, decant_error *err)
{
    bool is_squeezellm = options->format == DECANT_EXPORT_SQUEEZELLM;
    export_job job = {.options = options,
                      .form = is_squeezellm ? &decant_export_squeezellm : &decant_export_dense};
    decant_status status;
    mallopt(M_MMAP_THRESHOLD, RETURNED_BLOCK_BYTES);
    DECANT_TRY(open_container(&job, err));
    DECANT_TRY(check_model_folder(&job, err));
    DECANT_TRY(list_tensors(&job, err));
    DECANT_TRY(make_folder(&job, err));
    DECANT_TRY(write_config(&job, stream, err));
    if (is_squeezellm)
        DECANT_TRY(write_quant_config(&job, err));
    DECANT_TRY(copy_tokenizer(&job, stream, err));
    DECANT_TRY(write_tensors(&job, err));
    DECANT_TRY(decant_partial_folder_publish(&job.folder, err));
    tell(&job, stream);
done:
    decant_safetensors_writer_discard(&job.writer);
    decant_partial_folder_close(&job.folder);
    decant_tensor_list_free(&job.list);
    decant_exported_tensors_free(&job.contents);
    decant_container_source_destroy(&job.source);
    decant_container_close(&job.container);
    decant_backend_destroy(&job.backend);
    return status;
}
