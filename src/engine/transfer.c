/* transfer.c - KV pages between ranks and between pool and host memory, and the messages around a
 * request.
 */
#include "core/clock.h"
#include "engine/rank.h"
#include "engine/watch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static char *page_at(const struct rank *r, int layer, int page)
{
    return model_cache_layer(&r->model, layer) + (size_t)page * r->page_layer_bytes;
}

bool rank_alloc_pages(struct rank *r, int n, int32_t *out)
{
    if (n <= 0) return true;
    bool ok = r->use_prefix ? prefix_index_alloc(&r->prefix, (uint32_t)n, out)
                            : page_pool_alloc(&r->pool, (uint32_t)n, out);
    int64_t used = page_pool_used(&r->pool);
    if (used > r->stats.kv_pages_peak) r->stats.kv_pages_peak = used;
    return ok;
}

/* ---- sending -------------------------------------------------------------------------------- */

enum status rank_send_pages(struct rank *r, struct sequence *s, int layer, int page0, int n)
{
    enum { PAGES_A_MESSAGE = 16 };
    watch_point("transfer");
    struct ctl_part part[PAGES_A_MESSAGE + 1];
    for (int at = page0; at < page0 + n; at += PAGES_A_MESSAGE) {
        int count = page0 + n - at < PAGES_A_MESSAGE ? page0 + n - at : PAGES_A_MESSAGE;
        struct wire_kv kv = {s->p.index, layer, at, count, s->p.n_prompt, s->p.max_tokens, 0};
        part[0] = (struct ctl_part){&kv, sizeof kv};
        for (int i = 0; i < count; i++)
            part[i + 1] =
                (struct ctl_part){page_at(r, layer, s->pages[at + i]), r->page_layer_bytes};
        TRY(ctl_send(r->ctl, s->p.decode_rank, CTL_KV, part, count + 1));
        s->f.kv_messages++;
    }
    return OK;
}

enum status rank_send_start(struct rank *r, const struct sequence *s)
{
    struct wire_start w = {s->p, s->f};
    struct ctl_part part[2] = {{&w, sizeof w}, {0, 0}};
    if (s->prompt_logprob)
        part[1] = (struct ctl_part){s->prompt_logprob, (size_t)s->p.n_prompt * sizeof(float)};
    return ctl_send(r->ctl, s->p.decode_rank, CTL_START, part, 2);
}

enum status rank_send_first(struct rank *r, const struct sequence *s)
{
    struct ctl_part part = {&s->p.ticket, sizeof s->p.ticket};
    return ctl_send(r->ctl, 0, CTL_FIRST, &part, 1);
}

enum status rank_send_done(struct rank *r, const struct sequence *s)
{
    struct wire_done w;
    memset(&w, 0, sizeof w);
    w.p = s->p;
    w.f = s->f;
    w.n_out = s->n_out;
    w.stopped = s->stopped;
    w.t_finish = rank_now(r);
    struct ctl_part part[4] = {{&w, sizeof w}, {s->out, (size_t)s->n_out * sizeof *s->out}};
    int n = 2;
    if (s->logprob)
        part[n++] = (struct ctl_part){s->logprob, (size_t)s->n_out * sizeof *s->logprob};
    if (s->prompt_logprob)
        part[n++] = (struct ctl_part){s->prompt_logprob, (size_t)s->p.n_prompt * sizeof(float)};
    return ctl_send(r->ctl, 0, CTL_DONE, part, n);
}

/* ---- receiving ------------------------------------------------------------------------------ */

/* The sequence that messages of a request belong to; made by the first of them. KV goes to pages
 * if the pool has enough for the whole prompt, else to host memory until it has. */
static struct sequence *arriving(struct rank *r, const struct wire_params *p)
{
    struct sequence *s = sequence_find(&r->arriving, p->index);
    if (s) return s;
    s = sequence_new(p, r->job->kv.page_tokens);
    if (!s) {
        r->failed = error_set(ERR_RESOURCE, "no memory for request %lld", (long long)p->index);
        return 0;
    }
    int need = (int)pages_for((uint32_t)p->n_prompt, (uint32_t)r->job->kv.page_tokens);
    if (r->swapped.n == 0 && rank_alloc_pages(r, need, s->pages)) {
        s->n_pages = need;
    } else {
        s->host_kv = malloc((size_t)r->model.cfg->layers * (size_t)need * r->page_layer_bytes);
        s->n_pages = need;
        if (!s->host_kv)
            r->failed = error_set(ERR_RESOURCE, "no memory to park the KV of request %lld",
                                  (long long)p->index);
    }
    sequence_push(&r->arriving, s);
    return s->n_pages && (s->host_kv || r->failed == OK) ? s : 0;
}

static void maybe_ready(struct rank *r, struct sequence *s)
{
    if (!s->started || s->kv_received < s->f.kv_messages) return;
    sequence_remove(&r->arriving, s);
    rank_decode_add(r, s);
}

static char *host_page(const struct rank *r, const struct sequence *s, int layer, int i)
{
    return s->host_kv + ((size_t)layer * (size_t)s->n_pages + (size_t)i) * r->page_layer_bytes;
}

void rank_receive_kv(struct rank *r, const void *data, size_t bytes)
{
    struct wire_kv kv;
    memcpy(&kv, data, sizeof kv);
    (void)bytes;
    struct wire_params p;
    memset(&p, 0, sizeof p);
    p.index = kv.index;
    p.n_prompt = kv.n_prompt;
    p.max_tokens = kv.max_tokens;
    struct sequence *s = arriving(r, &p);
    if (!s) return;
    const char *src = (const char *)data + sizeof kv;
    for (int i = 0; i < kv.n_pages; i++, src += r->page_layer_bytes) {
        int at = kv.page0 + i;
        char *dst = s->host_kv ? host_page(r, s, kv.layer, at) : page_at(r, kv.layer, s->pages[at]);
        memcpy(dst, src, r->page_layer_bytes);
    }
    s->kv_received++;
    maybe_ready(r, s);
}

void rank_receive_start(struct rank *r, const void *data, size_t bytes)
{
    struct wire_start w;
    memcpy(&w, data, sizeof w);
    struct sequence *s = arriving(r, &w.p);
    if (!s) return;
    s->p = w.p;
    s->f = w.f;
    s->started = true;
    if (w.p.logprobs && !s->logprob)
        s->logprob = calloc((size_t)w.p.max_tokens + 1, sizeof *s->logprob);
    if (w.p.prompt_logprobs && !s->prompt_logprob)
        s->prompt_logprob = calloc((size_t)w.p.n_prompt + 1, sizeof *s->prompt_logprob);
    if ((w.p.logprobs && !s->logprob) || (w.p.prompt_logprobs && !s->prompt_logprob)) {
        r->failed = error_set(ERR_RESOURCE, "no memory for request %lld", (long long)w.p.index);
        return;
    }
    if (s->prompt_logprob)
        memcpy(s->prompt_logprob, (const char *)data + sizeof w, bytes - sizeof w);
    const struct model_config *c = r->model.cfg;
    sequence_append(s, w.f.first_token, w.f.first_logprob, c->eos, c->eos_count);
    maybe_ready(r, s);
}

/* ---- host memory ---------------------------------------------------------------------------- */

enum status rank_swap_out(struct rank *r, struct sequence *s)
{
    int layers = r->model.cfg->layers;
    s->host_kv = malloc((size_t)layers * (size_t)s->n_pages * r->page_layer_bytes);
    if (!s->host_kv)
        return error_set(ERR_RESOURCE, "no host memory to move %d KV pages out", s->n_pages);
    for (int l = 0; l < layers; l++)
        for (int i = 0; i < s->n_pages; i++)
            memcpy(host_page(r, s, l, i), page_at(r, l, s->pages[i]), r->page_layer_bytes);
    page_pool_unref_all(&r->pool, s->pages, (uint32_t)s->n_pages);
    r->stats.swaps++;
    return OK;
}

bool rank_swap_in(struct rank *r, struct sequence *s)
{
    int layers = r->model.cfg->layers;
    /* One page more than it had, so that it does not go out again in the same step. */
    bool others = r->active.n > 0;
    if (others && r->pool.n_free < (uint32_t)s->n_pages + 1 &&
        (!r->use_prefix ||
         r->pool.n_free + prefix_index_evictable(&r->prefix) < (uint32_t)s->n_pages + 1))
        return false;
    if (!rank_alloc_pages(r, s->n_pages, s->pages)) return false;
    for (int l = 0; l < layers; l++)
        for (int i = 0; i < s->n_pages; i++)
            memcpy(page_at(r, l, s->pages[i]), host_page(r, s, l, i), r->page_layer_bytes);
    free(s->host_kv);
    s->host_kv = 0;
    return true;
}
