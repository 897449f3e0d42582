/* mla_prefill.c - causal attention of one sequence's chunk: 64 or 128 queries of a head. */
#include "attention/attend.h"

/* Points the tile at the keys key0 .. key0 + keys of a head. */
static void find_block(const struct mla_prefill_args *a, int head, int key0, int keys,
                       struct attend_tile *t)
{
    size_t size = dtype_bytes(a->kv_type);
    const char *k = a->k_nope, *v = a->v, *rope = a->k_rope;
    for (int j = 0; j < keys; j++) {
        size_t row = (size_t)(key0 + j);
        t->key_row[j] = k + (row * (size_t)a->ldk + (size_t)(head * a->dim_nope)) * size;
        t->rope_row[j] = rope + row * (size_t)a->ldr * size;
        t->value_row[j] = v + (row * (size_t)a->ldv + (size_t)(head * a->dim_v)) * size;
    }
}

/* Queries row0 .. row0 + rows of one head. */
static void attend_queries(struct lane *poll, const struct mla_prefill_args *a,
                           const struct attend_micro *micro, int head, int row0, int rows)
{
    struct attend_tile t;
    int dim_k = a->dim_nope + a->dim_rope, first = a->pos0 + row0;
    attend_load(micro, &t, rows, dim_k, a->dim_nope, a->dim_v,
                a->q + (int64_t)row0 * a->ldq + head * dim_k, a->ldq, a->softmax_scale);
    attend_begin(&t);
    for (int key0 = 0; key0 < first + rows; key0 += ATTEND_KEYS) {
        int keys = first + rows - key0 < ATTEND_KEYS ? first + rows - key0 : ATTEND_KEYS;
        find_block(a, head, key0, keys, &t);
        attend_block(micro, &t, keys, first + 1 - key0, 1, poll);
    }
    for (int r = 0; r < rows; r++)
        attend_finish(micro, &t, r, a->out + (int64_t)(row0 + r) * a->ldo + head * a->dim_v);
}

struct job {
    const struct mla_prefill_args *a;
    const struct attend_micro *micro;
    int tile_rows, tiles; /* of the queries of a head */
};

/* The last queries of a head see the most keys: longest tiles first, so that threads end together.
 * Tiles of one head follow each other, so that its keys and values are found in a cache. */
static void prefill_unit(const void *arg, int index, struct lane *poll)
{
    const struct job *job = arg;
    const struct mla_prefill_args *a = job->a;
    int row0 = (job->tiles - 1 - index % job->tiles) * job->tile_rows;
    int rows = a->m - row0 < job->tile_rows ? a->m - row0 : job->tile_rows;
    attend_queries(poll, a, job->micro, index / job->tiles, row0, rows);
}

/* Large tiles read keys and values less often; small ones give every thread something to do. */
static int choose_rows(const struct mla_prefill_args *a, int threads)
{
    int rows = attend_tile_rows(a->dim_nope + a->dim_rope, a->dim_v);
    int units = (a->m + rows - 1) / rows * a->heads;
    return threads > 1 && units < 4 * threads ? ATTEND_WIDE_ROWS : rows;
}

void attend_prefill(struct lane *lane, const struct mla_prefill_args *a,
                    const struct attend_micro *micro)
{
    struct job job = {.a = a, .micro = micro, .tile_rows = choose_rows(a, lane->threads)};
    job.tiles = (a->m + job.tile_rows - 1) / job.tile_rows;
    double pairs = (double)a->m * (a->pos0 + 0.5 * (a->m + 1)) * a->heads;
    double madds = pairs * (a->dim_nope + a->dim_rope + a->dim_v);
    attend_units(lane, job.tiles * a->heads, madds, prefill_unit, &job);
}
