/* study_plant.c - from a study file to units with step times and a simulation's configuration. */
#include "cluster/study_plant.h"

#include "cluster/unit_load.h"
#include "config/prices.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Up to which step times are tabulated: mean context of a token. */
enum { DECODE_CONTEXT = 16384, PREFILL_CONTEXT = 32768 };
enum { AUTOSCALE_INTERVAL_S = 120, AUTOSCALE_WEEKDAY = 3 };

static enum status unit_create(struct study_plant *p, enum unit_role role, double imbalance,
                               struct unit_speed **out)
{
    const struct study *s = &p->study;
    const struct study_role *r = role == UNIT_PREFILL ? &s->prefill : &s->decode;
    struct unit_config c;
    unit_config_defaults(&c, role);
    c.level = s->level;
    c.combine = s->combine;
    c.ep = r->ep;
    c.redundant_experts = r->redundant_experts;
    c.micro_batches = r->microbatches;
    c.overlap = r->overlap;
    c.imbalance = imbalance;
    c.load = p->load;
    c.load_layers = p->load_layers;
    c.sizes = p->sizes;
    if (role == UNIT_PREFILL) {
        c.chunk_tokens = r->per_gpu;
    } else {
        c.max_batch = r->per_gpu;
        c.mtp = s->mtp;
        c.mtp_acceptance = s->mtp_acceptance;
    }
    return unit_speed_create(&p->hw, &p->model, &c, out);
}

/* What cannot run is refused with the numbers before any time is spent on it. */
static enum status check_deployment(struct study_plant *p)
{
    const struct study *s = &p->study;
    struct unit_memory m;
    unit_memory(p->decode, &m);
    p->kv_tokens_per_gpu = unit_kv_tokens(p->decode);
    double context = s->has_targets ? s->targets.kv_per_output : s->session.first_tokens;
    p->max_batch = unit_max_batch(p->decode, context);
    if (!(m.kv > 0) || p->max_batch < 1)
        return error_set(ERR_RESOURCE,
                         "decode: EP%d leaves %.1f GiB for KV on a GPU of %.1f GiB (%.1f "
                         "replicated, "
                         "%.1f experts, %.1f buffers and workspace): room for %.1f requests of "
                         "%.0f "
                         "tokens; raise decode.ep",
                         s->decode.ep, m.kv / 0x1p30, m.capacity / 0x1p30, m.replicated / 0x1p30,
                         m.routed / 0x1p30, (m.comm + m.activation + m.absorbed) / 0x1p30,
                         fmax(p->max_batch, 0), context);
    int need = s->prefill.units * unit_nodes(p->prefill) + s->decode.units * unit_nodes(p->decode);
    if (s->nodes.available > 0 && need > s->nodes.available)
        return error_set(ERR_INPUT,
                         "%d prefill units of %d nodes and %d decode units of %d need %d nodes, "
                         "but "
                         "nodes.available is %d",
                         s->prefill.units, unit_nodes(p->prefill), s->decode.units,
                         unit_nodes(p->decode), need, s->nodes.available);
    return OK;
}

enum status study_files_read(const struct study *s, struct study_files *f)
{
    if (strcmp(f->hardware_name, s->hardware) != 0) {
        struct hardware hw;
        TRY(hardware_find("inputs/hardware", s->hardware, &hw));
        hardware_free(&f->hw);
        f->hw = hw;
        memcpy(f->hardware_name, s->hardware, sizeof f->hardware_name);
    }
    if (strcmp(f->model_name, s->model) != 0) {
        TRY(model_config_read(s->model, &f->model));
        model_sizes_compute(&f->model, NULL, &f->sizes);
        memcpy(f->model_name, s->model, sizeof f->model_name);
    }
    return OK;
}

void study_files_free(struct study_files *f)
{
    hardware_free(&f->hw);
    memset(f, 0, sizeof *f);
}

static enum status build(const struct study *s, struct study_files *files, struct study_plant *p)
{
    TRY(study_files_read(s, files));
    p->hw = files->hw;
    p->model = files->model;
    p->sizes = &files->sizes;
    TRY(prices_read(s->prices, &p->prices));
    if (s->usd_per_gpu_hour > 0) p->prices.usd_per_gpu_hour = s->usd_per_gpu_hour;
    if (*s->load) TRY(unit_load_read(s->load, &p->model, &p->load, &p->load_layers));
    TRY(unit_create(p, UNIT_PREFILL, s->prefill.imbalance, &p->prefill));
    TRY(unit_create(p, UNIT_DECODE, s->decode.imbalance, &p->decode));
    return check_deployment(p);
}

enum status study_plant_build_from(const struct study *s, struct study_files *files,
                                   struct study_plant *p)
{
    memset(p, 0, sizeof *p);
    p->study = *s;
    enum status st = build(s, files, p);
    if (st != OK) study_plant_free(p);
    return st;
}

enum status study_plant_build(const struct study *s, struct study_plant *p)
{
    memset(p, 0, sizeof *p);
    p->study = *s;
    enum status st = build(s, &p->own, p);
    if (st != OK) study_plant_free(p);
    return st;
}

void study_plant_free(struct study_plant *p)
{
    unit_speed_free(p->prefill);
    unit_speed_free(p->decode);
    free(p->load);
    study_files_free(&p->own);
    workload_trace_free(&p->trace);
    node_plan_free(&p->plan);
    for (int i = 0; i < 2; i++) {
        forecast_free(p->forecast[i]);
        expert_drift_free(&p->drift[i]);
    }
    free(p->drift_time);
    memset(p, 0, sizeof *p);
}

static double decode_seconds(void *unit, double batch, double context)
{
    return unit_decode_step_s(unit, fmax(batch, 0.25), fmax(context, 1));
}

static double prefill_seconds(void *unit, double tokens, double context)
{
    tokens = fmax(tokens, 1);
    return unit_prefill_step_s(unit, tokens, tokens * fmax(context, 1));
}

double study_decode_capacity(struct study_plant *p, double *batch)
{
    const struct study *s = &p->study;
    double per_step = unit_tokens_per_step(p->decode), best = 1;
    double context = s->has_targets ? s->targets.kv_per_output : p->means.kv_per_output;
    double most = fmin(s->decode.per_gpu, unit_max_batch(p->decode, context));
    for (int b = 1; b <= most; b++)
        if (decode_seconds(p->decode, b, context) / per_step * 1e3 <= s->slo.tpot_ms) best = b;
    if (batch) *batch = best;
    return best * unit_gpus(p->decode) * per_step / decode_seconds(p->decode, best, context);
}

double study_prefill_capacity(struct study_plant *p)
{
    /* A mean token attends to half of its prompt, and more of the longer prompts. */
    double tokens = p->study.prefill.per_gpu;
    double context = p->study.has_targets ? p->study.targets.prompt : p->means.prompt;
    return tokens * unit_gpus(p->prefill) / prefill_seconds(p->prefill, tokens, context);
}

static enum status build_workload(struct study_plant *p)
{
    struct study *s = &p->study;
    if (*s->workload.trace) return workload_trace_read(s->workload.trace, &p->trace);
    if (!*s->workload.curve)
        return error_set(ERR_INPUT, "workload.curve or workload.trace is missing");
    TRY(arrival_curve_read(s->workload.curve, &p->curve));
    if (s->has_targets) TRY(workload_fit(&s->targets, s->seed, &s->session, &p->means));
    TRY(workload_build(&s->session, &p->workload));
    if (!s->has_targets) workload_measure(&p->workload, s->seed, 400000, &p->means);
    return OK;
}

/* Requests per second of the days before: the curve with weekdays (weekends a fifth lower), a level
 * of the day and a slow wander of a few per cent; the study's own day is a weekday with neither. */
static void generate_history(const struct study_plant *p, int days, int per_day, double *value)
{
    const struct study *s = &p->study;
    double part = arrival_curve_mean(&p->curve, s->workload.start_hour, s->workload.hours);
    double mean = s->workload.requests / (s->workload.hours * 3600) / part, wander = 0;
    for (int i = 0; i < days * per_day; i++) {
        int back = days - i / per_day; /* days before the study's, a Thursday */
        int weekday = ((AUTOSCALE_WEEKDAY - back) % 7 + 7) % 7;
        double level = (weekday >= 5 ? 0.8 : 1) *
                       (1 + 0.03 * rng_normal(s->seed ^ 0x6461790a, (uint64_t)back));
        double hour = s->workload.start_hour + 24.0 * (i % per_day + 0.5) / per_day;
        wander = 0.98 * wander + 0.006 * rng_normal(s->seed ^ 0x77616e64, (uint64_t)i);
        value[i] = mean * arrival_curve_at(&p->curve, hour) * level * exp(wander);
    }
}

static enum status build_forecasts(struct study_plant *p)
{
    const struct study *s = &p->study;
    if (*s->workload.trace)
        return error_set(ERR_INPUT, "nodes.mode auto needs workload.curve: forecasters learn from "
                                    "earlier days, and a trace has none");
    int per_day = 86400 / AUTOSCALE_INTERVAL_S, days = s->autoscale.train_days;
    int lead = (int)ceil(s->autoscale.startup_s / AUTOSCALE_INTERVAL_S) + 1;
    int slot = (int)(s->workload.start_hour * 3600 / AUTOSCALE_INTERVAL_S) % per_day;
    if (days < 2)
        return error_set(ERR_INPUT, "autoscale.train_days: found %d, expected at least 2", days);
    double *history = malloc((size_t)(days * per_day) * sizeof *history);
    if (!history) return error_set(ERR_RESOURCE, "no memory for %d days of history", days);
    generate_history(p, days, per_day, history);
    enum status st = OK;
    for (int i = 0; i < 2 && st == OK; i++) {
        st = forecast_create((enum forecast_kind)s->autoscale.forecast, per_day, lead, s->seed,
                             &p->forecast[i]);
        if (st == OK)
            st = forecast_train(p->forecast[i], history, days * per_day, slot, AUTOSCALE_WEEKDAY);
        p->plan.forecast[i] = p->forecast[i];
    }
    free(history);
    return st;
}

/* Units that the warm-up and the first minutes ask for: an autoscaled day begins with these. */
static int first_units(const struct study_plant *p, const struct plan_role *r)
{
    const struct study *s = &p->study;
    double part = arrival_curve_mean(&p->curve, s->workload.start_hour, s->workload.hours);
    double mean = s->workload.requests / (s->workload.hours * 3600) / part, most = 0;
    int from = -(int)(s->workload.warmup_s / 60), to = (int)(s->autoscale.startup_s / 60);
    for (int m = from; m <= to; m++)
        most = fmax(most, arrival_curve_at(&p->curve, s->workload.start_hour + m / 60.0));
    double units = ceil(mean * most * s->autoscale.headroom / r->capacity);
    return (int)fmin(fmax(units, r->min_units), r->max_units);
}

static enum status build_plan(struct study_plant *p)
{
    const struct study *s = &p->study;
    bool automatic = s->nodes.mode == PLAN_AUTO;
    double turns_s = p->means.prompt * (1 - p->means.hit_ratio);
    struct plan_role prefill =
                         {
                             .max_units = s->prefill.units,
                             .min_units = s->autoscale.min_prefill,
                             .start_units = s->prefill.units,
                             .nodes = unit_nodes(p->prefill),
                         },
                     decode = {
                         .max_units = s->decode.units,
                         .min_units = s->autoscale.min_decode,
                         .start_units = s->decode.units,
                         .nodes = unit_nodes(p->decode),
                     };
    if (automatic && !*s->workload.trace) { /* in requests per second */
        prefill.capacity = study_prefill_capacity(p) * s->autoscale.prefill_utilisation / turns_s;
        decode.capacity = study_decode_capacity(p, NULL) / p->means.output;
        prefill.start_units = first_units(p, &prefill);
        decode.start_units = first_units(p, &decode);
    }
    struct autoscale_params scale = {
        .interval_s = AUTOSCALE_INTERVAL_S,
        .startup_s = s->autoscale.startup_s,
        .drain_s = automatic ? s->autoscale.drain_s : s->nodes.drain_s,
        .headroom = s->autoscale.headroom,
        .keep_s = s->autoscale.keep_s,
    };
    TRY(node_plan_init(&p->plan, s->nodes.mode, &prefill, &decode, &scale));
    if (automatic) TRY(build_forecasts(p));
    if (s->nodes.mode == PLAN_STEPS)
        return node_plan_read_steps(&p->plan, s->nodes.file, s->nodes.group_prefill,
                                    s->nodes.group_decode);
    return OK;
}

static enum status drift_tables(struct study_plant *p, enum unit_role role)
{
    bool decode = role == UNIT_DECODE;
    const struct study_role *r = decode ? &p->study.decode : &p->study.prefill;
    for (int i = 0; i < SIM_EXPERT_TABLES; i++) {
        struct unit_speed *u;
        TRY(unit_create(p, role, p->experts.at[i], &u));
        enum status st = sim_time_build(decode ? decode_seconds : prefill_seconds, u, r->per_gpu,
                                        decode ? DECODE_CONTEXT : PREFILL_CONTEXT,
                                        &p->drift_time[decode * SIM_EXPERT_TABLES + i]);
        unit_speed_free(u);
        TRY(st);
    }
    return OK;
}

/* The day's expert loads, their placements, and step times at a few imbalances around them. */
static enum status build_drift(struct study_plant *p, int minutes)
{
    const struct study *s = &p->study;
    const struct unit_speed *unit[2] = {p->prefill, p->decode};
    double least = 1e9, most = 1;
    if (!(s->experts.sigma > 0)) return OK;
    if (fmod(s->experts.replan_s, 60) != 0)
        return error_set(ERR_INPUT, "experts.replan_s %g: expected whole minutes",
                         s->experts.replan_s);
    struct expert_drift_params params = {
        s->experts.sigma,     s->experts.tau_s, s->experts.replan_s,
        s->seed ^ 0x65787064, p->load,          p->load_layers};
    for (int i = 0; i < 2; i++) {
        struct eplb_shape shape = {
            .layers = model_config_moe_layers(&p->model),
            .experts = p->model.experts,
            .groups = p->model.n_group,
            .slots = unit_slots_per_gpu(unit[i]) * unit_gpus(unit[i]),
            .ranks = unit_gpus(unit[i]),
            .nodes = unit_nodes(unit[i]),
        };
        TRY(expert_drift_run(&params, &shape, minutes, &p->drift[i]));
        for (int m = 0; m < minutes; m++) {
            least = fmin(least, p->drift[i].imbalance[m]);
            most = fmax(most, p->drift[i].imbalance[m]);
        }
        p->experts.imbalance[i] = p->drift[i].imbalance;
    }
    p->experts.minutes = minutes;
    for (int i = 0; i < SIM_EXPERT_TABLES; i++)
        p->experts.at[i] = least + (fmax(most, least + 0.01) - least) * i / (SIM_EXPERT_TABLES - 1);
    p->drift_time = calloc(2 * SIM_EXPERT_TABLES, sizeof *p->drift_time);
    if (!p->drift_time) return error_set(ERR_RESOURCE, "no memory for step times");
    TRY(drift_tables(p, UNIT_PREFILL));
    TRY(drift_tables(p, UNIT_DECODE));
    p->experts.table[0] = p->drift_time;
    p->experts.table[1] = p->drift_time + SIM_EXPERT_TABLES;
    p->sim.experts = &p->experts;
    return OK;
}

/* Of what a token costs a GPU beside core attention, the part that does not go by the mean of all
 * GPUs: all but the routed experts. */
static double own_share(struct unit_speed *u, double tokens)
{
    struct unit_step step;
    if (unit_is_decode(u))
        unit_decode_step(u, tokens, 1, &step);
    else
        unit_prefill_step(u, tokens, tokens, &step);
    double own = step.stage_s[STAGE_ATTN] + step.stage_s[STAGE_ATTN_0] +
                 step.stage_s[STAGE_ATTN_1] + step.stage_s[STAGE_SHARED];
    return own / (own + step.stage_s[STAGE_MLP]);
}

enum status study_plant_days(struct study_plant *p)
{
    struct study *s = &p->study;
    TRY(build_workload(p));
    TRY(build_plan(p));
    struct sim_config *c = &p->sim;
    bool ranks =
        s->detail == STUDY_DETAIL_RANKS || (s->detail == STUDY_DETAIL_AUTO && *s->workload.trace);
    *c = (struct sim_config){
        .workload = &p->workload,
        .curve = &p->curve,
        .trace = *s->workload.trace ? &p->trace : NULL,
        .requests = s->workload.requests,
        .start_hour = s->workload.start_hour,
        .hours = s->workload.hours,
        .warmup_s = *s->workload.trace ? 0 : s->workload.warmup_s,
        .epoch_s = s->workload.epoch_s,
        .seed = s->seed,
        .tokens_per_step = unit_tokens_per_step(p->decode),
        .kv_pages_per_gpu = floor(p->kv_tokens_per_gpu / WORKLOAD_PAGE_TOKENS),
        .high_water = s->high_water,
        .cache_pages = s->cache_tokens / WORKLOAD_PAGE_TOKENS,
        .plan = &p->plan,
        .prefill = {.max_units = s->prefill.units,
                    .gpus = unit_gpus(p->prefill),
                    .ranks = ranks ? unit_gpus(p->prefill) : 1,
                    .nodes = unit_nodes(p->prefill),
                    .tokens_per_gpu = s->prefill.per_gpu,
                    .own_share = own_share(p->prefill, s->prefill.per_gpu),
                    .uneven = s->prefill.uneven_step},
        .decode = {.max_units = s->decode.units,
                   .gpus = unit_gpus(p->decode),
                   .ranks = ranks ? unit_gpus(p->decode) : 1,
                   .nodes = unit_nodes(p->decode),
                   .tokens_per_gpu = s->decode.per_gpu,
                   .own_share = own_share(p->decode, s->decode.per_gpu),
                   .uneven = s->decode.uneven_step},
    };
    TRY(sim_time_build(decode_seconds, p->decode, s->decode.per_gpu, DECODE_CONTEXT,
                       &c->decode.time));
    TRY(sim_time_build(prefill_seconds, p->prefill, s->prefill.per_gpu, PREFILL_CONTEXT,
                       &c->prefill.time));
    return build_drift(p, (int)ceil(c->hours * 60 + c->warmup_s / 60) + 1);
}
