/* From the structure phase of writing a container to the data phase and back; container_writer.h says what
 * these are. */
#include "io/container_writer.h"

#include "base/memory.h"
#include "io/patience.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What ranks do together takes milliseconds, or seconds where many do it. Once something has failed there is
 * nothing to wait for. */
static const double OPENING_S = 40, GIVING_UP_S = 20;

/* HDF5 and Open MPI wait for ever for a rank that failed in there. The rank that knows of a failure is the
 * first to lose its patience, then rank 0, so that one line tells it. */
static void begin_together(const decant_container_writer *writer, double seconds, const char *call,
                           decant_patience *patience)
{
    bool has_reason = writer->failed != DECANT_OK;
    double share = has_reason ? 1 : writer->ranks->rank == 0 ? 1.5 : 2;
    decant_patience_begin(patience, share * seconds, writer->ranks->rank, writer->file.partial, call,
                          has_reason ? writer->failure.message : NULL);
}

/* Closing may take as long as the file system needs for the data of all ranks. */
static double closing_s(const decant_container_writer *writer)
{
    struct stat about;
    return decant_patience_for_bytes(fstat(writer->file.descriptor, &about) == 0 ? about.st_size : 0);
}

decant_status decant_writer_close_data(decant_container_writer *writer, bool gives_up, decant_error *err)
{
    decant_status status = DECANT_OK;
    if (writer->target >= 0 && H5Dclose(writer->target) < 0)
        status = decant_hdf5_fail(err, DECANT_ERROR_DISK, __FILE__, __LINE__, "%s: cannot be closed",
                                  writer->file.partial);
    writer->target = H5I_INVALID_HID;
    hid_t data = writer->data;
    writer->data = H5I_INVALID_HID;
    if (data < 0)
        return status;
    decant_patience patience;
    begin_together(writer, gives_up ? GIVING_UP_S : closing_s(writer), "closing it", &patience);
    if (H5Fclose(data) < 0 && status == DECANT_OK)
        status = decant_hdf5_fail(err, DECANT_ERROR_DISK, __FILE__, __LINE__, "%s: cannot be closed",
                                  writer->file.partial);
    decant_patience_end(&patience);
    return status;
}

decant_status decant_writer_enter_structure(decant_container_writer *writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    if (writer->data < 0)
        return DECANT_OK;
    status = decant_writer_close_data(writer, false, err);
    if (status == DECANT_OK)
        status = decant_partial_file_flush(&writer->file, err);
    return decant_ranks_agree(writer->ranks, status, err);
}

/* Local: what can keep this rank from opening the file is met here, before all ranks open it together. */
static decant_status prepare_to_open(decant_container_writer *writer, hid_t *access_list, decant_error *err)
{
    *access_list = H5Pcreate(H5P_FILE_ACCESS);
    if (*access_list < 0 || H5Pset_libver_bounds(*access_list, H5F_LIBVER_V18, H5F_LIBVER_V110) < 0 ||
        H5Pset_fapl_mpio(*access_list, writer->ranks->communicator, MPI_INFO_NULL) < 0)
        return decant_hdf5_fail(err, DECANT_ERROR_DISK, __FILE__, __LINE__, "%s: cannot be opened",
                                writer->file.partial);
    int descriptor = open(writer->file.partial, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (descriptor < 0)
        return DECANT_SYSTEM_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be opened", writer->file.partial);
    close(descriptor);
    return DECANT_OK;
}

/* Collective. All ranks open the file through MPI-IO. */
static decant_status open_together(decant_container_writer *writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    decant_patience patience;
    hid_t access_list;
    DECANT_TRY(decant_ranks_agree(writer->ranks, prepare_to_open(writer, &access_list, err), err));
    begin_together(writer, OPENING_S, "opening it", &patience);
    writer->data = H5Fopen(writer->file.partial, H5F_ACC_RDWR, access_list);
    if (writer->data < 0)
        status = decant_hdf5_fail(err, DECANT_ERROR_DISK, __FILE__, __LINE__, "%s: cannot be opened",
                                  writer->file.partial);
    status = decant_ranks_agree(writer->ranks, status, err);
    decant_patience_end(&patience);
    if (status != DECANT_OK && writer->data >= 0) {
        /* Open here and not everywhere: closing would wait for the other ranks for ever. */
        unlink(writer->file.partial);
        decant_ranks_abort(writer->ranks, err);
    }
done:
    if (access_list >= 0)
        H5Pclose(access_list);
    return status;
}

decant_status decant_writer_list_places(const decant_container_writer *writer, decant_stretch **places,
                                        int64_t *count, decant_error *err)
{
    void *memory;
    decant_status status = decant_memory_allocate((size_t)writer->dataset_count * sizeof **places,
                                                  "the container's structure", &memory, err);
    *places = memory;
    *count = 0;
    for (int64_t i = 0; status == DECANT_OK && i < writer->dataset_count; i++)
        if (writer->datasets[i].elements > 0)
            (*places)[(*count)++] = writer->datasets[i].place;
    return status;
}

decant_status decant_writer_store_structure(decant_container_writer *writer, decant_error *err)
{
    decant_stretch *places;
    int64_t count;
    decant_status status = decant_writer_list_places(writer, &places, &count, err);
    if (status == DECANT_OK)
        status = decant_structure_store(&writer->structure, writer->file.descriptor, writer->file.partial,
                                        places, count, err);
    decant_memory_free(places);
    return status;
}

decant_status decant_container_begin(decant_container_writer *writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    if (writer->data >= 0)
        return DECANT_OK;
    if (decant_writer_is_first(writer))
        status = decant_writer_store_structure(writer, err);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
    DECANT_TRY(open_together(writer, err));
done:
    return status;
}
