/* stage_time_comm.h - the time of the expert-parallel all-to-all.
 *
 * Low latency: a fixed part by EP size + rows x bytes / bandwidth. Points with several row counts
 * of one EP size give both by least squares; a single one is split by the network's line rate.
 * Between sizes both are interpolated in the share of traffic that leaves the NVLink domain;
 * beyond the largest measured size the line goes on and `extrapolated` says so.
 *
 * Normal mode: a token's row crosses to each distinct destination node once; how many nodes that
 * are on average follows from the gate's groups and the placement.
 */
#ifndef CLUSTER_STAGE_TIME_COMM_H
#define CLUSTER_STAGE_TIME_COMM_H

#include "checkpoint/model_config.h"
#include "cluster/hardware.h"

#include <stdbool.h>

struct comm_line {
    double fixed_us;
    double us_per_kb; /* of rows sent by a rank */
};

struct comm_model {
    struct comm_line ll[2];     /* dispatch, combine */
    double normal_gb_s[2];      /* logical bytes, the local node included */
    double rows_per_token[2];   /* normal mode: distinct destinations; rows that come back */
    double rank_rows_per_token; /* distinct ranks of a token */
    bool hierarchical;
    char extrapolated[200]; /* "" or a sentence */
};

struct comm_shape {
    int ep, nodes;    /* nodes in the sense of network boxes */
    bool group_tree;  /* what normal COMBINE sends: see enum unit_combine */
    bool low_latency; /* which of the two is used */
};

void comm_model_build(const struct hardware *hw, const struct model_config *m,
                      const struct comm_shape *shape, struct comm_model *out);

/* Mean number of distinct bins that hold at least one of a token's experts, when every bin holds
 * `groups / bins` whole groups (bins divides groups), else experts fall on bins at random. */
double comm_distinct(const struct model_config *m, int bins);
/* Mean number of distinct expert groups of a token. */
double comm_distinct_groups(const struct model_config *m);

/* The network's lower bound in us of dispatch + combine of `tokens` rows to `experts` each. */
double comm_bound_us(double tokens, double experts, double hidden, double dispatch_bytes,
                     double combine_bytes, double gb_s);

#endif
