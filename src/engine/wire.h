/* wire.h - what the ranks tell each other about requests: fixed structs in front of arrays.
 *
 * All ranks run the same binary, so structs travel as they are in memory.
 */
#ifndef ENGINE_WIRE_H
#define ENGINE_WIRE_H

#include <stdint.h>

enum { WIRE_STOPS = 16 };

/* A request's own parameters; travels with it from rank to rank. */
struct wire_params {
    int64_t index;  /* in the token file */
    int32_t ticket; /* the router's slot for it */
    int32_t n_prompt, max_tokens;
    int32_t top_k;
    float temperature, top_p;
    uint64_t seed;
    int32_t stop[WIRE_STOPS];
    int32_t n_stop;
    int32_t logprobs, prompt_logprobs, ignore_eos;
    int32_t prefill_rank, decode_rank; /* world ranks; equal in mixed units */
    double t_arrival;
};

/* CTL_REQUEST: then int32 tokens[n_prompt]. */
struct wire_request {
    struct wire_params p;
};

/* CTL_KV: then n_pages pages of one layer. */
struct wire_kv {
    int64_t index;
    int32_t layer, page0, n_pages;
    int32_t n_prompt, max_tokens; /* to size the page table before START arrives */
    int32_t reserved;
};

/* What prefill found out. */
struct wire_prefilled {
    int32_t cached_tokens, first_token;
    float first_logprob;
    int32_t kv_messages;                  /* CTL_KV messages that belong to this request */
    int32_t cached_tokens_disk, reserved; /* of cached_tokens, read from disk for it */
    double t_prefill_start, t_first_token;
};

/* CTL_START: then float prompt_logprobs[n_prompt] if asked for. */
struct wire_start {
    struct wire_params p;
    struct wire_prefilled f;
};

/* CTL_DONE: then int32 tokens[n_out], float logprobs[n_out] and float prompt_logprobs[n_prompt] if
 * asked for; or, with failed set, the error text. */
struct wire_done {
    struct wire_params p;
    struct wire_prefilled f;
    int32_t n_out;
    int32_t stopped; /* 1: a stop token ended it, 0: the length */
    double t_finish;
};

/* CTL_ERROR */
struct wire_error {
    int32_t status, rank;
    char host[64];
    char text[1024];
};

#endif
