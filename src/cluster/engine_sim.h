/* engine_sim.h - private to engine_time.c (setup, figures) and engine_sim.c (the events): a job in
 * simulated time.
 */
#ifndef CLUSTER_ENGINE_SIM_H
#define CLUSTER_ENGINE_SIM_H

#include "balance/decode_balance.h"
#include "balance/prefill_balance.h"
#include "cluster/engine_step.h"
#include "cluster/engine_time.h"

enum engine_kind { KIND_PREFILL, KIND_DECODE, KIND_NONE };

struct engine_flight {
    double arrival, first, finish, ready; /* s; ready: its KV is at the decode rank */
    int32_t computed, produced;
    int32_t prefill, decode; /* ranks of each role */
    uint32_t pages;
    int32_t next; /* in a rank's list, -1: last */
};

struct engine_list {
    int32_t head, tail, n;
};

struct engine_rank {
    struct engine_list queue, waiting;
    int32_t *active; /* [max_batch] */
    int n_active;
    double resident, resident_peak; /* KV tokens */
};

struct engine_unit_state {
    bool prefills, decodes;
    int first_prefill, first_decode, ranks; /* ranks: of the unit, in each role's numbering */
    const struct job_role *role;
    struct engine_step step[2];
    enum engine_kind running, last;
    double end, extra; /* s; extra: work of polls, added to the next step */
    double rows_peak;
};

struct engine_sim {
    const struct engine_time_setup *s;
    struct engine_flight *f;
    struct engine_rank *prefill, *decode; /* the same array where units are mixed */
    struct engine_unit_state *unit;
    int units, n_prefill, n_decode;
    bool mixed;
    struct prefill_balance pb;
    bool *may; /* [prefill ranks] of a choice */
    struct decode_balance db;
    int64_t next, finished;
    double now;
    /* figures */
    double first_start[2], last_end[2], step_s[2], busy_s[2], exposed_s[2];
    double stage_s[2][ENGINE_STAGES];
    int64_t steps[2], tokens[2], batch_rows, batch_steps;
};

static inline const struct engine_request *engine_request_of(const struct engine_sim *m, int64_t i)
{
    return &m->s->requests[i];
}

/* Runs until every request has its answer. m: all but the figures set up. */
enum status engine_simulate(struct engine_sim *m);

#endif
