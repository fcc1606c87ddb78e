/* See statistics.h. */
#include "stages/statistics.h"

#include "base/memory.h"
#include "stages/fisher_file.h"
#include "stages/gradients.h"

#include <string.h>

static const char *const form_names[] = {
    [DECANT_FISHER_SEQUENCE] = "sequence", [DECANT_FISHER_TOKEN] = "token"};

decant_status decant_statistics_set_origin(decant_container_writer *writer,
                                           const decant_statistics_origin *origin, decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_container_set_text(writer, "/", "kind", "statistics", err));
    DECANT_TRY(decant_container_set_text(writer, "/", "program_version", DECANT_VERSION, err));
    DECANT_TRY(decant_container_set_text(writer, "/", "fisher", form_names[origin->form], err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "sequences", origin->sequences, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "length", origin->length, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "micro_batch", origin->micro_batch, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "replicas", origin->replicas, err));
    DECANT_TRY(decant_container_set_real(writer, "/", "loss", origin->loss, err));
    DECANT_TRY(
        decant_container_set_integer(writer, "/", "calibration_crc32", origin->calibration_checksum, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "model_crc32", origin->model_checksum, err));
done:
    return status;
}

/* Collective: an empty file in which all sums of a model have a place; ids is freed by the caller, also on
 * failure. */
static decant_status begin_file(decant_ranks *ranks, const char *path, bool overwrite,
                                const decant_model_config *config, const decant_family *family,
                                int hessian_groups, decant_container_writer **writer, int **ids,
                                decant_error *err)
{
    size_t count = (size_t)config->layers * (size_t)family->linear_count * DECANT_FISHER_DATASETS;
    decant_status status;
    DECANT_TRY(decant_ranks_agree(
        ranks, decant_memory_allocate(count * sizeof **ids, "dataset numbers", (void **)ids, err), err));
    DECANT_TRY(decant_container_create(ranks, path, overwrite, writer, err));
    DECANT_TRY(decant_fisher_file_define(*writer, config, family, hessian_groups, "", *ids, err));
    DECANT_TRY(decant_container_begin(*writer, err));
done:
    return status;
}

decant_status decant_statistics_write(decant_ranks *ranks, const char *path, bool overwrite,
                                      const decant_model_config *config, const decant_family *family,
                                      int hessian_groups, const decant_fisher_sums *fisher,
                                      const decant_statistics_origin *origin, decant_error *err)
{
    decant_container_writer *writer = NULL;
    int *ids = NULL;
    decant_status status;
    DECANT_TRY(begin_file(ranks, path, overwrite, config, family, hessian_groups, &writer, &ids, err));
    DECANT_TRY(decant_statistics_set_origin(writer, origin, err));
    DECANT_TRY(decant_ranks_agree(ranks, decant_fisher_file_write(writer, fisher, ids, err), err));
    DECANT_TRY(decant_container_finish(&writer, err));
done:
    decant_container_discard(&writer);
    decant_memory_free(ids);
    return status;
}

/* Local: all sums, from another program's. */
static decant_status write_gradients(decant_container_writer *writer, const decant_model_config *config,
                                     const decant_family *family, const decant_safetensors *gradients,
                                     const int *ids, uint32_t *checksum, decant_error *err)
{
    float *sums = NULL;
    decant_status status = DECANT_OK;
    for (int i = 0; i < config->layers * family->linear_count; i++) {
        decant_linear linear;
        family->linear(config, i / family->linear_count, i % family->linear_count, &linear);
        int64_t count = linear.rows * linear.columns;
        decant_memory_free(sums);
        DECANT_TRY(decant_memory_allocate((size_t)count * sizeof *sums, linear.name, (void **)&sums, err));
        DECANT_TRY(decant_gradients_read(gradients, &linear, sums, checksum, err));
        DECANT_TRY(decant_container_write(writer, ids[i * DECANT_FISHER_DATASETS], 0, count, sums, err));
    }
done:
    decant_memory_free(sums);
    return status;
}

decant_status decant_statistics_import(decant_ranks *ranks, const char *path, bool overwrite,
                                       const decant_model_config *config, const decant_family *family,
                                       const decant_safetensors *gradients,
                                       const decant_statistics_origin *origin, decant_error *err)
{
    decant_container_writer *writer = NULL;
    decant_statistics_origin imported = *origin;
    int *ids = NULL;
    uint32_t checksum = 0;
    decant_status status;
    DECANT_TRY(begin_file(ranks, path, overwrite, config, family, 0, &writer, &ids, err));
    if (ranks->rank == 0)
        status = write_gradients(writer, config, family, gradients, ids, &checksum, err);
    DECANT_TRY(decant_ranks_agree(ranks, status, err));
    DECANT_TRY(decant_ranks_broadcast(ranks, 0, &checksum, sizeof checksum, err));
    imported.calibration_checksum = checksum;
    DECANT_TRY(decant_statistics_set_origin(writer, &imported, err));
    DECANT_TRY(decant_container_finish(&writer, err));
done:
    decant_container_discard(&writer);
    decant_memory_free(ids);
    return status;
}

/* So that the tokens of many files together are countable in bytes. */
static decant_status check_counts(const decant_statistics_origin *origin, const char *path, decant_error *err)
{
    const int64_t most_sequences = INT32_MAX, longest = INT64_C(1) << 24;
    if (origin->sequences < 1 || origin->sequences > most_sequences || origin->length < 2 ||
        origin->length > longest)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s claims %lld sequences of %lld tokens", path,
                            (long long)origin->sequences, (long long)origin->length);
    if (origin->micro_batch < 1 || origin->micro_batch > most_sequences || origin->replicas < 1 ||
        origin->replicas > most_sequences)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s claims micro-batches of %lld sequences in %lld replicas", path,
                            (long long)origin->micro_batch, (long long)origin->replicas);
    return DECANT_OK;
}

static decant_status read_origin(const decant_container *file, const char *path,
                                 decant_statistics_origin *origin, decant_error *err)
{
    char kind[32], form[32];
    int64_t checksum, model_checksum;
    decant_status status;
    DECANT_TRY(decant_container_get_text(file, "/", "kind", kind, sizeof kind, err));
    if (strcmp(kind, "statistics") != 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s holds a %s, not statistics", path, kind);
    DECANT_TRY(decant_container_get_text(file, "/", "fisher", form, sizeof form, err));
    origin->form =
        strcmp(form, form_names[DECANT_FISHER_TOKEN]) == 0 ? DECANT_FISHER_TOKEN : DECANT_FISHER_SEQUENCE;
    if (strcmp(form, form_names[origin->form]) != 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s has Fisher sums of an unknown form, '%s'", path, form);
    DECANT_TRY(decant_container_get_integer(file, "/", "sequences", &origin->sequences, err));
    DECANT_TRY(decant_container_get_integer(file, "/", "length", &origin->length, err));
    DECANT_TRY(decant_container_get_integer(file, "/", "micro_batch", &origin->micro_batch, err));
    DECANT_TRY(decant_container_get_integer(file, "/", "replicas", &origin->replicas, err));
    DECANT_TRY(decant_container_get_real(file, "/", "loss", &origin->loss, err));
    DECANT_TRY(decant_container_get_integer(file, "/", "calibration_crc32", &checksum, err));
    origin->calibration_checksum = (uint32_t)checksum;
    if (decant_container_get_integer(file, "/", "model_crc32", &model_checksum, err) != DECANT_OK)
        DECANT_FAIL(err, DECANT_ERROR_INPUT,
                    "%s does not say which model it was made from, as statistics of older versions; make it "
                    "again with `decant calibrate`",
                    path);
    origin->model_checksum = (uint32_t)model_checksum;
    DECANT_TRY(check_counts(origin, path, err));
done:
    return status;
}

decant_status decant_statistics_open(const char *path, decant_container **file,
                                     decant_statistics_origin *origin, decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_container_open(path, file, err));
    DECANT_TRY(read_origin(*file, path, origin, err));
done:
    if (status != DECANT_OK)
        decant_container_close(file);
    return status;
}
