/* Which stages of some matrices the blocks of packed_pairs.cu take. The stages of all tiles of rows, one tile
 * after the other and one matrix after the other, are cut into runs that take equally long, one for each
 * multiprocessor. A new tile within a run takes as long as some stages, for its tables and for the sums of the
 * tile before. Where there are blocks enough, and it takes no longer, no run has stages of two tiles.
 *
 * All of it runs on the host, too, where tests/kernels/test_pair_runs.c looks at it. */
#ifndef DECANT_KERNELS_CUDA_PAIR_RUNS_H
#define DECANT_KERNELS_CUDA_PAIR_RUNS_H

#include "kernels/on_both.h"

enum {
    DECANT_PAIR_STAGE_WORDS = 32, /* of a plane of a row: a cache line */
    DECANT_STAGE_PARTS = 4,       /* of which runs are made */
};

typedef struct decant_pair_runs {
    int row_tiles;     /* of all matrices */
    int row_stages;    /* of a tile */
    int column_stages; /* of those, the ones that have columns */
    int run;           /* of a block, in parts of a stage */
    int change;        /* what a new tile within a run takes, in parts of a stage */
    int blocks;
} decant_pair_runs;

/* The first stage of a block. Behind each tile lies as much as a new one takes, in which no run begins. */
DECANT_ON_BOTH int decant_pair_first_stage(const decant_pair_runs *runs, int block)
{
    const int place = block * runs->run, tile_parts = runs->row_stages * DECANT_STAGE_PARTS + runs->change;
    const int stage = place % tile_parts / DECANT_STAGE_PARTS;
    return place / tile_parts * runs->row_stages + (stage < runs->row_stages ? stage : runs->row_stages);
}

/* The stage behind a block's last one. */
DECANT_ON_BOTH int decant_pair_end_stage(const decant_pair_runs *runs, int block)
{
    const int next = decant_pair_first_stage(runs, block + 1), all = runs->row_tiles * runs->row_stages;
    return next < all ? next : all;
}

/* The block that has a stage. */
DECANT_ON_BOTH int decant_pair_block_of(const decant_pair_runs *runs, int stage)
{
    const int tile_parts = runs->row_stages * DECANT_STAGE_PARTS + runs->change;
    return (stage / runs->row_stages * tile_parts + stage % runs->row_stages * DECANT_STAGE_PARTS +
            DECANT_STAGE_PARTS - 1) /
           runs->run;
}

/* The runs of so many tiles of rows of so many words a plane. */
static inline decant_pair_runs decant_pair_runs_of(int row_tiles, int words, int bits, int multiprocessors)
{
    decant_pair_runs runs = {0};
    runs.row_tiles = row_tiles;
    runs.row_stages = (words + DECANT_PAIR_STAGE_WORDS - 1) / DECANT_PAIR_STAGE_WORDS;
    runs.column_stages = runs.row_stages;
    const int change = (1 << bits) / 2; /* at four bits tables and sums take as long as two stages */
    const int parts = row_tiles * (runs.row_stages * DECANT_STAGE_PARTS + change) - change,
              even = (parts + multiprocessors - 1) / multiprocessors;
    /* A run of less than a new tile and a stage might have none. */
    const int least = change + DECANT_STAGE_PARTS, run = even > least ? even : least;
    /* Blocks of a tile and stages of a block, if none has stages of two tiles. */
    const int most = multiprocessors / row_tiles, stages = most > 0 ? (runs.row_stages + most - 1) / most : 0;
    if (most > 0 && stages * DECANT_STAGE_PARTS <= run + change) {
        runs.row_stages = (runs.row_stages + stages - 1) / stages * stages; /* nothing beyond the columns */
        runs.run = stages * DECANT_STAGE_PARTS;
    } else {
        runs.change = change;
        runs.run = run;
    }
    runs.blocks = decant_pair_block_of(&runs, runs.row_tiles * runs.row_stages - 1) + 1;
    return runs;
}

#endif
