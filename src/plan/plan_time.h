/* plan_time.h - how long a planned job takes, and what it costs and earns.
 *
 * Which model answers follows from the hardware file. One of this engine's own hosts (`kind: cpu`,
 * written by `moebatch calibrate`): cluster/engine_time.h runs the job in simulated time. One of a
 * GPU: cluster/unit_model.h says how long the steps of full batches take, as if each rank were such
 * a GPU; queues and ramps are left out.
 */
#ifndef PLAN_PLAN_TIME_H
#define PLAN_PLAN_TIME_H

#include "cluster/unit_model.h"
#include "plan/plan.h"

enum plan_time_by { PLAN_TIME_NONE, PLAN_TIME_ENGINE, PLAN_TIME_UNITS };

struct plan_time {
    enum plan_time_by by;
    char hardware[600]; /* the file and what it says it is */
    char why[2100];     /* PLAN_TIME_NONE: why there is no prediction */
    char note[1000];    /* what the figures do not cover; "" nothing more to say */
    double total_s;
    double prefill_tokens_per_s, decode_tokens_per_s; /* of all ranks; NaN without tokens */
    double prefill_s, decode_s;           /* from the first step of a kind to the last */
    double prefill_step_s, decode_step_s; /* PLAN_TIME_UNITS: of a full step */
    double batch;                         /* requests of a rank in a decode step, mean */
    struct unit_memory gpu[2]; /* PLAN_TIME_UNITS: of a role's GPU; mixed: with decode's buffers */
    double ttft_s, tpot_s;     /* means; NaN where the model does not say */
    struct account account;
};

/* hardware: a file, a name of inputs/hardware, or NULL: this machine's where it was calibrated. A
 * file that was asked for and cannot be read is an error; where the model cannot answer, out->why
 * tells. */
enum status plan_time_predict(const struct plan *p, const char *hardware, struct plan_time *out);

void plan_time_print(const struct plan *p, const struct plan_time *t, FILE *out);

#endif
