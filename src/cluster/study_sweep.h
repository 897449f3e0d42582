/* study_sweep.h - every point of a sweep's Cartesian product, spread over the ranks.
 *
 * A point is a deployment in its steady state: decode at its batch (or what fits), prefill with
 * full chunks, and the ratio of both that the workload's prompt, hit ratio and output ask for. No
 * queues: TTFT is one and a half prefill steps. Points that cannot be are kept, with the reason.
 *
 * Finished points are appended to PATH.points.RANK; a sweep that was killed takes them over when
 * it starts again with the same study (by hash). The files go when the sweep is complete.
 */
#ifndef CLUSTER_STUDY_SWEEP_H
#define CLUSTER_STUDY_SWEEP_H

#include "account/study_results.h"
#include "cluster/exchange.h"
#include "cluster/study.h"

#include <stdio.h>

struct study_sweep {
    struct study_sweep_row *row; /* [n] by point on rank 0; owned */
    int n, resumed;              /* points; of these taken over */
};

enum status study_sweep_run(const struct study *s, const struct sweep_axes *axes,
                            const struct exchange *ex, struct study_sweep *out);
void study_sweep_free(struct study_sweep *s);
/* Rank 0; study_sweep_print.c. Long sweeps: the front and the cheapest points, the rest is in the
 * results file. Points that cannot be: how many for which reason. */
void study_sweep_print(const struct study *s, const struct study_sweep *w, FILE *out);

/* One point, also for --unit: fills the figures of a row from a built study. */
struct study_plant;
void study_sweep_point(struct study_plant *p, struct study_sweep_row *row);
/* Marks the cheapest feasible point within the SLO, and the Pareto front of tokens/s/request,
 * tokens/s/GPU and $/Mtoken. */
enum status study_sweep_mark(struct study_sweep_row *row, int n);

#endif
