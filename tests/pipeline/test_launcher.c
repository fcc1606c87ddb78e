/* Whether a launcher is there, from environments as launchers leave them. */
#include "pipeline/launcher.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static bool is_there(char *first, char *second)
{
    char *environment[] = {"PATH=/bin", first, "HOME=/", second, NULL};
    return decant_launcher_is_there(environment);
}

static void launchers_are_seen(void **state)
{
    (void)state;
    char nothing[] = "A=", mpirun[] = "OMPI_COMM_WORLD_RANK=0", universe[] = "OMPI_UNIVERSE_SIZE=2";
    char pmix[] = "PMIX_RANK=1", pmi[] = "PMI_FD=5", pmi2[] = "PMI2_FD=5", step[] = "SLURM_STEP_ID=0";
    char task[] = "SLURM_PROCID=0", cray[] = "ALPS_APP_PE=0";
    char *marks[] = {mpirun, universe, pmix, pmi, pmi2, step, task, cray};
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        assert_true(is_there(nothing, marks[i]));
        assert_true(is_there(marks[i], nothing));
    }
}

static void nobody_is_seen_in_a_shell(void **state)
{
    (void)state;
    char option[] = "OMPI_MCA_rmaps_base_oversubscribe=1", root[] = "OMPI_ALLOW_RUN_AS_ROOT=1";
    char security[] = "PMIX_MCA_psec=native", store[] = "PMIX_MCA_gds=hash";
    char cluster[] = "SLURM_CONF=/etc/slurm.conf", allocation[] = "SLURM_JOB_ID=7";
    char *none[] = {NULL};
    assert_false(decant_launcher_is_there(none));
    assert_false(is_there(option, root));
    assert_false(is_there(security, store));
    assert_false(is_there(cluster, allocation));
}

/* What the user has set stays, and under a launcher nothing is set. Two processes have two folders. */
static void an_isolated_process_is_one_that_nobody_launched(void **state)
{
    const char *const variable = "OMPI_MCA_ess_singleton_isolated";
    const char *const folder = "OMPI_MCA_orte_jobfam_session_dir";
    char own[64];
    (void)state;
    clearenv();
    decant_launcher_stay_alone();
    assert_string_equal(getenv(variable), "1");
    snprintf(own, sizeof own, "/tmp/decant.mpi.%ld", (long)getpid());
    assert_string_equal(getenv(folder), own);
    clearenv();
    setenv(variable, "0", 1);
    setenv("TMPDIR", "/elsewhere", 1);
    decant_launcher_stay_alone();
    assert_string_equal(getenv(variable), "0");
    assert_non_null(strstr(getenv(folder), "/elsewhere/decant.mpi."));
    clearenv();
    setenv("PMIX_RANK", "1", 1);
    decant_launcher_stay_alone();
    assert_null(getenv(variable));
    assert_null(getenv(folder));
    assert_int_equal(decant_launcher_rank(), 1);
}

static void processes_that_were_started_together_are_counted(void **state)
{
    (void)state;
    clearenv();
    setenv("SLURM_NTASKS", "8", 1); /* an allocation's */
    assert_int_equal(decant_launcher_size(), 1);
    setenv("SLURM_STEP_NUM_TASKS", "4", 1);
    assert_int_equal(decant_launcher_size(), 4);
    setenv("OMPI_COMM_WORLD_SIZE", "3", 1);
    assert_int_equal(decant_launcher_size(), 3);
}

static void no_file_pointer_is_shared_unless_the_user_wants_one(void **state)
{
    const char *const variable = "OMPI_MCA_sharedfp";
    (void)state;
    clearenv();
    decant_launcher_share_no_pointer();
    assert_string_equal(getenv(variable), "individual");
    setenv(variable, "sm", 1);
    decant_launcher_share_no_pointer();
    assert_string_equal(getenv(variable), "sm");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(launchers_are_seen),
        cmocka_unit_test(nobody_is_seen_in_a_shell),
        cmocka_unit_test(an_isolated_process_is_one_that_nobody_launched),
        cmocka_unit_test(processes_that_were_started_together_are_counted),
        cmocka_unit_test(no_file_pointer_is_shared_unless_the_user_wants_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
