/* cmd.h - a subcommand as main.c sees it.
 *
 * fn gets argc, argv beginning with its own name (argv[0] = "run") and returns an enum status,
 * which becomes the exit code; its message is error_text(). main has called MPI_Init_thread
 * (FUNNELED) before fn when needs_mpi is set and the command line holds no -h or --help, and calls
 * MPI_Finalize or MPI_Abort after it: commands never exit by themselves.
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
    bool needs_mpi; /* false: fn itself must not call MPI, or only what works before MPI_Init */
};

enum status cmd_run(int argc, char **argv);   /* run.c */
enum status cmd_bench(int argc, char **argv); /* bench.c: gemm | mla | ep */

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
