/* request_check.h - failing a request, and the checks that every kind of token file shares.
 * Private to requests/.
 */
#ifndef REQUESTS_REQUEST_CHECK_H
#define REQUESTS_REQUEST_CHECK_H

#include "config/job.h"
#include "requests/request.h"

#include <stddef.h>

/* Empties r (its token buffer stays) and fills in the defaults for request `index`. */
void request_reset(struct request *r, int64_t index, const struct job_sampling *defaults);

/* Records why r fails; the first reason stays. The text becomes valid UTF-8 without controls. */
void request_fail(struct request *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Stores name[0..n) as custom_id, or fails r: empty, too long (kept as far as it fits), not
 * UTF-8. */
void request_set_id(struct request *r, const char *name, size_t n);

/* Makes room for n tokens; false when memory is short. */
bool request_reserve(struct request *r, int64_t n);

/* Prompt against vocabulary, context and KV pool, stop tokens against the vocabulary; cuts
 * max_tokens to the context. */
void request_check(struct request *r, const struct request_limits *limits);

#endif
