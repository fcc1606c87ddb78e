/* See launcher.h. */
#include "pipeline/launcher.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

extern char **environ;

bool decant_launcher_is_there(char *const *environment)
{
    /* Open MPI's ranks, PMI and PMIx of any launcher (PMIX_MCA_… are settings of a user's), steps of SLURM,
     * ALPS of Cray. */
    const char *const prefixes[] = {
        "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "OMPI_MCA_orte_", "PMI_",       "PMI2_",
        "PMIX_NAMESPACE=",  "PMIX_RANK=",     "SLURM_PROCID=",  "SLURM_STEP", "ALPS_APP_"};
    for (; environment && *environment; environment++)
        for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
            if (strncmp(*environment, prefixes[i], strlen(prefixes[i])) == 0)
                return true;
    return false;
}

/* The number that the first of the variables that are set holds. */
static int first_number(const char *const *variables, size_t count, int otherwise)
{
    for (size_t i = 0; i < count; i++) {
        const char *value = getenv(variables[i]);
        if (value)
            return atoi(value);
    }
    return otherwise;
}

int decant_launcher_rank(void)
{
    const char *const variables[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"};
    return first_number(variables, sizeof variables / sizeof *variables, 0);
}

int decant_launcher_size(void)
{
    const char *const variables[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    return first_number(variables, sizeof variables / sizeof *variables, 1);
}

decant_status decant_launcher_require_files(decant_error *err)
{
    enum { LEAST = 32 };
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= LEAST)
        return DECANT_OK;
    return DECANT_ERROR(err, DECANT_ERROR_FILES,
                        "a rank may have %d open at once, and MPI and decant need up to %d; raise the limit of "
                        "this process (ulimit -n)",
                        (int)limit.rlim_cur, (int)LEAST);
}

void decant_launcher_stay_alone(void)
{
    const char *temporary = getenv("TMPDIR");
    char folder[1024];
    if (decant_launcher_is_there(environ))
        return;
    snprintf(folder, sizeof folder, "%s/decant.mpi.%ld", temporary ? temporary : "/tmp", (long)getpid());
    setenv("OMPI_MCA_ess_singleton_isolated", "1", 0);
    setenv("OMPI_MCA_orte_jobfam_session_dir", folder, 0);
}

void decant_launcher_share_no_pointer(void)
{
    setenv("OMPI_MCA_sharedfp", "individual", 0);
}
