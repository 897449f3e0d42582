/* list_sim.h - the time a schedule takes, given the time of each op.
 *
 * The same list and the same rules as schedule/runner.h: compute ops one after another in lane
 * order, communication ops one after another in lane order on their own lane (one link), each op
 * not before its dependencies. With all communication times zero the makespan is the sum of the
 * compute times.
 */
#ifndef SCHEDULE_LIST_SIM_H
#define SCHEDULE_LIST_SIM_H

#include "core/status.h"
#include "schedule/schedule.h"
#include "schedule/trace.h"

struct list_sim_result {
    double makespan_s;
    double compute_s;            /* sum of compute ops */
    double comm_s;               /* sum of communication ops */
    double exposed_s;            /* makespan - compute: the compute lane waits */
    double stage_s[STAGE_COUNT]; /* sum of op times by stage */
};

/* Time of an op in seconds, >= 0. */
typedef double (*list_sim_time_fn)(void *arg, const struct op *op);

/* start_s: the step's start on the caller's clock, added to end_s and to the trace's times.
 * end_s: [n_ops] scratch and output, each op's end time (borrowed, may not be NULL).
 * trace: NULL or where events go. Never fails. */
void list_sim_run(const struct schedule *s, list_sim_time_fn time_of, void *arg, double start_s,
                  double *end_s, struct trace_buf *trace, struct list_sim_result *out);

#endif
