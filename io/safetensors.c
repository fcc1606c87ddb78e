/* A model's tensors from one safetensors file or several.
 *
 * When all shards are open, tensors are put in name order, which shows those named twice, and the index is
 * compared with them. Tensors of types that decant does not compute with (integers, F64 …) are checked like the
 * others and then left out. */
#include "io/safetensors.h"

#include "base/memory.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/safetensors_shard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* As generous as the format is with headers. */
enum { INDEX_LARGEST_BYTES = 100000000 };

struct decant_safetensors {
    char *directory; /* owned */
    decant_shard *shards;
    int64_t shard_count;
    decant_shard_tensors tensors; /* in name order once open */
};

/* ---- all shards ---- */

/* DIRECTORY/NAME, freed with decant_memory_free. */
static decant_status join(const char *directory, const char *name, char **path, decant_error *err)
{
    size_t size = strlen(directory) + strlen(name) + 2;
    void *memory;
    decant_status status = decant_memory_allocate(size, "a path", &memory, err);
    *path = memory;
    if (status == DECANT_OK)
        snprintf(*path, size, "%s/%s", directory, name);
    return status;
}

static decant_status add_shard(decant_safetensors *model, const char *name, decant_error *err)
{
    decant_shard *added = &model->shards[model->shard_count];
    decant_status status = join(model->directory, name, &added->path, err);
    if (status != DECANT_OK)
        return status;
    added->name = added->path + strlen(model->directory) + 1;
    model->shard_count++;
    return decant_shard_open(added, &model->tensors, err);
}

static int compare_text(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* The shards of an index lie beside it: nothing else on the machine can be reached through one. */
static bool is_plain_name(const char *name)
{
    return decant_shard_is_name(name) && name[0] != '.' && !strchr(name, '/');
}

/* Collects the distinct file names of the weight map, sorted; *names points into it. */
static decant_status shard_names(const cJSON *weight_map, const char *index, const char ***names,
                                 int64_t *count, decant_error *err)
{
    decant_status status = DECANT_OK;
    void *memory = NULL;
    const cJSON *member;
    int64_t total = 0;
    DECANT_TRY(decant_memory_allocate(((size_t)cJSON_GetArraySize(weight_map) + 1) * sizeof **names,
                                      "shard names", &memory, err));
    *names = memory;
    cJSON_ArrayForEach(member, weight_map)
    {
        if (!cJSON_IsString(member) || !is_plain_name(member->valuestring))
            DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: the shard of tensor %.128s is no plain file name", index,
                        member->string);
        (*names)[total++] = member->valuestring;
    }
    if (total == 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: \"weight_map\" is empty", index);
    qsort(*names, (size_t)total, sizeof **names, compare_text);
    *count = 1;
    for (int64_t i = 1; i < total; i++)
        if (strcmp((*names)[i], (*names)[*count - 1]) != 0)
            (*names)[(*count)++] = (*names)[i];
done:
    return status;
}

static int compare_names(const void *left, const void *right)
{
    const decant_shard_tensor *a = left, *b = right;
    return strcmp(a->name, b->name);
}

static const decant_shard_tensor *find(const decant_safetensors *model, const char *name)
{
    decant_shard_tensor key = {.name = (char *)(uintptr_t)name};
    if (!model->tensors.count)
        return NULL;
    return bsearch(&key, model->tensors.at, (size_t)model->tensors.count, sizeof key, compare_names);
}

/* Every tensor of the weight map is in the shard that it says; entries are in name order. */
static decant_status check_weight_map(const decant_safetensors *model, const cJSON *weight_map,
                                      decant_error *err)
{
    const cJSON *member;
    cJSON_ArrayForEach(member, weight_map)
    {
        const decant_shard_tensor *found = find(model, member->string);
        if (!found || strcmp(found->shard->name, member->valuestring) != 0)
            return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                                "%s/%s: has no tensor %.128s, though the index says so", model->directory,
                                member->valuestring, member->string);
    }
    return DECANT_OK;
}

/* Puts the entries in name order; no name may come twice. */
static decant_status sort_tensors(decant_safetensors *model, decant_error *err)
{
    if (model->tensors.count)
        qsort(model->tensors.at, (size_t)model->tensors.count, sizeof *model->tensors.at, compare_names);
    for (int64_t i = 1; i < model->tensors.count; i++) {
        const decant_shard_tensor *before = &model->tensors.at[i - 1], *entry = &model->tensors.at[i];
        if (strcmp(before->name, entry->name) == 0)
            return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: tensor %.128s is named twice (also in %s)",
                                entry->tensor.file, entry->name, before->shard->name);
    }
    return DECANT_OK;
}

static decant_status open_index(decant_safetensors *model, const char *path, decant_error *err)
{
    decant_status status = DECANT_OK;
    decant_mapped_file file = {0};
    cJSON *index = NULL;
    const cJSON *weight_map;
    const char **names = NULL;
    int64_t count = 0;
    void *shards = NULL;
    DECANT_TRY(decant_mapped_file_open(path, &file, err));
    if (file.size_bytes > INDEX_LARGEST_BYTES)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: %zu bytes are too many for an index", path, file.size_bytes);
    DECANT_TRY(decant_json_parse((const char *)file.data, file.size_bytes, path, &index, err));
    DECANT_TRY(decant_json_member(index, "weight_map", path, &weight_map, err));
    if (!cJSON_IsObject(weight_map))
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: has no \"weight_map\"", path);
    DECANT_TRY(shard_names(weight_map, path, &names, &count, err));
    DECANT_TRY(decant_memory_allocate((size_t)count * sizeof *model->shards, "shards", &shards, err));
    model->shards = shards;
    for (int64_t i = 0; i < count; i++)
        DECANT_TRY(add_shard(model, names[i], err));
    DECANT_TRY(sort_tensors(model, err));
    DECANT_TRY(check_weight_map(model, weight_map, err));
done:
    decant_memory_free(names);
    cJSON_Delete(index);
    status = decant_mapped_file_check(&file, path, status, err);
    decant_mapped_file_close(&file);
    return status;
}

static decant_status open_single(decant_safetensors *model, decant_error *err)
{
    decant_status status = DECANT_OK;
    void *shards;
    DECANT_TRY(decant_memory_allocate(sizeof *model->shards, "shards", &shards, err));
    model->shards = shards;
    DECANT_TRY(add_shard(model, "model.safetensors", err));
    DECANT_TRY(sort_tensors(model, err));
done:
    return status;
}

/* Drops the entries that are not listed; the order stays. */
static void drop_unlisted(decant_safetensors *model)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < model->tensors.count; i++) {
        if (model->tensors.at[i].listed)
            model->tensors.at[kept++] = model->tensors.at[i];
        else
            decant_shard_tensor_free(&model->tensors.at[i]);
    }
    model->tensors.count = kept;
}

decant_status decant_safetensors_open(const char *directory, decant_safetensors **model, decant_error *err)
{
    decant_status status = DECANT_OK;
    void *memory = NULL;
    char *single = NULL, *index = NULL;
    *model = NULL;
    DECANT_TRY(decant_memory_allocate(sizeof **model, "the model's tensors", &memory, err));
    *model = memory;
    DECANT_TRY(decant_memory_copy_string(directory, &(*model)->directory, err));
    DECANT_TRY(join(directory, "model.safetensors", &single, err));
    DECANT_TRY(join(directory, "model.safetensors.index.json", &index, err));
    if (access(single, F_OK) == 0)
        DECANT_TRY(open_single(*model, err));
    else if (access(index, F_OK) == 0)
        DECANT_TRY(open_index(*model, index, err));
    else
        DECANT_FAIL(err, DECANT_ERROR_INPUT,
                    "%s: is no model folder: it has neither model.safetensors nor model.safetensors.index.json",
                    directory);
    drop_unlisted(*model);
done:
    decant_memory_free(index);
    decant_memory_free(single);
    if (status != DECANT_OK)
        decant_safetensors_close(model);
    return status;
}

void decant_safetensors_close(decant_safetensors **model)
{
    if (!*model)
        return;
    for (int64_t i = 0; i < (*model)->tensors.count; i++)
        decant_shard_tensor_free(&(*model)->tensors.at[i]);
    for (int64_t i = 0; i < (*model)->shard_count; i++) {
        decant_mapped_file_close(&(*model)->shards[i].file);
        decant_memory_free((*model)->shards[i].path);
    }
    decant_memory_free((*model)->tensors.at);
    decant_memory_free((*model)->shards);
    decant_memory_free((*model)->directory);
    decant_memory_free(*model);
    *model = NULL;
}

/* ---- access ---- */

int64_t decant_safetensors_count(const decant_safetensors *model)
{
    return model->tensors.count;
}

const decant_tensor *decant_safetensors_at(const decant_safetensors *model, int64_t index)
{
    return &model->tensors.at[index].tensor;
}

int64_t decant_safetensors_index(const decant_safetensors *model, const char *name)
{
    const decant_shard_tensor *found = find(model, name);
    return found ? found - model->tensors.at : -1;
}

const decant_tensor *decant_safetensors_find(const decant_safetensors *model, const char *name)
{
    const decant_shard_tensor *found = find(model, name);
    return found ? &found->tensor : NULL;
}

decant_status decant_safetensors_matrix(const decant_safetensors *model, const char *name, int64_t rows,
                                        int64_t columns, decant_matrix *matrix, decant_error *err)
{
    const decant_tensor *tensor = decant_safetensors_find(model, name);
    if (!tensor)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: has no tensor %.128s of type F32, F16 or BF16",
                            model->directory, name);
    bool is_vector = tensor->dimensions == 1;
    int64_t found_rows = is_vector ? 1 : tensor->shape[0], found_columns = tensor->shape[is_vector ? 0 : 1];
    if (tensor->dimensions < 1 || tensor->dimensions > 2)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: tensor %.128s has %d dimensions and is no matrix",
                            tensor->file, name, tensor->dimensions);
    if (found_rows != rows || found_columns != columns)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: tensor %.128s is [%lld, %lld], the model's configuration needs [%lld, %lld]",
                            tensor->file, name, (long long)found_rows, (long long)found_columns,
                            (long long)rows, (long long)columns);
    *matrix = (decant_matrix){(void *)(uintptr_t)tensor->data, tensor->element, rows, columns};
    return DECANT_OK;
}

/* Whether it is read from its file's pages, which can go and come again; an aligned copy could not. */
static bool is_mapped(const decant_safetensors *model, decant_matrix matrix)
{
    const unsigned char *data = matrix.data;
    for (int64_t i = 0; i < model->shard_count; i++) {
        const decant_mapped_file *file = &model->shards[i].file;
        if (file->data && data >= file->data && data < file->data + file->size_bytes)
            return true;
    }
    return false;
}

void decant_safetensors_expect(const decant_safetensors *model, decant_matrix matrix)
{
    if (is_mapped(model, matrix))
        decant_mapped_file_expect(matrix.data, decant_matrix_bytes(matrix));
}

void decant_safetensors_dismiss(const decant_safetensors *model, decant_matrix matrix)
{
    if (is_mapped(model, matrix))
        decant_mapped_file_dismiss(matrix.data, decant_matrix_bytes(matrix));
}

/* The tensor that a byte of a shard belongs to. */
static const char *tensor_at(const decant_safetensors *model, const decant_shard *shard, size_t offset)
{
    const unsigned char *byte = shard->file.data + offset;
    for (int64_t i = 0; i < model->tensors.count; i++) {
        const decant_tensor *tensor = &model->tensors.at[i].tensor;
        const unsigned char *begin = tensor->data;
        if (model->tensors.at[i].shard == shard && byte >= begin && byte < begin + tensor->size_bytes)
            return tensor->name;
    }
    return "its header";
}

decant_status decant_safetensors_check(const decant_safetensors *model, decant_error *err)
{
    for (int64_t i = 0; model && i < model->shard_count; i++) {
        const decant_shard *shard = &model->shards[i];
        size_t offset;
        if (decant_mapped_file_is_unread(&shard->file, &offset))
            return decant_error_name(decant_mapped_file_check(&shard->file, shard->path, DECANT_OK, err),
                                     tensor_at(model, shard, offset), err);
    }
    return DECANT_OK;
}

decant_status decant_safetensors_check_finite(const decant_safetensors *model, decant_error *err)
{
    for (int64_t i = 0; model && i < model->tensors.count; i++) {
        const decant_tensor *tensor = &model->tensors.at[i].tensor;
        const int64_t count = (int64_t)(tensor->size_bytes / decant_element_bytes(tensor->element)),
                      index = decant_find_not_finite(tensor->element, tensor->data, count);
        int64_t columns = 1;
        if (tensor->dimensions > 0)
            columns = tensor->shape[tensor->dimensions - 1];
        if (index >= 0)
            return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                                "%s: %.128s: the value at row %lld, column %lld is not finite", tensor->file,
                                tensor->name, (long long)(index / columns), (long long)(index % columns));
    }
    return DECANT_OK;
}
