/* host_normal.c - DISPATCH for prefill: counts, rows once per node, forwarding, rounds.
 *
 * Every rank tells every other how many rows it has for each slot. From then on each row's place
 * at its destination is known to its source. Rows for ranks of the own node are written there.
 * For another node a token goes once to a gateway there, in a ring of entries, with the places of
 * all its rows in that node; the gateway writes them. The source tells the destination when its
 * last row of a round is there (through the gateway for another node).
 *
 * Why nothing is overwritten too early, without clearing or barriers:
 * - counts[op][parity]: a rank two operations ahead has finished the one between, for which it
 *   needed my counts, which I sent after I was done with the first.
 * - receive rows: a source writes rows only when it has all counts of the operation; mine go out
 *   when my previous operation on these buffers is over. In later rounds it waits for my credit.
 * - ring entries: the source counts what the gateway has taken.
 * Why it cannot lock up: entries go in order of rounds and are sent only when the destination's
 * credit is there, so a gateway can always empty its rings; a destination needs only earlier
 * rounds' rows to come to the point where it gives credit.
 */
#include "ep/host.h"

#include <string.h>

/* ---- counts ---- */

enum status host_normal_begin(struct ep_group *g, struct ep_op *op)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op), parity = (int)(op->number % EP_PARITY), R = g->topo->ranks;
    struct host_op *ho = &h->op[i];
    size_t bytes = (size_t)(1 + g->p.slots) * 4;
    size_t at = g->layout.counts[i][parity] + (size_t)g->topo->rank * bytes;
    ho->count_row[0] = (int32_t)(op->number + 1);
    for (int s = 0; s < g->p.slots; s++)
        ho->count_row[1 + s] = op->route.first[s + 1] - op->route.first[s];
    ho->counts_uses[parity]++;
    ho->counting = true;
    /* Each rank starts with its neighbour, so that they do not all write to rank 0 first. */
    for (int j = 1; j <= R; j++) {
        int peer = (g->topo->rank + j) % R;
        if (probe_sampled(g, op->number))
            TRY(probe_stamp(g, h->window, i, PROBE_FIRST, peer, g->topo->rank,
                            ep_stamp(op->number, 0), probe_clock()));
        TRY(transport_put_signal(h->transport, h->window, peer, at, ho->count_row, bytes,
                                 host_signal(g, i, SIG_COUNTS + parity), 1));
    }
    TRY(transport_flush(h->transport));
    return host_progress(g, R == 1 ? HOST_ALL_ROWS : HOST_HOOK_ROWS);
}

struct host_need host_counts_need(const struct ep_group *g, int i)
{
    const struct host *h = g->impl;
    int parity = (int)(g->op[i].number % EP_PARITY);
    return (struct host_need){host_signal(g, i, SIG_COUNTS + parity),
                              h->op[i].counts_uses[parity] * (uint64_t)g->topo->ranks};
}

static bool counts_here(const struct ep_group *g, int i)
{
    struct host_need need = host_counts_need(g, i);
    return host_value(g, need.signal) == need.value;
}

/* Sources that will report the end of their rows for me in this round. */
static uint64_t sources_of_round(const struct ep_counted *c, int round)
{
    uint64_t n = 0;
    for (int s = 0; s < c->ranks; s++) n += ep_round_source(c, s, round);
    return n;
}

/* All counts are here: where every row goes is now known. */
static void counts_arrived(struct ep_group *g, struct ep_op *op)
{
    struct host *h = g->impl;
    const struct topology *tp = g->topo;
    int i = ep_op_index(g, op);
    struct host_op *ho = &h->op[i];
    const char *own = transport_ptr(h->window, tp->rank);
    ho->counted = (struct ep_counted){
        .ranks = tp->ranks,
        .slots = g->p.slots,
        .local = g->layout.local,
        .rank = tp->rank,
        .cap = g->layout.cap,
        .align = g->p.row_align,
        .stride = 1 + g->p.slots,
        .counts =
            (const int32_t *)(const void *)(own + g->layout.counts[i][op->number % EP_PARITY]) + 1,
        .begin = ho->begin,
        .total = ho->total,
        .mine = ho->mine};
    ep_count(&ho->counted);
    ep_count_route(&ho->counted, &op->route);
    ho->sending = false;
    for (int n = 0; n < tp->nodes; n++) {
        struct host_sender *s = &ho->send[n];
        *s = (struct host_sender){.posted = s->posted};
        for (int j = 0; j < tp->node_size[n]; j++) {
            int rounds = ep_rounds_mine(&ho->counted, tp->node_ranks[tp->node_first[n] + j]);
            if (rounds > s->rounds) s->rounds = rounds;
        }
        ho->sending |= s->rounds > 0;
    }
    ho->arrived_need += sources_of_round(&ho->counted, 0);
    ho->returned_need += host_combine_plan(g, op);
    ho->counting = false;
}

/* ---- sending ---- */

/* Makes the sender's next round with rows ready to go; false while a destination has not given
 * credit, or when there is none. */
static bool open_round(struct ep_group *g, struct ep_op *op, int node)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op);
    struct host_op *ho = &h->op[i];
    struct host_sender *s = &ho->send[node];
    const int *ranks = g->topo->node_ranks + g->topo->node_first[node];
    int size = g->topo->node_size[node];
    for (; s->round < s->rounds; s->round++) {
        int rows = 0;
        for (int j = 0; j < size; j++) {
            ho->need[ranks[j]] = ep_round_mine(&ho->counted, ranks[j], s->round);
            rows += ho->need[ranks[j]];
        }
        if (rows == 0) continue;
        for (int j = 0; j < size && s->round > 0; j++)
            if (ho->need[ranks[j]] > 0 &&
                host_value(g, host_signal_credit(g, i, ranks[j])) <= ho->credit_used[ranks[j]])
                return false;
        for (int j = 0; j < size && s->round > 0; j++)
            if (ho->need[ranks[j]] > 0) ho->credit_used[ranks[j]]++;
        s->token = 0;
        s->open = true;
        return true;
    }
    return false;
}

/* Rank where row `index` (token * topk + choice) goes, or -1 if not to this node and round. */
static int row_dest(const struct ep_group *g, const struct ep_op *op, int index, int node,
                    int round)
{
    int dest = op->route.slot[index] / g->layout.local;
    if (g->topo->node_of[dest] != node) return -1;
    return op->route.row[index] / g->layout.cap == round ? dest : -1;
}

/* A row of mine for dest is there (or in its gateway's hands); true if it was the round's last. */
static bool row_done(struct host_op *ho, int dest)
{
    return --ho->need[dest] == 0;
}

struct near {
    struct ep_group *g;
    struct ep_op *op;
    int index, from, round;
};

static void write_tokens(void *arg, int first, int end, struct lane *poll)
{
    const struct near *n = arg;
    struct ep_group *g = n->g;
    int topk = g->p.topk;
    for (int t = n->from + first; t < n->from + end; t++) {
        for (int k = 0; k < topk; k++) {
            int index = t * topk + k, dest = row_dest(g, n->op, index, g->topo->node, n->round);
            if (dest < 0) continue;
            int row = n->op->route.row[index] - n->round * g->layout.cap;
            host_write_row(g, n->op, index, host_receive_row(g, n->index, dest, row));
        }
        lane_poll(poll);
    }
}

/* Writes the rows of tokens [from, to) for ranks of my own node straight to their places. */
static enum status send_near(struct ep_group *g, struct ep_op *op, int from, int to)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op), topk = g->p.topk, round = h->op[i].send[g->topo->node].round;
    int node = g->topo->node;
    struct near near = {g, op, i, from, round};
    lane_rows(g->lane, to - from, host_grain(g) / topk + 1, write_tokens, &near);
    for (int index = from * topk; index < to * topk; index++) {
        int dest = row_dest(g, op, index, node, round);
        if (dest < 0) continue;
        g->stats.bytes_local += g->layout.row_bytes;
        if (!row_done(&h->op[i], dest)) continue;
        if (round == 0 && probe_sampled(g, op->number))
            TRY(probe_stamp(g, h->window, i, PROBE_ROWS, dest, g->topo->rank,
                            ep_stamp(op->number, 0), probe_clock()));
        TRY(host_signal_end(g, dest, g->layout.arrived[i] + (size_t)g->topo->rank * 4,
                            ep_stamp(op->number, round), host_signal(g, i, SIG_ARRIVED)));
    }
    return OK;
}

/* The token's rows for this node and round, as the gateway will read them; 0 if none. */
static int fill_forwards(struct ep_group *g, struct ep_op *op, int token, int node,
                         struct ep_forward *forward)
{
    struct host *h = g->impl;
    struct host_op *ho = &h->op[ep_op_index(g, op)];
    const struct ep_route *r = &op->route;
    int n = 0, round = ho->send[node].round;
    for (int k = 0; k < g->p.topk; k++) {
        int index = token * g->p.topk + k, dest = row_dest(g, op, index, node, round);
        if (dest < 0) continue;
        forward[n++] = (struct ep_forward){.rank = dest,
                                           .row = r->row[index] - round * g->layout.cap,
                                           .weight = r->weights[index],
                                           .place = r->reduced ? r->place[index] : (int8_t)k,
                                           .reduce = r->reduced && r->reduce[index],
                                           .last = row_done(ho, dest)};
    }
    return n;
}

/* Puts tokens into the ring at the gateway until it is full or `budget` is spent. */
static enum status send_far(struct ep_group *g, struct ep_op *op, int node, int budget)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op);
    struct host_sender *s = &h->op[i].send[node];
    const struct ep_layout *lo = &g->layout;
    uint64_t taken = host_value(g, host_signal_taken(g, i, node)), before = s->posted;
    size_t ring = lo->rings[i] + (size_t)h->my_client[node] * (size_t)lo->ring * lo->entry_bytes;
    struct ep_forward forward[g->p.topk];
    for (; s->token < op->route.m && budget > 0; s->token++, budget--) {
        if (s->posted - taken >= (uint64_t)lo->ring) break;
        int n = fill_forwards(g, op, s->token, node, forward);
        if (n == 0) continue;
        size_t at = ring + (size_t)(s->posted % (uint64_t)lo->ring) * lo->entry_bytes;
        char *e = host_stage(g, h->gateway[node], at, lo->entry_bytes);
        if (e) {
            bool timed = s->round == 0 && probe_sampled(g, op->number);
            struct ep_entry head = {g->topo->rank,
                                    s->token,
                                    n,
                                    h->op[i].reducers[node],
                                    ep_stamp(op->number, s->round),
                                    timed ? probe_clock() : 0};
            memcpy(e, &head, sizeof head);
            memcpy(e + sizeof head, forward, (size_t)n * sizeof *forward);
            host_write_row(g, op, s->token * g->p.topk, e + lo->entry_row);
        }
        TRY(host_put(g, h->gateway[node], at, e, lo->entry_bytes));
        s->posted++;
    }
    if (s->posted == before) return OK;
    return transport_signal(h->transport, h->window, h->gateway[node],
                            host_signal_ring(g, i, h->my_client[node]), s->posted - before);
}

/* Sends to one node what can go. */
static enum status send_node(struct ep_group *g, struct ep_op *op, int node, int budget)
{
    struct host *h = g->impl;
    struct host_sender *s = &h->op[ep_op_index(g, op)].send[node];
    while (budget > 0 && s->round < s->rounds) {
        if (!s->open && !open_round(g, op, node)) return OK;
        int from = s->token;
        if (node == g->topo->node) {
            int room = budget / g->p.topk + 1;
            s->token = op->route.m - from <= room ? op->route.m : from + room;
            TRY(send_near(g, op, from, s->token));
        } else {
            TRY(send_far(g, op, node, budget));
        }
        if (s->token == op->route.m) {
            s->open = false;
            s->round++;
        } else if (s->token == from) {
            return OK; /* the ring is full */
        }
        budget -= s->token - from;
    }
    return OK;
}

/* ---- forwarding ---- */

/* Keeps which rows of a token are to be summed on their way back. */
static void record(const struct ep_group *g, struct host_client *c, const char *entry)
{
    struct ep_entry head;
    struct ep_forward f;
    memcpy(&head, entry, sizeof head);
    char *to = c->record + (size_t)c->records * g->layout.record_bytes;
    int kept = 0;
    for (int n = 0; n < head.rows; n++) {
        memcpy(&f, entry + sizeof head + (size_t)n * sizeof f, sizeof f);
        if (f.reduce) memcpy(to + sizeof head + (size_t)kept++ * sizeof f, &f, sizeof f);
    }
    if (kept == 0) return;
    head.rows = kept;
    memcpy(to, &head, sizeof head);
    if (c->records++ == 0) c->staged_need += (uint64_t)head.reducers;
}

static enum status forward_entry(struct ep_group *g, int i, const char *entry)
{
    const struct ep_layout *lo = &g->layout;
    struct ep_entry head;
    memcpy(&head, entry, sizeof head);
    struct window *window = ((struct host *)g->impl)->window;
    for (int n = 0; n < head.rows; n++) {
        struct ep_forward f;
        memcpy(&f, entry + sizeof head + (size_t)n * sizeof f, sizeof f);
        struct ep_row_tag tag = {head.source, head.token, f.place, f.reduce, f.weight};
        char *row = host_receive_row(g, i, f.rank, f.row);
        memcpy(row, &tag, sizeof tag);
        memcpy(row + lo->row_data_at, entry + lo->entry_row + lo->row_data_at,
               lo->row_bytes - lo->row_data_at);
        g->stats.bytes_local += lo->row_bytes;
        if (!f.last) continue;
        if (head.sent_us)
            TRY(probe_stamp(g, window, i, PROBE_ROWS, f.rank, head.source, head.stamp,
                            head.sent_us));
        TRY(host_signal_end(g, f.rank, lo->arrived[i] + (size_t)head.source * 4, head.stamp,
                            host_signal(g, i, SIG_ARRIVED)));
    }
    return OK;
}

static enum status forward(struct ep_group *g, int i, int client, int budget)
{
    struct host *h = g->impl;
    const struct ep_layout *lo = &g->layout;
    struct host_client *c = &h->op[i].client[client];
    uint64_t *done = &c->forwarded, before = *done;
    uint64_t have = host_value(g, host_signal_ring(g, i, client));
    const char *ring = (const char *)transport_ptr(h->window, g->topo->rank) + lo->rings[i] +
                       (size_t)client * (size_t)lo->ring * lo->entry_bytes;
    for (; *done < have && budget > 0; budget--) {
        const char *entry = ring + (size_t)(*done % (uint64_t)lo->ring) * lo->entry_bytes;
        if (lo->reduce) record(g, c, entry);
        TRY(forward_entry(g, i, entry));
        ++*done;
    }
    if (*done == before) return OK;
    return transport_signal(h->transport, h->window, h->client_rank[client],
                            host_signal_taken(g, i, g->topo->node), *done - before);
}

/* ---- progress ---- */

static enum status progress_op(struct ep_group *g, int i, int budget)
{
    struct host *h = g->impl;
    struct host_op *ho = &h->op[i];
    if (ho->counting && counts_here(g, i)) counts_arrived(g, &g->op[i]);
    if (ho->sending) {
        bool left = false;
        for (int j = 0; j < g->topo->nodes; j++) {
            int node = (g->topo->node + 1 + j) % g->topo->nodes; /* far ones first */
            TRY(send_node(g, &g->op[i], node, budget));
            left |= ho->send[node].round < ho->send[node].rounds;
        }
        ho->sending = left;
    }
    for (int c = 0; c < h->clients; c++) TRY(forward(g, i, c, budget));
    for (int c = 0; c < h->clients && g->layout.reduce; c++)
        TRY(host_combine_reduce(g, i, c, budget));
    return OK;
}

enum status host_progress(struct ep_group *g, int budget)
{
    struct host *h = g->impl;
    enum status st = h->failed;
    if (h->working) return st;
    h->working = true;
    for (int i = 0; i < EP_OPS && st == OK; i++) st = progress_op(g, i, budget);
    h->working = false;
    return st;
}

/* ---- receiving ---- */

static struct host_need rows_need(struct ep_group *g, struct ep_op *op)
{
    const struct host *h = g->impl;
    int i = ep_op_index(g, op);
    if (h->op[i].counting) return host_counts_need(g, i);
    return (struct host_need){host_signal(g, i, SIG_ARRIVED), h->op[i].arrived_need};
}

enum status host_normal_receive(struct ep_group *g, struct ep_op *op, struct amat *rows)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op);
    TRY(host_wait(g, op, rows_need));
    op->total = ep_round_groups(&h->op[i].counted, op->round, op->begin, op->rows);
    op->more = op->round + 1 < ep_rounds(&h->op[i].counted, g->topo->rank);
    *rows = host_rows(g, host_receive_row(g, i, g->topo->rank, 0), g->layout.receive_bytes);
    return OK;
}

/* The caller is done with the receive buffer: credit for the sources of the next round. */
enum status host_normal_next(struct ep_group *g, struct ep_op *op, struct amat *rows)
{
    struct host *h = g->impl;
    int i = ep_op_index(g, op);
    struct host_op *ho = &h->op[i];
    for (int s = 0; s < g->topo->ranks; s++) {
        if (!ep_round_source(&ho->counted, s, op->round)) continue;
        ho->arrived_need++;
        TRY(transport_signal(h->transport, h->window, s, host_signal_credit(g, i, g->topo->rank),
                             1));
    }
    return host_normal_receive(g, op, rows);
}
