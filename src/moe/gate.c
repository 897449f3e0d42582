/* gate.c - which experts a token goes to, by the rules of model.md "Gate".
 *
 * Everything is decided in one fixed order per token: scores, group scores, kept groups, top-k,
 * weights. Ties go to the lower id, of groups as of experts. NaN is never above anything; a
 * token whose scores are all NaN gets the lowest ids and NaN weights.
 */
#include "moe/paths.h"

#include <math.h>

enum status moe_check_gate(const struct gate_params *p)
{
    bool sigmoid = p->kind == GATE_SIGMOID_NOAUX, grouped = p->kind != GATE_SOFTMAX_GREEDY;
    if (p->experts < 1 || p->experts > MOE_MAX_EXPERTS || p->topk < 1 || p->topk > MOE_MAX_TOPK ||
        p->topk > p->experts)
        return error_set(ERR_INPUT,
                         "n_routed_experts is %d and num_experts_per_tok %d: the gate takes 1 to "
                         "%d experts and a top-k of 1 to %d, at most the experts",
                         p->experts, p->topk, MOE_MAX_EXPERTS, MOE_MAX_TOPK);
    if (sigmoid && !p->bias)
        return error_set(ERR_INPUT, "a sigmoid gate needs e_score_correction_bias: the tensor is "
                                    "missing from the checkpoint");
    if (!sigmoid && p->norm_topk)
        return error_set(ERR_INPUT, "norm_topk_prob is true with a softmax gate: such a model is "
                                    "not known to exist; set it to false");
    if (p->n_group < 1 || p->experts % p->n_group)
        return error_set(ERR_INPUT, "n_group is %d: it must divide n_routed_experts %d", p->n_group,
                         p->experts);
    if (!grouped) return OK;
    int size = p->experts / p->n_group;
    if (sigmoid && size < 2)
        return error_set(ERR_INPUT, "n_group is %d with %d experts: a group needs at least two",
                         p->n_group, p->experts);
    if (p->topk_group < 1 || p->topk_group > p->n_group || p->topk > p->topk_group * size)
        return error_set(ERR_INPUT,
                         "topk_group is %d: expected 1 to n_group %d, with at least "
                         "num_experts_per_tok %d experts in the kept groups",
                         p->topk_group, p->n_group, p->topk);
    return OK;
}

/* NaN is above nothing, everything else above NaN. */
static bool above(float a, float b)
{
    return a > b || (isnan(b) && !isnan(a));
}

/* The best of n scores that is not taken yet; the lowest id wins a tie. */
static int best_free(int n, const float *score, const bool *taken)
{
    int best = -1;
    for (int i = 0; i < n; i++)
        if (!taken[i] && (best < 0 || above(score[i], score[best]))) best = i;
    return best;
}

/* Sum of the two best of n >= 2 scores: in each of WAYS interleaved parts (short chains, one vector),
 * then of all parts. */
static float two_best(int n, const float *score)
{
    enum { WAYS = 4 };
    float first[WAYS], second[WAYS];
    for (int w = 0; w < WAYS; w++) first[w] = second[w] = -INFINITY;
    for (int i = 0; i < n; i += WAYS)
        for (int w = 0; w < WAYS; w++) {
            float x = i + w < n ? score[i + w] : -INFINITY;
            float less = x > first[w] ? first[w] : x;
            first[w] = x > first[w] ? x : first[w];
            second[w] = less > second[w] ? less : second[w];
        }
    float best = -INFINITY, next = -INFINITY;
    for (int w = 0; w < 2 * WAYS; w++) {
        float x = w < WAYS ? first[w] : second[w - WAYS];
        float less = x > best ? best : x;
        best = x > best ? x : best;
        next = less > next ? less : next;
    }
    return best + next;
}

static float greatest(int n, const float *score)
{
    float best = -INFINITY;
    for (int i = 0; i < n; i++)
        if (score[i] > best) best = score[i];
    return best;
}

/* Gives every expert outside the topk_group best groups the score `excluded`. */
static void keep_groups(const struct gate_params *p, float *score, float excluded)
{
    int size = p->experts / p->n_group;
    float group[MOE_MAX_EXPERTS];
    bool kept[MOE_MAX_EXPERTS] = {false};
    for (int g = 0; g < p->n_group; g++)
        group[g] = p->kind == GATE_SIGMOID_NOAUX ? two_best(size, score + g * size)
                                                 : greatest(size, score + g * size);
    for (int i = 0; i < p->topk_group; i++) kept[best_free(p->n_group, group, kept)] = true;
    for (int e = 0; e < p->experts; e++)
        if (!kept[e / size]) score[e] = excluded;
}

static void softmax_scores(const struct gate_params *p, const float *logits,
                           const struct gate_rows *rows, float *score)
{
    float sum = 0;
    rows->exp_minus(p->experts, logits, greatest(p->experts, logits), score);
    for (int e = 0; e < p->experts; e++) sum += score[e];
    for (int e = 0; e < p->experts; e++) score[e] /= sum;
}

/* Top-k by `choice`; weights come from `score`. One pass keeps the k best so far in order; most
 * experts fail the first comparison. */
static void choose(const struct gate_params *p, const float *choice, const float *score,
                   int32_t *ids, float *weights)
{
    float best[MOE_MAX_TOPK], sum = 0;
    int found = 0;
    for (int e = 0; e < p->experts; e++) {
        if (found == p->topk && !above(choice[e], best[found - 1])) continue;
        int at = found < p->topk ? found++ : found - 1;
        for (; at > 0 && above(choice[e], best[at - 1]); at--) {
            best[at] = best[at - 1];
            ids[at] = ids[at - 1];
        }
        best[at] = choice[e];
        ids[at] = e;
    }
    for (int t = 0; t < p->topk; t++) {
        weights[t] = score[ids[t]];
        sum += weights[t];
    }
    for (int t = 0; t < p->topk; t++) {
        if (p->norm_topk) weights[t] /= sum + 1e-20f;
        weights[t] *= p->scale;
    }
}

static void gate_token(const struct gate_params *p, const float *logits,
                       const struct gate_rows *rows, int32_t *ids, float *weights)
{
    float score[MOE_MAX_EXPERTS], choice[MOE_MAX_EXPERTS];
    if (p->kind == GATE_SIGMOID_NOAUX) {
        rows->sigmoid(p->experts, logits, score);
        for (int e = 0; e < p->experts; e++) choice[e] = score[e] + p->bias[e];
        if (p->topk_group < p->n_group) keep_groups(p, choice, -INFINITY);
        choose(p, choice, score, ids, weights);
        return;
    }
    softmax_scores(p, logits, rows, score);
    if (p->kind == GATE_SOFTMAX_GROUP && p->topk_group < p->n_group) keep_groups(p, score, 0);
    choose(p, score, score, ids, weights);
}

struct gate_call {
    const struct gate_params *p;
    const struct gate_rows *rows;
    const float *logits;
    int ldl;
    int32_t *ids;
    float *weights;
};

static void gate_run(void *arg, int first, int end, struct lane *poll)
{
    const struct gate_call *c = arg;
    int topk = c->p->topk;
    for (int i = first; i < end; i++) {
        gate_token(c->p, c->logits + (int64_t)i * c->ldl, c->rows, c->ids + (int64_t)i * topk,
                   c->weights + (int64_t)i * topk);
        lane_poll(poll);
    }
}

void gate_tokens(struct lane *lane, int m, const float *logits, int ldl,
                 const struct gate_params *p, const struct gate_rows *rows, int32_t *ids,
                 float *weights)
{
    enum { GRAIN = 8 }; /* tokens, a few microseconds */
    struct gate_call c = {p, rows, logits, ldl, ids, weights};
    lane_rows(lane, m, GRAIN, gate_run, &c);
}
