/* router_order.c - which request goes out next: by file, or by prefix (kvcache/prefix_order) with a
 * part of the file read ahead.
 *
 * A request is read twice, once for its prefix and once to be sent; between the two it costs a
 * place in the window and no copy of its prompt.
 */
#include "engine/router_state.h"
#include "kvcache/prefix_index.h"

#include <stdlib.h>

/* Pages of all prompts in the window: 16 MiB of tree, 16 M tokens of text. */
enum { MOST_PAGES = 1 << 18 };
/* Tokens read ahead before the first request goes out, and for each one that has gone: ranks get
 * work at once, and the window is full soon. */
enum { FIRST_AHEAD = 1 << 20, FURTHER_AHEAD = 16 };

enum status router_order_init(struct router *r)
{
    const struct job *job = r->s.job;
    if (job->order != JOB_ORDER_PREFIX) return OK;
    struct router_ahead *a = &r->ahead;
    struct prefix_order_limits limits = {
        .window = job->order_window,
        .max_pages = MOST_PAGES,
        .delay = 4 * (int64_t)job->order_window,
        .lanes = r->n_prefill,
    };
    uint64_t pages = job->kv.prefix_cache == JOB_PREFIX_OFF
                         ? 0
                         : (uint64_t)r->s.prefill_pages * (uint64_t)r->n_prefill;
    TRY(prefix_order_create(&limits, &a->order));
    TRY(prefix_shadow_init(&a->in_file, pages));
    return prefix_shadow_init(&a->as_sent, pages);
}

void router_order_free(struct router *r)
{
    struct router_ahead *a = &r->ahead;
    prefix_order_free(a->order);
    prefix_shadow_free(&a->in_file);
    prefix_shadow_free(&a->as_sent);
    request_free(&a->request);
    free(a->chain);
}

/* Page hashes of the prompt into a->chain; *pages 0 for requests that neither use nor fill the
 * cache. */
static enum status hash_prompt(struct router *r, const struct request *q, int32_t *pages)
{
    struct router_ahead *a = &r->ahead;
    int32_t pt = r->s.job->kv.page_tokens;
    *pages = q->error[0] || q->prompt_logprobs ? 0 : q->n_tokens / pt;
    if (*pages > a->cap_chain) {
        struct hash128 *chain = realloc(a->chain, (size_t)*pages * sizeof *chain);
        if (!chain) return error_set(ERR_RESOURCE, "no memory for the pages of a prompt");
        a->chain = chain;
        a->cap_chain = *pages;
    }
    struct hash128 hash = PAGE_HASH_ROOT;
    for (int32_t p = 0; p < *pages; p++)
        a->chain[p] = hash = page_hash(q->tokens + (size_t)p * (size_t)pt, (uint32_t)pt, hash);
    return OK;
}

static void model_cache(const struct router *r, struct prefix_shadow *s, const struct request *q,
                        int32_t pages)
{
    if (pages == 0) return;
    prefix_shadow_prompt(s, r->ahead.chain, pages, (q->n_tokens - 1) / r->s.job->kv.page_tokens);
}

static void skip_finished(struct router *r)
{
    while (r->next < r->count && journal_has(r->s.journal, r->next)) r->next++;
}

static enum status read_ahead(struct router *r)
{
    struct router_ahead *a = &r->ahead;
    for (;;) {
        skip_finished(r);
        if (r->next == r->count || !prefix_order_wants(a->order)) return OK;
        if (a->tokens_read > FIRST_AHEAD + FURTHER_AHEAD * a->tokens_taken) return OK;
        int32_t pages = 0;
        TRY(token_file_get(r->s.tokens, r->next, &a->request));
        TRY(hash_prompt(r, &a->request, &pages));
        TRY(prefix_order_push(a->order, r->next, a->chain, pages));
        model_cache(r, &a->in_file, &a->request, pages);
        a->tokens_read += a->request.n_tokens;
        r->next++;
    }
}

enum status router_order_next(struct router *r)
{
    struct router_ahead *a = &r->ahead;
    int64_t index;
    if (!a->order) {
        skip_finished(r);
        if (r->next == r->count) return OK;
        index = r->next++;
    } else {
        /* The rank with the least work gets the next request that suits it. */
        router_find_room(r, 1, 1);
        int lane = prefill_balance_pick(&r->prefill, 1, 0, r->may);
        if (lane < 0) {
            r->blocked = true;
            return OK;
        }
        TRY(read_ahead(r));
        index = prefix_order_take(a->order, lane);
        if (index < 0) return OK;
    }
    TRY(token_file_get(r->s.tokens, index, &r->pending));
    a->tokens_taken += r->pending.n_tokens;
    r->have_pending = true;
    return OK;
}

void router_order_sent(struct router *r, int prefill)
{
    struct router_ahead *a = &r->ahead;
    int32_t pages = 0;
    if (!a->order) return;
    prefix_order_went(a->order, prefill);
    /* The report is worth less than the job: a prompt that cannot be hashed is left out of it. */
    if (hash_prompt(r, &r->pending, &pages) == OK)
        model_cache(r, &a->as_sent, &r->pending, pages);
    else
        error_clear();
}

struct router_order_report router_order_report(const struct router *r)
{
    int64_t pt = r->s.job->kv.page_tokens;
    return (struct router_order_report){
        .by_prefix = r->ahead.order != 0,
        .hit_in_file = (int64_t)r->ahead.in_file.hit_pages * pt,
        .hit_as_sent = (int64_t)r->ahead.as_sent.hit_pages * pt,
    };
}
