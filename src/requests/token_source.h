/* token_source.h - one kind of token file behind token_file.h. Private to requests/.
 */
#ifndef REQUESTS_TOKEN_SOURCE_H
#define REQUESTS_TOKEN_SOURCE_H

#include "core/status.h"
#include "requests/id_set.h"
#include "requests/request_parse.h"

struct token_source;

/* A kind of file. open indexes the file and marks duplicates; the source is freed by close. */
struct token_source_ops {
    enum status (*open)(const char *path, struct parse_context *c, struct token_source **out);
    enum status (*get)(struct token_source *s, struct parse_context *c, int64_t i,
                       struct request *out);
    void (*close)(struct token_source *s);
};

/* The common part, first in each kind's struct. */
struct token_source {
    const struct token_source_ops *ops;
    int64_t count;
    uint64_t hash; /* of the file's bytes */
    size_t bytes;  /* of the index */
    size_t peak_bytes;
};

extern const struct token_source_ops token_jsonl, token_hdf5;

#endif
