/* Reading containers that decant did not write: other files, and sealed ones that lie. The lies are made with
 * HDF5 itself, then sealed, so that only the reader's own checks stand between them and the caller. */
#include "io/container.h"
#include "io/container_seal.h"

#include "tests/io/scratch.h"

#include <hdf5.h>

/* A file with everything a container needs; what it lies about is put into it before it is closed. */
static hid_t make_file(const scratch *at, const char *name)
{
    char path[128];
    scratch_path(at, name, path, sizeof path);
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(file >= 0);
    return file;
}

static void put_text(hid_t object, const char *name, const char *text)
{
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    H5Tset_size(type, strlen(text) + 1);
    hid_t attribute = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Awrite(attribute, type, text) >= 0);
    H5Aclose(attribute);
    H5Sclose(space);
    H5Tclose(type);
}

static void put_integer(hid_t object, const char *name, hid_t type, int64_t value)
{
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t attribute = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Awrite(attribute, H5T_NATIVE_INT64, &value) >= 0);
    H5Aclose(attribute);
    H5Sclose(space);
}

static hid_t make_container(const scratch *at)
{
    hid_t file = make_file(at, "c.h5");
    put_text(file, "format", "decant");
    put_integer(file, "schema_version", H5T_STD_I64LE, 1);
    return file;
}

static void seal_path(const char *path)
{
    decant_error err = {0};
    assert_ok(decant_container_seal(path, NULL, 0, &err));
}

/* Closes and seals the file, and opens it as a container. */
static decant_status seal_and_open(const scratch *at, hid_t file, decant_container **container,
                                   decant_error *err)
{
    char path[128];
    scratch_path(at, "c.h5", path, sizeof path);
    assert_true(H5Fclose(file) >= 0);
    seal_path(path);
    return decant_container_open(path, container, err);
}

static void expect_refusal(const scratch *at, hid_t file, const char *named)
{
    decant_error err = {0};
    decant_container *container;
    assert_status(seal_and_open(at, file, &container, &err), DECANT_ERROR_INPUT);
    assert_null(container);
    assert_message(&err, named);
}

static void other_files_are_refused(void **state)
{
    const scratch *at = *state;
    decant_error err = {0};
    decant_container *container;
    char path[128];
    static const struct {
        const char *text, *named;
    } cases[] = {{"", "no HDF5 file"},
                 {"\x89HDF\r\n\x1a", "no HDF5 file"},
                 {"\x89HDF\r\n\x1a\n", "no seal"},
                 {"a text that is longer than the footer of a seal is", "no HDF5 file"}};
    scratch_path(at, "c.h5", path, sizeof path);
    assert_status(decant_container_open(path, &container, &err), DECANT_ERROR_INPUT);
    assert_message(&err, "No such file");
    assert_status(decant_container_open(at->folder, &container, &err), DECANT_ERROR_INPUT);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        scratch_write(at, "c.h5", cases[i].text, strlen(cases[i].text));
        assert_status(decant_container_open(path, &container, &err), DECANT_ERROR_INPUT);
        assert_message(&err, cases[i].named);
    }
    H5Fclose(make_container(at)); /* whole, but not sealed */
    assert_status(decant_container_open(path, &container, &err), DECANT_ERROR_INPUT);
    assert_message(&err, "no seal");
}

static void sealed_files_of_others_are_refused(void **state)
{
    hid_t file = make_file(*state, "c.h5");
    expect_refusal(*state, file, "no attribute format");
    file = make_file(*state, "c.h5");
    put_text(file, "format", "decants");
    put_integer(file, "schema_version", H5T_STD_I64LE, 1);
    expect_refusal(*state, file, "no decant container");
    file = make_file(*state, "c.h5");
    put_integer(file, "format", H5T_STD_I64LE, 1);
    expect_refusal(*state, file, "attribute format");
    file = make_file(*state, "c.h5");
    put_text(file, "format", "decant");
    expect_refusal(*state, file, "no attribute schema_version");
    for (int64_t version = 0; version <= 3; version += 3) {
        file = make_file(*state, "c.h5");
        put_text(file, "format", "decant");
        put_integer(file, "schema_version", H5T_STD_I64LE, version);
        expect_refusal(*state, file, "schema version");
    }
    file = make_file(*state, "c.h5");
    put_text(file, "format", "decant");
    put_integer(file, "schema_version", H5T_STD_I32LE, 1);
    expect_refusal(*state, file, "no 64-bit integer");
}

/* The file ends before the data that its structure speaks of; the seal fits what is there. */
static void data_beyond_the_end_are_refused(void **state)
{
    const scratch *at = *state;
    decant_error err = {0};
    decant_container *container;
    char path[128];
    struct stat about;
    hsize_t extent = 10000;
    hid_t file = make_container(at), space = H5Screate_simple(1, &extent, NULL);
    hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY);
    H5Dclose(H5Dcreate2(file, "/a", H5T_STD_U8LE, space, H5P_DEFAULT, creation, H5P_DEFAULT));
    H5Pclose(creation);
    H5Sclose(space);
    H5Fclose(file);
    scratch_path(at, "c.h5", path, sizeof path);
    assert_int_equal(stat(path, &about), 0);
    for (int cut = 1; cut < 10000; cut += 999) {
        assert_int_equal(truncate(path, about.st_size - cut), 0);
        seal_path(path);
        decant_status status = decant_container_open(path, &container, &err);
        if (status == DECANT_OK)
            status = decant_container_verify(container, NULL, NULL, &err);
        assert_status(status, DECANT_ERROR_INPUT);
        decant_container_close(&container);
    }
}

/* Makes dataset /bad with what it lies about. */
typedef void (*lie)(hid_t file, const scratch *at);

static void make_dataset(hid_t file, hid_t type, int dimensions, const hsize_t *extent, hid_t creation)
{
    hid_t space = dimensions < 0    ? H5Screate(H5S_NULL)
                  : dimensions == 0 ? H5Screate(H5S_SCALAR)
                                    : H5Screate_simple(dimensions, extent, NULL);
    hid_t dataset = H5Dcreate2(file, "/bad", type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    assert_true(dataset >= 0);
    put_integer(dataset, "crc32", H5T_STD_I64LE, 0);
    H5Dclose(dataset);
    H5Sclose(space);
}

static const hsize_t small[5] = {2, 2, 2, 2, 2};

static void big_endian(hid_t file, const scratch *at)
{
    (void)at;
    make_dataset(file, H5T_IEEE_F32BE, 1, small, H5P_DEFAULT);
}

static void unsigned_64(hid_t file, const scratch *at)
{
    (void)at;
    make_dataset(file, H5T_STD_U64LE, 1, small, H5P_DEFAULT);
}

static void text(hid_t file, const scratch *at)
{
    (void)at;
    make_dataset(file, H5T_C_S1, 1, small, H5P_DEFAULT);
}

static void compound(hid_t file, const scratch *at)
{
    (void)at;
    hid_t type = H5Tcreate(H5T_COMPOUND, 8);
    H5Tinsert(type, "x", 0, H5T_STD_I64LE);
    make_dataset(file, type, 1, small, H5P_DEFAULT);
    H5Tclose(type);
}

static void variable_length(hid_t file, const scratch *at)
{
    (void)at;
    hid_t type = H5Tvlen_create(H5T_STD_I64LE);
    make_dataset(file, type, 1, small, H5P_DEFAULT);
    H5Tclose(type);
}

static void five_dimensions(hid_t file, const scratch *at)
{
    (void)at;
    make_dataset(file, H5T_STD_U8LE, 5, small, H5P_DEFAULT);
}

static void no_shape(hid_t file, const scratch *at)
{
    (void)at;
    make_dataset(file, H5T_STD_U8LE, -1, NULL, H5P_DEFAULT);
}

static void chunks(hid_t file, const scratch *at)
{
    (void)at;
    hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(creation, 1, small);
    H5Pset_deflate(creation, 1);
    make_dataset(file, H5T_STD_U8LE, 1, small, creation);
    H5Pclose(creation);
}

static void compact(hid_t file, const scratch *at)
{
    (void)at;
    hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_layout(creation, H5D_COMPACT);
    make_dataset(file, H5T_STD_U8LE, 1, small, creation);
    H5Pclose(creation);
}

/* Data of another file of the machine, under the name of a dataset. */
static void external_data(hid_t file, const scratch *at)
{
    (void)at;
    hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_external(creation, "/etc/passwd", 0, 2);
    make_dataset(file, H5T_STD_U8LE, 1, small, creation);
    H5Pclose(creation);
}

static void never_allocated(hid_t file, const scratch *at)
{
    (void)at;
    static const hsize_t huge[2] = {(hsize_t)1 << 40, 1};
    make_dataset(file, H5T_STD_U8LE, 2, huge, H5P_DEFAULT);
}

static void more_than_can_be_counted(hid_t file, const scratch *at)
{
    (void)at;
    static const hsize_t huge[2] = {(hsize_t)1 << 61, 1};
    make_dataset(file, H5T_STD_U32LE, 2, huge, H5P_DEFAULT);
}

static void a_group(hid_t file, const scratch *at)
{
    (void)at;
    H5Gclose(H5Gcreate2(file, "/bad", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
}

static void a_type(hid_t file, const scratch *at)
{
    (void)at;
    hid_t type = H5Tcopy(H5T_STD_U8LE);
    H5Tcommit2(file, "/bad", type, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    H5Tclose(type);
}

static void soft_link(hid_t file, const scratch *at)
{
    (void)at;
    H5Lcreate_soft("/good", file, "/bad", H5P_DEFAULT, H5P_DEFAULT);
}

static void external_link(hid_t file, const scratch *at)
{
    char path[128];
    scratch_path(at, "other.h5", path, sizeof path);
    H5Lcreate_external(path, "/good", file, "/bad", H5P_DEFAULT, H5P_DEFAULT);
}

static void put_good(hid_t file)
{
    static const unsigned char data[2] = {1, 2};
    hid_t space = H5Screate_simple(1, small, NULL);
    hid_t dataset = H5Dcreate2(file, "/good", H5T_STD_U8LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Dwrite(dataset, H5T_STD_U8LE, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    put_integer(dataset, "crc32", H5T_STD_I64LE, 0xb6cc4292); /* of the bytes 1, 2 */
    H5Dclose(dataset);
    H5Sclose(space);
}

static decant_status ignore(void *context, const char *path, decant_stored type, const decant_shape *shape,
                            decant_error *err)
{
    (void)context;
    (void)path;
    (void)type;
    (void)shape;
    (void)err;
    return DECANT_OK;
}

/* Each lie is refused by every way of reading; the good dataset beside it can be read. */
static void lying_datasets_are_refused(void **state)
{
    static const struct {
        lie make;
        const char *named;
        bool is_listed; /* among the datasets */
    } cases[] = {
        {big_endian, "type", true},
        {unsigned_64, "type", true},
        {text, "type", true},
        {compound, "type", true},
        {variable_length, "type", true},
        {five_dimensions, "5 dimensions", true},
        {no_shape, "no shape", true},
        {chunks, "not stored as decant", true},
        {compact, "not stored as decant", true},
        {external_data, "not stored as decant", true},
        {never_allocated, "outside of the file", true},
        {more_than_can_be_counted, "not possible", true},
        {a_group, "is no dataset", false},
        {a_type, "is no dataset", false},
        {soft_link, "has no /bad", false},
        {external_link, "has no /bad", false},
    };
    const scratch *at = *state;
    hid_t other = make_file(at, "other.h5");
    put_good(other);
    H5Fclose(other);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        decant_error err = {0};
        decant_container *container;
        unsigned char got[64] = {0};
        decant_stored type;
        decant_shape shape;
        const decant_shape two = {1, {2}};
        hid_t file = make_container(at);
        put_good(file);
        cases[i].make(file, at);
        assert_ok(seal_and_open(at, file, &container, &err));
        assert_ok(decant_container_read(container, "/good", DECANT_STORED_U8, &two, got, &err));
        assert_int_equal(got[1], 2);
        assert_status(decant_container_describe(container, "/bad", &type, &shape, &err), DECANT_ERROR_INPUT);
        assert_message(&err, cases[i].named);
        assert_status(decant_container_read(container, "/bad", DECANT_STORED_U8, &two, got, &err),
                      DECANT_ERROR_INPUT);
        assert_status(decant_container_read_part(container, "/bad", DECANT_STORED_U8, 0, 1, got, &err),
                      DECANT_ERROR_INPUT);
        decant_status expected = cases[i].is_listed ? DECANT_ERROR_INPUT : DECANT_OK;
        assert_status(decant_container_each(container, ignore, NULL, &err), expected);
        assert_status(decant_container_verify(container, NULL, NULL, &err), expected);
        decant_container_close(&container);
    }
}

static void checksums_are_compared(void **state)
{
    static const struct {
        int64_t checksum;
        hid_t *type; /* of the attribute; NULL for none */
        const char *named;
    } cases[] = {{0, &H5T_STD_I64LE_g, "is damaged"},
                 {-1, &H5T_STD_I64LE_g, "is damaged"},
                 {INT64_C(0x1b6cc4292), &H5T_STD_I64LE_g, "is damaged"}, /* right in 32 bits */
                 {0xb6cc4292, &H5T_STD_U32LE_g, "no 64-bit integer"},
                 {0, NULL, "no attribute crc32"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        decant_error err = {0};
        decant_container *container;
        hid_t file = make_container(*state);
        put_good(file);
        hid_t dataset = H5Dopen2(file, "/good", H5P_DEFAULT);
        H5Adelete(dataset, "crc32");
        if (cases[i].type)
            put_integer(dataset, "crc32", *cases[i].type, cases[i].checksum);
        H5Dclose(dataset);
        assert_ok(seal_and_open(*state, file, &container, &err));
        assert_status(decant_container_verify(container, NULL, NULL, &err), DECANT_ERROR_INPUT);
        assert_message(&err, cases[i].named);
        assert_message(&err, "/good");
        decant_container_close(&container);
    }
}

static void loops_and_long_paths_end(void **state)
{
    decant_error err = {0};
    decant_container *container;
    hid_t file = make_container(*state);
    put_good(file);
    hid_t group = H5Gcreate2(file, "/g", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_hard(file, "/", group, "up", H5P_DEFAULT, H5P_DEFAULT);
    H5Gclose(group);
    assert_ok(seal_and_open(*state, file, &container, &err));
    assert_ok(decant_container_verify(container, NULL, NULL, &err));
    assert_true(decant_container_has(container, "/g/up/g/up/good"));
    decant_container_close(&container);

    char name[400];
    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = '\0';
    file = make_container(*state);
    put_good(file);
    H5Lcreate_hard(file, "/good", file, name, H5P_DEFAULT, H5P_DEFAULT);
    H5Ldelete(file, "/good", H5P_DEFAULT);
    assert_ok(seal_and_open(*state, file, &container, &err));
    assert_status(decant_container_verify(container, NULL, NULL, &err), DECANT_ERROR_INPUT);
    assert_message(&err, "too long");
    assert_false(decant_container_has(container, name));
    decant_container_close(&container);
}

/* What the caller says about a visit is what comes back. */
static decant_status refuse(void *context, const char *path, decant_stored type, const decant_shape *shape,
                            decant_error *err)
{
    (void)type;
    (void)shape;
    ++*(int *)context;
    return DECANT_ERROR(err, DECANT_INTERRUPTED, "enough of %s", path);
}

static void visits_stop_at_the_first_failure(void **state)
{
    decant_error err = {0};
    decant_container *container;
    int visits = 0;
    hid_t file = make_container(*state);
    put_good(file);
    make_dataset(file, H5T_STD_U8LE, 0, NULL, H5P_DEFAULT);
    assert_ok(seal_and_open(*state, file, &container, &err));
    assert_status(decant_container_each(container, refuse, &visits, &err),
                  DECANT_ERROR_INPUT); /* /bad has no data */
    assert_int_equal(visits, 0);
    decant_container_close(&container);
    file = make_container(*state);
    put_good(file);
    assert_ok(seal_and_open(*state, file, &container, &err));
    assert_status(decant_container_each(container, refuse, &visits, &err), DECANT_INTERRUPTED);
    assert_int_equal(visits, 1);
    assert_message(&err, "enough of /good");
    decant_container_close(&container);
}

int main(void)
{
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(other_files_are_refused, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(sealed_files_of_others_are_refused, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(data_beyond_the_end_are_refused, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(lying_datasets_are_refused, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(checksums_are_compared, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(loops_and_long_paths_end, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(visits_stop_at_the_first_failure, scratch_make, scratch_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
