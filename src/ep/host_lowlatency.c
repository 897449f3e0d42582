/* host_lowlatency.c - DISPATCH for decode: fixed slots, no count exchange.
 *
 * A source writes its rows for a slot at [local slot][source][0 ..) of the destination, then how
 * many there are for each of its slots, zeros included, then one signal; over a link all of this
 * is one message. The receiver waits for one signal from every rank and packs the rows by slot:
 * a GEMM over [slot][source] segments of one or two rows each would stream every expert's
 * weights once per source rank instead of once, while packing copies each row once.
 *
 * Why a slot may be overwritten: a source starts its next operation on this op index when all its
 * COMBINE rows are back, and I sent those after I had computed from its rows, so its part of the
 * slots is free. Its counts may be zero, then nothing came back and it may be here early: so
 * counts alternate between two buffers. It cannot be two operations ahead, because the one
 * between needs my signal, which I send after I am done with the first.
 */
#include "ep/host.h"

#include <string.h>

struct fixed_count {
    uint32_t tag, rows; /* tag: operation number + 1 */
};

static size_t fixed_at(const struct ep_group *g, int i, int local, int source, int row)
{
    size_t segment = (size_t)local * (size_t)g->topo->ranks + (size_t)source;
    return g->layout.fixed[i] +
           (segment * (size_t)g->p.max_tokens + (size_t)row) * g->layout.row_bytes;
}

/* Puts my rows for one slot. */
static enum status put_slot(struct ep_group *g, struct ep_op *op, int slot)
{
    int i = ep_op_index(g, op), dest = slot / g->layout.local, first = op->route.first[slot];
    size_t bytes = g->layout.row_bytes;
    for (int j = first; j < op->route.first[slot + 1]; j++) {
        size_t at = fixed_at(g, i, slot % g->layout.local, g->topo->rank, j - first);
        char *row = host_stage(g, dest, at, bytes);
        if (row) host_write_row(g, op, op->route.order[j], row);
        TRY(host_put(g, dest, at, row, bytes));
    }
    return OK;
}

/* Rows, counts and signal for one rank; returns in *any whether it gets rows. */
static enum status put_rank(struct ep_group *g, struct ep_op *op, int dest, bool *any)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op), L = g->layout.local, parity = (int)(op->number % EP_PARITY);
    struct fixed_count counts[L];
    *any = false;
    for (int l = 0; l < L; l++) {
        int slot = dest * L + l, rows = op->route.first[slot + 1] - op->route.first[slot];
        counts[l] = (struct fixed_count){(uint32_t)(op->number + 1), (uint32_t)rows};
        if (rows == 0) continue;
        *any = true;
        TRY(put_slot(g, op, slot));
    }
    return transport_put_signal(h->transport, h->window, dest,
                                g->layout.fixed_counts[i][parity] +
                                    (size_t)g->topo->rank * sizeof counts,
                                counts, sizeof counts, host_signal(g, i, SIG_FIXED + parity), 1);
}

enum status host_lowlatency_begin(struct ep_group *g, struct ep_op *op)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op), R = g->topo->ranks;
    struct host_op *ho = &h->op[i];
    ho->fixed_uses[op->number % EP_PARITY]++;
    /* Each rank starts with its neighbour, so that they do not all write to rank 0 first. */
    for (int j = 1; j <= R; j++) {
        bool any;
        TRY(put_rank(g, op, (g->topo->rank + j) % R, &any));
        ho->returned_need += any;
    }
    return transport_flush(h->transport);
}

static uint64_t sources_missing(struct ep_group *g, struct ep_op *op)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op), parity = (int)(op->number % EP_PARITY);
    return h->op[i].fixed_uses[parity] * (uint64_t)g->topo->ranks -
           host_value(g, host_signal(g, i, SIG_FIXED + parity));
}

/* begin and rows of each slot from the counts of all sources. */
static enum status add_counts(struct ep_group *g, struct ep_op *op,
                              const struct fixed_count *counts)
{
    int L = g->layout.local, align = g->p.row_align, at = 0;
    op->total = 0;
    for (int l = 0; l < L; l++) {
        op->begin[l] = at = (at + align - 1) / align * align;
        for (int s = 0; s < g->topo->ranks; s++) {
            const struct fixed_count *c = &counts[s * L + l];
            if (c->tag != (uint32_t)(op->number + 1) || c->rows > (uint32_t)g->p.max_tokens)
                return error_set(ERR_BUG, "ep: rank %d sent %u rows under number %u, expected %u",
                                 s, c->rows, c->tag, (uint32_t)(op->number + 1));
            at += (int)c->rows;
        }
        op->rows[l] = at - op->begin[l];
        if (op->rows[l] > 0) op->total = at;
    }
    if (op->total > g->layout.packed)
        return error_set(ERR_BUG, "ep: %d rows came, room for %d", op->total, g->layout.packed);
    return OK;
}

enum status host_lowlatency_receive(struct ep_group *g, struct ep_op *op, struct amat *rows)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op), L = g->layout.local;
    const char *own = transport_ptr(h->window, g->topo->rank);
    const struct fixed_count *counts = (const void *)(own +
        g->layout.fixed_counts[i][op->number % EP_PARITY]);
    char *packed = h->op[i].packed;
    size_t bytes = g->layout.row_bytes;
    TRY(host_wait(g, op, sources_missing));
    TRY(add_counts(g, op, counts));
    int threads = host_threads(g, op->total);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int l = 0; l < L; l++) {
        char *to = packed + (size_t)op->begin[l] * bytes;
        for (int s = 0; s < g->topo->ranks; s++) {
            size_t n = counts[s * L + l].rows * bytes;
            memcpy(to, own + fixed_at(g, i, l, s, 0), n);
            to += n;
        }
    }
    op->more = false;
    *rows = host_rows(g, packed);
    return OK;
}
