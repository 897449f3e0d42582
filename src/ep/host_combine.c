/* host_combine.c - COMBINE, the same for both modes: each expert row goes back to its token's
 * rank, to [token][choice] of its rows, rounded to the payload type on the way; then one signal
 * from each rank (and round) that had rows of it. The source applies the fixed tree of
 * struct kernels' combine, so bits do not depend on who computed what, or when.
 *
 * The rows are free to write: they belong to the operation that the source has open, and it
 * reads them only when all of them are there.
 */
#include "ep/host.h"

#include <omp.h>
#include <string.h>

enum { ROWS_AT_ONCE = 16 }; /* between two looks at the other lane */

/* One expert output row in the payload type. */
static void write_y(const struct ep_group *g, enum dtype y_type, const char *y, char *to)
{
    if (y_type == g->p.combine_type) {
        memcpy(to, y, g->layout.y_bytes);
        return;
    }
    struct amat row = {.type = g->p.combine_type, .k = g->p.hidden, .data = to,
                       .ld = g->p.hidden};
    g->kernels->act_convert(g->lane, 1, (const float *)(const void *)y, g->p.hidden, &row, false);
}

static size_t y_at(const struct ep_group *g, int i, const struct ep_row_tag *tag)
{
    size_t index = (size_t)tag->token * (size_t)g->p.topk + (size_t)tag->choice;
    return g->layout.y[i] + index * g->layout.y_bytes;
}

/* The received rows of this round, for reading their tags. */
static const char *received(const struct ep_group *g, const struct ep_op *op)
{
    const struct host *h = g->impl;
    int i = ep_op_index(g, op);
    if (op->mode == EP_LOW_LATENCY) return h->op[i].packed;
    return (const char *)transport_ptr(h->window, g->topo->rank) + g->layout.receive[i];
}

static struct ep_row_tag tag_of(const struct ep_group *g, const char *rows, int row)
{
    struct ep_row_tag tag;
    memcpy(&tag, rows + (size_t)row * g->layout.row_bytes + g->layout.row_tag_at, sizeof tag);
    return tag;
}

/* Whether row j of the buffer is a row and not padding between groups. */
static bool is_row(const struct ep_op *op, int groups, int j)
{
    int lo = 0, hi = groups; /* last group that begins at or before j */
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        if (op->begin[mid] <= j)
            lo = mid;
        else
            hi = mid;
    }
    return j >= op->begin[lo] && j < op->begin[lo] + op->rows[lo];
}

enum status host_combine_begin(struct ep_group *g, struct ep_op *op, enum dtype y_type,
                               const void *y, int ldy)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op), L = g->layout.local, R = g->topo->ranks;
    const char *rows = received(g, op), *from = y;
    size_t pitch = (size_t)ldy * dtype_bytes(y_type);
    int threads = host_threads(g, op->total);
#pragma omp parallel for num_threads(threads) schedule(dynamic, ROWS_AT_ONCE)
    for (int j = 0; j < op->total; j++) {
        if (j % ROWS_AT_ONCE == 0 && omp_get_thread_num() == 0) lane_poll(g->lane);
        if (!is_row(op, L, j)) continue;
        struct ep_row_tag tag = tag_of(g, rows, j);
        char *near = transport_ptr(h->window, tag.source);
        if (near) write_y(g, y_type, from + (size_t)j * pitch, near + y_at(g, i, &tag));
    }
    memset(h->source_rows, 0, (size_t)R * sizeof *h->source_rows);
    for (int j = 0; j < op->total; j++) {
        if (!is_row(op, L, j)) continue;
        struct ep_row_tag tag = tag_of(g, rows, j);
        h->source_rows[tag.source]++;
        if (transport_ptr(h->window, tag.source)) continue;
        size_t at = y_at(g, i, &tag);
        char *to = host_stage(g, tag.source, at, g->layout.y_bytes);
        if (to) write_y(g, y_type, from + (size_t)j * pitch, to);
        TRY(host_put(g, tag.source, at, to, g->layout.y_bytes));
    }
    for (int j = 1; j <= R; j++) {
        int source = (g->topo->rank + j) % R;
        if (h->source_rows[source] == 0) continue;
        if (transport_ptr(h->window, source))
            g->stats.bytes_local += (uint64_t)h->source_rows[source] * g->layout.y_bytes;
        TRY(transport_signal(h->transport, h->window, source, host_signal(g, i, SIG_RETURNED),
                             1));
    }
    return transport_flush(h->transport);
}

static uint64_t returns_missing(struct ep_group *g, struct ep_op *op)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op);
    return h->op[i].returned_need - host_value(g, host_signal(g, i, SIG_RETURNED));
}

enum status host_combine_finish(struct ep_group *g, struct ep_op *op, float *out, int ldo)
{
    struct host *h = g->impl;
    const struct ep_route *r = &op->route;
    int i = ep_op_index(g, op);
    TRY(host_wait(g, op, returns_missing));
    if (r->m == 0) return OK;
    const char *rows = (const char *)transport_ptr(h->window, g->topo->rank) + g->layout.y[i];
    g->kernels->combine(g->lane, g->p.combine_type, r->m, g->p.hidden, g->p.topk, rows, r->ids,
                        r->weights, g->p.experts, g->p.n_group, out, ldo);
    return OK;
}
