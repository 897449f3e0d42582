/* engine_stage.h - how long the engine's stages take on a measured host: each stage is the list of
 * kernel calls that model/ makes for it, each call priced by host_cost.h.
 *
 * All-to-all on a CPU is mostly copying by the ranks themselves. That work counts on the
 * compute lane, where the engine does it: what a begin costs is part of the stage before it, what
 * a finish costs part of the stage that reads the rows; the communication op keeps what is left of
 * a measured exchange of R ranks beyond the same work of one rank: waiting, which overlap can hide.
 *
 * Plain data, built once for a unit; nothing here allocates. Microseconds.
 */
#ifndef CLUSTER_ENGINE_STAGE_H
#define CLUSTER_ENGINE_STAGE_H

#include "checkpoint/model_config.h"
#include "cluster/host_cost.h"
#include "config/job.h"
#include "schedule/schedule.h"

struct engine_unit {
    const struct host_speed *host;    /* borrowed */
    const struct model_config *model; /* borrowed */
    bool decode, fp8;
    int numerics; /* enum job_numerics */
    int ep, redundant, threads;
    int node_ranks;           /* of this unit on one node */
    double busy;              /* cores at work on a node while the unit steps */
    double other_mb;          /* read meanwhile by other units of the node */
    const double *popularity; /* NULL: uniform; else [experts] mean share of a token's
                                        * rows, sum 1; borrowed */
};

/* One micro-batch on the busiest rank; core attention is not part of it. */
struct engine_load {
    double tokens;
    double unit_tokens;           /* over all ranks, mean per rank */
    double head_calls, head_rows; /* calls of the head's product, rows in all */
    double sampled_rows, logprob_rows;
};

struct engine_stages {
    double us[STAGE_COUNT];  /* a layer's op without core attention; ATTN* and MLP with the
                                   * all-to-all's work */
    double dense_saves_us;   /* less in the attention of a layer without experts */
    double first_saves_us;   /* less in layer 0's attention: nothing to collect */
    double head_collects_us; /* collecting the last layer, part of HEAD */
};

/* ERR_INPUT when the host file has no all-to-all of that many ranks. */
enum status engine_unit_check(const struct engine_unit *u);

/* How the unit finds the host in a step of so many tokens a rank and KV bytes read. */
struct host_view engine_unit_view(const struct engine_unit *u, double tokens, double kv_bytes);

/* Core attention of one layer: a segment [pos0, pos0 + n) of a prompt; m requests with `keys` keys
 * in all, in `parts` parts (host_decode_features). */
double engine_segment_us(const struct engine_unit *u, const struct host_view *v, double n,
                         double pos0);
double engine_keys_us(const struct engine_unit *u, const struct host_view *v, double m, double keys,
                      double parts);
void engine_stages_at(const struct engine_unit *u, const struct host_view *v,
                      const struct engine_load *load, struct engine_stages *out);

/* Bytes of weights that a step of `tokens` tokens a rank reads on a node. */
double engine_step_bytes(const struct engine_unit *u, double tokens);
/* Bytes of KV of one token in one layer; of activations of one token of a step. */
double engine_kv_row_bytes(const struct engine_unit *u);
double engine_token_bytes(const struct engine_unit *u);

#endif
