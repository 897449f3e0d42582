/* sim_decode.c - a decode unit: admission, steps, the wheel of finishes. */
#include "cluster/sim_internal.h"

#include <stdlib.h>

enum status decode_unit_init(struct sim *s, struct decode_unit *u, int id)
{
    const struct sim_role *role = &s->cfg->decode;
    double pages = s->cfg->kv_pages_per_gpu * role->gpus;
    if (pages > 4e9) pages = 4e9;
    struct decode_limits limits = {
        .units = 1,
        .ranks_per_unit = 1,
        .pages = (uint32_t)pages,
        .page_tokens = WORKLOAD_PAGE_TOKENS,
        .max_batch = (uint32_t)(role->tokens_per_gpu * role->gpus),
        .high_water = s->cfg->high_water,
    };
    u->id = id;
    TRY(decode_balance_init(&u->balance, &limits));
    u->balance.mean_output = s->mean_output;
    return sim_wheel_init(&u->wheel);
}

void decode_unit_free(struct decode_unit *u)
{
    decode_balance_free(&u->balance);
    sim_wheel_free(&u->wheel);
    free(u->waiting.r);
}

/* Pages at the request's expected end. Integer arithmetic, the same value as
 * decode_expected_pages(prompt, 65535, 0, mean_output, 64) (tested). */
static uint32_t expected_pages(const struct sim *s, uint32_t prompt)
{
    return (prompt + (uint32_t)s->mean_output + WORKLOAD_PAGE_TOKENS - 1) / WORKLOAD_PAGE_TOKENS;
}

int64_t decode_request_load(const struct sim *s, const struct sim_request *r)
{
    return expected_pages(s, r->prompt) + s->pages_per_request;
}

/* Requests and pages weigh alike: both slow a step down. */
int64_t decode_unit_load(const struct sim *s, const struct decode_unit *u)
{
    int64_t requests = u->running + u->waiting.n;
    return (int64_t)u->balance.expected[0] + u->waiting_pages + requests * s->pages_per_request;
}

enum status decode_unit_receive(struct sim *s, struct decode_unit *u,
                                const struct sim_request *r)
{
    u->waiting_pages += expected_pages(s, r->prompt);
    return sim_queue_push(&u->waiting, r);
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
    if (s->recording)
        s->result->unit[s->hour * (s->np + s->nd) + s->np + u->id].requests++;
    if (s->cfg->trace || !workload_next(s->cfg->workload, r, &think)) return OK;
    r->arrival = end + think;
    int64_t at = (int64_t)(r->arrival * s->epochs_per_tick);
    if (at < s->epoch + 2) at = s->epoch + 2;
    if (at > s->epoch + WHEEL - 2) at = s->epoch + WHEEL - 2;
    s->due[at & (WHEEL - 1)]++;
    s->count[SIM_THINKING]++;
    return sim_wheel_put(&s->pool, &s->lane[u->id - s->d0].wheel, (uint64_t)at, r);
}

static int64_t context_q10(const struct sim *s, const struct sim_request *r)
{
    return (int64_t)(r->prompt + sim_output_of(s, r) - r->left) * 1024;
}

static enum status admit(struct sim *s, struct decode_unit *u)
{
    while (u->waiting.n) {
        struct sim_request *r = sim_queue_at(&u->waiting, 0);
        uint32_t pages = expected_pages(s, r->prompt);
        if (!decode_balance_admits(&u->balance, 0, pages, r->prompt)) return OK;
        u->waiting_pages -= pages;
        sim_queue_pop(&u->waiting, 1); /* *r stays as it is until the next push */
        int64_t steps = steps_for(s, r->left);
        if (steps == 0) {
            TRY(finish(s, u, r));
            continue;
        }
        decode_balance_add(&u->balance, 0, pages);
        u->running++;
        u->kv_tokens_q10 += context_q10(s, r);
        TRY(sim_wheel_put(&s->pool, &u->wheel, u->step + (uint64_t)steps, r));
    }
    return OK;
}

/* A request leaves: what the steps counted for it beyond its length is taken back. */
static void leave(struct sim *s, struct decode_unit *u, const struct sim_request *r)
{
    int64_t over = steps_for(s, r->left) * s->tps_q10 - (int64_t)r->left * 1024;
    u->running--;
    u->kv_tokens_q10 -= context_q10(s, r) + steps_for(s, r->left) * s->tps_q10;
    s->count[SIM_OUTPUT_Q10] -= over;
    decode_balance_remove(&u->balance, 0, expected_pages(s, r->prompt));
}

static enum status step(struct sim *s, struct decode_unit *u)
{
    const struct sim_role *role = &s->cfg->decode;
    double batch = (double)u->running / role->gpus;
    double context = (double)(u->kv_tokens_q10 / u->running) / 1024;
    double seconds = sim_time_at(&role->time, batch * role->imbalance, context);
    int64_t tokens = u->running * s->tps_q10, us = (int64_t)(seconds * 1e6);
    s->count[SIM_KV_READ_Q10] += u->kv_tokens_q10 / 1024 * s->tps_q10;
    s->count[SIM_OUTPUT_Q10] += tokens;
    s->count[SIM_DECODE_BUSY_US] += us;
    s->count[SIM_DECODE_STEPS]++;
    if (s->recording) {
        struct sim_unit_hour *h = &s->result->unit[s->hour * (s->np + s->nd) + s->np + u->id];
        h->tokens_q10 += tokens;
        h->busy_us += us;
        h->steps++;
    }
    u->kv_tokens_q10 += tokens;
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

enum status decode_unit_advance(struct sim *s, struct decode_unit *u)
{
    if (u->clock < s->t0) u->clock = s->t0;
    while (u->clock < s->t1) {
        if (u->waiting.n) TRY(admit(s, u));
        if (u->running == 0) {
            u->clock = s->t1;
            return OK;
        }
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
            int64_t done = steps_for(s, r.left) - (int64_t)k;
            int64_t tokens_q10 = done * s->tps_q10, tokens = tokens_q10 / 1024;
            u->kv_tokens_q10 -= context_q10(s, &r) + tokens_q10;
            s->count[SIM_OUTPUT_Q10] -= tokens_q10 - tokens * 1024;
            u->running--;
            decode_balance_remove(&u->balance, 0, expected_pages(s, r.prompt));
            r.left = (uint16_t)(r.left - tokens);
            s->count[SIM_MOVED]++;
            TRY(sim_route_decode(s, BOX_MOVED_DECODE, &u->dealt, &r));
        }
        u->wheel.block = u->step / WHEEL_FINE;
    }
    while (u->waiting.n) {
        struct sim_request r = *sim_queue_at(&u->waiting, 0);
        sim_queue_pop(&u->waiting, 1);
        TRY(sim_route_decode(s, BOX_MOVED_DECODE, &u->dealt, &r));
    }
    u->waiting_pages = 0;
    return OK;
}
