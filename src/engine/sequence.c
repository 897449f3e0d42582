/* sequence.c */
#include "engine/sequence.h"

#include <stdlib.h>
#include <string.h>

struct sequence *sequence_new(const struct wire_params *p, int page_tokens)
{
    struct sequence *s = calloc(1, sizeof *s);
    if (!s) return 0;
    s->p = *p;
    s->max_pages = (p->n_prompt + p->max_tokens + page_tokens - 1) / page_tokens + 1;
    s->pages = calloc((size_t)s->max_pages, sizeof *s->pages);
    s->out = calloc((size_t)p->max_tokens + 1, sizeof *s->out);
    if (p->logprobs) s->logprob = calloc((size_t)p->max_tokens + 1, sizeof *s->logprob);
    if (p->prompt_logprobs)
        s->prompt_logprob = calloc((size_t)p->n_prompt + 1, sizeof *s->prompt_logprob);
    if (!s->pages || !s->out || (p->logprobs && !s->logprob) ||
        (p->prompt_logprobs && !s->prompt_logprob)) {
        sequence_free(s);
        return 0;
    }
    return s;
}

void sequence_free(struct sequence *s)
{
    if (!s) return;
    free(s->prompt);
    free(s->pages);
    free(s->out);
    free(s->logprob);
    free(s->prompt_logprob);
    free(s->chain);
    free(s->host_kv);
    free(s);
}

static bool is_stop(const struct sequence *s, int32_t token, const int *eos, int n_eos)
{
    for (int i = 0; i < s->p.n_stop; i++)
        if (s->p.stop[i] == token) return true;
    for (int i = 0; !s->p.ignore_eos && i < n_eos; i++)
        if (eos[i] == token) return true;
    return false;
}

bool sequence_append(struct sequence *s, int32_t token, float logprob, const int *eos, int n_eos)
{
    s->out[s->n_out] = token;
    if (s->logprob) s->logprob[s->n_out] = logprob;
    s->n_out++;
    s->stopped = is_stop(s, token, eos, n_eos);
    return s->stopped || s->n_out >= s->p.max_tokens;
}

void sequence_drop_pages(struct sequence *s, struct page_pool *pool)
{
    page_pool_unref_all(pool, s->pages, (uint32_t)s->n_pages);
    s->n_pages = 0;
}

void sequence_list_init(struct sequence_list *l)
{
    l->head = 0;
    l->tail = &l->head;
    l->n = 0;
}

void sequence_push(struct sequence_list *l, struct sequence *s)
{
    s->next = 0;
    *l->tail = s;
    l->tail = &s->next;
    l->n++;
}

struct sequence *sequence_pop(struct sequence_list *l)
{
    struct sequence *s = l->head;
    if (s) sequence_remove(l, s);
    return s;
}

bool sequence_remove(struct sequence_list *l, struct sequence *s)
{
    for (struct sequence **at = &l->head; *at; at = &(*at)->next) {
        if (*at != s) continue;
        *at = s->next;
        if (l->tail == &s->next) l->tail = at;
        s->next = 0;
        l->n--;
        return true;
    }
    return false;
}

struct sequence *sequence_find(const struct sequence_list *l, int64_t index)
{
    for (struct sequence *s = l->head; s; s = s->next)
        if (s->p.index == index) return s;
    return 0;
}
