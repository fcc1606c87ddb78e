/* The virtual file driver that hdf5_memory.h declares. A write for which there is no memory is noted and
 * reported as done; whoever closes the file looks at the note. */
#include "io/hdf5_memory.h"

#include <H5FDpublic.h>
#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif
#include <stdlib.h>
#include <string.h>

/* What HDF5 carries about for us: which memory a file is in. */
typedef struct driver_info {
    decant_hdf5_memory *memory;
} driver_info;

typedef struct open_file {
    H5FD_t public; /* first: HDF5's own part */
    decant_hdf5_memory *memory;
    haddr_t end; /* of allocated space */
} open_file;

static H5FD_t *open_memory(const char *name, unsigned flags, hid_t access, haddr_t largest)
{
    (void)name;
    (void)flags;
    (void)largest;
    const driver_info *info = H5Pget_driver_info(access);
    open_file *file = info ? calloc(1, sizeof *file) : NULL;
    if (!file)
        return NULL;
    file->memory = info->memory;
    return &file->public;
}

static herr_t close_memory(H5FD_t *file)
{
    free(file);
    return 0;
}

static herr_t query_memory(const H5FD_t *file, unsigned long *flags)
{
    (void)file;
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_AGGREGATE_SMALLDATA;
    return 0;
}

static haddr_t get_end(const H5FD_t *file, H5FD_mem_t type)
{
    (void)type;
    return ((const open_file *)file)->end;
}

static herr_t set_end(H5FD_t *file, H5FD_mem_t type, haddr_t end)
{
    (void)type;
    ((open_file *)file)->end = end;
    ((open_file *)file)->memory->size_bytes = end;
    return 0;
}

static haddr_t get_size(const H5FD_t *file, H5FD_mem_t type)
{
    (void)type;
    return ((const open_file *)file)->memory->size_bytes;
}

static herr_t read_memory(H5FD_t *file, H5FD_mem_t type, hid_t transfer, haddr_t offset, size_t size_bytes,
                          void *buffer)
{
    (void)type;
    (void)transfer;
    decant_sparse_memory_read(&((open_file *)file)->memory->bytes, offset, buffer, size_bytes);
    return 0;
}

static herr_t write_memory(H5FD_t *file, H5FD_mem_t type, hid_t transfer, haddr_t offset, size_t size_bytes,
                           const void *buffer)
{
    (void)type;
    (void)transfer;
    decant_hdf5_memory *memory = ((open_file *)file)->memory;
    if (memory->status == DECANT_OK)
        memory->status = decant_sparse_memory_write(&memory->bytes, offset, buffer, size_bytes, &memory->err);
    return 0;
}

herr_t decant_hdf5_memory_use(hid_t access, decant_hdf5_memory *memory, hid_t *driver)
{
    static const H5FD_class_t class = {
#if H5_VERSION_GE(1, 13, 0)
        .version = H5FD_CLASS_VERSION,
        .value = (H5FD_class_value_t)509, /* of those that HDF5 leaves to applications */
#endif
        .name = "decant_memory",
        .maxaddr = (haddr_t)INT64_MAX,
        .fc_degree = H5F_CLOSE_WEAK,
        .fapl_size = sizeof(driver_info),
        .open = open_memory,
        .close = close_memory,
        .query = query_memory,
        .get_eoa = get_end,
        .set_eoa = set_end,
        .get_eof = get_size,
        .read = read_memory,
        .write = write_memory,
        .fl_map = H5FD_FLMAP_DICHOTOMY,
    };
    driver_info info = {memory};
    *driver = H5FDregister(&class);
    return *driver < 0 ? -1 : H5Pset_driver(access, *driver, &info);
}
