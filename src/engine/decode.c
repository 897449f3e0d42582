/* decode.c - continuous batching: who decodes in this step, where the pages come from, the step
 * itself.
 */
#include "balance/decode_balance.h"
#include "engine/rank.h"

#include <stdlib.h>

bool rank_can_decode(const struct rank *r)
{
    return r->active.n + r->waiting.n + r->swapped.n > 0;
}

void rank_decode_add(struct rank *r, struct sequence *s)
{
    s->admission = ++r->admissions;
    sequence_push(s->host_kv ? &r->swapped : &r->waiting, s);
}

static int pages_needed(const struct rank *r, const struct sequence *s)
{
    int tokens = s->p.n_prompt + s->n_out; /* the step writes position tokens - 1 */
    return (int)pages_for((uint32_t)tokens, (uint32_t)r->job->kv.page_tokens);
}

/* Requests join while there is room: first those that were moved out, oldest first. */
static void admit_waiting(struct rank *r)
{
    while (r->active.n < r->cfg->max_batch) {
        struct sequence *s = r->swapped.head;
        if (s && rank_swap_in(r, s)) {
            sequence_remove(&r->swapped, s);
        } else {
            /* Ready requests hold pages: with nobody active they must go on, or none ever would. */
            if (s && r->active.n > 0) return;
            s = sequence_pop(&r->waiting);
            if (!s) return;
        }
        sequence_push(&r->active, s);
    }
}

/* The youngest request gives up its pages; false when only one is left. */
static enum status make_room(struct rank *r, bool *made)
{
    uint64_t *age = malloc((size_t)r->active.n * sizeof *age);
    if (!age) return error_set(ERR_RESOURCE, "no memory to choose whom to move out");
    int n = 0;
    for (struct sequence *s = r->active.head; s; s = s->next) age[n++] = s->admission;
    int victim = decode_victim(age, n);
    free(age);
    *made = victim >= 0;
    if (victim < 0) return OK;
    struct sequence *s = r->active.head;
    while (victim--) s = s->next;
    sequence_remove(&r->active, s);
    TRY(rank_swap_out(r, s));
    /* Oldest first: the place behind all older ones. */
    struct sequence_list rest;
    sequence_list_init(&rest);
    bool in = false;
    for (struct sequence *o = sequence_pop(&r->swapped); o; o = sequence_pop(&r->swapped)) {
        if (!in && o->admission > s->admission) {
            sequence_push(&rest, s);
            in = true;
        }
        sequence_push(&rest, o);
    }
    if (!in) sequence_push(&rest, s);
    for (struct sequence *o = sequence_pop(&rest); o; o = sequence_pop(&rest))
        sequence_push(&r->swapped, o);
    return OK;
}

/* Every active sequence gets the page it writes to. */
static enum status secure_pages(struct rank *r)
{
    for (struct sequence *s = r->active.head; s;) {
        int need = pages_needed(r, s) - s->n_pages;
        if (need <= 0) {
            s = s->next;
            continue;
        }
        if (rank_alloc_pages(r, need, s->pages + s->n_pages)) {
            s->n_pages += need;
            s = s->next;
            continue;
        }
        /* Requests that are ready but not yet active hold pages too: they go first. */
        struct sequence *w = r->waiting.head;
        bool made = true;
        if (w) {
            while (w->next) w = w->next;
            sequence_remove(&r->waiting, w);
            TRY(rank_swap_out(r, w));
            sequence_push(&r->swapped, w);
        } else {
            TRY(make_room(r, &made));
        }
        if (!made) {
            /* Alone among the active, but prompts that are being prefilled or that arrive hold the
             * rest: it steps aside until they are through. */
            if ((int)page_pool_used(&r->pool) <= s->n_pages)
                return error_set(ERR_BUG, "request %lld does not fit %u pages alone",
                                 (long long)s->p.index, r->pool.pages);
            sequence_remove(&r->active, s);
            TRY(rank_swap_out(r, s));
            sequence_push(&r->swapped, s);
        }
        s = r->active.head; /* the list has changed */
    }
    return OK;
}

static void fill_rows(struct rank *r)
{
    int mbs = r->sched_decode.micro_batches, i = 0;
    for (int k = 0; k < MODEL_MICROBATCHES; k++) r->model.mb[k].m = r->model.mb[k].segments = 0;
    for (struct sequence *s = r->active.head; s; s = s->next, i++) {
        int mb = i % mbs;
        struct microbatch *b = &r->model.mb[mb];
        int row = b->m++;
        r->row_seq[mb][row] = s;
        b->tokens[row] = s->out[s->n_out - 1];
        b->pos[row] = s->p.n_prompt + s->n_out - 1;
        b->len[row] = b->pos[row] + 1;
        b->pages[row] = s->pages;
    }
}

static enum status decode_head(void *arg, int mb)
{
    struct rank *r = arg;
    struct microbatch *b = &r->model.mb[mb];
    const struct model_config *c = r->model.cfg;
    for (int i = 0; i < b->m; i += r->model.logit_rows) {
        int n = b->m - i < r->model.logit_rows ? b->m - i : r->model.logit_rows;
        for (int k = 0; k < n; k++) r->pick_rows[k] = i + k;
        const float *logits = model_logits(&r->model, b, r->pick_rows, n);
        for (int k = 0; k < n; k++, logits += c->vocab) {
            struct sequence *s = r->row_seq[mb][i + k];
            struct sampling_params p = {s->p.temperature, s->p.top_p, s->p.top_k, s->p.seed};
            int32_t token = sampler_next(r->sampler, logits, &p, s->p.n_prompt + s->n_out);
            float logprob = s->logprob ? sampler_logprob(logits, c->vocab, token) : 0;
            sequence_append(s, token, logprob, c->eos, c->eos_count);
        }
    }
    return OK;
}

enum status rank_decode_step(struct rank *r)
{
    admit_waiting(r);
    TRY(secure_pages(r));
    fill_rows(r);
    int n = r->active.n;
    r->forward.layer_done = 0;
    r->forward.head = decode_head;
    r->forward.hook_arg = r;
    TRY(forward_step(&r->forward, &r->sched_decode, true));
    for (struct sequence *s = r->active.head, *next; s; s = next) {
        next = s->next;
        if (!s->stopped && s->n_out < s->p.max_tokens) continue;
        sequence_remove(&r->active, s);
        sequence_drop_pages(s, &r->pool);
        r->stats.decode_requests++;
        TRY(rank_send_done(r, s));
        sequence_free(s);
    }
    r->report.requests = r->report.tokens = n;
    r->stats.decode_tokens += n;
    return OK;
}
