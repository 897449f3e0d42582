/* router.c */
#include "engine/router.h"

#include "balance/decode_balance.h"
#include "balance/prefill_balance.h"
#include "core/clock.h"
#include "core/log.h"
#include "engine/progress.h"
#include "engine/wire.h"
#include "kvcache/page_pool.h"
#include "kvcache/route_index.h"
#include "requests/response.h"
#include "schedule/trace.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

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
    int64_t count, next, finished, failed_requests;
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

/* A request has ended: counts, progress, response line. */
static enum status account_for(struct router *r, const struct request_row *row)
{
    int len = (int)strlen(row->custom_id);
    bool failed = row->status == REQUEST_FAILED;
    if (len > r->id_bytes) r->id_bytes = len;
    r->finished++;
    if (failed) r->failed_requests++;
    progress_finished(&r->progress, failed);
    if (!r->responses) return OK;
    struct response resp = {
        .index = row->index,
        .custom_id = row->custom_id,
        .model = r->s.model_name,
        .error = row->error,
        .finish_reason = finish_reason_name(row->finish),
        .tokens = row->tokens,
        .logprobs = row->logprobs,
        .prompt_logprobs = row->prompt_logprobs,
        .n_tokens = row->output_tokens,
        .prompt_tokens = row->prompt_tokens,
        .cached_tokens = row->cached_tokens,
    };
    return response_write(r->responses, &resp);
}

static enum status flush_responses(struct router *r)
{
    if (!r->responses || fflush(r->responses) == 0) return OK;
    return error_set(ERR_RESOURCE, "cannot write the responses to %s: %s", r->s.job->responses,
                     strerror(errno));
}

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
    if (r->use_routes)
        TRY(route_index_init(&r->routes, 1u << 16, (uint32_t)job->kv.page_tokens));
    r->cached = calloc((size_t)r->n_prefill, sizeof *r->cached);
    return r->cached ? OK : error_set(ERR_RESOURCE, "no memory for the router");
}

/* What earlier attempts finished counts as done; its responses are written again, so that the file
 * is whole whatever was lost of it. */
static enum status take_over(struct router *r)
{
    if (journal_finished(r->s.journal) == 0) return OK;
    for (int64_t i = 0; i < r->count; i++) {
        if (!journal_has(r->s.journal, i)) continue;
        struct request_row row;
        TRY(journal_read_request(r->s.journal, i, &row));
        TRY(account_for(r, &row));
    }
    return OK;
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
    if (!r->expert_load || !r->rank_rows)
        return error_set(ERR_RESOURCE, "no memory for the job's figures");
    const char *path = setup->job->responses;
    if (path[0]) {
        r->responses = fopen(path, "w");
        if (!r->responses)
            return error_set(ERR_INPUT, "responses: cannot write %s: choose a writable path", path);
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
    free(r->cached);
    free(r->flight);
    free(r->id);
    free(r->expert_load);
    free(r->rank_rows);
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

/* Prompt tokens a prefill rank may have queued before it gets more. */
static uint64_t queue_limit(const struct router *r)
{
    const struct job_role *p = r->mixed ? &r->s.job->mixed : &r->s.job->prefill;
    return 2 * (uint64_t)p->chunk_tokens;
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
    f->prefill = prefill_balance_pick(&r->prefill, n, cached);
    bool decodes = r->mixed || q->max_tokens > 1;
    f->decode = -1;
    if (r->mixed) {
        if (!decode_balance_admits(&r->decode, f->prefill, f->pages, n))
            f->prefill = decode_balance_pick(&r->decode, f->pages, n);
        f->decode = f->prefill;
    } else if (decodes) {
        f->decode = decode_balance_pick(&r->decode, f->pages, n);
    }
    if (f->prefill < 0 || (decodes && f->decode < 0)) return false;
    if (r->prefill.tokens[f->prefill] > queue_limit(r)) return false;
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
    memcpy(r->id + (size_t)ticket * (RESULTS_ID_MAX + 1), r->pending.custom_id,
           RESULTS_ID_MAX + 1);
    prefill_balance_add(&r->prefill, f->prefill, f->cached, f->n_prompt - f->cached);
    if (f->decode >= 0) decode_balance_add(&r->decode, f->decode, f->pages);
    if (r->use_routes && !r->pending.prompt_logprobs)
        route_index_note_prompt(&r->routes, r->pending.tokens, f->n_prompt, f->prefill);
    struct ctl_part part[2] = {
        {&w, sizeof w}, {r->pending.tokens, (size_t)f->n_prompt * sizeof *r->pending.tokens}};
    r->have_pending = false;
    return ctl_send(r->s.ctl, w.p.prefill_rank, CTL_REQUEST, part, 2);
}

/* ---- answers -------------------------------------------------------------------------------- */

static enum status record(struct router *r, const struct request_row *row)
{
    bool failed = row->status == REQUEST_FAILED;
    TRY(journal_request(r->s.journal, row));
    TRY(account_for(r, row));
    if (failed && r->s.job->strict)
        return error_set(ERR_INPUT, "--strict: request %lld (custom_id \"%s\"): %s",
                         (long long)row->index, row->custom_id, row->error);
    return OK;
}

static enum status record_bad(struct router *r)
{
    const struct request *q = &r->pending;
    struct request_row row = {
        .index = q->index,
        .custom_id = q->custom_id,
        .error = q->error,
        .status = REQUEST_FAILED,
        .finish = FINISH_ERROR,
        .prompt_tokens = q->n_tokens,
        .prefill_rank = -1,
        .decode_rank = -1,
        .t_arrival = clock_now_s() - r->s.t0,
        .t_prefill_start = NAN,
        .t_first_token = NAN,
        .t_finish = NAN,
    };
    r->have_pending = false;
    return record(r, &row);
}

static void first_token(struct router *r, int ticket)
{
    struct flight *f = &r->flight[ticket];
    if (!f->prefilling) return;
    f->prefilling = false;
    prefill_balance_done(&r->prefill, f->prefill, f->cached, f->n_prompt - f->cached);
    progress_prefilled(&r->progress, f->n_prompt);
    r->blocked = false;
}

static enum status answer(struct router *r, const void *data)
{
    struct wire_done w;
    memcpy(&w, data, sizeof w);
    struct flight *f = &r->flight[w.p.ticket];
    first_token(r, w.p.ticket);
    if (f->decode >= 0) decode_balance_remove(&r->decode, f->decode, f->pages);
    decode_balance_finished(&r->decode, (uint32_t)w.n_out);
    const char *at = (const char *)data + sizeof w;
    const int32_t *tokens = (const int32_t *)(const void *)at;
    at += (size_t)w.n_out * sizeof *tokens;
    const float *logprobs = w.p.logprobs ? (const float *)(const void *)at : 0;
    if (logprobs) at += (size_t)w.n_out * sizeof *logprobs;
    struct request_row row = {
        .index = w.p.index,
        .custom_id = r->id + (size_t)w.p.ticket * (RESULTS_ID_MAX + 1),
        .status = REQUEST_OK,
        .finish = w.stopped ? FINISH_STOP : FINISH_LENGTH,
        .prompt_tokens = w.p.n_prompt,
        .cached_tokens = w.f.cached_tokens,
        .output_tokens = w.n_out,
        .prefill_rank = w.p.prefill_rank,
        .decode_rank = w.p.decode_rank,
        .t_arrival = w.p.t_arrival,
        .t_prefill_start = w.f.t_prefill_start,
        .t_first_token = w.f.t_first_token,
        .t_finish = w.t_finish,
        .tokens = tokens,
        .logprobs = logprobs,
        .prompt_logprobs = w.p.prompt_logprobs ? (const float *)(const void *)at : 0,
    };
    progress_generated(&r->progress, w.n_out);
    f->used = false;
    f->next_free = r->free_flight;
    r->free_flight = w.p.ticket;
    r->in_flight--;
    r->blocked = false;
    return record(r, &row);
}

static enum status step_message(struct router *r, const void *data)
{
    int32_t kind;
    struct step_row row;
    memcpy(&kind, data, sizeof kind);
    memcpy(&row, (const char *)data + sizeof kind, sizeof row);
    *(kind ? &r->decode_tokens : &r->prefill_tokens) += row.tokens;
    return journal_step(r->s.journal, kind ? STEP_DECODE : STEP_PREFILL, &row);
}

static enum status stats_message(struct router *r, const void *data, size_t bytes)
{
    struct rank_row row;
    memcpy(&row, data, sizeof row);
    r->rank_rows[row.rank] = row;
    size_t cells = (bytes - sizeof row) / sizeof(int64_t);
    const char *at = (const char *)data + sizeof row;
    for (size_t i = 0; i < cells; i++) {
        int64_t v;
        memcpy(&v, at + i * sizeof v, sizeof v);
        r->expert_load[i] += v;
    }
    r->stats_received++;
    return r->stats_received < r->s.ranks
               ? OK
               : journal_ranks(r->s.journal, r->rank_rows, (size_t)r->s.ranks);
}

/* A rank's trace: its unit's name, then its events. */
static enum status trace_message(struct router *r, int from, const void *data, size_t bytes)
{
    char unit[16], name[48];
    memcpy(unit, data, sizeof unit);
    snprintf(name, sizeof name, "%.15s rank %d", unit, from);
    const char *events = (const char *)data + sizeof unit;
    struct trace_rank tr = {from, name, (const struct trace_event *)(const void *)events,
                            (bytes - sizeof unit) / sizeof(struct trace_event)};
    r->traces_received++;
    return trace_write_rank(&r->trace, &tr);
}

enum status router_close_trace(struct router *r)
{
    return r->s.trace_path[0] ? trace_close(&r->trace) : OK;
}

static enum status error_message(const void *data)
{
    struct wire_error w;
    memcpy(&w, data, sizeof w);
    w.text[sizeof w.text - 1] = w.host[sizeof w.host - 1] = '\0';
    return error_set((enum status)w.status, "rank %d on %s: %s", w.rank, w.host, w.text);
}

void router_message(struct router *r, int from, enum ctl_kind kind, const void *data,
                    size_t bytes)
{
    enum status st = OK;
    int32_t ticket;
    if (!r) return;
    switch (kind) {
    case CTL_FIRST:
        memcpy(&ticket, data, sizeof ticket);
        first_token(r, ticket);
        break;
    case CTL_DONE: st = answer(r, data); break;
    case CTL_STEP: st = step_message(r, data); break;
    case CTL_PLACES:
        st = journal_placement(r->s.journal, data, bytes / sizeof(struct placement_row));
        break;
    case CTL_STATS: st = stats_message(r, data, bytes); break;
    case CTL_TRACE: st = trace_message(r, from, data, bytes); break;
    case CTL_ERROR: st = error_message(data); break;
    default: break;
    }
    if (st != OK && r->failed == OK) r->failed = st;
}

/* ---- serving -------------------------------------------------------------------------------- */

static enum status send_out(struct router *r)
{
    enum { BURST = 256 };
    for (int i = 0; i < BURST && !r->blocked; i++) {
        if (!r->have_pending) {
            while (r->next < r->count && journal_has(r->s.journal, r->next)) r->next++;
            if (r->next == r->count) return OK;
            TRY(token_file_get(r->s.tokens, r->next, &r->pending));
            r->next++;
            r->have_pending = true;
        }
        struct flight f = {0};
        if (r->pending.error[0])
            TRY(record_bad(r));
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
    if (!r->stopped) {
        TRY(send_out(r));
        if (r->finished == r->count) {
            TRY(flush_responses(r));
            TRY(stop_units(r));
        }
    }
    double now = clock_now_s() - r->s.t0;
    if (now < r->next_tick) return OK;
    r->next_tick = now + 0.2;
    progress_show(&r->progress, now, r->in_flight);
    lock_beat(r->s.lock, now);
    TRY(journal_tick(r->s.journal, now, r->prefill_tokens, r->decode_tokens));
    TRY(flush_responses(r));
    if (r->s.snapshot && now >= r->next_snapshot && !r->stopped) {
        TRY(r->s.snapshot(r->s.snapshot_arg));
        double took = clock_now_s() - r->s.t0 - now;
        r->next_snapshot = now + (took * 50 > 30 ? took * 50 : 30);
    }
    return OK;
}

bool router_finished(const struct router *r)
{
    return r->stopped;
}

int router_stats_received(const struct router *r)
{
    bool traced = r->s.trace_path[0];
    return traced && r->traces_received < r->stats_received ? r->traces_received
                                                            : r->stats_received;
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
