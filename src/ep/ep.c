/* ep.c - the public calls: argument checks, order of calls, routing; the rows are moved by the
 * backend. */
#include "ep/ep.h"

#include "ep/backend.h"
#include "ep/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Most ranks of other nodes that have one gateway (the rank with their local index, modulo the
 * size of its node). */
static int clients_of(const struct topology *tp)
{
    int most = 0;
    for (int n = 0; n < tp->nodes; n++)
        for (int j = 0; j < tp->node_size[n]; j++) {
            int clients = 0;
            for (int r = 0; r < tp->ranks; r++)
                clients += tp->node_of[r] != n && tp->local_of[r] % tp->node_size[n] == j;
            if (clients > most) most = clients;
        }
    return most;
}

/* The same for nodes as equal as can be; exact when nodes divides ep_size. */
static int clients_guess(const struct ep_params *p)
{
    int nodes = p->nodes < p->ep_size ? p->nodes : p->ep_size;
    int large = (p->ep_size + nodes - 1) / nodes, small = p->ep_size / nodes;
    return (nodes - 1) * ((large + small - 1) / small);
}

static struct ep_memory memory_of(const struct ep_params *p, const struct ep_layout *o)
{
    enum { PAGE = 4096, SIGNAL = 64 }; /* as transport_window_create lays out a window */
    size_t signals = (size_t)ep_backend_host.signals(p->ep_size, o->clients, p->nodes) * SIGNAL;
    size_t rows = (size_t)o->tokens * (size_t)p->topk, ops = EP_OPS;
    struct ep_memory m = {
        .window = (signals + PAGE - 1) / PAGE * PAGE + (o->window_bytes + PAGE - 1) / PAGE * PAGE,
        .heap = o->heap_bytes,
        .receive = ops * (size_t)o->cap * o->receive_bytes,
        .fixed = o->fixed_slots ? ops * (size_t)o->ranks * (size_t)o->part_rows * o->row_bytes : 0,
        .combine = ops * rows * o->y_bytes,
        .rings = ops * (size_t)o->clients * (size_t)o->ring * o->entry_bytes,
        .receive_rows = o->cap,
        .fixed_rows = o->fixed_slots ? o->ranks * o->part_rows : 0,
    };
    m.control = m.window - m.receive - m.fixed - m.combine - m.rings;
    return m;
}

struct ep_memory ep_memory_held(const struct ep_group *g)
{
    return memory_of(&g->p, &g->layout);
}

enum status ep_memory(const struct ep_params *params, struct ep_memory *out)
{
    struct ep_params p = *params;
    struct ep_layout layout;
    TRY(ep_params_check(&p));
    ep_layout_fill(&p, clients_guess(&p), ep_reduce_possible(&p), &layout);
    *out = memory_of(&p, &layout);
    return OK;
}

/* ---- the group ---- */

static enum status check_topology(struct ep_params *p, const struct topology *tp)
{
    if (p->ep_size == 0) p->ep_size = tp->ranks;
    if (p->nodes == 0) p->nodes = tp->nodes;
    if (p->ep_size == tp->ranks && p->nodes == tp->nodes) return OK;
    return error_set(ERR_BUG, "ep: %d ranks on %d nodes asked for, but the unit has %d on %d",
                     p->ep_size, p->nodes, tp->ranks, tp->nodes);
}

static enum status create_ops(struct ep_group *g)
{
    for (int i = 0; i < EP_OPS; i++) {
        struct ep_op *op = &g->op[i];
        TRY(ep_route_init(&op->route, g->layout.tokens, g->p.topk, g->p.slots));
        op->begin = calloc((size_t)g->layout.local, sizeof *op->begin);
        op->rows = calloc((size_t)g->layout.local, sizeof *op->rows);
        if (!op->begin || !op->rows) return error_set(ERR_RESOURCE, "out of memory for ep");
    }
    return OK;
}

/* The tables of all layers; `homes`: whether a group of any of them is whole on a node. */
static enum status create_tables(struct ep_group *g, const struct ep_placement *placement,
                                 bool *homes)
{
    int slots = g->p.slots;
    *homes = false;
    if (placement->slots != slots || placement->layers < 1)
        return error_set(ERR_BUG, "ep: placement of %d layers with %d slots, the group has %d",
                         placement->layers, placement->slots, slots);
    g->table = calloc((size_t)placement->layers, sizeof *g->table);
    if (!g->table) return error_set(ERR_RESOURCE, "out of memory for ep");
    for (; g->layers < placement->layers; g->layers++) {
        struct ep_table *t = &g->table[g->layers];
        TRY(ep_table_init(t, g->p.experts, slots, g->p.ep_size,
                          placement->expert_of_slot + (size_t)g->layers * (size_t)slots));
        *homes |= ep_table_homes(t, g->p.n_group, slots / g->p.ep_size, g->topo->node_of);
    }
    return OK;
}

enum status ep_create(const struct ep_params *p, const struct ep_placement *placement,
                      struct waiter *waiter, const struct kernels *kernels, struct lane *lane,
                      struct ep_group **out)
{
    struct ep_group *g = calloc(1, sizeof *g);
    if (!g) return error_set(ERR_RESOURCE, "out of memory for ep");
    g->p = *p;
    g->waiter = waiter;
    g->kernels = kernels;
    g->lane = lane;
    g->topo = transport_topology(waiter->transport);
    enum status st = check_topology(&g->p, g->topo);
    if (st == OK) st = ep_params_check(&g->p);
    if (st != OK) goto fail;
    bool homes;
    if ((st = create_tables(g, placement, &homes)) != OK) goto fail;
    ep_layout_fill(&g->p, clients_of(g->topo), homes && ep_reduce_possible(&g->p), &g->layout);
    ep_set_choose(g, NULL, NULL);
    if ((st = create_ops(g)) != OK) goto fail;
    g->backend = &ep_backend_host;
    if ((st = g->backend->create(g)) != OK) goto fail;
    *out = g;
    return OK;
fail:
    ep_destroy(g);
    return st;
}

void ep_destroy(struct ep_group *g)
{
    if (!g) return;
    if (g->impl) g->backend->destroy(g);
    for (int i = 0; i < EP_OPS; i++) {
        ep_route_free(&g->op[i].route);
        free(g->op[i].begin);
        free(g->op[i].rows);
    }
    for (int l = 0; l < g->layers; l++) ep_table_free(&g->table[l]);
    free(g->table);
    free(g);
}

void ep_set_choose(struct ep_group *g, ep_choose_fn choose, void *arg)
{
    g->choose = choose ? choose : ep_choose_default;
    g->choose_arg = choose ? arg : g->table;
}

int ep_replicas(const struct ep_group *g, int layer, int expert, const int32_t **slots)
{
    const struct ep_table *t = &g->table[layer];
    *slots = t->slot + t->first[expert];
    return t->first[expert + 1] - t->first[expert];
}

struct ep_stats ep_statistics(const struct ep_group *g)
{
    return g->stats;
}

const struct ep_link *ep_links(const struct ep_group *g, double *wait_s)
{
    return g->backend->links(g, wait_s);
}

void ep_set_clocks(struct ep_group *g, const int64_t *ahead_us)
{
    g->backend->set_clocks(g, ahead_us);
}

const char *ep_awaited(const struct ep_group *g, int op, uint8_t *marks)
{
    memset(marks, 0, (size_t)g->topo->ranks);
    return g->backend->awaited(g, &g->op[op], marks);
}

/* ---- operations ---- */

static enum status expect_state(struct ep_group *g, int op, enum ep_state state, const char *call)
{
    static const char *const names[] = {"free", "sent", "received", "returned"};
    if (op < 0 || op >= EP_OPS) return error_set(ERR_BUG, "%s: operation %d", call, op);
    if (g->op[op].state == state) return OK;
    return error_set(ERR_BUG, "%s: operation %d is %s, must be %s", call, op,
                     names[g->op[op].state], names[state]);
}

static enum status check_begin(const struct ep_group *g, int layer, enum ep_mode mode, int m,
                               const struct amat *x)
{
    if (layer < 0 || layer >= g->layers)
        return error_set(ERR_BUG, "ep_dispatch_begin: layer %d of %d", layer, g->layers);
    int most = mode == EP_NORMAL ? g->p.chunk_tokens : g->p.max_tokens;
    if (m < 0 || m > most || most == 0)
        return error_set(ERR_BUG,
                         "ep_dispatch_begin: %d tokens, but the %s mode was created for %d", m,
                         mode == EP_NORMAL ? "normal" : "low-latency", most);
    if (m > 0 && (x->type != g->p.dispatch_type || x->k != g->p.hidden))
        return error_set(ERR_BUG, "ep_dispatch_begin: rows of type %d, k %d; expected %d, %d",
                         (int)x->type, x->k, (int)g->p.dispatch_type, g->p.hidden);
    return OK;
}

static bool holds(const struct ep_table *t, int slot, int expert)
{
    int i = t->first[expert];
    while (i < t->first[expert + 1] && t->slot[i] != slot) i++;
    return i < t->first[expert + 1];
}

static enum status route(struct ep_group *g, struct ep_op *op, int m, const int32_t *ids,
                         const float *weights)
{
    struct ep_route *r = &op->route;
    size_t n = (size_t)m * (size_t)g->p.topk;
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= g->p.experts)
            return error_set(ERR_BUG, "ep_dispatch_begin: token %zu chose expert %d of %d",
                             i / (size_t)g->p.topk, ids[i], g->p.experts);
    r->m = m;
    r->reduced = false;
    if (n > 0) {
        memcpy(r->ids, ids, n * sizeof *ids);
        memcpy(r->weights, weights, n * sizeof *weights);
        g->choose(g->choose_arg, op->layer, g->topo->rank, m, g->p.topk, r->ids, r->slot);
    }
    for (size_t i = 0; i < n; i++)
        if (!holds(&g->table[op->layer], r->slot[i], r->ids[i]))
            return error_set(ERR_BUG,
                             "ep: the replica choice gave slot %d for expert %d of layer "
                             "%d",
                             r->slot[i], r->ids[i], op->layer);
    ep_route_sort(r);
    return OK;
}

enum status ep_dispatch_begin(struct ep_group *g, int op, int layer, enum ep_mode mode, int m,
                              const struct amat *x, const int32_t *ids, const float *weights)
{
    TRY(expect_state(g, op, EP_FREE, "ep_dispatch_begin"));
    TRY(check_begin(g, layer, mode, m, x));
    struct ep_op *o = &g->op[op];
    o->layer = layer;
    TRY(route(g, o, m, ids, weights));
    o->mode = mode;
    o->x = m > 0 ? *x : (struct amat){.type = g->p.dispatch_type, .k = g->p.hidden};
    o->round = 0;
    g->stats.ops++;
    TRY(g->backend->dispatch_begin(g, o));
    o->state = EP_SENT;
    return OK;
}

static void receive_out(struct ep_group *g, struct ep_op *o, const struct amat *rows,
                        struct ep_recv *out)
{
    o->state = EP_RECEIVED;
    *out = (struct ep_recv){.groups = g->layout.local,
                            .begin = o->begin,
                            .rows = o->rows,
                            .total = o->total,
                            .x = *rows,
                            .more = o->more};
    for (int l = 0; l < g->layout.local; l++) g->stats.rows_received += (uint64_t)o->rows[l];
}

enum status ep_dispatch_finish(struct ep_group *g, int op, struct ep_recv *out)
{
    struct amat rows;
    TRY(expect_state(g, op, EP_SENT, "ep_dispatch_finish"));
    TRY(g->backend->dispatch_finish(g, &g->op[op], &rows));
    receive_out(g, &g->op[op], &rows, out);
    return OK;
}

enum status ep_dispatch_next(struct ep_group *g, int op, struct ep_recv *out)
{
    struct amat rows;
    TRY(expect_state(g, op, EP_RETURNED, "ep_dispatch_next"));
    if (!g->op[op].more) return error_set(ERR_BUG, "ep_dispatch_next: there is no more");
    g->op[op].round++;
    g->stats.rounds++;
    TRY(g->backend->dispatch_next(g, &g->op[op], &rows));
    receive_out(g, &g->op[op], &rows, out);
    return OK;
}

enum status ep_combine_begin(struct ep_group *g, int op, enum dtype y_type, const void *y, int ldy)
{
    TRY(expect_state(g, op, EP_RECEIVED, "ep_combine_begin"));
    if (y_type != DT_F32 && y_type != g->p.combine_type)
        return error_set(ERR_BUG, "ep_combine_begin: rows of type %d, COMBINE carries %d",
                         (int)y_type, (int)g->p.combine_type);
    TRY(g->backend->combine_begin(g, &g->op[op], y_type, y, ldy));
    g->op[op].state = EP_RETURNED;
    return OK;
}

enum status ep_combine_finish(struct ep_group *g, int op, float *out, int ldo)
{
    TRY(expect_state(g, op, EP_RETURNED, "ep_combine_finish"));
    if (g->op[op].more)
        return error_set(ERR_BUG, "ep_combine_finish: operation %d has more rounds", op);
    TRY(g->backend->combine_finish(g, &g->op[op], out, ldo));
    g->op[op].state = EP_FREE;
    g->op[op].number++;
    return OK;
}
