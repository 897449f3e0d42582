/* stage_time.h - how long each stage of one micro-batch takes on one GPU.
 *
 * A stage is a sum of kernels (stage_time_gemm.h, attention, all-to-all of stage_time_comm.h).
 * With `calibrated` the hardware file's factors and small kernels come on top; without, only
 * kernel tables and peaks speak. Plain data, built once, read-only afterwards; microseconds.
 */
#ifndef CLUSTER_STAGE_TIME_H
#define CLUSTER_STAGE_TIME_H

#include "checkpoint/model_config.h"
#include "cluster/hardware.h"
#include "cluster/stage_time_comm.h"
#include "cluster/stage_time_gemm.h"
#include "schedule/schedule.h"

#include <stdbool.h>

enum stage_bound {
    BOUND_NONE,
    BOUND_LAUNCH,
    BOUND_MEMORY,
    BOUND_COMPUTE,
    BOUND_NETWORK,
    BOUND_LATENCY,
    BOUND_KERNELS, /* small kernels and gaps, known from traces only */
    BOUND_COUNT
};

struct stage_setup {
    bool decode, calibrated, overlap;
    int ep, nodes;
    int slots_per_gpu;
    double imbalance; /* largest / mean rank load */
    bool group_tree;
};

struct stage_model {
    struct model_config cfg;
    struct stage_setup setup;
    struct hardware hw; /* points not owned: NULL */
    struct comm_model comm;
    struct gemm_curve q_a, q_b, kv_b, out, up_k, up_v; /* attention */
    struct gemm_curve shared_in, shared_out, expert_in, expert_out, dense_in, dense_out;
    struct gemm_curve gate, head, mtp_in;
    double core_tflops, core_gb_s;
    double sm_share;                      /* of the SMs that compute */
    double dispatch_bytes, combine_bytes; /* of a row */
};

struct stage_load {
    double tokens;       /* query tokens of the micro-batch on this GPU */
    double pairs;        /* prefill: (query, key) pairs */
    double requests, kv; /* decode: requests and mean context */
    double head_tokens;  /* rows of the head */
};

struct stage_time {
    double us;
    double part[BOUND_COUNT];
    enum stage_bound bound; /* the largest part */
};

struct stage_times {
    struct stage_time stage[STAGE_COUNT];
};

void stage_model_build(const struct hardware *hw, const struct model_config *cfg,
                       const struct stage_setup *setup, struct stage_model *out);
void stage_times_at(const struct stage_model *m, const struct stage_load *load,
                    struct stage_times *out);

/* Projection of (hidden, embedding) at the MTP module's entrance. */
double stage_mtp_entry_us(const struct stage_model *m, double tokens);
const char *stage_bound_name(enum stage_bound b);

#endif
