/* attend.c - one block of keys against a tile of rows; units of work over threads. */
#include "attention/attend.h"

#include <math.h>
#include <string.h>

static int clamp_keys(int n)
{
    return n < 0 ? 0 : n > ATTEND_KEYS ? ATTEND_KEYS : n;
}

static int round_up(int n, int to)
{
    return (n + to - 1) / to * to;
}

int attend_tile_rows(int dim_k, int dim_v)
{
    bool narrow =
        ATTEND_ROWS * dim_k <= ATTEND_WIDE_ROWS * ATTENTION_MAX_DIM_K &&
        ATTEND_ROWS * round_up(dim_v, ATTEND_PAD) <= ATTEND_WIDE_ROWS * ATTENTION_MAX_DIM_V;
    return narrow ? ATTEND_ROWS : ATTEND_WIDE_ROWS;
}

void attend_load(const struct attend_micro *micro, struct attend_tile *t, int rows, int dim_k,
                 int dim_k0, int dim_v, const float *q, int64_t ld, float scale)
{
    t->rows = rows;
    t->dim_k = dim_k;
    t->dim_k0 = dim_k0;
    t->dim_v = dim_v;
    t->ahead = NULL;
    t->ldo = round_up(dim_v, ATTEND_PAD);
    t->scale = scale;
    micro->pack_q(rows, dim_k, q, ld, t->q);
}

/* Rows up to a whole group as well: a product may take them along. */
void attend_begin(struct attend_tile *t)
{
    size_t rows = (size_t)round_up(t->rows, ATTEND_GROUP);
    memset(t->o, 0, rows * (size_t)t->ldo * sizeof *t->o);
    for (int r = 0; r < ATTEND_ROWS; r++) {
        t->m[r] = -INFINITY;
        t->l[r] = 0;
    }
}

/* Softmax weights of the group's rows that see any key, and the rescaling of their sums. */
static void group_softmax(const struct attend_micro *micro, struct attend_tile *t, int row0,
                          int rows, int limit0, int step)
{
    for (int r = 0; r < rows; r++) {
        int keys = clamp_keys(limit0 + r * step);
        if (keys == 0) continue;
        float f = micro->softmax(keys, t->scale, t->s + r * ATTEND_KEYS, t->p + r * ATTEND_KEYS,
                                 &t->m[row0 + r], &t->l[row0 + r]);
        float *o = t->o + (row0 + r) * t->ldo;
        if (f != 1.0f) micro->scale_row(t->ldo, f, o, o);
    }
}

/* Values of the keys that all rows of the group see go in together; the rest, where the causal
 * mask cuts through the block, row by row. Either way a row adds its keys in ascending order. */
static void group_values(const struct attend_micro *micro, struct attend_tile *t, int row0,
                         int rows, int limit0, int step)
{
    float *o = t->o + row0 * t->ldo;
    int common = clamp_keys(limit0) & ~1;
    if (common) micro->accumulate(rows, 0, common, t->ldo, t->p, t->v, o);
    for (int r = 0; r < rows; r++) {
        int keys = clamp_keys(limit0 + r * step);
        if (keys > common)
            micro->accumulate(1, common, keys, t->ldo, t->p + r * ATTEND_KEYS, t->v,
                              o + r * t->ldo);
    }
}

static void pack_block(const struct attend_micro *micro, struct attend_tile *t, int keys)
{
    int rest = t->dim_k - t->dim_k0;
    micro->pack_k(t->key_row, keys, t->dim_k0, 0, t->k);
    if (rest) micro->pack_k(t->rope_row, keys, rest, t->dim_k0, t->k);
    micro->pack_v(t->value_row, keys, t->dim_v, t->ldo, t->v);
}

void attend_block(const struct attend_micro *micro, struct attend_tile *t, int keys, int limit0,
                  int step, struct lane *poll)
{
    if (micro->block) {
        micro->block(t, keys, limit0, step, poll);
        return;
    }
    pack_block(micro, t, keys);
    for (int row0 = 0; row0 < t->rows; row0 += ATTEND_GROUP) {
        int rows = t->rows - row0 < ATTEND_GROUP ? t->rows - row0 : ATTEND_GROUP;
        int limit = limit0 + row0 * step;
        int most = clamp_keys(limit + (rows - 1) * step);
        if (most == 0) continue;
        micro->scores(rows, round_up(most, ATTEND_PAD), t->dim_k, t->q + row0 * t->dim_k, t->k,
                      t->s);
        group_softmax(micro, t, row0, rows, limit, step);
        group_values(micro, t, row0, rows, limit, step);
        if (poll) lane_poll(poll);
    }
}

void attend_finish(const struct attend_micro *micro, const struct attend_tile *t, int r, float *out)
{
    micro->scale_row(t->dim_v, 1.0f / t->l[r], t->o + r * t->ldo, out);
}

struct units_call {
    void (*unit)(const void *arg, int index, struct lane *poll);
    const void *arg;
};

static void run_unit(void *arg, int index, struct lane *poll)
{
    const struct units_call *c = arg;
    c->unit(c->arg, index, poll);
}

void attend_units(struct lane *lane, int units, double madds,
                  void (*unit)(const void *arg, int index, struct lane *poll), const void *arg)
{
    enum { WORTH_THREADS = 1000000 }; /* some 20 us of one core */
    struct units_call c = {unit, arg};
    if (madds > WORTH_THREADS) {
        lane_run(lane, units, run_unit, &c);
        return;
    }
    for (int i = 0; i < units; i++) unit(arg, i, lane);
}
