/* host_args.h - the options that describe hosts, which `moebatch plan` and `moebatch slurm` share; what
 * remains of the command line is the job's.
 */
#ifndef CMD_HOST_ARGS_H
#define CMD_HOST_ARGS_H

#include "core/status.h"

#include <stdbool.h>
#include <stdio.h>

enum host_args_user { HOST_ARGS_PLAN = 1, HOST_ARGS_SLURM = 2 };

struct host_args {
    /* 0 or NULL: not given */
    double ranks, tasks, cores, gpus, memory_gib, gflops;
    const char *hardware, *time;
    char **rest; /* [n_rest] argv[0] and what belongs to the job; owned */
    int n_rest;
};

/* ERR_USAGE for a value that is missing or no number above 0. */
enum status host_args_parse(enum host_args_user user, int argc, char **argv, struct host_args *out);
void host_args_free(struct host_args *a);
void host_args_help(enum host_args_user user, FILE *out);

#endif
