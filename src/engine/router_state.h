/* router_state.h - the router's struct and what its three files call of each other; private to
 * router.c (sending requests out), router_order.c (which is next) and router_answers.c (what comes
 * back).
 */
#ifndef ENGINE_ROUTER_STATE_H
#define ENGINE_ROUTER_STATE_H

#include "balance/decode_balance.h"
#include "balance/prefill_balance.h"
#include "engine/progress.h"
#include "engine/router.h"
#include "kvcache/prefix_order.h"
#include "kvcache/prefix_shadow.h"
#include "kvcache/route_index.h"
#include "schedule/trace.h"

/* A request that is under way. */
struct flight {
    bool used, prefilling;
    int prefill, decode; /* index among the prefill / decode ranks; decode -1: none */
    uint32_t pages, n_prompt, cached;
    int next_free;
};

/* Reading ahead and the choice of the next request; order NULL: file order. */
struct router_ahead {
    struct prefix_order *order;
    struct prefix_shadow in_file, as_sent; /* what a cache would hit in both orders */
    struct request request;                /* being read */
    struct hash128 *chain;                 /* [cap_chain] of a prompt */
    int32_t cap_chain;
    int64_t tokens_read, tokens_taken;
};

struct router {
    struct router_setup s;
    int n_prefill, n_decode, first_decode; /* ranks of each role; world rank of the first decoder */
    bool mixed;
    struct prefill_balance prefill;
    struct decode_balance decode;
    struct route_index routes;
    bool use_routes;
    uint32_t *cached; /* [n_prefill] scratch of a choice */
    bool *may;        /* [n_prefill] scratch: who may take a request */
    struct flight *flight;
    int flights, free_flight, in_flight;
    struct router_ahead ahead;
    int64_t count, next, finished; /* next: to be read from the token file */
    struct request pending;        /* parsed, waits for room */
    bool have_pending, stopped, blocked;
    char *id; /* [in flight][RESULTS_ID_MAX + 1] custom_ids */
    FILE *responses;
    struct progress progress;
    int64_t prompt_done, prefill_tokens, decode_tokens;
    int64_t *expert_load;
    struct rank_row *rank_rows; /* [ranks] as they arrive */
    bool *reported;             /* [ranks] its row has arrived */
    int stats_received, id_bytes;
    double next_tick, next_snapshot;
    struct trace_writer trace;
    int traces_received;
    enum status failed;
};

/* ---- router_order.c ---- */
enum status router_order_init(struct router *r);
void router_order_free(struct router *r);
/* The next request of the job becomes the pending one; none is left, or none can be sent now
 * (blocked), when have_pending is still false. */
enum status router_order_next(struct router *r);
/* The pending request goes to this prefill rank. */
void router_order_sent(struct router *r, int prefill);
/* The prefill ranks that may take a request of so many pages and prompt tokens now, as `may`. */
void router_find_room(struct router *r, uint32_t pages, uint32_t prompt);

/* A request has ended, now or in an earlier attempt: counts, progress, response line. */
enum status router_account_for(struct router *r, const struct request_row *row);
/* Records the pending request, which cannot run, as failed. */
enum status router_record_bad(struct router *r);

#endif
