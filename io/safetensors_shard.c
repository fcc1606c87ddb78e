/* Opening a shard takes three steps: map the file, take each tensor's claim from the JSON header, check the
 * claims together: every byte of data belongs to exactly one tensor, as the format asks. Does not touch the
 * data itself, but for tensors that are not aligned to their element: those are copied. */
#include "io/safetensors_shard.h"

#include "base/memory.h"
#include "io/container.h"
#include "io/json.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The first number is the reference implementation's limit on a header. */
enum { HEADER_LARGEST_BYTES = 100000000, LENGTH_BYTES = 8 };
static const int64_t largest_json_integer = INT64_C(1) << 53;

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

/* ---- one tensor's claim ---- */

/* The type of a claim; its index in element_types. */
static decant_status read_type(const cJSON *claim, const decant_shard_tensor *entry, int *type,
                               decant_error *err)
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
static decant_status read_shape(const cJSON *claim, int type, decant_shard_tensor *entry, size_t *size_bytes,
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

static decant_status read_offsets(const cJSON *claim, decant_shard_tensor *entry, size_t size_bytes,
                                  size_t data_bytes, decant_error *err)
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

bool decant_shard_is_name(const char *name)
{
    for (const char *byte = name; *byte; byte++)
        if ((unsigned char)*byte < ' ' || *byte == 0x7f)
            return false;
    return *name != '\0';
}

/* Whether a container can have the tensor under its name. */
static bool has_path(const char *name)
{
    char path[DECANT_CONTAINER_PATH_BYTES];
    return snprintf(path, sizeof path, "/%s", name) < (int)sizeof path && decant_container_is_path(path);
}

/* Points the tensor at its bytes, or at an aligned copy of them. */
static decant_status place_data(const unsigned char *data, decant_shard_tensor *entry, decant_error *err)
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

static decant_status read_claim(const cJSON *claim, const decant_shard *shard, const unsigned char *data,
                                size_t data_bytes, decant_shard_tensor *entry, decant_error *err)
{
    decant_status status = DECANT_OK;
    int type = 0;
    size_t size_bytes = 0;
    entry->shard = shard;
    entry->tensor.file = shard->path;
    if (!decant_shard_is_name(claim->string))
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
    if (entry->listed && !has_path(entry->name))
        DECANT_FAIL(
            err, DECANT_ERROR_INPUT,
            "%s: no container can have a tensor named %.128s: the name has %zu bytes, or between slashes a "
            "part that is empty or a point",
            shard->path, entry->name, strlen(entry->name));
    DECANT_TRY(read_offsets(claim, entry, size_bytes, data_bytes, err));
    DECANT_TRY(place_data(data, entry, err));
done:
    return status;
}

/* ---- one shard ---- */

static int compare_places(const void *left, const void *right)
{
    const decant_shard_tensor *a = *(const decant_shard_tensor *const *)left,
                              *b = *(const decant_shard_tensor *const *)right;
    if (a->begin != b->begin)
        return a->begin < b->begin ? -1 : 1;
    return (a->end > b->end) - (a->end < b->end);
}

/* Every byte of the data belongs to exactly one of the shard's tensors. */
static decant_status check_cover(const decant_shard_tensor *entries, int64_t count, size_t data_bytes,
                                 const char *path, decant_error *err)
{
    decant_status status = DECANT_OK;
    void *memory = NULL;
    DECANT_TRY(
        decant_memory_allocate((size_t)count * sizeof(decant_shard_tensor *), "tensor places", &memory, err));
    const decant_shard_tensor **order = memory;
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

static decant_status parse_header(const decant_shard *shard, cJSON **header, size_t *header_bytes,
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

decant_status decant_shard_open(decant_shard *shard, decant_shard_tensors *tensors, decant_error *err)
{
    decant_status status = DECANT_OK;
    cJSON *header = NULL;
    size_t header_bytes = 0;
    int64_t first = tensors->count;
    DECANT_TRY(decant_mapped_file_open(shard->path, &shard->file, err));
    DECANT_TRY(parse_header(shard, &header, &header_bytes, err));
    size_t room = ((size_t)first + (size_t)cJSON_GetArraySize(header)) * sizeof *tensors->at;
    void *at = tensors->at;
    DECANT_TRY(decant_memory_resize(room, "the tensors' names", &at, err));
    tensors->at = at;
    const unsigned char *data = shard->file.data + LENGTH_BYTES + header_bytes;
    size_t data_bytes = shard->file.size_bytes - LENGTH_BYTES - header_bytes;
    const cJSON *claim;
    cJSON_ArrayForEach(claim, header)
    {
        if (strcmp(claim->string, "__metadata__") == 0)
            continue;
        DECANT_TRY(read_claim(claim, shard, data, data_bytes, &tensors->at[tensors->count++], err));
    }
    DECANT_TRY(check_cover(tensors->at + first, tensors->count - first, data_bytes, shard->path, err));
done:
    cJSON_Delete(header);
    return decant_mapped_file_check(&shard->file, shard->path, status, err);
}

void decant_shard_tensor_free(decant_shard_tensor *tensor)
{
    decant_memory_free(tensor->copy);
    decant_memory_free(tensor->name);
}
