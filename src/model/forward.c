/* forward.c - stage table of the runner. */
#include "model/forward.h"

#include <string.h>

static enum status run_experts(struct forward *f, const struct op *op)
{
    struct model *m = f->m;
    struct microbatch *b = &m->mb[op->mb];
    int rounds = 1;
    TRY(model_experts(m, b, op->layer));
    /* Receive buffers were too small for this step's rows: the rest comes in further rounds. */
    for (; b->recv.more; rounds++) {
        TRY(ep_combine_begin(m->ep, op->mb, DT_F32, b->expert_out, m->cfg->hidden));
        TRY(ep_dispatch_next(m->ep, op->mb, &b->recv));
        TRY(model_experts(m, b, op->layer));
    }
    if (rounds > f->rounds) f->rounds = rounds;
    return OK;
}

static enum status forward_compute(void *ctx, const struct op *op)
{
    struct forward *f = ctx;
    struct model *m = f->m;
    struct microbatch *b = &m->mb[op->mb];
    if (f->check) TRY(f->check());
    switch (op->stage) {
    case STAGE_EMBED: model_embed(m, b); return OK;
    case STAGE_ATTN:
        TRY(model_attn_prefill(m, b, op->layer));
        return f->layer_done ? f->layer_done(f->hook_arg, op->mb, op->layer) : OK;
    case STAGE_ATTN_0: model_attn_decode_0(m, b, op->layer); return OK;
    case STAGE_ATTN_1: model_attn_decode_1(m, b, op->layer); return OK;
    case STAGE_MLP: return run_experts(f, op);
    case STAGE_SHARED: model_shared(m, b, op->layer); return OK;
    case STAGE_DENSE_MLP: model_dense(m, b, op->layer); return OK;
    case STAGE_HEAD: model_finish_layer(m, b); return f->head ? f->head(f->hook_arg, op->mb) : OK;
    default: return error_set(ERR_BUG, "stage %s on the compute lane", stage_name(op->stage));
    }
}

/* The layer's number among those with experts. */
static int moe_layer(const struct model_config *cfg, int layer)
{
    int n = 0;
    for (int l = 0; l < layer; l++) n += model_config_layer_is_moe(cfg, l);
    return n;
}

static enum status forward_begin(void *ctx, const struct op *op)
{
    struct forward *f = ctx;
    struct model *m = f->m;
    struct microbatch *b = &m->mb[op->mb];
    if (op->stage == STAGE_DISPATCH) {
        int layer = moe_layer(m->cfg, op->layer);
        return ep_dispatch_begin(m->ep, op->mb, layer, f->decode ? EP_LOW_LATENCY : EP_NORMAL, b->m,
                                 &b->payload, b->ids, b->gate_weight);
    }
    return ep_combine_begin(m->ep, op->mb, DT_F32, b->expert_out, m->cfg->hidden);
}

static enum status forward_finish(void *ctx, const struct op *op)
{
    struct forward *f = ctx;
    struct microbatch *b = &f->m->mb[op->mb];
    if (op->stage == STAGE_DISPATCH) return ep_dispatch_finish(f->m->ep, op->mb, &b->recv);
    return ep_combine_finish(f->m->ep, op->mb, b->moe, f->m->cfg->hidden);
}

static void choose_slots(void *arg, int layer, int rank, int rows, int topk, const int32_t *ids,
                         int32_t *slots)
{
    const struct forward *f = arg;
    const struct replica_table *t = &f->replica[layer];
    (void)rank;
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < topk; k++)
            slots[i * topk + k] = replica_choose(t, ids[i * topk + k], (uint32_t)i);
}

void forward_init(struct forward *f, struct model *m, struct replica_table *replica,
                  double (*now)(void *arg), void *arg)
{
    static const struct stage_ops table = {
        .compute = forward_compute, .comm_begin = forward_begin, .comm_finish = forward_finish};
    memset(f, 0, sizeof *f);
    f->m = m;
    f->replica = replica;
    runner_init(&f->runner, &table, f);
    f->runner.now = now;
    f->runner.now_arg = arg;
    if (m->ep) ep_set_choose(m->ep, choose_slots, f);
}

void forward_free(struct forward *f)
{
    runner_free(&f->runner);
}

enum status forward_step(struct forward *f, const struct schedule *s, bool decode)
{
    f->decode = decode;
    f->rounds = 1;
    return runner_run(&f->runner, s);
}
