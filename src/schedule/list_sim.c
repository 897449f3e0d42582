/* list_sim.c - one pass over the list: both lanes' clocks, in the list's order. The limit of open
 * operations needs no clock of its own: schedule_check has shown that it never holds one back.
 */
#include "schedule/list_sim.h"

#include <string.h>

void list_sim_run(const struct schedule *s, list_sim_time_fn time_of, void *arg, double start_s,
                  double *end_s, struct trace_buf *trace, struct list_sim_result *out)
{
    memset(out, 0, sizeof *out);
    double lane_free[OP_LANES] = {0, 0};
    /* Dependencies point back in the list, so every op's are known when it is reached. */
    for (int i = 0; i < s->n_ops; i++) {
        const struct op *op = &s->ops[i];
        double start = lane_free[op->lane];
        for (int d = 0; d < op->n_deps; d++)
            if (end_s[op->deps[d]] > start) start = end_s[op->deps[d]];
        double took = time_of(arg, op);
        end_s[i] = start + took;
        lane_free[op->lane] = end_s[i];
        out->stage_s[op->stage] += took;
        *(op->lane == OP_COMM ? &out->comm_s : &out->compute_s) += took;
        if (end_s[i] > out->makespan_s) out->makespan_s = end_s[i];
        if (trace) trace_add(trace, op, start_s + start, start_s + end_s[i]);
    }
    out->exposed_s = out->makespan_s - out->compute_s;
    if (start_s != 0)
        for (int i = 0; i < s->n_ops; i++) end_s[i] += start_s;
}
