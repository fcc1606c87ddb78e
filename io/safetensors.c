/* Reading safetensors shards.
 *
 * A shard is opened in three steps: map the file, take each tensor's claim from the JSON header, check the
 * claims together (every byte of data belongs to exactly one tensor, as the format asks). When all shards are
 * open, tensors are put in name order, which shows those named twice, and the index is compared with them.
 * Tensors of types that decant does not compute with (integers, F64 …) are checked like the others and then
 * left out. Does not touch the data itself, but for tensors that are not aligned to their element: those are
 * copied. */
#include "io/safetensors.h"

#include "base/memory.h"
#include "io/json.h"
#include "io/mapped_file.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The reference implementation's limit on a header, and one on the index that is as generous. */
enum { HEADER_LARGEST_BYTES = 100000000, INDEX_LARGEST_BYTES = 100000000, LENGTH_BYTES = 8 };
static const int64_t largest_json_integer = INT64_C(1) << 53;

typedef struct shard_file {
    char *path;       /* owned */
    const char *name; /* the last part of path */
    decant_mapped_file file;
} shard_file;

/* A tensor while its shard is being opened and afterwards. */
typedef struct tensor_entry {
    decant_tensor tensor; /* first, so that the sorted entries can be searched by it */
    char *name;           /* owned; tensor.name */
    void *copy;           /* owned; the data when the file's is not aligned */
    bool listed;          /* false: of a type that is left out */
    size_t begin, end;    /* bytes in the shard's data */
    const shard_file *shard;
} tensor_entry;

struct decant_safetensors {
    char *directory; /* owned */
    shard_file *shards;
    int64_t shard_count;
    tensor_entry *entries; /* in name order once open; the listed ones first */
    int64_t entry_count, listed_count;
};

/* Element types of the format. */
static const struct {
    const char *name;
    int bits;
    bool listed;
    decant_element element;
} element_types[] = {
    {"F32", 32, true, DECANT_F32}, {"F16", 16, true, DECANT_F16}, {"BF16", 16, true, DECANT_BF16},
    {"BOOL", 8, false, 0},         {"U8", 8, false, 0},           {"I8", 8, false, 0},
    {"I16", 16, false, 0},         {"U16", 16, false, 0},         {"I32", 32, false, 0},
    {"U32", 32, false, 0},         {"I64", 64, false, 0},         {"U64", 64, false, 0},
    {"F64", 64, false, 0},         {"C64", 64, false, 0},         {"F4", 4, false, 0},
    {"F6_E2M3", 6, false, 0},      {"F6_E3M2", 6, false, 0},      {"F8_E5M2", 8, false, 0},
    {"F8_E4M3", 8, false, 0},      {"F8_E8M0", 8, false, 0},
};
enum { ELEMENT_TYPES = sizeof element_types / sizeof *element_types };

/* ---------------------------------------------------------------------------------- one tensor's claim ---- */

/* The type of a claim; its index in element_types. */
static decant_status read_type(const cJSON *claim, const tensor_entry *entry, int *type, decant_error *err)
{
    const cJSON *member;
    decant_status status = decant_json_member(claim, "dtype", entry->tensor.file, &member, err);
    if (status != DECANT_OK)
        return status;
    if (!cJSON_IsString(member))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: tensor %.128s has no dtype", entry->tensor.file,
                            entry->name);
    for (*type = 0; *type < ELEMENT_TYPES; ++*type)
        if (strcmp(member->valuestring, element_types[*type].name) == 0)
            return DECANT_OK;
    return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: tensor %.128s is of the unknown type \"%.32s\"",
                        entry->tensor.file, entry->name, member->valuestring);
}

/* The shape of a claim, and how many bytes it takes. A tensor of more dimensions than a decant_tensor has is
 * left out like one of another type. */
static decant_status read_shape(const cJSON *claim, int type, tensor_entry *entry, size_t *size_bytes,
                                decant_error *err)
{
    const cJSON *member, *extent;
    decant_status status = decant_json_member(claim, "shape", entry->tensor.file, &member, err);
    if (status != DECANT_OK)
        return status;
    if (!cJSON_IsArray(member))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: tensor %.128s has no shape", entry->tensor.file,
                            entry->name);
    enum { LARGEST_DIMENSIONS = sizeof entry->tensor.shape / sizeof *entry->tensor.shape };
    int64_t bits = element_types[type].bits, value;
    int dimensions = 0;
    cJSON_ArrayForEach(extent, member)
    {
        if (!decant_json_is_integer(extent, 0, largest_json_integer, &value) ||
            __builtin_mul_overflow(bits, value, &bits))
            return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: the shape of tensor %.128s is not possible",
                                entry->tensor.file, entry->name);
        if (dimensions == LARGEST_DIMENSIONS)
            entry->listed = false;
        else
            entry->tensor.shape[dimensions++] = value;
    }
    if (bits % CHAR_BIT != 0)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: tensor %.128s does not end on a whole byte",
                            entry->tensor.file, entry->name);
    entry->tensor.dimensions = dimensions;
    *size_bytes = (size_t)(bits / CHAR_BIT);
    return DECANT_OK;
}

static decant_status read_offsets(const cJSON *claim, tensor_entry *entry, size_t size_bytes, size_t data_bytes,
                                  decant_error *err)
{
    const cJSON *member;
    decant_status status = decant_json_member(claim, "data_offsets", entry->tensor.file, &member, err);
    if (status != DECANT_OK)
        return status;
    const cJSON *first = cJSON_IsArray(member) ? member->child : NULL;
    const cJSON *second = first ? first->next : NULL;
    int64_t begin, end;
    if (!decant_json_is_integer(first, 0, largest_json_integer, &begin) ||
        !decant_json_is_integer(second, 0, largest_json_integer, &end) || second->next || begin > end)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: tensor %.128s has no valid data_offsets",
                            entry->tensor.file, entry->name);
    if ((uint64_t)end > data_bytes)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: tensor %.128s ends at byte %lld of the data, but the file has only %zu; "
                            "fetch it again",
                            entry->tensor.file, entry->name, (long long)end, data_bytes);
    if ((uint64_t)(end - begin) != size_bytes)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: tensor %.128s has %lld bytes, its type and shape need %zu", entry->tensor.file,
                            entry->name, (long long)(end - begin), size_bytes);
    entry->begin = (size_t)begin;
    entry->end = (size_t)end;
    entry->tensor.size_bytes = size_bytes;
    return DECANT_OK;
}

/* Names go into messages of one line and into paths of the container. */
static bool is_printable(const char *name)
{
    for (const char *byte = name; *byte; byte++)
        if ((unsigned char)*byte < ' ' || *byte == 0x7f)
            return false;
    return *name != '\0';
}

/* Points the tensor at its bytes, or at an aligned copy of them. */
static decant_status place_data(const unsigned char *data, tensor_entry *entry, decant_error *err)
{
    const unsigned char *bytes = data + entry->begin;
    entry->tensor.data = bytes;
    if (!entry->listed || (uintptr_t)bytes % decant_element_bytes(entry->tensor.element) == 0)
        return DECANT_OK;
    decant_status status = decant_memory_allocate(entry->tensor.size_bytes, entry->name, &entry->copy, err);
    if (status == DECANT_OK && entry->tensor.size_bytes)
        memcpy(entry->copy, bytes, entry->tensor.size_bytes);
    entry->tensor.data = entry->copy;
    return status;
}

static decant_status read_claim(const cJSON *claim, const shard_file *shard, const unsigned char *data,
                                size_t data_bytes, tensor_entry *entry, decant_error *err)
{
    decant_status status = DECANT_OK;
    int type = 0;
    size_t size_bytes = 0;
    entry->shard = shard;
    entry->tensor.file = shard->path;
    if (!is_printable(claim->string))
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: a tensor's name is empty or has control characters",
                    shard->path);
    DECANT_TRY(decant_memory_copy_string(claim->string, &entry->name, err));
    entry->tensor.name = entry->name;
    if (!cJSON_IsObject(claim))
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: tensor %.128s is described by no JSON object", shard->path,
                    entry->name);
    DECANT_TRY(read_type(claim, entry, &type, err));
    entry->listed = element_types[type].listed;
    entry->tensor.element = element_types[type].element;
    DECANT_TRY(read_shape(claim, type, entry, &size_bytes, err));
    DECANT_TRY(read_offsets(claim, entry, size_bytes, data_bytes, err));
    DECANT_TRY(place_data(data, entry, err));
done:
    return status;
}

/* ------------------------------------------------------------------------------------------- one shard ---- */

static int compare_places(const void *left, const void *right)
{
    const tensor_entry *a = *(const tensor_entry *const *)left, *b = *(const tensor_entry *const *)right;
    if (a->begin != b->begin)
        return a->begin < b->begin ? -1 : 1;
    return (a->end > b->end) - (a->end < b->end);
}

/* Every byte of the data belongs to exactly one of the shard's tensors. */
static decant_status check_cover(const tensor_entry *entries, int64_t count, size_t data_bytes,
                                 const char *path, decant_error *err)
{
    decant_status status = DECANT_OK;
    void *memory = NULL;
    DECANT_TRY(decant_memory_allocate((size_t)count * sizeof(tensor_entry *), "tensor places", &memory, err));
    const tensor_entry **order = memory;
    for (int64_t i = 0; i < count; i++)
        order[i] = &entries[i];
    if (count)
        qsort(order, (size_t)count, sizeof *order, compare_places);
    size_t covered = 0;
    for (int64_t i = 0; i < count; i++) {
        if (order[i]->begin < covered)
            DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: tensors %.128s and %.128s overlap", path,
                        order[i - 1]->name, order[i]->name);
        if (order[i]->begin > covered)
            DECANT_FAIL(err, DECANT_ERROR_INPUT,
                        "%s: bytes %zu to %zu of the data, before tensor %.128s, are no tensor's", path,
                        covered, order[i]->begin, order[i]->name);
        covered = order[i]->end;
    }
    if (covered != data_bytes)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: the last %zu bytes are no tensor's", path,
                    data_bytes - covered);
done:
    decant_memory_free(memory);
    return status;
}

static decant_status parse_header(const shard_file *shard, cJSON **header, size_t *header_bytes,
                                  decant_error *err)
{
    const decant_mapped_file *file = &shard->file;
    uint64_t length = 0;
    *header = NULL;
    if (file->size_bytes < LENGTH_BYTES)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: is no safetensors file, its %zu bytes hold no header",
                            shard->path, file->size_bytes);
    for (int i = 0; i < LENGTH_BYTES; i++)
        length |= (uint64_t)file->data[i] << (CHAR_BIT * i);
    if (length > HEADER_LARGEST_BYTES)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: is no safetensors file, or damaged: its header would have %llu bytes",
                            shard->path, (unsigned long long)length);
    if (length > file->size_bytes - LENGTH_BYTES)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: ends within its header; fetch it again", shard->path);
    *header_bytes = (size_t)length;
    return decant_json_parse((const char *)file->data + LENGTH_BYTES, *header_bytes, shard->path, header, err);
}

/* Opens the file of a shard and adds its tensors to the model. */
static decant_status open_shard(decant_safetensors *model, shard_file *shard, decant_error *err)
{
    decant_status status = DECANT_OK;
    cJSON *header = NULL;
    size_t header_bytes = 0;
    int64_t first = model->entry_count;
    DECANT_TRY(decant_mapped_file_open(shard->path, &shard->file, err));
    DECANT_TRY(parse_header(shard, &header, &header_bytes, err));
    size_t room = ((size_t)first + (size_t)cJSON_GetArraySize(header)) * sizeof *model->entries;
    void *entries = model->entries;
    DECANT_TRY(decant_memory_resize(room, "the tensors' names", &entries, err));
    model->entries = entries;
    const unsigned char *data = shard->file.data + LENGTH_BYTES + header_bytes;
    size_t data_bytes = shard->file.size_bytes - LENGTH_BYTES - header_bytes;
    const cJSON *claim;
    cJSON_ArrayForEach(claim, header)
    {
        if (strcmp(claim->string, "__metadata__") == 0)
            continue;
        DECANT_TRY(read_claim(claim, shard, data, data_bytes, &model->entries[model->entry_count++], err));
    }
    DECANT_TRY(check_cover(model->entries + first, model->entry_count - first, data_bytes, shard->path, err));
done:
    cJSON_Delete(header);
    return status;
}

/* ------------------------------------------------------------------------------------------ all shards ---- */

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
    shard_file *added = &model->shards[model->shard_count];
    decant_status status = join(model->directory, name, &added->path, err);
    if (status != DECANT_OK)
        return status;
    added->name = added->path + strlen(model->directory) + 1;
    model->shard_count++;
    return open_shard(model, added, err);
}

static int compare_text(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* The shards of an index lie beside it: nothing else on the machine can be reached through one. */
static bool is_plain_name(const char *name)
{
    return is_printable(name) && name[0] != '.' && !strchr(name, '/');
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

static int compare_entries(const void *left, const void *right)
{
    const tensor_entry *a = left, *b = right;
    return strcmp(a->name, b->name);
}

static const tensor_entry *find_entry(const decant_safetensors *model, const char *name)
{
    tensor_entry key = {.name = (char *)(uintptr_t)name};
    if (!model->entry_count)
        return NULL;
    return bsearch(&key, model->entries, (size_t)model->entry_count, sizeof key, compare_entries);
}

/* Every tensor of the weight map is in the shard that it says; entries are in name order. */
static decant_status check_weight_map(const decant_safetensors *model, const cJSON *weight_map,
                                      decant_error *err)
{
    const cJSON *member;
    cJSON_ArrayForEach(member, weight_map)
    {
        const tensor_entry *found = find_entry(model, member->string);
        if (!found || strcmp(found->shard->name, member->valuestring) != 0)
            return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                                "%s/%s: has no tensor %.128s, though the index says so", model->directory,
                                member->valuestring, member->string);
    }
    return DECANT_OK;
}

/* Puts the entries in name order; no name may come twice. */
static decant_status sort_entries(decant_safetensors *model, decant_error *err)
{
    if (model->entry_count)
        qsort(model->entries, (size_t)model->entry_count, sizeof *model->entries, compare_entries);
    for (int64_t i = 1; i < model->entry_count; i++) {
        const tensor_entry *before = &model->entries[i - 1], *entry = &model->entries[i];
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
    DECANT_TRY(sort_entries(model, err));
    DECANT_TRY(check_weight_map(model, weight_map, err));
done:
    decant_memory_free(names);
    cJSON_Delete(index);
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
    DECANT_TRY(sort_entries(model, err));
done:
    return status;
}

static void free_entry(tensor_entry *entry)
{
    decant_memory_free(entry->copy);
    decant_memory_free(entry->name);
}

/* Drops the entries that are not listed; the order stays. */
static void drop_unlisted(decant_safetensors *model)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < model->entry_count; i++) {
        if (model->entries[i].listed)
            model->entries[kept++] = model->entries[i];
        else
            free_entry(&model->entries[i]);
    }
    model->entry_count = kept;
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
    for (int64_t i = 0; i < (*model)->entry_count; i++)
        free_entry(&(*model)->entries[i]);
    for (int64_t i = 0; i < (*model)->shard_count; i++) {
        decant_mapped_file_close(&(*model)->shards[i].file);
        decant_memory_free((*model)->shards[i].path);
    }
    decant_memory_free((*model)->entries);
    decant_memory_free((*model)->shards);
    decant_memory_free((*model)->directory);
    decant_memory_free(*model);
    *model = NULL;
}

/* ---------------------------------------------------------------------------------------------- access ---- */

int64_t decant_safetensors_count(const decant_safetensors *model)
{
    return model->entry_count;
}

const decant_tensor *decant_safetensors_at(const decant_safetensors *model, int64_t index)
{
    return &model->entries[index].tensor;
}

const decant_tensor *decant_safetensors_find(const decant_safetensors *model, const char *name)
{
    const tensor_entry *found = find_entry(model, name);
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
