/* mla_prefill.c - causal attention of one sequence's chunk: tiles of 64 queries of one head. */
#include "attention/attend.h"

/* The block of keys key0 .. key0 + keys of a head, from its three matrices into the tile. */
static void pack_block(const struct mla_prefill_args *a, const struct attend_micro *micro, int head,
                       int key0, int keys, struct attend_tile *t)
{
    size_t size = dtype_bytes(a->kv_type);
    const char *k = a->k_nope, *v = a->v, *rope = a->k_rope;
    for (int j = 0; j < keys; j++) {
        size_t row = (size_t)(key0 + j);
        t->key_row[j] = k + (row * (size_t)a->ldk + (size_t)(head * a->dim_nope)) * size;
        t->value_row[j] = v + (row * (size_t)a->ldv + (size_t)(head * a->dim_v)) * size;
    }
    micro->pack_k(t->key_row, keys, a->dim_nope, 0, t->k);
    micro->pack_v(t->value_row, keys, a->dim_v, t->ldo, t->v);
    for (int j = 0; j < keys; j++)
        t->key_row[j] = rope + (size_t)(key0 + j) * (size_t)a->ldr * size;
    micro->pack_k(t->key_row, keys, a->dim_rope, a->dim_nope, t->k);
}

/* Queries row0 .. row0 + rows of one head. */
static void attend_queries(struct lane *poll, const struct mla_prefill_args *a,
                           const struct attend_micro *micro, int head, int row0, int rows)
{
    struct attend_tile t;
    int dim_k = a->dim_nope + a->dim_rope, first = a->pos0 + row0;
    attend_load(micro, &t, rows, dim_k, a->dim_v, a->q + (int64_t)row0 * a->ldq + head * dim_k,
                a->ldq, a->softmax_scale);
    attend_begin(&t);
    for (int key0 = 0; key0 < first + rows; key0 += ATTEND_KEYS) {
        int keys = first + rows - key0 < ATTEND_KEYS ? first + rows - key0 : ATTEND_KEYS;
        pack_block(a, micro, head, key0, keys, &t);
        attend_block(micro, &t, first + 1 - key0, 1, poll);
    }
    for (int r = 0; r < rows; r++)
        attend_finish(micro, &t, r, a->out + (int64_t)(row0 + r) * a->ldo + head * a->dim_v);
}

struct job {
    const struct mla_prefill_args *a;
    const struct attend_micro *micro;
    int tiles; /* of queries */
};

/* The last queries see the most keys: longest tiles first, so that threads end together. */
static void prefill_unit(const void *arg, int index, struct lane *poll)
{
    const struct job *job = arg;
    const struct mla_prefill_args *a = job->a;
    int row0 = (job->tiles - 1 - index / a->heads) * ATTEND_ROWS;
    int rows = a->m - row0 < ATTEND_ROWS ? a->m - row0 : ATTEND_ROWS;
    attend_queries(poll, a, job->micro, index % a->heads, row0, rows);
}

void attend_prefill(struct lane *lane, const struct mla_prefill_args *a,
                    const struct attend_micro *micro)
{
    struct job job = {a, micro, (a->m + ATTEND_ROWS - 1) / ATTEND_ROWS};
    double pairs = (double)a->m * (a->pos0 + 0.5 * (a->m + 1)) * a->heads;
    double madds = pairs * (a->dim_nope + a->dim_rope + a->dim_v);
    attend_units(lane, job.tiles * a->heads, madds, prefill_unit, &job);
}
