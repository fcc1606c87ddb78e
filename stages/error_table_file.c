/* See error_table_file.h. All layers have the same candidates, which are described once; what they cost is
 * stored for each layer and candidate. */
#include "stages/error_table_file.h"

#include "base/memory.h"
#include "kernels/grid_form.h"

#include <stdio.h>
#include <string.h>

enum { METHOD_NAME_BYTES = 16 }; /* of one method, newline included */

/* The table column by column, as it is stored. */
typedef struct columns {
    int64_t layers, candidates;
    char *methods;                  /* a name a line */
    int64_t method_bytes;           /* of all names */
    int32_t *code_bits, *dimension; /* [candidates] */
    int64_t *group;                 /* [candidates] */
    double *sparse;                 /* [candidates] */
    int64_t *bytes;                 /* [layers, candidates] */
    double *predicted, *relative;   /* the same */
} columns;

static void free_columns(columns *c)
{
    decant_memory_free(c->methods);
    decant_memory_free(c->code_bits);
    decant_memory_free(c->dimension);
    decant_memory_free(c->group);
    decant_memory_free(c->sparse);
    decant_memory_free(c->bytes);
    decant_memory_free(c->predicted);
    decant_memory_free(c->relative);
}

static decant_status create_columns(int64_t layers, int64_t candidates, int64_t method_bytes, columns *c,
                                    decant_error *err)
{
    const char *what = "the error table";
    size_t wide = (size_t)candidates, all = (size_t)(layers * candidates);
    decant_status status;
    *c = (columns){.layers = layers, .candidates = candidates, .method_bytes = method_bytes};
    DECANT_TRY(decant_memory_allocate((size_t)method_bytes + 1, what, (void **)&c->methods, err));
    DECANT_TRY(decant_memory_allocate(wide * sizeof *c->code_bits, what, (void **)&c->code_bits, err));
    DECANT_TRY(decant_memory_allocate(wide * sizeof *c->dimension, what, (void **)&c->dimension, err));
    DECANT_TRY(decant_memory_allocate(wide * sizeof *c->group, what, (void **)&c->group, err));
    DECANT_TRY(decant_memory_allocate(wide * sizeof *c->sparse, what, (void **)&c->sparse, err));
    DECANT_TRY(decant_memory_allocate(all * sizeof *c->bytes, what, (void **)&c->bytes, err));
    DECANT_TRY(decant_memory_allocate(all * sizeof *c->predicted, what, (void **)&c->predicted, err));
    DECANT_TRY(decant_memory_allocate(all * sizeof *c->relative, what, (void **)&c->relative, err));
done:
    return status;
}

/* ---- writing ---- */

/* The methods' names, a line a candidate; returns their bytes. */
static int64_t list_methods(const decant_error_table *table, char names[DECANT_CANDIDATES * METHOD_NAME_BYTES])
{
    int64_t used = 0;
    for (int i = 0; i < table->rows[0].candidates; i++)
        used += snprintf(names + used, METHOD_NAME_BYTES, "%s\n",
                         decant_method_name((decant_method)table->rows[0].candidate[i].method));
    return used;
}

decant_status decant_error_table_define(decant_container_writer *writer, const decant_error_table *table,
                                        decant_error_table_datasets *datasets, decant_error *err)
{
    char names[DECANT_CANDIDATES * METHOD_NAME_BYTES];
    int64_t candidates = table->rows[0].candidates;
    decant_shape text = {1, {list_methods(table, names)}}, wide = {1, {candidates}},
                 all = {2, {table->layers, candidates}};
    const struct {
        const char *path;
        decant_stored type;
        const decant_shape *shape;
        int *id;
    } list[] = {
        {"/errors/methods", DECANT_STORED_U8, &text, &datasets->methods},
        {"/errors/code_bits", DECANT_STORED_I32, &wide, &datasets->code_bits},
        {"/errors/dimension", DECANT_STORED_I32, &wide, &datasets->dimension},
        {"/errors/group", DECANT_STORED_I64, &wide, &datasets->group},
        {"/errors/sparse", DECANT_STORED_F64, &wide, &datasets->sparse},
        {"/errors/stored_bytes", DECANT_STORED_I64, &all, &datasets->bytes},
        {"/errors/predicted", DECANT_STORED_F64, &all, &datasets->predicted},
        {"/errors/relative", DECANT_STORED_F64, &all, &datasets->relative},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        decant_status status =
            decant_container_define(writer, list[i].path, list[i].type, list[i].shape, list[i].id, err);
        if (status != DECANT_OK)
            return status;
    }
    return DECANT_OK;
}

static void fill_columns(const decant_error_table *table, columns *c)
{
    for (int64_t i = 0; i < c->layers * c->candidates; i++) {
        const decant_candidate *candidate = &table->rows[i / c->candidates].candidate[i % c->candidates];
        c->code_bits[i % c->candidates] = candidate->code_bits;
        c->dimension[i % c->candidates] = candidate->dimension;
        c->group[i % c->candidates] = candidate->group;
        c->sparse[i % c->candidates] = candidate->sparse;
        c->bytes[i] = candidate->bytes;
        c->predicted[i] = candidate->predicted;
        c->relative[i] = candidate->relative;
    }
}

decant_status decant_error_table_write(decant_container_writer *writer, const decant_error_table *table,
                                       const decant_error_table_datasets *datasets, decant_error *err)
{
    char names[DECANT_CANDIDATES * METHOD_NAME_BYTES];
    int64_t wide = table->rows[0].candidates, all = table->layers * wide, bytes = list_methods(table, names);
    columns c = {0};
    decant_status status;
    DECANT_TRY(create_columns(table->layers, wide, bytes, &c, err));
    fill_columns(table, &c);
    DECANT_TRY(decant_container_write(writer, datasets->methods, 0, bytes, names, err));
    DECANT_TRY(decant_container_write(writer, datasets->code_bits, 0, wide, c.code_bits, err));
    DECANT_TRY(decant_container_write(writer, datasets->dimension, 0, wide, c.dimension, err));
    DECANT_TRY(decant_container_write(writer, datasets->group, 0, wide, c.group, err));
    DECANT_TRY(decant_container_write(writer, datasets->sparse, 0, wide, c.sparse, err));
    DECANT_TRY(decant_container_write(writer, datasets->bytes, 0, all, c.bytes, err));
    DECANT_TRY(decant_container_write(writer, datasets->predicted, 0, all, c.predicted, err));
    DECANT_TRY(decant_container_write(writer, datasets->relative, 0, all, c.relative, err));
done:
    free_columns(&c);
    return status;
}

/* ---- reading ---- */

static const char method_dataset[] = "/errors/methods", sparse_dataset[] = "/errors/sparse";

/* How many layers, candidates and bytes of methods' names the datasets have. */
static decant_status read_shapes(const decant_container *container, int64_t *layers, int64_t *candidates,
                                 int64_t *method_bytes, decant_error *err)
{
    decant_stored type;
    decant_shape table, names = {1, {0}};
    decant_status status;
    DECANT_TRY(decant_container_describe(container, "/errors/predicted", &type, &table, err));
    if (decant_container_has(container, method_dataset))
        DECANT_TRY(decant_container_describe(container, method_dataset, &type, &names, err));
    if (table.dimensions != 2 || table.extent[0] < 1 || table.extent[1] < 1 ||
        table.extent[1] > DECANT_CANDIDATES || names.dimensions != 1 ||
        names.extent[0] > DECANT_CANDIDATES * METHOD_NAME_BYTES)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: has an error table of an impossible shape",
                    decant_container_path(container));
    *layers = table.extent[0];
    *candidates = table.extent[1];
    *method_bytes = names.extent[0];
done:
    return status;
}

/* What the candidates are. Version 1 had k-means alone and called its code bits "bits"; fractions of sparse
 * weights came later, to tell guided candidates apart. */
static decant_status read_descriptions(const decant_container *container, columns *c, decant_error *err)
{
    decant_shape wide = {1, {c->candidates}}, text = {1, {c->method_bytes}};
    decant_status status;
    if (!decant_container_has(container, method_dataset)) {
        DECANT_TRY(
            decant_container_read(container, "/errors/bits", DECANT_STORED_I32, &wide, c->code_bits, err));
        for (int64_t i = 0; i < c->candidates; i++)
            c->dimension[i] = 1;
        goto done;
    }
    DECANT_TRY(decant_container_read(container, method_dataset, DECANT_STORED_U8, &text, c->methods, err));
    DECANT_TRY(
        decant_container_read(container, "/errors/code_bits", DECANT_STORED_I32, &wide, c->code_bits, err));
    DECANT_TRY(
        decant_container_read(container, "/errors/dimension", DECANT_STORED_I32, &wide, c->dimension, err));
    DECANT_TRY(decant_container_read(container, "/errors/group", DECANT_STORED_I64, &wide, c->group, err));
    if (decant_container_has(container, sparse_dataset))
        DECANT_TRY(decant_container_read(container, sparse_dataset, DECANT_STORED_F64, &wide, c->sparse, err));
done:
    return status;
}

/* The method in the next line of the names; k-means when there are none. Moves on. */
static bool next_method(char **names, decant_method *method)
{
    if (!*names)
        return decant_method_find("kmeans", method);
    char *end = strchr(*names, '\n');
    if (!end)
        return false;
    *end = '\0';
    bool found = decant_method_find(*names, method);
    *names = end + 1;
    return found;
}

static decant_status take_candidates(const decant_container *container, const columns *c, decant_table_row *row,
                                     decant_error *err)
{
    char *names = c->method_bytes > 0 ? c->methods : NULL;
    row->candidates = (int32_t)c->candidates;
    for (int64_t i = 0; i < c->candidates; i++) {
        decant_method method;
        if (!next_method(&names, &method) || c->code_bits[i] < DECANT_GRID_BITS_MINIMUM ||
            c->code_bits[i] > DECANT_GRID_BITS_MAXIMUM || c->dimension[i] < 1 ||
            c->dimension[i] > DECANT_GRID_DIMENSION_MAXIMUM || c->group[i] < 0 ||
            !(c->sparse[i] >= 0 && c->sparse[i] <= 1))
            return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                                "%s: candidate %lld of its error table is none that decant knows",
                                decant_container_path(container), (long long)i);
        row->candidate[i] = (decant_candidate){.method = method,
                                               .code_bits = c->code_bits[i],
                                               .dimension = c->dimension[i],
                                               .group = c->group[i],
                                               .sparse = c->sparse[i]};
    }
    return DECANT_OK;
}

decant_status decant_error_table_read(const decant_container *container, decant_error_table *table,
                                      decant_error *err)
{
    int64_t layers = 0, candidates = 0, method_bytes = 0;
    columns c = {0};
    decant_status status;
    *table = (decant_error_table){0};
    DECANT_TRY(read_shapes(container, &layers, &candidates, &method_bytes, err));
    decant_shape all = {2, {layers, candidates}};
    DECANT_TRY(create_columns(layers, candidates, method_bytes, &c, err));
    DECANT_TRY(read_descriptions(container, &c, err));
    DECANT_TRY(decant_container_read(container, "/errors/stored_bytes", DECANT_STORED_I64, &all, c.bytes, err));
    DECANT_TRY(
        decant_container_read(container, "/errors/predicted", DECANT_STORED_F64, &all, c.predicted, err));
    DECANT_TRY(decant_container_read(container, "/errors/relative", DECANT_STORED_F64, &all, c.relative, err));
    DECANT_TRY(decant_memory_allocate((size_t)layers * sizeof *table->rows, "the error table",
                                      (void **)&table->rows, err));
    table->layers = layers;
    DECANT_TRY(take_candidates(container, &c, &table->rows[0], err));
    for (int64_t i = 0; i < layers; i++) {
        if (i > 0)
            table->rows[i] = table->rows[0];
        for (int64_t j = 0; j < candidates; j++) {
            decant_candidate *candidate = &table->rows[i].candidate[j];
            candidate->bytes = c.bytes[i * candidates + j];
            if (candidate->bytes < 1 || candidate->bytes > INT64_MAX / layers) /* so that sums are countable */
                DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: candidate %lld of layer %lld takes %lld bytes",
                            decant_container_path(container), (long long)j, (long long)i,
                            (long long)candidate->bytes);
            candidate->predicted = c.predicted[i * candidates + j];
            candidate->relative = c.relative[i * candidates + j];
        }
    }
done:
    if (status != DECANT_OK)
        decant_error_table_free(table);
    free_columns(&c);
    return status;
}
