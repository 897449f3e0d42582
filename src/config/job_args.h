/* job_args.h - the command line of everything that takes a job: JOB.yaml, --set and its short
 * forms. `moebatch run` and `moebatch plan` share it.
 */
#ifndef CONFIG_JOB_ARGS_H
#define CONFIG_JOB_ARGS_H

#include "config/job.h"

struct job_args {
    const char *path; /* of the job file, borrowed from argv */
    bool dump_config; /* --dump-config: print the resolved job and stop */
    struct job job;   /* read and checked, not yet resolved */
};

/* Parses argv[1..]: JOB.yaml, --set KEY=VALUE (any number, the last wins), --strict, --force,
 * --resume, --trace FILE, --dump-config. Short forms are overrides like any --set, in the order
 * given. ERR_USAGE for the command line, else as job_read. */
enum status job_args_parse(int argc, char **argv, struct job_args *out);

/* The lines about these arguments for a command's help. */
void job_args_help(FILE *out);

#endif
