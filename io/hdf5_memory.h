/* HDF5 over a file in memory: a virtual file driver whose writes cannot fail halfway. HDF5 1.10 neither
 * recovers from a failed write of metadata nor exits in peace after one. Only io/ includes this header. */
#ifndef DECANT_IO_HDF5_MEMORY_H
#define DECANT_IO_HDF5_MEMORY_H

#include "io/hdf5_support.h"
#include "io/sparse_memory.h"

typedef struct decant_hdf5_memory {
    decant_sparse_memory bytes;
    uint64_t size_bytes;  /* of the file, as HDF5 sees it */
    decant_status status; /* the first write that was lost for want of memory, and its record */
    decant_error err;
} decant_hdf5_memory;

/* Makes the access list put the file into *memory, which is all zero and outlives the file's identifier.
 *   driver   receives the driver, freed with H5FDunregister when the file is closed */
herr_t decant_hdf5_memory_use(hid_t access, decant_hdf5_memory *memory, hid_t *driver);

#endif
