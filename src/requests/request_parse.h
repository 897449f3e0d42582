/* request_parse.h - one JSONL line to one request. Private to requests/.
 */
#ifndef REQUESTS_REQUEST_PARSE_H
#define REQUESTS_REQUEST_PARSE_H

#include "config/job.h"
#include "requests/request.h"

#include <stdbool.h>
#include <stddef.h>

#define WARNED_FIELDS 64
#define WARNED_BYTES 48

/* Names of unknown fields that were warned about. */
struct warned {
    char names[WARNED_FIELDS][WARNED_BYTES];
    int n;
};

struct parse_context {
    const char *path; /* for warnings */
    struct job_sampling defaults;
    struct request_limits limits;
    struct warned warned;
};

/* Parses line[0..n) (its bytes may be overwritten) as request `index`, whose line number is
 * `line_no`. A bad line makes r->error. False only when memory is short. */
bool request_parse(struct parse_context *c, char *line, size_t n, int64_t line_no, int64_t index,
                   struct request *r);

/* The custom_id of a line, found without parsing the rest: calls use(arg, text, n) if there is
 * one that is a string. The line stays as it is. */
void request_peek_id(const char *line, size_t n, void (*use)(void *arg, const char *text, size_t n),
                     void *arg);

#endif
