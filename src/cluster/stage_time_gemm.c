/* stage_time_gemm.c - see stage_time_gemm.h. */
#include "cluster/stage_time_gemm.h"

#include <math.h>

static struct gemm_time base_time(const struct gemm_curve *c, double n, double k, double m,
                                  double groups, double sm_share)
{
    struct gemm_time t;
    t.launch_us = c->launch_us;
    t.memory_us = groups * (n * k * c->weight_bytes + m * (k * c->in_bytes + n * c->out_bytes)) /
                  (c->hbm_gb_s * 1e3);
    t.compute_us = groups * 2 * m * n * k / (c->peak_tflops * 1e6) / sm_share;
    t.us = t.launch_us + t.memory_us + t.compute_us;
    return t;
}

static void set_kind(const struct hardware *hw, enum gemm_kind kind, struct gemm_curve *c)
{
    bool fp8 = kind != GEMM_BF16 && kind != GEMM_GROUPED_BF16;
    c->weight_bytes = c->in_bytes = fp8 ? 1 : 2;
    c->out_bytes = 2;
    c->peak_tflops = fp8 ? hw->fp8_tflops : hw->bf16_tflops;
    c->hbm_gb_s = hw->hbm_gb_s;
    c->launch_us = hw->share.launch_us;
}

/* Points of the op whose shape is nearest in (log n, log k); ties take both. */
static double nearest_shape(const struct hw_point *p, int n, const struct gemm_curve *c)
{
    double best = INFINITY;
    for (int i = 0; i < n; i++) {
        double d = fabs(log(p[i].a / c->n)) + fabs(log(p[i].b / c->k));
        if (d < best) best = d;
    }
    return best;
}

static void add_point(struct gemm_curve *c, double log_m, double factor)
{
    int at = c->points;
    for (int i = 0; i < c->points; i++)
        if (fabs(c->log_m[i] - log_m) < 1e-9) { /* same rows again: geometric mean */
            c->factor[i] = sqrt(c->factor[i] * factor);
            return;
        }
    if (at == GEMM_CURVE_POINTS) return;
    for (; at > 0 && c->log_m[at - 1] > log_m; at--) {
        c->log_m[at] = c->log_m[at - 1];
        c->factor[at] = c->factor[at - 1];
    }
    c->log_m[at] = log_m;
    c->factor[at] = factor;
    c->points++;
}

static void add_op(const struct hardware *hw, enum hw_op op, struct gemm_curve *c)
{
    int n;
    const struct hw_point *p = hardware_points(hw, op, &n);
    double nearest = nearest_shape(p, n, c) + 1e-9;
    for (int i = 0; i < n; i++) {
        if (fabs(log(p[i].a / c->n)) + fabs(log(p[i].b / c->k)) > nearest) continue;
        double groups = op == HW_GROUPED || op == HW_MASKED ? p[i].d : 1;
        add_point(c, log(p[i].c), p[i].value / base_time(c, p[i].a, p[i].b, p[i].c, groups, 1).us);
    }
}

void gemm_curve_build(const struct hardware *hw, enum gemm_kind kind, double n, double k,
                      struct gemm_curve *c)
{
    *c = (struct gemm_curve){.n = n, .k = k};
    set_kind(hw, kind, c);
    if (kind == GEMM_FP8) add_op(hw, HW_GEMM_FP8, c);
    if (kind == GEMM_BF16) add_op(hw, HW_GEMM_BF16, c);
    if (kind == GEMM_GROUPED_FP8) {
        add_op(hw, HW_GROUPED, c);
        if (!c->points || c->log_m[0] > log(2048)) add_op(hw, HW_MASKED, c);
    }
    if (kind == GEMM_MASKED_FP8) {
        add_op(hw, HW_MASKED, c);
        if (!c->points) add_op(hw, HW_GROUPED, c);
    }
    c->measured = c->points > 0;
    if (c->measured) return;
    /* No measurement: the shares are part of the peaks. */
    c->peak_tflops *= kind == GEMM_FP8                                      ? hw->share.gemm_fp8
                      : kind == GEMM_GROUPED_FP8 || kind == GEMM_MASKED_FP8 ? hw->share.grouped
                                                                            : hw->share.gemm_bf16;
    c->hbm_gb_s *= hw->share.hbm;
    add_point(c, 0, 1);
}

struct gemm_time gemm_curve_at(const struct gemm_curve *c, double m, double groups, double sm_share)
{
    if (!(m > 0)) return (struct gemm_time){0, 0, 0, 0};
    double x = log(m), f;
    int last = c->points - 1, i = 0;
    while (i < last && c->log_m[i + 1] < x) i++;
    if (x <= c->log_m[0] || last == 0) {
        f = c->factor[0];
    } else if (x >= c->log_m[last]) {
        f = c->factor[last];
    } else {
        double w = (x - c->log_m[i]) / (c->log_m[i + 1] - c->log_m[i]);
        f = c->factor[i] + w * (c->factor[i + 1] - c->factor[i]);
    }
    struct gemm_time t = base_time(c, c->n, c->k, m, groups, sm_share);
    if (!c->measured) t.us = t.launch_us + hypot(t.memory_us, t.compute_us);
    t.us *= f;
    return t;
}
