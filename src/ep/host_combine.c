/* host_combine.c - COMBINE: each expert row goes back to its token's rank, to its place among the
 * token's rows, rounded to the payload type on the way; then one signal from each rank (and
 * round) that had rows of it. The source applies the fixed tree of struct kernels' combine, so
 * bits do not depend on who computed what, or when.
 *
 * In normal mode rows that share a place are summed on the way. Two or more rows of one token and
 * expert group, when the group lives whole on a far node that receives in one round: their ranks
 * stage the outputs in their own receive buffers, over rows that are used up, and tell the
 * gateway through which the token came; it kept their places when it forwarded them. When all
 * ranks that stage for a source have done so, the gateway sums each place in FP32 in top-k order,
 * rounds, and sends one row. The source takes it as that group's only row, with weight 1: the
 * same sum, rounded once, as in the tree. Single rows go back themselves. Needed for this: room
 * for an output in each row of the receive buffer, and a record per token and client.
 *
 * Why nothing is overwritten: the places belong to the operation that the source has open, and it
 * reads them only when all of them are there. Staged rows and records of a source go before its
 * operation ends, and until all ranks have ended it nobody can send rows of the next one, because
 * that takes the counts of all.
 */
#include "ep/host.h"

#include <string.h>

enum { ROWS_AT_ONCE = 16 }; /* between two looks at the other lane */

/* One expert output row in the payload type. */
static void write_y(const struct ep_group *g, enum dtype y_type, const char *y, char *to)
{
    struct lane lane = ((const struct host *)g->impl)->quiet; /* a thread's own */
    if (y_type == g->p.combine_type) {
        memcpy(to, y, g->layout.y_bytes);
        return;
    }
    struct amat row = {.type = g->p.combine_type, .k = g->p.hidden, .data = to, .ld = g->p.hidden};
    g->kernels->act_convert(&lane, 1, (const float *)(const void *)y, g->p.hidden, &row, false);
}

static size_t y_at(const struct ep_group *g, int i, const struct ep_row_tag *tag)
{
    size_t index = (size_t)tag->token * (size_t)g->p.topk + (size_t)tag->place;
    return g->layout.y[i] + index * g->layout.y_bytes;
}

/* ---- what comes back how ---- */

uint64_t host_combine_plan(struct ep_group *g, struct ep_op *op)
{
    struct host *h = g->impl;
    const struct topology *tp = g->topo;
    struct host_op *ho = &h->op[ep_op_index(g, op)];
    struct ep_route *r = &op->route;
    uint64_t messages = (uint64_t)ep_messages_mine(&ho->counted);
    memset(ho->staged, 0, (size_t)tp->ranks * sizeof *ho->staged);
    memset(ho->reducers, 0, (size_t)tp->nodes * sizeof *ho->reducers);
    if (!g->layout.reduce) return messages;
    bool reduces[tp->nodes];
    for (int n = 0; n < tp->nodes; n++) reduces[n] = n != tp->node;
    for (int d = 0; d < tp->ranks; d++)
        if (ep_rounds(&ho->counted, d) > 1) reduces[tp->node_of[d]] = false;
    ep_route_reduce(r, &g->table[op->layer], g->p.n_group, reduces);
    if (!r->reduced) return messages;
    for (int j = 0; j < r->m * r->topk; j++)
        if (r->reduce[j]) ho->staged[r->slot[j] / g->layout.local]++;
    for (int d = 0; d < tp->ranks; d++) {
        if (ho->staged[d] == 0) continue;
        messages += ho->reducers[tp->node_of[d]]++ == 0;                /* the gateway's */
        messages -= ho->staged[d] == ep_round_mine(&ho->counted, d, 0); /* nothing else */
    }
    return messages;
}

/* ---- the gateway ---- */

uint64_t host_staged_missing(const struct ep_group *g, int i, int client)
{
    const struct host *h = g->impl;
    const struct host_client *c = &h->op[i].client[client];
    if (c->records == 0) return 0;
    return c->staged_need - host_value(g, host_signal_staged(g, i, client));
}

/* Sums the rows that share the place of f[from] and sends the sum. */
static enum status send_sum(struct ep_group *g, int i, const struct ep_entry *head,
                            const struct ep_forward *f, int from)
{
    static const int32_t one_group[EP_MAX_TOPK];
    struct host *h = g->impl;
    const struct ep_layout *lo = &g->layout;
    float weights[EP_MAX_TOPK];
    float *sum = (float *)(void *)h->gathered;
    char *rows = h->gathered + (size_t)g->p.hidden * sizeof *sum;
    int n = 0;
    for (int k = from; k < head->rows; k++) {
        if (f[k].place != f[from].place) continue;
        memcpy(rows + (size_t)n * lo->y_bytes,
               host_receive_row(g, i, f[k].rank, f[k].row) + lo->row_data_at, lo->y_bytes);
        weights[n++] = f[k].weight;
    }
    g->kernels->combine(&h->quiet, g->p.combine_type, 1, g->p.hidden, n, rows, one_group, weights,
                        1, 1, sum, g->p.hidden);
    struct ep_row_tag tag = {.token = head->token, .place = f[from].place};
    size_t at = y_at(g, i, &tag);
    char *to = host_stage(g, head->source, at, lo->y_bytes);
    if (to) write_y(g, DT_F32, (const char *)sum, to);
    g->stats.rows_reduced += (uint64_t)n;
    g->stats.rows_partial++;
    return host_put(g, head->source, at, to, lo->y_bytes);
}

static enum status send_sums(struct ep_group *g, int i, const char *record, int *rows)
{
    struct ep_entry head;
    struct ep_forward f[EP_MAX_TOPK];
    memcpy(&head, record, sizeof head);
    memcpy(f, record + sizeof head, (size_t)head.rows * sizeof *f);
    for (int k = 0; k < head.rows; k++) {
        bool first = true;
        for (int j = 0; j < k; j++) first &= f[j].place != f[k].place;
        if (first) TRY(send_sum(g, i, &head, f, k));
    }
    *rows = head.rows;
    return OK;
}

enum status host_combine_reduce(struct ep_group *g, int i, int client, int budget)
{
    struct host *h = g->impl;
    const struct ep_layout *lo = &g->layout;
    struct host_client *c = &h->op[i].client[client];
    struct ep_entry head;
    int rows, source = h->client_rank[client];
    if (c->records == 0 || host_staged_missing(g, i, client) > 0) return OK;
    for (; c->returned < c->records && budget > 0; c->returned++, budget -= rows)
        TRY(send_sums(g, i, c->record + (size_t)c->returned * lo->record_bytes, &rows));
    if (c->returned < c->records) return OK;
    memcpy(&head, c->record, sizeof head);
    c->records = c->returned = 0;
    if (probe_sampled(g, ep_stamp_number(head.stamp)))
        TRY(probe_stamp(g, h->window, i, PROBE_RETURNS, source, g->topo->ranks + g->topo->node,
                        head.stamp, probe_clock()));
    return host_signal_end(g, source,
                           lo->returned[i] + (size_t)(g->topo->ranks + g->topo->node) * 4,
                           head.stamp, host_signal(g, i, SIG_RETURNED));
}

/* ---- the experts' rank ---- */

/* The received rows of this round, for reading their tags. */
struct received {
    const char *rows;
    size_t pitch;
};

static struct received received(const struct ep_group *g, const struct ep_op *op)
{
    const struct host *h = g->impl;
    int i = ep_op_index(g, op);
    if (op->mode == EP_LOW_LATENCY) return (struct received){h->op[i].packed, g->layout.row_bytes};
    return (struct received){host_receive_row(g, i, g->topo->rank, 0), g->layout.receive_bytes};
}

static struct ep_row_tag tag_of(struct received in, int row)
{
    struct ep_row_tag tag;
    memcpy(&tag, in.rows + (size_t)row * in.pitch, sizeof tag);
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

/* Where this rank may write row j's output itself: the source's memory, or its own for the
 * gateway; NULL if it has to be put over a link. */
static char *output_at(const struct ep_group *g, int i, const struct ep_row_tag *tag, int j)
{
    const struct host *h = g->impl;
    if (tag->reduce) return host_receive_row(g, i, g->topo->rank, j) + g->layout.row_data_at;
    char *near = transport_ptr(h->window, tag->source);
    return near ? near + y_at(g, i, tag) : NULL;
}

/* Tells the sources, and the gateways of those that have rows staged. */
static enum status signal_sources(struct ep_group *g, const struct ep_op *op)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op), R = g->topo->ranks;
    for (int j = 1; j <= R; j++) {
        int source = (g->topo->rank + j) % R;
        if (h->staged_rows[source] > 0)
            TRY(transport_signal(h->transport, h->window, h->gateway_here[source],
                                 host_signal_staged(g, i, h->client_there[source]), 1));
        if (h->source_rows[source] == 0) continue;
        if (op->round == 0 && probe_sampled(g, op->number))
            TRY(probe_stamp(g, h->window, i, PROBE_RETURNS, source, g->topo->rank,
                            ep_stamp(op->number, 0), probe_clock()));
        TRY(host_signal_end(g, source, g->layout.returned[i] + (size_t)g->topo->rank * 4,
                            ep_stamp(op->number, op->round), host_signal(g, i, SIG_RETURNED)));
    }
    return transport_flush(h->transport);
}

/* Rows of y whose place is in this node's memory. */
struct returns {
    struct ep_group *g;
    struct ep_op *op;
    struct received in;
    int index;
    enum dtype y_type;
    const char *y;
    size_t pitch;
};

static void write_near(void *arg, int first, int end, struct lane *poll)
{
    const struct returns *w = arg;
    for (int j = first; j < end; j++) {
        if (j % ROWS_AT_ONCE == 0) lane_poll(poll);
        if (!is_row(w->op, w->g->layout.local, j)) continue;
        struct ep_row_tag tag = tag_of(w->in, j);
        char *to = output_at(w->g, w->index, &tag, j);
        if (to) write_y(w->g, w->y_type, w->y + (size_t)j * w->pitch, to);
    }
}

enum status host_combine_begin(struct ep_group *g, struct ep_op *op, enum dtype y_type,
                               const void *y, int ldy)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op), L = g->layout.local;
    struct received in = received(g, op);
    const char *from = y;
    size_t pitch = (size_t)ldy * dtype_bytes(y_type);
    struct returns near = {g, op, in, i, y_type, from, pitch};
    lane_rows(g->lane, op->total, host_grain(g), write_near, &near);
    memset(h->source_rows, 0, (size_t)g->topo->ranks * sizeof *h->source_rows);
    memset(h->staged_rows, 0, (size_t)g->topo->ranks * sizeof *h->staged_rows);
    for (int j = 0; j < op->total; j++) {
        if (!is_row(op, L, j)) continue;
        struct ep_row_tag tag = tag_of(in, j);
        ++*(tag.reduce ? &h->staged_rows[tag.source] : &h->source_rows[tag.source]);
        if (output_at(g, i, &tag, j)) {
            g->stats.bytes_local += g->layout.y_bytes;
            continue;
        }
        size_t at = y_at(g, i, &tag);
        char *to = host_stage(g, tag.source, at, g->layout.y_bytes);
        if (to) write_y(g, y_type, from + (size_t)j * pitch, to);
        TRY(host_put(g, tag.source, at, to, g->layout.y_bytes));
    }
    return signal_sources(g, op);
}

/* ---- the source ---- */

static struct host_need returns_need(struct ep_group *g, struct ep_op *op)
{
    const struct host *h = g->impl;
    int i = ep_op_index(g, op);
    return (struct host_need){host_signal(g, i, SIG_RETURNED), h->op[i].returned_need};
}

/* A token of which `rows` came back, some of them sums. */
static void combine_token(const struct ep_group *g, const struct ep_route *r, int token,
                          const char *rows, float *out)
{
    struct lane lane = ((const struct host *)g->impl)->quiet;
    int32_t ids[EP_MAX_TOPK];
    float weights[EP_MAX_TOPK];
    int n = 0, topk = r->topk;
    for (int j = token * topk; j < (token + 1) * topk; j++) {
        if (r->place[j] != n) continue; /* in a sum that has its place */
        ids[n] = r->ids[j];
        weights[n++] = r->reduce[j] ? 1.0f : r->weights[j];
    }
    g->kernels->combine(&lane, g->p.combine_type, 1, g->p.hidden, n, rows, ids, weights,
                        g->p.experts, g->p.n_group, out, g->p.hidden);
}

struct sums {
    const struct ep_group *g;
    const struct ep_route *route;
    const char *rows;
    float *out;
    int ldo;
};

static void combine_tokens(void *arg, int first, int end, struct lane *poll)
{
    const struct sums *s = arg;
    size_t pitch = (size_t)s->g->p.topk * s->g->layout.y_bytes;
    for (int t = first; t < end; t++) {
        combine_token(s->g, s->route, t, s->rows + (size_t)t * pitch,
                      s->out + (size_t)t * (size_t)s->ldo);
        lane_poll(poll);
    }
}

enum status host_combine_finish(struct ep_group *g, struct ep_op *op, float *out, int ldo)
{
    struct host *h = g->impl;
    const struct ep_route *r = &op->route;
    int i = ep_op_index(g, op);
    TRY(host_wait(g, op, returns_need));
    if (r->m == 0) return OK;
    const char *rows = (const char *)transport_ptr(h->window, g->topo->rank) + g->layout.y[i];
    if (!r->reduced) {
        g->kernels->combine(g->lane, g->p.combine_type, r->m, g->p.hidden, g->p.topk, rows, r->ids,
                            r->weights, g->p.experts, g->p.n_group, out, ldo);
        return OK;
    }
    struct sums sums = {g, r, rows, out, ldo};
    lane_rows(g->lane, r->m, host_grain(g) / g->p.topk + 1, combine_tokens, &sums);
    return OK;
}
