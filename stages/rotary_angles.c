/* See rotary_angles.h. */
#include "stages/rotary_angles.h"

#include "base/memory.h"

#include <math.h>
#include <string.h>

/* Slow pairs, whose waves are longer than the context of the first training, are stretched by the whole factor,
 * fast ones not at all, those between in part. */
static double scaled_by_wavelength(const decant_rotary_scaling *scaling, double frequency)
{
    const double two_pi = 6.283185307179586;
    double positions = (double)scaling->original_positions, wavelength = two_pi / frequency;
    if (wavelength > positions / scaling->low_frequency_factor)
        return frequency / scaling->factor;
    if (wavelength < positions / scaling->high_frequency_factor)
        return frequency;
    double unscaled_share = (positions / wavelength - scaling->low_frequency_factor) /
                            (scaling->high_frequency_factor - scaling->low_frequency_factor);
    return (1 - unscaled_share) * frequency / scaling->factor + unscaled_share * frequency;
}

/* By how much pair `pair` of a head's components turns from one position to the next, in radians:
 * base^(−2 pair / head_dimension), scaled as config->rotary_scaling says.
 * Sources: Su et al., "RoFormer" (2021), section 3.2.2; the scaling: rope_type "linear" (Chen et al.,
 * "Extending Context Window of Large Language Models via Positional Interpolation", 2023) and "llama3" of
 * Hugging Face's transformers. */
static double rotary_frequency(const decant_model_config *config, int64_t pair)
{
    double frequency = pow(config->rotary_base, -2.0 * (double)pair / (double)config->head_dimension);
    const decant_rotary_scaling *scaling = &config->rotary_scaling;
    if (scaling->by_wavelength)
        return scaled_by_wavelength(scaling, frequency);
    return scaling->factor > 0 ? frequency / scaling->factor : frequency;
}

/* In double, as an angle's error grows with the position. Later sequences repeat the first one's. */
static void compute_angles(const decant_model_config *config, int64_t tokens, int64_t sequences, float *cosines,
                           float *sines)
{
    int64_t half = config->head_dimension / 2, count = tokens * half;
    for (int64_t i = 0; i < half; i++) {
        double frequency = rotary_frequency(config, i);
        for (int64_t t = 0; t < tokens; t++) {
            cosines[t * half + i] = (float)cos((double)t * frequency);
            sines[t * half + i] = (float)sin((double)t * frequency);
        }
    }
    for (int64_t sequence = 1; sequence < sequences; sequence++) {
        memcpy(cosines + sequence * count, cosines, (size_t)count * sizeof *cosines);
        memcpy(sines + sequence * count, sines, (size_t)count * sizeof *sines);
    }
}

decant_status decant_rotary_angles_fill(decant_backend *backend, const decant_model_config *config,
                                        int64_t tokens, int64_t sequences, float *cosines, float *sines,
                                        decant_error *err)
{
    int64_t count = sequences * tokens * (config->head_dimension / 2);
    size_t size_bytes = (size_t)count * sizeof(float);
    void *host = NULL;
    decant_status status;
    DECANT_TRY(decant_memory_allocate(2 * size_bytes, "rotary angles", &host, err));
    compute_angles(config, tokens, sequences, host, (float *)host + count);
    DECANT_TRY(backend->memory->upload(backend, cosines, host, size_bytes, err));
    DECANT_TRY(backend->memory->upload(backend, sines, (float *)host + count, size_bytes, err));
    DECANT_TRY(backend->memory->synchronize(backend, err)); /* before the host's copy goes */
done:
    decant_memory_free(host);
    return status;
}

decant_status decant_rotary_angles_create(decant_backend *backend, const decant_model_config *config,
                                          int64_t tokens, int64_t sequences, float **cosines, float **sines,
                                          decant_error *err)
{
    size_t size_bytes = (size_t)(sequences * tokens * (config->head_dimension / 2)) * sizeof(float);
    const char *what = "rotary angles";
    void *device = NULL;
    decant_status status;
    *cosines = *sines = NULL;
    DECANT_TRY(backend->memory->allocate(backend, size_bytes, what, &device, err));
    *cosines = device;
    DECANT_TRY(backend->memory->allocate(backend, size_bytes, what, &device, err));
    *sines = device;
    DECANT_TRY(decant_rotary_angles_fill(backend, config, tokens, sequences, *cosines, *sines, err));
done:
    return status;
}
