/* Reading a layer that lies on a grid out of a container. The grids that layers refer to are read once each and
 * kept; a layer borrows its grid's points. Nothing that a file claims is believed: shapes, rotation and groups
 * are checked before a kernel computes with them. */
#ifndef DECANT_STAGES_GRID_SOURCE_H
#define DECANT_STAGES_GRID_SOURCE_H

#include "io/container.h"
#include "kernels/backend.h"

/* A grid that was read. */
typedef struct decant_kept_grid {
    char path[DECANT_CONTAINER_PATH_BYTES];
    int dimension, code_bits;
    float *points; /* [2^code_bits, dimension], owned */
} decant_kept_grid;

typedef struct decant_kept_grids {
    int64_t count;
    decant_kept_grid *grids; /* [count], owned */
} decant_kept_grids;

void decant_kept_grids_free(decant_kept_grids *kept);

/* Is layer `name` of a method whose rows lie on a grid? DECANT_ERROR_INPUT when its method is none that decant
 * knows. */
decant_status decant_grid_source_has(const decant_container *container, const char *name, bool *is_on_grid,
                                     decant_error *err);

/* Reads the layer, which must have this shape, to where the backend computes; without its codes where
 * skips_codes. `grid` is empty; on failure it is the caller's to free all the same. */
decant_status decant_grid_source_read(const decant_container *container, decant_backend *backend,
                                      decant_kept_grids *kept, const char *name, int64_t rows, int64_t columns,
                                      bool skips_codes, decant_grid_matrix *grid, decant_error *err);

/* DECANT_ERROR_INPUT unless the dataset GROUP/PART has this type and shape. Such a dataset lies whole within
 * the file: to be asked before memory is taken for what attributes claim. */
decant_status decant_source_require(const decant_container *container, const char *group, const char *part,
                                    decant_stored type, decant_shape shape, decant_error *err);

/* Reads the dataset GROUP/PART, which must have this type and shape, through host memory onto the device. */
decant_status decant_source_read_to_device(const decant_container *container, decant_backend *backend,
                                           const char *group, const char *part, decant_stored type,
                                           decant_shape shape, void *device, decant_error *err);

#endif
