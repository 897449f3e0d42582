/* study.h - a study file: a model on some hardware, units, a workload, prices; what to simulate
 * and what to sweep. Read by one option table; see inputs/studies/.
 *
 * struct study is plain data. Files it names are read later, by study_plant_build.
 */
#ifndef CLUSTER_STUDY_H
#define CLUSTER_STUDY_H

#include "cluster/workload.h"
#include "cluster/workload_fit.h"
#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { STUDY_PATH_BYTES = 512, SWEEP_AXES = 16, SWEEP_VALUES = 64, SWEEP_TEXT = 128 };

enum { STUDY_DETAIL_AUTO, STUDY_DETAIL_UNITS, STUDY_DETAIL_RANKS };

struct study_role {
    int units, ep, redundant_experts, microbatches;
    int per_gpu; /* prefill: chunk_tokens; decode: max_batch */
    bool overlap;
    double uneven_step; /* detail units: a step's time over that of even ranks */
    double imbalance;   /* 0: from experts.load, or 1 */
};

struct study {
    char model[STUDY_PATH_BYTES], hardware[STUDY_PATH_BYTES], prices[STUDY_PATH_BYTES];
    char results[STUDY_PATH_BYTES], published[STUDY_PATH_BYTES];
    char load[STUDY_PATH_BYTES]; /* expert load: results file of a run, or text; "" none */
    int level, combine, detail;
    uint64_t seed;
    double usd_per_gpu_hour; /* 0: the price table's */
    struct study_role prefill, decode;
    bool mtp;
    double mtp_acceptance, high_water;
    struct {
        char curve[STUDY_PATH_BYTES], trace[STUDY_PATH_BYTES];
        double requests, hours, start_hour, warmup_s, epoch_s;
    } workload;
    struct {
        double sigma, tau_s, replan_s; /* see expert_drift.h; sigma 0: loads stay */
    } experts;
    struct session_params session;
    bool has_targets;
    struct workload_targets targets;
    double cache_tokens; /* 0: forgets nothing */
    struct {
        int mode, group_prefill, group_decode;
        char file[STUDY_PATH_BYTES];
        double drain_s;
        int available; /* nodes of the cluster; 0: as many as the units need */
    } nodes;
    struct {
        int forecast, min_prefill, min_decode, train_days;
        double startup_s, drain_s, headroom, keep_s, prefill_utilisation;
    } autoscale;
    struct {
        double ttft_s, tpot_ms;
    } slo;
};

struct sweep_axis {
    char key[SWEEP_TEXT];
    int n;
    char value[SWEEP_VALUES][SWEEP_TEXT];
};
struct sweep_axes {
    int n;
    struct sweep_axis axis[SWEEP_AXES];
};

/* Reads PATH with overrides "key=value"; axes: the `sweep:` section, may be NULL. ERR_INPUT with
 * file:line:column. */
enum status study_read(const char *path, int n, const char *const *overrides, struct study *out,
                       struct sweep_axes *axes);
/* One more override; what: for messages. */
enum status study_set(struct study *s, const char *assignment);
/* What can be checked before files are read. */
enum status study_check(const struct study *s, const char *name);
void study_help(FILE *out);
/* As YAML; the caller frees it. NULL without memory. */
char *study_yaml(const struct study *s);
void study_dump(const struct study *s, FILE *out);

const char *study_level_name(int level);

#endif
