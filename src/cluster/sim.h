/* sim.h - days of a cluster, request by request, in simulated time.
 *
 * Time runs in epochs (0.1 s). In an epoch every unit advances alone: a prefill unit fills chunks
 * from its queue and steps, a decode unit admits, steps and finishes requests (a wheel of finish
 * steps makes that O(1) a request). At its end, requests move on: arrivals to prefill units,
 * prefilled prompts to decode units, both spread by the unit loads of the epoch before so that the
 * loads even out (the fluid limit of balance/'s greedy pick: millions of requests share a choice).
 * Inside a unit, with `ranks` = gpus, the engine's own balancers (balance/prefill_balance_pick,
 * decode_balance_pick) give every request a rank, and a step takes as long as its slowest rank;
 * with `ranks` = 1, for millions of requests, the unit is one pool of tokens and pages, its ranks
 * taken as even up to the factor `uneven`.
 * Admission is balance/decode_balance_admits itself, a chunk is filled as prefill_chunk_fill does.
 * A router's choice therefore is up to an epoch old, and a request waits up to an epoch for each.
 * The hand-over from prefill to decode takes that epoch; the KV of a prompt of 4,000 tokens needs
 * 6 ms of one 50 GB/s link, so no further transfer time is added.
 *
 * The prefix cache has one entry per conversation, as many pages as its last prompt had full, and
 * forgets the least recently prefilled second first.
 *
 * Units are spread over the ranks of an exchange; results are the same bits for any number of
 * ranks: every counter is an integer, every order is by unit. No I/O, no wall clock but for
 * progress. The result belongs to the caller (sim_result_free); everything else to sim_run.
 */
#ifndef CLUSTER_SIM_H
#define CLUSTER_SIM_H

#include "cluster/autoscale.h"
#include "cluster/exchange.h"
#include "cluster/sim_time.h"
#include "cluster/workload.h"
#include "cluster/workload_trace.h"

#include <stdbool.h>

enum { SIM_MAX_UNITS = 1024, SIM_HIST = 1024 };

struct sim_role {
    int max_units;        /* that may ever be in service */
    int gpus;             /* of one unit */
    int ranks;            /* that requests are dealt to: 1, the unit as a whole, or gpus */
    int nodes;            /* of one unit */
    int tokens_per_gpu;   /* prefill: chunk; decode: largest batch */
    double own_share;     /* ranks > 1: of what a token costs, what its own rank alone computes */
    double uneven;        /* ranks 1: a step's time over that of evenly dealt ranks */
    struct sim_time time; /* a step's seconds by load of one GPU */
};

/* Expert load that drifts (expert_drift.h): the step times follow its imbalance, minute by minute,
 * linear between those of a few imbalances. Borrowed. */
enum { SIM_EXPERT_TABLES = 4 };
struct sim_experts {
    int minutes;                     /* warm-up included */
    const float *imbalance[2];       /* [minutes] prefill, decode */
    double at[SIM_EXPERT_TABLES];    /* ascending */
    const struct sim_time *table[2]; /* [SIM_EXPERT_TABLES] step times at these */
};

struct sim_config {
    const struct workload *workload;    /* sessions; borrowed */
    const struct arrival_curve *curve;  /* borrowed; with `trace` unused */
    const struct workload_trace *trace; /* NULL: sessions by the curve */
    double requests;                    /* of all the hours simulated, by the curve */
    double start_hour;                  /* hour of day at time 0 */
    double hours, warmup_s, epoch_s;
    uint64_t seed;
    struct sim_role prefill, decode;
    const struct sim_experts *experts; /* NULL: the roles' own times all day */
    double tokens_per_step;            /* of a decoding request; above 1 with MTP */
    double kv_pages_per_gpu;           /* decode; pages of WORKLOAD_PAGE_TOKENS */
    double high_water;                 /* share of the pages that admission may promise */
    double cache_pages;                /* of the prefix cache; 0: forgets nothing. A trace's blocks
                                         * go by kvcache/disk_index, sessions by last use */
    struct node_plan *plan;            /* which units are in service when; borrowed, advanced */
    double progress_s;                 /* wall seconds between lines; 0: none */
};

/* What happened in a minute, all units together. Integers, summed over ranks. Tokens with MTP
 * are counted in 1/1024. */
enum sim_counter {
    SIM_ARRIVALS,
    SIM_STARTED_SESSIONS,
    SIM_HIT,
    SIM_MISS,
    SIM_OUTPUT_Q10,
    SIM_KV_READ_Q10,
    SIM_PREFILL_BUSY_US,
    SIM_DECODE_BUSY_US,
    SIM_PREFILL_STEPS,
    SIM_DECODE_STEPS,
    SIM_FINISHED,
    SIM_TTFT_TICKS,
    SIM_TTFT_COUNT,
    SIM_TPOT_TICKS,
    SIM_TPOT_TOKENS,
    SIM_MOVED,
    SIM_CACHE_LOST,
    SIM_PREEMPTED,
    SIM_REFUSED,
    SIM_PREFILL_UNEVEN_Q10,
    SIM_DECODE_UNEVEN_Q10, /* sums over steps, ranks > 1: step / even */
    /* states at the end of the minute */
    SIM_PREFILL_QUEUE,
    SIM_PREFILL_QUEUE_TOKENS,
    SIM_DECODE_WAITING,
    SIM_DECODE_RUNNING,
    SIM_DECODE_ON_HOST,
    SIM_KV_PAGES,
    SIM_THINKING,
    SIM_CACHE_PAGES,
    SIM_COUNTERS
};

struct sim_minute {
    int64_t n[SIM_COUNTERS];
    int32_t prefill_units, decode_units;     /* that are paid for, at the end of the minute */
    int64_t prefill_node_ms, decode_node_ms; /* paid during it */
    float ttft_s[3], tpot_s[3];              /* p50, p90, p99 of those finished in it; NaN */
};

/* A unit's hour. */
struct sim_unit_hour {
    int64_t requests, tokens_q10, busy_us, steps;
};

struct sim_result {
    int minutes, hours, units_prefill, units_decode;
    struct sim_minute *minute;      /* [minutes] */
    struct sim_unit_hour *unit;     /* [hours, units_prefill + units_decode] */
    int64_t *ttft_hist, *tpot_hist; /* [hours, SIM_HIST]: log buckets, see sim_hist_value */
    int64_t total[SIM_COUNTERS];    /* sums over the minutes (states: of the last) */
    int64_t requests_simulated;     /* warm-up included, finished or not */
    int64_t peak_bytes;             /* of the simulation's own tables, all ranks */
    double wall_s, cpu_s;           /* this rank */
};

enum status sim_run(const struct sim_config *cfg, const struct exchange *ex,
                    struct sim_result *out);
void sim_result_free(struct sim_result *r);

/* Buckets are 1/32 octave wide. */
int sim_hist_bucket(uint32_t ticks);
double sim_hist_quantile(const int64_t *hist, double q); /* ticks; NaN when empty */

#endif
