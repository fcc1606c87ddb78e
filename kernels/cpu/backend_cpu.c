/* The CPU backend itself: its threads, its memory and where weights lie. Device memory is host memory here, and
 * a weight is borrowed from wherever it is, usually the mapped model file. The arithmetic is in the other
 * files. */
#include "base/memory.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/grid.h"
#include "kernels/cpu/openblas.h"

#include <omp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- memory ---- */

static void count(decant_cpu *cpu, int64_t bytes)
{
    cpu->bytes += bytes;
    if (cpu->bytes > cpu->peak_bytes)
        cpu->peak_bytes = cpu->bytes;
}

/* What release gives back to the count is kept in front of the block, one cache line so that alignment stays.
 */
enum { BLOCK_HEADER_BYTES = 64 };

static decant_status memory_allocate(decant_backend *backend, size_t size_bytes, const char *what,
                                     void **device, decant_error *err)
{
    *device = NULL;
    if (size_bytes > SIZE_MAX - BLOCK_HEADER_BYTES)
        return DECANT_ERROR(err, DECANT_ERROR_MEMORY, "%s: %zu bytes cannot be addressed", what, size_bytes);
    void *block;
    decant_status status = decant_memory_allocate(size_bytes + BLOCK_HEADER_BYTES, what, &block, err);
    if (status != DECANT_OK)
        return status;
    memcpy(block, &size_bytes, sizeof size_bytes);
    count(decant_cpu_of(backend), (int64_t)size_bytes);
    *device = (char *)block + BLOCK_HEADER_BYTES;
    return DECANT_OK;
}

static void memory_release(decant_backend *backend, void **device)
{
    if (!*device)
        return;
    char *block = (char *)*device - BLOCK_HEADER_BYTES;
    size_t size_bytes;
    memcpy(&size_bytes, block, sizeof size_bytes);
    count(decant_cpu_of(backend), -(int64_t)size_bytes);
    decant_memory_free(block);
    *device = NULL;
}

static decant_status memory_move(decant_backend *backend, void *target, const void *source, size_t size_bytes,
                                 decant_error *err)
{
    (void)backend, (void)err;
    if (size_bytes > 0)
        memcpy(target, source, size_bytes);
    return DECANT_OK;
}

static decant_status memory_zero(decant_backend *backend, void *device, size_t size_bytes, decant_error *err)
{
    (void)backend, (void)err;
    if (size_bytes > 0)
        memset(device, 0, size_bytes);
    return DECANT_OK;
}

static decant_status memory_allocate_host(decant_backend *backend, size_t size_bytes, const char *what,
                                          void **host, decant_error *err)
{
    (void)backend;
    return decant_memory_allocate(size_bytes, what, host, err);
}

static void memory_release_host(decant_backend *backend, void **host)
{
    (void)backend;
    decant_memory_free(*host);
    *host = NULL;
}

/* Nothing is ever under way: what was issued is done. */
static decant_status memory_synchronize(decant_backend *backend, decant_error *err)
{
    (void)backend, (void)err;
    return DECANT_OK;
}

/* There is nothing to remember of a moment. */
static decant_status memory_create_moment(decant_backend *backend, void **moment, decant_error *err)
{
    (void)backend, (void)err;
    *moment = NULL;
    return DECANT_OK;
}

static void memory_release_moment(decant_backend *backend, void **moment)
{
    (void)backend;
    *moment = NULL;
}

static decant_status memory_mark(decant_backend *backend, void *moment, decant_error *err)
{
    (void)backend, (void)moment, (void)err;
    return DECANT_OK;
}

static bool memory_is_reached(decant_backend *backend, const void *moment)
{
    (void)backend, (void)moment;
    return true;
}

static void memory_usage(decant_backend *backend, int64_t *bytes, int64_t *peak_bytes, int64_t *device_bytes)
{
    const decant_cpu *cpu = decant_cpu_of(backend);
    *bytes = cpu->bytes;
    *peak_bytes = cpu->peak_bytes;
    *device_bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * (int64_t)sysconf(_SC_PAGESIZE);
}

const decant_memory_kernels decant_cpu_memory_kernels = {
    .allocate = memory_allocate,
    .release = memory_release,
    .upload = memory_move,
    .download = memory_move,
    .copy = memory_move,
    .zero = memory_zero,
    .allocate_host = memory_allocate_host,
    .release_host = memory_release_host,
    .begin_download = memory_move,
    .finish_downloads = memory_synchronize,
    .begin_upload = memory_move,
    .create_moment = memory_create_moment,
    .release_moment = memory_release_moment,
    .mark = memory_mark,
    .is_reached = memory_is_reached,
    .synchronize = memory_synchronize,
    .usage = memory_usage,
};

decant_status decant_cpu_scratch(decant_backend *backend, size_t size_bytes, void **scratch, decant_error *err)
{
    decant_cpu *cpu = decant_cpu_of(backend);
    if (size_bytes > cpu->scratch_bytes) {
        decant_memory_free(cpu->scratch);
        cpu->scratch = NULL;
        cpu->scratch_bytes = 0;
        decant_status status = decant_memory_allocate(size_bytes, "working space", &cpu->scratch, err);
        if (status != DECANT_OK)
            return status;
        cpu->scratch_bytes = size_bytes;
    }
    *scratch = cpu->scratch;
    return DECANT_OK;
}

/* ---- weights ---- */

/* A weight whose address does not suit its element type cannot be read in place. */
static decant_status place_copy(decant_backend *backend, decant_matrix host, const char *what,
                                decant_matrix *device, decant_error *err)
{
    decant_cpu *cpu = decant_cpu_of(backend);
    void *copies = cpu->copies, *copy;
    size_t list_bytes = (size_t)(cpu->copy_count + 1) * sizeof *cpu->copies;
    decant_status status = decant_memory_resize(list_bytes, "the list of placed weights", &copies, err);
    if (status != DECANT_OK)
        return status;
    cpu->copies = copies;
    status = memory_allocate(backend, decant_matrix_bytes(host), what, &copy, err);
    if (status != DECANT_OK)
        return status;
    memcpy(copy, host.data, decant_matrix_bytes(host));
    cpu->copies[cpu->copy_count++] = copy;
    device->data = copy;
    return DECANT_OK;
}

static decant_status weights_place(decant_backend *backend, decant_matrix host, decant_placement placement,
                                   const char *what, decant_matrix *device, decant_error *err)
{
    (void)placement; /* products convert tile by tile, so both forms are the file's */
    *device = host;
    if ((uintptr_t)host.data % decant_element_bytes(host.element) == 0)
        return DECANT_OK;
    device->data = NULL;
    return place_copy(backend, host, what, device, err);
}

static void weights_unplace(decant_backend *backend, decant_matrix *device)
{
    decant_cpu *cpu = decant_cpu_of(backend);
    for (int64_t i = 0; i < cpu->copy_count; i++) {
        if (cpu->copies[i] != device->data)
            continue;
        memory_release(backend, &cpu->copies[i]);
        cpu->copies[i] = cpu->copies[--cpu->copy_count];
        break;
    }
    device->data = NULL;
}

static decant_status weights_finish_place(decant_backend *backend, decant_matrix *device, decant_error *err)
{
    (void)backend, (void)device, (void)err;
    return DECANT_OK;
}

const decant_weight_kernels decant_cpu_weight_kernels = {
    .place = weights_place,
    .unplace = weights_unplace,
    .begin_place = weights_place,
    .finish_place = weights_finish_place,
};

/* ---- the backend ---- */

/* The processor as Linux names it, and whose kernels OpenBLAS runs on it: "Intel(R) Xeon(R) Gold 6430, OpenBLAS
 * for SkylakeX". "CPU, …" where Linux gives no name. */
static void describe_processor(char *name, size_t name_bytes)
{
    snprintf(name, name_bytes, "CPU, OpenBLAS for %s", decant_openblas_kernels());
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (!file)
        return;
    char line[256];
    while (fgets(line, sizeof line, file)) {
        const char *value = strchr(line, ':');
        if (strncmp(line, "model name", strlen("model name")) != 0 || !value)
            continue;
        value += strspn(value, ": \t");
        snprintf(name, name_bytes, "%.*s, OpenBLAS for %s", (int)strcspn(value, "\n"), value,
                 decant_openblas_kernels());
        break;
    }
    fclose(file);
}

static void destroy(decant_backend *backend)
{
    decant_cpu *cpu = decant_cpu_of(backend);
    for (int64_t i = 0; i < cpu->copy_count; i++)
        memory_release(backend, &cpu->copies[i]);
    decant_memory_free(cpu->copies);
    decant_cpu_grid_release(cpu);
    decant_memory_free(cpu->scratch);
    decant_memory_free(cpu);
    decant_memory_free(backend);
}

decant_status decant_backend_create_cpu(int threads, decant_backend **backend, decant_error *err)
{
    decant_status status;
    void *memory = NULL, *state = NULL;
    *backend = NULL;
    DECANT_TRY(decant_memory_allocate(sizeof(decant_cpu), "the CPU backend", &state, err));
    DECANT_TRY(decant_memory_allocate(sizeof(decant_backend), "the CPU backend", &memory, err));
    decant_cpu *cpu = state;
    cpu->threads = threads > 0 ? threads : omp_get_max_threads();
    decant_openblas_prepare();
    decant_backend *made = memory;
    *made = (decant_backend){
        .name = "cpu",
        .activation = DECANT_F32,
        .memory = &decant_cpu_memory_kernels,
        .weights = &decant_cpu_weight_kernels,
        .model = &decant_cpu_model_kernels,
        .quantize = &decant_cpu_quantize_kernels,
        .grid = &decant_cpu_grid_kernels,
        .validate = &decant_cpu_validate_kernels,
        .steps = &decant_cpu_step_kernels,
        .recordings = &decant_cpu_recording_kernels,
        .destroy = destroy,
        .state = state,
    };
    describe_processor(made->device_name, sizeof made->device_name);
    *backend = made;
done:
    if (status != DECANT_OK) {
        decant_memory_free(state);
        decant_memory_free(memory);
    }
    return status;
}
