/* A container that was changed after it was written is refused, whichever byte it was. ranks: 1 2 3 */
#include "tests/ranks/sample_container.h"

#include <fcntl.h>
#include <sys/stat.h>

static decant_status check_file(const char *path, decant_error *err)
{
    decant_container *container;
    decant_status status = decant_container_open(path, &container, err);
    if (status == DECANT_OK)
        status = decant_container_verify(container, NULL, NULL, err);
    decant_container_close(&container);
    return status;
}

static decant_status read_dataset(void *container, const char *path, decant_stored type,
                                  const decant_shape *shape, decant_error *err)
{
    int64_t elements = 1;
    for (int d = 0; d < shape->dimensions; d++)
        elements *= shape->extent[d];
    void *data = malloc((size_t)elements * decant_stored_bytes(type) + 1);
    decant_status status = decant_container_read(container, path, type, shape, data, err);
    free(data);
    return status;
}

/* Who reads all datasets, and asks for no verification. */
static decant_status read_file(const char *path, decant_error *err)
{
    decant_container *container;
    decant_status status = decant_container_open(path, &container, err);
    if (status == DECANT_OK)
        status = decant_container_each(container, read_dataset, container, err);
    decant_container_close(&container);
    return status;
}

static decant_status check_shares(const char *path, int shares, decant_error *err)
{
    decant_container *container;
    decant_status worst = DECANT_OK, status = decant_container_open(path, &container, err);
    for (int share = 0; status == DECANT_OK && share < shares; share++) {
        decant_status own = decant_container_verify_share(container, share, shares, err);
        worst = own > worst ? own : worst;
    }
    decant_container_close(&container);
    return status > worst ? status : worst;
}

static void every_flipped_byte_is_detected(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    if (ranks->size > 1)
        skip(); /* the bytes are the same */
    place at = make_place(ranks);
    assert_ok(write_sample(ranks, at.path, false, &err));
    if (ranks->rank == 0) {
        struct stat about;
        int file = open(at.path, O_RDWR);
        assert_true(file >= 0 && fstat(file, &about) == 0);
        assert_ok(check_file(at.path, &err));
        assert_ok(read_file(at.path, &err));
        assert_ok(check_shares(at.path, 3, &err));
        for (off_t i = 0; i < about.st_size; i++) {
            unsigned char byte, other;
            assert_int_equal(pread(file, &byte, 1, i), 1);
            other = byte ^ (unsigned char)(1 << i % 8);
            assert_int_equal(pwrite(file, &other, 1, i), 1);
            if (check_file(at.path, &err) != DECANT_ERROR_INPUT)
                fail_msg("byte %lld of %lld can be changed unseen", (long long)i, (long long)about.st_size);
            if (read_file(at.path, &err) != DECANT_ERROR_INPUT)
                fail_msg("byte %lld can be changed unseen by who reads", (long long)i);
            if (check_shares(at.path, 3, &err) != DECANT_ERROR_INPUT)
                fail_msg("byte %lld can be changed unseen by ranks that verify together", (long long)i);
            assert_int_equal(pwrite(file, &byte, 1, i), 1);
        }
        assert_ok(check_file(at.path, &err));
        close(file);
    }
    remove_folder(ranks, at.folder);
}

static void every_other_length_is_detected(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    place at = make_place(ranks);
    assert_ok(write_sample(ranks, at.path, false, &err));
    if (ranks->rank == 0) {
        struct stat about;
        assert_int_equal(stat(at.path, &about), 0);
        assert_int_equal(truncate(at.path, about.st_size + 1), 0);
        assert_status(check_file(at.path, &err), DECANT_ERROR_INPUT);
        for (off_t length = about.st_size - 1; length >= 0; length -= length > 200 ? 97 : 1) {
            assert_int_equal(truncate(at.path, length), 0);
            assert_status(check_file(at.path, &err), DECANT_ERROR_INPUT);
        }
    }
    remove_folder(ranks, at.folder);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_flipped_byte_is_detected),
        cmocka_unit_test(every_other_length_is_detected),
    };
    return run_mpi_tests(argc, argv, tests);
}
