/* cmd.h - a subcommand as main.c sees it.
 *
 * fn gets argc, argv beginning with its own name (argv[0] = "run") and returns a status, which
 * becomes the exit code. main calls MPI_Init_thread (FUNNELED) before fn when needs_mpi says so
 * and MPI_Finalize or MPI_Abort after it; commands never exit by themselves.
 *
 * A command that fails leaves error_text() on rank 0, and main prints it there. Every rank returns
 * the same status and nobody waits in a collective; only ERR_COMM and ERR_BUG may come back from
 * one rank alone: main prints the message with rank and host and aborts the job.
 */
#ifndef CMD_CMD_H
#define CMD_CMD_H

#include "core/status.h"

#include <stdbool.h>
#include <stdio.h>

struct cmd {
    const char *name;
    const char *summary;
    enum status (*fn)(int argc, char **argv);
    bool (*needs_mpi)(int argc, char **argv); /* NULL: never; not asked when help is wanted */
};

enum status cmd_run(int argc, char **argv);       /* run.c */
enum status cmd_study(int argc, char **argv);     /* study.c */
enum status cmd_calibrate(int argc, char **argv); /* calibrate.c */
enum status cmd_plan(int argc, char **argv);      /* plan.c */
enum status cmd_slurm(int argc, char **argv);     /* slurm.c */
enum status cmd_bench(int argc, char **argv);     /* bench.c: gemm | mla | ep */
bool cmd_bench_needs_mpi(int argc, char **argv);

/* Whether the arguments ask for help. */
bool cmd_wants_help(int argc, char **argv);

/* help.c: the overview of all commands with the exit codes. cmds ends with name NULL. */
void cmd_help(const struct cmd *cmds, FILE *out);

/* help.c: the exit codes, for a command's own help. */
void cmd_help_exit_codes(FILE *out);

/* version.c: this program, its libraries as compiled and as loaded, this host's instructions. */
void cmd_version(FILE *out);

/* The revision this program was built from. */
const char *cmd_gitrev(void);

#endif
