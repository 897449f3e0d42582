/* plan.h - the arithmetic of expert parallelism: which slot takes a token, where its row lies at
 * the receiver, in which round, and where everything lies in a rank's window. No communication,
 * so a study, a test or another backend calls the same code.
 *
 * Normal mode: once the counts of all ranks are known, every row has a global index at its
 * destination rank, in (local slot, source rank, source token) order, each slot starting at a
 * multiple of row_align. Round r carries the rows [r * cap, (r + 1) * cap).
 *
 * Who owns what: ep_table and ep_route own their arrays (…_init/…_free); the rest are values.
 */
#ifndef EP_PLAN_H
#define EP_PLAN_H

#include "core/status.h"
#include "ep/ep.h"

enum { EP_OPS = 2, EP_PARITY = 2, EP_TIMES = 3, EP_MAX_TOPK = 64 };

/* First bytes of a row: where its output has to return to. */
struct ep_row_tag {
    int32_t source; /* rank */
    int32_t token;  /* of that rank's operation */
    int16_t place;  /* among what comes back for the token */
    int16_t reduce; /* 1: through the gateway, summed with the rows that share the place */
    float weight;
};

/* One expert row of a ring entry: where the gateway puts it. */
struct ep_forward {
    int32_t rank; /* destination, on the gateway's node */
    int32_t row;  /* in the destination's receive buffer */
    float weight;
    int8_t place, reduce; /* as in the tag */
    int8_t last;          /* the source's last row for that rank in this round */
    int8_t pad;
};

/* Head of a ring entry; ep_forward[topk] and the row (at entry_row) follow. */
struct ep_entry {
    int32_t source, token, rows;
    int32_t reducers; /* ranks of the gateway's node that stage rows of this source */
    uint32_t stamp;
    uint32_t sent_us; /* in sampled operations, else 0 */
};

/* Beside each signal that ends a message, for ep_awaited: which operation and round. */
static inline uint32_t ep_stamp(uint64_t number, int round)
{
    return ((uint32_t)number + 1) << 8 | (uint32_t)(round < 255 ? round : 255);
}

/* The operation number's lowest 24 bits. */
static inline uint32_t ep_stamp_number(uint32_t stamp)
{
    return ((stamp >> 8) - 1) & 0xffffff;
}

/* Sizes and byte offsets in a rank's window, the same on all ranks. */
struct ep_layout {
    int ranks, local;            /* slots of a rank */
    int tokens;                  /* most tokens of a rank in one op, either mode */
    bool fixed_slots;            /* EP_LOW_LATENCY has its own buffers (more than one rank) */
    bool reduce;                 /* COMBINE may return one row for several, see ep_route_reduce */
    size_t row_bytes;            /* ep_row_tag | data | scales, a multiple of 64 */
    size_t row_data, row_scales; /* bytes of data, of scales */
    size_t row_data_at, row_scale_at;
    size_t y_bytes;                   /* a COMBINE row: hidden of combine_type */
    size_t y[EP_OPS];                 /* [tokens][topk][hidden] */
    size_t counts[EP_OPS][EP_PARITY]; /* [ranks][1 + slots] int32: op number, rows of each slot */
    int cap;                          /* rows of a receive buffer */
    size_t receive[EP_OPS];           /* [cap][receive_bytes] */
    size_t receive_bytes;    /* row_bytes; with reduce, room for a y row in the place of data */
    size_t arrived[EP_OPS];  /* [ranks] stamp of the last rows from each source */
    size_t returned[EP_OPS]; /* [ranks + nodes] of the last COMBINE message, of sums */
    size_t times[EP_OPS];    /* [EP_TIMES][ranks + nodes] when messages were sent (probe.h) */
    int clients, ring;       /* sources a gateway serves, entries of each one's ring */
    size_t entry_bytes, entry_row;
    size_t rings[EP_OPS]; /* [clients][ring][entry_bytes] */
    int part_rows;        /* most rows that one source sends me: max_tokens * min(topk, local) */
    size_t fixed[EP_OPS]; /* [ranks][part_rows][row_bytes] */
    size_t fixed_counts[EP_OPS][EP_PARITY]; /* [ranks][local][2] uint32: op number, rows */
    size_t record_bytes; /* with reduce: what a gateway keeps of a token (heap), for all
                            * chunk_tokens of each client */
    int packed;          /* rows of a packed buffer (heap), [EP_OPS] of them */
    size_t window_bytes, heap_bytes;
};

/* p with its defaults filled in, checked; ERR_INPUT names the nearest legal sizes. */
enum status ep_params_check(struct ep_params *p);
/* Whether buffers for reduction inside a node are worth having: groups may be whole on a node. */
bool ep_reduce_possible(const struct ep_params *p);
/* clients: most source ranks of other nodes that one rank is the gateway of. */
void ep_layout_fill(const struct ep_params *p, int clients, bool reduce, struct ep_layout *out);

/* Slots of each expert of one layer. */
struct ep_table {
    int experts, slots;
    int32_t *first; /* [experts + 1] into slot (one more is allocated) */
    int32_t *slot;  /* [slots] ascending for each expert */
    int32_t *home;  /* [experts] node that holds the expert's whole group with all its replicas,
                     * or -1; all -1 until ep_table_homes */
};
/* expert_of_slot: [slots]. ERR_INPUT if an expert has no slot, or a rank two of one expert. */
enum status ep_table_init(struct ep_table *t, int experts, int slots, int ep_size,
                          const int32_t *expert_of_slot);
void ep_table_free(struct ep_table *t);
/* Fills home; returns whether any group has one. local: slots of a rank; node_of: [ranks]. */
bool ep_table_homes(struct ep_table *t, int n_group, int local, const int *node_of);

/* The default replica choice: number (rank + token) mod replicas. Arg: struct ep_table[layers]. */
void ep_choose_default(void *tables, int layer, int rank, int m, int topk, const int32_t *ids,
                       int32_t *slots);

/* One operation's tokens on their source rank. */
struct ep_route {
    int m, topk, slots;
    int32_t *ids, *slot; /* [tokens, topk] */
    float *weights;      /* [tokens, topk] */
    int32_t *order;      /* [tokens * topk] token * topk + choice, sorted by slot, stable */
    int32_t *first;      /* [slots + 1] into order (one more is allocated) */
    int32_t *row;        /* [tokens, topk] global row index at the destination (normal mode) */
    bool reduced;        /* place and reduce hold; else every row returns to place = choice */
    int8_t *place;       /* [tokens, topk] among what comes back; shared by rows that are summed */
    int8_t *reduce;      /* [tokens, topk] 1: summed on its node with others of its group */
};
enum status ep_route_init(struct ep_route *r, int tokens, int topk, int slots);
void ep_route_free(struct ep_route *r);
/* Sorts what is in r->slot (first and order). */
void ep_route_sort(struct ep_route *r);

/* Which rows COMBINE may sum before they come back: two or more of one token and group, when the
 * group's home is a node with node_reduces. Single rows come back themselves. Fills place and
 * reduce, and sets reduced if there are any. */
void ep_route_reduce(struct ep_route *r, const struct ep_table *t, int n_group,
                     const bool *node_reduces);

/* What the counts of all ranks imply. Arrays owned by the caller. */
struct ep_counted {
    int ranks, slots, local, rank, cap, align;
    const int32_t *counts; /* [ranks][count_stride], slot s at counts[rank * stride + s] */
    int stride;
    int32_t *begin; /* [slots] global row where the slot starts at its rank */
    int32_t *total; /* [slots] rows of the slot */
    int32_t *mine;  /* [slots] global row of my first row for the slot */
};
void ep_count(struct ep_counted *c);
/* Fills r->row. */
void ep_count_route(const struct ep_counted *c, struct ep_route *r);
/* Rounds that a destination needs (at least 1), and up to its last one with rows of mine. */
int ep_rounds(const struct ep_counted *c, int dest);
int ep_rounds_mine(const struct ep_counted *c, int dest);
/* Rows of mine that a destination gets in a round. */
int ep_round_mine(const struct ep_counted *c, int dest, int round);
/* How many (destination, round) pairs carry rows of mine: COMBINE messages to expect. */
int ep_messages_mine(const struct ep_counted *c);
/* As a destination: whether `source` has rows for me in this round. */
bool ep_round_source(const struct ep_counted *c, int source, int round);
/* As a destination: begin and rows [local] of this round; returns the end of the last group. */
int ep_round_groups(const struct ep_counted *c, int round, int32_t *begin, int32_t *rows);

#endif
