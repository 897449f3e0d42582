/* sim_route.c - which unit takes a request, and how it gets there.
 *
 * Each epoch turns the units' loads into shares of what arrives, as water fills vessels: the least
 * loaded first, up to one level. A source deals its requests over the shares with the golden-ratio
 * sequence, which keeps every prefix of it even. */
#include "cluster/sim_internal.h"

#include <stdlib.h>
#include <string.h>

static bool takes_new(const struct plan_units *u, int unit)
{
    return u->state[unit] == UNIT_SERVING;
}

/* Shares of ROUTE_SLOTS. amount: the load that will be poured in. */
static void fill_slots(const struct plan_units *units, int n, const int64_t *load, int64_t amount,
                       uint16_t slots[ROUTE_SLOTS])
{
    double share[SIM_MAX_UNITS], level = 0, sum = 0;
    int in = 0;
    bool use[SIM_MAX_UNITS];
    for (int i = 0; i < n; i++) {
        use[i] = takes_new(units, i);
        in += use[i];
        if (use[i]) sum += (double)load[i];
    }
    for (int out = 1; out && in;) {
        level = (sum + (double)amount) / in;
        out = 0;
        for (int i = 0; i < n; i++)
            if (use[i] && (double)load[i] > level) {
                use[i] = false;
                sum -= (double)load[i];
                in--;
                out++;
            }
    }
    double total = 0, before = 0;
    for (int i = 0; i < n; i++) {
        share[i] = use[i] ? level - (double)load[i] : 0;
        total += share[i];
    }
    int at = 0, last = 0;
    for (int i = 0; i < n; i++) {
        if (share[i] <= 0) continue;
        before += share[i];
        int to = (int)(before / total * ROUTE_SLOTS + 0.5);
        while (at < to) slots[at++] = (uint16_t)i;
        last = i;
    }
    while (at < ROUTE_SLOTS) slots[at++] = (uint16_t)last;
}

void sim_route_prepare(struct sim *s)
{
    const struct node_plan *p = s->cfg->plan;
    const int64_t *load = s->view + HEAD_LOADS;
    fill_slots(&p->prefill, s->np, load, 4 * s->last_routed[0] + 4096, s->slots_p);
    fill_slots(&p->decode, s->nd, load + s->np, 4 * s->last_routed[1] + 1024, s->slots_d);
}

/* A unit's rank: contiguous blocks (sim.c, begin), so that order by rank is order by unit. */
static int prefill_owner(const struct sim *s, int unit)
{
    return (int)((int64_t)unit * s->ex->size / s->np);
}

static int decode_owner(const struct sim *s, int unit)
{
    return (int)(((int64_t)(unit + 1) * s->ex->size - 1) / s->nd);
}

static enum status box_put(struct sim_outbox *o, enum sim_box box, const struct sim_request *r)
{
    if (o->n[box] == o->cap[box]) {
        uint32_t cap = o->cap[box] ? 2 * o->cap[box] : 512;
        struct sim_request *bigger = realloc(o->r[box], cap * sizeof *bigger);
        if (!bigger) return error_set(ERR_RESOURCE, "no memory for %u moving requests", cap);
        o->r[box] = bigger;
        o->cap[box] = cap;
    }
    o->r[box][o->n[box]++] = *r;
    return OK;
}

static inline int deal(const uint16_t slots[ROUTE_SLOTS], uint64_t *dealt)
{
    return slots[(*dealt)++ * 0x9e3779b97f4a7c15u >> 54];
}

enum status sim_route_prefill(struct sim *s, enum sim_box box, uint64_t *dealt,
                              struct sim_request *r)
{
    int unit = deal(s->slots_p, dealt);
    r->next = 0;
    r->first_token = prefill_request_work(r);
    s->head[HEAD_LOADS + unit] += r->first_token;
    s->routed[0] += r->first_token;
    r->next = (uint32_t)unit;
    return box_put(&s->out[prefill_owner(s, unit)], box, r);
}

enum status sim_route_decode(struct sim *s, enum sim_box box, uint64_t *dealt,
                             struct sim_request *r)
{
    int unit = deal(s->slots_d, dealt);
    int64_t load = decode_request_load(s, r);
    s->head[HEAD_LOADS + s->np + unit] += load;
    s->routed[1] += load;
    r->next = (uint32_t)unit;
    return box_put(&s->out[decode_owner(s, unit)], box, r);
}

static enum status deliver(struct sim *s, enum sim_box box, const struct sim_request *r, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        int unit = (int)r[i].next;
        if (box == BOX_ARRIVING || box == BOX_MOVED_PREFILL)
            TRY(prefill_unit_receive(s, &s->prefill[unit - s->p0], &r[i]));
        else
            TRY(decode_unit_receive(s, &s->decode[unit - s->d0], &r[i]));
    }
    return OK;
}

/* Message: the summed head, the routed loads, the counts of the boxes, the boxes. */
static enum status pack(struct sim *s, struct sim_outbox *o, size_t n_head,
                        struct exchange_part *part)
{
    size_t bytes = (n_head + 2) * sizeof(int64_t) + sizeof o->n;
    for (int b = 0; b < BOXES; b++) bytes += o->n[b] * sizeof(struct sim_request);
    if (bytes > o->message_cap) {
        free(o->message);
        o->message_cap = 2 * bytes;
        o->message = malloc(o->message_cap);
        if (!o->message) return error_set(ERR_RESOURCE, "no memory for a message");
    }
    char *to = o->message;
    memcpy(to, s->head, n_head * sizeof(int64_t));
    to += n_head * sizeof(int64_t);
    memcpy(to, s->routed, sizeof s->routed);
    to += sizeof s->routed;
    memcpy(to, o->n, sizeof o->n);
    to += sizeof o->n;
    for (int b = 0; b < BOXES; b++) {
        memcpy(to, o->r[b], o->n[b] * sizeof(struct sim_request));
        to += o->n[b] * sizeof(struct sim_request);
    }
    *part = (struct exchange_part){o->message, bytes};
    return OK;
}

static enum status swap_all(struct sim *s, size_t n_head)
{
    for (int q = 0; q < s->ex->size; q++)
        if (q != s->ex->rank) TRY(pack(s, &s->out[q], n_head, &s->send[q]));
    TRY(s->ex->swap(s->ex->ctx, s->send, s->recv));
    for (int q = 0; q < s->ex->size; q++) {
        if (q == s->ex->rank) continue;
        const int64_t *v = s->recv[q].data;
        if (s->recv[q].bytes < (n_head + 2) * sizeof *v)
            return error_set(ERR_COMM, "simulation: a message of %zu bytes from rank %d",
                             s->recv[q].bytes, q);
        for (size_t i = 0; i < n_head; i++) s->view[i] += v[i];
        s->last_routed[0] += v[n_head];
        s->last_routed[1] += v[n_head + 1];
    }
    return OK;
}

/* Box by box and rank by rank, so that a unit sees its requests in the order of their sources,
 * however these are spread over ranks. */
enum status sim_route_exchange(struct sim *s)
{
    size_t n_head = (size_t)(HEAD_LOADS + s->np + s->nd);
    memcpy(s->view, s->head, n_head * sizeof *s->view);
    memcpy(s->last_routed, s->routed, sizeof s->routed);
    if (s->ex->size > 1) TRY(swap_all(s, n_head));
    for (int b = 0; b < BOXES; b++)
        for (int q = 0; q < s->ex->size; q++) {
            if (q == s->ex->rank) {
                TRY(deliver(s, b, s->out[q].r[b], s->out[q].n[b]));
                continue;
            }
            const char *from = (const char *)s->recv[q].data + (n_head + 2) * sizeof(int64_t);
            uint32_t n[BOXES], skip = 0;
            memcpy(n, from, sizeof n);
            for (int k = 0; k < b; k++) skip += n[k];
            TRY(deliver(s, b, (const struct sim_request *)(from + sizeof n) + skip, n[b]));
        }
    for (int q = 0; q < s->ex->size; q++) memset(s->out[q].n, 0, sizeof s->out[q].n);
    memset(s->head, 0, n_head * sizeof *s->head);
    memset(s->routed, 0, sizeof s->routed);
    return OK;
}
