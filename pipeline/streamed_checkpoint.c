/* See streamed_checkpoint.h. */
#include "pipeline/streamed_checkpoint.h"

#include "base/memory.h"
#include "io/checksum.h"

#include <stdio.h>
#include <string.h>

/* Of the 30 seconds in which a job leaves, those after which no other boundary is begun. */
static const double BOUNDARIES_S = 10;

/* ---- whose is what ---- */

/* The place of a layer among this rank's; −1: it is another stage's. */
static int block_of(const decant_job *job, int layer)
{
    decant_layer_range own = decant_job_layers(job);
    return layer >= own.first && layer < own.first + own.count ? layer - own.first : -1;
}

/* Where this rank keeps a boundary, as decant_streamed_calibration_fetch counts; −1: elsewhere. What enters a
 * layer is with the layer … */
static int place_of_boundary(const decant_job *job, int boundary)
{
    int before = block_of(job, boundary - 1);
    if (boundary == job->config.layers)
        return before < 0 ? -1 : before + 1;
    return block_of(job, boundary);
}

/* … and its gradient with the layer before, which takes it. */
static int place_of_gradient(const decant_job *job, int left)
{
    int before = block_of(job, left - 1);
    return before < 0 ? -1 : before + 1;
}

/* Rows of activations of a replica's sequences. */
static int64_t rows_of(const decant_calibration_run *run, int replica)
{
    int64_t all = decant_schedule_micro_batches(run->tokens->sequences, run->micro_batch), first, count,
            sequences = 0;
    decant_schedule_share(all, run->job->grid.replicas, replica, &first, &count);
    for (int64_t i = first; i < first + count; i++)
        sequences += decant_schedule_micro_batch(run->tokens->sequences, run->micro_batch, i).count;
    return sequences * run->tokens->length;
}

static int64_t elements_of(const decant_calibration_run *run, int64_t sequences)
{
    return sequences * run->tokens->length * run->job->config.hidden_size;
}

static decant_stored stored_type(const decant_job *job)
{
    return decant_stored_of_element(job->backend->activation);
}

static void name_replica(int replica, char path[DECANT_CONTAINER_PATH_BYTES])
{
    snprintf(path, DECANT_CONTAINER_PATH_BYTES, "/replica%d", replica);
}

decant_status decant_streamed_checkpoint_open(decant_calibration_run *run,
                                              decant_streamed_calibration *calibration,
                                              const decant_block_sink *sink,
                                              decant_streamed_checkpoint *checkpoint, decant_error *err)
{
    const decant_job *job = run->job;
    const decant_work_directory *work = &job->work;
    int layers = job->config.layers, left = work->left >= 0 && work->left < layers ? work->left : layers;
    int most = left < layers ? left : layers + 1; /* what lies behind is done with */
    size_t record_bytes =
        (size_t)elements_of(run, run->micro_batch) * decant_element_bytes(job->backend->activation);
    *checkpoint = (decant_streamed_checkpoint){
        .run = run,
        .calibration = calibration,
        .sink = sink,
        .saved = {.boundaries = work->boundaries < most ? work->boundaries : most, .left = left},
    };
    return decant_memory_allocate(record_bytes, "activations to save", (void **)&checkpoint->record, err);
}

void decant_streamed_checkpoint_close(decant_streamed_checkpoint *checkpoint)
{
    decant_memory_free(checkpoint->record);
    *checkpoint = (decant_streamed_checkpoint){0};
}

/* ---- writing ---- */

/* A file while it is written. */
typedef struct activation_file {
    const char *path;
    int place; /* where this rank keeps what is written; −1: elsewhere */
    bool has_records, has_losses;
    int *ids; /* [replicas] */
    int losses_id;
    double *losses; /* [sequences] of all ranks */
} activation_file;

/* Local: the activations of this rank's sequences. */
static decant_status write_records(const decant_streamed_checkpoint *checkpoint, const activation_file *file,
                                   decant_container_writer *writer, decant_error *err)
{
    const decant_calibration_run *run = checkpoint->run;
    int64_t written = 0;
    decant_status status = DECANT_OK;
    for (int64_t i = 0; file->has_records && file->place >= 0 && i < run->batches; i++) {
        int64_t sequences = decant_calibration_run_batch(run, i).count, count = elements_of(run, sequences);
        DECANT_TRY(decant_streamed_calibration_fetch(checkpoint->calibration, file->place, i, sequences,
                                                     checkpoint->record, err));
        DECANT_TRY(decant_container_write(writer, file->ids[run->job->replica], written, count,
                                          checkpoint->record, err));
        written += count;
    }
done:
    return status;
}

static decant_status set_head(decant_container_writer *writer, const char *kind, decant_error *err)
{
    decant_status status = decant_container_set_text(writer, "/", "kind", kind, err);
    return status == DECANT_OK ? decant_container_set_text(writer, "/", "program_version", DECANT_VERSION, err)
                               : status;
}

static decant_status define_activations(const decant_calibration_run *run, activation_file *file,
                                        decant_container_writer *writer, decant_error *err)
{
    const decant_job *job = run->job;
    decant_shape sequences = {1, {run->tokens->sequences}};
    decant_status status;
    DECANT_TRY(set_head(writer, "activations", err));
    for (int replica = 0; file->has_records && replica < job->grid.replicas; replica++) {
        char path[DECANT_CONTAINER_PATH_BYTES];
        decant_shape shape = {2, {rows_of(run, replica), job->config.hidden_size}};
        name_replica(replica, path);
        DECANT_TRY(decant_container_define(writer, path, stored_type(job), &shape, &file->ids[replica], err));
    }
    if (file->has_losses)
        DECANT_TRY(
            decant_container_define(writer, "/losses", DECANT_STORED_F64, &sequences, &file->losses_id, err));
done:
    return status;
}

/* Collective. */
static decant_status write_file(decant_streamed_checkpoint *checkpoint, activation_file *file,
                                decant_error *err)
{
    decant_calibration_run *run = checkpoint->run;
    decant_ranks *ranks = run->job->ranks;
    decant_container_writer *writer = NULL;
    decant_status status;
    if (file->has_losses) {
        memcpy(file->losses, run->losses, (size_t)run->tokens->sequences * sizeof *run->losses);
        DECANT_TRY(decant_ranks_sum(ranks, file->losses, (int)run->tokens->sequences, err));
    }
    DECANT_TRY(decant_container_create(ranks, file->path, true, &writer, err));
    DECANT_TRY(define_activations(run, file, writer, err));
    DECANT_TRY(decant_container_begin(writer, err));
    status = write_records(checkpoint, file, writer, err);
    if (status == DECANT_OK && file->has_losses && ranks->rank == 0)
        status = decant_container_write(writer, file->losses_id, 0, run->tokens->sequences, file->losses, err);
    DECANT_TRY(decant_ranks_agree(ranks, status, err));
    DECANT_TRY(decant_container_finish(&writer, err));
done:
    decant_container_discard(&writer);
    return status;
}

/* Collective. */
static decant_status write_activations(decant_streamed_checkpoint *checkpoint, decant_work_kind kind,
                                       int number, int place, decant_error *err)
{
    decant_job *job = checkpoint->run->job;
    char path[DECANT_WORK_PATH_BYTES];
    activation_file file = {
        .path = path,
        .place = place,
        .has_records = kind == DECANT_WORK_BOUNDARY || number > 0,
        .has_losses = kind == DECANT_WORK_GRADIENT || number == job->config.layers,
    };
    decant_status status;
    decant_work_directory_name_file(&job->work, kind, number, path);
    status = decant_memory_allocate((size_t)job->grid.replicas * sizeof *file.ids, "dataset numbers",
                                    (void **)&file.ids, err);
    if (status == DECANT_OK)
        status = decant_memory_allocate((size_t)checkpoint->run->tokens->sequences * sizeof *file.losses,
                                        "losses", (void **)&file.losses, err);
    status = decant_ranks_agree(job->ranks, status, err);
    if (status == DECANT_OK)
        status = write_file(checkpoint, &file, err);
    decant_memory_free(file.ids);
    decant_memory_free(file.losses);
    return status;
}

/* Collective. */
static decant_status write_layer(decant_streamed_checkpoint *checkpoint, int layer, decant_error *err)
{
    decant_calibration_run *run = checkpoint->run;
    decant_job *job = run->job;
    const decant_block_sink *sink = checkpoint->sink;
    int block = block_of(job, layer);
    char path[DECANT_WORK_PATH_BYTES];
    decant_container_writer *writer = NULL;
    decant_status status;
    decant_work_directory_name_file(&job->work, DECANT_WORK_LAYER, layer, path);
    DECANT_TRY(decant_container_create(job->ranks, path, true, &writer, err));
    DECANT_TRY(set_head(writer, "layer", err));
    DECANT_TRY(sink->define(sink->context, writer, layer, err));
    DECANT_TRY(decant_container_begin(writer, err));
    if (block >= 0)
        status = sink->write(sink->context, writer, run->fisher, block, err);
    DECANT_TRY(decant_ranks_agree(job->ranks, status, err));
    DECANT_TRY(decant_container_finish(&writer, err));
done:
    decant_container_discard(&writer);
    return status;
}

/* Collective. The layers that went backward since, and where to go on. */
static decant_status write_layers(decant_streamed_checkpoint *checkpoint, int left, decant_error *err)
{
    decant_job *job = checkpoint->run->job;
    decant_status status;
    for (int layer = checkpoint->saved.left - 1; layer >= left; layer--)
        DECANT_TRY(write_layer(checkpoint, layer, err));
    DECANT_TRY(write_activations(checkpoint, DECANT_WORK_GRADIENT, left, place_of_gradient(job, left), err));
    if (job->ranks->rank == 0) {
        decant_work_directory_drop_files(&job->work, DECANT_WORK_GRADIENT, left + 1, job->config.layers);
        decant_work_directory_drop_files(&job->work, DECANT_WORK_BOUNDARY, left, job->config.layers + 1);
    }
    checkpoint->saved.left = left;
    if (checkpoint->saved.boundaries > left)
        checkpoint->saved.boundaries = left;
done:
    return status;
}

/* Collective. The next one. */
static decant_status write_boundary(decant_streamed_checkpoint *checkpoint, decant_error *err)
{
    int boundary = checkpoint->saved.boundaries;
    decant_status status = write_activations(checkpoint, DECANT_WORK_BOUNDARY, boundary,
                                             place_of_boundary(checkpoint->run->job, boundary), err);
    checkpoint->saved.boundaries += status == DECANT_OK;
    return status;
}

/* Collective: rank 0's clock decides. */
static decant_status has_time(decant_ranks *ranks, bool leaves, double start_s, bool *goes_on,
                              decant_error *err)
{
    *goes_on = !leaves || decant_clock_s() - start_s < BOUNDARIES_S;
    return decant_ranks_broadcast(ranks, 0, goes_on, sizeof *goes_on, err);
}

decant_status decant_streamed_checkpoint_write(decant_streamed_checkpoint *checkpoint,
                                               decant_streamed_state state, bool leaves, decant_error *err)
{
    decant_job *job = checkpoint->run->job;
    double start_s = decant_clock_s();
    bool goes_on = true;
    decant_status status = DECANT_OK;
    if (state.boundaries > 0 && checkpoint->saved.boundaries == 0)
        DECANT_TRY(write_boundary(checkpoint, err)); /* from which the others can be computed */
    if (state.left < checkpoint->saved.left)
        DECANT_TRY(write_layers(checkpoint, state.left, err));
    while (checkpoint->saved.boundaries < state.boundaries) {
        DECANT_TRY(has_time(job->ranks, leaves, start_s, &goes_on, err));
        if (!goes_on)
            break;
        DECANT_TRY(write_boundary(checkpoint, err));
    }
done:
    return status;
}

/* ---- reading ---- */

/* Local. A replica's activations, a micro-batch after the other; where this rank keeps none, nothing. */
static decant_status read_activations(decant_streamed_checkpoint *checkpoint, const decant_container *file,
                                      int place, decant_error *err)
{
    const decant_calibration_run *run = checkpoint->run;
    decant_stored type = stored_type(run->job);
    char path[DECANT_CONTAINER_PATH_BYTES];
    uint32_t checksum = 0;
    int64_t read = 0;
    decant_status status = DECANT_OK;
    name_replica(run->job->replica, path);
    for (int64_t i = 0; i < run->batches; i++) {
        int64_t sequences = decant_calibration_run_batch(run, i).count, count = elements_of(run, sequences);
        DECANT_TRY(decant_container_read_part(file, path, type, read, count, checkpoint->record, err));
        DECANT_TRY(decant_streamed_calibration_restore(checkpoint->calibration, place, i, sequences,
                                                       checkpoint->record, err));
        checksum = decant_checksum(checksum, checkpoint->record, (size_t)count * decant_stored_bytes(type));
        read += count;
    }
    DECANT_TRY(decant_container_compare_checksum(file, path, checksum, err));
done:
    return status;
}

/* Local. place −1: only the losses, which are rank 0's to read. */
static decant_status restore_activations(decant_streamed_checkpoint *checkpoint, decant_work_kind kind,
                                         int number, int place, decant_error *err)
{
    decant_calibration_run *run = checkpoint->run;
    decant_job *job = run->job;
    bool has_losses = kind == DECANT_WORK_GRADIENT || number == job->config.layers;
    bool reads_losses = has_losses && job->ranks->rank == 0;
    char path[DECANT_WORK_PATH_BYTES];
    decant_container *file = NULL;
    decant_status status = DECANT_OK;
    if (place < 0 && !reads_losses)
        return DECANT_OK;
    decant_work_directory_name_file(&job->work, kind, number, path);
    DECANT_TRY(decant_container_open(path, &file, err));
    if (place >= 0)
        DECANT_TRY(read_activations(checkpoint, file, place, err));
    if (reads_losses)
        DECANT_TRY(decant_container_read(file, "/losses", DECANT_STORED_F64,
                                         &(decant_shape){1, {run->tokens->sequences}}, run->losses, err));
done:
    decant_container_close(&file);
    return status;
}

static decant_status restore_layer(decant_streamed_checkpoint *checkpoint, int layer, decant_error *err)
{
    decant_job *job = checkpoint->run->job;
    const decant_block_sink *sink = checkpoint->sink;
    int block = block_of(job, layer);
    char path[DECANT_WORK_PATH_BYTES];
    decant_container *file = NULL;
    decant_status status = DECANT_OK;
    if (block < 0)
        return DECANT_OK;
    decant_work_directory_name_file(&job->work, DECANT_WORK_LAYER, layer, path);
    DECANT_TRY(decant_container_open(path, &file, err));
    DECANT_TRY(sink->read(sink->context, file, checkpoint->run->fisher, block, err));
done:
    decant_container_close(&file);
    return status;
}

decant_status decant_streamed_checkpoint_restore(decant_streamed_checkpoint *checkpoint, decant_error *err)
{
    const decant_job *job = checkpoint->run->job;
    int layers = job->config.layers, left = checkpoint->saved.left;
    decant_status status = DECANT_OK;
    if (left > 0 && left < layers && checkpoint->saved.boundaries == 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "boundary.0.h5 is missing in %s", job->work.path);
    for (int boundary = 0; boundary < checkpoint->saved.boundaries; boundary++)
        DECANT_TRY(restore_activations(checkpoint, DECANT_WORK_BOUNDARY, boundary,
                                       place_of_boundary(job, boundary), err));
    for (int layer = layers - 1; layer >= left; layer--)
        DECANT_TRY(restore_layer(checkpoint, layer, err));
    if (left < layers)
        DECANT_TRY(
            restore_activations(checkpoint, DECANT_WORK_GRADIENT, left, place_of_gradient(job, left), err));
done:
    return decant_error_name(status, "what was saved cannot be used (--overwrite-work begins anew)", err);
}
