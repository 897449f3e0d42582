/* sizes.c - see sizes.h. */
#include "checkpoint/sizes.h"

#include <string.h>

enum { BLOCK = 128 };

struct counter {
    const struct model_config *cfg;
    const struct checkpoint *ck;
    struct model_sizes *sizes;
    int64_t expert; /* bytes of the expert being counted */
};

static int64_t announced_bytes(const struct model_config *c, const struct tensor_spec *s,
                               int64_t elements)
{
    if (c->quant.fp8 && s->fp8_allowed) {
        int64_t blocks = ((s->shape[0] + BLOCK - 1) / BLOCK) * ((s->shape[1] + BLOCK - 1) / BLOCK);
        return elements + 4 * blocks;
    }
    bool wide = strcmp(c->dtype, "float32") == 0 || s->role == ROLE_GATE_BIAS;
    return elements * (wide ? 4 : 2);
}

static int64_t stored_bytes(const struct checkpoint *ck, const struct tensor_spec *s)
{
    char scale[TENSOR_NAME_MAX];
    int64_t bytes = 0;
    const struct tensor_view *t = checkpoint_find(ck, s->name);
    if (t) bytes += (int64_t)t->bytes;
    tensor_scale_name(s->name, scale);
    if (s->fp8_allowed && (t = checkpoint_find(ck, scale))) bytes += (int64_t)t->bytes;
    return bytes;
}

static enum status count(void *ctx, const struct tensor_spec *s)
{
    struct counter *n = ctx;
    int64_t elements = s->shape[0] * s->shape[1];
    int64_t bytes = n->ck ? stored_bytes(n->ck, s) : announced_bytes(n->cfg, s, elements);
    n->sizes->params[s->part] += elements;
    n->sizes->bytes[s->part] += bytes;
    if (s->part == PART_ROUTED) {
        if (s->role == ROLE_EXPERT_GATE) n->expert = 0;
        n->expert += bytes;
        if (n->expert > n->sizes->expert_bytes) n->sizes->expert_bytes = n->expert;
    }
    return OK;
}

void model_sizes_compute(const struct model_config *cfg, const struct checkpoint *ck,
                         struct model_sizes *z)
{
    memset(z, 0, sizeof *z);
    struct counter n = {cfg, ck, z, 0};
    tensor_specs_visit(cfg, count, &n);
    for (int p = 0; p < PART_COUNT; p++) {
        z->params_total += z->params[p];
        z->bytes_total += z->bytes[p];
    }
    z->moe_layers = model_config_moe_layers(cfg);
    z->params_active = z->params_total - z->params[PART_ROUTED] +
                       z->params[PART_ROUTED] / cfg->experts * cfg->topk;
}

void model_sizes_rank(const struct model_config *cfg, const struct model_sizes *z, int ep,
                      struct model_rank_sizes *r)
{
    r->slots = (cfg->experts + ep - 1) / ep;
    r->redundant = r->slots * ep - cfg->experts;
    r->replicated = z->bytes_total - z->bytes[PART_ROUTED];
    r->routed = (int64_t)r->slots * z->moe_layers * z->expert_bytes;
}
