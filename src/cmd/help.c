/* help.c - the overview of commands and the exit codes. Each command prints its own help. */
#include "cmd/cmd.h"

#include <string.h>

bool cmd_wants_help(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "-h") || !strcmp(argv[i], "--help")) return true;
    return false;
}

void cmd_help(const struct cmd *cmds, FILE *out)
{
    fputs("moebatch - offline batch inference for DeepSeek-V3-family models\n\n"
          "  mpirun -np N moebatch run JOB.yaml [--set KEY=VALUE]...\n"
          "  moebatch COMMAND --help\n\ncommands\n",
          out);
    for (const struct cmd *c = cmds; c->name; c++)
        fprintf(out, "  %-10s %s\n", c->name, c->summary);
    fputs("  --version  this program, its libraries and this host\n\n", out);
    cmd_help_exit_codes(out);
}

void cmd_help_exit_codes(FILE *out)
{
    static const struct {
        enum status code;
        const char *meaning;
    } codes[] = {
        {OK, "complete, even if single requests failed"},
        {ERR_INVALID, "the job ran, but its result is INVALID; the last line says why"},
        {ERR_USAGE, "wrong command line"},
        {ERR_INPUT, "bad input: job file, checkpoint, token file, price table"},
        {ERR_RESOURCE, "not enough ranks, memory, disk, or an instruction set is missing"},
        {ERR_COMM, "a rank or a link is gone"},
        {ERR_INTERRUPT, "stopped by a signal; --resume continues"},
        {ERR_BUG, "a bug in this program"},
    };
    fputs("exit codes\n", out);
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        fprintf(out, "  %-10d %s\n", (int)codes[i].code, codes[i].meaning);
    fputs("  others     mpirun's own: 128 + signal of a killed rank, 205 for a lost host\n", out);
}
