/* For cmocka tests that all ranks of an mpirun run together. A failed assertion on one rank ends all of them,
 * because the others would wait for it. */
#ifndef DECANT_TESTS_RANKS_MPI_TESTS_H
#define DECANT_TESTS_RANKS_MPI_TESTS_H

#include "base/memory.h"
#include "base/ranks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#define assert_ok(call)               assert_ok_at((call), &err, __LINE__)
#define assert_status(call, expected) assert_status_at((call), (expected), &err, __LINE__)

static inline void assert_status_at(decant_status status, decant_status expected, const decant_error *err,
                                    int line)
{
    if (status != expected)
        print_error("line %d: status %d (%s), expected %d: %s\n", line, (int)status,
                    decant_status_sentence(status), (int)expected, status == DECANT_OK ? "" : err->message);
    assert_int_equal(status, expected);
}

static inline void assert_ok_at(decant_status status, const decant_error *err, int line)
{
    assert_status_at(status, DECANT_OK, err, line);
}

/* Group setup and teardown; *state is the decant_ranks. Live memory is 0 again at the end. */
static inline int set_up_ranks(void **state)
{
    decant_error err;
    return decant_ranks_create(MPI_COMM_WORLD, (decant_ranks **)state, &err) == DECANT_OK ? 0 : -1;
}

static inline int tear_down_ranks(void **state)
{
    decant_ranks_destroy((decant_ranks **)state);
    return decant_memory_usage_now().blocks == 0 ? 0 : -1;
}

/* Runs a group of tests between MPI_Init and MPI_Finalize; ranks but the first are silent about what passes. */
#define run_mpi_tests(argc, argv, tests) run_mpi_group((argc), (argv), (tests), sizeof(tests) / sizeof *(tests))

static inline int run_mpi_group(int argc, char **argv, const struct CMUnitTest *tests, size_t count)
{
    int rank;
    setenv("CMOCKA_TEST_ABORT", "1", 1);
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (rank != 0 && !freopen("/dev/null", "w", stdout))
        return 1;
    int failed = _cmocka_run_group_tests("ranks", tests, count, set_up_ranks, tear_down_ranks);
    MPI_Finalize();
    return failed;
}

/* Collective. A new folder that all ranks use; removed with its files by remove_folder. */
static inline void make_folder(decant_ranks *ranks, char folder[64])
{
    decant_error err;
    snprintf(folder, 64, "/tmp/decant-test-XXXXXX");
    if (ranks->rank == 0)
        assert_non_null(mkdtemp(folder));
    assert_ok(decant_ranks_broadcast(ranks, 0, folder, 64, &err));
}

static inline void remove_folder(decant_ranks *ranks, const char *folder)
{
    decant_error err;
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    assert_ok(decant_ranks_agree(ranks, DECANT_OK, &err));
    if (ranks->rank == 0)
        assert_int_equal(system(command), 0);
}

#endif
