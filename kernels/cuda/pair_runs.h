/* Which stages of some matrices the blocks of packed_pairs.cu take. The stages of all tiles of rows, one tile
 * after the other and one matrix after the other, are cut into runs that take equally long, one for each
 * multiprocessor. A new tile within a run takes as long as some stages, for its tables and for the sums of the
 * tile before. Where there are blocks enough, and it takes no longer, no run has stages of two tiles.
 *
 * All of it runs on the host, too, where tests/kernels/test_pair_runs.c looks at it. */
#ifndef DECANT_KERNELS_CUDA_PAIR_RUNS_H
#define DECANT_KERNELS_CUDA_PAIR_RUNS_H

#include "kernels/on_both.h"

#include <stdint.h>

enum {
    DECANT_PAIR_STAGE_WORDS = 32, /* of a plane of a row: a cache line */
    DECANT_STAGE_PARTS = 4,       /* of which runs are made */
};

/* A divisor, two or more, as 2^64 / value rounded up: a division takes a block longer than this, and before it
 * has made some it does not know what to ask for. */
typedef struct decant_divisor {
    int value;
    uint32_t inverse_high, inverse_low;
} decant_divisor;

static inline decant_divisor decant_divisor_of(int value)
{
    const uint64_t inverse = UINT64_MAX / (uint64_t)value + 1;
    const decant_divisor divisor = {value, (uint32_t)(inverse >> 32), (uint32_t)inverse};
    return divisor;
}

/* dividend / divisor, 0 ≤ dividend; exact, since the error of the inverse is less than 1 / 2^32 of a quotient.
 */
DECANT_ON_BOTH int decant_quotient(int dividend, decant_divisor divisor)
{
    const uint64_t factor = (uint64_t)(uint32_t)dividend;
    return (int)((factor * divisor.inverse_high + (factor * divisor.inverse_low >> 32)) >> 32);
}

typedef struct decant_pair_runs {
    int row_tiles;     /* of all matrices */
    int row_stages;    /* of a tile */
    int column_stages; /* of those, the ones that have columns */
    int change;        /* what a new tile within a run takes, in parts of a stage */
    int blocks;
    /* in parts of a stage */
    decant_divisor run;  /* of a block */
    decant_divisor row;  /* the stages of a tile */
    decant_divisor tile; /* these and a new tile */
} decant_pair_runs;

/* The tile of rows that a stage belongs to. */
DECANT_ON_BOTH int decant_pair_tile_of(const decant_pair_runs *runs, int stage)
{
    return decant_quotient(stage * DECANT_STAGE_PARTS, runs->row);
}

/* The first stage of a block. Behind each tile lies as much as a new one takes, in which no run begins. */
DECANT_ON_BOTH int decant_pair_first_stage(const decant_pair_runs *runs, int block)
{
    const int place = block * runs->run.value, tile = decant_quotient(place, runs->tile);
    const int stage = (place - tile * runs->tile.value) / DECANT_STAGE_PARTS;
    return tile * runs->row_stages + (stage < runs->row_stages ? stage : runs->row_stages);
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
    const int changes = decant_pair_tile_of(runs, stage) * runs->change;
    return decant_quotient(stage * DECANT_STAGE_PARTS + changes + DECANT_STAGE_PARTS - 1, runs->run);
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
    const int least = change + DECANT_STAGE_PARTS;
    int run = even > least ? even : least;
    /* Blocks of a tile and stages of a block, if none has stages of two tiles. */
    const int most = multiprocessors / row_tiles, stages = most > 0 ? (runs.row_stages + most - 1) / most : 0;
    if (most > 0 && stages * DECANT_STAGE_PARTS <= run + change) {
        runs.row_stages = (runs.row_stages + stages - 1) / stages * stages; /* nothing beyond the columns */
        run = stages * DECANT_STAGE_PARTS;
    } else {
        runs.change = change;
    }
    runs.run = decant_divisor_of(run);
    runs.row = decant_divisor_of(runs.row_stages * DECANT_STAGE_PARTS);
    runs.tile = decant_divisor_of(runs.row.value + runs.change);
    runs.blocks = decant_pair_block_of(&runs, runs.row_tiles * runs.row_stages - 1) + 1;
    return runs;
}

#endif
