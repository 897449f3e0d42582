/* sim_prefill.c - a prefill unit: a queue, chunks, steps. */
#include "cluster/sim_internal.h"

#include <stdlib.h>

static uint32_t position(const struct sim_request *r)
{
    uint32_t cached = (uint32_t)r->cached_pages * WORKLOAD_PAGE_TOKENS;
    if (cached >= r->prompt) cached = r->prompt - 1;
    return cached + r->next;
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

enum status prefill_unit_receive(struct sim *s, struct prefill_unit *u,
                                 const struct sim_request *r)
{
    TRY(sim_queue_push(&u->queue, r));
    struct sim_request *q = sim_queue_at(&u->queue, u->queue.n - 1);
    q->next = 0;
    u->work += q->first_token; /* the work of it, until it has its first token */
    u->queued_tokens += q->prompt - position(q);
    if (!u->stepping && u->clock < s->t1) u->clock = s->t1;
    return OK;
}

/* Takes requests in order until the chunk is full; only the last may be partial. */
static void begin_step(struct sim *s, struct prefill_unit *u)
{
    const struct sim_role *role = &s->cfg->prefill;
    uint64_t budget = (uint64_t)role->tokens_per_gpu * (uint64_t)role->gpus;
    uint64_t tokens = 0, pairs = 0;
    u->finishing = 0;
    u->partial = 0;
    while (u->finishing < u->queue.n && tokens < budget) {
        const struct sim_request *r = sim_queue_at(&u->queue, u->finishing);
        uint64_t pos = position(r), n = r->prompt - pos;
        bool whole = n <= budget - tokens;
        if (!whole) n = budget - tokens;
        tokens += n;
        pairs += n * pos + n * (n + 1) / 2;
        if (!whole) {
            u->partial = (uint32_t)n;
            break;
        }
        u->finishing++;
    }
    double load = (double)tokens / role->gpus * role->imbalance;
    if (load > role->tokens_per_gpu) load = role->tokens_per_gpu;
    double seconds = sim_time_at(&role->time, load, (double)pairs / (double)tokens);
    u->step_tokens = (int64_t)tokens;
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
    int64_t cached = (int64_t)r->cached_pages * WORKLOAD_PAGE_TOKENS;
    if (cached >= r->prompt) cached = r->prompt - 1;
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
    return sim_route_decode(s, BOX_PREFILLED, &u->dealt, r);
}

static enum status end_step(struct sim *s, struct prefill_unit *u)
{
    u->stepping = false;
    for (uint32_t i = 0; i < u->finishing; i++) {
        struct sim_request r = *sim_queue_at(&u->queue, i);
        u->work -= r.first_token;
        TRY(finish_request(s, u, &r));
    }
    sim_queue_pop(&u->queue, u->finishing);
    if (u->partial) {
        struct sim_request *r = sim_queue_at(&u->queue, 0);
        u->work -= r->first_token;
        r->next += u->partial;
        r->first_token = prefill_request_work(r);
        u->work += r->first_token;
    }
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
        if (u->queue.n == 0) return OK;
        if (u->clock < s->t0) u->clock = s->t0;
        begin_step(s, u);
    }
}

enum status prefill_unit_empty(struct sim *s, struct prefill_unit *u)
{
    for (uint32_t i = 0; i < u->queue.n; i++) {
        struct sim_request r = *sim_queue_at(&u->queue, i);
        s->count[SIM_MOVED]++;
        TRY(sim_route_prefill(s, BOX_MOVED_PREFILL, &u->dealt, &r));
    }
    sim_queue_pop(&u->queue, u->queue.n);
    u->work = u->queued_tokens = 0;
    u->stepping = false;
    return OK;
}
