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

enum status ep_memory(const struct ep_params *params, struct ep_memory *out)
{
    struct ep_params p = *params;
    struct ep_layout layout;
    TRY(ep_params_check(&p));
    ep_layout_fill(&p, clients_guess(&p), &layout);
    out->window = layout.window_bytes;
    out->heap = layout.heap_bytes;
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
    ep_layout_fill(&g->p, clients_of(g->topo), &g->layout);
    if ((st = ep_set_placement(g, placement)) != OK) goto fail;
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
    ep_table_free(&g->table);
    free(g);
}

enum status ep_set_placement(struct ep_group *g, const struct ep_placement *placement)
{
    struct ep_table table;
    for (int i = 0; i < EP_OPS; i++)
        if (g->op[i].state != EP_FREE)
            return error_set(ERR_BUG, "ep: new placement while operation %d is open", i);
    if (placement->slots != g->p.slots)
        return error_set(ERR_BUG, "ep: placement has %d slots, the group %d", placement->slots,
                         g->p.slots);
    TRY(ep_table_init(&table, g->p.experts, g->p.ep_size, placement));
    ep_table_free(&g->table);
    g->table = table;
    return OK;
}

void ep_set_choose(struct ep_group *g, ep_choose_fn choose, void *arg)
{
    g->choose = choose ? choose : ep_choose_default;
    g->choose_arg = choose ? arg : &g->table;
}

int ep_replicas(const struct ep_group *g, int expert, const int32_t **slots)
{
    *slots = g->table.slot + g->table.first[expert];
    return g->table.first[expert + 1] - g->table.first[expert];
}

struct ep_stats ep_statistics(const struct ep_group *g)
{
    return g->stats;
}

void ep_describe_wait(const struct ep_group *g, int op, char *buf, size_t bytes)
{
    g->backend->describe_wait(g, &g->op[op], buf, bytes);
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

static enum status check_begin(const struct ep_group *g, enum ep_mode mode, int m,
                               const struct amat *x)
{
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
    if (n > 0) {
        memcpy(r->ids, ids, n * sizeof *ids);
        memcpy(r->weights, weights, n * sizeof *weights);
        g->choose(g->choose_arg, g->topo->rank, m, g->p.topk, r->ids, r->slot);
    }
    for (size_t i = 0; i < n; i++)
        if (r->slot[i] < 0 || r->slot[i] >= g->p.slots)
            return error_set(ERR_BUG, "ep: the replica choice gave slot %d of %d", r->slot[i],
                             g->p.slots);
    ep_route_sort(r);
    return OK;
}

enum status ep_dispatch_begin(struct ep_group *g, int op, enum ep_mode mode, int m,
                              const struct amat *x, const int32_t *ids, const float *weights)
{
    TRY(expect_state(g, op, EP_FREE, "ep_dispatch_begin"));
    TRY(check_begin(g, mode, m, x));
    struct ep_op *o = &g->op[op];
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
    *out = (struct ep_recv){.groups = g->layout.local, .begin = o->begin, .rows = o->rows,
                            .total = o->total, .x = *rows, .more = o->more};
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
