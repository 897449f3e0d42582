/* workload_fit.c - the four targets fall one after the other: the answers' mean and spread follow
 * from output and KV alone; then turns and first message by a damped fixed point on the same
 * sampled sessions, started from the closed form without page rounding and limits. */
#include "cluster/workload_fit.h"

#include <math.h>

enum { FIT_SESSIONS = 400000, FIT_ROUNDS = 12 };

static enum status possible(const struct workload_targets *t)
{
    if (!(t->prompt >= 1) || !(t->output >= 1))
        return error_set(ERR_INPUT,
                         "fit: targets prompt %g and output %g: expected at least 1 token each",
                         t->prompt, t->output);
    if (!(t->hit_ratio >= 0 && t->hit_ratio < 0.98))
        return error_set(ERR_INPUT, "fit: target hit ratio %g: expected 0 to 0.98", t->hit_ratio);
    double least = t->prompt + (t->output - 1) / 2;
    if (!(t->kv_per_output >= least))
        return error_set(ERR_INPUT,
                         "fit: target KV per output token %g is impossible: a mean prompt of %g "
                         "and a mean output of %g give at least %g even if all answers were "
                         "equally long",
                         t->kv_per_output, t->prompt, t->output, least);
    return OK;
}

/* The log-sigma at which mean prompt + answers' own part equals the KV target. */
static enum status fit_sigma(const struct workload_targets *t, struct session_params *s)
{
    struct draw_table answers;
    double z[DRAW_ENTRIES], lo = 0, hi = 2.5;
    workload_quantiles(z);
    for (int i = 0; i < 40; i++) {
        double sum = 0, square = 0;
        s->output_sigma = 0.5 * (lo + hi);
        workload_output_table(s, z, &answers);
        for (int k = 0; k < DRAW_ENTRIES; k++) {
            sum += answers.v[k];
            square += (double)answers.v[k] * answers.v[k];
        }
        if (t->prompt + 0.5 * (square / sum - 1) < t->kv_per_output)
            lo = s->output_sigma;
        else
            hi = s->output_sigma;
    }
    if (hi > 2.49)
        return error_set(ERR_INPUT,
                         "fit: target KV per output token %g is impossible: outputs of mean %g up "
                         "to 65,535 tokens do not spread so far; prompts have mean %g",
                         t->kv_per_output, t->output, t->prompt);
    return OK;
}

enum status workload_fit(const struct workload_targets *t, uint64_t seed, struct session_params *s,
                         struct workload_means *means)
{
    struct workload w;
    TRY(possible(t));
    s->output_tokens = t->output;
    s->turns = 1 / (1 - t->hit_ratio);
    double growth = s->returned * t->output + s->followup_tokens;
    s->first_tokens = t->prompt - growth * (s->turns - 1);
    for (int round = 0; round <= FIT_ROUNDS; round++) {
        if (s->first_tokens < 1)
            return error_set(ERR_INPUT,
                             "fit: a hit ratio of %g needs %.2f turns a session, which add %g "
                             "tokens each (returned share %g of %g + follow-up %g): more than the "
                             "mean prompt of %g; lower session.returned or followup_tokens",
                             t->hit_ratio, s->turns, growth, s->returned, t->output,
                             s->followup_tokens, t->prompt);
        TRY(workload_build(s, &w)); /* also checks the given ones */
        if (round == 0) {
            TRY(fit_sigma(t, s));
            TRY(workload_build(s, &w));
        }
        workload_measure(&w, seed, FIT_SESSIONS, means);
        if (round == FIT_ROUNDS) break;
        double q = 1 - 1 / s->turns;
        q += t->hit_ratio - means->hit_ratio;
        if (!(q >= 0 && q < 0.995))
            return error_set(ERR_INPUT,
                             "fit: hit ratio %g cannot be reached with pages of %d tokens and "
                             "prompts of mean %g",
                             t->hit_ratio, WORKLOAD_PAGE_TOKENS, t->prompt);
        s->turns = 1 / (1 - q);
        s->first_tokens += t->prompt - means->prompt;
    }
    const double off[] = {means->prompt / t->prompt - 1, means->output / t->output - 1,
                          means->hit_ratio - t->hit_ratio,
                          means->kv_per_output / t->kv_per_output - 1};
    for (int i = 0; i < 4; i++)
        if (fabs(off[i]) > 0.003)
            return error_set(ERR_INPUT,
                             "fit: the nearest workload has prompt %.1f (target %g), output %.1f "
                             "(%g), hit ratio %.4f (%g), KV per output token %.1f (%g)",
                             means->prompt, t->prompt, means->output, t->output, means->hit_ratio,
                             t->hit_ratio, means->kv_per_output, t->kv_per_output);
    return OK;
}
