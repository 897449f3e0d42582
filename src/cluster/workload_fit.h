/* workload_fit.h - session parameters whose means meet given targets. */
#ifndef CLUSTER_WORKLOAD_FIT_H
#define CLUSTER_WORKLOAD_FIT_H

#include "cluster/workload.h"

struct workload_targets {
    double prompt;        /* mean tokens */
    double output;        /* mean tokens */
    double hit_ratio;     /* cached / prompt tokens with a cache that forgets nothing */
    double kv_per_output; /* mean context of an output token */
};

/* Starts from *s, whose sigmas of messages, follow-ups, returned share, thinking time and
 * max_prompt stay; finds turns (hit ratio), first_tokens (prompt), output_tokens and output_sigma
 * (KV). *means: what the fitted workload amounts to. ERR_INPUT with the numbers when the targets
 * cannot be met together. */
enum status workload_fit(const struct workload_targets *t, uint64_t seed, struct session_params *s,
                         struct workload_means *means);

#endif
