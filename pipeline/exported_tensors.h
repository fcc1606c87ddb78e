/* What `export` finds in a container: the tensors of the model, whole ones and quantized layers, in the order
 * of their names. Knows nothing of what they are written as. */
#ifndef DECANT_PIPELINE_EXPORTED_TENSORS_H
#define DECANT_PIPELINE_EXPORTED_TENSORS_H

#include "io/container.h"
#include "stages/export.h"

/* A tensor of the model: a dataset of its own, or a quantized layer. */
typedef struct decant_exported_tensor {
    char name[DECANT_CONTAINER_PATH_BYTES]; /* of the dataset, or of the layer's group */
    bool is_layer;
    decant_stored type; /* of a dataset */
    decant_shape shape;
    decant_export_layer layer;
} decant_exported_tensor;

typedef struct decant_exported_tensors {
    decant_exported_tensor *tensors; /* [count], owned */
    int64_t count, room;
} decant_exported_tensors;

/* Local; reads attributes and names, no data. DECANT_ERROR_INPUT when the container lacks some, or a layer
 * claims an impossible shape. Freed with decant_exported_tensors_free, after a failure too. */
decant_status decant_exported_tensors_list(const decant_container *container, decant_exported_tensors *list,
                                           decant_error *err);
void decant_exported_tensors_free(decant_exported_tensors *list);

/* The type of most weights that were not quantized; where that is F32, F16, which holds levels exactly. Pure.
 */
decant_element decant_exported_tensors_element(const decant_exported_tensors *list);

#endif
