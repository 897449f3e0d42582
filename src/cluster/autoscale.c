/* autoscale.c - the states of units over time. */
#include "cluster/autoscale.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Golden-ratio positions, ranked: any first k are about evenly spread. */
void node_plan_order(int n, int *order)
{
    for (int i = 0; i < n; i++) order[i] = -1;
    for (int i = 0; i < n; i++) {
        double at = fmod((i + 1) * 0.6180339887498949, 1.0);
        int slot = (int)(at * n);
        while (1) { /* the nearest place not yet taken, upwards */
            bool taken = false;
            for (int k = 0; k < i; k++) taken |= order[k] == slot;
            if (!taken) break;
            slot = (slot + 1) % n;
        }
        order[i] = slot;
    }
}

static enum status units_init(struct plan_units *u, const struct plan_role *role)
{
    size_t n = (size_t)role->max_units;
    u->role = *role;
    u->state = calloc(n, sizeof *u->state);
    u->since = calloc(n, sizeof *u->since);
    u->order = calloc(n, sizeof *u->order);
    if (!u->state || !u->since || !u->order)
        return error_set(ERR_RESOURCE, "no memory for the node plan");
    node_plan_order(role->max_units, u->order);
    u->wanted = role->start_units;
    for (int i = 0; i < role->start_units; i++) u->state[u->order[i]] = UNIT_SERVING;
    return OK;
}

enum status node_plan_init(struct node_plan *p, enum plan_mode mode,
                           const struct plan_role *prefill, const struct plan_role *decode,
                           const struct autoscale_params *scale)
{
    memset(p, 0, sizeof *p);
    p->mode = mode;
    p->scale = *scale;
    enum status st = units_init(&p->prefill, prefill);
    if (st == OK) st = units_init(&p->decode, decode);
    if (st != OK) node_plan_free(p);
    return st;
}

static void units_free(struct plan_units *u)
{
    free(u->state);
    free(u->since);
    free(u->order);
}

void node_plan_free(struct node_plan *p)
{
    units_free(&p->prefill);
    units_free(&p->decode);
    memset(p, 0, sizeof *p);
}

enum status node_plan_units_for(const struct node_plan *p, int nodes, int group_prefill,
                                int group_decode, int *prefill, int *decode)
{
    const struct plan_role *pr = &p->prefill.role, *dr = &p->decode.role;
    int all = pr->max_units * pr->nodes + dr->max_units * dr->nodes;
    int group = group_prefill * pr->nodes + group_decode * dr->nodes;
    int fewer = all - nodes;
    if (nodes > all)
        return error_set(ERR_INPUT,
                         "nodes: %d, but %d prefill units of %d nodes and %d decode units of %d "
                         "are only %d",
                         nodes, pr->max_units, pr->nodes, dr->max_units, dr->nodes, all);
    if (group < 1 || fewer % group)
        return error_set(ERR_INPUT,
                         "nodes: %d is %d below the full %d, which is no multiple of a group of "
                         "%d nodes (%d prefill units of %d, %d decode units of %d)",
                         nodes, fewer, all, group, group_prefill, pr->nodes, group_decode,
                         dr->nodes);
    *prefill = pr->max_units - fewer / group * group_prefill;
    *decode = dr->max_units - fewer / group * group_decode;
    if (*prefill < 1 || *decode < 1)
        return error_set(ERR_INPUT, "nodes: %d leaves %d prefill and %d decode units", nodes,
                         *prefill, *decode);
    return OK;
}

enum status node_plan_read_steps(struct node_plan *p, const char *path, int group_prefill,
                                 int group_decode)
{
    FILE *f = fopen(path, "r");
    if (!f) return error_set(ERR_INPUT, "nodes.file: %s: %s", path, strerror(errno));
    char line[512];
    int line_no = 0;
    enum status st = OK;
    while (st == OK && fgets(line, sizeof line, f)) {
        double start;
        int nodes;
        line_no++;
        if (line[0] == '#' || line[0] == '\n') continue;
        if (sscanf(line, "%lf,%*[^,],%d", &start, &nodes) != 2) {
            if (p->n_steps == 0 && strstr(line, "nodes")) continue;
            st = error_set(ERR_INPUT, "%s:%d: expected start_hours,clock,nodes", path, line_no);
            break;
        }
        struct plan_step *s = &p->step[p->n_steps];
        s->start_s = start * 3600;
        double before = p->n_steps ? s[-1].start_s : -1;
        if (p->n_steps >= PLAN_MAX_STEPS - 1 || s->start_s <= before ||
            (p->n_steps == 0 && start != 0))
            st = error_set(ERR_INPUT, "%s:%d: %g h: steps begin at 0, ascend, and are at most %d",
                           path, line_no, start, PLAN_MAX_STEPS - 1);
        if (st == OK)
            st =
                node_plan_units_for(p, nodes, group_prefill, group_decode, &s->prefill, &s->decode);
        p->n_steps++;
    }
    fclose(f);
    if (st == OK && p->n_steps == 0) st = error_set(ERR_INPUT, "%s: no steps", path);
    return st;
}

static bool set_state(struct plan_units *u, int unit, enum unit_state state, double t)
{
    if (u->state[unit] == state) return false;
    u->state[unit] = (uint8_t)state;
    u->since[unit] = t;
    return true;
}

/* The first `now` units of the order serve, but those beyond `soon` drain; the rest is off. */
static bool serve_first(struct plan_units *u, int now, int soon, double t)
{
    bool changed = false;
    for (int i = 0; i < u->role.max_units; i++)
        changed |= set_state(u, u->order[i],
                             i >= now    ? UNIT_OFF
                             : i >= soon ? UNIT_DRAINING
                                         : UNIT_SERVING,
                             t);
    u->wanted = now;
    return changed;
}

static bool advance_steps(struct node_plan *p, double t)
{
    while (p->at_step + 1 < p->n_steps && p->step[p->at_step + 1].start_s <= t) p->at_step++;
    const struct plan_step *now = &p->step[p->at_step], *soon = now;
    if (p->at_step + 1 < p->n_steps && now[1].start_s - p->scale.drain_s <= t) soon = now + 1;
    bool changed = serve_first(&p->prefill, now->prefill, soon->prefill, t);
    return serve_first(&p->decode, now->decode, soon->decode, t) || changed;
}

/* Units of the order up to wanted start (or serve on); the others drain. */
static bool advance_auto(struct plan_units *u, const struct autoscale_params *a, double t)
{
    bool changed = false;
    for (int i = 0; i < u->role.max_units; i++) {
        int unit = u->order[i];
        double age = t - u->since[unit];
        switch (u->state[unit]) {
        case UNIT_OFF:
            if (i < u->wanted) changed |= set_state(u, unit, UNIT_STARTING, t);
            break;
        case UNIT_STARTING:
            if (i >= u->wanted)
                changed |= set_state(u, unit, UNIT_OFF, t);
            else if (age >= a->startup_s)
                changed |= set_state(u, unit, UNIT_SERVING, t);
            break;
        case UNIT_SERVING:
            if (i >= u->wanted) changed |= set_state(u, unit, UNIT_DRAINING, t);
            break;
        default: /* draining: back to work, or time is up */
            if (i < u->wanted)
                changed |= set_state(u, unit, UNIT_SERVING, t);
            else if (age >= a->drain_s)
                changed |= set_state(u, unit, UNIT_OFF, t);
        }
    }
    return changed;
}

static void decide(struct plan_units *u, const struct autoscale_params *a, double peak, double t)
{
    int need = (int)ceil(peak * a->headroom / u->role.capacity - 1e-9);
    if (need < u->role.min_units) need = u->role.min_units;
    if (need > u->role.max_units) need = u->role.max_units;
    if (need >= u->wanted) {
        u->wanted = need;
        u->fewer_since = t;
    } else if (t - u->fewer_since >= a->keep_s) {
        u->wanted--; /* one at a time, so that a dip does not empty the cluster */
        u->fewer_since = need < u->wanted ? t - a->keep_s : t;
    }
}

void node_plan_observe(struct node_plan *p, double t, double prefill_load, double decode_load)
{
    p->seen_load[0] += prefill_load;
    p->seen_load[1] += decode_load;
    if (++p->seen * 60 < p->scale.interval_s) return;
    for (int i = 0; i < 2; i++) {
        forecast_add(p->forecast[i], p->seen_load[i] / p->seen);
        p->seen_load[i] = 0;
    }
    p->seen = 0;
    decide(&p->prefill, &p->scale, forecast_peak(p->forecast[0]), t);
    decide(&p->decode, &p->scale, forecast_peak(p->forecast[1]), t);
}

bool node_plan_advance(struct node_plan *p, double t)
{
    if (p->mode == PLAN_FIXED) return false;
    if (p->mode == PLAN_STEPS) return advance_steps(p, t);
    bool changed = advance_auto(&p->prefill, &p->scale, t);
    return advance_auto(&p->decode, &p->scale, t) || changed;
}

void node_plan_release(struct plan_units *u, int unit, double t)
{
    set_state(u, unit, UNIT_OFF, t);
}

int node_plan_paid(const struct node_plan *p, const struct plan_units *u)
{
    if (p->mode != PLAN_AUTO) return u->wanted;
    int n = 0;
    for (int i = 0; i < u->role.max_units; i++) n += u->state[i] != UNIT_OFF;
    return n;
}
