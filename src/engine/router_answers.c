/* router_answers.c - what ranks tell the router: first tokens, answers, steps, closing figures.
 */
#include "core/clock.h"
#include "engine/router_state.h"
#include "engine/wire.h"
#include "requests/response.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum status router_account_for(struct router *r, const struct request_row *row)
{
    int len = (int)strlen(row->custom_id);
    bool failed = row->status == REQUEST_FAILED;
    if (len > r->id_bytes) r->id_bytes = len;
    r->finished++;
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

enum status router_flush_responses(struct router *r)
{
    if (!r->responses || fflush(r->responses) == 0) return OK;
    return error_set(ERR_RESOURCE, "cannot write the responses to %s: %s", r->s.job->responses,
                     strerror(errno));
}

static enum status record(struct router *r, const struct request_row *row)
{
    bool failed = row->status == REQUEST_FAILED;
    TRY(journal_request(r->s.journal, row));
    TRY(router_account_for(r, row));
    if (failed && r->s.job->strict)
        return error_set(ERR_INPUT, "--strict: request %lld (custom_id \"%s\"): %s",
                         (long long)row->index, row->custom_id, row->error);
    return OK;
}

enum status router_record_bad(struct router *r)
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
        .cached_tokens_disk = w.f.cached_tokens_disk,
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
    r->reported[row.rank] = true;
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

void router_message(struct router *r, int from, enum ctl_kind kind, const void *data, size_t bytes)
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
    case CTL_LINKS: st = journal_links(r->s.journal, data, bytes / sizeof(struct link_row)); break;
    case CTL_STATS: st = stats_message(r, data, bytes); break;
    case CTL_TRACE: st = trace_message(r, from, data, bytes); break;
    case CTL_ERROR: st = error_message(data); break;
    default: break;
    }
    if (st != OK && r->failed == OK) r->failed = st;
}
