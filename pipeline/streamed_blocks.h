/* What becomes of a block's Fisher sums when layers are streamed, the sink of pipeline/job.h: either its
 * matrices are quantized at once, and what the choice will need of them waits in host memory; or the sums
 * themselves are wanted, and wait there. And how that is saved, a file a layer
 * (pipeline/streamed_checkpoint.h).
 */
#ifndef DECANT_PIPELINE_STREAMED_BLOCKS_H
#define DECANT_PIPELINE_STREAMED_BLOCKS_H

#include "pipeline/quantization.h"
#include "stages/fisher_file.h"
#include "stages/quantized_file.h"

typedef struct decant_streamed_blocks {
    decant_job *job; /* borrowed */
    decant_recipe recipe;
    decant_quantized_share *share; /* borrowed, created; NULL: the sums are wanted */
    union {                        /* of the file that is being written */
        decant_quantized_datasets quantized[DECANT_BLOCK_LINEARS];
        int sums[DECANT_BLOCK_LINEARS * DECANT_FISHER_DATASETS];
    } datasets;
} decant_streamed_blocks;

/* The sink; *blocks stays where it is while the sink is used. */
decant_block_sink decant_streamed_blocks_sink(decant_streamed_blocks *blocks);

#endif
