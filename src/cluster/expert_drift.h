/* expert_drift.h - expert load that changes over a day, and what re-planning makes of it.
 *
 * Drift model: the logarithm of every expert's popularity, layer by layer, is an Ornstein-Uhlenbeck
 * process: normal with standard deviation sigma at any time, correlated by exp(-dt / tau_s) after
 * dt; steps of a minute. That is an assumption, not a measurement: DeepSeek publishes no loads over
 * time, only that EPLB re-plans from statistics. Each interval of replan_s the experts are placed
 * anew by balance/eplb.c with the mean load of the interval before, as the engine does from the
 * tokens it has counted; until then the placement stays and the load moves away from it. Moving the
 * weights takes no time of a step.
 *
 * All units of a role see the same load. The imbalance of a minute is the mean over the layers of
 * largest / mean rank load, since the layers run one after the other.
 */
#ifndef CLUSTER_EXPERT_DRIFT_H
#define CLUSTER_EXPERT_DRIFT_H

#include "balance/eplb.h"
#include "core/status.h"

struct expert_drift_params {
    double sigma, tau_s, replan_s; /* replan_s: whole minutes; 0: never */
    uint64_t seed;
    const float *base; /* [base_layers, experts] a measured load that the popularity
                                    * multiplies, layer by layer in turn; NULL: even. Borrowed */
    int base_layers;
};

struct expert_drift {
    int minutes;
    float *imbalance; /* [minutes] with the plan in force; owned */
    float *never;     /* [minutes] had the first plan stayed; owned with it */
    int replans;
    double before, after; /* means over the re-plans, of the minute at which they happen */
};

/* ERR_INPUT for shapes that eplb_place refuses. */
enum status expert_drift_run(const struct expert_drift_params *p, const struct eplb_shape *shape,
                             int minutes, struct expert_drift *out);
void expert_drift_free(struct expert_drift *d);

#endif
