/* The sizes that the plan of a rank's memory is made of: its linear layers, its part of the model's ends and
 * files, and what lies between and within its blocks. Pure: no kernels, MPI or files. */
#ifndef DECANT_PIPELINE_RANK_SIZES_H
#define DECANT_PIPELINE_RANK_SIZES_H

#include "pipeline/linear_sizes.h"
#include "pipeline/schedule.h"

/* What one rank does. */
typedef struct decant_rank_share {
    decant_layer_range layers;
    bool has_embedding, has_head;
    bool has_previous, has_next; /* neighbours that activations come from and go to */
    int replica, replicas;
    int64_t sequences;            /* of its replica */
    int64_t slots;                /* micro-batches between forward and backward pass */
    bool retain;                  /* keeps what blocks keep, in place of computing it again */
    bool streamed;                /* one layer at a time, all sequences through it */
    int64_t boundaries_on_device; /* streamed: micro-batches' boundaries that stay there … */
    bool boundaries_on_disk;      /* … and whether the others are on scratch, not in host memory */
} decant_rank_share;

/* A rank as the plan of its memory looks at it; everything is borrowed. */
typedef struct decant_rank_view {
    const decant_job_shape *shape;
    const decant_linear_size *linears; /* [count] of this rank */
    const int *owners;                 /* [count] */
    int64_t count;
    const decant_rank_share *share;
    int64_t hidden, vocabulary;
    int64_t working; /* the backend's working space so far: it never shrinks */
} decant_rank_view;

/* ---- its linear layers ---- */

/* Whether it quantizes and writes matrix `index` of its layers. */
bool decant_rank_owns(const decant_rank_view *view, int64_t index);
/* All of them together. */
decant_linear_size decant_rank_linears(const decant_rank_view *view);
/* Weights of one block's linear layers at most; blocks need not be alike. */
int64_t decant_rank_largest_block_weights(const decant_rank_view *view);
/* Fisher sums and Hessians of one block at most, and of one matrix; bytes. */
int64_t decant_rank_largest_block_sums(const decant_rank_view *view);
int64_t decant_rank_largest_matrix_sums(const decant_rank_view *view);

/* ---- its part of the model ---- */

decant_block_sizes decant_rank_block_sizes(const decant_rank_view *view);
/* What a part holds of the model's ends, in elements (stages/model.c); with which of them. */
decant_end_sizes decant_rank_ends_of(const decant_rank_view *view, bool begins, bool ends);
/* Elements of the matrices among those that the rank has. */
int64_t decant_rank_end_elements(const decant_rank_view *view);
/* Bytes of `linear_weights` of `blocks` blocks and of the rank's ends, placed for products. The CPU reads them
 * from the mapped file. */
int64_t decant_rank_placed_bytes(const decant_rank_view *view, int64_t linear_weights, int64_t blocks);
/* What a part has of its own for so many rows: the angles of stages/rotary_angles.c, and the room beside
 * projections of stages/model.c. */
int64_t decant_rank_part_bytes(const decant_rank_view *view, int64_t rows);
/* The rank's part of the model's files, and as much of it as is mapped at once before writing: of an embedding
 * in a mapped file only the tokens' rows are read, and a streamed rank dismisses a layer's pages as it leaves
 * the layer (decant_model_block_dismiss). */
int64_t decant_rank_file_bytes(const decant_rank_view *view);
int64_t decant_rank_read_bytes(const decant_rank_view *view);

/* ---- activations of `rows` tokens ---- */

/* What a forward pass makes a block keep. */
int64_t decant_rank_kept_bytes(const decant_rank_view *view, int64_t rows);
/* What enters a block. */
int64_t decant_rank_boundary_bytes(const decant_rank_view *view, int64_t rows);
/* Streamed: what stays on the device of what enters blocks. */
int64_t decant_rank_device_boundaries(const decant_rank_view *view);

#endif
