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

decant_status decant_decode_products_create(const decant_model_part *part, int64_t tokens,
                                            decant_decode_products *products, decant_error *err)
{
    decant_backend *backend = part->backend;
    const char *what = "the products of a decode step";
    int64_t widest = 1;
    void *host = NULL;
    decant_status status;
    *products = (decant_decode_products){.backend = backend};
    for (int i = 0; i < part->layer_count * part->family->linear_count; i++) {
        const decant_linear *linear =
            &part->blocks[i / part->family->linear_count].linears[i % part->family->linear_count];
        if (linear->rows > widest)
            widest = linear->rows;
        if (linear->columns > widest)
            widest = linear->columns;
    }
    size_t size_bytes = (size_t)(tokens * widest) * decant_element_bytes(backend->activation);
    DECANT_TRY(backend->memory->allocate(backend, size_bytes, what, &products->x, err));
    DECANT_TRY(backend->memory->allocate(backend, size_bytes, what, &products->y, err));
    DECANT_TRY(decant_memory_allocate(size_bytes, what, &host, err));
    fill(backend->activation, host, tokens * widest);
    DECANT_TRY(backend->memory->upload(backend, products->x, host, size_bytes, err));
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

/* One pass of the recorded products. */
static decant_status issue(void *context, decant_error *err)
{
    const decant_decode_products *products = context;
    const decant_model_part *part = products->part;
    decant_backend *backend = products->backend;
    decant_matrix x = {.data = products->x, .element = backend->activation, .rows = products->tokens};
    decant_matrix y = {.data = products->y, .element = backend->activation, .rows = products->tokens};
    decant_status status = DECANT_OK;
    for (int block = 0; block < part->layer_count; block++)
        for (int index = 0; index < part->family->linear_count; index++) {
            const decant_linear *linear = &part->blocks[block].linears[index];
            x.columns = linear->columns;
            y.columns = linear->rows;
            DECANT_TRY(decant_linear_forward(backend, linear, x, false, y, err));
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
