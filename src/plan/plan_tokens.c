/* plan_tokens.c - see plan_tokens.h. */
#include "plan/plan_tokens.h"

#include "kvcache/prefix_index.h"
#include "requests/token_file.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_READ = 200000, JOURNAL_BYTES = 8 };

/* Hashes of full pages seen so far: open addressing, never more than half full. */
struct page_set {
    struct hash128 *at; /* [size]; {0, 0}: free */
    size_t size, n;
};

static bool same(struct hash128 a, struct hash128 b)
{
    return a.lo == b.lo && a.hi == b.hi;
}

static struct hash128 *find(const struct page_set *s, struct hash128 h)
{
    size_t i = (size_t)h.lo & (s->size - 1);
    while (!same(s->at[i], PAGE_HASH_ROOT) && !same(s->at[i], h)) i = (i + 1) & (s->size - 1);
    return &s->at[i];
}

static enum status grow(struct page_set *s)
{
    if (s->at && 2 * s->n < s->size) return OK;
    struct page_set more = {.size = s->size ? 2 * s->size : 4096, .n = s->n};
    more.at = calloc(more.size, sizeof *more.at);
    if (!more.at) return error_set(ERR_RESOURCE, "no memory to look for common prefixes");
    for (size_t i = 0; i < s->size; i++)
        if (!same(s->at[i], PAGE_HASH_ROOT)) *find(&more, s->at[i]) = s->at[i];
    free(s->at);
    *s = more;
    return OK;
}

/* Tokens in full pages that an earlier prompt had too; at least one is left to compute. */
static enum status count_cached(struct page_set *s, const struct request *r, uint32_t page_tokens,
                                int32_t *cached)
{
    struct hash128 h = PAGE_HASH_ROOT;
    uint32_t n = (uint32_t)r->n_tokens;
    bool known = true;
    *cached = 0;
    for (uint32_t at = 0; at + page_tokens <= n; at += page_tokens) {
        h = page_hash(r->tokens + at, page_tokens, h);
        TRY(grow(s));
        struct hash128 *place = find(s, h);
        known = known && same(*place, h);
        if (known && at + page_tokens < n) *cached = (int32_t)(at + page_tokens);
        if (!same(*place, h)) s->n++;
        *place = h;
    }
    return OK;
}

static enum status add(struct plan_tokens *t, struct page_set *pages, const struct job *job,
                       const struct request *r, int64_t stands_for)
{
    if (r->error[0]) {
        t->bad += stands_for;
        if (!t->first_error[0])
            snprintf(t->first_error, sizeof t->first_error, "%.40s: %.250s", r->custom_id,
                     r->error);
        return OK;
    }
    struct engine_request q = {.prompt = r->n_tokens,
                               .output = r->max_tokens,
                               .sampled = r->temperature > 0,
                               .logprobs = r->logprobs};
    bool prefix = job->kv.prefix_cache == JOB_PREFIX_MEMORY && !r->prompt_logprobs;
    if (prefix) TRY(count_cached(pages, r, (uint32_t)job->kv.page_tokens, &q.cached));
    if (q.prompt > t->longest_prompt) t->longest_prompt = q.prompt;
    if (q.prompt + q.output > t->longest) t->longest = q.prompt + q.output;
    t->prompt += (double)q.prompt * (double)stands_for;
    t->cached += (double)q.cached * (double)stands_for;
    t->output += (double)q.output * (double)stands_for;
    t->list[t->n++] = q;
    return OK;
}

static enum status read_all(struct token_file *tf, const struct job *job, struct plan_tokens *t)
{
    struct page_set pages = {0};
    struct request r;
    memset(&r, 0, sizeof r);
    enum status st = OK;
    for (int64_t i = 0; i < t->requests && st == OK; i += t->step) {
        int64_t stands_for = t->requests - i < t->step ? t->requests - i : t->step;
        st = token_file_get(tf, i, &r);
        if (st == OK) st = add(t, &pages, job, &r, stands_for);
    }
    request_free(&r);
    free(pages.at);
    return st;
}

enum status plan_tokens_read(const struct job *job, const struct model_config *model,
                             struct plan_tokens *t)
{
    struct request_limits limits = {model->vocab, model->max_positions, 0};
    struct token_file *tf = 0;
    memset(t, 0, sizeof *t);
    TRY(token_file_open(job->tokens, &job->sampling, &limits, &tf));
    t->requests = token_file_count(tf);
    t->step = t->requests / MOST_READ + 1;
    t->index_bytes = (double)token_file_bytes(tf) + JOURNAL_BYTES * (double)t->requests;
    t->list = calloc((size_t)(t->requests / t->step) + 1, sizeof *t->list);
    enum status st =
        t->list ? read_all(tf, job, t) : error_set(ERR_RESOURCE, "no memory to list the requests");
    token_file_close(tf);
    if (st != OK) plan_tokens_free(t);
    return st;
}

void plan_tokens_free(struct plan_tokens *t)
{
    free(t->list);
    memset(t, 0, sizeof *t);
}

int64_t plan_tokens_beyond(const struct plan_tokens *t, int64_t pool_tokens)
{
    int64_t n = 0;
    for (int64_t i = 0; i < t->n; i++) {
        const struct engine_request *q = &t->list[i];
        n += q->prompt + (int64_t)(q->output > 1 ? q->output - 1 : 0) > pool_tokens;
    }
    return n * t->step;
}
