/* engine_step.c - see engine_step.h. */
#include "cluster/engine_step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum status engine_step_create(const struct engine_unit *unit, int micro_batches, bool overlap,
                               struct engine_step *out)
{
    memset(out, 0, sizeof *out);
    TRY(engine_unit_check(unit));
    int layers = unit->model->layers;
    out->unit = *unit;
    out->moe = malloc((size_t)layers * sizeof *out->moe);
    if (!out->moe) return error_set(ERR_RESOURCE, "out of memory");
    for (int i = 0; i < layers; i++) out->moe[i] = model_config_layer_is_moe(unit->model, i);
    enum status st =
        schedule_build(layers, out->moe, micro_batches, overlap, unit->decode, &out->list);
    if (st == OK) out->end_s = malloc((size_t)out->list.n_ops * sizeof *out->end_s);
    out->memo = calloc(ENGINE_MEMO, sizeof *out->memo);
    if (st == OK && (!out->end_s || !out->memo)) st = error_set(ERR_RESOURCE, "out of memory");
    if (st != OK) engine_step_free(out);
    return st;
}

void engine_step_free(struct engine_step *s)
{
    schedule_free(&s->list);
    free(s->end_s);
    free(s->moe);
    free(s->memo);
    memset(s, 0, sizeof *s);
}

static double op_seconds(void *arg, const struct op *op)
{
    const struct engine_step *s = arg;
    const struct engine_stages *t = &s->stages[op->mb];
    double us = t->us[op->stage];
    bool first = op->stage == STAGE_ATTN || op->stage == STAGE_ATTN_0;
    bool last = op->stage == STAGE_ATTN || op->stage == STAGE_ATTN_1;
    int layers = s->list.layers;
    /* What the layer before left to collect: nothing after the embedding or a dense layer. */
    if (first && (op->layer == 0 || !s->moe[op->layer - 1])) us -= t->first_saves_us;
    if (last && !s->moe[op->layer]) us -= t->dense_saves_us;
    if (last) us += s->core_us[op->mb];
    if (op->stage == STAGE_HEAD && !s->moe[layers - 1]) us -= t->head_collects_us;
    return fmax(0, us) * 1e-6 + s->unit.host->engine.op * 1e-6;
}

/* Of the rank count nearest to the unit's. */
static double step_overhead(const struct engine_unit *u)
{
    const struct host_speed *s = u->host;
    int best = 0;
    for (int i = 1; i < s->engine.n; i++)
        if (fabs(s->engine.ranks[i] - u->ep) < fabs(s->engine.ranks[best] - u->ep)) best = i;
    return u->decode ? s->engine.decode_step[best] : s->engine.prefill_step[best];
}

static bool same_load(const struct engine_load *a, const struct engine_load *b)
{
    return a->tokens == b->tokens && a->unit_tokens == b->unit_tokens &&
           a->head_calls == b->head_calls && a->head_rows == b->head_rows &&
           a->sampled_rows == b->sampled_rows && a->logprob_rows == b->logprob_rows;
}

/* Steady batches repeat the same loads for hundreds of steps. */
static void stages_of(struct engine_step *s, const struct host_view *v,
                      const struct engine_load *load, struct engine_stages *out)
{
    unsigned long key = (unsigned long)(load->tokens * 31 + load->unit_tokens * 7 +
                                        load->head_rows * 131 + v->cold * 1024);
    struct engine_memo *m = &s->memo[key % ENGINE_MEMO];
    if (!m->used || m->cold != v->cold || !same_load(&m->load, load)) {
        *m = (struct engine_memo){.load = *load, .cold = v->cold, .used = true};
        engine_stages_at(&s->unit, v, load, &m->stages);
    }
    *out = m->stages;
}

void engine_step_time(struct engine_step *s, const struct host_view *v,
                      const struct engine_load *load, const double *core_us, double rows,
                      struct engine_step_time *out)
{
    struct list_sim_result sim;
    for (int i = 0; i < s->list.micro_batches; i++) {
        stages_of(s, v, &load[i], &s->stages[i]);
        s->core_us[i] = core_us[i];
    }
    list_sim_run(&s->list, op_seconds, s, 0, s->end_s, NULL, &sim);
    memset(out, 0, sizeof *out);
    out->kernels_us = sim.makespan_s * 1e6;
    out->compute_us = sim.compute_s * 1e6;
    out->exposed_us = sim.exposed_s * 1e6;
    for (int i = 0; i < STAGE_COUNT; i++) out->stage_us[i] = sim.stage_s[i] * 1e6;
    out->us = out->kernels_us + step_overhead(&s->unit) + rows * s->unit.host->engine.row;
}
