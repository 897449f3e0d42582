/* ep.h - expert parallelism: DISPATCH of token rows to the experts' ranks and COMBINE back.
 *
 * An operation moves one micro-batch through one MoE layer. Each half is split so that the
 * schedule can place computation between begin and finish; two operations (op = 0, 1) may be
 * open at once. All ranks of the unit run the same operations in the same order for each op,
 * with zero tokens if they have none:
 *
 *     ep_dispatch_begin(g, op, layer, mode, m, &x, ids, weights);
 *     ep_dispatch_finish(g, op, &r);                  // rows grouped by local slot
 *     for (;;) {
 *         y = experts(r);                             // r.total rows
 *         ep_combine_begin(g, op, type, y, ldy);
 *         if (!r.more) break;
 *         ep_dispatch_next(g, op, &r);                // receive buffer was too small: next round
 *     }
 *     ep_combine_finish(g, op, out, ldo);
 *
 * Modes: EP_NORMAL (prefill) exchanges counts first, sends a token once per destination node and
 * forwards it inside that node. EP_LOW_LATENCY (decode) exchanges no counts: each source
 * rank has a fixed part of every receiver's buffer. Both give the same bits: COMBINE is the
 * fixed tree of struct kernels' `combine`, so outputs depend neither on layout, mode, replicas
 * nor rounds. EP_NORMAL lets a node sum what it may of the tree: where an expert group with all
 * its replicas lives on one node, a token of another node gets one row back for the group.
 *
 * Between begin and finish data moves inside transport_poll, which kernels reach through
 * lane_poll: point lane->poll at transport_poll. A rank that has finished its operations may
 * still be the gateway of others: while operations of the unit are open, nobody may block
 * without polling (wait with wait_until, also for MPI requests).
 *
 * Who owns what: the group owns its window and buffers; x stays the caller's and unchanged until
 * ep_combine_finish of the same op; ids and weights are copied by ep_dispatch_begin. What
 * struct ep_recv points to is valid until the next ep call for that op that starts with
 * ep_combine_begin. Errors: ERR_COMM from a wait (see wait.h), ERR_BUG for a broken promise.
 */
#ifndef EP_EP_H
#define EP_EP_H

#include "core/status.h"
#include "device/device.h"
#include "device/kernels.h"
#include "transport/transport.h"
#include "transport/wait.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum ep_mode { EP_NORMAL, EP_LOW_LATENCY };

/* Sizes, known before the job starts. A slot holds one expert; slots = experts + redundant. */
struct ep_params {
    int ep_size; /* ranks; slots % ep_size == 0 */
    int nodes;   /* for ep_memory; ep_create takes it from the transport */
    int experts, slots, topk, hidden, n_group;
    int max_tokens;           /* EP_LOW_LATENCY: most tokens of a rank in one op; 0 = mode unused */
    int chunk_tokens;         /* EP_NORMAL: most tokens of a rank in one op; 0 = mode unused */
    double recv_rows_factor;  /* EP_NORMAL: receive buffer in mean rows (chunk_tokens * topk) */
    int row_align;            /* each group starts at a multiple of this many rows; 0 = 1 */
    enum dtype dispatch_type; /* DT_E4M3 (with 1x128 scales), DT_BF16 or DT_F32 */
    enum dtype combine_type;  /* DT_BF16 or DT_F32 */
};

/* Where the experts of each MoE layer live: slot s is on rank s / (slots / ep_size). Every expert
 * has a slot; no two slots of a rank hold the same expert. Borrowed during the call only. */
struct ep_placement {
    int slots, layers;
    const int32_t *expert_of_slot; /* [layers, slots] */
};

/* Chooses slots[i, k] for ids[i, k] (a replica each); deterministic, see ep_choose_default. */
typedef void (*ep_choose_fn)(void *arg, int layer, int rank, int m, int topk, const int32_t *ids,
                             int32_t *slots);

/* Bytes of one rank's buffers, for both operations. */
struct ep_memory {
    size_t window;                /* node-shared memory, the five parts together */
    size_t heap;                  /* private memory: packed rows, routes, gateway's records */
    size_t receive;               /* normal mode: rows that come for my experts */
    size_t fixed;                 /* low latency: the same, a place for each source and row */
    size_t combine;               /* rows that come back from the experts */
    size_t rings;                 /* rows on their way through me into my node */
    size_t control;               /* counts, stamps, signals */
    int receive_rows, fixed_rows; /* of one operation */
};

/* Received rows, grouped by local slot, in (slot, source rank, source token) order. Group g is
 * rows [begin[g], begin[g] + rows[g]) of x and of y. */
struct ep_recv {
    int groups;           /* slots of this rank */
    const int32_t *begin; /* [groups] ascending */
    const int32_t *rows;  /* [groups] */
    int total;            /* rows of y to provide: end of the last group, padding included */
    struct amat x;        /* [total, ld] in dispatch_type, with strides ld and lds */
    bool more;            /* EP_NORMAL: another round follows */
};

struct ep_group;

/* Checks p (ERR_INPUT with the nearest legal sizes) and says what ep_create would allocate. */
enum status ep_memory(const struct ep_params *p, struct ep_memory *out);

/* Collective over the waiter's transport. waiter, kernels (combine, act_convert) and lane
 * are borrowed; lane->threads copy rows. p->ep_size and p->nodes must agree with the
 * transport (0 = take it from there). */
enum status ep_create(const struct ep_params *p, const struct ep_placement *placement,
                      struct waiter *waiter, const struct kernels *kernels, struct lane *lane,
                      struct ep_group **out);
void ep_destroy(struct ep_group *g); /* collective */
/* What it holds. */
struct ep_memory ep_memory_held(const struct ep_group *g);

/* Replaces the replica choice; NULL: the default, replica (rank + token index) mod replicas. */
void ep_set_choose(struct ep_group *g, ep_choose_fn choose, void *arg);
/* The slots of an expert in ascending order; for writing an ep_choose_fn. */
int ep_replicas(const struct ep_group *g, int layer, int expert, const int32_t **slots);

/* layer: of the placement, the same on all ranks. x: [m] rows of dispatch_type (E4M3 with
 * scales); ids, weights: [m, topk] from the gate. */
enum status ep_dispatch_begin(struct ep_group *g, int op, int layer, enum ep_mode mode, int m,
                              const struct amat *x, const int32_t *ids, const float *weights);
enum status ep_dispatch_finish(struct ep_group *g, int op, struct ep_recv *out);
enum status ep_dispatch_next(struct ep_group *g, int op, struct ep_recv *out);

/* y: [r.total, ldy] of y_type = DT_F32 (rounded to combine_type on the way) or combine_type;
 * unweighted expert outputs. It may be reused as soon as this returns. */
enum status ep_combine_begin(struct ep_group *g, int op, enum dtype y_type, const void *y, int ldy);
/* out: [m, ldo] FP32 = the COMBINE tree over each token's rows (without shared expert). */
enum status ep_combine_finish(struct ep_group *g, int op, float *out, int ldo);

/* What op still waits for ("dispatch rows"; "" for nothing), for a watchdog; marks[r] = 1 for the
 * ranks of the unit that it has to come from. */
const char *ep_awaited(const struct ep_group *g, int op, uint8_t *marks);

/* Traffic of this rank since creation. */
struct ep_stats {
    uint64_t ops, rounds; /* operations; receive rounds beyond the first of each */
    uint64_t rows_sent, rows_received;
    uint64_t bytes_local, bytes_remote;  /* put inside the node / to other nodes, both directions */
    uint64_t rows_reduced, rows_partial; /* as a gateway: COMBINE rows summed, sums sent instead */
};
struct ep_stats ep_statistics(const struct ep_group *g);

/* What this rank has waited for another one of its unit (probe.h): sums over the sampled operations
 * alone. */
struct ep_link {
    int64_t waits;                   /* sampled waits that it may have had a part in */
    int64_t last;                    /* times that it came last */
    double late_s;                   /* waited for it to send, when it came last */
    double late_s2;                  /* the squares of that */
    double transfer_s;               /* waited on for its rows to arrive, when it came last */
    int64_t latencies;               /* messages of another node that were seen to arrive */
    double latency_s, latency_max_s; /* from sending to arrival: sum and most */
};
/* [ranks]; valid until ep_destroy. wait_s: all sampled waits of this rank together. */
const struct ep_link *ep_links(const struct ep_group *g, double *wait_s);
/* Microseconds that each rank's clock is ahead of this one's: [ranks]. Zero until told. */
void ep_set_clocks(struct ep_group *g, const int64_t *ahead_us);

#endif
