/* sim_prefill.c - a prefill unit: a queue, chunks, steps. */
#include "cluster/sim_internal.h"

#include <stdlib.h>

static uint32_t cached_tokens(const struct sim_request *r)
{
    uint32_t cached = (uint32_t)r->cached_pages * WORKLOAD_PAGE_TOKENS;
    return cached < r->prompt ? cached : r->prompt - 1;
}

/* Of the next token to compute. */
static uint32_t position(const struct sim_request *r)
{
    return cached_tokens(r) + r->next;
}

static uint32_t work_of(uint64_t pos, uint64_t n)
{
    return (uint32_t)(n + ((n * pos + n * (n + 1) / 2) >> 13));
}

/* In tokens, as balance/prefill_balance weighs it: pairs / 8192. */
uint32_t prefill_request_work(const struct sim_request *r)
{
    uint32_t pos = position(r);
    return work_of(pos, r->prompt - pos);
}

enum status prefill_unit_init(struct sim *s, struct prefill_unit *u, int id)
{
    int ranks = s->cfg->prefill.ranks;
    u->id = id;
    u->rank = calloc((size_t)ranks, sizeof *u->rank);
    if (!u->rank) return error_set(ERR_RESOURCE, "no memory for prefill unit %d", id);
    return ranks > 1 ? prefill_balance_init(&u->balance, 1, ranks, NULL) : OK;
}

void prefill_unit_free(struct sim *s, struct prefill_unit *u)
{
    for (int k = 0; k < s->cfg->prefill.ranks && u->rank; k++) free(u->rank[k].queue.r);
    free(u->rank);
    prefill_balance_free(&u->balance);
}

enum status prefill_unit_receive(struct sim *s, struct prefill_unit *u, const struct sim_request *r)
{
    int rank = 0;
    uint32_t pos = cached_tokens(r);
    if (s->cfg->prefill.ranks > 1) { /* what is cached is so for every rank: no reason to choose */
        rank = prefill_balance_pick(&u->balance, r->prompt - pos, NULL, NULL);
        prefill_balance_add(&u->balance, rank, pos, r->prompt - pos);
    }
    struct sim_queue *to = &u->rank[rank].queue;
    TRY(sim_queue_push(to, r));
    struct sim_request *q = sim_queue_at(to, to->n - 1);
    q->next = 0;
    u->queued++;
    u->work += q->first_token; /* the work of it, until it has its first token */
    u->queued_tokens += q->prompt - pos;
    if (!u->stepping && u->clock < s->t1) u->clock = s->t1;
    return OK;
}

/* Takes requests in order until the chunk is full; only the last may be partial. */
static uint64_t fill_chunk(struct prefill_rank *k, uint64_t budget, uint64_t *pairs)
{
    uint64_t tokens = 0;
    k->finishing = 0;
    k->partial = 0;
    *pairs = 0;
    while (k->finishing < k->queue.n && tokens < budget) {
        const struct sim_request *r = sim_queue_at(&k->queue, k->finishing);
        uint64_t pos = position(r), n = r->prompt - pos;
        bool whole = n <= budget - tokens;
        if (!whole) n = budget - tokens;
        tokens += n;
        *pairs += n * pos + n * (n + 1) / 2;
        if (!whole) {
            k->partial = (uint32_t)n;
            break;
        }
        k->finishing++;
    }
    return tokens;
}

/* All ranks step together and wait for the one that takes longest. */
static void begin_step(struct sim *s, struct prefill_unit *u)
{
    const struct sim_role *role = &s->cfg->prefill;
    double gpus = (double)role->gpus / role->ranks;
    uint64_t budget = (uint64_t)(role->tokens_per_gpu * gpus), sum = 0, sum_pairs = 0;
    for (int i = 0; i < role->ranks; i++) {
        struct prefill_rank *k = &u->rank[i];
        k->tokens = fill_chunk(k, budget, &k->pairs);
        sum += k->tokens;
        sum_pairs += k->pairs;
    }
    double load = (double)sum / role->gpus, context = (double)sum_pairs / (double)sum;
    double even = sim_time_at(&s->time[0], load, context), seconds = even * role->uneven;
    if (role->ranks > 1) {
        seconds = even;
        for (int i = 0; i < role->ranks; i++) {
            const struct prefill_rank *k = &u->rank[i];
            if (k->tokens == 0) continue;
            double t = sim_time_uneven(&s->time[0], load, context, (double)k->tokens / gpus,
                                       (double)k->pairs / (double)k->tokens, role->own_share);
            if (t > seconds) seconds = t;
        }
        s->count[SIM_PREFILL_UNEVEN_Q10] += (int64_t)(1024 * seconds / even);
    }
    u->step_tokens = (int64_t)sum;
    u->clock += seconds;
    u->stepping = true;
    int64_t us = (int64_t)(seconds * 1e6);
    s->count[SIM_PREFILL_BUSY_US] += us;
    s->count[SIM_PREFILL_STEPS]++;
    if (s->recording) {
        struct sim_unit_hour *h = &s->result->unit[s->hour * (s->np + s->nd) + u->id];
        h->busy_us += us;
        h->steps++;
    }
}

static enum status finish_request(struct sim *s, struct prefill_unit *u, struct sim_request *r)
{
    int64_t cached = cached_tokens(r);
    r->first_token = (uint32_t)(u->clock * SIM_TICKS_PER_S);
    uint32_t waited = r->first_token - r->arrival;
    s->count[SIM_HIT] += cached;
    s->count[SIM_MISS] += r->prompt - cached;
    s->count[SIM_OUTPUT_Q10] += 1024;
    s->count[SIM_KV_READ_Q10] += (int64_t)r->prompt << 10;
    s->count[SIM_TTFT_TICKS] += waited;
    s->count[SIM_TTFT_COUNT]++;
    s->ttft[sim_hist_bucket(waited)]++;
    if (s->recording) {
        struct sim_unit_hour *h = &s->result->unit[s->hour * (s->np + s->nd) + u->id];
        h->requests++;
        h->tokens_q10 += (int64_t)r->prompt << 10;
    }
    if (!s->cfg->trace) sim_cache_touch(s, r, u->clock);
    r->left = (uint16_t)(sim_output_of(s, r) - 1);
    r->cached_pages = 0; /* from here on the decode unit's, see DECODE_RANK */
    return sim_route_decode(s, BOX_PREFILLED, &u->dealt, r);
}

static enum status end_rank_step(struct sim *s, struct prefill_unit *u, int rank)
{
    struct prefill_rank *k = &u->rank[rank];
    bool balanced = s->cfg->prefill.ranks > 1;
    for (uint32_t i = 0; i < k->finishing; i++) {
        struct sim_request r = *sim_queue_at(&k->queue, i);
        uint32_t pos = position(&r);
        if (balanced) prefill_balance_done(&u->balance, rank, pos, r.prompt - pos);
        u->work -= r.first_token;
        TRY(finish_request(s, u, &r));
    }
    sim_queue_pop(&k->queue, k->finishing);
    u->queued -= k->finishing;
    if (k->partial) {
        struct sim_request *r = sim_queue_at(&k->queue, 0);
        if (balanced) prefill_balance_done(&u->balance, rank, position(r), k->partial);
        u->work -= r->first_token;
        r->next += k->partial;
        r->first_token = prefill_request_work(r);
        u->work += r->first_token;
    }
    return OK;
}

static enum status end_step(struct sim *s, struct prefill_unit *u)
{
    u->stepping = false;
    for (int k = 0; k < s->cfg->prefill.ranks; k++) TRY(end_rank_step(s, u, k));
    u->queued_tokens -= u->step_tokens;
    return OK;
}

enum status prefill_unit_advance(struct sim *s, struct prefill_unit *u)
{
    for (;;) {
        if (u->stepping) {
            if (u->clock > s->t1) return OK;
            TRY(end_step(s, u));
        }
        if (u->queued == 0) return OK;
        if (u->clock < s->t0) u->clock = s->t0;
        begin_step(s, u);
    }
}

enum status prefill_unit_empty(struct sim *s, struct prefill_unit *u)
{
    for (int k = 0; k < s->cfg->prefill.ranks; k++) {
        struct sim_queue *q = &u->rank[k].queue;
        for (; q->n; sim_queue_pop(q, 1)) {
            struct sim_request r = *sim_queue_at(q, 0);
            uint32_t pos = position(&r);
            if (s->cfg->prefill.ranks > 1)
                prefill_balance_done(&u->balance, k, pos, r.prompt - pos);
            s->count[SIM_MOVED]++;
            TRY(sim_route_prefill(s, BOX_MOVED_PREFILL, &u->dealt, &r));
        }
    }
    u->work = u->queued_tokens = 0;
    u->queued = 0;
    u->stepping = false;
    return OK;
}
