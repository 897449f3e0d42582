/* host.c - the host backend: buffers, signal numbers, rows, waiting. */
#include "ep/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- signals ---- */

/* Each op index: SIG_FIRST_ARRAY single ones, then credits [ranks], rings [clients], taken
 * [nodes], staged [clients]. */
static int window_signals(int ranks, int clients, int nodes)
{
    return EP_OPS * (SIG_FIRST_ARRAY + ranks + 2 * clients + nodes);
}

static int signals_per_op(const struct ep_group *g)
{
    return window_signals(g->topo->ranks, g->layout.clients, g->topo->nodes) / EP_OPS;
}

int host_signals(const struct ep_group *g)
{
    return EP_OPS * signals_per_op(g);
}

int host_signal(const struct ep_group *g, int op, enum host_signal which)
{
    return op * signals_per_op(g) + (int)which;
}

int host_signal_credit(const struct ep_group *g, int op, int dest)
{
    return host_signal(g, op, SIG_FIRST_ARRAY) + dest;
}

int host_signal_ring(const struct ep_group *g, int op, int client)
{
    return host_signal_credit(g, op, g->topo->ranks) + client;
}

int host_signal_taken(const struct ep_group *g, int op, int node)
{
    return host_signal_ring(g, op, g->layout.clients) + node;
}

int host_signal_staged(const struct ep_group *g, int op, int client)
{
    return host_signal_taken(g, op, g->topo->nodes) + client;
}

uint64_t host_value(const struct ep_group *g, int signal)
{
    const struct host *h = g->impl;
    return transport_signal_value(h->window, signal);
}

/* ---- rows ---- */

int host_grain(const struct ep_group *g)
{
    enum { WORTH_BYTES = 128 * 1024 }; /* tens of us of copying; a wake-up costs several */
    return (int)(WORTH_BYTES / (g->layout.row_bytes + 1)) + 1;
}

void *host_stage(struct ep_group *g, int peer, size_t offset, size_t bytes)
{
    struct host *h = g->impl;
    bool near = g->topo->node_of[peer] == g->topo->node;
    *(near ? &g->stats.bytes_local : &g->stats.bytes_remote) += bytes;
    if (!near && bytes > transport_reserve_max(h->transport)) return h->scratch;
    return transport_reserve(h->transport, h->window, peer, offset, bytes);
}

enum status host_put(struct ep_group *g, int peer, size_t offset, void *staged, size_t bytes)
{
    struct host *h = g->impl;
    if (!staged) return error_set(ERR_COMM, "ep: the transport was aborted");
    if (staged != h->scratch) return OK;
    return transport_put(h->transport, h->window, peer, offset, staged, bytes);
}

void host_write_row(const struct ep_group *g, const struct ep_op *op, int index, char *row)
{
    const struct ep_layout *lo = &g->layout;
    const struct amat *x = &op->x;
    int token = index / g->p.topk;
    size_t pitch = (size_t)x->ld * dtype_bytes(x->type);
    const struct ep_route *r = &op->route;
    struct ep_row_tag tag = {g->topo->rank, token, (int16_t)(index % g->p.topk), 0,
                             r->weights[index]};
    if (r->reduced) tag.place = (int16_t)r->place[index];
    if (r->reduced) tag.reduce = (int16_t)r->reduce[index];
    memcpy(row, &tag, sizeof tag);
    memcpy(row + lo->row_data_at, (const char *)x->data + (size_t)token * pitch, lo->row_data);
    if (lo->row_scales)
        memcpy(row + lo->row_scale_at, x->scale + (size_t)token * (size_t)x->lds, lo->row_scales);
}

struct amat host_rows(const struct ep_group *g, const char *base, size_t pitch)
{
    const struct ep_layout *lo = &g->layout;
    struct amat a = {.type = g->p.dispatch_type, .k = g->p.hidden, .data = base + lo->row_data_at};
    a.ld = (int)(pitch / dtype_bytes(a.type));
    if (lo->row_scales) {
        a.scale = (const float *)(const void *)(base + lo->row_scale_at);
        a.lds = (int)(pitch / sizeof(float));
    }
    return a;
}

char *host_receive_row(const struct ep_group *g, int i, int rank, int row)
{
    const struct host *h = g->impl;
    return (char *)transport_ptr(h->window, rank) + g->layout.receive[i] +
           (size_t)row * g->layout.receive_bytes;
}

enum status host_signal_end(struct ep_group *g, int peer, size_t offset, uint32_t stamp, int signal)
{
    struct host *h = g->impl;
    return transport_put_signal(h->transport, h->window, peer, offset, &stamp, sizeof stamp, signal,
                                1);
}

/* ---- waiting ---- */

struct wait_arg {
    struct ep_group *g;
    struct ep_op *op;
    struct host_need (*need)(struct ep_group *, struct ep_op *);
    bool sampled;
    enum status status;
};

static uint64_t need_missing(const struct ep_group *g, struct host_need need)
{
    return need.value - host_value(g, need.signal);
}

/* Fewer signals than `missing` if progress of either op could use them: then this rank wants to
 * be woken although its own wait goes on. */
static uint64_t progress_missing(const struct ep_group *g, int i, uint64_t missing)
{
    const struct host *h = g->impl;
    if (h->op[i].sending) return 1;
    uint64_t least = missing;
    for (int c = 0; c < h->clients && g->layout.reduce; c++) {
        uint64_t staged = host_staged_missing(g, i, c);
        if (staged > 0 && staged < least) least = staged;
    }
    if (h->op[i].counting) {
        uint64_t counts = need_missing(g, host_counts_need(g, i));
        if (counts < least) least = counts > 0 ? counts : 1;
    }
    return least;
}

/* Signals that still have to come. */
/* Of a sampled operation's first round. */
static void look(struct ep_group *g, const struct ep_op *op)
{
    struct host *h = g->impl;
    enum probe_kind kind = PROBE_FIRST;
    if (op->state == EP_RETURNED)
        kind = PROBE_RETURNS;
    else if (op->mode == EP_NORMAL && !h->op[ep_op_index(g, op)].counting)
        kind = PROBE_ROWS;
    probe_look(g, &h->probe, op, kind, h->window);
}

static unsigned wait_missing(void *arg)
{
    struct wait_arg *a = arg;
    const struct host *h = a->g->impl;
    a->status = host_progress(a->g, HOST_ALL_ROWS);
    if (a->status != OK) return 0;
    if (a->sampled) look(a->g, a->op);
    struct host_need need = a->need(a->g, a->op);
    uint64_t missing = need_missing(a->g, need);
    /* All counts came since progress last looked: not over, but look again at once. */
    bool counting = h->op[ep_op_index(a->g, a->op)].counting;
    if (missing == 0) return counting && a->op->state == EP_SENT;
    uint64_t least = missing;
    bool alone = true; /* nothing else to wake for */
    for (int i = 0; i < EP_OPS; i++) {
        least = progress_missing(a->g, i, least);
        alone = alone && !h->op[i].sending && (!h->op[i].counting || a->op == &a->g->op[i]);
    }
    if (alone) transport_watch(h->transport, h->window, need.signal, need.value);
    return least > UINT32_MAX / 4 ? UINT32_MAX / 4 : (unsigned)least;
}

enum status host_wait(struct ep_group *g, struct ep_op *op,
                      struct host_need (*need)(struct ep_group *, struct ep_op *))
{
    struct host *h = g->impl;
    bool sampled = op->round == 0 && probe_sampled(g, op->number);
    struct wait_arg a = {g, op, need, sampled, OK};
    TRY(wait_until(g->waiter, wait_missing, &a));
    if (sampled) probe_close(g, &h->probe, op, h->window);
    return a.status;
}

/* ---- creation ---- */

static enum status create_op(struct ep_group *g, struct host_op *ho)
{
    size_t slots = (size_t)g->p.slots, ranks = (size_t)g->topo->ranks;
    ho->send = calloc((size_t)g->topo->nodes, sizeof *ho->send);
    ho->need = calloc(ranks, sizeof *ho->need);
    ho->credit_used = calloc(ranks, sizeof *ho->credit_used);
    ho->client = calloc((size_t)g->layout.clients + 1, sizeof *ho->client);
    ho->staged = calloc(ranks, sizeof *ho->staged);
    ho->reducers = calloc((size_t)g->topo->nodes, sizeof *ho->reducers);
    ho->begin = calloc(slots, sizeof *ho->begin);
    ho->total = calloc(slots, sizeof *ho->total);
    ho->mine = calloc(slots, sizeof *ho->mine);
    ho->count_row = calloc(slots + 1, sizeof *ho->count_row);
    bool ok = ho->send && ho->need && ho->credit_used && ho->client && ho->staged && ho->reducers &&
              ho->begin && ho->total && ho->mine && ho->count_row;
    for (int c = 0; c < g->layout.clients && g->layout.reduce && ok; c++) {
        ho->client[c].record = malloc((size_t)g->p.chunk_tokens * g->layout.record_bytes);
        ok = ho->client[c].record != NULL;
    }
    if (g->layout.packed > 0) {
        ho->packed = aligned_alloc(64, (size_t)g->layout.packed * g->layout.row_bytes);
        ok = ok && ho->packed;
    }
    return ok ? OK : error_set(ERR_RESOURCE, "out of memory for ep's private buffers");
}

/* Rank r's gateway into node n is the rank there with r's local index, modulo n's size. A
 * gateway numbers its clients by rank. */
static void find_gateways(struct ep_group *g)
{
    struct host *h = g->impl;
    const struct topology *tp = g->topo;
    for (int n = 0; n < tp->nodes; n++) {
        int at = tp->local % tp->node_size[n];
        h->gateway[n] = tp->node_ranks[tp->node_first[n] + at];
        h->my_client[n] = 0;
        for (int r = 0; r < tp->rank; r++)
            h->my_client[n] += tp->node_of[r] != n && tp->local_of[r] % tp->node_size[n] == at;
    }
    for (int r = 0; r < tp->ranks && g->layout.clients > 0; r++)
        if (tp->node_of[r] != tp->node && tp->local_of[r] % tp->node_size[tp->node] == tp->local)
            h->client_rank[h->clients++] = r;
    const int *here = tp->node_ranks + tp->node_first[tp->node];
    for (int s = 0, size = tp->node_size[tp->node]; s < tp->ranks; s++) {
        int at = tp->local_of[s] % size;
        h->gateway_here[s] = here[at];
        for (int r = 0; r < s; r++)
            h->client_there[s] += tp->node_of[r] != tp->node && tp->local_of[r] % size == at;
    }
}

static void hook(void *group)
{
    struct ep_group *g = group;
    struct host *h = g->impl;
    enum status st = host_progress(g, HOST_HOOK_ROWS);
    if (st != OK) h->failed = st;
}

static void host_destroy(struct ep_group *g)
{
    struct host *h = g->impl;
    /* The hook stays until all ranks have come here: others may need this gateway. */
    if (h->window) transport_window_destroy(h->transport, h->window);
    transport_hook(h->transport, NULL, g);
    for (int i = 0; i < EP_OPS; i++) {
        struct host_op *ho = &h->op[i];
        free(ho->send);
        free(ho->need);
        free(ho->credit_used);
        for (int c = 0; c < g->layout.clients && ho->client; c++) free(ho->client[c].record);
        free(ho->client);
        free(ho->staged);
        free(ho->reducers);
        free(ho->begin);
        free(ho->total);
        free(ho->mine);
        free(ho->count_row);
        free(ho->packed);
    }
    free(h->scratch);
    free(h->client_rank);
    free(h->my_client);
    free(h->gateway);
    free(h->gateway_here);
    free(h->client_there);
    free(h->gathered);
    free(h->source_rows);
    free(h->staged_rows);
    probe_free(&h->probe);
    free(h);
    g->impl = NULL;
}

static enum status host_create(struct ep_group *g)
{
    struct host *h = calloc(1, sizeof *h);
    if (!h) return error_set(ERR_RESOURCE, "out of memory for ep");
    g->impl = h;
    h->transport = g->waiter->transport;
    h->scratch = malloc(g->layout.entry_bytes + g->layout.y_bytes);
    h->client_rank = calloc((size_t)g->layout.clients + 1, sizeof *h->client_rank);
    h->my_client = calloc((size_t)g->topo->nodes, sizeof *h->my_client);
    h->gateway = calloc((size_t)g->topo->nodes, sizeof *h->gateway);
    h->source_rows = calloc((size_t)g->topo->ranks, sizeof *h->source_rows);
    h->gateway_here = calloc((size_t)g->topo->ranks, sizeof *h->gateway_here);
    h->client_there = calloc((size_t)g->topo->ranks, sizeof *h->client_there);
    h->gathered = malloc((size_t)g->p.topk * g->layout.y_bytes + (size_t)g->p.hidden * 4 + 64);
    lane_init(&h->quiet, g->lane->dev, 1);
    h->staged_rows = calloc((size_t)g->topo->ranks, sizeof *h->staged_rows);
    bool ok = h->scratch && h->client_rank && h->my_client && h->gateway && h->source_rows &&
              h->gateway_here && h->client_there && h->gathered && h->staged_rows;
    enum status st = ok ? OK : error_set(ERR_RESOURCE, "out of memory for ep");
    if (st == OK) st = probe_create(g, &h->probe);
    for (int i = 0; i < EP_OPS && st == OK; i++) st = create_op(g, &h->op[i]);
    if (st == OK) find_gateways(g);
    TRY(st);
    TRY(transport_window_create(h->transport, g->layout.window_bytes, host_signals(g), &h->window));
    return transport_hook(h->transport, hook, g);
}

/* ---- the table ---- */

static enum status dispatch_begin(struct ep_group *g, struct ep_op *op)
{
    g->stats.rows_sent += (uint64_t)op->route.m * (uint64_t)g->p.topk;
    /* Alone there is nobody to be quick for: group the rows once, in place. */
    if (op->mode == EP_LOW_LATENCY && !g->layout.fixed_slots) op->mode = EP_NORMAL;
    if (op->mode == EP_LOW_LATENCY) return host_lowlatency_begin(g, op);
    return host_normal_begin(g, op);
}

static enum status dispatch_finish(struct ep_group *g, struct ep_op *op, struct amat *rows)
{
    struct host *h = g->impl;
    if (h->failed != OK) return h->failed;
    if (op->mode == EP_LOW_LATENCY) return host_lowlatency_receive(g, op, rows);
    return host_normal_receive(g, op, rows);
}

/* ---- what an operation waits for ---- */

static uint32_t own_word(const struct ep_group *g, size_t offset)
{
    const struct host *h = g->impl;
    uint32_t word;
    memcpy(&word, (const char *)transport_ptr(h->window, g->topo->rank) + offset, sizeof word);
    return word;
}

/* Counts, or the rows with their counts in low-latency mode: first word = operation number. */
static void mark_counts(const struct ep_group *g, const struct ep_op *op, uint8_t *marks)
{
    const struct ep_layout *lo = &g->layout;
    int i = ep_op_index(g, op), parity = (int)(op->number % EP_PARITY);
    bool fixed = op->mode == EP_LOW_LATENCY;
    size_t at = fixed ? lo->fixed_counts[i][parity] : lo->counts[i][parity];
    size_t pitch = fixed ? (size_t)lo->local * 8 : (size_t)(1 + g->p.slots) * 4;
    for (int r = 0; r < g->topo->ranks; r++)
        if (own_word(g, at + (size_t)r * pitch) != (uint32_t)(op->number + 1)) marks[r] = 1;
}

static void mark_rows(const struct ep_group *g, const struct ep_op *op, uint8_t *marks)
{
    const struct host *h = g->impl;
    int i = ep_op_index(g, op);
    for (int r = 0; r < g->topo->ranks; r++)
        if (ep_round_source(&h->op[i].counted, r, op->round) &&
            own_word(g, g->layout.arrived[i] + (size_t)r * 4) != ep_stamp(op->number, op->round))
            marks[r] = 1;
}

static void mark_returns(const struct ep_group *g, const struct ep_op *op, uint8_t *marks)
{
    const struct host *h = g->impl;
    const struct host_op *ho = &h->op[ep_op_index(g, op)];
    const int32_t *first = op->route.first;
    size_t at = g->layout.returned[ep_op_index(g, op)];
    int L = g->layout.local, R = g->topo->ranks;
    for (int r = 0; r < R; r++) {
        int rows = first[(r + 1) * L] - first[r * L];
        if (op->route.reduced) rows -= ho->staged[r];
        int rounds = op->mode == EP_NORMAL ? ep_rounds_mine(&ho->counted, r) : 1;
        if (rows > 0 && own_word(g, at + (size_t)r * 4) != ep_stamp(op->number, rounds - 1))
            marks[r] = 1;
    }
    for (int n = 0; n < g->topo->nodes && op->route.reduced; n++)
        if (ho->reducers[n] > 0 && own_word(g, at + (size_t)(R + n) * 4) != ep_stamp(op->number, 0))
            marks[h->gateway[n]] = 1;
}

static const char *awaited(const struct ep_group *g, const struct ep_op *op, uint8_t *marks)
{
    const struct host *h = g->impl;
    if (op->state == EP_FREE || op->state == EP_RECEIVED) return "";
    if (op->state == EP_RETURNED && !op->more) {
        mark_returns(g, op, marks);
        return "combine rows";
    }
    if (op->mode == EP_NORMAL && !h->op[ep_op_index(g, op)].counting) {
        mark_rows(g, op, marks);
        return "dispatch rows";
    }
    mark_counts(g, op, marks);
    return op->mode == EP_NORMAL ? "dispatch counts" : "dispatch rows";
}

static const struct ep_link *links(const struct ep_group *g, double *wait_s)
{
    const struct host *h = g->impl;
    *wait_s = h->probe.wait_s;
    return h->probe.link;
}

static void set_clocks(struct ep_group *g, const int64_t *ahead_us)
{
    struct host *h = g->impl;
    memcpy(h->probe.ahead_us, ahead_us, (size_t)g->topo->ranks * sizeof *ahead_us);
}

const struct ep_backend ep_backend_host = {
    .name = "host",
    .signals = window_signals,
    .create = host_create,
    .destroy = host_destroy,
    .dispatch_begin = dispatch_begin,
    .dispatch_finish = dispatch_finish,
    .dispatch_next = host_normal_next,
    .combine_begin = host_combine_begin,
    .combine_finish = host_combine_finish,
    .awaited = awaited,
    .links = links,
    .set_clocks = set_clocks,
};
