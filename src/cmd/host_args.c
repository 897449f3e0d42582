/* host_args.c - see host_args.h. */
#include "cmd/host_args.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { BOTH = HOST_ARGS_PLAN | HOST_ARGS_SLURM };

static const struct option_row {
    const char *name, *value;
    size_t offset;
    bool text;
    int users;
    const char *doc;
} rows[] = {
#define ROW(name, value, field, text, users, doc)                        \
    {                                                                    \
        name, value, offsetof(struct host_args, field), text, users, doc \
    }
    ROW("--ranks", "N", ranks, false, BOTH, "ranks of a job whose ep is auto"),
    ROW("--tasks-per-node", "N", tasks, false, HOST_ARGS_PLAN, "ranks on a node (default: all)"),
    ROW("--tasks-per-node", "N", tasks, false, HOST_ARGS_SLURM, "ranks on a node (default 8)"),
    ROW("--cores-per-node", "N", cores, false, HOST_ARGS_PLAN, "cores of a node (default: here)"),
    ROW("--cores-per-node", "N", cores, false, HOST_ARGS_SLURM,
        "cores of a node (default: threads_per_rank a rank)"),
    ROW("--memory", "GIB", memory_gib, false, HOST_ARGS_PLAN,
        "free memory of a node (default: what is free here)"),
    ROW("--memory", "GIB", memory_gib, false, HOST_ARGS_SLURM,
        "of a node: KV pages are limited to what fits"),
    ROW("--gpus-per-node", "N", gpus, false, HOST_ARGS_SLURM,
        "GPUs of a node (default 0; backend cuda: one a rank)"),
    ROW("--hardware", "FILE", hardware, true, BOTH,
        "predict for it: a file or h800, ... (default: this machine)"),
    ROW("--gflops", "N", gflops, false, HOST_ARGS_SLURM,
        "speed of a rank in GFLOP/s, where no hardware file predicts the time"),
    ROW("--time", "HH:MM:SS", time, true, HOST_ARGS_SLURM, "instead of the estimate"),
#undef ROW
};
enum { ROWS = sizeof rows / sizeof *rows };

static const struct option_row *find(enum host_args_user user, const char *name)
{
    for (int i = 0; i < ROWS; i++)
        if ((rows[i].users & (int)user) && strcmp(rows[i].name, name) == 0) return &rows[i];
    return NULL;
}

static enum status set(const struct option_row *row, char *value, struct host_args *a)
{
    char *field = (char *)a + row->offset, *end = NULL;
    if (row->text) {
        memcpy(field, &value, sizeof value);
        return OK;
    }
    double v = strtod(value, &end);
    if (*end || !(v > 0) || v > 1e9)
        return error_set(ERR_USAGE, "%s is %s, expected a number above 0", row->name, value);
    memcpy(field, &v, sizeof v);
    return OK;
}

enum status host_args_parse(enum host_args_user user, int argc, char **argv, struct host_args *a)
{
    memset(a, 0, sizeof *a);
    a->rest = calloc((size_t)argc + 1, sizeof *a->rest);
    if (!a->rest) return error_set(ERR_RESOURCE, "no memory for the command line");
    a->rest[a->n_rest++] = argv[0];
    for (int i = 1; i < argc; i++) {
        const struct option_row *row = find(user, argv[i]);
        if (!row)
            a->rest[a->n_rest++] = argv[i];
        else if (++i >= argc)
            return error_set(ERR_USAGE, "%s needs a value", row->name);
        else
            TRY(set(row, argv[i], a));
    }
    return OK;
}

void host_args_free(struct host_args *a)
{
    free(a->rest);
    memset(a, 0, sizeof *a);
}

void host_args_help(enum host_args_user user, FILE *out)
{
    for (int i = 0; i < ROWS; i++) {
        if (!(rows[i].users & (int)user)) continue;
        int used = fprintf(out, "  %s %s", rows[i].name, rows[i].value);
        fprintf(out, "%*s%s\n", used < 26 ? 26 - used : 1, "", rows[i].doc);
    }
}
