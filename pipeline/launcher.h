/* Who started this process: a launcher of MPI jobs, or nobody. Told from the environment alone, before MPI is
 * there. */
#ifndef DECANT_PIPELINE_LAUNCHER_H
#define DECANT_PIPELINE_LAUNCHER_H

#include "base/error.h"

#include <stdbool.h>

/* environment   NAME=VALUE lines that end with NULL, as `environ`; NULL: none
 * Whether mpirun, srun or another launcher has left a mark there that MPI may find its ranks by. In doubt it
 * has: a batch script of SLURM's counts as one. */
bool decant_launcher_is_there(char *const *environment);

/* This process's rank as its launcher says; 0 without one. Every rank reads the same command line, and the
 * first tells what is wrong with it. */
int decant_launcher_rank(void);

/* How many processes its launcher started together; 1 without one, and where it does not say. An allocation of
 * SLURM's is no launcher: a batch script in it is one process. */
int decant_launcher_size(void);

/* Before MPI_Init, which ends the process by abort or a signal where it may not open what it needs: 13 files
 * at once were seen of a process alone and 18 of ranks on one machine, decant's own among them.
 * DECANT_ERROR_FILES where the limit is below 32. */
decant_status decant_launcher_require_files(decant_error *err);

/* Before MPI_Init. A process that nobody launched needs none of Open MPI's daemons, whose start takes longer
 * than a small command; it never spawns others. Such processes would share one folder for MPI's own files, and
 * the first that ends would take it from the others: each gets one by its number, under TMPDIR or /tmp, which
 * MPI_Finalize removes. What the user has set stays. */
void decant_launcher_stay_alone(void);

/* Before MPI_Init. Ranks write each at places of their own and need no file pointer that they share. Open MPI
 * tries its kinds of one all the same whenever a file is opened, and of these `lockedfile` has room for a path
 * of 255 bytes, ends the process behind it, and leaves PATH.locktest.RANK where it is killed; `individual`
 * touches nothing. What the user has set stays. */
void decant_launcher_share_no_pointer(void);

#endif
