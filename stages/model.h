/* The part of a model that one rank holds, and how a sequence passes through it, forward and backward.
 *
 * A family (stages/families/, one file each) knows the architecture: which linear layers a block has and how a
 * block computes. This file holds what all families share: where weights come from, the embedding, the head,
 * the loss. Knows nothing of ranks, files or schedules; computes only through kernels/backend.h. */
#ifndef DECANT_STAGES_MODEL_H
#define DECANT_STAGES_MODEL_H

#include "io/model_config.h"
#include "io/safetensors.h"
#include "kernels/backend.h"

enum { DECANT_BLOCK_LINEARS = 7, DECANT_BLOCK_VECTORS = 10, DECANT_NAME_BYTES = 128 };

/* A linear layer: its place in the model and, once a part is loaded, its weight. */
typedef struct decant_linear {
    char name[DECANT_NAME_BYTES]; /* "model.layers.0.self_attn.q_proj" */
    int64_t rows, columns;        /* output and input channels */
    bool shares_x;                /* takes the same x as the linear layer before it in its block */
    decant_matrix weight;         /* placed for compute; data NULL when a packed form is used */
    decant_packed_matrix *packed; /* owned; NULL when another form is used */
    decant_grid_matrix *grid;     /* the same */
} decant_linear;

/* A tensor of a block that is no linear layer's weight, a norm or a bias, and once a block is loaded its
 * values. These are never quantized. */
typedef struct decant_vector {
    char name[DECANT_NAME_BYTES]; /* of the tensor: "model.layers.0.input_layernorm.weight" */
    int64_t length;               /* 0: the family has none in this place */
    decant_matrix values;         /* [1, length], placed for compute */
} decant_vector;

typedef struct decant_block {
    int layer;
    decant_linear linears[DECANT_BLOCK_LINEARS];
    decant_vector vectors[DECANT_BLOCK_VECTORS];
} decant_block;

/* The tensors before the first block and behind the last. These are never quantized. */
typedef enum decant_end {
    DECANT_END_EMBEDDING,      /* [vocabulary, width of the embedding] */
    DECANT_END_PROJECTION_IN,  /* [hidden, width of the embedding]: from the embedding to the first block */
    DECANT_END_POSITIONS,      /* [positions, hidden], learned: added to the first block's input; the model's
                                  first position is in the row maximum_positions from the last */
    DECANT_END_NORM,           /* [1, hidden]: the scale of the final norm */
    DECANT_END_NORM_BIAS,      /* [1, hidden]: that norm is a layer norm */
    DECANT_END_PROJECTION_OUT, /* [width of the embedding, hidden]: from the final norm to the head */
    DECANT_END_HEAD,           /* [vocabulary, width of the embedding]; the embedding again when tied */
    DECANT_ENDS,
} decant_end;

static inline bool decant_end_is_first(decant_end which)
{
    return which <= DECANT_END_POSITIONS;
}

typedef struct decant_end_tensor {
    const char *name;      /* of constant memory */
    int64_t rows, columns; /* 0: the family has none in this place */
} decant_end_tensor;

/* Where weights come from: a model folder, or a container. */
typedef struct decant_weight_source {
    void *context;
    /* The tensor `name` as a [rows, columns] matrix in host memory that stays valid while the source is open.
     */
    decant_status (*matrix)(void *context, const char *name, int64_t rows, int64_t columns,
                            decant_matrix *matrix, decant_error *err);
    /* The packed form of linear layer `name`, made with backend->memory, or *packed = NULL when the source has
     * this one otherwise (the pointer itself may then be NULL). */
    decant_status (*packed)(void *context, decant_backend *backend, const char *name, int64_t rows,
                            int64_t columns, decant_packed_matrix **packed, decant_error *err);
    /* The same for a layer on a grid, whose points the source keeps: at most one of the two finds a form. */
    decant_status (*grid)(void *context, decant_backend *backend, const char *name, int64_t rows,
                          int64_t columns, decant_grid_matrix **grid, decant_error *err);
    /* Advice on a matrix from above: it will be read soon, or not again soon. NULL where neither helps. */
    void (*expect)(void *context, decant_matrix matrix);
    void (*dismiss)(void *context, decant_matrix matrix);
} decant_weight_source;

typedef struct decant_family decant_family;

/* What the pipeline wants to be called between two blocks, to keep its messages moving while this rank
 * computes.
 */
typedef struct decant_interlude {
    void (*call)(void *context); /* NULL: nothing */
    void *context;
} decant_interlude;

typedef struct decant_model_part {
    decant_backend *backend;           /* borrowed */
    const decant_model_config *config; /* borrowed */
    const decant_family *family;
    int first_layer, layer_count; /* may be 0 */
    decant_block *blocks;         /* [layer_count] */
    /* Those of decant_end, data NULL where this part or the family has none of them; the head is the embedding
     * itself where it is tied and both are here. */
    decant_matrix embedding, projection_in, positions;
    decant_matrix final_norm, final_norm_bias, projection_out, head;
    decant_matrix projected; /* device [rows, width of the embedding], beside a projection: working space */
    float *cosines, *sines;  /* device F32 [sequences · tokens, head_dimension / 2]: the angles of a sequence,
                                once for each; NULL where positions are learned */
    int64_t tokens;          /* longest sequence it can take */
    int64_t sequences;       /* of that length that it can take at once */
    int64_t first_position;  /* of a sequence's first token, for decant_model_embed; 0 at first */
    int64_t rows;            /* sequences · tokens that it was made for; most that reshaping may come to */
} decant_model_part;

/* What a block keeps of its forward pass for its backward pass; sized for all sequences that the part takes at
 * once. Only the family looks inside. */
typedef struct decant_activations decant_activations;

/* The tokens of a sequence that have passed a block, while it generates. */
typedef struct decant_kept_tokens {
    decant_matrix keys, values; /* device [room, key_value_heads · head_dimension], keys rotated */
    const int32_t *position;    /* device [1]: how many there are, which is where the next one stands */
} decant_kept_tokens;

/* Fisher sums of a block's linear layers, in the family's order; device F32 [rows, columns] each, with
 * [hessian_groups, columns, columns] behind it, or NULL to skip. */
typedef struct decant_block_fisher {
    decant_fisher_form form;
    int hessian_groups;
    float *sums[DECANT_BLOCK_LINEARS];
} decant_block_fisher;

/* What a block takes besides the weights of its linear layers. */
typedef struct decant_block_sizes {
    int64_t kept_activations; /* elements that a forward pass keeps of a token, in the activations' type */
    int64_t kept_floats;      /* F32 that it keeps besides */
    int64_t vector_weights;   /* of all its decant_vector together */
} decant_block_sizes;

struct decant_family {
    const char *architecture;                      /* as config.json names it */
    const struct decant_decoder_features *decoder; /* of a family that is made from the decoder block alone */
    int linear_count;                              /* linear layers of a block */

    /* Name and shape of linear layer `index` of block `layer`, and whether it shares its x: pure. */
    void (*linear)(const decant_model_config *config, int layer, int index, decant_linear *linear);

    /* Name and length of vector `index` of block `layer`, from 0 to DECANT_BLOCK_VECTORS: pure. NULL for a
     * model that cannot be run. */
    void (*vector)(const decant_family *family, const decant_model_config *config, int layer, int index,
                   decant_vector *vector);

    /* Name and shape of a tensor at the model's ends: pure. */
    void (*end)(const decant_model_config *config, decant_end which, decant_end_tensor *tensor);

    /* What a block's vectors and create_activations will take: pure. */
    void (*sizes)(const decant_family *family, const decant_model_config *config, decant_block_sizes *sizes);

    decant_status (*create_activations)(const decant_model_part *part, decant_activations **activations,
                                        decant_error *err);
    void (*destroy_activations)(const decant_model_part *part, decant_activations **activations);

    /* y = block(x), both [rows, hidden], may not overlap; `kept` receives what the backward pass needs. The
     * rows are those of decant_model_part_sequences. */
    decant_status (*forward)(const decant_model_part *part, const decant_block *block, decant_matrix x,
                             decant_matrix y, decant_activations *kept, decant_error *err);
    /* dx from dy, both [rows, hidden], may be the same array; adds to the Fisher sums. `kept` is of the same x.
     */
    decant_status (*backward)(const decant_model_part *part, const decant_block *block, decant_matrix x,
                              decant_matrix dy, decant_activations *kept, const decant_block_fisher *fisher,
                              decant_matrix dx, decant_error *err);

    /* x = block(x), [1, hidden], of one token behind those whose keys and values are kept: forward by the
     * backend's steps table, nothing left in `kept` for a backward pass. NULL: forward alone (generation.h). */
    decant_status (*step)(const decant_model_part *part, const decant_block *block,
                          const decant_kept_tokens *tokens, decant_matrix x, decant_activations *kept,
                          decant_error *err);
};

/* The family of a config; DECANT_ERROR_INPUT naming the architecture when decant does not know it. */
decant_status decant_family_find(const decant_model_config *config, const decant_family **family,
                                 decant_error *err);

/* Elements of the tensors at the model's ends, those with one row apart. */
typedef struct decant_end_sizes {
    int64_t matrices, vectors;
} decant_end_sizes;

/* What a part takes that begins the model, ends it, or both, a tied head counted once: pure. */
void decant_family_end_sizes(const decant_family *family, const decant_model_config *config, bool begins,
                             bool ends, decant_end_sizes *sizes);

/* Reads the config of `path` (io/model_config.h) and finds its family. Of a config that cannot be read the
 * architecture is looked at first: an unknown one has keys of its own, and is itself what is wrong. */
decant_status decant_family_read(const char *path, decant_model_config *config, const decant_family **family,
                                 decant_error *err);

/* For a model of which nothing is known but its tensors: every two-dimensional tensor NAME.weight is a linear
 * layer, one a block, but for embeddings, heads and the like, by their names. Such a model can be quantized
 * without data, not run. Fills config->layers and config->matrices; config has the text of config.json alone.
 * DECANT_ERROR_INPUT when there is no such tensor. */
decant_status decant_family_of_matrices(const decant_safetensors *model, decant_model_config *config,
                                        const decant_family **family, decant_error *err);

/* Loads the layers [first_layer, first_layer + layer_count) of a model, with the embedding when first_layer is
 * 0 and the final norm and head when they end the model. It will take up to `sequences` sequences of `tokens`
 * tokens at once. On failure *part is empty; free it with decant_model_part_unload, which takes an empty part
 * too. */
decant_status decant_model_part_load(decant_backend *backend, const decant_model_config *config,
                                     const decant_weight_source *source, int first_layer, int layer_count,
                                     int64_t tokens, int64_t sequences, decant_model_part *part,
                                     decant_error *err);
void decant_model_part_unload(decant_model_part *part);

/* The two halves of loading: after the first the blocks' weights are on their way to the backend, and the
 * caller may do something else; after the second the part can be used. On failure of either *part is empty. */
decant_status decant_model_part_begin(decant_backend *backend, const decant_model_config *config,
                                      const decant_weight_source *source, int first_layer, int layer_count,
                                      int64_t tokens, int64_t sequences, decant_model_part *part,
                                      decant_error *err);
decant_status decant_model_part_finish(decant_model_part *part, const decant_weight_source *source,
                                       decant_error *err);

/* The same part without any weight: blocks and ends come and go one by one. Free it likewise. */
decant_status decant_model_part_outline(decant_backend *backend, const decant_model_config *config,
                                        int first_layer, int layer_count, int64_t tokens, int64_t sequences,
                                        decant_model_part *part, decant_error *err);

/* From now on the part takes up to `sequences` sequences of `tokens` tokens at once; together no more tokens
 * than it was made for. Nothing is done when that is what it takes already. */
decant_status decant_model_part_reshape(decant_model_part *part, int64_t tokens, int64_t sequences,
                                        decant_error *err);

/* A block of an outline, counted from the part's first: begin sends its weights on their way, which may take
 * while the device works on others; after finish, passes find them in place; leave takes them away, and takes a
 * block that is away or half on its way. */
decant_status decant_model_block_begin(decant_model_part *part, const decant_weight_source *source, int block,
                                       decant_error *err);
decant_status decant_model_block_finish(decant_model_part *part, int block, decant_error *err);
void decant_model_block_leave(decant_model_part *part, int block);

/* Tells the source that a block's weights will not be read again soon. */
void decant_model_block_dismiss(const decant_model_part *part, const decant_weight_source *source, int block);

/* The ends of an outline, where the part has them: nothing is placed where it does not. Leave takes away what
 * is there of both. */
decant_status decant_model_embedding_place(decant_model_part *part, const decant_weight_source *source,
                                           decant_error *err);
decant_status decant_model_head_place(decant_model_part *part, const decant_weight_source *source,
                                      decant_error *err);
void decant_model_ends_leave(decant_model_part *part);

/* Whether the part begins or ends the model, its weights placed or not. */
bool decant_model_part_begins(const decant_model_part *part);
bool decant_model_part_ends(const decant_model_part *part);

/* Memory for the weights of a part, bytes: as they are placed or packed, an array that serves twice once. */
int64_t decant_model_part_weight_bytes(const decant_model_part *part);

/* How many sequences lie one after the other in `rows` rows of activations: either one of up to part->tokens
 * tokens, or several of exactly that many. */
static inline int64_t decant_model_part_sequences(const decant_model_part *part, int64_t rows)
{
    return rows > part->tokens ? rows / part->tokens : 1;
}

static inline void decant_interlude_play(decant_interlude interlude)
{
    if (interlude.call)
        interlude.call(interlude.context);
}

/* A [rows, columns] activation matrix of zeros from backend->memory. */
decant_status decant_activation_create(decant_backend *backend, int64_t rows, int64_t columns, const char *what,
                                       decant_matrix *matrix, decant_error *err);

/* Applies one linear layer from whichever form it has. */
decant_status decant_linear_forward(decant_backend *backend, const decant_linear *linear, decant_matrix x,
                                    bool accumulate, decant_matrix y, decant_error *err);

/* Applies `count` linear layers of a block to the same input; y += … when accumulate. Packed ones are applied
 * at once, which takes a GPU less than one after the other, and where all are, input->made need not be filled.
 *   linears, ys [count]; the ys do not overlap */
decant_status decant_linears_forward(decant_backend *backend, const decant_linear *linears, int count,
                                     const decant_packed_input *input, bool accumulate, const decant_matrix *ys,
                                     decant_error *err);

/* x[t, :] = embedding[tokens[t], :] for all rows of x, projected and with learned positions added where the
 * family has them; this part has the embedding. */
decant_status decant_model_embed(const decant_model_part *part, const int32_t *tokens, decant_matrix x,
                                 decant_error *err);

/* logits [T, vocabulary] = head(norm(x)) of one sequence, without the norm and with a projection where the
 * family has it so; this part has the head.
 *   normed [T, hidden], inverse_rms [T]   scratch, kept for the backward pass */
decant_status decant_model_head(const decant_model_part *part, decant_matrix x, decant_matrix normed,
                                float *inverse_rms, decant_matrix logits, decant_error *err);

/* dx = the gradient of the head and the final norm.
 *   dlogits [T, vocabulary]; x and inverse_rms as in the forward pass; dnormed [T, hidden] scratch */
decant_status decant_model_head_backward(const decant_model_part *part, decant_matrix dlogits, decant_matrix x,
                                         const float *inverse_rms, decant_matrix dnormed, decant_matrix dx,
                                         decant_error *err);

#endif
