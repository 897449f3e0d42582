/* sim_internal.h - the parts of a running simulation. Private to sim*.c.
 *
 * Who does what: sim.c owns the epochs, arrivals and results; sim_route.c spreads requests over
 * units and ranks; sim_prefill.c and sim_decode.c are the units, sim_preempt.c what happens when
 * their pages run out; sim_wheel.c keeps requests by step; sim_cache.c is the prefix cache.
 * Times are seconds since the simulation's start (warm-up included) unless named otherwise.
 */
#ifndef CLUSTER_SIM_INTERNAL_H
#define CLUSTER_SIM_INTERNAL_H

#include "balance/decode_balance.h"
#include "balance/prefill_balance.h"
#include "cluster/sim.h"
#include "kvcache/disk_index.h"

enum { ROUTE_SLOTS = 1024, CACHE_AHEAD = 4 };
enum { CHUNK = 16, WHEEL_FINE = 64, WHEEL_COARSE = 1024, WHEEL = WHEEL_FINE * WHEEL_COARSE };

/* Requests in order of arrival, by value. */
struct sim_queue {
    struct sim_request *r; /* [cap], cap a power of two; owned */
    uint32_t cap, head, n;
};

/* Chunks of CHUNK requests, linked into buckets; chunk 0 is none. */
struct sim_pool {
    struct sim_request *r; /* [cap, CHUNK]; owned */
    uint32_t *next;        /* [cap]; owned */
    uint32_t cap, used, free_head;
};

/* Requests in the order of their arrival: chunks first to last, all but the last full. */
struct sim_bucket {
    uint32_t first, last, n;
};

/* Buckets by step or epoch, up to WHEEL - 1 ahead: the steps of the block now open one by one,
 * later ones by blocks of WHEEL_FINE. */
struct sim_wheel {
    struct sim_bucket *fine;   /* [WHEEL_FINE]; owned, coarse with it */
    struct sim_bucket *coarse; /* [WHEEL_COARSE] */
    uint64_t block;
};

/* Reads a bucket that was taken off its wheel; chunks go back to the pool as they are read. */
struct sim_cursor {
    uint32_t chunk, at, n;
};

/* A prefill rank, or the whole unit where requests are not dealt to ranks. */
struct prefill_rank {
    struct sim_queue queue;
    uint32_t finishing;     /* requests at the queue's head that the step completes */
    uint32_t partial;       /* tokens of the next one that it computes */
    uint64_t tokens, pairs; /* of the step */
};

struct prefill_unit {
    int id;
    struct prefill_rank *rank;      /* [prefill.ranks]; owned */
    struct prefill_balance balance; /* over them, when there are several */
    uint32_t queued;
    int64_t work; /* queued and unfinished: tokens + pairs / 8192 */
    int64_t queued_tokens;
    double clock; /* end of the step under way, or idle since */
    bool stepping;
    int64_t step_tokens;
    uint64_t dealt; /* requests sent on, for the router's sequence */
};

/* A decode rank, or the whole unit where requests are not dealt to ranks. */
struct decode_rank {
    int64_t running, kv_tokens_q10;
    struct sim_queue host; /* whose pages went to host memory, oldest first */
};

struct decode_unit {
    int id;
    struct sim_queue waiting;
    struct decode_balance balance; /* over the unit's ranks */
    struct decode_rank *rank;      /* [decode.ranks]; owned */
    double clock;
    uint64_t step;
    int64_t running, waiting_pages, on_host; /* waiting_pages: with those on the host */
    uint32_t admissions;
    struct sim_wheel wheel; /* by step of finish */
    uint64_t dealt;
};

/* Where sessions start and come back: one beside each decode unit. */
struct lane {
    uint64_t key, drawn, dealt;
    struct sim_wheel wheel; /* by epoch of arrival */
};

/* Requests leaving for other units, by kind, for one destination rank. */
enum sim_box { BOX_MOVED_PREFILL, BOX_ARRIVING, BOX_MOVED_DECODE, BOX_PREFILLED, BOXES };
struct sim_outbox {
    struct sim_request *r[BOXES]; /* owned */
    uint32_t n[BOXES], cap[BOXES];
    char *message; /* owned */
    size_t message_cap;
};

/* Head of a message between ranks: summed over ranks into the view of the next epoch. */
enum { HEAD_DUE, HEAD_CACHE, HEAD_OLDEST, HEAD_LOADS = HEAD_OLDEST + CACHE_AHEAD };

struct sim {
    const struct sim_config *cfg;
    const struct exchange *ex;
    int np, nd;                   /* units that may exist */
    int p0, p1, d0, d1;           /* own units */
    struct prefill_unit *prefill; /* [p1 - p0] */
    struct decode_unit *decode;   /* [d1 - d0] */
    struct lane *lane;            /* [d1 - d0] */
    struct sim_pool pool;
    struct sim_outbox *out;            /* [ranks] */
    struct exchange_part *send, *recv; /* [ranks] */
    int64_t *head;                     /* [HEAD_LOADS + np + nd] own part for the next exchange */
    int64_t *view;                     /* the same, summed: loads of the epoch before */
    int64_t last_routed[2];            /* own + others' load routed in the last epoch, by role */
    int64_t routed[2];
    uint16_t slots_p[ROUTE_SLOTS], slots_d[ROUTE_SLOTS];
    /* time */
    int64_t epoch, epoch_ms, warmup_ms, end_ms;
    double t0, t1;           /* of this epoch */
    struct sim_time time[2]; /* of a step in this minute: prefill, decode */
    /* prefix cache */
    int64_t *cache;      /* [seconds] own share of pages by second of last use; owned */
    int64_t cache_pages; /* own share */
    int64_t cache_seconds, cache_oldest;
    /* expected decode pages */
    double rate; /* requests per second at a relative rate of 1 */
    double owed; /* new sessions that returning ones took from the curve, <= 0 */
    double mean_output;
    int64_t pages_per_request;
    double epochs_per_tick;
    int tps_q10;
    size_t trace_at;
    struct disk_index *trace_cache; /* blocks of the trace's prompts; owned */
    struct hash128 *trace_chain;    /* [trace_chain_cap] scratch; owned */
    uint32_t trace_chain_cap;
    /* accounting */
    bool recording;
    int hour; /* of the result */
    int64_t count[SIM_COUNTERS];
    int64_t ttft[SIM_HIST], tpot[SIM_HIST];
    int64_t node_ms[2];
    int64_t requests;
    struct sim_request *scratch; /* [scratch_cap] a unit's requests, when pages run out; owned */
    size_t scratch_cap;
    struct sim_result *result;
};

/* Tokens of a request's whole answer. */
static inline uint32_t sim_output_of(const struct sim *s, const struct sim_request *r)
{
    if (s->cfg->trace) return s->cfg->trace->row[r->key].output;
    return workload_output(s->cfg->workload, r->key);
}

/* sim_queue.c */
enum status sim_queue_grow(struct sim_queue *q);
static inline struct sim_request *sim_queue_at(const struct sim_queue *q, uint32_t i)
{
    return &q->r[(q->head + i) & (q->cap - 1)];
}
static inline void sim_queue_pop(struct sim_queue *q, uint32_t n)
{
    q->head = (q->head + n) & (q->cap - 1);
    q->n -= n;
}
static inline enum status sim_queue_push(struct sim_queue *q, const struct sim_request *r)
{
    if (q->n == q->cap) TRY(sim_queue_grow(q));
    *sim_queue_at(q, q->n++) = *r;
    return OK;
}

/* sim_wheel.c */
enum status sim_pool_grow(struct sim_pool *p);
static inline void sim_pool_fetch(const struct sim_pool *p, uint32_t chunk)
{
    const char *line = (const char *)(p->r + (size_t)chunk * CHUNK);
    for (size_t i = 0; i < CHUNK * sizeof *p->r; i += 64) __builtin_prefetch(line + i, 1);
}
/* Room for one more request, or NULL without memory. */
static inline struct sim_request *sim_bucket_add(struct sim_pool *p, struct sim_bucket *b)
{
    uint32_t at = b->n++ % CHUNK;
    if (at == 0) {
        uint32_t c = p->free_head;
        if (c) {
            p->free_head = p->next[c];
        } else {
            if (p->used + 1 >= p->cap && sim_pool_grow(p) != OK) return NULL;
            c = ++p->used;
        }
        sim_pool_fetch(p, c);
        p->next[c] = 0;
        if (b->n > 1)
            p->next[b->last] = c;
        else
            b->first = c;
        b->last = c;
    }
    return &p->r[(size_t)b->last * CHUNK + at];
}
static inline struct sim_cursor sim_bucket_take(struct sim_pool *p, struct sim_bucket *b)
{
    struct sim_cursor c = {b->first, 0, b->n};
    if (c.n) sim_pool_fetch(p, c.chunk);
    if (c.n > CHUNK) sim_pool_fetch(p, p->next[c.chunk]);
    b->n = 0;
    return c;
}
/* The pool may grow between calls. */
static inline bool sim_cursor_next(struct sim_pool *p, struct sim_cursor *c, struct sim_request *r)
{
    if (c->n == 0) return false;
    *r = p->r[(size_t)c->chunk * CHUNK + c->at];
    c->n--;
    if (++c->at == CHUNK || c->n == 0) {
        uint32_t read = c->chunk;
        c->chunk = p->next[read];
        c->at = 0;
        p->next[read] = p->free_head;
        p->free_head = read;
        if (c->n > CHUNK) sim_pool_fetch(p, p->next[c->chunk]);
    }
    return true;
}
enum status sim_wheel_init(struct sim_wheel *w);
void sim_wheel_free(struct sim_wheel *w);
enum status sim_wheel_open(struct sim_pool *p, struct sim_wheel *w, uint64_t at);
/* How many are due at `at`. Before they are taken; what was due earlier has been. */
static inline enum status sim_wheel_due(struct sim_pool *p, struct sim_wheel *w, uint64_t at,
                                        int64_t *n)
{
    if (at / WHEEL_FINE != w->block) TRY(sim_wheel_open(p, w, at));
    *n += w->fine[at % WHEEL_FINE].n;
    return OK;
}
/* What is due at `at`, which must not go down; nothing is put there afterwards. */
static inline enum status sim_wheel_take(struct sim_pool *p, struct sim_wheel *w, uint64_t at,
                                         struct sim_cursor *out)
{
    if (at / WHEEL_FINE != w->block) TRY(sim_wheel_open(p, w, at));
    *out = sim_bucket_take(p, &w->fine[at % WHEEL_FINE]);
    return OK;
}
/* The copy's `next` is the step or epoch, modulo 2^32. */
static inline enum status sim_wheel_put(struct sim_pool *p, struct sim_wheel *w, uint64_t at,
                                        const struct sim_request *r)
{
    uint64_t block = at / WHEEL_FINE;
    struct sim_bucket *b =
        block == w->block ? &w->fine[at % WHEEL_FINE] : &w->coarse[block % WHEEL_COARSE];
    struct sim_request *to = sim_bucket_add(p, b);
    if (!to) return ERR_RESOURCE;
    *to = *r; /* first the whole, then the part: else the copy waits for the part's store */
    to->next = (uint32_t)at;
    return OK;
}

/* sim_route.c */
void sim_route_prepare(struct sim *s); /* slots from the view */
enum status sim_route_prefill(struct sim *s, enum sim_box box, uint64_t *dealt,
                              struct sim_request *r);
enum status sim_route_decode(struct sim *s, enum sim_box box, uint64_t *dealt,
                             struct sim_request *r);
enum status sim_route_exchange(struct sim *s); /* swap and deliver */

/* sim_prefill.c */
enum status prefill_unit_init(struct sim *s, struct prefill_unit *u, int id);
void prefill_unit_free(struct sim *s, struct prefill_unit *u);
uint32_t prefill_request_work(const struct sim_request *r);
enum status prefill_unit_receive(struct sim *s, struct prefill_unit *u,
                                 const struct sim_request *r);
enum status prefill_unit_advance(struct sim *s, struct prefill_unit *u);
enum status prefill_unit_empty(struct sim *s, struct prefill_unit *u); /* moves all elsewhere */

/* sim_decode.c */
enum status decode_unit_init(struct sim *s, struct decode_unit *u, int id);
void decode_unit_free(struct decode_unit *u);
int64_t decode_request_load(const struct sim *s, const struct sim_request *r);
int64_t decode_unit_load(const struct sim *s, const struct decode_unit *u);
int64_t decode_unit_pages(const struct decode_unit *u, int ranks); /* of KV in use */
enum status decode_unit_receive(struct sim *s, struct decode_unit *u, const struct sim_request *r);
enum status decode_unit_advance(struct sim *s, struct decode_unit *u);
enum status decode_unit_empty(struct sim *s, struct decode_unit *u);

/* Of struct sim_request.cached_pages while it decodes: its rank, and whether it has moved. */
enum { DECODE_RESUMED = 0x8000, DECODE_RANK = 0x7fff };
/* Takes back what the steps counted beyond those really done; *r then is what is left to do.
 * steps: still to come. */
void decode_request_stop(struct sim *s, struct decode_unit *u, struct sim_request *r,
                         int64_t steps);

/* sim_preempt.c */
enum status decode_rank_preempt(struct sim *s, struct decode_unit *u, int rank);

/* sim_cache.c */
void sim_cache_lookup(struct sim *s, struct sim_request *r);
void sim_cache_touch(struct sim *s, struct sim_request *r, double t);
void sim_cache_head(struct sim *s);  /* own figures into s->head */
void sim_cache_evict(struct sim *s); /* by the summed figures in s->view */

#endif
