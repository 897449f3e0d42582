/* sim.c - the epochs of a simulation: arrivals, units, exchange, minutes. */
#include "cluster/sim_internal.h"

#include "core/clock.h"
#include "core/log.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int sim_hist_bucket(uint32_t ticks)
{
    if (ticks < 32) return (int)ticks;
    int top = 31 - __builtin_clz(ticks);
    return (top - 4) * 32 + (int)(ticks >> (top - 5) & 31);
}

static double bucket_middle(int b)
{
    if (b < 32) return b + 0.5;
    return ldexp(32.5 + b % 32, b / 32 - 1);
}

double sim_hist_quantile(const int64_t *hist, double q)
{
    int64_t n = 0, before = 0;
    for (int b = 0; b < SIM_HIST; b++) n += hist[b];
    if (n == 0) return NAN;
    int64_t rank = (int64_t)(q * (double)(n - 1));
    for (int b = 0; b < SIM_HIST; b++) {
        before += hist[b];
        if (before > rank) return bucket_middle(b);
    }
    return NAN;
}

static uint32_t poisson(struct lane *l, double mean)
{
    uint32_t n = 0;
    while (mean > 0) { /* in parts whose probability of none is no tiny number */
        double part = mean > 16 ? 16 : mean, p = exp(-part), sum = p;
        double u = rng_uniform(l->key, l->drawn++);
        mean -= part;
        for (uint32_t k = 1; u > sum && k < 200; k++, n++) sum += p *= part / k;
    }
    return n;
}

static enum status arrive(struct sim *s, struct lane *l, struct sim_request *r)
{
    sim_cache_lookup(s, r);
    s->count[SIM_ARRIVALS]++;
    s->requests++;
    return sim_route_prefill(s, BOX_ARRIVING, &l->dealt, r);
}

/* Turns whose thinking time is over, then new sessions: as many as the curve still asks for. */
static enum status lane_arrivals(struct sim *s, struct lane *l, double fresh)
{
    struct sim_cursor due;
    struct sim_request r;
    TRY(sim_wheel_take(&s->pool, &l->wheel, (uint64_t)s->epoch, &due));
    s->count[SIM_THINKING] -= due.n;
    while (sim_cursor_next(&s->pool, &due, &r)) TRY(arrive(s, l, &r));
    double span = (s->t1 - s->t0) * SIM_TICKS_PER_S / 65536;
    for (uint32_t n = poisson(l, fresh); n > 0; n--) {
        uint64_t key = rng_u64(l->key, l->drawn++);
        workload_first(s->cfg->workload, key, &r);
        double when = (double)(key * 0x9e3779b97f4a7c15u >> 48);
        r.arrival = (uint32_t)(s->t0 * SIM_TICKS_PER_S + span * when);
        s->count[SIM_STARTED_SESSIONS]++;
        TRY(arrive(s, l, &r));
    }
    return OK;
}

/* Full blocks of earlier prompts that begin alike, as far as a cache of cfg->cache_pages keeps them
 * with the engine's own index and eviction. */
static enum status trace_cached_tokens(struct sim *s, const struct trace_row *row, uint32_t *out)
{
    const uint32_t *id = s->cfg->trace->blocks + row->first_block;
    uint32_t full = row->prompt / TRACE_BLOCK_TOKENS, n = row->n_blocks;
    double capacity = s->cfg->cache_pages * WORKLOAD_PAGE_TOKENS / TRACE_BLOCK_TOKENS;
    if (n > full) n = full;
    if (capacity > 0 && capacity < 1) capacity = 1;
    if (capacity > UINT32_MAX) capacity = 0;
    if (n > s->trace_chain_cap) {
        struct hash128 *chain = realloc(s->trace_chain, n * sizeof *chain);
        if (!chain) return error_set(ERR_RESOURCE, "no memory for a prompt of %u blocks", n);
        s->trace_chain = chain;
        s->trace_chain_cap = n;
    }
    for (uint32_t i = 0; i < n; i++)
        s->trace_chain[i] = hash128(&id[i], sizeof id[i], (struct hash128){0, 0});
    *out = TRACE_BLOCK_TOKENS *
           disk_index_replay(s->trace_cache, s->trace_chain, n, (uint32_t)capacity, row->t_s);
    return OK;
}

static enum status trace_arrivals(struct sim *s)
{
    const struct workload_trace *t = s->cfg->trace;
    double begin = (double)s->warmup_ms / 1e3;
    while (s->trace_at < t->n && t->row[s->trace_at].t_s + begin < s->t1) {
        const struct trace_row *row = &t->row[s->trace_at];
        struct sim_request r = {
            .key = s->trace_at++,
            .arrival = (uint32_t)((row->t_s + begin) * SIM_TICKS_PER_S),
            .prompt = row->prompt,
        };
        uint32_t cached = 0;
        if (t->max_block) TRY(trace_cached_tokens(s, row, &cached));
        r.cached_pages = (uint16_t)(cached / WORKLOAD_PAGE_TOKENS);
        s->count[SIM_STARTED_SESSIONS]++;
        TRY(arrive(s, &s->lane[0], &r));
    }
    return OK;
}

static enum status arrivals(struct sim *s)
{
    if (s->cfg->trace) return s->d0 == 0 && s->d1 > 0 ? trace_arrivals(s) : OK;
    double hour = s->cfg->start_hour + (0.5 * (s->t0 + s->t1) - (double)s->warmup_ms / 1e3) / 3600;
    double rate = s->rate * arrival_curve_at(s->cfg->curve, hour);
    double fresh = rate * (s->t1 - s->t0) - (double)s->view[HEAD_DUE] + s->owed;
    s->owed = fresh < 0 ? fresh : 0; /* more came back than the curve asks for: fewer later */
    if (fresh < 0) fresh = 0;
    for (int d = s->d0; d < s->d1; d++) TRY(lane_arrivals(s, &s->lane[d - s->d0], fresh / s->nd));
    return OK;
}

/* Units that went out of service hand on what they hold; drained ones are released. */
static enum status follow_plan(struct sim *s)
{
    struct node_plan *p = s->cfg->plan;
    double t = s->t0 - (double)s->warmup_ms / 1e3;
    const int64_t *load = s->view + HEAD_LOADS;
    bool changed = node_plan_advance(p, t);
    if (p->mode == PLAN_AUTO) {
        for (int i = 0; i < s->np; i++)
            if (p->prefill.state[i] == UNIT_DRAINING && load[i] == 0)
                node_plan_release(&p->prefill, i, t);
        for (int i = 0; i < s->nd; i++)
            if (p->decode.state[i] == UNIT_DRAINING && load[s->np + i] == 0)
                node_plan_release(&p->decode, i, t);
    }
    sim_route_prepare(s);
    if (!changed) return OK;
    for (int i = s->p0; i < s->p1; i++)
        if (p->prefill.state[i] == UNIT_OFF) TRY(prefill_unit_empty(s, &s->prefill[i - s->p0]));
    for (int i = s->d0; i < s->d1; i++)
        if (p->decode.state[i] == UNIT_OFF) TRY(decode_unit_empty(s, &s->decode[i - s->d0]));
    return OK;
}

static enum status run_epoch(struct sim *s)
{
    s->t0 = (double)(s->epoch * s->epoch_ms) / 1e3;
    s->t1 = (double)((s->epoch + 1) * s->epoch_ms) / 1e3;
    TRY(follow_plan(s));
    TRY(arrivals(s));
    for (int i = s->p0; i < s->p1; i++) TRY(prefill_unit_advance(s, &s->prefill[i - s->p0]));
    for (int i = s->d0; i < s->d1; i++) TRY(decode_unit_advance(s, &s->decode[i - s->d0]));

    for (int i = s->p0; i < s->p1; i++) s->head[HEAD_LOADS + i] += s->prefill[i - s->p0].work;
    for (int i = s->d0; i < s->d1; i++)
        s->head[HEAD_LOADS + s->np + i] += decode_unit_load(s, &s->decode[i - s->d0]);
    for (int i = 0; i < s->d1 - s->d0; i++)
        TRY(sim_wheel_due(&s->pool, &s->lane[i].wheel, (uint64_t)s->epoch + 1, &s->head[HEAD_DUE]));
    sim_cache_head(s);
    TRY(sim_route_exchange(s));
    sim_cache_evict(s);
    const struct node_plan *p = s->cfg->plan;
    s->node_ms[0] += (int64_t)node_plan_paid(p, &p->prefill) * p->prefill.role.nodes * s->epoch_ms;
    s->node_ms[1] += (int64_t)node_plan_paid(p, &p->decode) * p->decode.role.nodes * s->epoch_ms;
    return OK;
}

static void states(struct sim *s)
{
    for (int i = s->p0; i < s->p1; i++) {
        s->count[SIM_PREFILL_QUEUE] += s->prefill[i - s->p0].queued;
        s->count[SIM_PREFILL_QUEUE_TOKENS] += s->prefill[i - s->p0].queued_tokens;
    }
    for (int i = s->d0; i < s->d1; i++) {
        const struct decode_unit *u = &s->decode[i - s->d0];
        s->count[SIM_DECODE_WAITING] += u->waiting.n;
        s->count[SIM_DECODE_RUNNING] += u->running;
        s->count[SIM_DECODE_ON_HOST] += u->on_host;
        s->count[SIM_KV_PAGES] += decode_unit_pages(u, s->cfg->decode.ranks);
    }
    s->count[SIM_CACHE_PAGES] = s->cache_pages;
}

/* Sums a minute over the ranks, keeps it if the day has begun, tells the autoscaler. */
static enum status end_minute(struct sim *s, int minute)
{
    int64_t v[SIM_COUNTERS + 2 * SIM_HIST], thinking = s->count[SIM_THINKING];
    states(s);
    memcpy(v, s->count, sizeof s->count);
    memcpy(v + SIM_COUNTERS, s->ttft, sizeof s->ttft);
    memcpy(v + SIM_COUNTERS + SIM_HIST, s->tpot, sizeof s->tpot);
    TRY(s->ex->sum(s->ex->ctx, v, SIM_COUNTERS + 2 * SIM_HIST));
    struct node_plan *p = s->cfg->plan;
    if (p->mode == PLAN_AUTO && minute >= 0)
        node_plan_observe(p, minute * 60.0, (double)v[SIM_ARRIVALS] / 60,
                          (double)v[SIM_ARRIVALS] / 60);
    if (minute >= 0 && minute < s->result->minutes) {
        struct sim_minute *m = &s->result->minute[minute];
        const int64_t *hist = v + SIM_COUNTERS;
        memcpy(m->n, v, sizeof m->n);
        m->prefill_units = node_plan_paid(p, &p->prefill);
        m->decode_units = node_plan_paid(p, &p->decode);
        m->prefill_node_ms = s->node_ms[0];
        m->decode_node_ms = s->node_ms[1];
        for (int i = 0; i < 3; i++) {
            static const double q[] = {0.5, 0.9, 0.99};
            m->ttft_s[i] = (float)(sim_hist_quantile(hist, q[i]) / SIM_TICKS_PER_S);
            m->tpot_s[i] = (float)(sim_hist_quantile(hist + SIM_HIST, q[i]) / SIM_TICKS_PER_S);
        }
        for (int b = 0; b < SIM_HIST; b++) {
            s->result->ttft_hist[minute / 60 * SIM_HIST + b] += hist[b];
            s->result->tpot_hist[minute / 60 * SIM_HIST + b] += hist[SIM_HIST + b];
        }
    }
    memset(s->count, 0, sizeof s->count);
    memset(s->ttft, 0, sizeof s->ttft);
    memset(s->tpot, 0, sizeof s->tpot);
    memset(s->node_ms, 0, sizeof s->node_ms);
    s->count[SIM_THINKING] = thinking;
    return OK;
}

static enum status allocate(struct sim *s)
{
    const struct sim_config *c = s->cfg;
    struct sim_result *r = s->result;
    size_t own_p = (size_t)(s->p1 - s->p0), own_d = (size_t)(s->d1 - s->d0);
    size_t ranks = (size_t)s->ex->size, head = (size_t)(HEAD_LOADS + s->np + s->nd);
    r->minutes = (int)(s->end_ms / 60000);
    r->hours = (r->minutes + 59) / 60;
    r->units_prefill = s->np;
    r->units_decode = s->nd;
    s->cache_seconds = (s->end_ms + s->warmup_ms) / 1000 + 2;
    s->prefill = calloc(own_p + 1, sizeof *s->prefill);
    s->decode = calloc(own_d + 1, sizeof *s->decode);
    s->lane = calloc(own_d + 1, sizeof *s->lane);
    s->out = calloc(ranks, sizeof *s->out);
    s->send = calloc(ranks, sizeof *s->send);
    s->recv = calloc(ranks, sizeof *s->recv);
    s->head = calloc(head, sizeof *s->head);
    s->view = calloc(head, sizeof *s->view);
    s->cache = calloc((size_t)s->cache_seconds, sizeof *s->cache);
    if (c->trace) TRY(disk_index_create(DISK_POLICY_BEST, &s->trace_cache));
    r->minute = calloc((size_t)r->minutes, sizeof *r->minute);
    r->unit = calloc((size_t)r->hours * (size_t)(s->np + s->nd), sizeof *r->unit);
    r->ttft_hist = calloc((size_t)r->hours * SIM_HIST, sizeof *r->ttft_hist);
    r->tpot_hist = calloc((size_t)r->hours * SIM_HIST, sizeof *r->tpot_hist);
    if (!s->prefill || !s->decode || !s->lane || !s->out || !s->send || !s->recv || !s->head ||
        !s->view || !s->cache || !r->minute || !r->unit || !r->ttft_hist || !r->tpot_hist)
        return error_set(ERR_RESOURCE, "no memory for the simulation");
    for (int i = s->p0; i < s->p1; i++) TRY(prefill_unit_init(s, &s->prefill[i - s->p0], i));
    for (int i = s->d0; i < s->d1; i++) {
        struct lane *l = &s->lane[i - s->d0];
        TRY(decode_unit_init(s, &s->decode[i - s->d0], i));
        l->key = rng_u64(c->seed, (uint64_t)i);
        TRY(sim_wheel_init(&l->wheel));
    }
    return OK;
}

static enum status begin(struct sim *s)
{
    const struct sim_config *c = s->cfg;
    int ranks = s->ex->size, rank = s->ex->rank;
    s->np = c->prefill.max_units;
    s->nd = c->decode.max_units;
    if (s->np < 1 || s->nd < 1 || s->np > SIM_MAX_UNITS || s->nd > SIM_MAX_UNITS)
        return error_set(ERR_INPUT, "%d prefill and %d decode units, expected 1 to %d of each",
                         s->np, s->nd, SIM_MAX_UNITS);
    const struct sim_role *roles[] = {&c->prefill, &c->decode};
    for (int i = 0; i < 2; i++)
        if (roles[i]->ranks < 1 || roles[i]->gpus % roles[i]->ranks ||
            roles[i]->ranks > DECODE_RANK)
            return error_set(ERR_BUG, "simulation: %d GPUs as %d ranks", roles[i]->gpus,
                             roles[i]->ranks);
    /* Rounded up here and down below: who has one decode unit less has one prefill unit more. */
    s->p0 = (int)(((int64_t)rank * s->np + ranks - 1) / ranks);
    s->p1 = (int)(((int64_t)(rank + 1) * s->np + ranks - 1) / ranks);
    s->d0 = (int)((int64_t)rank * s->nd / ranks);
    s->d1 = (int)((int64_t)(rank + 1) * s->nd / ranks);
    s->epoch_ms = llrint(c->epoch_s * 1e3);
    s->warmup_ms = llrint(ceil(c->warmup_s / 60)) * 60000;
    s->end_ms = llrint(c->hours * 60) * 60000;
    if (s->epoch_ms < 10 || 60000 % s->epoch_ms != 0)
        return error_set(ERR_INPUT, "epoch_s %g: expected a whole part of a minute, 0.01 s or more",
                         c->epoch_s);
    if ((double)(s->end_ms + s->warmup_ms) / 1e3 * SIM_TICKS_PER_S > 4.2e9)
        return error_set(ERR_INPUT, "%g hours and %g s of warm-up: at most 35 hours in all",
                         c->hours, c->warmup_s);
    if (!c->trace)
        s->rate =
            c->requests / (c->hours * 3600) / arrival_curve_mean(c->curve, c->start_hour, c->hours);
    s->epochs_per_tick = 1e3 / SIM_TICKS_PER_S / (double)s->epoch_ms;
    s->tps_q10 = (int)lrint(c->tokens_per_step * 1024);
    s->mean_output =
        c->trace ? c->trace->output_tokens / (double)c->trace->n : c->workload->mean_output;
    double prompt = c->trace ? c->trace->prompt_tokens / (double)c->trace->n
                             : c->workload->session.first_tokens;
    s->pages_per_request = (int64_t)((prompt + s->mean_output) / WORKLOAD_PAGE_TOKENS) + 1;
    return allocate(s);
}

static void end(struct sim *s)
{
    for (int i = 0; i < s->p1 - s->p0 && s->prefill; i++) prefill_unit_free(s, &s->prefill[i]);
    for (int i = 0; i < s->d1 - s->d0 && s->decode; i++) decode_unit_free(&s->decode[i]);
    for (int i = 0; i < s->d1 - s->d0 && s->lane; i++) sim_wheel_free(&s->lane[i].wheel);
    for (int q = 0; q < s->ex->size && s->out; q++) {
        for (int b = 0; b < BOXES; b++) free(s->out[q].r[b]);
        free(s->out[q].message);
    }
    void *owned[] = {s->prefill, s->decode, s->lane, s->pool.r, s->pool.next,   s->out,    s->send,
                     s->recv,    s->head,   s->view, s->cache,  s->trace_chain, s->scratch};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
    disk_index_free(s->trace_cache);
}

static int64_t own_bytes(const struct sim *s)
{
    int64_t bytes = (int64_t)s->pool.cap * (CHUNK * 32 + 4) + s->cache_seconds * 8;
    bytes += (int64_t)(s->d1 - s->d0) * 2 * (WHEEL_FINE + WHEEL_COARSE) * 12;
    bytes += (int64_t)s->scratch_cap * 32;
    for (int i = 0; i < s->p1 - s->p0; i++)
        for (int k = 0; k < s->cfg->prefill.ranks; k++)
            bytes += (int64_t)s->prefill[i].rank[k].queue.cap * 32;
    for (int i = 0; i < s->d1 - s->d0; i++) {
        bytes += (int64_t)s->decode[i].waiting.cap * 32;
        for (int k = 0; k < s->cfg->decode.ranks; k++)
            bytes += (int64_t)s->decode[i].rank[k].host.cap * 32;
    }
    for (int q = 0; q < s->ex->size; q++)
        for (int b = 0; b < BOXES; b++) bytes += (int64_t)s->out[q].cap[b] * 32;
    return bytes;
}

/* What the ranks hold apart becomes whole on all of them. */
static enum status total(struct sim *s)
{
    struct sim_result *r = s->result;
    int n = r->hours * (s->np + s->nd) * (int)(sizeof *r->unit / sizeof(int64_t));
    TRY(s->ex->sum(s->ex->ctx, (int64_t *)r->unit, n));
    int64_t v[2] = {s->requests, own_bytes(s)};
    TRY(s->ex->sum(s->ex->ctx, v, 2));
    r->requests_simulated = v[0];
    r->peak_bytes = v[1];
    for (int m = 0; m < r->minutes; m++)
        for (int c = 0; c < SIM_COUNTERS; c++)
            r->total[c] =
                c < SIM_PREFILL_QUEUE ? r->total[c] + r->minute[m].n[c] : r->minute[m].n[c];
    return OK;
}

static double cpu_now(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

/* Step times of the minute that begins now. */
static void set_times(struct sim *s, int64_t minute)
{
    const struct sim_experts *e = s->cfg->experts;
    s->time[0] = s->cfg->prefill.time;
    s->time[1] = s->cfg->decode.time;
    for (int role = 0; role < 2 && e && minute < e->minutes; role++) {
        double v = e->imbalance[role][minute];
        int i = 0;
        while (i < SIM_EXPERT_TABLES - 2 && v > e->at[i + 1]) i++;
        float f = (float)((v - e->at[i]) / (e->at[i + 1] - e->at[i]));
        const struct sim_time *a = &e->table[role][i], *b = a + 1;
        for (int y = 0; y < SIM_TIME_Y; y++)
            for (int x = 0; x < SIM_TIME_X; x++)
                s->time[role].s[y][x] = a->s[y][x] + f * (b->s[y][x] - a->s[y][x]);
    }
}

static enum status all_epochs(struct sim *s)
{
    int64_t epochs = (s->end_ms + s->warmup_ms) / s->epoch_ms;
    int64_t per_minute = 60000 / s->epoch_ms, first = s->warmup_ms / s->epoch_ms;
    double start = clock_now_s(), told = start;
    for (s->epoch = 0; s->epoch < epochs; s->epoch++) {
        int minute = (int)((s->epoch * s->epoch_ms - s->warmup_ms) / 60000);
        s->recording = s->epoch >= first;
        s->hour = s->recording ? minute / 60 : 0;
        if (s->epoch % per_minute == 0) set_times(s, s->epoch / per_minute);
        TRY(run_epoch(s));
        if ((s->epoch + 1) % per_minute) continue;
        TRY(end_minute(s, s->recording ? minute : -1));
        double now = clock_now_s();
        if (s->cfg->progress_s > 0 && s->ex->rank == 0 && now - told >= s->cfg->progress_s) {
            double done = (double)(s->epoch + 1) / (double)epochs;
            log_info("%5.1f %% of the day, %.1f M requests, %.0f s left", 100 * done,
                     (double)s->requests * s->ex->size / 1e6, (now - start) * (1 - done) / done);
            told = now;
        }
    }
    return OK;
}

enum status sim_run(const struct sim_config *cfg, const struct exchange *ex, struct sim_result *out)
{
    memset(out, 0, sizeof *out);
    struct sim *s = calloc(1, sizeof *s);
    if (!s) return error_set(ERR_RESOURCE, "no memory for the simulation");
    *s = (struct sim){.cfg = cfg, .ex = ex, .result = out};
    double wall = clock_now_s(), cpu = cpu_now();
    enum status st = begin(s);
    if (st == OK) st = all_epochs(s);
    if (st == OK) st = total(s);
    end(s);
    free(s);
    out->wall_s = clock_now_s() - wall;
    out->cpu_s = cpu_now() - cpu;
    if (st != OK) sim_result_free(out);
    return st;
}

void sim_result_free(struct sim_result *r)
{
    free(r->minute);
    free(r->unit);
    free(r->ttft_hist);
    free(r->tpot_hist);
    memset(r, 0, sizeof *r);
}
