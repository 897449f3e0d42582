/* main.c - picks a subcommand. The only caller of MPI_Init, MPI_Finalize, MPI_Abort and exit.
 *
 * 1. what needs no command (--help, --version)   2. find the command
 * 3. start MPI if the command needs it           4. run it
 * 5. print its error, end MPI, exit with its status
 */
#include "cmd/cmd.h"
#include "cmd/cmd_model.h"
#include "cmd/mpi_start.h"
#include "cmd/report.h"
#include "config/options.h"
#include "core/log.h"

#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool always(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    return true;
}

static const struct cmd cmds[] = {
    {"run", "generate for every request of a token file", cmd_run, always},
    {"study", "simulate days and sweep deployments of a cluster", cmd_study, always},
    {"calibrate", "measure this host, for predictions of runs", cmd_calibrate, always},
    {"plan", "ranks, memory, time and cost of a job before it runs", cmd_plan, NULL},
    {"slurm", "print an sbatch file for a job", cmd_slurm, NULL},
    {"bench", "time the kernels and the all-to-all, each verified first", cmd_bench,
     cmd_bench_needs_mpi},
    {"model", "make a checkpoint of any shape, show one", cmd_model, NULL},
    {"report", "a results file as a table, and as a page of charts", cmd_report, NULL},
    {NULL, NULL, NULL, NULL},
};

static const struct cmd *find_command(const char *name)
{
    const struct cmd *nearest = cmds;
    for (const struct cmd *c = cmds; c->name; c++) {
        if (!strcmp(c->name, name)) return c;
        if (options_distance(name, c->name) < options_distance(name, nearest->name)) nearest = c;
    }
    error_set(ERR_USAGE, "unknown command %s: did you mean %s? See moebatch --help", name,
              nearest->name);
    return NULL;
}

/* Rank 0 speaks for all; a rank that fails alone says who and where it is. */
static void print_error(enum status st, int rank, bool alone)
{
    if (rank != 0 && !alone) return;
    const char *text = *error_text() ? error_text() : "failed without a message";
    if (!alone) {
        fprintf(stderr, "moebatch: %s\n", text);
        return;
    }
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    fprintf(stderr, "moebatch: rank %d on %s: %s (status %d)\n", rank, host, text, (int)st);
}

/* Steps 3 to 5. */
static enum status run_command(const struct cmd *cmd, int argc, char **argv)
{
    bool mpi = cmd->needs_mpi && !cmd_wants_help(argc, argv) && cmd->needs_mpi(argc, argv);
    int rank = 0, size = 1;
    enum status st = OK;
    if (mpi) {
        st = mpi_start(&argc, &argv);
        int initialised = 0;
        MPI_Initialized(&initialised);
        mpi = initialised;
        if (mpi) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
        if (mpi) MPI_Comm_size(MPI_COMM_WORLD, &size);
    }
    log_init(rank, rank == 0);
    if (st == OK) st = cmd->fn(argc, argv);

    /* A rank without a message was told by rank 0, which ends the job when its files are written. */
    bool told = rank != 0 && !*error_text();
    bool alone = size > 1 && !told && (st == ERR_COMM || st == ERR_BUG);
    if (st != OK && (st != ERR_INVALID || *error_text())) print_error(st, rank, alone);
    fflush(stdout);
    if (mpi && alone) MPI_Abort(MPI_COMM_WORLD, (int)st);
    if (mpi) mpi_end(st);
    return st;
}

int main(int argc, char **argv)
{
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") ||
        !strcmp(argv[1], "help")) {
        cmd_help(cmds, argc < 2 ? stderr : stdout);
        return argc < 2 ? ERR_USAGE : OK;
    }
    if (!strcmp(argv[1], "--version")) {
        cmd_version(stdout);
        return OK;
    }
    const struct cmd *cmd = find_command(argv[1]);
    if (!cmd) {
        print_error(ERR_USAGE, 0, false);
        return ERR_USAGE;
    }
    return (int)run_command(cmd, argc - 1, argv + 1);
}
