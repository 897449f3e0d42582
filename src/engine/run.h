/* run.h - the MPI job: from a job to a results file.
 *
 * engine_run is collective over MPI_COMM_WORLD (main has called MPI_Init_thread with at least
 * MPI_THREAD_FUNNELED). It reads the model and the token file, splits the ranks into units,
 * loads weights, runs every request and writes journal, responses, results and the closing table
 * (rank 0, stdout).
 *
 * Returns OK when every request ended (also if single ones failed), ERR_INVALID when the result
 * is INVALID, else the error of the rank that failed first; the message is the same on all
 * ranks when the failure was found before the first step.
 */
#ifndef ENGINE_RUN_H
#define ENGINE_RUN_H

#include "account/results.h"
#include "config/job.h"
#include "core/status.h"

struct engine_setup {
    const struct job *job;            /* as job_args_parse left it */
    bool dump_config;                 /* print the resolved job and stop before weights */
    const char *version;              /* program version with git revision */
    const char *argv;                 /* command line, for provenance */
    const struct results_attr *attrs; /* more provenance: library versions, ... */
    int n_attrs;
};

enum status engine_run(const struct engine_setup *setup);

#endif
