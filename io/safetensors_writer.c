/* See safetensors_writer.h. */
#include "io/safetensors_writer.h"

#include "base/memory.h"
#include "io/file_bytes.h"

#include <cjson/cJSON.h>
#include <endian.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FILE_NAME_BYTES = 64, PATH_BYTES = 4096, HEADER_ALIGNMENT = 8 };

/* Consecutive tensors that lie in one file. */
typedef struct shard {
    int64_t first, end;
    int64_t bytes; /* of their data */
} shard;

struct decant_safetensors_writer {
    char *directory;                /* owned */
    const decant_tensor_list *list; /* borrowed */
    shard *shards;                  /* [shard_count], owned */
    int64_t shard_count;
    int64_t shard, next; /* the file that is open, and the tensor whose data come next */
    int descriptor;      /* -1: no file is open */
    char path[PATH_BYTES];
};

/* ---- the list ---- */

decant_status decant_tensor_list_add(decant_tensor_list *list, const char *layer, const char *part,
                                     decant_stored type, decant_shape shape, decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_memory_grow(sizeof *list->entries, list->count, &list->room, "the list of tensors",
                                  (void **)&list->entries, err));
    decant_tensor_entry *entry = &list->entries[list->count];
    int length = snprintf(entry->name, sizeof entry->name, "%s%s%s", layer, part ? "." : "", part ? part : "");
    if (length >= (int)sizeof entry->name)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%.128s: the name is too long", layer);
    entry->type = type;
    entry->shape = shape;
    list->count++;
    status = DECANT_OK;
done:
    return status;
}

void decant_tensor_list_free(decant_tensor_list *list)
{
    decant_memory_free(list->entries);
    *list = (decant_tensor_list){0};
}

static int64_t entry_bytes(const decant_tensor_entry *entry)
{
    int64_t bytes = (int64_t)decant_stored_bytes(entry->type);
    for (int i = 0; i < entry->shape.dimensions; i++)
        bytes *= entry->shape.extent[i];
    return bytes;
}

/* ---- shards ---- */

/* Fills each shard with tensors as they come, as long as they fit. */
static decant_status share_out(decant_safetensors_writer *writer, int64_t shard_bytes, decant_error *err)
{
    const decant_tensor_list *list = writer->list;
    decant_status status = decant_memory_allocate((size_t)(list->count + 1) * sizeof *writer->shards,
                                                  "the shards of a model", (void **)&writer->shards, err);
    if (status != DECANT_OK)
        return status;
    shard *last = &writer->shards[0];
    for (int64_t i = 0; i < list->count; i++) {
        int64_t bytes = entry_bytes(&list->entries[i]);
        if (bytes > 0 && last->end > last->first && last->bytes + bytes > shard_bytes) {
            last++;
            last->first = i;
        }
        last->end = i + 1;
        last->bytes += bytes;
    }
    writer->shard_count = last - writer->shards + 1;
    return DECANT_OK;
}

static void name_shard(const decant_safetensors_writer *writer, int64_t index, char name[FILE_NAME_BYTES])
{
    if (writer->shard_count == 1)
        snprintf(name, FILE_NAME_BYTES, "model.safetensors");
    else
        snprintf(name, FILE_NAME_BYTES, "model-%05lld-of-%05lld.safetensors", (long long)index + 1,
                 (long long)writer->shard_count);
}

/* ---- headers ---- */

static const char *type_name(decant_stored type)
{
    static const char *const names[] = {
        [DECANT_STORED_U8] = "U8",     [DECANT_STORED_U16] = "U16", [DECANT_STORED_U32] = "U32",
        [DECANT_STORED_I32] = "I32",   [DECANT_STORED_I64] = "I64", [DECANT_STORED_F16] = "F16",
        [DECANT_STORED_BF16] = "BF16", [DECANT_STORED_F32] = "F32", [DECANT_STORED_F64] = "F64"};
    return names[type];
}

/* A JSON object as text, padded with blanks to whole multiples of HEADER_ALIGNMENT, and freed. */
static decant_status print_header(cJSON *header, char **text, size_t *size_bytes, decant_error *err)
{
    char *printed = header ? cJSON_PrintUnformatted(header) : NULL;
    cJSON_Delete(header);
    decant_status status = DECANT_OK;
    if (!printed)
        return DECANT_ERROR(err, DECANT_ERROR_MEMORY, "the header of a safetensors file");
    size_t length = strlen(printed);
    *size_bytes = (length + HEADER_ALIGNMENT - 1) / HEADER_ALIGNMENT * HEADER_ALIGNMENT;
    DECANT_TRY(decant_memory_allocate(*size_bytes, "a safetensors header", (void **)text, err));
    memset(*text, ' ', *size_bytes);
    memcpy(*text, printed, length);
done:
    cJSON_free(printed);
    return status;
}

/* false when memory runs out. */
static bool add_number(cJSON *array, int64_t value)
{
    cJSON *number = cJSON_CreateNumber((double)value);
    if (cJSON_AddItemToArray(array, number))
        return true;
    cJSON_Delete(number);
    return false;
}

/* Adds what the header says of a tensor whose data begin at `offset`; false when memory runs out. */
static bool add_claim(cJSON *header, const decant_tensor_entry *entry, int64_t offset)
{
    cJSON *claim = cJSON_AddObjectToObject(header, entry->name);
    bool added = cJSON_AddStringToObject(claim, "dtype", type_name(entry->type)) != NULL;
    cJSON *shape = cJSON_AddArrayToObject(claim, "shape");
    added = added && shape;
    for (int d = 0; added && d < entry->shape.dimensions; d++)
        added = add_number(shape, entry->shape.extent[d]);
    cJSON *offsets = cJSON_AddArrayToObject(claim, "data_offsets");
    return added && add_number(offsets, offset) && add_number(offsets, offset + entry_bytes(entry));
}

/* NULL when memory runs out. */
static cJSON *header_of_shard(const decant_safetensors_writer *writer, const shard *of)
{
    cJSON *header = cJSON_CreateObject();
    cJSON *metadata = cJSON_AddObjectToObject(header, "__metadata__");
    bool whole = cJSON_AddStringToObject(metadata, "format", "pt") != NULL; /* transformers asks for it */
    int64_t offset = 0;
    for (int64_t i = of->first; whole && i < of->end; i++) {
        whole = add_claim(header, &writer->list->entries[i], offset);
        offset += entry_bytes(&writer->list->entries[i]);
    }
    if (whole)
        return header;
    cJSON_Delete(header);
    return NULL;
}

static decant_status open_file(decant_safetensors_writer *writer, const char *name, decant_error *err)
{
    int length = snprintf(writer->path, sizeof writer->path, "%s/%s", writer->directory, name);
    if (length >= (int)sizeof writer->path)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "%.128s…: the path is too long", writer->directory);
    return decant_file_create(writer->path, &writer->descriptor, err);
}

static decant_status open_shard(decant_safetensors_writer *writer, decant_error *err)
{
    char name[FILE_NAME_BYTES], *text = NULL;
    size_t size_bytes = 0;
    decant_status status;
    name_shard(writer, writer->shard, name);
    DECANT_TRY(print_header(header_of_shard(writer, &writer->shards[writer->shard]), &text, &size_bytes, err));
    DECANT_TRY(open_file(writer, name, err));
    uint64_t length = htole64(size_bytes);
    DECANT_TRY(decant_file_write(writer->descriptor, writer->path, &length, sizeof length, err));
    DECANT_TRY(decant_file_write(writer->descriptor, writer->path, text, size_bytes, err));
done:
    decant_memory_free(text);
    return status;
}

static decant_status write_index(decant_safetensors_writer *writer, decant_error *err)
{
    cJSON *index = cJSON_CreateObject();
    cJSON *metadata = cJSON_AddObjectToObject(index, "metadata");
    cJSON *map = cJSON_AddObjectToObject(index, "weight_map");
    bool whole = true;
    double total = 0;
    char name[FILE_NAME_BYTES], *text = NULL;
    decant_status status;
    for (int64_t s = 0; s < writer->shard_count; s++) {
        name_shard(writer, s, name);
        total += (double)writer->shards[s].bytes;
        for (int64_t i = writer->shards[s].first; whole && i < writer->shards[s].end; i++)
            whole = cJSON_AddStringToObject(map, writer->list->entries[i].name, name) != NULL;
    }
    whole = whole && cJSON_AddNumberToObject(metadata, "total_size", total);
    text = whole ? cJSON_Print(index) : NULL;
    if (!text)
        DECANT_FAIL(err, DECANT_ERROR_MEMORY, "the index of a model");
    DECANT_TRY(open_file(writer, "model.safetensors.index.json", err));
    DECANT_TRY(decant_file_write(writer->descriptor, writer->path, text, strlen(text), err));
    status = decant_file_finish(&writer->descriptor, writer->path, err);
done:
    cJSON_free(text);
    cJSON_Delete(index);
    return status;
}

/* ---- the writer ---- */

decant_status decant_safetensors_writer_create(const char *directory, const decant_tensor_list *list,
                                               int64_t shard_bytes, decant_safetensors_writer **writer,
                                               decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_memory_allocate(sizeof **writer, "a safetensors file", (void **)writer, err));
    (*writer)->descriptor = -1;
    (*writer)->list = list;
    DECANT_TRY(decant_memory_copy_string(directory, &(*writer)->directory, err));
    DECANT_TRY(share_out(*writer, shard_bytes, err));
    DECANT_TRY(open_shard(*writer, err));
done:
    if (status != DECANT_OK)
        decant_safetensors_writer_discard(writer);
    return status;
}

decant_status decant_safetensors_writer_append(decant_safetensors_writer *writer, const void *data,
                                               size_t size_bytes, decant_error *err)
{
    decant_status status;
    if (writer->next == writer->shards[writer->shard].end && writer->shard + 1 < writer->shard_count) {
        DECANT_TRY(decant_file_finish(&writer->descriptor, writer->path, err));
        writer->shard++;
        DECANT_TRY(open_shard(writer, err));
    }
    if (writer->next == writer->list->count ||
        (int64_t)size_bytes != entry_bytes(&writer->list->entries[writer->next]))
        DECANT_FAIL(err, DECANT_ERROR_BUG, "%s: tensor %lld is not of the size that its header says",
                    writer->path, (long long)writer->next);
    DECANT_TRY(decant_file_write(writer->descriptor, writer->path, data, size_bytes, err));
    writer->next++;
done:
    return status;
}

decant_status decant_safetensors_writer_finish(decant_safetensors_writer **writer, decant_error *err)
{
    decant_status status;
    if ((*writer)->next != (*writer)->list->count)
        DECANT_FAIL(err, DECANT_ERROR_BUG, "%s: %lld of %lld tensors were written", (*writer)->directory,
                    (long long)(*writer)->next, (long long)(*writer)->list->count);
    DECANT_TRY(decant_file_finish(&(*writer)->descriptor, (*writer)->path, err));
    if ((*writer)->shard_count > 1)
        DECANT_TRY(write_index(*writer, err));
done:
    decant_safetensors_writer_discard(writer);
    return status;
}

void decant_safetensors_writer_discard(decant_safetensors_writer **writer)
{
    if (!*writer)
        return;
    if ((*writer)->descriptor >= 0)
        close((*writer)->descriptor);
    decant_memory_free((*writer)->shards);
    decant_memory_free((*writer)->directory);
    decant_memory_free(*writer);
    *writer = NULL;
}
