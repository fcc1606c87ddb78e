/* All datasets of a container in the order of their paths, declared in container.h. */
#include "io/container_reader.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The paths of all datasets while they are collected. */
typedef struct path_list {
    char (*paths)[DECANT_CONTAINER_PATH_BYTES];
    int64_t count, room;
    decant_status status;
    decant_error *err;
} path_list;

static decant_status add_path(path_list *list, const char *name)
{
    if (strlen(name) + 2 > DECANT_CONTAINER_PATH_BYTES)
        return DECANT_ERROR(list->err, DECANT_ERROR_INPUT, "%.200s…: the path is too long", name);
    decant_status status = decant_memory_grow(sizeof *list->paths, list->count, &list->room,
                                              "paths of datasets", (void **)&list->paths, list->err);
    if (status == DECANT_OK)
        snprintf(list->paths[list->count++], sizeof *list->paths, "/%s", name);
    return status;
}

static herr_t visit_object(hid_t object, const char *name, const H5O_info_t *about, void *context)
{
    (void)object;
    path_list *list = context;
    if (about->type != H5O_TYPE_DATASET)
        return 0;
    list->status = add_path(list, name);
    return list->status == DECANT_OK ? 0 : -1;
}

static int compare_paths(const void *left, const void *right)
{
    return strcmp(left, right);
}

decant_status decant_container_each(const decant_container *container, decant_container_visit visit,
                                    void *context, decant_error *err)
{
    decant_status status = DECANT_OK;
    path_list list = {.status = DECANT_OK, .err = err};
    herr_t visited =
        H5Ovisit2(container->file, H5_INDEX_NAME, H5_ITER_INC, visit_object, &list, H5O_INFO_BASIC);
    DECANT_TRY(list.status);
    if (visited < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_INPUT, "%s: its datasets cannot be listed", container->path);
    if (list.count)
        qsort(list.paths, (size_t)list.count, sizeof *list.paths, compare_paths);
    for (int64_t i = 0; i < list.count; i++) {
        decant_stored type;
        decant_shape shape;
        DECANT_TRY(decant_container_describe(container, list.paths[i], &type, &shape, err));
        DECANT_TRY(visit(context, list.paths[i], type, &shape, err));
    }
done:
    decant_memory_free(list.paths);
    return status;
}
