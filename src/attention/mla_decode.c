/* mla_decode.c - absorbed attention of one query token per row over the paged cache.
 *
 * A unit is up to 64 heads of one request. Its keys are cut every ATTENTION_SPLIT absolute
 * positions; each part has its own running softmax and the parts are merged ascending. With
 * fewer units than threads the parts of a unit are computed side by side and merged in the same
 * order: the same bits.
 */
#include "attention/attend.h"

#include <string.h>

/* The merged parts of a unit so far. */
struct merged {
    float o[ATTEND_WIDE_ROWS * ATTENTION_MAX_DIM_V]; /* [rows][ldo] */
    float m[ATTEND_WIDE_ROWS], l[ATTEND_WIDE_ROWS];
} __attribute__((aligned(64)));

struct unit {
    int request, head0, rows, parts;
};

static struct unit unit_at(const struct mla_decode_args *a, int index)
{
    int tiles = (a->heads + ATTEND_WIDE_ROWS - 1) / ATTEND_WIDE_ROWS;
    struct unit u = {.request = index / tiles, .head0 = index % tiles * ATTEND_WIDE_ROWS};
    u.rows = a->heads - u.head0 < ATTEND_WIDE_ROWS ? a->heads - u.head0 : ATTEND_WIDE_ROWS;
    u.parts = (a->len[u.request] + ATTENTION_SPLIT - 1) / ATTENTION_SPLIT;
    return u;
}

static void load_unit(const struct mla_decode_args *a, const struct attend_micro *micro,
                      const struct unit *u, struct attend_tile *t)
{
    int dim_k = a->dim_latent + a->dim_rope;
    attend_load(micro, t, u->rows, dim_k, dim_k, a->dim_latent,
                a->q + (int64_t)u->request * a->ldq + (int64_t)u->head0 * dim_k, dim_k,
                a->softmax_scale);
}

/* Where a key of the unit lies in the cache. */
static const void *key_at(const struct mla_decode_args *a, const struct unit *u, int key)
{
    size_t row_bytes = (size_t)(a->dim_latent + a->dim_rope) * dtype_bytes(a->kv_type);
    size_t page = (size_t)a->pages[u->request][key / a->page_tokens];
    size_t row = page * (size_t)a->page_tokens + (size_t)(key % a->page_tokens);
    return (const char *)a->cache + row * row_bytes;
}

/* The part's keys into the tile's running softmax. */
static void attend_part(struct lane *poll, const struct mla_decode_args *a,
                        const struct attend_micro *micro, const struct unit *u, int part,
                        struct attend_tile *t)
{
    int len = a->len[u->request];
    int end = len - part * ATTENTION_SPLIT < ATTENTION_SPLIT ? len : (part + 1) * ATTENTION_SPLIT;
    attend_begin(t);
    for (int key0 = part * ATTENTION_SPLIT; key0 < end; key0 += ATTEND_KEYS) {
        int keys = end - key0 < ATTEND_KEYS ? end - key0 : ATTEND_KEYS;
        for (int j = 0; j < keys; j++) t->key_row[j] = t->value_row[j] = key_at(a, u, key0 + j);
        t->ahead = key0 + ATTEND_KEYS < len ? key_at(a, u, key0 + ATTEND_KEYS) : NULL;
        attend_block(micro, t, keys, keys, 0, poll);
    }
}

/* Adds row r of the next part to what is merged; `first` starts the sum. */
static void merge_row(const struct attend_micro *micro, const struct attend_tile *part, int r,
                      bool first, struct merged *sum)
{
    float *o = sum->o + r * part->ldo;
    const float *add = part->o + r * part->ldo;
    if (first) {
        memcpy(o, add, (size_t)part->ldo * sizeof *o);
        sum->m[r] = part->m[r];
        sum->l[r] = part->l[r];
        return;
    }
    float m = part->m[r] > sum->m[r] ? part->m[r] : sum->m[r];
    float old = micro->exp(sum->m[r] - m), new = micro->exp(part->m[r] - m);
    micro->merge_row(part->ldo, old, o, new, add);
    sum->l[r] = sum->l[r] * old + part->l[r] * new;
    sum->m[r] = m;
}

static float *out_row(const struct mla_decode_args *a, const struct unit *u, int r)
{
    return a->out + (int64_t)u->request * a->ldo + (int64_t)(u->head0 + r) * a->dim_latent;
}

static void finish_row(const struct mla_decode_args *a, const struct attend_micro *micro,
                       const struct unit *u, int r, int ldo, const struct merged *sum)
{
    micro->scale_row(a->dim_latent, 1.0f / sum->l[r], sum->o + r * ldo, out_row(a, u, r));
}

/* An empty cache yields zeros. */
static bool empty_unit(const struct mla_decode_args *a, const struct unit *u)
{
    if (u->parts > 0) return false;
    for (int r = 0; r < u->rows; r++)
        memset(out_row(a, u, r), 0, (size_t)a->dim_latent * sizeof(float));
    return true;
}

struct job {
    const struct mla_decode_args *a;
    const struct attend_micro *micro;
};

/* One thread, all parts of the unit. */
static void decode_unit(const void *arg, int index, struct lane *poll)
{
    const struct job *job = arg;
    const struct mla_decode_args *a = job->a;
    const struct attend_micro *micro = job->micro;
    struct attend_tile t;
    struct merged sum;
    struct unit u = unit_at(a, index);
    if (empty_unit(a, &u)) return;
    load_unit(a, micro, &u, &t);
    for (int part = 0; part < u.parts; part++) {
        attend_part(poll, a, micro, &u, part, &t);
        for (int r = 0; r < u.rows; r++) merge_row(micro, &t, r, part == 0, &sum);
    }
    for (int r = 0; r < u.rows; r++) finish_row(a, micro, &u, r, t.ldo, &sum);
}

/* One unit by all threads: each piece attends one part of a round, then the rows' merges are
 * dealt out in the same order as decode_unit's. */
struct round {
    const struct mla_decode_args *a;
    const struct attend_micro *micro;
    struct unit u;
    struct attend_tile *tile; /* [width] */
    struct merged *sum;
    int width;        /* parts of a full round */
    int part0, parts; /* of this one */
};

static void round_attend(void *arg, int piece, struct lane *poll)
{
    const struct round *r = arg;
    struct attend_tile *t = &r->tile[piece];
    if (r->part0 == 0) load_unit(r->a, r->micro, &r->u, t); /* stays for later rounds */
    attend_part(poll, r->a, r->micro, &r->u, r->part0 + piece, t);
}

static void round_merge(void *arg, int first, int end, struct lane *poll)
{
    const struct round *r = arg;
    bool last = r->part0 + r->parts == r->u.parts;
    (void)poll;
    for (int row = first; row < end; row++) {
        for (int i = 0; i < r->parts; i++)
            merge_row(r->micro, &r->tile[i], row, r->part0 + i == 0, r->sum);
        if (last) finish_row(r->a, r->micro, &r->u, row, r->tile[0].ldo, r->sum);
    }
}

static void decode_by_parts(struct lane *lane, struct round *r, int units)
{
    enum { ROWS_MIN = 8 }; /* of a merge: some microseconds */
    for (int i = 0; i < units; i++) {
        r->u = unit_at(r->a, i);
        if (empty_unit(r->a, &r->u)) continue;
        for (r->part0 = 0; r->part0 < r->u.parts; r->part0 += r->width) {
            int left = r->u.parts - r->part0;
            r->parts = left < r->width ? left : r->width;
            lane_run(lane, r->parts, round_attend, r);
            lane_rows(lane, r->u.rows, ROWS_MIN, round_merge, r);
        }
    }
}

static bool any_long(const struct mla_decode_args *a)
{
    for (int i = 0; i < a->m; i++)
        if (a->len[i] > ATTENTION_SPLIT) return true;
    return false;
}

void attend_decode(struct lane *lane, const struct mla_decode_args *a,
                   const struct attend_micro *micro)
{
    int units = a->m * ((a->heads + ATTEND_WIDE_ROWS - 1) / ATTEND_WIDE_ROWS);
    if (units < lane->threads && any_long(a)) {
        size_t tiles = sizeof(struct attend_tile) * (size_t)lane->threads;
        char *memory = lane_scratch(lane, tiles + sizeof(struct merged));
        if (memory) {
            struct round round = {.a = a, .micro = micro, .width = lane->threads};
            round.tile = (struct attend_tile *)(void *)memory;
            round.sum = (struct merged *)(void *)(memory + tiles);
            decode_by_parts(lane, &round, units);
            return;
        }
    }
    struct job job = {a, micro};
    double pairs = 0;
    for (int i = 0; i < a->m; i++) pairs += (double)a->len[i] * a->heads;
    double madds = pairs * (2 * a->dim_latent + a->dim_rope);
    attend_units(lane, units, madds, decode_unit, &job);
}
