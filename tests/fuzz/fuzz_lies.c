/* A container that lies: of a small model, well-formed, with every checksum and the seal right, but with
 * numbers changed in its data and attributes, datasets of other shapes or missing. Whoever reads it must refuse
 * it or bear it. The input is a list of edits of eight bytes each; HDF5 itself never meets anything broken. */
#include "tests/fuzz/input_file.h"

#include "base/memory.h"
#include "base/ranks.h"
#include "io/checksum.h"
#include "io/container.h"
#include "io/container_seal.h"
#include "pipeline/examine.h"
#include "pipeline/export.h"
#include "pipeline/job.h"

#include <fcntl.h>
#include <hdf5.h>
#include <string.h>
#include <sys/stat.h>

enum { OBJECTS = 256, NAME_BYTES = 128, EDIT_BYTES = 8 };
enum edit_kind { BYTE, WORD, INTEGER, EXTENT, FLATTEN, REMOVE_ATTRIBUTE, REMOVE, EDIT_KINDS };

/* The container as it was made, and the datasets and groups in it. */
static struct {
    char model[512], tokens[544], folder[64], path[96], copy[96], exported[96];
    decant_ranks *ranks;
    int64_t blocks; /* of memory that are held between inputs */
    uint8_t *bytes;
    size_t size_bytes;
    char name[OBJECTS][NAME_BYTES];
    int objects;
} base;

/* ---- the container ---- */

static void require(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "fuzz_lies: %s\n", what);
    _exit(2);
}

static void read_options(int count, const char *const *words, decant_options *options)
{
    decant_error err;
    if (decant_options_read(count, (char **)words, options, &err) != DECANT_OK)
        require(false, err.message);
}

/* A job on one rank; what it prints goes nowhere. */
static decant_status run_job(int count, const char *const *words, decant_error *err)
{
    decant_options options;
    decant_log log;
    read_options(count, words, &options);
    require(decant_log_open(0, true, NULL, &log, err) == DECANT_OK, "there is no log");
    decant_status status = decant_job_run(base.ranks, &options, &log, err);
    decant_log_close(&log);
    return status;
}

/* k-means with sparse parts and grids, as the allocation chooses. */
static void make_container(void)
{
    const char *words[] = {"decant",    "run",      "--model",      base.model, "--calibration",
                           base.tokens, "--method", "kmeans,higgs", "--bits",   "5.5",
                           "--device",  "cpu",      "--output",     base.path};
    decant_error err;
    int provided;
    MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided);
    require(decant_ranks_create(MPI_COMM_WORLD, &base.ranks, &err) == DECANT_OK, "there are no ranks");
    if (run_job((int)(sizeof words / sizeof *words), words, &err) != DECANT_OK)
        require(false, err.message);
    base.blocks = decant_memory_usage_now().blocks;
}

static herr_t note_object(hid_t file, const char *name, const H5O_info_t *about, void *unused)
{
    (void)file;
    (void)about;
    (void)unused;
    require(base.objects < OBJECTS && strlen(name) < NAME_BYTES, "there are too many objects");
    snprintf(base.name[base.objects++], NAME_BYTES, "%s", name);
    return 0;
}

static void remove_base(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", base.folder);
    if (system(command) != 0)
        fprintf(stderr, "%s stays\n", base.folder);
}

static void make_base(void)
{
    struct stat about;
    const char *source = getenv("DECANT_TEST_SOURCE");
    require(source, "DECANT_TEST_SOURCE, the tree, is not set");
    require(freopen("/dev/null", "w", stdout) != NULL, "there is no /dev/null");
    snprintf(base.model, sizeof base.model, "%s/tests/reference/llama_mha", source);
    snprintf(base.tokens, sizeof base.tokens, "%s/tokens.npy", base.model);
    snprintf(base.folder, sizeof base.folder, "%s/decant-lies-XXXXXX",
             access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    require(mkdtemp(base.folder), "there is no folder to write to");
    snprintf(base.path, sizeof base.path, "%s/base.h5", base.folder);
    snprintf(base.copy, sizeof base.copy, "%s/copy.h5", base.folder);
    snprintf(base.exported, sizeof base.exported, "%s/exported", base.folder);
    atexit(remove_base);
    make_container();
    hid_t file = H5Fopen(base.path, H5F_ACC_RDONLY, H5P_DEFAULT);
    require(file >= 0 && H5Ovisit(file, H5_INDEX_NAME, H5_ITER_INC, note_object, NULL) >= 0,
            "it cannot be listed");
    H5Fclose(file);
    int descriptor = open(base.path, O_RDONLY);
    require(descriptor >= 0 && fstat(descriptor, &about) == 0, "it cannot be read");
    base.size_bytes = (size_t)about.st_size;
    base.bytes = malloc(base.size_bytes);
    require(read(descriptor, base.bytes, base.size_bytes) == about.st_size, "it cannot be read");
    close(descriptor);
}

/* ---- edits ---- */

typedef struct lie {
    enum edit_kind kind;
    int object;
    unsigned place, value;
} lie;

static void set_checksum(hid_t object, const void *data, size_t size_bytes)
{
    int64_t checksum = decant_checksum(0, data, size_bytes);
    hid_t attribute = H5Aopen(object, "crc32", H5P_DEFAULT);
    if (attribute >= 0) {
        H5Awrite(attribute, H5T_NATIVE_INT64, &checksum);
        H5Aclose(attribute);
    }
}

static void change_data(hid_t object, const lie *edit)
{
    uint8_t data[1 << 16];
    hid_t type = H5Dget_type(object), space = H5Dget_space(object);
    size_t element = H5Tget_size(type), size_bytes = element * (size_t)H5Sget_simple_extent_npoints(space);
    if (size_bytes > 0 && size_bytes <= sizeof data &&
        H5Dread(object, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0) {
        size_t place = edit->place % size_bytes;
        if (edit->kind == BYTE)
            data[place] = (uint8_t)edit->value;
        for (size_t i = 0; edit->kind == WORD && i < element; i++) /* small, or of all ones */
            data[place / element * element + i] = edit->value & 0x80 ? 0xff : i == 0 ? (uint8_t)edit->value : 0;
        H5Dwrite(object, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data);
        set_checksum(object, data, size_bytes);
    }
    H5Tclose(type);
    H5Sclose(space);
}

/* The attribute in that place of the list; its name. */
static bool pick_attribute(hid_t object, unsigned place, char *name)
{
    H5O_info_t about;
    if (H5Oget_info2(object, &about, H5O_INFO_NUM_ATTRS) < 0 || about.num_attrs == 0)
        return false;
    return H5Aget_name_by_idx(object, ".", H5_INDEX_NAME, H5_ITER_INC, place % about.num_attrs, name,
                              NAME_BYTES, H5P_DEFAULT) >= 0;
}

static void change_integer(hid_t object, const lie *edit)
{
    char name[NAME_BYTES];
    int64_t value = (int8_t)edit->value;
    if (!pick_attribute(object, edit->place, name))
        return;
    hid_t attribute = H5Aopen(object, name, H5P_DEFAULT), type = H5Aget_type(attribute);
    if (H5Tget_class(type) == H5T_INTEGER)
        H5Awrite(attribute, H5T_NATIVE_INT64, &value);
    H5Tclose(type);
    H5Aclose(attribute);
}

static herr_t copy_attribute(hid_t object, const char *name, const H5A_info_t *about, void *target)
{
    char data[4096];
    hid_t from = H5Aopen(object, name, H5P_DEFAULT), type = H5Aget_type(from), space = H5Aget_space(from);
    (void)about;
    if (H5Aget_storage_size(from) <= sizeof data && H5Aread(from, type, data) >= 0) {
        hid_t to = H5Acreate2(*(hid_t *)target, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
        H5Awrite(to, type, data);
        H5Aclose(to);
    }
    H5Sclose(space);
    H5Tclose(type);
    H5Aclose(from);
    return 0;
}

/* The dataset anew, with one extent changed, or with a single one; of zeros, with its attributes. */
static void change_shape(hid_t file, const char *name, hid_t object, const lie *edit)
{
    static const uint8_t zeros[1 << 16];
    hid_t type = H5Dget_type(object), space = H5Dget_space(object);
    hsize_t extent[H5S_MAX_RANK] = {0};
    int dimensions = H5Sget_simple_extent_dims(space, extent, NULL);
    if (edit->kind == EXTENT && dimensions > 0)
        extent[edit->place % (unsigned)dimensions] = edit->value & 0xff;
    if (edit->kind == FLATTEN) {
        dimensions = 1;
        extent[0] = edit->value & 0xff;
    }
    size_t size_bytes = H5Tget_size(type);
    for (int i = 0; i < dimensions; i++)
        size_bytes *= extent[i];
    if (size_bytes <= sizeof zeros) {
        hid_t changed = H5Screate_simple(dimensions, extent, NULL);
        hid_t made = H5Dcreate2(file, "changed", type, changed, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
        H5Dwrite(made, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, zeros);
        H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_INC, NULL, copy_attribute, &made);
        set_checksum(made, zeros, size_bytes);
        H5Dclose(made);
        H5Sclose(changed);
        H5Ldelete(file, name, H5P_DEFAULT);
        H5Lmove(file, "changed", file, name, H5P_DEFAULT, H5P_DEFAULT);
    }
    H5Tclose(type);
    H5Sclose(space);
}

static void apply(hid_t file, const lie *edit)
{
    char name[NAME_BYTES];
    const char *path = base.name[edit->object % base.objects];
    hid_t object = H5Oopen(file, path, H5P_DEFAULT); /* an edit before may have removed it */
    if (object < 0)
        return;
    bool is_dataset = H5Iget_type(object) == H5I_DATASET;
    if (is_dataset && (edit->kind == BYTE || edit->kind == WORD))
        change_data(object, edit);
    else if (is_dataset && (edit->kind == EXTENT || edit->kind == FLATTEN))
        change_shape(file, path, object, edit);
    else if (edit->kind == INTEGER)
        change_integer(object, edit);
    else if (edit->kind == REMOVE_ATTRIBUTE && pick_attribute(object, edit->place, name))
        H5Adelete(object, name);
    H5Oclose(object);
    if (edit->kind == REMOVE && strcmp(path, ".") != 0)
        H5Ldelete(file, path, H5P_DEFAULT);
}

/* ---- readers ---- */

static decant_status run_command(const char *command, const char *option, const char *value)
{
    const char *words[] = {"decant", command, base.copy, option, value};
    decant_options options;
    decant_error err;
    read_options(option ? 5 : 3, words, &options);
    return decant_examine(&options, stdout, &err);
}

static void export_copy(void)
{
    const char *words[] = {"decant",      "export",   base.copy,     "--format",
                           "safetensors", "--output", base.exported, "--overwrite"};
    decant_options options;
    decant_error err;
    read_options((int)(sizeof words / sizeof *words), words, &options);
    decant_export_command(&options, stdout, &err);
}

static void validate_copy(void)
{
    const char *words[] = {"decant", "validate",  base.copy,  "--model", base.model,
                           "--text", base.tokens, "--device", "cpu",     "--validation-windows",
                           "1"};
    decant_error err;
    run_job((int)(sizeof words / sizeof *words), words, &err);
}

/* Validation takes as long as hundreds of the others, so only some inputs ask for it. */
static void read_copy(bool validates)
{
    run_command("inspect", NULL, NULL);
    run_command("allocate", "--bits", "6");
    if (run_command("verify", NULL, NULL) == DECANT_OK) { /* what is let pass */
        export_copy();
        if (validates)
            validate_copy();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes)
{
    decant_error err;
    if (!base.bytes)
        make_base();
    int descriptor = open(base.copy, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    require(write(descriptor, base.bytes, base.size_bytes) == (ssize_t)base.size_bytes, "it cannot be written");
    close(descriptor);
    hid_t file = H5Fopen(base.copy, H5F_ACC_RDWR, H5P_DEFAULT);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    require(file >= 0, "it cannot be opened");
    for (size_t i = 0; i + EDIT_BYTES <= size_bytes; i += EDIT_BYTES) {
        const lie edit = {
            .kind = data[i] % EDIT_KINDS,
            .object = data[i + 1],
            .place = data[i + 2] | (unsigned)data[i + 3] << 8,
            .value = data[i + 4],
        };
        apply(file, &edit);
    }
    H5Fclose(file);
    require(decant_container_seal(base.copy, NULL, 0, &err) == DECANT_OK, "it cannot be sealed");
    read_copy(size_bytes >= EDIT_BYTES && data[EDIT_BYTES - 1] == 1);
    if (decant_memory_usage_now().blocks != base.blocks)
        abort();
    return 0;
}
