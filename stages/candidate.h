/* What may be done to a linear layer, and what each possibility stores: the methods by name, the recipe that a
 * job follows, and the candidates that the recipe offers for a matrix. Pure: everything follows from shapes and
 * options, so that sizes are known before any work begins. How a method computes is in stages/methods/. */
#ifndef DECANT_STAGES_CANDIDATE_H
#define DECANT_STAGES_CANDIDATE_H

#include "kernels/backend.h"

typedef enum decant_method {
    DECANT_METHOD_KMEANS, /* levels of each row by k-means, weighted by Fisher sums; dense and sparse */
    DECANT_METHOD_HIGGS,  /* rotated rows on a grid for the Gaussian; needs no data */
    DECANT_METHOD_RTN,    /* round to nearest: a uniform grid between a group's ends; needs no data */
    DECANT_METHOD_NF4,    /* 16 quantiles of the Gaussian in blocks of 64; needs no data */
    DECANT_METHOD_GUIDED, /* levels of each row and codes that make up for each other's errors, by Hessians */
    DECANT_METHODS
} decant_method;

enum {
    DECANT_CANDIDATES = 64, /* most that one layer may have */
    DECANT_WIDTHS_MAXIMUM = 32,
    DECANT_SETTINGS_MAXIMUM = 8, /* dimensions, or groups, in one recipe */
    DECANT_NF4_GROUP = 64,
    DECANT_ROTATION_MAXIMUM = 1024, /* columns that one Walsh–Hadamard transform mixes */
};

/* What to try on every layer. */
typedef struct decant_recipe {
    bool uses[DECANT_METHODS];
    int widths;
    double width[DECANT_WIDTHS_MAXIMUM]; /* code bits a weight, ascending; a method takes those it has */
    bool widths_asked;                   /* each width was asked for by name: some method must have it */
    int dimensions;
    int64_t dimension[DECANT_SETTINGS_MAXIMUM]; /* of HIGGS's grids: 1 … 4 */
    int groups;
    int64_t group[DECANT_SETTINGS_MAXIMUM]; /* columns that share a scale in HIGGS and RTN; 0: the whole row */
    double sensitive, outliers;             /* fractions of a matrix; for k-means, and guided without its own */
    decant_level_search search;             /* for k-means, and what guided starts from */
    int hessian_groups;                     /* behind the Fisher sums of a layer; 0 without guided */
    int guided_passes, guided_rounds;       /* see decant_guided_search */
    double guided_damping;
    int guided_sparse_count; /* fractions of a matrix that guided keeps apart for their errors, each a */
    double guided_sparse[DECANT_SETTINGS_MAXIMUM]; /* candidate, ascending; 0 of them: those of k-means */
    uint64_t seed;                                 /* of Lloyd's k-means and of HIGGS's signs */
    double curvature;                              /* T' / N, see quantize.h; unused without Fisher sums */
} decant_recipe;

/* One possibility, and once it was tried what it costs. The same on every rank, and sent as it is: no padding.
 */
typedef struct decant_candidate {
    int32_t method;       /* decant_method */
    int32_t code_bits;    /* of a code */
    int32_t dimension;    /* columns that one code stands for; 1 in all methods but HIGGS */
    int32_t rotation;     /* columns that are mixed before coding; 1: none */
    int64_t group;        /* columns that share a scale, 0: the whole row; 0 too where rows have levels */
    double sparse;        /* fraction of the weights that are kept apart, where rows have levels; else 0 */
    int64_t sparse_count; /* the same as a number of weights */
    int64_t bytes;        /* everything that is stored */
    double predicted;     /* loss increase; relative · weights where there are no Fisher sums */
    double from_sums; /* the same by Fisher sums or Hessians, whatever sensitivities are measured afterwards */
    double relative;  /* Σ (w − ŵ)² / Σ w² */
} decant_candidate;

typedef struct decant_candidate_list {
    int count;
    decant_candidate candidate[DECANT_CANDIDATES];
} decant_candidate_list;

/* As the option and the container name it: "kmeans". */
const char *decant_method_name(decant_method method);
bool decant_method_find(const char *name, decant_method *method); /* false when there is none of this name */
bool decant_method_is_on_grid(decant_method method);              /* false: each row has its own levels */

enum { DECANT_GUIDED_SWEEPS = 4 }; /* over the codes in each of guided_rounds; as in LNQ, arXiv 2505.07004 */

/* Has the recipe a method whose rows have levels, and thus a sparse part: k-means or guided? */
bool decant_recipe_has_levels(const decant_recipe *recipe);

/* Does any method of the recipe need Fisher sums? */
bool decant_recipe_needs_statistics(const decant_recipe *recipe);

/* Fills the list for a matrix of this shape, method by method, in an order that does not depend on the shape;
 * `bytes` is filled in, `predicted` and `relative` are 0.
 * DECANT_ERROR_USAGE when no method has a width that was asked for, when nothing is offered at all, or more
 * than DECANT_CANDIDATES. */
decant_status decant_recipe_offer(const decant_recipe *recipe, int64_t rows, int64_t columns,
                                  decant_candidate_list *list, decant_error *err);

/* Bytes of the smallest one. */
int64_t decant_candidate_list_smallest(const decant_candidate_list *list);

/* Code bits a weight: code_bits / dimension. */
double decant_candidate_width(const decant_candidate *candidate);

/* Short, for people: "kmeans 3", "higgs 2.5 p=2", "rtn 4 g=64", "guided 3 + 0.45 %". */
void decant_candidate_describe(const decant_candidate *candidate, char *text, size_t size);

/* Are the rows on a grid that they share, or has each its own levels? */
bool decant_candidate_is_on_grid(const decant_candidate *candidate);

/* Is it the same grid? Of candidates on grids. And what its points take, stored once a model. */
bool decant_candidates_share_grid(const decant_candidate *a, const decant_candidate *b);
int64_t decant_candidate_grid_bytes(const decant_candidate *candidate);

/* The largest power of two that divides columns, at most DECANT_ROTATION_MAXIMUM: no padding is needed. */
int32_t decant_rotation_of(int64_t columns);

/* Bytes stored, before any compression: bit planes and levels of a k-means layer with its sparse part … */
int64_t decant_packed_bytes(int64_t rows, int64_t columns, int bits, int64_t sparse_count);
int decant_sparse_index_bytes(int64_t columns);

/* … of a guided one, whose levels take a byte each where codes are narrow (kernels/level_grid.h) … */
int64_t decant_guided_bytes(int64_t rows, int64_t columns, int bits, int64_t sparse_count);

/* … and bit planes, scales and offsets of a grid layer; the grid itself is stored once a model and not counted:
 * at most 64 KiB. group 0: the whole row. */
int64_t decant_grid_bytes(int64_t rows, int64_t columns, int code_bits, int dimension, int64_t group,
                          bool has_offsets);

/* How many weights a fraction of a matrix is: rounded to nearest. */
int64_t decant_fraction_count(double fraction, int64_t rows, int64_t columns);

/* How many weights of a matrix the recipe's fractions `sensitive` and `outliers` are, together never more than
 * it has. Pure. */
void decant_recipe_sparse_counts(const decant_recipe *recipe, int64_t rows, int64_t columns, int64_t *sensitive,
                                 int64_t *outliers);

/* Weights that the recipe's k-means candidates keep apart, and its guided ones without fractions of their own;
 * 0 when it has neither.
 */
int64_t decant_recipe_sparse_count(const decant_recipe *recipe, int64_t rows, int64_t columns);

/* Does the candidate keep apart what has the largest errors, and not what k-means does? */
bool decant_candidate_has_own_sparse(const decant_recipe *recipe, const decant_candidate *candidate);

#endif
