/* See decode_products.h. */
#include "stages/decode_products.h"

#include "base/memory.h"

#include <string.h>

/* Numbers that are neither zero nor alike, which some devices multiply faster than others. */
static void fill(decant_element element, void *values, int64_t count)
{
    uint32_t state = 1;
    for (int64_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u; /* Numerical Recipes, section 7.1 */
        float value = (float)(state >> 8) / 8388608.0f - 1.0f;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (element == DECANT_F32)
            ((float *)values)[i] = value;
        else /* the upper half of an F32 is a BF16 */
            ((uint16_t *)values)[i] = (uint16_t)(bits >> 16);
    }
}

/* How many linear layers from the first on take the same x. */
static int count_alike(const decant_linear *linears, int count)
{
    int alike = 1;
    while (alike < count && linears[alike].shares_x)
        alike++;
    return alike;
}

/* Raises *columns to those of the x, and *rows to those of the ys, that a block's linear layers need. */
static void widen(const decant_linear *linears, int count, int64_t *columns, int64_t *rows)
{
    int64_t together = 0; /* rows of the layers with this x so far */
    for (int i = 0; i < count; i++) {
        together = linears[i].rows + (linears[i].shares_x ? together : 0);
        if (together > *rows)
            *rows = together;
        if (linears[i].columns > *columns)
            *columns = linears[i].columns;
    }
}

decant_status decant_decode_products_create(const decant_model_part *part, int64_t tokens,
                                            decant_decode_products *products, decant_error *err)
{
    decant_backend *backend = part->backend;
    const char *what = "the products of a decode step";
    const size_t element_bytes = decant_element_bytes(backend->activation);
    int64_t columns = 1, rows = 1;
    void *host = NULL;
    decant_status status;
    *products = (decant_decode_products){.backend = backend};
    for (int block = 0; block < part->layer_count; block++)
        widen(part->blocks[block].linears, part->family->linear_count, &columns, &rows);
    const size_t x_bytes = (size_t)(tokens * columns) * element_bytes,
                 y_bytes = (size_t)(tokens * rows) * element_bytes;
    DECANT_TRY(backend->memory->allocate(backend, x_bytes, what, &products->x, err));
    DECANT_TRY(backend->memory->allocate(backend, y_bytes, what, &products->y, err));
    DECANT_TRY(decant_memory_allocate(x_bytes, what, &host, err));
    fill(backend->activation, host, tokens * columns);
    DECANT_TRY(backend->memory->upload(backend, products->x, host, x_bytes, err));
    DECANT_TRY(backend->memory->synchronize(backend, err));
done:
    decant_memory_free(host);
    return status;
}

void decant_decode_products_destroy(decant_decode_products *products)
{
    if (!products->backend)
        return;
    products->backend->recordings->drop(products->backend, &products->recording);
    products->backend->memory->release(products->backend, &products->x);
    products->backend->memory->release(products->backend, &products->y);
}

/* The products of `count` linear layers with the same x. */
static decant_status multiply(const decant_decode_products *products, const decant_linear *linears, int count,
                              decant_error *err)
{
    decant_backend *backend = products->backend;
    const decant_packed_input input = {
        .x = {products->x, backend->activation, products->tokens, linears->columns}};
    decant_matrix ys[DECANT_BLOCK_LINEARS];
    char *place = products->y;
    for (int i = 0; i < count; i++) {
        ys[i] = (decant_matrix){place, backend->activation, products->tokens, linears[i].rows};
        place += decant_matrix_bytes(ys[i]);
    }
    return decant_linears_forward(backend, linears, count, &input, false, ys, err);
}

/* One pass of the recorded products. */
static decant_status issue(void *context, decant_error *err)
{
    const decant_decode_products *products = context;
    const decant_model_part *part = products->part;
    const int linear_count = part->family->linear_count;
    decant_status status = DECANT_OK;
    for (int block = 0; block < part->layer_count; block++)
        for (int first = 0, count; first < linear_count; first += count) {
            const decant_linear *linears = &part->blocks[block].linears[first];
            count = count_alike(linears, linear_count - first);
            DECANT_TRY(multiply(products, linears, count, err));
        }
done:
    return status;
}

decant_status decant_decode_products_record(decant_decode_products *products, const decant_model_part *part,
                                            int64_t tokens, decant_error *err)
{
    decant_backend *backend = products->backend;
    backend->recordings->drop(backend, &products->recording);
    products->part = part;
    products->tokens = tokens;
    return backend->recordings->record(backend, (decant_work){.issue = issue, .context = products},
                                       &products->recording, err);
}

decant_status decant_decode_products_run(const decant_decode_products *products, decant_error *err)
{
    return products->backend->recordings->replay(products->backend, products->recording, err);
}
