/* prefill.c - a prefill step: fill the chunk, cut it into micro-batches, run, send KV on, sample
 * first tokens.
 */
#include "balance/prefill_balance.h"
#include "engine/rank.h"

#include <math.h>
#include <stdlib.h>

enum { MAX_PIECES = 1024 };

/* Pages for the whole prompt, cached ones shared. A request that scores its prompt needs every
 * logit and so reuses nothing. */
static bool admit(struct rank *r, struct sequence *s)
{
    if (s->admitted) return true;
    if (r->swapped.n && r->active.n + r->waiting.n) return false; /* they come back first */
    int page_tokens = r->job->kv.page_tokens;
    int need = (int)pages_for((uint32_t)s->p.n_prompt, (uint32_t)page_tokens);
    uint32_t cached = 0;
    bool use = r->use_prefix && !s->p.prompt_logprobs;
    if (use) cached = prefix_index_lookup(&r->prefix, s->prompt, (uint32_t)s->p.n_prompt, s->pages);
    int rest = need - (int)cached;
    if (!rank_alloc_pages(r, rest, s->pages + cached) &&
        !(r->disk && rank_disk_make_room(r) && rank_alloc_pages(r, rest, s->pages + cached))) {
        page_pool_unref_all(&r->pool, s->pages, cached);
        return false;
    }
    if (r->disk && use)
        s->f.cached_tokens_disk = (int)rank_disk_admitted(r, s, cached) * page_tokens;
    s->n_pages = need;
    s->computed = s->f.cached_tokens = (int)cached * page_tokens;
    s->admitted = true;
    return true;
}

static uint32_t pages_to_have(const struct rank *r)
{
    return r->pool.n_free + (r->use_prefix ? prefix_index_evictable(&r->prefix) : 0);
}

bool rank_can_prefill(struct rank *r)
{
    struct sequence *s = r->queue.head;
    while (s && r->disk && !rank_disk_ready(r, s)) s = s->next;
    if (!s) return false;
    if (s->admitted || r->active.n + r->waiting.n + r->swapped.n == 0) return true;
    /* A mixed rank whose pages are all in use decodes until some come back. */
    if (r->swapped.n) return r->active.n + r->waiting.n == 0;
    uint32_t need = pages_for((uint32_t)s->p.n_prompt, (uint32_t)r->job->kv.page_tokens);
    return pages_to_have(r) >= need ||
           (r->disk && rank_disk_make_room(r) && pages_to_have(r) >= need);
}

/* Rows of one piece into a micro-batch. */
static void add_segment(struct rank *r, int mb, struct sequence *s, int pos0, int n)
{
    if (n == 0) return;
    struct microbatch *b = &r->model.mb[mb];
    r->row_seq[mb][b->segments] = s;
    b->segment[b->segments++] =
        (struct segment){.row0 = b->m, .n = n, .pos0 = pos0, .pages = s->pages};
    for (int i = 0; i < n; i++) {
        int row = b->m + i;
        b->tokens[row] = s->prompt[pos0 + i];
        b->pos[row] = pos0 + i;
        b->len[row] = pos0 + i + 1;
        b->pages[row] = s->pages;
    }
    b->m += n;
}

static void fill_microbatches(struct rank *r, struct sequence *const *seq,
                              const struct prefill_piece *piece, int n)
{
    /* Equal attention work, as the published system cuts; tokens count a little so that short
     * prompts are shared out too. */
    struct prefill_weights w = prefill_weights_default();
    struct microbatch_cut cut = {n, 0};
    if (r->sched_prefill.micro_batches > 1) cut = microbatch_cut(&w, piece, n);
    for (int i = 0; i < n; i++) {
        int pos0 = (int)piece[i].pos0, len = (int)piece[i].n;
        int first = i < cut.piece ? len : i == cut.piece ? (int)cut.tokens : 0;
        add_segment(r, 0, seq[i], pos0, first);
        add_segment(r, 1, seq[i], pos0 + first, len - first);
    }
}

/* The chunk of this step: requests in order, as far as tokens and pages reach. The full pages that
 * a piece completes are in the index before the next request is looked up: a later piece of the
 * same step may stand on them, because a layer writes the keys of a whole micro-batch, and of the
 * micro-batch before, ahead of its attention. So a prefix is computed once even where all who
 * share it arrive together. */
static int fill_chunk(struct rank *r, struct sequence **seq, struct prefill_piece *take)
{
    int n = 0;
    uint32_t room = (uint32_t)r->cfg->chunk_tokens;
    for (struct sequence *s = r->queue.head; s && n < MAX_PIECES && room; s = s->next) {
        if (r->disk && !rank_disk_ready(r, s)) continue; /* its pages are coming from disk */
        if (!admit(r, s)) break;
        struct prefill_piece want = {(uint32_t)s->computed,
                                     (uint32_t)(s->p.n_prompt - s->computed)};
        prefill_chunk_fill(&want, 1, room, 1, &take[n]);
        room -= take[n].n;
        if (r->use_prefix && !s->p.prompt_logprobs)
            prefix_index_insert(&r->prefix, s->prompt, take[n].pos0 + take[n].n, s->pages);
        if (isnan(s->f.t_prefill_start)) s->f.t_prefill_start = rank_now(r);
        seq[n++] = s;
    }
    return n;
}

/* After a layer: pages that this micro-batch completed (the last one also when only partly
 * filled) go to the decode rank; with them, the first time, the cached ones before. */
static enum status send_layer(void *arg, int mb, int layer)
{
    struct rank *r = arg;
    const struct microbatch *b = &r->model.mb[mb];
    int page_tokens = r->job->kv.page_tokens;
    for (int i = 0; i < b->segments; i++) {
        struct sequence *s = r->row_seq[mb][i];
        if (s->p.decode_rank < 0 || s->p.decode_rank == r->world_rank) continue;
        const struct segment *g = &b->segment[i];
        int from = g->pos0 == s->f.cached_tokens ? 0 : g->pos0 / page_tokens;
        int end = g->pos0 + g->n, to = end / page_tokens;
        if (end == s->p.n_prompt) to = s->n_pages;
        if (to > from) TRY(rank_send_pages(r, s, layer, from, to - from));
    }
    return OK;
}

static void take_token(struct rank *r, struct sequence *s, const float *logits)
{
    struct sampling_params p = {s->p.temperature, s->p.top_p, s->p.top_k, s->p.seed};
    const struct model_config *c = r->model.cfg;
    int32_t token = sampler_next(r->sampler, logits, &p, s->p.n_prompt + s->n_out);
    float logprob = s->logprob ? sampler_logprob(logits, c->vocab, token) : 0;
    if (s->n_out == 0) {
        s->f.first_token = token;
        s->f.first_logprob = logprob;
        s->f.t_first_token = rank_now(r);
    }
    sequence_append(s, token, logprob, c->eos, c->eos_count);
}

/* Logits of the rows of segment g: all for a scored prompt, else the last of a finished one. */
static enum status segment_logits(struct rank *r, int mb, const struct segment *g,
                                  struct sequence *s)
{
    struct microbatch *b = &r->model.mb[mb];
    int end = g->pos0 + g->n, vocab = r->model.cfg->vocab;
    bool last = end == s->p.n_prompt && s->p.max_tokens > 0;
    int first = s->p.prompt_logprobs ? 0 : g->n - 1;
    if (!s->p.prompt_logprobs && !last) return OK;
    for (int i = first; i < g->n; i += r->model.logit_rows) {
        int n = g->n - i < r->model.logit_rows ? g->n - i : r->model.logit_rows;
        for (int k = 0; k < n; k++) r->pick_rows[k] = g->row0 + i + k;
        const float *logits = model_logits(&r->model, b, r->pick_rows, n);
        for (int k = 0; k < n; k++, logits += vocab) {
            int next = g->pos0 + i + k + 1;
            if (s->prompt_logprob && next < s->p.n_prompt)
                s->prompt_logprob[next] = sampler_logprob(logits, vocab, s->prompt[next]);
            if (last && next == s->p.n_prompt) take_token(r, s, logits);
        }
    }
    return OK;
}

static enum status prefill_head(void *arg, int mb)
{
    struct rank *r = arg;
    const struct microbatch *b = &r->model.mb[mb];
    for (int i = 0; i < b->segments; i++)
        TRY(segment_logits(r, mb, &b->segment[i], r->row_seq[mb][i]));
    return OK;
}

/* The prompt is computed: answer, or hand over to decoding here or elsewhere. */
static enum status finish_prompt(struct rank *r, struct sequence *s)
{
    sequence_remove(&r->queue, s);
    r->stats.prefill_requests++;
    TRY(rank_send_first(r, s));
    if (s->stopped || s->n_out >= s->p.max_tokens) {
        TRY(rank_send_done(r, s));
        sequence_drop_pages(s, &r->pool);
        sequence_free(s);
        return OK;
    }
    if (s->p.decode_rank == r->world_rank) {
        rank_decode_add(r, s);
        return OK;
    }
    TRY(rank_send_start(r, s));
    sequence_drop_pages(s, &r->pool);
    sequence_free(s);
    return OK;
}

enum status rank_prefill_step(struct rank *r)
{
    struct sequence *seq[MAX_PIECES];
    struct prefill_piece piece[MAX_PIECES];
    for (int i = 0; i < MODEL_MICROBATCHES; i++) r->model.mb[i].m = r->model.mb[i].segments = 0;
    int n = fill_chunk(r, seq, piece);
    fill_microbatches(r, seq, piece, n);
    r->forward.layer_done = send_layer;
    r->forward.head = prefill_head;
    r->forward.hook_arg = r;
    TRY(forward_step(&r->forward, &r->sched_prefill, false));
    for (int i = 0; i < n; i++) {
        struct sequence *s = seq[i];
        s->computed += (int)piece[i].n;
        r->stats.prefill_tokens += piece[i].n;
        r->report.tokens += (int)piece[i].n;
        if (r->disk) rank_disk_offer(r, s);
        if (s->computed == s->p.n_prompt) TRY(finish_prompt(r, s));
    }
    r->report.requests = n;
    return OK;
}
