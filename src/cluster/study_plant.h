/* study_plant.h - what a study file names, read and ready: hardware, model, units, workload,
 * prices, node plan. Owns everything in it (study_plant_free); the study is copied.
 */
#ifndef CLUSTER_STUDY_PLANT_H
#define CLUSTER_STUDY_PLANT_H

#include "account/account.h"
#include "cluster/expert_drift.h"
#include "cluster/sim.h"
#include "cluster/study.h"
#include "cluster/unit_model.h"

/* Hardware and model files as last read: a sweep's points share them. Zeroed before the first use;
 * study_files_free after the last. */
struct study_files {
    char model_name[STUDY_PATH_BYTES], hardware_name[STUDY_PATH_BYTES]; /* "" none yet */
    struct hardware hw;                                                 /* owned */
    struct model_config model;
    struct model_sizes sizes;
};
/* Reads what s names and f does not hold yet. */
enum status study_files_read(const struct study *s, struct study_files *f);
void study_files_free(struct study_files *f);

struct study_plant {
    struct study study;
    struct hardware hw; /* borrowed: of own or of the caller's files */
    struct model_config model;
    struct study_files own;          /* empty where the caller gave the files */
    const struct model_sizes *sizes; /* of the same files */
    float *load;                     /* [load_layers, experts] of study.load; NULL: none */
    int load_layers;
    struct unit_speed *prefill, *decode;
    struct account_prices prices;
    double kv_tokens_per_gpu; /* decode */
    double max_batch;         /* decode: that fits with the workload's mean context */
    /* for simulations */
    struct workload workload;
    struct workload_means means; /* of the sessions, from their tables and a sample */
    struct arrival_curve curve;
    struct workload_trace trace;
    struct node_plan plan;
    struct forecast *forecast[2]; /* prefill, decode; autoscaled only */
    struct expert_drift drift[2]; /* prefill, decode; empty without experts.sigma */
    struct sim_time *drift_time;  /* [2, SIM_EXPERT_TABLES]; owned */
    struct sim_experts experts;
    struct sim_config sim;
};

/* Units and prices only: enough for step times and sweeps. */
enum status study_plant_build(const struct study *s, struct study_plant *out);
/* The same with files that many plants share; they must outlive the plant. */
enum status study_plant_build_from(const struct study *s, struct study_files *files,
                                   struct study_plant *out);
/* The rest, for simulations. */
enum status study_plant_days(struct study_plant *p);
void study_plant_free(struct study_plant *p);

/* Highest load of one unit within the SLO: prompt tokens computed per second, output tokens per
 * second; decode: also the batch a GPU. */
double study_prefill_capacity(struct study_plant *p);
double study_decode_capacity(struct study_plant *p, double *batch);

#endif
