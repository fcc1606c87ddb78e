/* How one quantized layer leaves a container: as which tensors, by which bytes. A form of export is a value of
 * decant_export_form, one file each: export_dense.c, export_squeezellm.c. Knows one layer at a time, no files.
 */
#ifndef DECANT_STAGES_EXPORT_H
#define DECANT_STAGES_EXPORT_H

#include "io/safetensors_writer.h"
#include "kernels/backend.h"

#include <stdbool.h>

/* What a layer's attributes in the container tell. */
typedef struct decant_export_layer {
    char name[DECANT_CONTAINER_PATH_BYTES]; /* "model.layers.0.self_attn.q_proj" */
    int64_t rows, columns, sparse_count;
    int bits; /* of k-means codes; 0 on a grid */
} decant_export_layer;

typedef struct decant_export_form {
    const char *name;
    /* Adds the tensors that the layer becomes. DECANT_ERROR_INPUT naming the layer when the form cannot hold
     * it.
     *   element   of weights, where the form has a choice */
    decant_status (*list)(const decant_export_layer *layer, decant_element element, decant_tensor_list *list,
                          decant_error *err);
    /* Writes them. One of packed and grid is given, the other NULL; device arrays. */
    decant_status (*write)(decant_backend *backend, const decant_export_layer *layer,
                           const decant_packed_matrix *packed, const decant_grid_matrix *grid,
                           decant_element element, decant_safetensors_writer *writer, decant_error *err);
} decant_export_form;

/* NAME.weight of `element`, rounded to nearest from F32. DECANT_ERROR_INPUT when a weight is not finite, or
 * would not be. */
extern const decant_export_form decant_export_dense;

/* SqueezeLLM's packing, for k-means layers of 3 or 4 bits whose columns are a multiple of 32. */
extern const decant_export_form decant_export_squeezellm;

#endif
