/* The activations between blocks, for all micro-batches, out of the way: some on the device where it has room
 * for them, the others in host memory or in a scratch file. A boundary holds what enters a block; later the
 * gradient of that takes its place. Records are saved while the device goes on computing. */
#ifndef DECANT_STAGES_BOUNDARIES_H
#define DECANT_STAGES_BOUNDARIES_H

#include "kernels/backend.h"

typedef struct decant_boundaries decant_boundaries;

/* Room for `records` records of at most record_bytes; memory is taken record by record as they are saved.
 *   on_device  so many, the first, stay on the device
 *   scratch    folder for a file for the others, borrowed; NULL: host memory */
decant_status decant_boundaries_create(decant_backend *backend, int64_t records, size_t record_bytes,
                                       int64_t on_device, const char *scratch, decant_boundaries **boundaries,
                                       decant_error *err);
void decant_boundaries_destroy(decant_boundaries **boundaries); /* takes NULL, sets NULL */

/* Begins to save a matrix, behind all work issued before; its device array stays as it is until finish_saves.
 * At most DECANT_BOUNDARY_SAVES between two calls of finish_saves. */
enum { DECANT_BOUNDARY_SAVES = 2 };
decant_status decant_boundaries_begin_save(decant_boundaries *boundaries, int64_t record, decant_matrix matrix,
                                           decant_error *err);
/* Completes the saves begun so far. */
decant_status decant_boundaries_finish_saves(decant_boundaries *boundaries, decant_error *err);

/* Brings a record that was saved back to the device; it may be saved anew afterwards. */
decant_status decant_boundaries_load(decant_boundaries *boundaries, int64_t record, decant_matrix matrix,
                                     decant_error *err);

/* A record's bytes in host memory, out of what was saved, or in its place; all saves must be finished. */
decant_status decant_boundaries_fetch(decant_boundaries *boundaries, int64_t record, void *host,
                                      size_t size_bytes, decant_error *err);
decant_status decant_boundaries_put(decant_boundaries *boundaries, int64_t record, const void *host,
                                    size_t size_bytes, decant_error *err);

/* Gives up a record and the room that it takes. All work that loaded it must be done. */
void decant_boundaries_discard(decant_boundaries *boundaries, int64_t record);

#endif
