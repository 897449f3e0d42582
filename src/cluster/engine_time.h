/* engine_time.h - how long `moebatch run` takes on a calibrated machine: the throughput, latency
 * and duration of a resolved job, predicted from component times alone.
 *
 * The job runs in simulated time under the engine's own policies: the router's back-pressure and
 * balancers (balance/), chunks and micro-batch cuts, admission to the decode batch, prefill and
 * decode steps in turn in a mixed unit. A step is the engine's schedule list (schedule/) run by
 * schedule/list_sim.h with stage times put together from the kernels that a stage calls
 * (engine_stage.h) and the machine's figures (host_speed.h). So ramp, steady state and tail are
 * all part of the figure, as they are in a run.
 *
 * Pure arithmetic over plain structs: no MPI, no files, no clock. What is not known before a run
 * is assumed: outputs are as long as max_tokens says, experts are equally popular unless
 * `expert_load` says otherwise.
 *
 * Ownership: everything passed in is borrowed during the call; out is plain data.
 * Errors: ERR_INPUT with the numbers when the machine's file lacks what the job needs (an
 * all-to-all over that many ranks: the message says which `mpirun -np N moebatch calibrate` adds
 * it), ERR_RESOURCE when memory is out.
 */
#ifndef CLUSTER_ENGINE_TIME_H
#define CLUSTER_ENGINE_TIME_H

#include "checkpoint/model_config.h"
#include "cluster/host_speed.h"
#include "config/job.h"
#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

/* One request of the token file. */
struct engine_request {
    int32_t prompt; /* tokens */
    int32_t cached; /* of these found in the prefix cache; 0 when it is off or unknown */
    int32_t output; /* tokens that will be generated: max_tokens, cut to the context */
    bool sampled;   /* temperature above 0: logits are sorted; else the largest is taken */
    bool logprobs;
};

struct engine_time_setup {
    const struct host_speed *host;
    const struct model_config *model;
    const struct job *job;                 /* after job_resolve */
    bool fp8_experts;                      /* the weights are FP8 (model->quant.fp8) */
    int pages[2];                          /* KV pages of a prefill (or mixed) and a decode rank; 0:
                                        * as many as the requests need */
    const double *expert_load;             /* NULL, or [layers][experts] rows of an earlier run */
    const struct engine_request *requests; /* [n_requests] in the file's order */
    int64_t n_requests;
};

struct engine_quantiles {
    double mean, p50, p90, p99; /* NaN without samples */
};

/* The columns of /steps: attention and gate, DISPATCH, routed experts and dense MLP, shared expert,
 * COMBINE, embedding and head. */
enum { ENGINE_STAGES = 6 };

/* As in /throughput of a results file, from the first step of a kind to the last one's end. */
struct engine_time {
    double total_s; /* first request read to last answer written */
    int64_t prefill_tokens, cached_tokens, decode_tokens, output_tokens;
    int64_t prefill_steps, decode_steps;
    double prefill_span_s, decode_span_s;
    double prefill_step_s, decode_step_s;             /* sum of a unit's steps, mean over units */
    double prefill_tokens_per_s, decode_tokens_per_s; /* over the span; NaN without tokens */
    struct engine_quantiles ttft_s, tpot_s;
    double mean_batch;                 /* requests of a rank in a decode step */
    double stage_ms[2][ENGINE_STAGES]; /* of a mean step, as in /steps: prefill, decode */
    double busy[2], exposed[2];        /* shares of the steps: computing, waiting for the
                                       * all-to-all; prefill, decode */
    bool oversubscribed;               /* more threads on a node than cores were measured */
    char note[400];                    /* "" or what the figures do not cover, in sentences */
};

enum status engine_time_predict(const struct engine_time_setup *setup, struct engine_time *out);

#endif
