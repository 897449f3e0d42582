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
    puts("moebatch run JOB.yaml [options]   (started by mpirun, one rank per GPU or share of a CPU)\n"
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

struct versions {
    char mpi[MPI_MAX_LIBRARY_VERSION_STRING];
    char hdf5_built[16], hdf5[16];
};

static int provenance(struct versions *v, struct results_attr *attr)
{
    int len = 0, n = 0;
    MPI_Get_library_version(v->mpi, &len);
    v->mpi[strcspn(v->mpi, "\n,")] = '\0';
    results_hdf5_versions(v->hdf5_built, v->hdf5);
    attr[n++] = (struct results_attr){"git_revision", cmd_gitrev()};
    attr[n++] = (struct results_attr){"mpi_version", v->mpi};
    attr[n++] = (struct results_attr){"hdf5_version", v->hdf5};
    attr[n++] = (struct results_attr){"libyaml_version", yaml_get_version_string()};
    attr[n++] = (struct results_attr){"jansson_version", JANSSON_VERSION};
    attr[n++] = (struct results_attr){"compiler", __VERSION__};
    return n;
}

enum status cmd_run(int argc, char **argv)
{
    if (cmd_wants_help(argc, argv)) {
        help();
        return OK;
    }
    struct job_args *args = calloc(1, sizeof *args);
    struct versions *v = calloc(1, sizeof *v);
    char *line = join(argc, argv);
    enum status st = args && v && line ? OK : error_set(ERR_RESOURCE, "no memory for the job");
    if (st == OK) st = job_args_parse(argc, argv, args);
    if (st == OK) {
        struct results_attr attrs[16];
        char program[128];
        snprintf(program, sizeof program, "moebatch %s", cmd_gitrev());
        struct engine_setup setup = {
            .job = &args->job,
            .dump_config = args->dump_config,
            .version = program,
            .argv = line,
            .attrs = attrs,
        };
        setup.n_attrs = provenance(v, attrs);
        st = engine_run(&setup);
    }
    free(line);
    free(v);
    free(args);
    return st;
}
