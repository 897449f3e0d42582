/* autoscale.h - which units are in service when, and which nodes are paid for.
 *
 * A node plan is advanced by the simulation from epoch to epoch. Its three kinds: fixed; a given
 * step function of nodes (each step in whole groups of units); autoscaled: every interval it
 * forecasts the demand one start-up time ahead and starts or drains units. A starting unit is paid
 * for but serves nothing; a draining one takes nothing new, and what it still holds after drain_s
 * moves to other units.
 *
 * Units come and go in the order of node_plan_order, so that those in service are spread evenly
 * over the numbers (and the simulation's ranks). All arithmetic is deterministic and the same on
 * every rank. The plan owns its memory; node_plan_free.
 */
#ifndef CLUSTER_AUTOSCALE_H
#define CLUSTER_AUTOSCALE_H

#include "cluster/forecast.h"
#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

enum { PLAN_MAX_STEPS = 512 };

enum plan_mode { PLAN_FIXED, PLAN_STEPS, PLAN_AUTO };
enum unit_state { UNIT_OFF, UNIT_STARTING, UNIT_SERVING, UNIT_DRAINING };

struct plan_role {
    int max_units, min_units, start_units;
    int nodes;       /* of one unit */
    double capacity; /* load that one unit serves within the SLO, per second; autoscaled */
};

struct plan_step {
    double start_s;      /* since the start of the day */
    int prefill, decode; /* units from here on */
};

struct autoscale_params {
    double interval_s, startup_s, drain_s;
    double headroom; /* units are ordered for demand x headroom */
    double keep_s;   /* fewer units only when fewer would have done for so long */
};

struct plan_units { /* of one role */
    struct plan_role role;
    uint8_t *state; /* [max_units] enum unit_state */
    double *since;  /* [max_units] s, of that state */
    int *order;     /* [max_units] */
    int wanted;
    double fewer_since; /* s; since when fewer than `wanted` would do */
};

struct node_plan {
    enum plan_mode mode;
    struct plan_units prefill, decode;
    struct plan_step step[PLAN_MAX_STEPS];
    int n_steps, at_step;
    struct autoscale_params scale;
    struct forecast *forecast[2]; /* prefill and decode demand; borrowed, autoscaled only */
    double seen_load[2];
    int seen; /* minutes in seen_load since the last interval */
};

enum status node_plan_init(struct node_plan *p, enum plan_mode mode,
                           const struct plan_role *prefill, const struct plan_role *decode,
                           const struct autoscale_params *scale);
void node_plan_free(struct node_plan *p);

/* Units for a number of nodes when they come in groups of (group_prefill, group_decode) below the
 * largest deployment; ERR_INPUT with the arithmetic when it does not come out. */
enum status node_plan_units_for(const struct node_plan *p, int nodes, int group_prefill,
                                int group_decode, int *prefill, int *decode);
/* CSV start_hours,clock,nodes ('#' comments, heading). */
enum status node_plan_read_steps(struct node_plan *p, const char *path, int group_prefill,
                                 int group_decode);

/* Mean demand (load per second in the units of plan_role.capacity) of the minute before t. Call
 * every minute: an autoscaled plan forecasts and decides once an interval. */
void node_plan_observe(struct node_plan *p, double t_s, double prefill_load, double decode_load);

/* Advances states to time t; true when some unit's state changed. */
bool node_plan_advance(struct node_plan *p, double t_s);

/* A draining unit is empty, or its time is up. */
void node_plan_release(struct plan_units *u, int unit, double t_s);
/* Units paid for: all that are not off. In a step function that is the function's own figure:
 * what drains beyond its step is not paid for. */
int node_plan_paid(const struct node_plan *p, const struct plan_units *u);

/* order[i]: the i-th unit to be in service; any first k are spread evenly over [0, n). */
void node_plan_order(int n, int *order);

#endif
