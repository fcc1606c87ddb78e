/* Writes a model's tensors as safetensors: one file, or shards with an index when they are large. All tensors
 * are named first, because a file's header comes before its data; then their data come in the same order, one
 * at a time. Knows nothing of what the tensors mean; the reader is safetensors.h, where the format's source is
 * named. */
#ifndef DECANT_IO_SAFETENSORS_WRITER_H
#define DECANT_IO_SAFETENSORS_WRITER_H

#include "io/container.h"

enum { DECANT_TENSOR_NAME_BYTES = 288 };

/* A tensor to be written. */
typedef struct decant_tensor_entry {
    char name[DECANT_TENSOR_NAME_BYTES];
    decant_stored type;
    decant_shape shape;
} decant_tensor_entry;

/* Tensors in the order in which they are written; all zero to begin with. */
typedef struct decant_tensor_list {
    decant_tensor_entry *entries; /* [count], owned */
    int64_t count, room;
} decant_tensor_list;

/* Adds a tensor at the end; the name is "LAYER" or, with a part, "LAYER.PART". */
decant_status decant_tensor_list_add(decant_tensor_list *list, const char *layer, const char *part,
                                     decant_stored type, decant_shape shape, decant_error *err);
void decant_tensor_list_free(decant_tensor_list *list);

typedef struct decant_safetensors_writer decant_safetensors_writer;

/* Begins model.safetensors in `directory`, or, when the tensors are more than shard_bytes, as many shards
 * model-00001-of-N.safetensors as it takes, of at most shard_bytes each but for a tensor that is larger, and
 * model.safetensors.index.json. The files must not exist. Borrows the list.
 * DECANT_ERROR_DISK when a file cannot be made or written, here and below. */
decant_status decant_safetensors_writer_create(const char *directory, const decant_tensor_list *list,
                                               int64_t shard_bytes, decant_safetensors_writer **writer,
                                               decant_error *err);

/* The data of the next tensor, whole: size_bytes is what its type and shape say, else DECANT_ERROR_BUG. */
decant_status decant_safetensors_writer_append(decant_safetensors_writer *writer, const void *data,
                                               size_t size_bytes, decant_error *err);

/* Everything is on the disk afterwards. DECANT_ERROR_BUG when tensors are missing. Frees the writer whatever
 * happens. */
decant_status decant_safetensors_writer_finish(decant_safetensors_writer **writer, decant_error *err);

/* Closes and frees; what was written stays. Takes NULL, sets NULL. */
void decant_safetensors_writer_discard(decant_safetensors_writer **writer);

#endif
