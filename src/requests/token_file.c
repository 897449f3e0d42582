/* token_file.c - picks the kind of file by its extension and hands calls on. */
#include "requests/token_file.h"

#include "requests/token_source.h"

#include <stdlib.h>
#include <string.h>

struct token_file {
    struct token_source *source;
    struct parse_context context;
    char path[JOB_PATH_BYTES];
};

static const struct token_source_ops *kind_of(const char *path)
{
    const char *slash = strrchr(path, '/'), *dot = strrchr(path, '.');
    if (!dot || (slash && dot < slash)) return NULL;
    if (!strcmp(dot, ".jsonl")) return &token_jsonl;
    if (!strcmp(dot, ".h5") || !strcmp(dot, ".hdf5")) return &token_hdf5;
    return NULL;
}

enum status token_file_open(const char *path, const struct job_sampling *defaults,
                            const struct request_limits *limits, struct token_file **out)
{
    const struct token_source_ops *ops = kind_of(path);
    if (!ops)
        return error_set(ERR_INPUT,
                         "token file %s: unknown kind, expected a name that ends in .jsonl, .h5 or "
                         ".hdf5 (scripts/tokenize.py writes them)",
                         path);
    struct token_file *tf = calloc(1, sizeof *tf);
    if (!tf) return error_set(ERR_RESOURCE, "out of memory for the token file");
    strncpy(tf->path, path, sizeof tf->path - 1);
    tf->context.path = tf->path;
    tf->context.defaults = *defaults;
    tf->context.limits = *limits;
    enum status st = ops->open(path, &tf->context, &tf->source);
    if (st != OK) {
        free(tf);
        return st;
    }
    *out = tf;
    return OK;
}

int64_t token_file_count(const struct token_file *tf)
{
    return tf->source->count;
}

enum status token_file_get(struct token_file *tf, int64_t i, struct request *out)
{
    if (i < 0 || i >= tf->source->count)
        return error_set(ERR_BUG, "request %lld of %lld", (long long)i,
                         (long long)tf->source->count);
    return tf->source->ops->get(tf->source, &tf->context, i, out);
}

uint64_t token_file_hash(const struct token_file *tf)
{
    return tf->source->hash;
}

size_t token_file_bytes(const struct token_file *tf)
{
    return tf->source->bytes;
}

size_t token_file_peak_bytes(const struct token_file *tf)
{
    return tf->source->peak_bytes;
}

void token_file_close(struct token_file *tf)
{
    if (!tf) return;
    tf->source->ops->close(tf->source);
    free(tf);
}
