/* forward.h - one step of the model on one rank: connects a schedule's ops to the model's stages
 * and to the all-to-all.
 *
 * The caller fills m->mb[] (tokens, positions, pages, segments), builds a schedule once and calls
 * forward_step. What needs to know of requests (KV transfers after a layer, sampling after the
 * last one) is done in two hooks.
 */
#ifndef MODEL_FORWARD_H
#define MODEL_FORWARD_H

#include "balance/replica.h"
#include "model/model.h"
#include "schedule/runner.h"

struct forward {
    struct model *m;
    bool decode;                   /* absorbed attention and low-latency all-to-all */
    struct replica_table *replica; /* [MoE layers] which slot takes a token; borrowed */
    /* KV of `layer` is written for all rows of the micro-batch. May be NULL. */
    enum status (*layer_done)(void *arg, int mb, int layer);
    /* The residual of micro-batch mb is final: logits and sampling. */
    enum status (*head)(void *arg, int mb);
    void *hook_arg;
    enum status (*check)(void); /* asked before every op: a failure ends the step; or NULL */
    struct runner runner;
    int rounds; /* most receive rounds of an operation in this step */
};

/* replica: [MoE layers]; m->ep has the placement of as many layers. now(arg): clock for times and traces. */
void forward_init(struct forward *f, struct model *m, struct replica_table *replica,
                  double (*now)(void *arg), void *arg);
void forward_free(struct forward *f);

/* Runs the step. Every rank of the unit calls it with the same schedule. */
enum status forward_step(struct forward *f, const struct schedule *s, bool decode);

#endif
