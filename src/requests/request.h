/* request.h - one request of a token file, checked, with every default filled in.
 *
 * A request that cannot run is a result, not an error of the job: `error` then says why and what
 * to do, and of the other fields only custom_id and n_tokens mean something, as far as they could
 * be read (tokens itself may then be shorter than n_tokens).
 * The request owns its tokens; the same struct can be filled again and again (its buffer grows).
 */
#ifndef REQUESTS_REQUEST_H
#define REQUESTS_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#define REQUEST_ID_BYTES 256    /* longest custom_id in bytes, without the NUL */
#define REQUEST_ERROR_BYTES 256 /* with the NUL */
#define REQUEST_MAX_STOP 16

struct request {
    int64_t index; /* 0-based position in the token file */
    char custom_id[REQUEST_ID_BYTES + 1];
    char error[REQUEST_ERROR_BYTES]; /* "" when the request can run; UTF-8 */
    int32_t *tokens;                 /* [n_tokens] prompt, owned */
    int32_t n_tokens, cap_tokens;
    int32_t max_tokens; /* already cut to the context; 0: scoring only */
    int32_t top_k;      /* 0: no limit */
    float temperature, top_p;
    uint64_t seed; /* own, or hash(sampling.seed, index) */
    int32_t stop_token_ids[REQUEST_MAX_STOP];
    int n_stop;
    bool logprobs, prompt_logprobs, ignore_eos;
};

/* What the model and the ranks can take; 0 in a field: no such limit. */
struct request_limits {
    int64_t vocab;          /* token ids are below this */
    int64_t context;        /* prompt + output tokens */
    int64_t kv_pool_tokens; /* tokens that one rank's pages hold */
};

/* Frees the tokens and zeroes the struct. A zeroed struct is a valid empty request. */
void request_free(struct request *r);

#endif
