/* expert_drift.c - the walk of the loads, the plans. */
#include "cluster/expert_drift.h"

#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct walk {
    const struct expert_drift_params *p;
    const struct eplb_shape *shape;
    size_t n;           /* layers x experts */
    double *x;          /* [n] log popularity */
    float *load, *seen; /* [n] of this minute; of the interval, summed */
    uint64_t drawn;
};

static void step(struct walk *w, bool first)
{
    double keep = first ? 0 : exp(-60 / w->p->tau_s), spread = w->p->sigma * sqrt(1 - keep * keep);
    for (size_t i = 0; i < w->n; i++) {
        w->x[i] = keep * w->x[i] + spread * rng_normal(w->p->seed, w->drawn++);
        w->load[i] = (float)exp(w->x[i]);
        if (w->p->base)
            w->load[i] *= w->p->base[i % ((size_t)w->p->base_layers * (size_t)w->shape->experts)];
        w->seen[i] += w->load[i];
    }
}

static double imbalance(const struct walk *w, const struct placement *p)
{
    double sum = 0;
    for (int l = 0; l < w->shape->layers; l++)
        sum += placement_imbalance(p, l, w->load + (size_t)l * (size_t)w->shape->experts);
    return sum / w->shape->layers;
}

static enum status replan(struct walk *w, struct placement *now, struct expert_drift *d, int minute)
{
    struct placement next;
    double before = imbalance(w, now);
    TRY(eplb_place(w->shape, w->seen, &next));
    placement_free(now);
    *now = next;
    memset(w->seen, 0, w->n * sizeof *w->seen);
    d->imbalance[minute] = (float)imbalance(w, now);
    d->before += before;
    d->after += d->imbalance[minute];
    d->replans++;
    return OK;
}

static enum status run(struct walk *w, int minutes, struct expert_drift *d)
{
    int every = (int)(w->p->replan_s / 60 + 0.5);
    struct placement first, now = {.slot_expert = NULL};
    step(w, true);
    TRY(eplb_place(w->shape, w->load, &first)); /* planned on the load it meets */
    enum status st = eplb_place(w->shape, w->load, &now);
    for (int m = 0; m < minutes && st == OK; m++) {
        if (m > 0) step(w, false);
        d->imbalance[m] = (float)imbalance(w, &now);
        d->never[m] = (float)imbalance(w, &first);
        if (every > 0 && m > 0 && m % every == 0) st = replan(w, &now, d, m);
    }
    placement_free(&first);
    placement_free(&now);
    if (d->replans) {
        d->before /= d->replans;
        d->after /= d->replans;
    }
    return st;
}

enum status expert_drift_run(const struct expert_drift_params *p, const struct eplb_shape *shape,
                             int minutes, struct expert_drift *d)
{
    memset(d, 0, sizeof *d);
    struct walk w = {.p = p, .shape = shape, .n = (size_t)shape->layers * (size_t)shape->experts};
    d->minutes = minutes;
    d->imbalance = calloc((size_t)minutes, 2 * sizeof *d->imbalance);
    d->never = d->imbalance + minutes;
    w.x = calloc(w.n, sizeof *w.x);
    w.load = calloc(w.n, sizeof *w.load);
    w.seen = calloc(w.n, sizeof *w.seen);
    enum status st = d->imbalance && w.x && w.load && w.seen
                         ? run(&w, minutes, d)
                         : error_set(ERR_RESOURCE, "no memory for the load of %zu experts", w.n);
    free(w.x);
    free(w.load);
    free(w.seen);
    if (st != OK) expert_drift_free(d);
    return st;
}

void expert_drift_free(struct expert_drift *d)
{
    free(d->imbalance);
    memset(d, 0, sizeof *d);
}
