/* sim_decode.c - a decode unit: admission, steps, the wheel of finishes. */
#include "cluster/sim_internal.h"

#include <stdlib.h>

enum status decode_unit_init(struct sim *s, struct decode_unit *u, int id)
{
    const struct sim_role *role = &s->cfg->decode;
    double gpus = (double)role->gpus / role->ranks, pages = s->cfg->kv_pages_per_gpu * gpus;
    if (pages > 4e9) pages = 4e9;
    struct decode_limits limits = {
        .units = 1,
        .ranks_per_unit = role->ranks,
        .pages = (uint32_t)pages,
        .page_tokens = WORKLOAD_PAGE_TOKENS,
        .max_batch = (uint32_t)(role->tokens_per_gpu * gpus),
        .high_water = s->cfg->high_water,
    };
    u->id = id;
    TRY(decode_balance_init(&u->balance, &limits));
    u->balance.mean_output = s->mean_output;
    u->rank = calloc((size_t)role->ranks, sizeof *u->rank);
    if (!u->rank) return error_set(ERR_RESOURCE, "no memory for decode unit %d", id);
    return sim_wheel_init(&u->wheel);
}

void decode_unit_free(struct decode_unit *u)
{
    for (int k = 0; k < u->balance.limits.ranks_per_unit && u->rank; k++) free(u->rank[k].host.r);
    free(u->rank);
    decode_balance_free(&u->balance);
    sim_wheel_free(&u->wheel);
    free(u->waiting.r);
}

/* Pages at the request's expected end. Integer arithmetic, the same value as
 * decode_expected_pages(prompt, 65535, generated, mean_output, 64) (tested). */
static uint32_t expected_pages(const struct sim *s, const struct sim_request *r)
{
    uint32_t output = (uint32_t)s->mean_output;
    if (r->cached_pages & DECODE_RESUMED) {
        uint32_t generated = sim_output_of(s, r) - r->left;
        if (output <= generated) output = generated + WORKLOAD_PAGE_TOKENS;
    }
    return (r->prompt + output + WORKLOAD_PAGE_TOKENS - 1) / WORKLOAD_PAGE_TOKENS;
}

int64_t decode_request_load(const struct sim *s, const struct sim_request *r)
{
    return expected_pages(s, r) + s->pages_per_request;
}

/* Requests and pages weigh alike: both slow a step down. */
int64_t decode_unit_load(const struct sim *s, const struct decode_unit *u)
{
    int64_t requests = u->running + u->waiting.n + u->on_host, pages = u->waiting_pages;
    for (int k = 0; k < s->cfg->decode.ranks; k++) pages += (int64_t)u->balance.expected[k];
    return pages + requests * s->pages_per_request;
}

static int64_t rank_pages(const struct decode_rank *k)
{
    /* half a page each is begun */
    return k->kv_tokens_q10 / (1024 * WORKLOAD_PAGE_TOKENS) + k->running / 2;
}

int64_t decode_unit_pages(const struct decode_unit *u, int ranks)
{
    int64_t pages = 0;
    for (int k = 0; k < ranks; k++) pages += rank_pages(&u->rank[k]);
    return pages;
}

enum status decode_unit_receive(struct sim *s, struct decode_unit *u, const struct sim_request *r)
{
    u->waiting_pages += expected_pages(s, r);
    TRY(sim_queue_push(&u->waiting, r));
    sim_queue_at(&u->waiting, u->waiting.n - 1)->arrival = ++u->admissions;
    return OK;
}

static int64_t steps_for(const struct sim *s, uint32_t left)
{
    if (s->tps_q10 == 1024) return left; /* without MTP: no division for every request */
    return ((int64_t)left * 1024 + s->tps_q10 - 1) / s->tps_q10;
}

static enum status finish(struct sim *s, struct decode_unit *u, struct sim_request *r)
{
    uint32_t output = sim_output_of(s, r), end = (uint32_t)(u->clock * SIM_TICKS_PER_S), think;
    s->count[SIM_FINISHED]++;
    if (output > 1) {
        uint32_t ticks = end - r->first_token;
        s->count[SIM_TPOT_TICKS] += ticks;
        s->count[SIM_TPOT_TOKENS] += output - 1;
        s->tpot[sim_hist_bucket(ticks / (output - 1))]++;
    }
    if (s->recording) s->result->unit[s->hour * (s->np + s->nd) + s->np + u->id].requests++;
    if (s->cfg->trace || !workload_next(s->cfg->workload, r, &think)) return OK;
    r->arrival = end + think;
    int64_t at = (int64_t)(r->arrival * s->epochs_per_tick);
    if (at < s->epoch + 2) at = s->epoch + 2;
    if (at > s->epoch + WHEEL - 2) at = s->epoch + WHEEL - 2;
    s->count[SIM_THINKING]++;
    return sim_wheel_put(&s->pool, &s->lane[u->id - s->d0].wheel, (uint64_t)at, r);
}

static int64_t context_q10(const struct sim *s, const struct sim_request *r)
{
    return (int64_t)(r->prompt + sim_output_of(s, r) - r->left) * 1024;
}

static enum status start(struct sim *s, struct decode_unit *u, int rank, uint32_t pages,
                         struct sim_request *r)
{
    struct decode_rank *k = &u->rank[rank];
    int64_t steps = steps_for(s, r->left);
    if (steps == 0) return finish(s, u, r);
    r->cached_pages = (uint16_t)((r->cached_pages & DECODE_RESUMED) | rank);
    decode_balance_add(&u->balance, rank, pages);
    u->running++;
    k->running++;
    k->kv_tokens_q10 += context_q10(s, r);
    return sim_wheel_put(&s->pool, &u->wheel, u->step + (uint64_t)steps, r);
}

/* Those on the host first, and nobody before them while they cannot come back. */
static enum status admit_from_host(struct sim *s, struct decode_unit *u, bool *blocked)
{
    for (int rank = 0; rank < s->cfg->decode.ranks; rank++) {
        struct sim_queue *q = &u->rank[rank].host;
        while (q->n) {
            struct sim_request *r = sim_queue_at(q, 0);
            uint32_t pages = expected_pages(s, r);
            uint32_t context = r->prompt + sim_output_of(s, r) - r->left;
            const struct decode_limits *l = &u->balance.limits;
            bool room = rank_pages(&u->rank[rank]) + pages <= (int64_t)(l->high_water * l->pages);
            room |= u->rank[rank].running == 0;
            if (!room || !decode_balance_admits(&u->balance, rank, pages, context)) {
                *blocked |= u->rank[rank].running > 0;
                break;
            }
            u->waiting_pages -= pages;
            u->on_host--;
            sim_queue_pop(q, 1);
            TRY(start(s, u, rank, pages, r));
        }
    }
    return OK;
}

static enum status admit(struct sim *s, struct decode_unit *u)
{
    bool blocked = false;
    if (u->on_host) TRY(admit_from_host(s, u, &blocked));
    while (u->waiting.n && !blocked) {
        struct sim_request *r = sim_queue_at(&u->waiting, 0);
        uint32_t pages = expected_pages(s, r);
        int rank = 0;
        if (s->cfg->decode.ranks > 1)
            rank = decode_balance_pick(&u->balance, pages, r->prompt);
        else if (!decode_balance_admits(&u->balance, 0, pages, r->prompt))
            rank = -1;
        bool never = r->prompt / WORKLOAD_PAGE_TOKENS >= u->balance.limits.pages;
        if (rank >= 0 && u->rank[rank].running > 0 &&
            rank_pages(&u->rank[rank]) + r->prompt / WORKLOAD_PAGE_TOKENS >=
                (int64_t)u->balance.limits.pages)
            rank = -1; /* promised to nobody, but longer answers than expected fill it */
        if (rank < 0 && !never) return OK;
        u->waiting_pages -= pages;
        if (never) { /* as the engine: the request fails, the others go on */
            sim_queue_pop(&u->waiting, 1);
            s->count[SIM_REFUSED]++;
            continue;
        }
        sim_queue_pop(&u->waiting, 1); /* *r stays as it is until the next push */
        TRY(start(s, u, rank, pages, r));
    }
    return OK;
}

/* A request leaves after its last step: what the steps counted for it beyond its length is taken
 * back. */
static void leave(struct sim *s, struct decode_unit *u, const struct sim_request *r)
{
    int rank = r->cached_pages & DECODE_RANK;
    struct decode_rank *k = &u->rank[rank];
    int64_t counted = steps_for(s, r->left) * s->tps_q10;
    u->running--;
    k->running--;
    k->kv_tokens_q10 -= context_q10(s, r) + counted;
    s->count[SIM_OUTPUT_Q10] -= counted - (int64_t)r->left * 1024;
    decode_balance_remove(&u->balance, rank, expected_pages(s, r));
}

void decode_request_stop(struct sim *s, struct decode_unit *u, struct sim_request *r, int64_t steps)
{
    int rank = r->cached_pages & DECODE_RANK;
    int64_t counted = (steps_for(s, r->left) - steps) * s->tps_q10, tokens = counted / 1024;
    u->running--;
    u->rank[rank].running--;
    u->rank[rank].kv_tokens_q10 -= context_q10(s, r) + counted;
    s->count[SIM_OUTPUT_Q10] -= counted - tokens * 1024;
    decode_balance_remove(&u->balance, rank, expected_pages(s, r));
    r->left = (uint16_t)(r->left - tokens);
    r->cached_pages |= DECODE_RESUMED;
}

/* The time of the rank that all wait for, and the context that all of them read. */
static double step_seconds(struct sim *s, struct decode_unit *u, int64_t *kv_q10)
{
    const struct sim_role *role = &s->cfg->decode;
    double gpus = (double)role->gpus / role->ranks, most = 0;
    for (int i = 0; i < role->ranks; i++) {
        *kv_q10 += u->rank[i].kv_tokens_q10;
        u->rank[i].kv_tokens_q10 += u->rank[i].running * s->tps_q10;
    }
    double batch = (double)u->running / role->gpus;
    double context = (double)(*kv_q10 / u->running) / 1024;
    double even = sim_time_at(&s->time[1], batch, context);
    if (role->ranks == 1) return even * role->uneven;
    for (int i = 0; i < role->ranks; i++) {
        const struct decode_rank *k = &u->rank[i];
        if (k->running == 0) continue;
        double own = (double)(k->kv_tokens_q10 / k->running - s->tps_q10) / 1024;
        double seconds = sim_time_uneven(&s->time[1], batch, context, (double)k->running / gpus,
                                         own, role->own_share);
        if (seconds > most) most = seconds;
    }
    s->count[SIM_DECODE_UNEVEN_Q10] += (int64_t)(1024 * most / even);
    return most;
}

static enum status step(struct sim *s, struct decode_unit *u)
{
    int64_t kv_q10 = 0;
    double seconds = step_seconds(s, u, &kv_q10);
    int64_t tokens = u->running * s->tps_q10, us = (int64_t)(seconds * 1e6);
    s->count[SIM_KV_READ_Q10] += kv_q10 / 1024 * s->tps_q10;
    s->count[SIM_OUTPUT_Q10] += tokens;
    s->count[SIM_DECODE_BUSY_US] += us;
    s->count[SIM_DECODE_STEPS]++;
    if (s->recording) {
        struct sim_unit_hour *h = &s->result->unit[s->hour * (s->np + s->nd) + s->np + u->id];
        h->tokens_q10 += tokens;
        h->busy_us += us;
        h->steps++;
    }
    u->clock += seconds;
    u->step++;
    struct sim_cursor done;
    struct sim_request r;
    TRY(sim_wheel_take(&s->pool, &u->wheel, u->step, &done));
    while (sim_cursor_next(&s->pool, &done, &r)) {
        leave(s, u, &r);
        TRY(finish(s, u, &r));
    }
    return OK;
}

/* Before a step every request needs room for its next token. */
static enum status secure_pages(struct sim *s, struct decode_unit *u)
{
    for (int k = 0; k < s->cfg->decode.ranks; k++)
        if (rank_pages(&u->rank[k]) > (int64_t)u->balance.limits.pages)
            TRY(decode_rank_preempt(s, u, k));
    return OK;
}

enum status decode_unit_advance(struct sim *s, struct decode_unit *u)
{
    if (u->clock < s->t0) u->clock = s->t0;
    while (u->clock < s->t1) {
        if (u->waiting.n + u->on_host) TRY(admit(s, u));
        if (u->running == 0) {
            u->clock = s->t1;
            return OK;
        }
        TRY(secure_pages(s, u));
        TRY(step(s, u));
    }
    return OK;
}

/* All requests move on with what they have: their KV travels, nothing is computed again. */
enum status decode_unit_empty(struct sim *s, struct decode_unit *u)
{
    for (uint64_t k = 1; k < WHEEL && u->running; k++) {
        struct sim_cursor due;
        struct sim_request r;
        TRY(sim_wheel_take(&s->pool, &u->wheel, u->step + k, &due));
        while (sim_cursor_next(&s->pool, &due, &r)) {
            decode_request_stop(s, u, &r, (int64_t)k);
            s->count[SIM_MOVED]++;
            TRY(sim_route_decode(s, BOX_MOVED_DECODE, &u->dealt, &r));
        }
        u->wheel.block = u->step / WHEEL_FINE;
    }
    for (int k = -1; k < s->cfg->decode.ranks; k++) {
        struct sim_queue *q = k < 0 ? &u->waiting : &u->rank[k].host;
        for (; q->n; sim_queue_pop(q, 1)) {
            struct sim_request r = *sim_queue_at(q, 0);
            TRY(sim_route_decode(s, BOX_MOVED_DECODE, &u->dealt, &r));
        }
    }
    u->waiting_pages = u->on_host = 0;
    return OK;
}
