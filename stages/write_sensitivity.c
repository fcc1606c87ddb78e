/* See write_sensitivity.h. */
#include "stages/write_sensitivity.h"

static const char group[] = "/sensitivity";

static decant_status set_attributes(decant_container_writer *writer, const decant_sensitivity *s,
                                    decant_error *err)
{
    const decant_agreement *agreement = &s->agreement;
    decant_status status;
    DECANT_TRY(decant_container_set_text(writer, group, "kind", decant_sensitivity_kind_name(s->kind), err));
    DECANT_TRY(
        decant_container_set_text(writer, group, "measure", decant_sensitivity_measure_name(s->measure), err));
    DECANT_TRY(decant_container_set_text(writer, group, "precision", decant_element_name(s->precision), err));
    DECANT_TRY(decant_container_set_integer(writer, group, "sequences", s->sequences, err));
    DECANT_TRY(decant_container_set_integer(writer, group, "length", s->length, err));
    DECANT_TRY(decant_container_set_integer(writer, group, "tokens_crc32", s->tokens_checksum, err));
    DECANT_TRY(decant_container_set_integer(writer, group, "random_tokens", s->random_tokens, err));
    DECANT_TRY(decant_container_set_integer(writer, group, "negatives", s->negatives, err));
    DECANT_TRY(decant_container_set_integer(writer, group, "compared", agreement->count, err));
    DECANT_TRY(decant_container_set_real(writer, group, "predicted_sum", agreement->predicted_sum, err));
    DECANT_TRY(decant_container_set_real(writer, group, "measured_sum", agreement->measured_sum, err));
    DECANT_TRY(decant_container_set_real(writer, group, "pearson", agreement->correlation, err));
done:
    return status;
}

decant_status decant_sensitivity_define(decant_container_writer *writer, const decant_sensitivity *s,
                                        decant_sensitivity_ids *ids, decant_error *err)
{
    if (s->kind == DECANT_SENSITIVITY_FISHER)
        return DECANT_OK;
    decant_shape layers = {1, {s->layers}}, levels = {1, {s->levels}}, all = {2, {s->layers, s->levels}};
    decant_status status;
    DECANT_TRY(
        decant_container_define(writer, "/sensitivity/value", DECANT_STORED_F64, &layers, &ids->value, err));
    DECANT_TRY(decant_container_define(writer, "/sensitivity/candidate", DECANT_STORED_I32, &layers,
                                       &ids->candidate, err));
    DECANT_TRY(
        decant_container_define(writer, "/sensitivity/alone", DECANT_STORED_F64, &layers, &ids->alone, err));
    if (s->levels > 0) {
        DECANT_TRY(decant_container_define(writer, "/sensitivity/noise", DECANT_STORED_F64, &levels,
                                           &ids->noise, err));
        DECANT_TRY(
            decant_container_define(writer, "/sensitivity/noised", DECANT_STORED_F64, &all, &ids->noised, err));
    }
    DECANT_TRY(set_attributes(writer, s, err));
done:
    return status;
}

decant_status decant_sensitivity_write(decant_container_writer *writer, const decant_sensitivity *s,
                                       const decant_sensitivity_ids *ids, decant_error *err)
{
    if (s->kind == DECANT_SENSITIVITY_FISHER)
        return DECANT_OK;
    decant_status status;
    DECANT_TRY(decant_container_write(writer, ids->value, 0, s->layers, s->value, err));
    DECANT_TRY(decant_container_write(writer, ids->candidate, 0, s->layers, s->candidate, err));
    DECANT_TRY(decant_container_write(writer, ids->alone, 0, s->layers, s->alone, err));
    if (s->levels > 0) {
        DECANT_TRY(decant_container_write(writer, ids->noise, 0, s->levels, s->t, err));
        DECANT_TRY(decant_container_write(writer, ids->noised, 0, s->layers * s->levels, s->noised, err));
    }
done:
    return status;
}
