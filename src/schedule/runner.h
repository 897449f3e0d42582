/* runner.h - executes a schedule through a table of stage functions.
 *
 * Compute ops run inline, in the order of the compute lane. Before each one, the communication
 * ops whose turn it is and whose dependencies are complete are begun (at most SCHEDULE_MAX_OPEN
 * open), then the open ones that the compute op needs are finished: that wait is the exposed
 * communication. comm_finish blocks by polling inside. On an error the run stops at once with
 * operations possibly open: the step is lost and the caller tears down or resets its operations.
 *
 * Ownership: the runner owns its per-op state (grown to the largest schedule seen, so a step
 * allocates nothing after the first); table, context, clock and trace buffer are borrowed.
 */
#ifndef SCHEDULE_RUNNER_H
#define SCHEDULE_RUNNER_H

#include "core/status.h"
#include "schedule/schedule.h"
#include "schedule/trace.h"

#include <stdbool.h>
#include <stdint.h>

struct stage_ops {
    enum status (*compute)(void *ctx, const struct op *op);
    enum status (*comm_begin)(void *ctx, const struct op *op);
    enum status (*comm_finish)(void *ctx, const struct op *op);
    /* Optional (NULL): true when comm_finish would not wait. Only used to tell waiting from
     * unpacking: the finish of a complete op is not counted as exposed. */
    bool (*comm_test)(void *ctx, const struct op *op);
};

/* Seconds, summed over runs until the caller clears them. All zero without a clock. */
struct runner_stats {
    double wall_s;
    double compute_s;
    double comm_begin_s;         /* packing and handing over */
    double comm_exposed_s;       /* in comm_finish of ops that were not complete */
    double comm_unpack_s;        /* in comm_finish of ops that were complete (needs comm_test) */
    double stage_s[STAGE_COUNT]; /* compute stages: run time; DISPATCH, COMBINE: finish time */
};

struct runner {
    const struct stage_ops *table;
    void *ctx;
    double (*now)(void *arg); /* seconds; NULL: neither times nor trace */
    void *now_arg;
    struct trace_buf *trace; /* NULL: no trace */
    /* Told of each op before it computes, and before it is waited for; or NULL. */
    void (*note)(void *arg, const struct op *op, bool waiting);
    void *note_arg;
    struct runner_stats stats;
    uint8_t *state;  /* [cap] owned */
    double *begun_s; /* [cap] owned */
    int cap;
};

void runner_init(struct runner *r, const struct stage_ops *table, void *ctx);
void runner_free(struct runner *r);

/* One step. Errors: whatever a stage function returns; ERR_BUG for a schedule that cannot run;
 * ERR_RESOURCE when memory is out. */
enum status runner_run(struct runner *r, const struct schedule *s);

#endif
