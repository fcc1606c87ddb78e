/* How token_tiles.cuh cuts a matrix and its tokens, and the arguments of a launch. Knows nothing of what a
 * block does with its part:
 *
 *     token_tiles_codes.cuh  bit planes on their way to registers
 *     token_tiles_x.cuh      F16 of x, and products with it
 *     token_tiles_sums.cuh   sums of the blocks that share rows and of the sparse part, joined and stored */
#ifndef DECANT_KERNELS_CUDA_TOKEN_TILES_BLOCK_CUH
#define DECANT_KERNELS_CUDA_TOKEN_TILES_BLOCK_CUH

#include "kernels/cuda/packed.cuh"

enum {
    WARPS = 8,
    THREADS = WARPS * DECANT_WARP,
    WARP_ROWS = 16,
    ROWS = WARPS * WARP_ROWS, /* of a block */
    HALVES = 2,               /* of a warp's rows: g and g + 8 of a lane */
    UNIT_WORDS = 16,
    LANE_WORDS = 4, /* of a unit */
    LANE_COLUMNS = LANE_WORDS * 32,
    STEPS = 2,         /* of a unit */
    STEP_COLUMNS = 64, /* of each lane */
    CHUNKS = 8,        /* of eight columns, in a step of a lane */
    STEP_CHUNKS = 32,  /* of a token in a step: those of four lanes */
    TILE_TOKENS = 8,   /* of one product */
    TOKENS_MAXIMUM = 32,
    VECTOR_BYTES = 16, /* of eight columns of x, and of four words of a plane */
    STAGES = 2,        /* units of codes that are there or under way */
};

/* Powers of two that the compiler does not know, to shift by multiplying: bytes are permuted where shifts are
 * done, and multiplications have a place of their own. */
typedef struct shift_factors {
    uint32_t one, two, sixteen;    /* to the right: 2^(32 − shift) */
    uint32_t two_left, three_left; /* 2^shift */
} shift_factors;

/* The arguments of a launch. */
typedef struct tiles_call {
    decant_packed_view packed;
    const __nv_bfloat16 *x;      /* [tokens, columns] */
    const __nv_bfloat16 *turned; /* [columns, tokens of the kernel] x for the sparse part, NULL: none */
    float *products;             /* [tokens, rows] scratch for those of the sparse part */
    __nv_bfloat16 *y;            /* [tokens, rows] */
    float *parts;       /* [row blocks, shares, ROWS, tokens of the kernel], when there are several shares */
    uint32_t *arrivals; /* [row blocks] zeros, and zeros again in the end */
    int tokens;
    int shares; /* of the units, each for a block */
    bool accumulate;
    shift_factors shifts;
} tiles_call;

static __host__ __device__ __forceinline__ int row_blocks_of(int rows)
{
    return (rows + ROWS - 1) / ROWS;
}

#endif
