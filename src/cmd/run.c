/* run.c - `moebatch run JOB.yaml`: command line in, engine_run, one verdict out. */
#include "cmd/cmd.h"
#include "cmd/provenance.h"
#include "config/job_args.h"
#include "engine/run.h"

#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>

static void help(void)
{
    puts("moebatch run JOB.yaml [options]   (started by mpirun, a rank per GPU or share of a CPU)\n"
         "\n"
         "Generates for every request of a token file and writes responses, timelines,\n"
         "throughput, cost and profit to an HDF5 file.\n");
    job_args_help(stdout);
    puts("\nKeys of the job file:");
    job_help(stdout);
    puts("");
    cmd_help_exit_codes(stdout);
}

enum status cmd_run(int argc, char **argv)
{
    if (cmd_wants_help(argc, argv)) {
        help();
        return OK;
    }
    /* We close every file ourselves; what HDF5 does at exit crashes once a disk was full. */
    H5dont_atexit();
    struct job_args *args = calloc(1, sizeof *args);
    char *line = provenance_argv(argc, argv);
    enum status st = args && line ? OK : error_set(ERR_RESOURCE, "no memory for the job");
    if (st == OK) st = job_args_parse(argc, argv, args);
    if (st == OK) {
        char program[128], libraries[512];
        struct results_attr attrs[] = {{"git_revision", cmd_gitrev()}, {"libraries", libraries}};
        provenance_libraries(libraries, sizeof libraries);
        snprintf(program, sizeof program, "moebatch %s", cmd_gitrev());
        struct engine_setup setup = {
            .job = &args->job,
            .dump_config = args->dump_config,
            .version = program,
            .argv = line,
            .attrs = attrs,
            .n_attrs = sizeof attrs / sizeof *attrs,
        };
        st = engine_run(&setup);
    }
    free(line);
    free(args);
    return st;
}
