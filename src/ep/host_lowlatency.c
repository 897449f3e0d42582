/* host_lowlatency.c - DISPATCH for decode: fixed places, no count exchange.
 *
 * Every source has its own part of the destination's buffer, for the most rows that it can send
 * (max_tokens * min(topk, local slots)). It writes its rows there, sorted by slot, then how many
 * there are for each slot, zeros included, then one signal; over a link all of this is one
 * message. Parts per source rather than per (slot, source) need local / topk times less memory
 * and leave no holes between a source's rows. The receiver waits for one signal from every rank
 * and packs the rows by slot: a GEMM over (slot, source) segments of one or two rows each would
 * stream every expert's weights once per source rank instead of once, while packing copies each
 * row once.
 *
 * Why a part may be overwritten: a source starts its next operation on this op index when all its
 * COMBINE rows are back, and I sent those after I had computed from its rows, so its part is
 * free. Its counts may be zero, then nothing came back and it may be here early: so
 * counts alternate between two buffers. It cannot be two operations ahead, because the one
 * between needs my signal, which I send after I am done with the first.
 */
#include "ep/host.h"

#include <string.h>

struct fixed_count {
    uint32_t tag, rows; /* tag: operation number + 1 */
};

/* Row of a source's part. */
static size_t fixed_at(const struct ep_group *g, int i, int source, int row)
{
    size_t at = (size_t)source * (size_t)g->layout.part_rows + (size_t)row;
    return g->layout.fixed[i] + at * g->layout.row_bytes;
}

/* Puts my rows for one rank. */
static enum status put_rows(struct ep_group *g, struct ep_op *op, int dest)
{
    const struct ep_route *r = &op->route;
    int i = ep_op_index(g, op), L = g->layout.local;
    int first = r->first[dest * L], end = r->first[(dest + 1) * L];
    size_t bytes = g->layout.row_bytes;
    for (int j = first; j < end; j++) {
        size_t at = fixed_at(g, i, g->topo->rank, j - first);
        char *row = host_stage(g, dest, at, bytes);
        if (row) host_write_row(g, op, r->order[j], row);
        TRY(host_put(g, dest, at, row, bytes));
    }
    return OK;
}

/* Rows, counts and signal for one rank. */
static enum status put_rank(struct ep_group *g, struct ep_op *op, int dest)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op), L = g->layout.local, parity = (int)(op->number % EP_PARITY);
    const int32_t *first = op->route.first + dest * L;
    struct fixed_count counts[L];
    TRY(put_rows(g, op, dest));
    for (int l = 0; l < L; l++)
        counts[l] =
            (struct fixed_count){(uint32_t)(op->number + 1), (uint32_t)(first[l + 1] - first[l])};
    h->op[i].returned_need += first[L] > first[0]; /* it will send one COMBINE message */
    if (probe_sampled(g, op->number))
        TRY(probe_stamp(g, h->window, i, PROBE_FIRST, dest, g->topo->rank, ep_stamp(op->number, 0),
                        probe_clock()));
    return transport_put_signal(h->transport, h->window, dest,
                                g->layout.fixed_counts[i][parity] +
                                    (size_t)g->topo->rank * sizeof counts,
                                counts, sizeof counts, host_signal(g, i, SIG_FIXED + parity), 1);
}

enum status host_lowlatency_begin(struct ep_group *g, struct ep_op *op)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op), R = g->topo->ranks;
    h->op[i].fixed_uses[op->number % EP_PARITY]++;
    /* Each rank starts with its neighbour, so that they do not all write to rank 0 first. */
    for (int j = 1; j <= R; j++) TRY(put_rank(g, op, (g->topo->rank + j) % R));
    return transport_flush(h->transport);
}

static struct host_need sources_need(struct ep_group *g, struct ep_op *op)
{
    const struct host *h = g->impl;
    int i = ep_op_index(g, op), parity = (int)(op->number % EP_PARITY);
    return (struct host_need){host_signal(g, i, SIG_FIXED + parity),
                              h->op[i].fixed_uses[parity] * (uint64_t)g->topo->ranks};
}

/* begin and rows of each slot from the counts of all sources. */
static enum status add_counts(struct ep_group *g, struct ep_op *op,
                              const struct fixed_count *counts)
{
    int L = g->layout.local, R = g->topo->ranks, align = g->p.row_align, at = 0;
    op->total = 0;
    for (int s = 0; s < R; s++) {
        uint64_t rows = 0;
        for (int l = 0; l < L; l++) rows += counts[s * L + l].rows;
        if (counts[s * L].tag != (uint32_t)(op->number + 1) || rows > (uint64_t)g->layout.part_rows)
            return error_set(ERR_BUG, "ep: rank %d sent %llu rows under number %u, expected %u", s,
                             (unsigned long long)rows, counts[s * L].tag,
                             (uint32_t)(op->number + 1));
    }
    for (int l = 0; l < L; l++) {
        op->begin[l] = at = (at + align - 1) / align * align;
        for (int s = 0; s < R; s++) at += (int)counts[s * L + l].rows;
        op->rows[l] = at - op->begin[l];
        if (op->rows[l] > 0) op->total = at;
    }
    return OK;
}

/* Copies each source's rows to their slots; to[local] and from[ranks] move on. */
static void pack(const struct ep_group *g, struct ep_op *op, const struct fixed_count *counts)
{
    const struct host *h = g->impl;
    int i = ep_op_index(g, op), L = g->layout.local, R = g->topo->ranks;
    const char *own = transport_ptr(h->window, g->topo->rank);
    size_t bytes = g->layout.row_bytes;
    char *to[L];
    for (int l = 0; l < L; l++) to[l] = h->op[i].packed + (size_t)op->begin[l] * bytes;
    for (int s = 0; s < R; s++) {
        const char *from = own + fixed_at(g, i, s, 0);
        for (int l = 0; l < L; l++) {
            size_t n = counts[s * L + l].rows * bytes;
            memcpy(to[l], from, n);
            to[l] += n;
            from += n;
        }
    }
}

enum status host_lowlatency_receive(struct ep_group *g, struct ep_op *op, struct amat *rows)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op);
    const char *own = transport_ptr(h->window, g->topo->rank);
    const struct fixed_count *counts =
        (const void *)(own + g->layout.fixed_counts[i][op->number % EP_PARITY]);
    TRY(host_wait(g, op, sources_need));
    TRY(add_counts(g, op, counts));
    pack(g, op, counts);
    op->more = false;
    *rows = host_rows(g, h->op[i].packed, g->layout.row_bytes);
    return OK;
}
