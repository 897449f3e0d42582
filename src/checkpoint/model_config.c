/* model_config.c - rules over the fields of a model's configuration, and the few numbers that
 * follow from them. Reading JSON is model_config_parse.c's.
 */
#include "checkpoint/model_config.h"

#include <math.h>

const char *model_gate_name(enum model_gate_kind kind)
{
    switch (kind) {
    case MODEL_GATE_SIGMOID_NOAUX: return "sigmoid, noaux_tc";
    case MODEL_GATE_SOFTMAX_GREEDY: return "softmax, greedy";
    case MODEL_GATE_SOFTMAX_GROUP: return "softmax, group_limited_greedy";
    }
    return "unknown";
}

static enum status validate_groups(const char *name, const struct model_config *c)
{
    if (c->experts % c->n_group)
        return error_set(ERR_INPUT,
                         "%s: n_group is %d, expected a divisor of n_routed_experts (%d)", name,
                         c->n_group, c->experts);
    int group = c->experts / c->n_group;
    if (c->gate == MODEL_GATE_SIGMOID_NOAUX && group < 2)
        return error_set(ERR_INPUT,
                         "%s: n_group is %d: %d expert in a group, expected at least two (a "
                         "group's score is the sum of its two best)",
                         name, c->n_group, group);
    if (c->topk_group > c->n_group)
        return error_set(ERR_INPUT, "%s: topk_group is %d, expected at most n_group (%d)", name,
                         c->topk_group, c->n_group);
    if (c->topk > c->topk_group * group)
        return error_set(ERR_INPUT,
                         "%s: num_experts_per_tok is %d, expected at most %d (topk_group %d x %d "
                         "experts a group)",
                         name, c->topk, c->topk_group * group, c->topk_group, group);
    return OK;
}

enum status model_config_validate(const char *name, const struct model_config *c)
{
    if (c->dim_rope % 2)
        return error_set(ERR_INPUT, "%s: qk_rope_head_dim is %d, expected an even number", name,
                         c->dim_rope);
    if (c->rope.yarn && c->rope.factor < 1)
        return error_set(ERR_INPUT, "%s: yarn's factor is %g, expected at least 1", name,
                         c->rope.factor);
    if (c->rope.yarn && c->rope.beta_fast < c->rope.beta_slow)
        return error_set(ERR_INPUT, "%s: yarn's beta_fast is %g, expected at least beta_slow (%g)",
                         name, c->rope.beta_fast, c->rope.beta_slow);
    if (c->gate != MODEL_GATE_SIGMOID_NOAUX && c->norm_topk)
        return error_set(ERR_INPUT,
                         "%s: norm_topk_prob is true, expected false: no reference defines it for "
                         "a softmax gate",
                         name);
    return validate_groups(name, c);
}

bool model_config_layer_is_moe(const struct model_config *c, int layer)
{
    return layer >= c->first_dense && layer % c->moe_layer_freq == 0;
}

int model_config_moe_layers(const struct model_config *c)
{
    int n = 0;
    for (int l = 0; l < c->layers; l++) n += model_config_layer_is_moe(c, l);
    return n;
}

/* Yarn's magnitude correction. */
static double yarn_m(double scale, double k)
{
    return scale > 1 ? 0.1 * k * log(scale) + 1.0 : 1.0;
}

double model_config_softmax_scale(const struct model_config *c)
{
    double s = 1.0 / sqrt((double)(c->dim_nope + c->dim_rope));
    if (c->rope.yarn && c->rope.has_mscale_all_dim && c->rope.mscale_all_dim != 0) {
        double m = yarn_m(c->rope.factor, c->rope.mscale_all_dim);
        s *= m * m;
    }
    return s;
}

double model_config_rope_scale(const struct model_config *c)
{
    const struct model_rope *r = &c->rope;
    if (!r->yarn) return 1.0;
    if (r->has_attention_factor) return r->attention_factor;
    if (r->has_mscale && r->mscale != 0 && r->has_mscale_all_dim && r->mscale_all_dim != 0)
        return yarn_m(r->factor, r->mscale) / yarn_m(r->factor, r->mscale_all_dim);
    return yarn_m(r->factor, 1.0);
}
