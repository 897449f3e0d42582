/* stage_time_comm.c - see stage_time_comm.h. */
#include "cluster/stage_time_comm.h"

#include <math.h>
#include <stdio.h>

enum { FIT_TOKENS_MAX = 256, EP_POINTS = 16 };

double comm_bound_us(double tokens, double experts, double hidden, double dispatch_bytes,
                     double combine_bytes, double gb_s)
{
    return tokens * experts * hidden * (dispatch_bytes + combine_bytes) / (gb_s * 1e3);
}

/* Of k draws without replacement from `all` items, none is among `marked`. */
static double none_of(double all, double marked, int k)
{
    double p = 1;
    for (int i = 0; i < k; i++) p *= all - i > 0 ? fmax(0, all - marked - i) / (all - i) : 0;
    return p;
}

double comm_distinct_groups(const struct model_config *m)
{
    int t = m->n_group > 1 ? m->topk_group : 1;
    double per_group = (double)m->experts / m->n_group;
    return t * (1 - none_of(t * per_group, per_group, m->topk));
}

static double choose(int n, int k)
{
    double c = 1;
    for (int i = 0; i < k; i++) c *= (double)(n - i) / (i + 1);
    return k < 0 || k > n ? 0 : c;
}

double comm_distinct(const struct model_config *m, int bins)
{
    if (bins <= 1) return 1;
    if (m->n_group <= 1 || m->n_group % bins) return bins * (1 - pow(1 - 1.0 / bins, m->topk));
    int groups = m->n_group, kept = m->topk_group, mine = groups / bins;
    double per_group = (double)m->experts / groups, hit = 0;
    for (int j = 1; j <= mine && j <= kept; j++) { /* j of the kept groups live in this bin */
        double p = choose(mine, j) * choose(groups - mine, kept - j) / choose(groups, kept);
        hit += p * (1 - none_of(kept * per_group, j * per_group, m->topk));
    }
    return bins * hit;
}

static double row_kb(enum hw_op op, double hidden)
{
    return (op == HW_LL_DISPATCH ? hidden + hidden / 32 : 2 * hidden) * 1e-3;
}

/* One EP size's points into a line. */
static struct comm_line fit_line(const struct hardware *hw, const struct hw_point *p, int n)
{
    double sx = 0, sy = 0, sxx = 0, sxy = 0, lo = INFINITY, hi = 0, used = 0;
    for (int i = 0; i < n; i++) {
        if (p[i].b > FIT_TOKENS_MAX || p[i].b < 8) continue;
        double x = p[i].b * p[i].d * row_kb(p[i].op, p[i].c), y = p[i].value;
        sx += x, sy += y, sxx += x * x, sxy += x * y, used += 1;
        lo = fmin(lo, x), hi = fmax(hi, x);
    }
    struct comm_line l = {0, 1 / hw->rdma_gb_s};
    if (used > 1 && hi > 2 * lo) {
        l.us_per_kb = (used * sxy - sx * sy) / (used * sxx - sx * sx);
        l.fixed_us = fmax(0, (sy - l.us_per_kb * sx) / used);
        return l;
    }
    if (used < 1) return l;
    l.fixed_us = fmax(0, (sy - l.us_per_kb * sx) / used);
    if (l.fixed_us == 0) l.us_per_kb = sy / sx; /* faster than the network: all NVLink */
    return l;
}

/* Share of a rank's rows that leave its NVLink domain. */
static double remote_share(const struct hardware *hw, double ep)
{
    return ep <= hw->nvlink_domain ? 0 : 1 - hw->nvlink_domain / ep;
}

static struct comm_line blend(struct comm_line a, struct comm_line b, double w)
{
    struct comm_line l = {a.fixed_us + w * (b.fixed_us - a.fixed_us),
                          a.us_per_kb + w * (b.us_per_kb - a.us_per_kb)};
    l.fixed_us = fmax(0, l.fixed_us);
    return l;
}

static void note(struct comm_model *c, const char *what, double ep, double lo, double hi)
{
    if (*c->extrapolated) return;
    snprintf(c->extrapolated, sizeof c->extrapolated,
             "%s at EP%.0f lies beyond the measured EP%.0f to EP%.0f: extrapolated", what, ep, lo,
             hi);
}

static struct comm_line line_at(const struct hardware *hw, enum hw_op op, int ep,
                                struct comm_model *c)
{
    double size[EP_POINTS];
    struct comm_line line[EP_POINTS];
    int n, k = 0;
    const struct hw_point *p = hardware_points(hw, op, &n);
    for (int i = 0; i < n && k < EP_POINTS;) {
        int j = i;
        while (j < n && p[j].a == p[i].a) j++;
        size[k] = p[i].a;
        line[k++] = fit_line(hw, p + i, j - i);
        i = j;
    }
    if (!k) {
        double r = remote_share(hw, ep);
        snprintf(c->extrapolated, sizeof c->extrapolated,
                 "no measured low-latency all-to-all: line rates and %g us fixed",
                 hw->comm.ll_fixed_us);
        return (struct comm_line){hw->comm.ll_fixed_us,
                                  r / hw->rdma_gb_s + (1 - r) / hw->nvlink_gb_s};
    }
    if (ep <= size[0]) return line[0];
    if (k == 1) { /* one size only: the network's line rate is the other end */
        note(c, "the low-latency all-to-all", ep, size[0], size[0]);
        struct comm_line all = {line[0].fixed_us + hw->comm.ll_fixed_us, 1 / hw->rdma_gb_s};
        return blend(line[0], all, remote_share(hw, ep));
    }
    int i = 0;
    while (i < k - 2 && size[i + 1] < ep) i++;
    if (ep > size[k - 1]) note(c, "the low-latency all-to-all", ep, size[0], size[k - 1]);
    double a = remote_share(hw, size[i]), b = remote_share(hw, size[i + 1]);
    double w = b > a ? (remote_share(hw, ep) - a) / (b - a)
                     : fmin(1, log2(ep / size[i]) / log2(size[i + 1] / size[i]));
    return blend(line[i], line[i + 1], w);
}

static double normal_at(const struct hardware *hw, enum hw_op op, int ep, struct comm_model *c)
{
    int n;
    const struct hw_point *p = hardware_points(hw, op, &n);
    bool local = ep <= hw->nvlink_domain;
    double lo = local ? hw->nvlink_gb_s : hw->rdma_gb_s, hi = lo, lo_ep = 0, hi_ep = 0;
    for (int i = 0; i < n; i++) { /* sizes of the other domain say nothing about this one */
        if ((p[i].a <= hw->nvlink_domain) != local) continue;
        if (p[i].a <= ep || !lo_ep) lo = p[i].value, lo_ep = p[i].a;
        hi = p[i].value, hi_ep = p[i].a;
        if (p[i].a >= ep) break;
    }
    if (!hi_ep) {
        snprintf(c->extrapolated, sizeof c->extrapolated,
                 "no measured normal all-to-all at EP%d: line rate", ep);
        return lo;
    }
    if (ep > hi_ep) note(c, "the normal all-to-all", ep, lo_ep, hi_ep);
    if (hi_ep <= lo_ep || ep <= lo_ep || ep > hi_ep) return ep <= lo_ep ? lo : hi;
    double w = log2(ep / lo_ep) / log2(hi_ep / lo_ep);
    return lo + w * (hi - lo);
}

void comm_model_build(const struct hardware *hw, const struct model_config *m,
                      const struct comm_shape *shape, struct comm_model *c)
{
    *c = (struct comm_model){.hierarchical = shape->nodes >= 1 && m->n_group > 1 &&
                                             m->n_group % shape->nodes == 0};
    if (shape->ep == 1) return;
    c->rank_rows_per_token = comm_distinct(m, shape->ep);
    if (shape->low_latency) {
        c->ll[0] = line_at(hw, HW_LL_DISPATCH, shape->ep, c);
        c->ll[1] = line_at(hw, HW_LL_COMBINE, shape->ep, c);
        return;
    }
    bool local = shape->ep <= hw->nvlink_domain; /* rows go straight to their ranks */
    double hops = local ? c->rank_rows_per_token : comm_distinct(m, shape->nodes);
    c->rows_per_token[0] = c->rows_per_token[1] = hops;
    if (shape->group_tree)
        c->rows_per_token[1] = c->hierarchical ? comm_distinct_groups(m) : m->topk;
    c->normal_gb_s[0] = normal_at(hw, HW_NORMAL_DISPATCH, shape->ep, c);
    c->normal_gb_s[1] = normal_at(hw, HW_NORMAL_COMBINE, shape->ep, c);
}
