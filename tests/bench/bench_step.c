/* What a generated token costs, and what in it: microseconds of a whole step at batch 1, of each kind of its
 * operations alone, and what a step saves without that kind. LLaMA's shapes with random weights of 16 bits and
 * of packed codes.
 *
 * usage: bench_step [--device cuda|cpu] [--shape 7b|13b|135m|small] [--layers 8] [--bits 16,4] [--prompt 64]
 *                   [--tokens 96] [--sparse 0] [--brief 0]
 *
 * A time is that of many recorded steps issued one behind the other, the median of several such runs, divided
 * by their number. Every layer has weights of its own, more bytes in all than the L2 cache holds several times.
 * Operations run beside each other, so the parts need not add up to the whole. "of copy" is the rate at which
 * the weights of a kind are read beside that of a large copy on the device, its bytes read and written. */
#include "base/memory.h"
#include "stages/generation.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RUNS = 5, WEIGHT_BITS = 16 };

/* Kinds of operations in a step. */
enum { EMBED, QUERY_KEY_VALUE, ATTENTION, OUTPUT, GATE_UP, DOWN, HEAD, CHOICE, KINDS, ALL = (1 << KINDS) - 1 };
static const char *const KIND_NAMES[KINDS] = {"embedding", "q, k, v", "attention", "o",
                                              "gate, up",  "down",    "head",      "choice"};

static void require(decant_status status, const decant_error *err)
{
    if (status == DECANT_OK)
        return;
    fprintf(stderr, "bench_step: %s\n", err->message);
    exit(1);
}

#define MUST(call)                                                                                             \
    do {                                                                                                       \
        decant_error must_error = {0};                                                                         \
        decant_error *err = &must_error;                                                                       \
        require((call), err);                                                                                  \
    } while (0)

static double clock_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- a model of random numbers ---- */

typedef struct random_source {
    int bits;         /* of packed weights; WEIGHT_BITS: none are packed */
    double sparse;    /* share of weights in a sparse part */
    uint16_t *values; /* BF16, for every matrix, from its beginning */
    uint16_t *norms;  /* BF16 around 1 */
    uint32_t *words;  /* random bits */
    uint16_t *levels; /* F16 */
    int64_t most_values;
} random_source;

static uint32_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u; /* Knuth, MMIX */
    return (uint32_t)(*state >> 32);
}

/* An array that repeats its first numbers. */
static void *repeat(const void *first, size_t first_bytes, size_t size_bytes)
{
    char *array = malloc(size_bytes);
    if (!array) {
        fprintf(stderr, "bench_step: no memory\n");
        exit(1);
    }
    for (size_t done = 0; done < size_bytes; done += first_bytes)
        memcpy(array + done, first, size_bytes - done < first_bytes ? size_bytes - done : first_bytes);
    return array;
}

static random_source make_source(int bits, double sparse, int64_t most_values)
{
    enum { DISTINCT = (1 << 16) + 7 };
    static uint16_t values[DISTINCT], norms[DISTINCT], levels[DISTINCT];
    static uint32_t words[DISTINCT];
    uint64_t state = 1;
    for (int64_t i = 0; i < DISTINCT; i++) {
        words[i] = next_random(&state);
        float value = (float)words[i] / 2147483648.0f - 1.0f;
        values[i] = decant_f32_to_bf16(0.03f * value);
        norms[i] = decant_f32_to_bf16(1.0f + 0.2f * value);
        levels[i] = decant_f32_to_f16(0.03f * value);
    }
    const size_t most_bytes = (size_t)most_values * 2;
    return (random_source){
        .bits = bits,
        .sparse = sparse,
        .values = repeat(values, sizeof values, most_bytes),
        .norms = repeat(norms, sizeof norms, most_bytes),
        .words = repeat(words, sizeof words, most_bytes),
        .levels = repeat(levels, sizeof levels, most_bytes),
        .most_values = most_values,
    };
}

static void drop_source(random_source *source)
{
    free(source->values);
    free(source->norms);
    free(source->words);
    free(source->levels);
}

static decant_status random_matrix(void *context, const char *name, int64_t rows, int64_t columns,
                                   decant_matrix *matrix, decant_error *err)
{
    const random_source *source = context;
    (void)name;
    if (rows * columns > source->most_values)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "%s is larger than any matrix", name);
    *matrix = (decant_matrix){rows == 1 ? source->norms : source->values, DECANT_BF16, rows, columns};
    return DECANT_OK;
}

static decant_status upload_new(decant_backend *backend, const void *host, size_t size_bytes, void **device,
                                decant_error *err)
{
    decant_status status = backend->memory->allocate(backend, size_bytes, "packed weights", device, err);
    return status == DECANT_OK ? backend->memory->upload(backend, *device, host, size_bytes, err) : status;
}

/* Entries at random, as many in every row but for one in 128, which has a ninth of all, as in bench_decode. */
static decant_status add_sparse(decant_backend *backend, const random_source *source,
                                decant_packed_matrix *packed, decant_error *err)
{
    const double crowded = 128.0 / 9, plain = 8.0 / 9;
    uint32_t *offsets = malloc((size_t)(packed->rows + 1) * sizeof *offsets), *columns;
    uint64_t state = 5;
    void *device;
    decant_status status;
    offsets[0] = 0;
    for (int64_t row = 0; row < packed->rows; row++)
        offsets[row + 1] = offsets[row] + (uint32_t)(source->sparse * (double)packed->columns *
                                                     (plain + (row % 128 == 77 ? crowded : 0)));
    packed->sparse.count = offsets[packed->rows];
    columns = malloc((size_t)packed->sparse.count * sizeof *columns);
    for (int64_t row = 0; row < packed->rows; row++) {
        const uint32_t count = offsets[row + 1] - offsets[row];
        for (uint32_t i = 0; i < count; i++)
            columns[offsets[row] + i] = (uint32_t)((uint64_t)packed->columns * i / count +
                                                   next_random(&state) % (uint32_t)(packed->columns / count));
    }
    DECANT_TRY(upload_new(backend, offsets, (size_t)(packed->rows + 1) * sizeof *offsets, &device, err));
    packed->sparse.row_offsets = device;
    DECANT_TRY(upload_new(backend, columns, (size_t)packed->sparse.count * sizeof *columns, &device, err));
    packed->sparse.columns = device;
    DECANT_TRY(
        upload_new(backend, source->levels, (size_t)packed->sparse.count * sizeof(uint16_t), &device, err));
    packed->sparse_values = device;
done:
    free(offsets);
    free(columns);
    return status;
}

static decant_status random_packed(void *context, decant_backend *backend, const char *name, int64_t rows,
                                   int64_t columns, decant_packed_matrix **packed, decant_error *err)
{
    const random_source *source = context;
    const int64_t words = (columns + 31) / 32;
    void *memory;
    decant_status status = DECANT_OK;
    (void)name;
    *packed = NULL;
    if (source->bits == WEIGHT_BITS)
        return DECANT_OK;
    DECANT_TRY(decant_memory_allocate(sizeof **packed, "a packed layer", &memory, err));
    *packed = memory;
    **packed = (decant_packed_matrix){.rows = rows, .columns = columns, .bits = source->bits};
    DECANT_TRY(upload_new(backend, source->words, (size_t)(rows * words * source->bits) * 4, &memory, err));
    (*packed)->planes = memory;
    DECANT_TRY(upload_new(backend, source->levels, (size_t)(rows << source->bits) * 2, &memory, err));
    (*packed)->levels = memory;
    if (source->sparse > 0)
        DECANT_TRY(add_sparse(backend, source, *packed, err));
    DECANT_TRY(backend->validate->prepare(backend, *packed, err));
    DECANT_TRY(backend->memory->synchronize(backend, err));
done:
    return status;
}

/* ---- a backend that leaves out kinds of operations ---- */

typedef struct partial_backend {
    decant_backend backend; /* first: operations get a decant_backend * and look around it */
    decant_step_kernels steps;
    decant_backend *actual;
    unsigned kinds; /* those that are done, a bit each */
} partial_backend;

static bool does(decant_backend *backend, int kind)
{
    return ((partial_backend *)backend)->kinds >> kind & 1u;
}

static decant_backend *actual_of(decant_backend *backend)
{
    return ((partial_backend *)backend)->actual;
}

static decant_status take_row(decant_backend *backend, decant_matrix table, const int32_t *index,
                              bool accumulate, decant_matrix y, decant_error *err)
{
    decant_backend *actual = actual_of(backend);
    return does(backend, EMBED) ? actual->steps->take_row(actual, table, index, accumulate, y, err) : DECANT_OK;
}

static decant_status products(decant_backend *backend, const decant_step_input *input,
                              const decant_step_product *all, int count, bool accumulate, decant_error *err)
{
    decant_backend *actual = actual_of(backend);
    const int kind = count > 1                             ? QUERY_KEY_VALUE
                     : !accumulate                         ? HEAD
                     : input->x.columns > all[0].y.columns ? DOWN
                                                           : OUTPUT;
    return does(backend, kind) ? actual->steps->products(actual, input, all, count, accumulate, err)
                               : DECANT_OK;
}

static decant_status gated_products(decant_backend *backend, const decant_step_input *input,
                                    const decant_step_product *gate, const decant_step_product *up,
                                    decant_error *err)
{
    decant_backend *actual = actual_of(backend);
    return does(backend, GATE_UP) ? actual->steps->gated_products(actual, input, gate, up, err) : DECANT_OK;
}

static decant_status attention(decant_backend *backend, const decant_attention_shape *shape,
                               const float *cosines, const float *sines, decant_matrix q, decant_matrix k,
                               decant_matrix v, decant_matrix keys, decant_matrix values,
                               const int32_t *position, decant_matrix y, decant_error *err)
{
    decant_backend *actual = actual_of(backend);
    return does(backend, ATTENTION) ? actual->steps->attention(actual, shape, cosines, sines, q, k, v, keys,
                                                               values, position, y, err)
                                    : DECANT_OK;
}

static decant_status choose(decant_backend *backend, decant_matrix logits, int32_t *token, int32_t *position,
                            int32_t *history, decant_error *err)
{
    decant_backend *actual = actual_of(backend);
    return does(backend, CHOICE) ? actual->steps->choose(actual, logits, token, position, history, err)
                                 : DECANT_OK;
}

/* *partial stays where it is. */
static void open_partial(partial_backend *partial, decant_backend *actual)
{
    *partial = (partial_backend){.backend = *actual, .actual = actual, .kinds = ALL};
    partial->steps = (decant_step_kernels){take_row, products, gated_products, attention, choose};
    partial->backend.steps = &partial->steps;
}

/* ---- times ---- */

typedef struct bench {
    decant_backend *backend;
    partial_backend partial;
    decant_model_config config;
    int layers;
    int64_t prompt, tokens;
    double copy_rate; /* bytes a second, read and written */
    bool brief;
} bench;

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* FNV-1a of the tokens, to compare runs by (Fowler, Noll, Vo). */
static uint32_t hash_of(const int32_t *tokens, int64_t count)
{
    uint32_t hash = 2166136261u;
    for (int64_t i = 0; i < count * 4; i++)
        hash = (hash ^ ((const unsigned char *)tokens)[i]) * 16777619u;
    return hash;
}

/* Microseconds of a step of these kinds. Of all kinds, every run must choose the same tokens. */
static double time_step(bench *b, decant_generation *generation, unsigned kinds)
{
    int32_t *prompt = calloc((size_t)b->prompt, sizeof *prompt),
            *next = calloc((size_t)b->tokens, sizeof *next);
    double times[RUNS];
    uint32_t hash = 0;
    for (int64_t i = 0; i < b->prompt; i++)
        prompt[i] = (int32_t)(i * 37 % b->config.vocabulary_size);
    b->partial.kinds = ALL;
    MUST(decant_generation_begin(generation, prompt, b->prompt, next, err));
    b->partial.kinds = kinds;
    for (int run = 0; run < RUNS; run++) {
        MUST(decant_generation_continue(generation, next[0], 1, next, err));
        decant_generation_go_back(generation, b->prompt);
        MUST(b->backend->memory->synchronize(b->backend, err));
        const double start_s = clock_s();
        MUST(decant_generation_continue(generation, 7, b->tokens, next, err));
        times[run] = (clock_s() - start_s) * 1e6 / (double)b->tokens;
        decant_generation_go_back(generation, b->prompt);
        const uint32_t own_hash = hash_of(next, b->tokens);
        if (kinds == ALL && run > 0 && own_hash != hash)
            printf("run %d chooses other tokens\n", run);
        hash = own_hash;
    }
    if (kinds == ALL)
        printf("tokens %08x; ", (unsigned)hash);
    qsort(times, RUNS, sizeof *times, compare_doubles);
    free(prompt);
    free(next);
    return times[RUNS / 2];
}

static double linear_bytes(const decant_linear *linear)
{
    const decant_packed_matrix *packed = linear->packed;
    if (!packed)
        return (double)decant_matrix_bytes(linear->weight);
    return (double)packed->rows *
               (double)((packed->columns + 31) / 32 * 4 * packed->bits + (INT64_C(2) << packed->bits)) +
           6.0 * (double)packed->sparse.count;
}

/* Of all layers, or of the head. */
static double kind_bytes(const decant_model_part *part, int kind)
{
    static const int first[KINDS] = {[QUERY_KEY_VALUE] = 0, [OUTPUT] = 3, [GATE_UP] = 4, [DOWN] = 6};
    static const int end[KINDS] = {[QUERY_KEY_VALUE] = 3, [OUTPUT] = 4, [GATE_UP] = 6, [DOWN] = 7};
    double bytes = 0;
    if (kind == HEAD)
        return (double)decant_matrix_bytes(part->head);
    for (int layer = 0; layer < part->layer_count; layer++)
        for (int i = first[kind]; i < end[kind]; i++)
            bytes += linear_bytes(&part->blocks[layer].linears[i]);
    return bytes;
}

static bool is_of_layer(int kind)
{
    return kind >= QUERY_KEY_VALUE && kind <= DOWN;
}

static void measure_kinds(bench *b, decant_generation *generation, const decant_model_part *part, double whole)
{
    const double empty = time_step(b, generation, 1u << CHOICE);
    printf("  %-12s %10s %8s %12s\n", "", "alone us", "of copy", "saves us");
    for (int kind = 0; kind < KINDS; kind++) {
        const double count = is_of_layer(kind) ? part->layer_count : 1, bytes = kind_bytes(part, kind);
        double alone = time_step(b, generation, 1u << kind | 1u << CHOICE);
        if (kind != CHOICE)
            alone -= empty;
        const double without = time_step(b, generation, (unsigned)ALL & ~(1u << kind));
        printf("  %-12s %10.2f ", KIND_NAMES[kind], alone / count);
        if (bytes > 0)
            printf("%7.0f%%", 100 * bytes / (alone * 1e-6) / b->copy_rate);
        else
            printf("%8s", "");
        printf(" %12.2f%s\n", (whole - without) / count, count > 1 ? " a layer" : "");
    }
    const unsigned weights = 1u << QUERY_KEY_VALUE | 1u << OUTPUT | 1u << GATE_UP | 1u << DOWN;
    printf("  %-12s %10.2f a layer\n", "products",
           (time_step(b, generation, weights | 1u << CHOICE) - empty) / part->layer_count);
}

static double weight_bytes(const decant_model_part *part)
{
    double bytes = 0;
    for (int kind = 0; kind < KINDS; kind++)
        bytes += kind_bytes(part, kind);
    return bytes;
}

/* Returns microseconds of a step. */
static double measure(bench *b, int bits, double sparse)
{
    random_source source = make_source(bits, sparse, b->config.vocabulary_size * b->config.hidden_size);
    decant_weight_source weights = {.context = &source, .matrix = random_matrix, .packed = random_packed};
    decant_model_part part;
    decant_generation *generation;
    MUST(decant_model_part_load(b->backend, &b->config, &weights, 0, b->layers, b->prompt + b->tokens, 1, &part,
                                err));
    part.backend = &b->partial.backend;
    MUST(decant_generation_create(&part, &generation, err));
    const double whole = time_step(b, generation, ALL), bytes = weight_bytes(&part);
    printf("%d bits: %.1f us a step, %.1f tokens/s; %.3f GB of weights, %.0f%% of copy\n", bits, whole,
           1e6 / whole, bytes * 1e-9, 100 * bytes / (whole * 1e-6) / b->copy_rate);
    if (!b->brief)
        measure_kinds(b, generation, &part, whole);
    fflush(stdout);
    decant_generation_destroy(&generation);
    part.backend = b->backend;
    decant_model_part_unload(&part);
    drop_source(&source);
    return whole;
}

static double measure_copy(decant_backend *backend, size_t size_bytes)
{
    enum { COPIES = 10 };
    void *from, *to;
    MUST(backend->memory->allocate(backend, size_bytes, "a copy", &from, err));
    MUST(backend->memory->allocate(backend, size_bytes, "a copy", &to, err));
    MUST(backend->memory->copy(backend, to, from, size_bytes, err));
    MUST(backend->memory->synchronize(backend, err));
    const double start_s = clock_s();
    for (int i = 0; i < COPIES; i++)
        MUST(backend->memory->copy(backend, to, from, size_bytes, err));
    MUST(backend->memory->synchronize(backend, err));
    const double rate = 2.0 * COPIES * (double)size_bytes / (clock_s() - start_s);
    backend->memory->release(backend, &from);
    backend->memory->release(backend, &to);
    return rate;
}

/* ---- the command ---- */

/* Of the models that the command names. */
typedef struct model_shape {
    const char *name;
    int hidden, inner, heads, key_value_heads, vocabulary;
} model_shape;

static void make_config(bench *b, const char *name)
{
    static const model_shape shapes[] = {{"7b", 4096, 11008, 32, 32, 32000},
                                         {"13b", 5120, 13824, 40, 40, 32000},
                                         {"135m", 576, 1536, 9, 3, 49152}, /* SmolLM2's */
                                         {"small", 512, 1376, 8, 8, 2048}};
    const model_shape *shape = shapes;
    char json[512];
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (strcmp(name, shapes[i].name) == 0)
            shape = &shapes[i];
    snprintf(json, sizeof json,
             "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":%d,\"intermediate_size\":%d,"
             "\"num_hidden_layers\":%d,\"num_attention_heads\":%d,\"num_key_value_heads\":%d,"
             "\"vocab_size\":%d,\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,"
             "\"max_position_embeddings\":8192,\"tie_word_embeddings\":false}",
             shape->hidden, shape->inner, b->layers, shape->heads, shape->key_value_heads, shape->vocabulary);
    MUST(decant_model_config_parse(json, strlen(json), "bench_step", &b->config, err));
}

int main(int argc, char **argv)
{
    const char *device = "cuda", *shape = "7b", *bits = "16,4";
    bench b = {.layers = 8, .prompt = 64, .tokens = 96};
    double sparse = 0, first = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *value = argv[i + 1];
        if (strcmp(argv[i], "--device") == 0)
            device = value;
        else if (strcmp(argv[i], "--shape") == 0)
            shape = value;
        else if (strcmp(argv[i], "--bits") == 0)
            bits = value;
        else if (strcmp(argv[i], "--layers") == 0)
            b.layers = atoi(value);
        else if (strcmp(argv[i], "--prompt") == 0)
            b.prompt = atoi(value);
        else if (strcmp(argv[i], "--tokens") == 0)
            b.tokens = atoi(value);
        else if (strcmp(argv[i], "--sparse") == 0)
            sparse = atof(value);
        else if (strcmp(argv[i], "--brief") == 0)
            b.brief = atoi(value) != 0;
    }
    if (strcmp(device, "cpu") == 0)
        MUST(decant_backend_create_cpu(0, &b.backend, err));
    else
        MUST(decant_backend_create_cuda(0, false, &b.backend, err));
    open_partial(&b.partial, b.backend);
    make_config(&b, shape);
    b.copy_rate = measure_copy(b.backend, (size_t)(strcmp(device, "cpu") == 0 ? 32 : 1024) << 20);
    printf("%s; LLaMA %s, %d layers, prompt %lld, %lld tokens; copy %.2f TB/s\n", b.backend->device_name, shape,
           b.layers, (long long)b.prompt, (long long)b.tokens, b.copy_rate * 1e-12);
    for (const char *text = bits; *text;) {
        char *end;
        const double us = measure(&b, (int)strtol(text, &end, 10), sparse);
        if (first > 0)
            printf("%.2f times the speed\n", first / us);
        else
            first = us;
        text = *end ? end + 1 : end;
    }
    decant_model_config_free(&b.config);
    decant_backend_destroy(&b.backend);
    return 0;
}
