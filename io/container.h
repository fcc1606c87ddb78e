/* decant's HDF5 container: written by all ranks together, read by any rank alone. The schema is
 * docs/container.md; this file knows datasets, attributes and checksums, not what the job puts into them.
 *
 * Writing goes to "PATH.partial" and takes the final name only in decant_container_finish, after every byte of
 * every dataset was written, on every rank. File layout depends on the order of the define calls alone, so the
 * same contents give the same bytes on any number of ranks. Each dataset carries a CRC-32 of its bytes
 * (attribute "crc32").
 *
 * Reading trusts nothing: shapes and types are checked against what the caller expects. */
#ifndef DECANT_IO_CONTAINER_H
#define DECANT_IO_CONTAINER_H

#include "base/element.h"
#include "base/error.h"
#include "base/ranks.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { DECANT_CONTAINER_VERSION = 2, DECANT_CONTAINER_DIMENSIONS = 4, DECANT_CONTAINER_PATH_BYTES = 256 };

/* Element types of datasets. F16 is HDF5's 16-bit IEEE float (NumPy float16); BF16 is stored as U16 with the
 * attribute element = "BF16", because NumPy has no such type. */
typedef enum decant_stored {
    DECANT_STORED_U8,
    DECANT_STORED_U16,
    DECANT_STORED_U32,
    DECANT_STORED_I32,
    DECANT_STORED_I64,
    DECANT_STORED_F16,
    DECANT_STORED_BF16,
    DECANT_STORED_F32,
    DECANT_STORED_F64,
} decant_stored;

size_t decant_stored_bytes(decant_stored type);
decant_stored decant_stored_of_element(decant_element element);

typedef struct decant_shape {
    int dimensions; /* 0 … DECANT_CONTAINER_DIMENSIONS; 0 is one element */
    int64_t extent[DECANT_CONTAINER_DIMENSIONS];
} decant_shape;

/* Can a dataset have this path? It is absolute, of fewer than DECANT_CONTAINER_PATH_BYTES bytes, and has no
 * empty part and none that is ".". Pure. */
bool decant_container_is_path(const char *path);

/* ---- writing ---- */

typedef struct decant_container_writer decant_container_writer;

/* Collective. Creates PATH.partial (replacing an older one).
 *   overwrite   false: DECANT_ERROR_USAGE when PATH exists
 * DECANT_ERROR_DISK when it cannot be made. */
decant_status decant_container_create(decant_ranks *ranks, const char *path, bool overwrite,
                                      decant_container_writer **writer, decant_error *err);

/* Collective, with equal arguments. A dataset of the given absolute path; groups on the way are made. An extent
 * may be 0. id receives its number for write. Contiguous, uncompressed, space taken at once. */
decant_status decant_container_define(decant_container_writer *writer, const char *path, decant_stored type,
                                      const decant_shape *shape, int *id, decant_error *err);

/* Type and shape of the dataset of this number. */
void decant_container_defined(const decant_container_writer *writer, int id, decant_stored *type,
                              decant_shape *shape);

/* Collective, between the last define and the first write: all ranks open the file to put data into it. After
 * another define, begin comes again before the next write. Attributes can be set before and after. */
decant_status decant_container_begin(decant_container_writer *writer, decant_error *err);

/* Not collective, after begin: any rank writes any part of a dataset, once. Elements [first, first + count) in
 * row-major order; parts of one dataset by different ranks must not overlap. */
decant_status decant_container_write(decant_container_writer *writer, int id, int64_t first, int64_t count,
                                     const void *data, decant_error *err);

/* Collective, with equal arguments. An attribute of a dataset or group ("/" is the root) that exists. */
decant_status decant_container_set_text(decant_container_writer *writer, const char *path, const char *name,
                                        const char *text, decant_error *err);
decant_status decant_container_set_integer(decant_container_writer *writer, const char *path, const char *name,
                                           int64_t value, decant_error *err);
decant_status decant_container_set_real(decant_container_writer *writer, const char *path, const char *name,
                                        double value, decant_error *err);

/* Collective, after the last write. Everything that finish does but the final name: a whole container stands at
 * decant_container_partial_path, ready to be read and checked. Attributes may still be set afterwards; finish
 * puts them in. On failure the writer is still to be discarded. */
decant_status decant_container_settle(decant_container_writer *writer, decant_error *err);

/* Where the file is until it is finished; owned by the writer. */
const char *decant_container_partial_path(const decant_container_writer *writer);

/* Collective. Checks that every dataset was written whole, stores the checksums, flushes to disk, closes and,
 * when all ranks agree, renames to the final name. Frees the writer whatever happens; on failure nothing has
 * the final name and the partial file is removed. */
decant_status decant_container_finish(decant_container_writer **writer, decant_error *err);

/* Collective. Gives up: closes, removes the partial file, frees. Takes NULL. */
void decant_container_discard(decant_container_writer **writer);

/* ---- reading ---- */

typedef struct decant_container decant_container;

/* Local. Opens a finished container read-only. DECANT_ERROR_INPUT when it is missing, no HDF5 file, not
 * decant's, or of a newer schema version. */
decant_status decant_container_open(const char *path, decant_container **container, decant_error *err);
void decant_container_close(decant_container **container); /* takes NULL, sets NULL */

/* Where it was opened, for messages; owned by the container. */
const char *decant_container_path(const decant_container *container);

/* Also where it cannot be told, because the file cannot be read: who opens it then hears why. */
bool decant_container_has(const decant_container *container, const char *path);

/* Type and shape of a dataset; DECANT_ERROR_INPUT when there is none or its type is not one of decant_stored.
 */
decant_status decant_container_describe(const decant_container *container, const char *path,
                                        decant_stored *type, decant_shape *shape, decant_error *err);

/* Reads the whole dataset into data and compares its checksum. DECANT_ERROR_INPUT when the stored type or shape
 * is not the given one, or the data are not what was written: HDF5 gives zeros for bytes that a file has no
 * more. */
decant_status decant_container_read(const decant_container *container, const char *path, decant_stored type,
                                    const decant_shape *shape, void *data, decant_error *err);

/* The same for elements [first, first + count) in row-major order of a dataset that has at least that many,
 * without the checksum: who reads in parts compares it with decant_container_compare_checksum. */
decant_status decant_container_read_part(const decant_container *container, const char *path,
                                         decant_stored type, int64_t first, int64_t count, void *data,
                                         decant_error *err);

/* Attributes. Text is cut at size bytes, NUL included. DECANT_ERROR_INPUT when missing or of another kind. */
decant_status decant_container_get_text(const decant_container *container, const char *path, const char *name,
                                        char *text, size_t size, decant_error *err);
decant_status decant_container_get_integer(const decant_container *container, const char *path,
                                           const char *name, int64_t *value, decant_error *err);
decant_status decant_container_get_real(const decant_container *container, const char *path, const char *name,
                                        double *value, decant_error *err);

/* DECANT_ERROR_INPUT when `checksum` is not the one that the dataset was written with. */
decant_status decant_container_compare_checksum(const decant_container *container, const char *path,
                                                uint32_t checksum, decant_error *err);

/* Calls visit for every dataset in path order; stops at the first status that is not DECANT_OK and returns it.
 */
typedef decant_status (*decant_container_visit)(void *context, const char *path, decant_stored type,
                                                const decant_shape *shape, decant_error *err);
decant_status decant_container_each(const decant_container *container, decant_container_visit visit,
                                    void *context, decant_error *err);

/* Reads every dataset and compares its checksum. DECANT_ERROR_INPUT naming the first dataset that differs or
 * has none; datasets and bytes checked are counted (pointers may be NULL). */
decant_status decant_container_verify(const decant_container *container, int64_t *datasets, int64_t *bytes,
                                      decant_error *err);

/* The same for every `shares`-th dataset from number `share` on, so that ranks do it together. */
decant_status decant_container_verify_share(const decant_container *container, int share, int shares,
                                            decant_error *err);

#endif
