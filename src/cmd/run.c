/* run.c - `moebatch run JOB.yaml`: command line in, engine_run, one verdict out. */
#include "cmd/cmd.h"
#include "config/job_args.h"
#include "engine/run.h"

#include <hdf5.h>
#include <jansson.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

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

/* The words of the command line with spaces between; NULL when memory is short. */
static char *join(int argc, char **argv)
{
    size_t n = sizeof "moebatch";
    for (int i = 0; i < argc; i++) n += strlen(argv[i]) + 1;
    char *s = malloc(n);
    if (!s) return 0;
    strcpy(s, "moebatch");
    for (int i = 0; i < argc; i++) {
        strcat(s, " ");
        strcat(s, argv[i]);
    }
    return s;
}

/* "Open MPI v4.1.4; HDF5 1.10.8; ..." into buf, and the list of attributes. */
static int provenance(char *libraries, size_t bytes, struct results_attr *attr)
{
    char mpi[MPI_MAX_LIBRARY_VERSION_STRING], built[16], hdf5[16];
    int len = 0, n = 0;
    MPI_Get_library_version(mpi, &len);
    mpi[strcspn(mpi, "\n,")] = '\0';
    results_hdf5_versions(built, hdf5);
    snprintf(libraries, bytes,
             "%.80s; HDF5 %s (built with %s); libyaml %s; jansson %s; compiler %s", mpi, hdf5, built,
             yaml_get_version_string(), jansson_version_str(), __VERSION__);
    attr[n++] = (struct results_attr){"git_revision", cmd_gitrev()};
    attr[n++] = (struct results_attr){"libraries", libraries};
    return n;
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
    char *line = join(argc, argv);
    enum status st = args && line ? OK : error_set(ERR_RESOURCE, "no memory for the job");
    if (st == OK) st = job_args_parse(argc, argv, args);
    if (st == OK) {
        struct results_attr attrs[16];
        char program[128], libraries[512];
        snprintf(program, sizeof program, "moebatch %s", cmd_gitrev());
        struct engine_setup setup = {
            .job = &args->job,
            .dump_config = args->dump_config,
            .version = program,
            .argv = line,
            .attrs = attrs,
        };
        setup.n_attrs = provenance(libraries, sizeof libraries, attrs);
        st = engine_run(&setup);
    }
    free(line);
    free(args);
    return st;
}
