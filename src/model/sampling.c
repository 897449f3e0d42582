/* sampling.c - selection of the next token. Candidates are sorted by (logit descending, id
 * ascending); probabilities are summed in that order, in double.
 */
#include "model/sampling.h"

#include "core/rng.h"

#include <math.h>
#include <stdlib.h>

struct candidate {
    float logit;
    int32_t id;
};

struct sampler {
    int vocab;
    struct candidate *list; /* [vocab] */
};

struct sampler *sampler_create(int vocab)
{
    struct sampler *s = malloc(sizeof *s);
    if (!s) return 0;
    s->vocab = vocab;
    s->list = malloc((size_t)vocab * sizeof *s->list);
    if (!s->list) {
        free(s);
        return 0;
    }
    return s;
}

void sampler_free(struct sampler *s)
{
    if (!s) return;
    free(s->list);
    free(s);
}

static int32_t greedy(const float *logits, int vocab)
{
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

static int by_logit(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Number of leading candidates that reach probability top_p of `total`. */
static int cut_top_p(const struct candidate *list, int n, double top_p, double total, float max,
                     double inv_t)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        sum += exp(((double)list[i].logit - (double)max) * inv_t);
        if (sum >= top_p * total) return i + 1;
    }
    return n;
}

int32_t sampler_next(struct sampler *s, const float *logits, const struct sampling_params *p,
                     int64_t position)
{
    if (p->temperature <= 0 || p->top_k == 1) return greedy(logits, s->vocab);
    for (int32_t i = 0; i < s->vocab; i++) s->list[i] = (struct candidate){logits[i], i};
    qsort(s->list, (size_t)s->vocab, sizeof *s->list, by_logit);
    int n = p->top_k > 0 && p->top_k < s->vocab ? p->top_k : s->vocab;
    double inv_t = 1.0 / (double)p->temperature, total = 0;
    float max = s->list[0].logit;
    for (int i = 0; i < n; i++) total += exp(((double)s->list[i].logit - (double)max) * inv_t);
    if (p->top_p < 1) {
        n = cut_top_p(s->list, n, (double)p->top_p, total, max, inv_t);
        total = 0;
        for (int i = 0; i < n; i++) total += exp(((double)s->list[i].logit - (double)max) * inv_t);
    }
    double at = rng_uniform(p->seed, (uint64_t)position) * total, sum = 0;
    for (int i = 0; i < n; i++) {
        sum += exp(((double)s->list[i].logit - (double)max) * inv_t);
        if (at < sum) return s->list[i].id;
    }
    return s->list[n - 1].id;
}

float sampler_logprob(const float *logits, int vocab, int32_t token)
{
    float max = logits[0];
    for (int i = 1; i < vocab; i++)
        if (logits[i] > max) max = logits[i];
    double sum = 0;
    for (int i = 0; i < vocab; i++) sum += exp((double)logits[i] - (double)max);
    return (float)((double)logits[token] - (double)max - log(sum));
}
