/* One safetensors file: its header read and every claim in it checked against the file. Only io/safetensors
 * includes this header. Knows nothing of the other shards of a model. */
#ifndef DECANT_IO_SAFETENSORS_SHARD_H
#define DECANT_IO_SAFETENSORS_SHARD_H

#include "io/mapped_file.h"
#include "io/safetensors.h"

#include <stdbool.h>

typedef struct decant_shard {
    char *path;       /* owned by whoever made the shard */
    const char *name; /* the last part of path */
    decant_mapped_file file;
} decant_shard;

/* A tensor as a header describes it. */
typedef struct decant_shard_tensor {
    decant_tensor tensor;
    char *name;        /* owned; tensor.name */
    void *copy;        /* owned; the data where the file's are not aligned */
    bool listed;       /* false: of a type that decant does not compute with */
    size_t begin, end; /* bytes in the shard's data */
    const decant_shard *shard;
} decant_shard_tensor;

typedef struct decant_shard_tensors {
    decant_shard_tensor *at; /* owned */
    int64_t count;
} decant_shard_tensors;

/* Maps shard->path and adds its tensors. On failure some may have been added. */
decant_status decant_shard_open(decant_shard *shard, decant_shard_tensors *tensors, decant_error *err);

/* Frees what belongs to one tensor. */
void decant_shard_tensor_free(decant_shard_tensor *tensor);

/* Names go into messages of one line: not empty, no control characters. */
bool decant_shard_is_name(const char *name);

#endif
