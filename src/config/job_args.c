/* job_args.c - turns a command line into a job. Every short form is a `--set` of one key, so that
 * the dump and the results file show it. */
#include "config/job_args.h"

#include <stdlib.h>
#include <string.h>

struct short_form {
    const char *flag;
    const char *set;   /* the override; ends with '=' when the flag takes a value */
    const char *value; /* its name in the help, NULL: none */
    const char *doc;
};

static const struct short_form short_forms[] = {
    {"--set", "", "KEY=VALUE", "override a key of the job file; KEY=null takes it away"},
    {"--strict", "strict=true", NULL, "the first request that fails ends the job"},
    {"--force", "force=true", NULL, "replace an existing results file"},
    {"--resume", "resume=true", NULL, "continue an interrupted job from its journal"},
    {"--trace", "trace=", "FILE.json", "write the timeline for Perfetto"},
};
#define SHORT_FORMS ((int)(sizeof short_forms / sizeof *short_forms))

/* argv[*i], and its value if it takes one, as an override in *out (to be freed); NULL there when it
 * is no short form. */
static enum status parse_flag(int argc, char **argv, int *i, char **out)
{
    *out = NULL;
    for (int k = 0; k < SHORT_FORMS; k++) {
        const struct short_form *f = &short_forms[k];
        size_t n = strlen(f->flag);
        const char *value = "";
        if (strncmp(argv[*i], f->flag, n)) continue;
        if (f->value && argv[*i][n] == '=')
            value = argv[*i] + n + 1; /* --set=KEY=VALUE */
        else if (argv[*i][n])
            continue;
        else if (f->value && *i + 1 >= argc)
            return error_set(ERR_USAGE, "%s needs a value: %s %s", f->flag, f->flag, f->value);
        else if (f->value)
            value = argv[++*i];
        if (asprintf(out, "%s%s", f->set, value) < 0) {
            *out = NULL;
            return error_set(ERR_RESOURCE, "out of memory");
        }
        return OK;
    }
    return OK;
}

static enum status collect(int argc, char **argv, struct job_args *out, char **overrides, int *n)
{
    for (int i = 1; i < argc; i++) {
        TRY(parse_flag(argc, argv, &i, &overrides[*n]));
        if (overrides[*n])
            ++*n;
        else if (!strcmp(argv[i], "--dump-config"))
            out->dump_config = true;
        else if (argv[i][0] == '-')
            return error_set(ERR_USAGE, "unknown option %s: see moebatch %s --help", argv[i],
                             argv[0]);
        else if (out->path)
            return error_set(ERR_USAGE, "two job files, %s and %s: expected one", out->path,
                             argv[i]);
        else
            out->path = argv[i];
    }
    if (!out->path)
        return error_set(ERR_USAGE, "no job file: moebatch %s JOB.yaml [--set KEY=VALUE]...",
                         argv[0]);
    return OK;
}

enum status job_args_parse(int argc, char **argv, struct job_args *out)
{
    memset(out, 0, sizeof *out);
    int n = 0;
    char **overrides = calloc((size_t)argc + 1, sizeof *overrides);
    if (!overrides) return error_set(ERR_RESOURCE, "out of memory");
    enum status st = collect(argc, argv, out, overrides, &n);
    if (st == OK) st = job_read(out->path, n, (const char *const *)overrides, &out->job);
    for (int i = 0; i < n; i++) free(overrides[i]);
    free(overrides);
    return st;
}

void job_args_help(FILE *out)
{
    for (int k = 0; k < SHORT_FORMS; k++) {
        const struct short_form *f = &short_forms[k];
        int used = fprintf(out, "  %s %s", f->flag, f->value ? f->value : "");
        fprintf(out, "%*s%s\n", used < 26 ? 26 - used : 1, "", f->doc);
    }
    fprintf(out, "  --dump-config           print the resolved job and stop\n");
}
