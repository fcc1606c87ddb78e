/* The end of writing a container, declared in container.h: the checksums of whole datasets from the parts that
 * all ranks wrote, which must cover every dataset exactly once; the structure stored with them; the seal; and,
 * once it has been read back, the final name. */
#include "io/container_writer.h"

#include "base/memory.h"

/* Collective. The checksums of all datasets, the same on every rank. */
static decant_status find_checksums(decant_container_writer *writer, uint32_t **checksums, decant_error *err)
{
    decant_status status = DECANT_OK;
    void *all = NULL, *memory = NULL;
    size_t all_bytes = 0;
    DECANT_TRY(decant_ranks_gather(writer->ranks, writer->parts.parts,
                                   (size_t)writer->parts.count * sizeof(decant_part), &all, &all_bytes, err));
    status =
        decant_memory_allocate((size_t)writer->dataset_count * sizeof **checksums, "checksums", &memory, err);
    *checksums = memory;
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
    int64_t count = (int64_t)(all_bytes / sizeof(decant_part)), next = 0;
    decant_parts_sort(all, count);
    for (int64_t number = 0; number < writer->dataset_count; number++) {
        const decant_written_dataset *whole = &writer->datasets[number];
        DECANT_TRY(decant_parts_combine(all, count, number, whole->elements, decant_stored_bytes(whole->type),
                                        whole->path, &next, &(*checksums)[number], err));
    }
done:
    decant_memory_free(all);
    return status;
}

/* Rank 0. */
static decant_status seal(decant_container_writer *writer, decant_error *err)
{
    decant_stretch *places;
    int64_t count;
    decant_status status = decant_writer_list_places(writer, &places, &count, err);
    if (status == DECANT_OK)
        status = decant_container_seal(writer->file.partial, places, count, err);
    decant_memory_free(places);
    return status;
}

static decant_status count_dataset(void *context, const char *path, decant_stored type,
                                   const decant_shape *shape, decant_error *err)
{
    (void)path;
    (void)type;
    (void)shape;
    (void)err;
    ++*(int64_t *)context;
    return DECANT_OK;
}

/* Rank 0: the file opens, and has all datasets where they belong. */
static decant_status read_back(decant_container_writer *writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    decant_container *container = NULL;
    int64_t found = 0;
    DECANT_TRY(decant_container_open(writer->file.partial, &container, err));
    DECANT_TRY(decant_container_each(container, count_dataset, &found, err));
    if (found != writer->dataset_count)
        DECANT_FAIL(err, DECANT_ERROR_DISK, "%s: has %lld datasets, not the %lld that were written",
                    writer->file.partial, (long long)found, (long long)writer->dataset_count);
done:
    decant_container_close(&container);
    return status;
}

/* Rank 0, when all data are on the disk: everything but the final name. */
static decant_status complete(decant_container_writer *writer, const uint32_t *checksums, decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int64_t i = 0; i < writer->dataset_count; i++)
        DECANT_TRY(
            decant_structure_set_checksum(&writer->structure, writer->datasets[i].path, checksums[i], err));
    DECANT_TRY(decant_writer_store_structure(writer, err));
    DECANT_TRY(seal(writer, err));
    DECANT_TRY(read_back(writer, err));
done:
    return status;
}

decant_status decant_container_settle(decant_container_writer *writer, decant_error *err)
{
    decant_status status = writer->failed;
    uint32_t *checksums = NULL;
    if (status != DECANT_OK)
        *err = writer->failure;
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
    DECANT_TRY(decant_writer_enter_structure(writer, err));
    DECANT_TRY(find_checksums(writer, &checksums, err));
    if (decant_writer_is_first(writer))
        status = complete(writer, checksums, err);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
done:
    decant_memory_free(checksums);
    return status;
}

decant_status decant_container_finish(decant_container_writer **writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    DECANT_TRY(decant_container_settle(*writer, err));
    if (decant_writer_is_first(*writer))
        status = decant_partial_file_publish(&(*writer)->file, err);
    DECANT_TRY(decant_ranks_agree((*writer)->ranks, status, err));
done:
    decant_container_discard(writer);
    return status;
}
