/* A model's tensors on disk: one safetensors file or the shards that model.safetensors.index.json names.
 * Files are mapped, so bytes are read only by the rank that touches them. Every offset, shape and type in a
 * header is checked against the file before use. Knows nothing of what the tensors mean. Format:
 * https://huggingface.co/docs/safetensors (an 8-byte little-endian header length, a JSON header, the data). */
#ifndef DECANT_IO_SAFETENSORS_H
#define DECANT_IO_SAFETENSORS_H

#include "base/element.h"
#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

typedef struct decant_tensor {
    const char *name; /* owned by the model */
    decant_element element;
    int dimensions; /* 0 … 4 */
    int64_t shape[4];
    const void *data; /* mapped, read-only, aligned to its element; owned by the model */
    size_t size_bytes;
    const char *file; /* for messages; owned by the model */
} decant_tensor;

typedef struct decant_safetensors decant_safetensors;

/* Opens every shard of the model in directory. Local, not collective. DECANT_ERROR_INPUT names the file and
 * what is wrong with it: missing, truncated, header not JSON, a tensor outside the file, overlapping, of an
 * unknown type, or of a size other than its shape says, or named twice. */
decant_status decant_safetensors_open(const char *directory, decant_safetensors **model, decant_error *err);
void decant_safetensors_close(decant_safetensors **model); /* takes NULL, sets NULL */

/* Tensors in name order. */
int64_t decant_safetensors_count(const decant_safetensors *model);
const decant_tensor *decant_safetensors_at(const decant_safetensors *model, int64_t index);

/* The place of a tensor in that order; −1 when there is none of this name. */
int64_t decant_safetensors_index(const decant_safetensors *model, const char *name);

/* NULL when there is no such tensor. */
const decant_tensor *decant_safetensors_find(const decant_safetensors *model, const char *name);

/* DECANT_OK when all bytes of tensors that were touched so far could be read; else DECANT_ERROR_INPUT that
 * names the file and the tensor. Those that could not read as zero: to be asked before what was computed from
 * tensors is used or told. model may be NULL. */
decant_status decant_safetensors_check(const decant_safetensors *model, decant_error *err);

/* DECANT_ERROR_INPUT naming file, tensor and place of the first value that is not finite. Reads all tensors.
 * model may be NULL. */
decant_status decant_safetensors_check_finite(const decant_safetensors *model, decant_error *err);

/* The tensor as a [rows, columns] matrix (a one-dimensional tensor has one row).
 * DECANT_ERROR_INPUT naming file and tensor when it is missing or has another shape. */
decant_status decant_safetensors_matrix(const decant_safetensors *model, const char *name, int64_t rows,
                                        int64_t columns, decant_matrix *matrix, decant_error *err);

/* That one of the model's matrices will soon be read, and that it will not be for some time: its pages of the
 * file come ahead, or go. What it holds stays the same either way. */
void decant_safetensors_expect(const decant_safetensors *model, decant_matrix matrix);
void decant_safetensors_dismiss(const decant_safetensors *model, decant_matrix matrix);

#endif
