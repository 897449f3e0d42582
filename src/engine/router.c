/* router.c - sends requests out and keeps the job going; answers are in router_answers.c. */
#include "engine/router.h"

#include "core/clock.h"
#include "engine/router_state.h"
#include "engine/watch.h"
#include "engine/wire.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- start ---------------------------------------------------------------------------------- */

static enum status init_balancers(struct router *r)
{
    const struct job *job = r->s.job;
    r->mixed = job->mixed.present;
    const struct job_role *p = r->mixed ? &job->mixed : &job->prefill;
    const struct job_role *d = r->mixed ? &job->mixed : &job->decode;
    r->n_prefill = p->units * p->ep;
    r->n_decode = d->units * d->ep;
    r->first_decode = r->mixed ? 0 : r->n_prefill;
    struct prefill_weights w = prefill_weights_default();
    TRY(prefill_balance_init(&r->prefill, p->units, p->ep, &w));
    struct decode_limits limits = {
        .units = d->units,
        .ranks_per_unit = d->ep,
        .pages = r->s.decode_pages,
        .page_tokens = (uint32_t)job->kv.page_tokens,
        /* Room for requests whose prompt is being computed, so that the batch stays full. */
        .max_batch = (uint32_t)(d->max_batch + d->max_batch / 4 + 1),
        .high_water = 0.95,
    };
    TRY(decode_balance_init(&r->decode, &limits));
    r->use_routes = job->kv.prefix_cache == JOB_PREFIX_MEMORY && r->n_prefill > 1;
    if (r->use_routes) TRY(route_index_init(&r->routes, 1u << 16, (uint32_t)job->kv.page_tokens));
    r->cached = calloc((size_t)r->n_prefill, sizeof *r->cached);
    r->may = calloc((size_t)r->n_prefill, sizeof *r->may);
    if (!r->cached || !r->may) return error_set(ERR_RESOURCE, "no memory for the router");
    return router_order_init(r);
}

static enum status account_for(void *router, const struct request_row *row)
{
    watch_move();
    return router_account_for(router, row);
}

/* What earlier attempts finished counts as done; its responses are written again, in the order in
 * which they finished, so that the file is whole whatever was lost of it. */
static enum status take_over(struct router *r)
{
    if (journal_finished(r->s.journal) == 0) return OK;
    return journal_each_request(r->s.journal, account_for, r);
}

enum status router_create(const struct router_setup *setup, struct router **out)
{
    struct router *r = calloc(1, sizeof *r);
    if (!r) return error_set(ERR_RESOURCE, "no memory for the router");
    r->s = *setup;
    r->free_flight = -1;
    r->count = token_file_count(setup->tokens);
    r->next_snapshot = setup->resumed_s + 10;
    r->id_bytes = 1;
    *out = r;
    TRY(init_balancers(r));
    size_t cells = (size_t)setup->layers * (size_t)(setup->experts > 0 ? setup->experts : 1);
    r->expert_load = calloc(cells, sizeof *r->expert_load);
    r->rank_rows = calloc((size_t)setup->ranks, sizeof *r->rank_rows);
    r->reported = calloc((size_t)setup->ranks, sizeof *r->reported);
    if (!r->expert_load || !r->rank_rows || !r->reported)
        return error_set(ERR_RESOURCE, "no memory for the job's figures");
    const char *path = setup->job->responses;
    if (path[0]) {
        r->responses = fopen(path, "w");
        if (!r->responses)
            return error_set(ERR_INPUT, "responses: cannot write %s: choose a writable path", path);
        /* They leave when flushed, behind the journal's records, not whenever stdio is full. */
        setvbuf(r->responses, NULL, _IOFBF, 1 << 20);
    }
    progress_init(&r->progress, r->count, setup->job->progress_s);
    TRY(take_over(r));
    return setup->trace_path[0] ? trace_open(&r->trace, setup->trace_path) : OK;
}

void router_free(struct router *r)
{
    if (!r) return;
    prefill_balance_free(&r->prefill);
    decode_balance_free(&r->decode);
    if (r->use_routes) route_index_free(&r->routes);
    if (r->responses) fclose(r->responses);
    request_free(&r->pending);
    router_order_free(r);
    free(r->cached);
    free(r->may);
    free(r->flight);
    free(r->id);
    free(r->expert_load);
    free(r->rank_rows);
    free(r->reported);
    free(r);
}

/* ---- sending out ---------------------------------------------------------------------------- */

static enum status take_flight(struct router *r, int *ticket)
{
    if (r->free_flight < 0) {
        int n = r->flights ? 2 * r->flights : 64;
        struct flight *f = realloc(r->flight, (size_t)n * sizeof *f);
        if (f) r->flight = f;
        char *id = realloc(r->id, (size_t)n * (RESULTS_ID_MAX + 1));
        if (id) r->id = id;
        if (!f || !id) return error_set(ERR_RESOURCE, "no memory for requests under way");
        for (int i = r->flights; i < n; i++) f[i].next_free = i + 1 < n ? i + 1 : -1;
        r->free_flight = r->flights;
        r->flights = n;
    }
    *ticket = r->free_flight;
    r->free_flight = r->flight[*ticket].next_free;
    r->in_flight++;
    return OK;
}

void router_find_room(struct router *r, uint32_t pages, uint32_t prompt)
{
    const struct job_role *p = r->mixed ? &r->s.job->mixed : &r->s.job->prefill;
    prefill_balance_room(&r->prefill, (uint32_t)p->chunk_tokens, r->mixed ? &r->decode : 0, pages,
                         prompt, r->may);
}

/* Ranks for the pending request; false when it has to wait. */
static bool choose_ranks(struct router *r, struct flight *f)
{
    const struct request *q = &r->pending;
    uint32_t n = (uint32_t)q->n_tokens, pt = (uint32_t)r->s.job->kv.page_tokens;
    uint32_t *cached = 0;
    if (r->use_routes && !q->prompt_logprobs) {
        cached = r->cached;
        route_index_match(&r->routes, q->tokens, n, r->n_prefill, cached);
    }
    f->n_prompt = n;
    f->pages = decode_expected_pages(n, (uint32_t)q->max_tokens, 0, r->decode.mean_output, pt);
    router_find_room(r, f->pages, n);
    f->prefill = prefill_balance_pick(&r->prefill, n, cached, r->may);
    f->decode = -1;
    if (f->prefill < 0) return false;
    if (r->mixed)
        f->decode = f->prefill;
    else if (q->max_tokens > 1)
        f->decode = decode_balance_pick(&r->decode, f->pages, n);
    if (f->decode < 0 && q->max_tokens > 1) return false;
    f->cached = cached ? cached[f->prefill] : 0;
    return true;
}

static void fill_params(const struct router *r, const struct flight *f, int ticket,
                        struct wire_params *p)
{
    const struct request *q = &r->pending;
    memset(p, 0, sizeof *p);
    p->index = q->index;
    p->ticket = ticket;
    p->n_prompt = q->n_tokens;
    p->max_tokens = q->max_tokens;
    p->top_k = q->top_k;
    p->temperature = q->temperature;
    p->top_p = q->top_p;
    p->seed = q->seed;
    p->n_stop = q->n_stop < WIRE_STOPS ? q->n_stop : WIRE_STOPS;
    for (int i = 0; i < p->n_stop; i++) p->stop[i] = q->stop_token_ids[i];
    p->logprobs = q->logprobs;
    p->prompt_logprobs = q->prompt_logprobs;
    p->ignore_eos = q->ignore_eos;
    p->prefill_rank = f->prefill;
    p->decode_rank = f->decode < 0 ? -1 : r->first_decode + f->decode;
    p->t_arrival = clock_now_s() - r->s.t0;
}

static enum status send_request(struct router *r, struct flight *f)
{
    int ticket = -1;
    TRY(take_flight(r, &ticket));
    struct wire_request w;
    fill_params(r, f, ticket, &w.p);
    f->used = f->prefilling = true;
    r->flight[ticket] = *f;
    memcpy(r->id + (size_t)ticket * (RESULTS_ID_MAX + 1), r->pending.custom_id, RESULTS_ID_MAX + 1);
    prefill_balance_add(&r->prefill, f->prefill, f->cached, f->n_prompt - f->cached);
    if (f->decode >= 0) decode_balance_add(&r->decode, f->decode, f->pages);
    if (r->use_routes && !r->pending.prompt_logprobs)
        route_index_note_prompt(&r->routes, r->pending.tokens, f->n_prompt, f->prefill);
    router_order_sent(r, f->prefill);
    struct ctl_part part[2] = {
        {&w, sizeof w}, {r->pending.tokens, (size_t)f->n_prompt * sizeof *r->pending.tokens}};
    r->have_pending = false;
    return ctl_send(r->s.ctl, w.p.prefill_rank, CTL_REQUEST, part, 2);
}

/* ---- serving -------------------------------------------------------------------------------- */

static enum status send_out(struct router *r)
{
    enum { BURST = 256 };
    for (int i = 0; i < BURST && !r->blocked; i++) {
        if (!r->have_pending) {
            TRY(router_order_next(r));
            if (!r->have_pending) return OK;
        }
        struct flight f = {0};
        if (r->pending.error[0])
            TRY(router_record_bad(r));
        else if (choose_ranks(r, &f))
            TRY(send_request(r, &f));
        else
            r->blocked = true;
    }
    return OK;
}

static enum status stop_units(struct router *r)
{
    const struct job *job = r->s.job;
    const struct job_role *role[2] = {r->mixed ? &job->mixed : &job->prefill, &job->decode};
    int rank = 0;
    for (int k = 0; k < (r->mixed ? 1 : 2); k++)
        for (int u = 0; u < role[k]->units; u++, rank += role[k]->ep)
            TRY(ctl_send(r->s.ctl, rank, CTL_STOP, 0, 0));
    r->stopped = true;
    progress_end(&r->progress, clock_now_s() - r->s.t0);
    return OK;
}

enum status router_serve(struct router *r)
{
    TRY(r->failed);
    watch_owes(r->in_flight > 0);
    if (!r->stopped) {
        TRY(send_out(r));
        if (r->finished == r->count) {
            TRY(router_flush_responses(r));
            TRY(stop_units(r));
        }
    }
    TRY(journal_flush(r->s.journal)); /* what has finished outlives this process */
    double now = clock_now_s() - r->s.t0;
    if (now < r->next_tick) return OK;
    r->next_tick = now + 0.2;
    progress_show(&r->progress, now, r->in_flight);
    TRY(lock_check(r->s.lock));
    TRY(journal_tick(r->s.journal, now, r->prefill_tokens, r->decode_tokens));
    TRY(router_flush_responses(r));
    if (r->s.snapshot && now >= r->next_snapshot && !r->stopped) {
        TRY(r->s.snapshot(r->s.snapshot_arg));
        double took = clock_now_s() - r->s.t0 - now;
        r->next_snapshot = now + (took * 50 > 30 ? took * 50 : 30);
    }
    return OK;
}

int router_stats_received(const struct router *r)
{
    bool traced = r->s.trace_path[0];
    return traced && r->traces_received < r->stats_received ? r->traces_received
                                                            : r->stats_received;
}

void router_awaited(const struct router *r, uint8_t *bits)
{
    for (int i = 0; i < r->s.ranks; i++)
        if (!r->reported[i]) bits[i / 8] |= (uint8_t)(1u << i % 8);
}

const struct rank_row *router_rank_rows(const struct router *r)
{
    return r->rank_rows;
}

const int64_t *router_expert_load(const struct router *r)
{
    return r->expert_load;
}

enum status router_failure(const struct router *r)
{
    return r->failed;
}

int router_id_bytes(const struct router *r)
{
    return r->id_bytes;
}

int64_t router_prefill_tokens(const struct router *r)
{
    return r->prefill_tokens;
}

int64_t router_decode_tokens(const struct router *r)
{
    return r->decode_tokens;
}
