/* rank.c - the loop of a rank, its messages, its figures. */
#include "engine/rank.h"

#include "core/clock.h"
#include "engine/interrupt.h"
#include "engine/router.h"
#include "engine/watch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

double rank_now(const struct rank *r)
{
    return clock_now_s() - r->t0;
}

/* ---- messages ------------------------------------------------------------------------------- */

static void receive_request(struct rank *r, const void *data, size_t bytes)
{
    struct wire_request w;
    memcpy(&w, data, sizeof w);
    struct sequence *s = sequence_new(&w.p, r->job->kv.page_tokens);
    size_t n = bytes - sizeof w;
    if (s) s->prompt = malloc(n + 4);
    if (!s || !s->prompt) {
        sequence_free(s);
        r->failed = error_set(ERR_RESOURCE, "no memory for request %lld", (long long)w.p.index);
        return;
    }
    memcpy(s->prompt, (const char *)data + sizeof w, n);
    s->f.t_prefill_start = s->f.t_first_token = NAN;
    if (s->prompt_logprob) s->prompt_logprob[0] = NAN;
    sequence_push(&r->queue, s);
    if (r->disk) rank_disk_arrived(r, s);
}

/* Rank 0 has told the user why: this rank leaves with the same status and says nothing. */
static void receive_abort(struct rank *r, const void *data)
{
    int32_t status;
    memcpy(&status, data, sizeof status);
    r->aborted = (enum status)status;
    if (r->failed == OK) r->failed = error_set(r->aborted, "the job was ended by rank 0");
}

void rank_message(void *rank, int from, enum ctl_kind kind, const void *data, size_t bytes)
{
    struct rank *r = rank;
    watch_move();
    switch (kind) {
    case CTL_REQUEST: receive_request(r, data, bytes); return;
    case CTL_KV: rank_receive_kv(r, data, bytes); return;
    case CTL_START: rank_receive_start(r, data, bytes); return;
    case CTL_STOP: r->stopping = true; return;
    case CTL_ABORT: receive_abort(r, data); return;
    case CTL_STUCK:
    case CTL_ASK:
    case CTL_STATE: inquiry_message(r, kind, data, bytes); return;
    default: router_message(r->router, from, kind, data, bytes); return;
    }
}

enum status rank_poll(void *rank)
{
    struct rank *r = rank;
    watch_beat();
    TRY(ctl_poll(r->ctl));
    rank_disk_poll(r);
    TRY(r->failed);
    TRY(interrupt_check());
    TRY(inquiry_poll(r));
    return r->router ? router_serve(r->router) : OK;
}

void rank_kernel_poll(void *rank)
{
    struct rank *r = rank;
    watch_beat();
    transport_poll(r->transport);
    enum status st = ctl_poll(r->ctl);
    rank_disk_poll(r);
    if (st != OK && r->failed == OK) r->failed = st;
}

/* ---- the leader's view of a step ------------------------------------------------------------ */

static void spread(const struct tick_report *rep, int n, int what, float *mean, float *max)
{
    double sum = 0, top = 0;
    for (int i = 0; i < n; i++) {
        double v = what == 0   ? rep[i].attn_work
                   : what == 1 ? (double)rep[i].kv_pages
                   : what == 2 ? (double)rep[i].tokens
                               : rep[i].expert_rows;
        sum += v;
        if (v > top) top = v;
    }
    *mean = (float)(sum / n);
    *max = (float)top;
}

static double mean_stage(const struct tick_report *rep, int n, int stage)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += rep[i].stage_s[stage];
    return 1e3 * sum / n;
}

/* Called by the leader when all reports of a step are in. */
static void step_done(void *arg, const struct tick_report *rep, int n)
{
    struct rank *r = arg;
    if (r->last_kind != TICK_PREFILL && r->last_kind != TICK_DECODE) return;
    int kind = r->last_kind == TICK_PREFILL ? 0 : 1;
    struct step_row row;
    memset(&row, 0, sizeof row);
    memcpy(row.unit, r->unit_name, sizeof r->unit_name);
    row.attempt = r->attempt;
    row.microbatches = (kind ? r->sched_decode : r->sched_prefill).micro_batches;
    row.step = r->steps[kind]++;
    row.t_start = r->step_start;
    row.duration = rank_now(r) - r->step_start;
    row.rounds = 1;
    double exposed = 0, busy = 0;
    for (int i = 0; i < n; i++) {
        row.requests += rep[i].requests;
        row.tokens += rep[i].tokens;
        if (rep[i].rounds > row.rounds) row.rounds = rep[i].rounds;
        exposed += rep[i].exposed_s;
        busy += rep[i].compute_s;
    }
    row.attn_ms = (float)mean_stage(rep, n, 0);
    row.dispatch_ms = (float)mean_stage(rep, n, 1);
    row.mlp_ms = (float)mean_stage(rep, n, 2);
    row.shared_ms = (float)mean_stage(rep, n, 3);
    row.combine_ms = (float)mean_stage(rep, n, 4);
    row.head_ms = (float)mean_stage(rep, n, 5);
    row.exposed_comm_ms = (float)(1e3 * exposed / n);
    double idle = row.duration - (exposed + busy) / n;
    row.idle_ms = (float)(idle > 0 ? 1e3 * idle : 0);
    spread(rep, n, 0, &row.attn_mean, &row.attn_max);
    spread(rep, n, 1, &row.kv_mean, &row.kv_max);
    spread(rep, n, 2, &row.tokens_mean, &row.tokens_max);
    spread(rep, n, 3, &row.expert_mean, &row.expert_max);
    int32_t k = kind;
    struct ctl_part part[2] = {{&k, sizeof k}, {&row, sizeof row}};
    enum status st = ctl_send(r->ctl, 0, CTL_STEP, part, 2);
    if (st != OK && r->failed == OK) r->failed = st;
}

/* ---- the loop ------------------------------------------------------------------------------- */

static uint32_t work_now(void *arg)
{
    struct rank *r = arg;
    return (r->role != RANK_DECODE && rank_can_prefill(r) ? (uint32_t)WORK_PREFILL : 0u) |
           (rank_can_decode(r) ? (uint32_t)WORK_DECODE : 0u);
}

static bool stop_now(void *arg)
{
    return ((struct rank *)arg)->stopping;
}

static void fill_report(struct rank *r, const struct runner_stats *s, double attn0, int64_t rows0)
{
    struct tick_report *p = &r->report;
    p->rounds = r->forward.rounds;
    p->kv_pages = (int32_t)page_pool_used(&r->pool);
    p->attn_work = (float)(r->model.attn_work - attn0);
    p->expert_rows = (float)(r->model.expert_rows - rows0);
    p->wall_s = (float)s->wall_s;
    p->compute_s = (float)(s->compute_s + s->comm_begin_s + s->comm_unpack_s);
    p->exposed_s = (float)s->comm_exposed_s;
    const double *t = s->stage_s;
    p->stage_s[0] = (float)(t[STAGE_ATTN] + t[STAGE_ATTN_0] + t[STAGE_ATTN_1]);
    p->stage_s[1] = (float)t[STAGE_DISPATCH];
    p->stage_s[2] = (float)(t[STAGE_MLP] + t[STAGE_DENSE_MLP]);
    p->stage_s[3] = (float)t[STAGE_SHARED];
    p->stage_s[4] = (float)t[STAGE_COMBINE];
    p->stage_s[5] = (float)(t[STAGE_HEAD] + t[STAGE_EMBED]);
    r->stats.compute_s += p->compute_s;
    r->stats.exposed_s += p->exposed_s;
    r->stats.step_s += s->wall_s;
}

static enum status one_step(struct rank *r, enum tick_kind kind)
{
    double attn0 = r->model.attn_work;
    int64_t rows0 = r->model.expert_rows;
    memset(&r->report, 0, sizeof r->report);
    memset(&r->forward.runner.stats, 0, sizeof r->forward.runner.stats);
    r->step_start = rank_now(r);
    r->last_kind = kind;
    watch_step(kind == TICK_DECODE, r->taken[kind == TICK_DECODE]++);
    watch_point(kind == TICK_DECODE ? "decode" : "prefill");
    TRY(kind == TICK_PREFILL ? rank_prefill_step(r) : rank_decode_step(r));
    fill_report(r, &r->forward.runner.stats, attn0, rows0);
    return rank_poll(r);
}

enum status rank_loop(struct rank *r)
{
    for (;;) {
        enum tick_kind next = TICK_NONE;
        r->report.work = work_now(r);
        TRY(tick_next(r->tick, &r->report, work_now, stop_now, step_done, r, &next));
        if (next == TICK_STOP) return OK;
        TRY(one_step(r, next));
    }
}
