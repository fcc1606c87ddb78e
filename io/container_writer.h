/* What the files that write a container share: the writer, and its two phases, because HDF5 1.10 hangs when one
 * rank cannot write metadata that all ranks hold in common:
 *   structure  rank 0 alone makes datasets and attributes, in memory; their layout depends on the calls alone
 *   data       rank 0 has stored the structure; all ranks have the file open together through MPI-IO, and each
 *              writes its parts independently; nobody changes the structure on the disk
 * decant_container_begin leads from the first to the second, a define back again. Only io/ includes this. */
#ifndef DECANT_IO_CONTAINER_WRITER_H
#define DECANT_IO_CONTAINER_WRITER_H

#include "io/container.h"
#include "io/container_parts.h"
#include "io/container_structure.h"
#include "io/hdf5_support.h"
#include "io/partial_file.h"

/* A dataset as it was defined; its number is its place in the list. */
typedef struct decant_written_dataset {
    char path[DECANT_CONTAINER_PATH_BYTES];
    decant_stored type;
    decant_shape shape;
    int64_t elements;
    decant_stretch place; /* rank 0 */
} decant_written_dataset;

struct decant_container_writer {
    decant_ranks *ranks; /* borrowed */
    decant_partial_file file;
    decant_structure structure; /* rank 0 */
    hid_t data;                 /* the file as all ranks have it open in the data phase; else negative */
    hid_t target;               /* the dataset written last, and its number; negative when none is open */
    int target_id;
    decant_written_dataset *datasets;
    int64_t dataset_count, dataset_room;
    uint64_t data_end;      /* rank 0: where the last data end in the file */
    size_t lazy_bytes;      /* written by this rank since the disk was last told to begin */
    decant_part_list parts; /* that this rank wrote */
    decant_status failed;   /* this rank's first failed write, and its record */
    decant_error failure;
};

static inline bool decant_writer_is_first(const decant_container_writer *writer)
{
    return writer->ranks->rank == 0;
}

/* Collective. From the data phase to the structure phase, or nothing; all data so far are on the disk
 * afterwards. DECANT_ERROR_DISK, on every rank, when they are not. */
decant_status decant_writer_enter_structure(decant_container_writer *writer, decant_error *err);

/* Collective in the data phase, else nothing. Every rank closes the file; DECANT_ERROR_DISK when that fails.
 *   gives_up   something has failed before, and the file goes: it is not waited for long */
decant_status decant_writer_close_data(decant_container_writer *writer, bool gives_up, decant_error *err);

/* Rank 0, in the structure phase. Puts the structure into the file. DECANT_ERROR_DISK when it cannot be
 * written. */
decant_status decant_writer_store_structure(decant_container_writer *writer, decant_error *err);

/* Rank 0: where the datasets' data lie, freed with decant_memory_free, after a failure too. */
decant_status decant_writer_list_places(const decant_container_writer *writer, decant_stretch **places,
                                        int64_t *count, decant_error *err);

#endif
