/* probe.c - see probe.h. */
#include "ep/probe.h"

#include "core/clock.h"
#include "ep/plan.h"

#include <stdlib.h>
#include <string.h>

/* As it lies in the receiver's window. */
struct sent {
    uint32_t stamp, us;
};

enum status probe_create(const struct ep_group *g, struct probe *p)
{
    size_t n = (size_t)g->topo->ranks;
    p->link = calloc(n, sizeof *p->link);
    p->ahead_us = calloc(n, sizeof *p->ahead_us);
    p->missing = calloc(n, 1);
    p->now = calloc(n, 1);
    p->open = calloc(n, 1);
    p->came_us = calloc(n, sizeof *p->came_us);
    p->kind = PROBE_NONE;
    if (p->link && p->ahead_us && p->missing && p->now && p->open && p->came_us) return OK;
    return error_set(ERR_RESOURCE, "out of memory for ep's link statistics");
}

void probe_free(struct probe *p)
{
    free(p->link);
    free(p->ahead_us);
    free(p->missing);
    free(p->now);
    free(p->open);
    free(p->came_us);
}

static int64_t now_us(void)
{
    return clock_now_ns() / 1000;
}

uint32_t probe_clock(void)
{
    uint32_t us = (uint32_t)now_us();
    return us ? us : 1;
}

_Static_assert((int)PROBE_KINDS == (int)EP_TIMES && sizeof(struct sent) == 8, "as in plan.c");

static size_t sent_at(const struct ep_group *g, int i, enum probe_kind kind, int index)
{
    size_t row = (size_t)kind * (size_t)(g->topo->ranks + g->topo->nodes) + (size_t)index;
    return g->layout.times[i] + row * sizeof(struct sent);
}

enum status probe_stamp(struct ep_group *g, struct window *window, int i, enum probe_kind kind,
                        int peer, int index, uint32_t stamp, uint32_t us)
{
    struct sent sent = {stamp, us};
    return transport_put(g->waiter->transport, window, peer, sent_at(g, i, kind, index), &sent,
                         sizeof sent);
}

/* When a source sent, on this rank's clock; false when it has left no time. */
static bool sent_us(const struct ep_group *g, const struct probe *p, const struct ep_op *op,
                    const struct window *window, int source, int64_t now, int64_t *out)
{
    const char *own = transport_ptr(window, g->topo->rank);
    int i = ep_op_index(g, op), places[2] = {source, g->topo->ranks + g->topo->node_of[source]};
    for (int k = 0; k < (p->kind == PROBE_RETURNS ? 2 : 1); k++) {
        struct sent sent;
        memcpy(&sent, own + sent_at(g, i, p->kind, places[k]), sizeof sent);
        if (sent.stamp != ep_stamp(op->number, 0)) continue;
        /* Times wrap after 71 minutes; ages do not get that old. */
        uint32_t theirs = (uint32_t)(now + p->ahead_us[source]);
        *out = now - (int32_t)(theirs - sent.us);
        return true;
    }
    return false;
}

void probe_close(struct ep_group *g, struct probe *p, const struct ep_op *op,
                 const struct window *window)
{
    if (p->kind == PROBE_NONE) return;
    int last = -1;
    int64_t end = now_us(), last_came = 0, last_sent = 0;
    for (int r = 0; r < g->topo->ranks; r++) {
        int64_t sent, came = p->missing[r] ? end : p->came_us[r];
        p->link[r].waits++;
        if (!p->open[r] || !sent_us(g, p, op, window, r, end, &sent)) continue;
        bool far = !transport_ptr(window, r);
        if (far) {
            double latency = came > sent ? 1e-6 * (double)(came - sent) : 0;
            p->link[r].latencies++;
            p->link[r].latency_s += latency;
            if (latency > p->link[r].latency_max_s) p->link[r].latency_max_s = latency;
        } else {
            came = sent;
        }
        if (last >= 0 && came <= last_came) continue;
        last = r;
        last_came = came;
        last_sent = sent;
    }
    p->kind = PROBE_NONE;
    p->wait_s += 1e-6 * (double)(end - p->begin_us);
    if (last < 0) return;
    if (last_sent < p->begin_us) last_sent = p->begin_us;
    if (last_sent > end) last_sent = end;
    p->link[last].last++;
    double late = 1e-6 * (double)(last_sent - p->begin_us);
    p->link[last].late_s += late;
    p->link[last].late_s2 += late * late;
    if (!transport_ptr(window, last)) p->link[last].transfer_s += 1e-6 * (double)(end - last_sent);
}

void probe_look(struct ep_group *g, struct probe *p, const struct ep_op *op, enum probe_kind kind,
                const struct window *window)
{
    int64_t now = now_us();
    size_t n = (size_t)g->topo->ranks;
    memset(p->now, 0, n);
    (void)g->backend->awaited(g, op, p->now);
    if (kind != p->kind) {
        probe_close(g, p, op, window);
        p->kind = kind;
        p->begin_us = now;
        memcpy(p->open, p->now, n);
    } else {
        for (size_t r = 0; r < n; r++)
            if (p->missing[r] && !p->now[r]) p->came_us[r] = now;
    }
    memcpy(p->missing, p->now, n);
}
