/* engine_step.h - the time of one step of a unit: the engine's schedule list with the stage times
 * of engine_stage.h, run by schedule/list_sim.h.
 *
 * A struct engine_step owns its schedule and scratch; engine_step_free. One thread at a time.
 */
#ifndef CLUSTER_ENGINE_STEP_H
#define CLUSTER_ENGINE_STEP_H

#include "cluster/engine_stage.h"
#include "schedule/list_sim.h"

enum { ENGINE_MEMO = 256 };
struct engine_memo {
    struct engine_load load;
    double cold;
    bool used;
    struct engine_stages stages;
};

struct engine_step {
    struct engine_unit unit;
    struct schedule list;
    double *end_s; /* [n_ops] scratch */
    bool *moe;     /* [layers] */
    struct engine_stages stages[SCHEDULE_MAX_MB];
    double core_us[SCHEDULE_MAX_MB]; /* of the step that is being timed */
    struct engine_memo *memo;        /* [ENGINE_MEMO] stages of loads seen before */
};

struct engine_step_time {
    double us;                     /* all of it, the engine's own work included */
    double kernels_us;             /* of the list alone */
    double compute_us, exposed_us; /* computing, waiting for the all-to-all */
    double stage_us[STAGE_COUNT];  /* sums over the step's ops */
};

/* unit is copied; what it points to is borrowed. ERR_INPUT as engine_unit_check. */
enum status engine_step_create(const struct engine_unit *unit, int micro_batches, bool overlap,
                               struct engine_step *out);
void engine_step_free(struct engine_step *s);

/* load, core_us: [micro-batches]; core_us: core attention of one layer; rows: requests of the step
 * on the busiest rank. */
void engine_step_time(struct engine_step *s, const struct host_view *v,
                      const struct engine_load *load, const double *core_us, double rows,
                      struct engine_step_time *out);

#endif
