/* probe.h - who comes last, how long it is waited for, and whether it started late or travelled
 * slowly; looked at in every EP_SAMPLE_EVERY-th operation.
 *
 * In such an operation each message of a source carries the time at which it was sent. The receiver
 * notes whom it waits for when its wait begins and, at each look, who has come since. The wait is
 * put down to the one that came last: `late` up to the time at which it sent, `transfer` from then
 * on. Rows of ranks of the same node are there when they are sent; what is left of such a wait is
 * this rank's own way back from sleep and nobody's fault.
 *
 * Gateways pass the source's time on with its last row, so a pair is the whole way, forwarding
 * included. Only the host backend uses this; all calls come from the main thread.
 */
#ifndef EP_PROBE_H
#define EP_PROBE_H

#include "ep/backend.h"

/* A prime: layers and micro-batches come round in other numbers. */
enum { EP_SAMPLE_EVERY = 17 };

/* Which message of an operation. */
enum probe_kind {
    PROBE_FIRST, /* counts, or in low latency the rows */
    PROBE_ROWS,
    PROBE_RETURNS,
    PROBE_KINDS,
    PROBE_NONE
};

struct probe {
    struct ep_link *link;          /* [ranks] */
    int64_t *ahead_us;             /* [ranks] their clock minus mine */
    uint8_t *missing, *now, *open; /* [ranks] at the last look, at this one, when it began */
    int64_t *came_us;              /* [ranks] when first seen */
    enum probe_kind kind;          /* of the wait that is going on */
    int64_t begin_us;
    double wait_s; /* all sampled waits together */
};

enum status probe_create(const struct ep_group *g, struct probe *p);
void probe_free(struct probe *p);

static inline bool probe_sampled(const struct ep_group *g, uint64_t number)
{
    return g->topo->ranks > 1 && number % EP_SAMPLE_EVERY == 0;
}

/* Microseconds of this host's clock, never 0. */
uint32_t probe_clock(void);
/* To go in front of a sampled operation's message to a peer: it was sent at `us`. index: the
 * source's number, or ranks + node for a gateway's sums; stamp: of the operation's first round. */
enum status probe_stamp(struct ep_group *g, struct window *window, int i, enum probe_kind kind,
                        int peer, int index, uint32_t stamp, uint32_t us);

/* A look during a wait; the first one of a kind begins it. */
void probe_look(struct ep_group *g, struct probe *p, const struct ep_op *op, enum probe_kind kind,
                const struct window *window);
/* The wait of the last look is over. */
void probe_close(struct ep_group *g, struct probe *p, const struct ep_op *op,
                 const struct window *window);

#endif
