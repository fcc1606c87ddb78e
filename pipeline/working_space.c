/* See working_space.h. */
#include "pipeline/working_space.h"

static const int64_t MIB = 1 << 20;

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t round_up(int64_t bytes, int64_t step)
{
    return (bytes + step - 1) / step * step;
}

int64_t decant_activation_bytes(const decant_job_shape *shape)
{
    return shape->cuda && !shape->full_floats ? 2 : 4;
}

int64_t decant_compute_bytes(const decant_job_shape *shape)
{
    return shape->cuda ? decant_activation_bytes(shape) : (int64_t)decant_element_bytes(shape->element);
}

static int64_t query_width(const decant_model_config *config)
{
    return (int64_t)config->heads * config->head_dimension;
}

static int64_t widest_input(const decant_job_shape *shape, int layer)
{
    int64_t widest = 0;
    for (int i = 0; i < shape->family->linear_count; i++) {
        decant_linear linear;
        shape->family->linear(shape->config, layer, i, &linear);
        widest = larger(widest, linear.columns);
    }
    return widest;
}

/* The widest pair of input and output channels of a block's linear layers: what the token form squares. */
static int64_t widest_pair(const decant_job_shape *shape, int layer)
{
    int64_t widest = 0;
    for (int i = 0; i < shape->family->linear_count; i++) {
        decant_linear linear;
        shape->family->linear(shape->config, layer, i, &linear);
        widest = larger(widest, linear.rows + linear.columns);
    }
    return widest;
}

/* ---- the CPU ---- */

/* kernels/cpu/linear.c: a block of the weight as F32 a thread, where the file has another type. */
static int64_t cpu_linear(const decant_job_shape *shape)
{
    return shape->element == DECANT_F32 ? 0 : shape->threads * MIB;
}

/* kernels/cpu/attention.c and attention_backward.c, sequence by sequence */
static int64_t cpu_attention(const decant_job_shape *shape, int64_t tokens, bool backward)
{
    const int64_t query_block = 128, parts = 2;
    int64_t scores = shape->threads * query_block * tokens;
    if (!backward)
        return 4 * scores;
    return 4 * (2 * parts * tokens * query_width(shape->config) + 2 * scores);
}

static int64_t cpu_calibration(const decant_job_shape *shape, int layer, bool has_head)
{
    const decant_model_config *config = shape->config;
    int64_t rows = shape->micro_batch * shape->window, bytes = cpu_linear(shape);
    bytes = larger(bytes, cpu_attention(shape, shape->window, true));
    /* kernels/cpu/fisher.c: both squares, or a tile of G a thread */
    bytes = larger(bytes, shape->form == DECANT_FISHER_TOKEN ? 4 * rows * widest_pair(shape, layer)
                                                             : shape->threads * MIB);
    bytes = larger(bytes, 4 * config->hidden_size * (shape->threads + 1)); /* kernels/cpu/norm.c */
    if (shape->recipe.hessian_groups > 0) /* kernels/cpu/gram.c: an input, scaled */
        bytes = larger(bytes, 4 * rows * widest_input(shape, layer));
    if (has_head) /* kernels/cpu/cross_entropy.c */
        bytes = larger(bytes, 8 * rows + 4 * shape->threads * config->vocabulary_size);
    return bytes;
}

/* kernels/cpu/select_sparse.c (marks and ties, beside the backend's space) and fit_levels.c (a row's points and
 * tables a thread: 12 values of 8 bytes and 16 splits of 4 for every column) */
static int64_t cpu_kmeans(const decant_job_shape *shape, int64_t rows, int64_t columns)
{
    int64_t select = rows * columns + 8 * rows + 4 * shape->threads * columns;
    int64_t fit = shape->threads * (12 * 8 + 16 * 4) * columns;
    return larger(select, fit);
}

static bool uses_grids(const decant_job_shape *shape)
{
    for (int i = 0; i < DECANT_METHODS; i++)
        if (shape->recipe.uses[i] && decant_method_is_on_grid((decant_method)i))
            return true;
    return false;
}

/* kernels/cpu/grid_encode.c: figures of a row, signs, and three rows and two of codes a thread */
static int64_t cpu_grids(const decant_job_shape *shape, int64_t rows, int64_t columns)
{
    return 32 * rows + 4 * columns + shape->threads * (12 * (columns + 4) + 4 * columns);
}

/* kernels/cpu/guided.c: two objectives and three errors of a row, the feedback of a group with its order; a
 * thread, 32 rows with what is missing twice, their codes, books, first levels, a block of 64 columns and the
 * normal equations of their levels */
static int64_t cpu_guided(const decant_job_shape *shape, int64_t rows, int64_t columns)
{
    const int64_t tile = 32, block = 64, alignment = 64, book = 2308;
    const int64_t levels = (int64_t)1 << (int)shape->recipe.width[shape->recipe.widths - 1];
    int64_t codes = round_up(tile * columns, alignment), floats = round_up(4 * tile * columns, alignment);
    int64_t equations = 8 * tile * levels * (levels + 1) + 4 * tile * block * (levels + 1);
    int64_t of_group = round_up(4 * columns, alignment) + round_up(4 * columns * columns, alignment);
    int64_t books = round_up(tile * book, alignment) + round_up(2 * tile * levels, alignment);
    return round_up(40 * rows, alignment) + of_group +
           shape->threads * (3 * floats + 2 * codes + equations + books);
}

static int64_t cpu_quantization(const decant_job_shape *shape, int64_t rows, int64_t columns)
{
    int64_t levels = decant_recipe_has_levels(&shape->recipe) ? cpu_kmeans(shape, rows, columns) : 0;
    if (shape->recipe.uses[DECANT_METHOD_GUIDED])
        levels = larger(levels, cpu_guided(shape, rows, columns));
    return larger(levels, uses_grids(shape) ? cpu_grids(shape, rows, columns) : 0);
}

/* The widest input of a linear layer, whose rows a rotated layer turns into working space of their own:
 * kernels/cpu/grid_linear.c, kernels/cuda/grid_linear.cu */
static int64_t rotated_elements(const decant_job_shape *shape, int64_t rows)
{
    int64_t widest = larger(larger(shape->config->intermediate_size, shape->config->hidden_size),
                            query_width(shape->config));
    return shape->recipe.uses[DECANT_METHOD_HIGGS] ? (rows + 1) * widest : 0;
}

static int64_t cpu_validation(const decant_job_shape *shape, bool has_head)
{
    int64_t bytes = larger(shape->threads * MIB, cpu_attention(shape, shape->validation_window, false));
    bytes = larger(bytes, shape->threads * MIB + 4 * rotated_elements(shape, shape->validation_window));
    if (has_head) /* kernels/cpu/compare.c */
        bytes =
            larger(bytes, 32 * shape->validation_window + 8 * shape->threads * shape->config->vocabulary_size);
    return bytes;
}

/* ---- CUDA ---- */

/* kernels/cuda/attention_plain.cu where the tensor-core kernels do not reach, else the deltas of
 * attention_backward.cu */
static int64_t cuda_attention(const decant_job_shape *shape, int64_t tokens, int64_t sequences, bool backward)
{
    const decant_model_config *config = shape->config;
    bool has_kernel = !shape->full_floats && (config->head_dimension == 64 || config->head_dimension == 128);
    int64_t delta = backward ? 4 * config->heads * tokens * sequences : 0;
    if (has_kernel)
        return delta;
    int64_t head_bytes = 4 * tokens * tokens, fit = 256 * MIB / head_bytes;
    int64_t scores = head_bytes * larger(1, smaller(fit, config->heads));
    int64_t queries = query_width(config), keys = (int64_t)config->key_value_heads * config->head_dimension;
    int64_t converted =
        shape->full_floats ? 0 : 4 * tokens * (backward ? 3 * queries + 4 * keys : 2 * queries + 2 * keys);
    return (backward ? 2 : 1) * scores + delta + converted;
}

static int64_t cuda_calibration(const decant_job_shape *shape, int layer)
{
    int64_t rows = shape->micro_batch * shape->window;
    int64_t bytes = cuda_attention(shape, shape->window, shape->micro_batch, true);
    if (shape->recipe.hessian_groups > 0) /* kernels/cuda/gram.cu: an input, scaled, and the scales */
        bytes =
            larger(bytes, round_up(decant_activation_bytes(shape) * rows * widest_input(shape, layer), 256) +
                              round_up(4 * rows, 256));
    /* kernels/cuda/fisher.cu: both squares, or a tile of G */
    return larger(bytes, shape->form == DECANT_FISHER_TOKEN
                             ? decant_activation_bytes(shape) * rows * widest_pair(shape, layer)
                             : 17 * MIB);
}

/* kernels/cuda/quantize_cuda.cu, row_sort.cu, kmeans_exact.cu, kmeans_lagrangian.cu: bytes of one row */
static int64_t cuda_row_bytes(const decant_job_shape *shape, int64_t columns)
{
    const int64_t block_sort_columns = 512 * 44, shared_points = 14523; /* of an H100's shared memory */
    int64_t stride = (columns + 8) / 8 * 8, index = columns <= UINT16_MAX ? 2 : 4;
    int64_t sort = columns > block_sort_columns ? 16 * columns : 0, exact = 0, penalty = 0, boundaries = 0;
    for (int i = 0; i < shape->recipe.widths; i++) {
        int64_t clusters = (int64_t)1 << (int)shape->recipe.width[i];
        boundaries += 4 * (clusters + 1);
        if (clusters <= 16)
            exact = stride * (clusters - 2) * index + 4 + (columns > shared_points ? 16 * stride : 0);
        else
            penalty = stride * (8 + 4 * index);
    }
    if (shape->recipe.search == DECANT_LEVELS_LLOYD)
        exact = penalty = 16 * stride; /* kernels/cuda/kmeans_lloyd.cu, about */
    return 28 * stride + 16 + boundaries + larger(sort, larger(exact, penalty));
}

/* kernels/cuda/quantize_cuda.cu: batches of rows */
static int64_t cuda_kmeans(const decant_job_shape *shape, int64_t rows, int64_t columns)
{
    const int64_t workspace = (int64_t)2 << 30;
    int64_t row = cuda_row_bytes(shape, columns), fitting = larger(1, workspace / row);
    int64_t batches = (rows + fitting - 1) / fitting;
    return (rows + batches - 1) / batches * row;
}

/* kernels/cuda/guided.cu: δ in F32 and in parts, parts of H, codes, marks, the gradient of a panel, steps of a
 * block, first levels and results of all rows; then codes as a matrix, sums by level and the equations of the
 * rows that are solved at once; and for passes feedback, orders, and a block of elimination of each group */
static int64_t cuda_guided(const decant_job_shape *shape, int64_t rows, int64_t columns, int bits)
{
    const int64_t panel = 1024, block = 128, level_rows = 8192, result = 40, levels = (int64_t)1 << bits;
    const int64_t groups = shape->recipe.hessian_groups;
    const bool passes = shape->recipe.guided_passes > 0 && shape->recipe.guided_rounds > 0;
    const int64_t handing = passes ? groups : 0;
    int64_t most = larger(1, level_rows / levels), of_group = (rows + groups - 1) / groups;
    int64_t batches = (of_group + most - 1) / most, at_once = (of_group + batches - 1) / batches;
    const int64_t arrays[] = {4 * groups,
                              4 * rows * columns,
                              2 * 2 * rows * columns,
                              2 * 2 * groups * columns * columns,
                              rows * columns,
                              4 * rows * ((columns + 31) / 32),
                              4 * rows * panel,
                              4 * rows * block,
                              2 * rows * levels,
                              result * rows,
                              2 * at_once * levels * columns,
                              4 * at_once * levels * panel,
                              8 * at_once * levels * levels,
                              8 * at_once * levels,
                              at_once * levels,
                              4 * handing * columns * columns,
                              4 * handing * columns,
                              4 * handing * block * block,
                              4 * handing * block,
                              4 * handing * block * columns,
                              4 * handing};
    int64_t bytes = 0;
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        bytes += round_up(arrays[i], 256);
    return bytes;
}

static int64_t cuda_quantization(const decant_job_shape *shape, int64_t rows, int64_t columns)
{
    if (!decant_recipe_has_levels(&shape->recipe))
        return 24 * (rows + 1) + MIB; /* kernels/cuda/grid_encode.cu: figures of a row */
    int64_t bytes = cuda_kmeans(shape, rows, columns);
    for (int i = 0; i < shape->recipe.widths && shape->recipe.uses[DECANT_METHOD_GUIDED]; i++) {
        const int bits = (int)shape->recipe.width[i];
        if (bits >= DECANT_BITS_MINIMUM && bits <= DECANT_BITS_MAXIMUM)
            bytes = larger(bytes, cuda_guided(shape, rows, columns, bits));
    }
    return bytes;
}

/* ---- both ---- */

/* kernels/cuda/memory_cuda.cu rounds its working space up. */
static int64_t granted(const decant_job_shape *shape, int64_t bytes)
{
    return shape->cuda ? round_up(bytes, MIB) : bytes;
}

int64_t decant_calibration_working_bytes(const decant_job_shape *shape, int layer, bool has_head)
{
    return granted(shape,
                   shape->cuda ? cuda_calibration(shape, layer) : cpu_calibration(shape, layer, has_head));
}

int64_t decant_quantization_working_bytes(const decant_job_shape *shape, int64_t rows, int64_t columns)
{
    return granted(shape, shape->cuda ? cuda_quantization(shape, rows, columns)
                                      : cpu_quantization(shape, rows, columns));
}

int64_t decant_validation_working_bytes(const decant_job_shape *shape, bool has_head)
{
    /* kernels/cuda/packed_linear.cu: a tile of decoded rows */
    int64_t cuda =
        larger(32 * MIB, cuda_attention(shape, shape->validation_window, shape->validation_batch, false)) +
        decant_activation_bytes(shape) *
            rotated_elements(shape, shape->validation_batch * shape->validation_window);
    return granted(shape, shape->cuda ? cuda : cpu_validation(shape, has_head));
}

int64_t decant_backend_bytes(const decant_job_shape *shape)
{
    return shape->cuda ? 32 * MIB + 16 * MIB : 0;
}
