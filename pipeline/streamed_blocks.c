/* See streamed_blocks.h. */
#include "pipeline/streamed_blocks.h"

/* ---- as blocks pass ---- */

static decant_status take(void *context, decant_fisher_sums *fisher, int block, decant_error *err)
{
    decant_streamed_blocks *blocks = context;
    decant_job *job = blocks->job;
    decant_status status = DECANT_OK;
    if (blocks->share)
        return decant_job_quantize_block(job, &blocks->recipe, fisher, block, blocks->share, err);
    for (int i = 0; i < job->family->linear_count && status == DECANT_OK; i++)
        if (decant_fisher_sums_at(fisher, block, i))
            status = decant_fisher_sums_park(fisher, block, i, err);
    return status;
}

/* ---- saved ---- */

static decant_linear linear_of(const decant_job *job, int layer, int index)
{
    decant_linear linear;
    job->family->linear(&job->config, layer, index, &linear);
    return linear;
}

static decant_status define(void *context, decant_container_writer *writer, int layer, decant_error *err)
{
    decant_streamed_blocks *blocks = context;
    const decant_job *job = blocks->job;
    decant_status status = DECANT_OK;
    if (!blocks->share)
        return decant_fisher_file_define_block(writer, &job->config, job->family, layer,
                                               decant_options_hessian_groups(job->options), "",
                                               blocks->datasets.sums, err);
    for (int i = 0; i < job->family->linear_count && status == DECANT_OK; i++) {
        decant_linear linear = linear_of(job, layer, i);
        status =
            decant_quantized_file_define(writer, &blocks->recipe, &linear, &blocks->datasets.quantized[i], err);
    }
    return status;
}

/* Where matrix i of a rank's share is in a block of its layers; −1: in another block. */
static int place_in_block(const decant_job *job, int64_t matrix, int block)
{
    int linears = job->family->linear_count;
    int64_t place = matrix - (int64_t)(decant_job_layers(job).first + block) * linears;
    return place >= 0 && place < linears ? (int)place : -1;
}

static decant_status write(void *context, decant_container_writer *writer, const decant_fisher_sums *fisher,
                           int block, decant_error *err)
{
    decant_streamed_blocks *blocks = context;
    const decant_quantized_share *share = blocks->share;
    int layer = decant_job_layers(blocks->job).first + block;
    decant_status status = DECANT_OK;
    if (!share)
        return decant_fisher_file_write_block(writer, fisher, block, blocks->datasets.sums, err);
    for (int64_t i = 0; i < share->count && status == DECANT_OK; i++) {
        int place = place_in_block(blocks->job, share->matrices[i], block);
        if (place < 0)
            continue;
        decant_linear linear = linear_of(blocks->job, layer, place);
        status = decant_quantized_file_write(writer, &linear, &blocks->datasets.quantized[place],
                                             &share->layers[i], &share->rows[i], err);
    }
    return status;
}

static decant_status read_sums(const decant_job *job, const decant_container *file, decant_fisher_sums *fisher,
                               int block, decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int i = 0; i < job->family->linear_count && status == DECANT_OK; i++)
        if (decant_job_owner(job, block, i) == job->replica)
            status = decant_fisher_file_read_parked(file, "", fisher, block, i, err);
    return status;
}

static decant_status read(void *context, const decant_container *file, decant_fisher_sums *fisher, int block,
                          decant_error *err)
{
    decant_streamed_blocks *blocks = context;
    decant_quantized_share *share = blocks->share;
    int layer = decant_job_layers(blocks->job).first + block;
    decant_status status = DECANT_OK;
    if (!share)
        return read_sums(blocks->job, file, fisher, block, err);
    for (int64_t i = 0; i < share->count && status == DECANT_OK; i++) {
        int place = place_in_block(blocks->job, share->matrices[i], block);
        if (place < 0)
            continue;
        decant_linear linear = linear_of(blocks->job, layer, place);
        status =
            decant_quantized_file_read(file, &blocks->recipe, &linear, &share->layers[i], &share->rows[i], err);
    }
    share->blocks_done++;
    return status;
}

decant_block_sink decant_streamed_blocks_sink(decant_streamed_blocks *blocks)
{
    return (decant_block_sink){.take = take, .define = define, .write = write, .read = read, .context = blocks};
}
