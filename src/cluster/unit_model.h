/* unit_model.h - how fast one unit (a communicator of one role) steps on given hardware.
 *
 * A step is the engine's own schedule list (schedule/) run by schedule/list_sim.h with the times
 * of cluster/stage_time.h. Seconds, tokens and requests are per GPU unless a name says otherwise;
 * all GPUs of a unit step together, so a step's time is the unit's.
 *
 * Levels: UNIT_TABLES uses kernel measurements and peaks only; UNIT_CALIBRATED adds the constants
 * that the hardware file took from traces (contention, small kernels, gaps, step overhead).
 *
 * Ownership: unit_speed_create copies what it needs of hardware, model and load; the caller frees
 * it with unit_speed_free. Functions that take a struct unit_speed use scratch inside it: one
 * thread at a time for each object. A struct unit_table is plain data, read-only once built, owned
 * by whoever built it (unit_table_free).
 *
 * Errors: ERR_INPUT with the numbers for EP sizes that cannot be (slots, nodes, experts) and
 * ERR_RESOURCE for models that do not fit. Nothing here does I/O.
 */
#ifndef CLUSTER_UNIT_MODEL_H
#define CLUSTER_UNIT_MODEL_H

#include "checkpoint/model_config.h"
#include "cluster/hardware.h"
#include "cluster/memory_model.h"
#include "cluster/stage_time.h"
#include "core/status.h"
#include "schedule/list_sim.h"

#include <stdbool.h>

enum unit_role { UNIT_PREFILL, UNIT_DECODE };
enum unit_level { UNIT_TABLES, UNIT_CALIBRATED };

/* What COMBINE sends between nodes: one partial row per (token, node), reduced there, as DeepEP
 * does; or design §4's group tree: one per (token, expert group) when the placement is
 * hierarchical, else a row per (token, expert). */
enum unit_combine { UNIT_COMBINE_NODE, UNIT_COMBINE_GROUP_TREE };

struct unit_config {
    enum unit_role role;
    enum unit_level level;
    enum unit_combine combine;
    int ep;                /* GPUs of the unit */
    int nodes;             /* 0: ep / gpus of a node, at least 1 */
    int redundant_experts; /* -1: expert_slots_auto */
    int micro_batches;     /* 1 or 2 */
    bool overlap;
    bool mtp;              /* decode: one speculated token a step and request */
    double mtp_acceptance; /* share of speculated tokens that are kept, 0..1 */
    double imbalance;      /* largest / mean rank load; 0: from `load`, or 1 when that is NULL */
    const float *load;     /* [load_layers, experts], any unit; each layer placed by balance/eplb,
                            * their mean imbalance is used. Borrowed during unit_speed_create. */
    int load_layers;       /* 0: 1 */
    const struct model_sizes *sizes; /* of the model, for many units of it; NULL: worked out. Also
                                      * borrowed during unit_speed_create. */
    int max_batch;                   /* decode: rows of the low-latency buffers; 0: 128 */
    int chunk_tokens;                /* prefill: tokens a GPU and step, for buffers; 0: 16384 */
};

struct unit_speed; /* opaque */

void unit_config_defaults(struct unit_config *cfg, enum unit_role role); /* calibrated, overlap */

enum status unit_speed_create(const struct hardware *hw, const struct model_config *model,
                              const struct unit_config *cfg, struct unit_speed **out);
void unit_speed_free(struct unit_speed *u);

/* The resolved facts. */
bool unit_is_decode(const struct unit_speed *u);
int unit_gpus(const struct unit_speed *u);
int unit_nodes(const struct unit_speed *u);
int unit_slots_per_gpu(const struct unit_speed *u);
double unit_imbalance(const struct unit_speed *u);
/* Output tokens of a request in one decode step: 1, or 1 + acceptance. */
double unit_tokens_per_step(const struct unit_speed *u);
/* NULL, or a sentence about what lies beyond the measured points (EP sizes). */
const char *unit_extrapolated(const struct unit_speed *u);

/* One prefill step: tokens computed (not cached) on the busiest GPU, and its (query, key) pairs:
 * the sum over its tokens of the positions each attends to; for whole prompts of length n:
 * unit_prompt_pairs(n, 0) each. */
double unit_prefill_step_s(struct unit_speed *u, double tokens, double pairs);
static inline double unit_prompt_pairs(double tokens, double cached)
{
    return tokens * (cached + 0.5 * (tokens + 1.0));
}

/* One decode step of `batch` requests a GPU with a mean context of mean_kv tokens. With MTP the
 * step computes two query tokens a request, drafts one, and yields unit_tokens_per_step. */
double unit_decode_step_s(struct unit_speed *u, double batch, double mean_kv);

/* The same step, taken apart. */
struct unit_step {
    double step_s;                        /* all of it */
    double layers_s;                      /* schedule's makespan */
    double overhead_s;                    /* step overhead: scheduling, sampling, host */
    double mtp_s;                         /* the MTP module: one layer and its head */
    double compute_s, comm_s;             /* sums of the two lanes */
    double exposed_s;                     /* the compute lane waits */
    double stage_s[STAGE_COUNT];          /* of one op: one micro-batch in one (routed) layer */
    struct stage_time stage[STAGE_COUNT]; /* the same ops, their parts and bounds */
};
void unit_prefill_step(struct unit_speed *u, double tokens, double pairs, struct unit_step *out);
void unit_decode_step(struct unit_speed *u, double batch, double mean_kv, struct unit_step *out);

/* Memory of one GPU. */
void unit_memory(const struct unit_speed *u, struct unit_memory *out);
/* KV tokens that fit on one GPU, and the most requests of that context. */
double unit_kv_tokens(const struct unit_speed *u);
double unit_max_batch(const struct unit_speed *u, double mean_kv);

/* Bytes of KV that prefill sends to decode for one prompt token. */
double unit_kv_bytes_per_token(const struct unit_speed *u);

/* A step time as a table over (x, y), for callers that need millions of them: prefill x = tokens,
 * y = pairs / tokens (mean context of a token); decode x = batch, y = mean_kv. Geometric grid with
 * linear interpolation; the error against the function is below 1 % (tested). x below the first
 * point is the first point; beyond the last points it goes on linearly. */
struct unit_table {
    int nx, ny;
    double *x, *y; /* [nx], [ny] ascending; one allocation, x owns it */
    double *s;     /* [nx, ny] seconds */
};
enum status unit_table_build(struct unit_speed *u, double max_x, double max_y,
                             struct unit_table *out);
double unit_table_at(const struct unit_table *t, double x, double y);
void unit_table_free(struct unit_table *t);

#endif
