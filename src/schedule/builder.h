/* builder.h - private to schedule/: appends ops in order, with the dependencies that their stage
 * implies. An op that has no counterpart (a layer before the first or after the last, routed
 * stages of a dense layer) is left out, and MLP of a dense layer becomes DENSE_MLP, so that an
 * order is written once, without its edges.
 */
#ifndef SCHEDULE_BUILDER_H
#define SCHEDULE_BUILDER_H

#include "schedule/schedule.h"

struct builder {
    struct schedule s;
    const bool *moe; /* [layers] borrowed */
    bool chain;      /* every op also needs the op before it */
    int *where;      /* [layers + 2, SCHEDULE_MAX_MB, STAGE_COUNT] index of the op, -1; owned */
};

enum status builder_init(struct builder *b, enum schedule_kind kind, int layers, const bool *moe,
                         int micro_batches);
void builder_abandon(struct builder *b);
/* Index of an op already added, -1. layer -1 .. layers. */
int builder_find(const struct builder *b, enum stage stage, int mb, int layer);
void builder_add(struct builder *b, enum stage stage, int mb, int layer);
void builder_add_each_mb(struct builder *b, enum stage stage, int layer);
/* Checks and hands over; the builder is empty afterwards either way. */
enum status builder_finish(struct builder *b, struct schedule *out);

#endif
