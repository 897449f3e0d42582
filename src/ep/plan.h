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

enum { EP_OPS = 2, EP_PARITY = 2 };

/* Last bytes of a row on its way: where y has to return to. */
struct ep_row_tag {
    int32_t source; /* rank */
    int32_t token;  /* of that rank's operation */
    int32_t choice; /* which of its topk */
    float weight;
};

/* One expert row of a ring entry: where the gateway puts it. */
struct ep_forward {
    int32_t rank;   /* destination, on the gateway's node */
    int32_t row;    /* in the destination's receive buffer */
    int16_t choice;
    int16_t last;   /* the source's last row for that rank in this round */
    float weight;
};

/* Head of a ring entry; ep_forward[topk] and the row (at entry_row) follow. */
struct ep_entry {
    int32_t source, token, rows, pad;
};

/* Sizes and byte offsets in a rank's window, the same on all ranks. */
struct ep_layout {
    int ranks, local;      /* slots of a rank */
    int tokens;            /* most tokens of a rank in one op, either mode */
    bool fixed_slots;      /* EP_LOW_LATENCY has its own buffers (more than one rank) */
    size_t row_bytes;      /* data | scales | ep_row_tag, a multiple of 64 */
    size_t row_data, row_scales; /* bytes of data, of scales */
    size_t row_scale_at, row_tag_at;
    size_t y_bytes;        /* a COMBINE row: hidden of combine_type */
    size_t y[EP_OPS];      /* [tokens][topk][hidden] */
    size_t counts[EP_OPS][EP_PARITY]; /* [ranks][1 + slots] int32: op number, rows of each slot */
    int cap;               /* rows of a receive buffer */
    size_t receive[EP_OPS]; /* [cap][row_bytes] */
    int clients, ring;     /* sources a gateway serves, entries of each one's ring */
    size_t entry_bytes, entry_row;
    size_t rings[EP_OPS];  /* [clients][ring][entry_bytes] */
    int part_rows;         /* most rows that one source sends me: max_tokens * min(topk, local) */
    size_t fixed[EP_OPS];  /* [ranks][part_rows][row_bytes] */
    size_t fixed_counts[EP_OPS][EP_PARITY]; /* [ranks][local][2] uint32: op number, rows */
    int packed;            /* rows of a packed buffer (heap), [EP_OPS] of them */
    size_t window_bytes, heap_bytes;
};

/* p with its defaults filled in, checked; ERR_INPUT names the nearest legal sizes. */
enum status ep_params_check(struct ep_params *p);
/* clients: most source ranks of other nodes that one rank is the gateway of. */
void ep_layout_fill(const struct ep_params *p, int clients, struct ep_layout *out);

/* Slots of each expert. */
struct ep_table {
    int experts, slots;
    int32_t *first; /* [experts + 1] into slot (one more is allocated) */
    int32_t *slot;  /* [slots] ascending for each expert */
};
/* ERR_INPUT if an expert has no slot, or a rank two of one expert. */
enum status ep_table_init(struct ep_table *t, int experts, int ep_size,
                          const struct ep_placement *placement);
void ep_table_free(struct ep_table *t);

/* The default replica choice: number (rank + token) mod replicas. Arg is a struct ep_table. */
void ep_choose_default(void *table, int rank, int m, int topk, const int32_t *ids,
                       int32_t *slots);

/* One operation's tokens on their source rank. */
struct ep_route {
    int m, topk, slots;
    int32_t *ids, *slot; /* [tokens, topk] */
    float *weights;      /* [tokens, topk] */
    int32_t *order;      /* [tokens * topk] token * topk + choice, sorted by slot, stable */
    int32_t *first;      /* [slots + 1] into order (one more is allocated) */
    int32_t *row;        /* [tokens, topk] global row index at the destination (normal mode) */
};
enum status ep_route_init(struct ep_route *r, int tokens, int topk, int slots);
void ep_route_free(struct ep_route *r);
/* Sorts what is in r->slot (first and order). */
void ep_route_sort(struct ep_route *r);

/* What the counts of all ranks imply. Arrays owned by the caller. */
struct ep_counted {
    int ranks, slots, local, rank, cap, align;
    const int32_t *counts; /* [ranks][count_stride], slot s at counts[rank * stride + s] */
    int stride;
    int32_t *begin;        /* [slots] global row where the slot starts at its rank */
    int32_t *total;        /* [slots] rows of the slot */
    int32_t *mine;         /* [slots] global row of my first row for the slot */
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
