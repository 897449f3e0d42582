/* router_state.h - the router's struct and what its two files call of each other; private to
 * router.c (sending requests out) and router_answers.c (what comes back).
 */
#ifndef ENGINE_ROUTER_STATE_H
#define ENGINE_ROUTER_STATE_H

#include "balance/decode_balance.h"
#include "balance/prefill_balance.h"
#include "engine/progress.h"
#include "engine/router.h"
#include "kvcache/route_index.h"
#include "schedule/trace.h"

/* A request that is under way. */
struct flight {
    bool used, prefilling;
    int prefill, decode;  /* index among the prefill / decode ranks; decode -1: none */
    uint32_t pages, n_prompt, cached;
    int next_free;
};

struct router {
    struct router_setup s;
    int n_prefill, n_decode, first_decode; /* ranks of each role; world rank of the first decoder */
    bool mixed;
    struct prefill_balance prefill;
    struct decode_balance decode;
    struct route_index routes;
    bool use_routes;
    uint32_t *cached;       /* [n_prefill] */
    struct flight *flight;
    int flights, free_flight, in_flight;
    int64_t count, next, finished;
    struct request pending; /* parsed, waits for room */
    bool have_pending, stopped, blocked;
    char *id;               /* [in flight][RESULTS_ID_MAX + 1] custom_ids */
    FILE *responses;
    struct progress progress;
    int64_t prompt_done, prefill_tokens, decode_tokens;
    int64_t *expert_load;
    struct rank_row *rank_rows; /* [ranks] as they arrive */
    int stats_received, id_bytes;
    double next_tick, next_snapshot;
    struct trace_writer trace;
    int traces_received;
    enum status failed;
};

/* A request has ended, now or in an earlier attempt: counts, progress, response line. */
enum status router_account_for(struct router *r, const struct request_row *row);
/* ERR_RESOURCE when the responses cannot be written (disk full). */
enum status router_flush_responses(struct router *r);
/* Records the pending request, which cannot run, as failed. */
enum status router_record_bad(struct router *r);

#endif
