/* study.c - the table of a study file's keys. */
#include "cluster/study.h"

#include "config/options.h"

#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static const char *const levels[] = {"tables", "calibrated", NULL};
static const char *const combines[] = {"node", "group_tree", NULL};
static const char *const modes[] = {"fixed", "steps", "auto", NULL};
static const char *const details[] = {"auto", "units", "ranks", NULL};
static const char *const forecasts[] = {"reactive", "holt_winters", "lstm", NULL};

#define FIELD(f) offsetof(struct study, f)
#define PATH(k, f, d, text)                                                                       \
    {                                                                                             \
        .key = k, .type = OPTION_STRING, .offset = FIELD(f), .bytes = STUDY_PATH_BYTES, .def = d, \
        .unit = "", .doc = text                                                                   \
    }
#define INTEGER(k, f, d, lo, hi, u, text)                                                 \
    {                                                                                     \
        .key = k, .type = OPTION_INT, .offset = FIELD(f), .def = d, .min = lo, .max = hi, \
        .unit = u, .doc = text                                                            \
    }
#define NUMBER(k, f, d, lo, hi, u, text)                                                     \
    {                                                                                        \
        .key = k, .type = OPTION_DOUBLE, .offset = FIELD(f), .def = d, .min = lo, .max = hi, \
        .unit = u, .doc = text                                                               \
    }
#define FLAG(k, f, d, text)                                                                  \
    {                                                                                        \
        .key = k, .type = OPTION_BOOL, .offset = FIELD(f), .def = d, .unit = "", .doc = text \
    }
#define CHOICE(k, f, d, names, text)                                                     \
    {                                                                                    \
        .key = k, .type = OPTION_CHOICE, .offset = FIELD(f), .def = d, .choices = names, \
        .unit = "", .doc = text                                                          \
    }
#define SECTION(k, f, text)                                                              \
    {                                                                                    \
        .key = k, .type = OPTION_SECTION, .offset = FIELD(f), .def = "null", .unit = "", \
        .doc = text                                                                      \
    }

#define ROLE(r, units_, ep_)                                                                      \
    INTEGER(#r ".units", r.units, units_, 1, 1024, "units", "at most in service"),                \
        INTEGER(#r ".ep", r.ep, ep_, 1, 65536, "GPUs", "GPUs of a unit, all in one all-to-all"),  \
        {.key = #r ".redundant_experts",                                                          \
         .type = OPTION_INT,                                                                      \
         .offset = FIELD(r.redundant_experts),                                                    \
         .def = "auto",                                                                           \
         .min = 0,                                                                                \
         .max = 65536,                                                                            \
         .may_auto = 1,                                                                           \
         .unit = "experts",                                                                       \
         .doc = "extra expert slots of a unit"},                                                  \
        INTEGER(#r ".microbatches", r.microbatches, "2", 1, 2, "", "batches a step is cut into"), \
        NUMBER(#r ".uneven_step", r.uneven_step, "1", 1, 100, "",                                 \
               "detail units: a step's time over that of even ranks, as detail ranks prints it"), \
        FLAG(#r ".overlap", r.overlap, "true",                                                    \
             "one micro-batch's data moves, the other computes"),                                 \
        NUMBER(#r ".imbalance", r.imbalance, "0", 0, 100, "",                                     \
               "busiest GPU's expert load over the mean; 0: from experts.load, or 1")

static const struct option study_options[] = {
    PATH("model", model, "inputs/shapes/deepseek-v3", "folder with a Hugging Face config.json"),
    PATH("hardware", hardware, "h800", "name in inputs/hardware, or a path"),
    PATH("prices", prices, "inputs/prices/deepseek_r1.yaml", "price table"),
    PATH("results", results, "null", "results, .h5"),
    PATH("published", published, "null", "figures to print beside the predicted ones"),
    PATH("experts.load", load, "null",
         "results of a run (.h5), or one number an expert: placed by EPLB"),
    CHOICE("level", level, "calibrated", levels, "kernel tables alone, or with trace constants"),
    CHOICE("combine", combine, "node", combines, "what is reduced before it crosses nodes"),
    {.key = "seed",
     .type = OPTION_UINT64,
     .offset = FIELD(seed),
     .def = "1",
     .unit = "",
     .doc = "of every random draw"},
    NUMBER("usd_per_gpu_hour", usd_per_gpu_hour, "0", 0, 1e6, "$/h", "0: the price table's"),
    ROLE(prefill, "1", "32"),
    INTEGER("prefill.chunk_tokens", prefill.per_gpu, "16384", 1, 1 << 24, "tokens per GPU",
            "prompt tokens of one step"),
    ROLE(decode, "1", "144"),
    INTEGER("decode.max_batch", decode.per_gpu, "128", 1, 65536, "requests per GPU",
            "requests that decode together"),
    FLAG("decode.mtp", mtp, "false", "one speculated token a step and request"),
    NUMBER("decode.mtp_acceptance", mtp_acceptance, "0.85", 0, 1, "", "share of them kept"),
    NUMBER("decode.high_water", high_water, "0.95", 0.01, 1, "",
           "share of the KV pages that admission may promise"),
    CHOICE("detail", detail, "auto", details,
           "requests are dealt to units, or by the engine's balancers to ranks; auto: ranks for a "
           "trace"),
    NUMBER("experts.sigma", experts.sigma, "0", 0, 3, "",
           "log-sigma of the experts' popularity, which drifts; 0: as *.imbalance says, all day"),
    NUMBER("experts.tau_s", experts.tau_s, "14400", 60, 1e7, "s", "it forgets itself in so long"),
    NUMBER("experts.replan_s", experts.replan_s, "600", 0, 86400, "s",
           "between new placements by EPLB, whole minutes; 0: never"),
    PATH("workload.curve", workload.curve, "null", "arrivals by hour of day, CSV"),
    PATH("workload.trace", workload.trace, "null", "requests as they came, .jsonl or .csv"),
    NUMBER("workload.requests", workload.requests, "0", 0, 1e12, "requests", "of all the hours"),
    NUMBER("workload.hours", workload.hours, "24", 0.01, 34, "h", "simulated time"),
    NUMBER("workload.start_hour", workload.start_hour, "0", 0, 24, "h", "hour of day at the start"),
    NUMBER("workload.warmup_s", workload.warmup_s, "1800", 0, 36000, "s", "before the start"),
    NUMBER("workload.epoch_s", workload.epoch_s, "0.1", 0.01, 1, "s",
           "how old a router's view of the units may be"),
    NUMBER("session.turns", session.turns, "2.3", 1, 1000, "turns", "mean, geometric"),
    NUMBER("session.first_tokens", session.first_tokens, "3000", 1, 1e6, "tokens",
           "first message, mean"),
    NUMBER("session.first_sigma", session.first_sigma, "1", 0, 4, "", "log-sigma"),
    NUMBER("session.followup_tokens", session.followup_tokens, "120", 1, 1e6, "tokens",
           "later messages, mean"),
    NUMBER("session.followup_sigma", session.followup_sigma, "1", 0, 4, "", "log-sigma"),
    NUMBER("session.output_tokens", session.output_tokens, "1000", 1, 60000, "tokens",
           "answers, mean"),
    NUMBER("session.output_sigma", session.output_sigma, "1", 0, 4, "", "log-sigma"),
    NUMBER("session.returned", session.returned, "0.35", 0, 1, "",
           "share of an answer that the next prompt repeats"),
    NUMBER("session.think_s", session.think_s, "120", 1, 7200, "s",
           "from an answer's end to the next turn, mean"),
    NUMBER("session.think_sigma", session.think_sigma, "1", 0, 4, "", "log-sigma"),
    NUMBER("session.max_prompt", session.max_prompt, "65536", 1, 4e6, "tokens",
           "a session that would pass it ends"),
    SECTION("targets", has_targets, "fit session.* to these means"),
    NUMBER("targets.prompt", targets.prompt, "0", 0, 1e7, "tokens", "mean prompt"),
    NUMBER("targets.output", targets.output, "0", 0, 1e7, "tokens", "mean answer"),
    NUMBER("targets.hit_ratio", targets.hit_ratio, "0", 0, 1, "", "cached share of prompt tokens"),
    NUMBER("targets.kv_per_output", targets.kv_per_output, "0", 0, 1e7, "tokens",
           "mean context of an output token"),
    NUMBER("cache.tokens", cache_tokens, "0", 0, 1e15, "tokens",
           "capacity of the prefix cache; 0: forgets nothing"),
    CHOICE("nodes.mode", nodes.mode, "fixed", modes, "units in service over time"),
    PATH("nodes.file", nodes.file, "null", "steps: start_hours,clock,nodes, CSV"),
    INTEGER("nodes.group_prefill", nodes.group_prefill, "1", 0, 1024, "units",
            "prefill units that come and go together with ..."),
    INTEGER("nodes.group_decode", nodes.group_decode, "1", 0, 1024, "units",
            "... so many decode units"),
    NUMBER("nodes.drain_s", nodes.drain_s, "60", 0, 7200, "s",
           "before a step down units take nothing new"),
    INTEGER("nodes.available", nodes.available, "0", 0, 1 << 20, "nodes",
            "of the cluster; 0: as many as all units need"),
    CHOICE("autoscale.forecast", autoscale.forecast, "holt_winters", forecasts, "of the demand"),
    INTEGER("autoscale.min_prefill", autoscale.min_prefill, "1", 1, 1024, "units", "always there"),
    INTEGER("autoscale.min_decode", autoscale.min_decode, "1", 1, 1024, "units", "always there"),
    INTEGER("autoscale.train_days", autoscale.train_days, "14", 1, 365, "days",
            "generated history that forecasters learn from"),
    NUMBER("autoscale.startup_s", autoscale.startup_s, "300", 0, 7200, "s",
           "from order to service, paid for"),
    NUMBER("autoscale.drain_s", autoscale.drain_s, "600", 0, 7200, "s",
           "until a draining unit's requests move"),
    NUMBER("autoscale.headroom", autoscale.headroom, "1.05", 0.1, 10, "",
           "capacity ordered over demand forecast"),
    NUMBER("autoscale.keep_s", autoscale.keep_s, "600", 0, 86400, "s",
           "fewer units only when fewer would have done for so long"),
    NUMBER("autoscale.prefill_utilisation", autoscale.prefill_utilisation, "0.85", 0.05, 1, "",
           "of a prefill unit that counts as full"),
    NUMBER("slo.ttft_s", slo.ttft_s, "5", 0, 1e6, "s", "time to first token, p90"),
    NUMBER("slo.tpot_ms", slo.tpot_ms, "50", 0, 1e6, "ms", "time per output token, p90"),
};

static const struct option_table table = {
    .what = "study file",
    .options = study_options,
    .n = sizeof study_options / sizeof *study_options,
};

/* study_sweep_read.c */
enum status sweep_take(const char *path, char *text, size_t bytes, struct sweep_axes *axes);

static enum status read_text(const char *path, char **text, size_t *bytes)
{
    FILE *f = fopen(path, "r");
    if (!f) return error_set(ERR_INPUT, "%s: cannot be opened", path);
    enum { MOST = 1 << 20 };
    char *t = malloc(MOST + 1);
    if (!t) {
        fclose(f);
        return error_set(ERR_RESOURCE, "no memory for %s", path);
    }
    *bytes = fread(t, 1, MOST, f);
    bool whole = feof(f) && !ferror(f);
    fclose(f);
    if (!whole) {
        free(t);
        return error_set(ERR_INPUT, "%s: not a file of at most 1 MiB", path);
    }
    t[*bytes] = '\0';
    *text = t;
    return OK;
}

enum status study_read(const char *path, int n, const char *const *overrides, struct study *s,
                       struct sweep_axes *axes)
{
    struct sweep_axes *own = calloc(1, sizeof *own);
    char *text = NULL;
    size_t bytes = 0;
    options_defaults(&table, s, sizeof *s);
    enum status st =
        own ? read_text(path, &text, &bytes) : error_set(ERR_RESOURCE, "no memory for %s", path);
    if (st == OK) st = sweep_take(path, text, bytes, own);
    if (st == OK) st = options_parse(&table, path, text, bytes, s);
    for (int i = 0; st == OK && i < n; i++) st = options_set(&table, overrides[i], s);
    /* Every value of every axis must be legal before the first point runs. */
    for (int a = 0; st == OK && a < own->n; a++)
        for (int v = 0; st == OK && v < own->axis[a].n; v++) {
            struct study probe = *s;
            char set[2 * SWEEP_TEXT + 2];
            snprintf(set, sizeof set, "%s=%s", own->axis[a].key, own->axis[a].value[v]);
            if (options_set(&table, set, &probe) == OK) continue;
            char why[1024];
            snprintf(why, sizeof why, "%.1000s", error_text());
            error_clear();
            st = error_set(ERR_INPUT, "%s: sweep: %s", path, why);
        }
    if (st == OK && axes) *axes = *own;
    free(text);
    free(own);
    return st == OK ? study_check(s, path) : st;
}

enum status study_set(struct study *s, const char *assignment)
{
    return options_set(&table, assignment, s);
}

enum status study_check(const struct study *s, const char *name)
{
    bool curve = *s->workload.curve, trace = *s->workload.trace;
    if (curve && trace)
        return error_set(ERR_INPUT,
                         "%s: workload.curve and workload.trace are both given: "
                         "arrivals come from one of them",
                         name);
    if (curve && !(s->workload.requests > 0))
        return error_set(ERR_INPUT,
                         "%s: workload.requests is missing: how many requests the "
                         "curve stands for",
                         name);
    if (s->nodes.mode == 1 && !*s->nodes.file)
        return error_set(ERR_INPUT, "%s: nodes.mode is steps, but nodes.file is missing", name);
    if (s->nodes.mode == 2 &&
        (s->autoscale.min_prefill > s->prefill.units || s->autoscale.min_decode > s->decode.units))
        return error_set(ERR_INPUT,
                         "%s: autoscale.min_prefill %d and min_decode %d: only %d and "
                         "%d units",
                         name, s->autoscale.min_prefill, s->autoscale.min_decode, s->prefill.units,
                         s->decode.units);
    return OK;
}

void study_help(FILE *out)
{
    options_help(&table, out);
}

void study_dump(const struct study *s, FILE *out)
{
    options_dump(&table, s, 0, out);
}

char *study_yaml(const struct study *s)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *m = open_memstream(&text, &bytes);
    if (!m) return NULL;
    study_dump(s, m);
    if (fclose(m) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

const char *study_level_name(int level)
{
    return levels[level];
}
