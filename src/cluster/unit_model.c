/* unit_model.c - see unit_model.h. */
#include "cluster/unit_model.h"

#include "balance/eplb.h"
#include "config/expert_slots.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct unit_speed {
    struct unit_config cfg;
    struct model_config model;
    struct stage_model stages;
    struct schedule main, mtp; /* mtp: one routed layer, only where the unit speculates */
    double *end_s;             /* scratch of list_sim_run, [max n_ops] */
    int slots_per_gpu;
    double imbalance;
    struct unit_memory memory;
};

enum { PREFILL_PROMPT = 4096 }; /* a step's head rows: one for each that many tokens */

void unit_config_defaults(struct unit_config *c, enum unit_role role)
{
    *c = (struct unit_config){.role = role,
                              .level = UNIT_CALIBRATED,
                              .redundant_experts = -1,
                              .micro_batches = 2,
                              .overlap = true,
                              .mtp_acceptance = 0.85};
    c->ep = role == UNIT_PREFILL ? 32 : 144;
}

static enum status check_values(const struct unit_config *c)
{
    if (c->ep < 1) return error_set(ERR_INPUT, "ep is %d, expected at least 1", c->ep);
    if (c->micro_batches < 1 || c->micro_batches > 2)
        return error_set(ERR_INPUT, "microbatches is %d, expected 1 or 2", c->micro_batches);
    if (!(c->mtp_acceptance >= 0 && c->mtp_acceptance <= 1))
        return error_set(ERR_INPUT, "mtp_acceptance is %g, expected a share in 0..1",
                         c->mtp_acceptance);
    if (c->imbalance != 0 && !(c->imbalance >= 1 && c->imbalance <= 1000))
        return error_set(ERR_INPUT, "imbalance is %g, expected largest / mean rank load: 1 or more",
                         c->imbalance);
    return OK;
}

static enum status resolve_nodes(const struct hardware *hw, struct unit_config *c)
{
    if (c->nodes == 0) {
        c->nodes = (c->ep + hw->gpus_per_node - 1) / hw->gpus_per_node;
        if (c->nodes > 1 && c->ep % hw->gpus_per_node)
            return error_set(ERR_INPUT,
                             "ep is %d, but a node of %s has %d GPUs: %d would stand "
                             "idle; take a multiple of %d",
                             c->ep, hw->name, hw->gpus_per_node,
                             c->nodes * hw->gpus_per_node - c->ep, hw->gpus_per_node);
    }
    if (c->nodes < 1 || c->ep % c->nodes || c->ep / c->nodes > hw->gpus_per_node)
        return error_set(ERR_INPUT,
                         "ep %d on %d nodes is not possible: expected equal nodes of at "
                         "most %d GPUs (%s)",
                         c->ep, c->nodes, hw->gpus_per_node, hw->name);
    return OK;
}

static enum status resolve_slots(struct unit_speed *u)
{
    struct unit_config *c = &u->cfg;
    int experts = u->model.experts;
    if (c->redundant_experts < 0) c->redundant_experts = expert_slots_auto(experts, c->ep);
    int slots = experts + c->redundant_experts, below, above;
    if (!expert_slots_legal(experts, c->redundant_experts, c->ep)) {
        expert_slots_nearest(slots, c->ep, &below, &above);
        return error_set(ERR_INPUT,
                         "ep %d cannot hold %d experts + %d redundant = %d slots "
                         "evenly: take ep %d%s%.0d, or %d redundant experts",
                         c->ep, experts, c->redundant_experts, slots, below, above ? " or " : "",
                         above, expert_slots_auto(experts, c->ep));
    }
    u->slots_per_gpu = slots / c->ep;
    return OK;
}

/* The given figure, or the load histogram placed by EPLB. A stage's time is nearly linear in the
 * busiest rank's load, and a step is a sum over layers: their mean stands for all. */
static enum status resolve_imbalance(struct unit_speed *u)
{
    const struct unit_config *c = &u->cfg;
    u->imbalance = c->imbalance > 0 ? c->imbalance : 1;
    if (c->imbalance > 0 || !c->load || c->ep == 1) return OK;
    int layers = c->load_layers > 0 ? c->load_layers : 1;
    struct eplb_shape shape = {.layers = layers,
                               .experts = u->model.experts,
                               .groups = u->model.n_group,
                               .nodes = c->nodes,
                               .ranks = c->ep,
                               .slots = u->slots_per_gpu * c->ep};
    struct placement p;
    TRY(eplb_place(&shape, c->load, &p));
    u->imbalance = 0;
    for (int l = 0; l < layers; l++)
        u->imbalance +=
            placement_imbalance(&p, l, c->load + (size_t)l * (size_t)shape.experts) / layers;
    placement_free(&p);
    return OK;
}

static enum status build_schedules(struct unit_speed *u)
{
    const struct unit_config *c = &u->cfg;
    bool decode = c->role == UNIT_DECODE, one = true;
    int layers = u->model.layers;
    bool *moe = malloc((size_t)layers * sizeof *moe);
    if (!moe) return error_set(ERR_RESOURCE, "out of memory");
    for (int i = 0; i < layers; i++) moe[i] = model_config_layer_is_moe(&u->model, i);
    enum status st = schedule_build(layers, moe, c->micro_batches, c->overlap, decode, &u->main);
    free(moe);
    if (st == OK && decode && c->mtp)
        st = schedule_build(1, &one, c->micro_batches, c->overlap, true, &u->mtp);
    if (st != OK) return st;
    int n = u->main.n_ops > u->mtp.n_ops ? u->main.n_ops : u->mtp.n_ops;
    u->end_s = malloc((size_t)n * sizeof *u->end_s);
    return u->end_s ? OK : error_set(ERR_RESOURCE, "out of memory");
}

static enum status check_fits(const struct hardware *hw, struct unit_speed *u)
{
    const struct unit_config *c = &u->cfg;
    struct memory_setup s = {.decode = c->role == UNIT_DECODE,
                             .mtp = c->mtp,
                             .ep = c->ep,
                             .slots_per_gpu = u->slots_per_gpu,
                             .micro_batches = c->micro_batches,
                             .max_batch = c->max_batch,
                             .chunk_tokens = c->chunk_tokens,
                             .sizes = c->sizes};
    memory_model(hw, &u->model, &s, &u->memory);
    const struct unit_memory *m = &u->memory;
    if (m->kv > 0) return OK;
    return error_set(ERR_RESOURCE,
                     "%s at EP%d does not fit a GPU of %s with %.1f GB: weights "
                     "%.1f + %.1f experts (%d slots), buffers %.1f, workspace %.1f, reserve %.1f "
                     "leave %.1f GB for the KV cache; take a larger ep or a smaller batch",
                     u->model.model_type, c->ep, hw->name, m->capacity * 1e-9,
                     (m->replicated + m->absorbed) * 1e-9, m->routed * 1e-9, u->slots_per_gpu,
                     m->comm * 1e-9, m->activation * 1e-9, m->reserve * 1e-9, m->kv * 1e-9);
}

static enum status create(const struct hardware *hw, struct unit_speed *u)
{
    struct unit_config *c = &u->cfg;
    if (c->max_batch <= 0) c->max_batch = 128;
    if (c->chunk_tokens <= 0) c->chunk_tokens = 16384;
    if (c->role == UNIT_PREFILL) c->mtp = false;
    TRY(check_values(c));
    TRY(resolve_nodes(hw, c));
    TRY(resolve_slots(u));
    TRY(resolve_imbalance(u));
    TRY(check_fits(hw, u));
    struct stage_setup s = {.decode = c->role == UNIT_DECODE,
                            .calibrated = c->level == UNIT_CALIBRATED,
                            .overlap = c->overlap && c->micro_batches == 2,
                            .ep = c->ep,
                            .nodes = c->nodes,
                            .slots_per_gpu = u->slots_per_gpu,
                            .imbalance = u->imbalance,
                            .group_tree = c->combine == UNIT_COMBINE_GROUP_TREE};
    stage_model_build(hw, &u->model, &s, &u->stages);
    return build_schedules(u);
}

enum status unit_speed_create(const struct hardware *hw, const struct model_config *model,
                              const struct unit_config *cfg, struct unit_speed **out)
{
    struct unit_speed *u = calloc(1, sizeof *u);
    if (!u) return error_set(ERR_RESOURCE, "out of memory");
    u->cfg = *cfg;
    u->model = *model;
    enum status st = create(hw, u);
    u->cfg.load = NULL;
    u->cfg.sizes = NULL;
    if (st == OK)
        *out = u;
    else
        unit_speed_free(u);
    return st;
}

void unit_speed_free(struct unit_speed *u)
{
    if (!u) return;
    schedule_free(&u->main);
    schedule_free(&u->mtp);
    free(u->end_s);
    free(u);
}

bool unit_is_decode(const struct unit_speed *u)
{
    return u->cfg.role == UNIT_DECODE;
}
int unit_gpus(const struct unit_speed *u)
{
    return u->cfg.ep;
}
int unit_nodes(const struct unit_speed *u)
{
    return u->cfg.nodes;
}
int unit_slots_per_gpu(const struct unit_speed *u)
{
    return u->slots_per_gpu;
}
double unit_imbalance(const struct unit_speed *u)
{
    return u->imbalance;
}
double unit_tokens_per_step(const struct unit_speed *u)
{
    return u->cfg.role == UNIT_DECODE && u->cfg.mtp ? 1 + u->cfg.mtp_acceptance : 1;
}
const char *unit_extrapolated(const struct unit_speed *u)
{
    return *u->stages.comm.extrapolated ? u->stages.comm.extrapolated : NULL;
}

static double op_time(void *arg, const struct op *op)
{
    const struct stage_times *t = arg;
    return t->stage[op->stage].us * 1e-6;
}

static void run_step(struct unit_speed *u, const struct stage_load *load, struct unit_step *out)
{
    struct stage_times t;
    struct list_sim_result r;
    memset(out, 0, sizeof *out);
    stage_times_at(&u->stages, load, &t);
    list_sim_run(&u->main, op_time, &t, 0, u->end_s, NULL, &r);
    out->layers_s = r.makespan_s;
    out->compute_s = r.compute_s;
    out->comm_s = r.comm_s;
    out->exposed_s = r.exposed_s;
    memcpy(out->stage, t.stage, sizeof out->stage);
    for (int s = 0; s < STAGE_COUNT; s++) out->stage_s[s] = t.stage[s].us * 1e-6;
    bool decode = u->cfg.role == UNIT_DECODE;
    if (u->cfg.level == UNIT_CALIBRATED)
        out->overhead_s = 1e-3 * (decode ? u->stages.hw.calibrated.step_decode_ms
                                         : u->stages.hw.calibrated.step_prefill_ms);
    if (u->mtp.n_ops) {
        list_sim_run(&u->mtp, op_time, &t, 0, u->end_s, NULL, &r);
        out->mtp_s = r.makespan_s +
                     1e-6 * u->cfg.micro_batches * stage_mtp_entry_us(&u->stages, load->tokens);
    }
    out->step_s = out->layers_s + out->mtp_s + out->overhead_s;
}

void unit_prefill_step(struct unit_speed *u, double tokens, double pairs, struct unit_step *out)
{
    double mb = u->cfg.micro_batches, share = tokens / mb;
    struct stage_load load = {.tokens = share,
                              .pairs = pairs / mb,
                              .requests = 1,
                              .head_tokens = fmax(1, share / PREFILL_PROMPT)};
    run_step(u, &load, out);
}

void unit_decode_step(struct unit_speed *u, double batch, double mean_kv, struct unit_step *out)
{
    double mb = u->cfg.micro_batches, requests = batch / mb, q = u->cfg.mtp ? 2 : 1;
    struct stage_load load = {
        .tokens = requests * q, .requests = requests, .kv = mean_kv, .head_tokens = requests * q};
    run_step(u, &load, out);
}

double unit_prefill_step_s(struct unit_speed *u, double tokens, double pairs)
{
    struct unit_step s;
    unit_prefill_step(u, tokens, pairs, &s);
    return s.step_s;
}

double unit_decode_step_s(struct unit_speed *u, double batch, double mean_kv)
{
    struct unit_step s;
    unit_decode_step(u, batch, mean_kv, &s);
    return s.step_s;
}

void unit_memory(const struct unit_speed *u, struct unit_memory *out)
{
    *out = u->memory;
}

double unit_kv_tokens(const struct unit_speed *u)
{
    return u->memory.kv / u->memory.kv_per_token;
}

double unit_max_batch(const struct unit_speed *u, double mean_kv)
{
    double fit = floor(unit_kv_tokens(u) / fmax(1, mean_kv));
    return u->cfg.role == UNIT_DECODE ? fmin(fit, u->cfg.max_batch) : fit;
}

double unit_kv_bytes_per_token(const struct unit_speed *u)
{
    return u->memory.kv_per_token;
}
