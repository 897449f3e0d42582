/* attend.h - the frame of both attention kernels: rows (queries of one head, or heads of one
 * query) against one block of 64 keys at a time, with a running softmax per row.
 *
 * The frame decides which keys a row sees and in which order; struct attend_micro does the
 * arithmetic for one instruction set and one cache type. Internal to attention/.
 *
 * Who owns what: a tile lives on its thread's stack for one call and is never cleared: every
 * cell that is read was written before.
 */
#ifndef ATTENTION_ATTEND_H
#define ATTENTION_ATTEND_H

#include "attention/attention.h"
#include "device/kernels.h"

enum {
    ATTEND_ROWS = 128,      /* rows of a tile of narrow heads (attend_tile_rows) */
    ATTEND_WIDE_ROWS = 64,  /* rows of a tile of any heads */
    ATTEND_GROUP = 8,       /* rows that a product takes at once */
    ATTEND_SCORE_ROWS = 32, /* rows whose scores a tile holds */
    ATTEND_KEYS = ATTENTION_KEY_BLOCK,
    ATTEND_PAD = 32 /* widths of products are rounded up to this */
};

/* One number of a packed operand, or two BF16 numbers that are multiplied together: neighbouring
 * channels for scores, neighbouring keys for values; the lower half is the first. */
union cell {
    float f;
    uint32_t pair;
};

/* The layouts are those of the FP32 paths; a path with attend_micro.block has its own. */
struct attend_tile {
    union cell q[ATTEND_WIDE_ROWS * ATTENTION_MAX_DIM_K]; /* [rows][depth] */
    union cell k[ATTENTION_MAX_DIM_K * ATTEND_KEYS];      /* [depth][keys] */
    union cell v[ATTEND_KEYS * ATTENTION_MAX_DIM_V];      /* [keys][ldo] */
    float o[ATTEND_WIDE_ROWS * ATTENTION_MAX_DIM_V];      /* [rows][ldo], not yet divided by l */
    float s[ATTEND_SCORE_ROWS * ATTEND_KEYS];             /* scores of a group */
    union cell p[ATTEND_ROWS / 2 * ATTEND_KEYS];          /* its softmax weights */
    float m[ATTEND_ROWS], l[ATTEND_ROWS];                 /* running maximum and denominator */
    const void *key_row[ATTEND_KEYS];                     /* where the block's keys lie: dim_k0 */
    const void *rope_row[ATTEND_KEYS];                    /* channels, and the rest of dim_k */
    const void *value_row[ATTEND_KEYS];
    const void *ahead; /* where the next block's keys begin, to be fetched; NULL: unknown */
    int rows, dim_k, dim_k0, dim_v;
    int ldo; /* dim_v rounded up to ATTEND_PAD */
    float scale;
} __attribute__((aligned(64)));

/* Arithmetic for one instruction set and cache type. Each output element is one chain of
 * operations in ascending order of channel or key, whatever the number of rows or columns. */
struct attend_micro {
    /* [rows][dim_k] FP32 with row stride ld -> the tile's q. */
    void (*pack_q)(int rows, int dim_k, const float *q, int64_t ld, union cell *out);
    /* attend_block as one function. If set, the five functions after it are NULL. */
    void (*block)(struct attend_tile *tile, int keys, int limit0, int step, struct lane *poll);
    /* keys rows of dim channels -> channels dim0.. of k; columns >= keys become 0. */
    void (*pack_k)(const void *const *row, int keys, int dim, int dim0, union cell *k);
    /* keys rows of dim channels -> v with row stride ld; columns dim .. ld become 0. */
    void (*pack_v)(const void *const *row, int keys, int dim, int ld, union cell *v);
    /* s[rows][0 .. cols) = q k, cols a multiple of ATTEND_PAD. */
    void (*scores)(int rows, int cols, int dim_k, const union cell *q, const union cell *k,
                   float *s);
    /* Softmax weights of keys 0 .. keys-1 (at least one) of a row against the running maximum;
     * updates m and l, returns what the row of o must be multiplied by. */
    float (*softmax)(int keys, float scale, const float *s, union cell *p, float *m, float *l);
    /* o[rows][0 .. ld) += p[rows][key0 .. key1) v[key0 .. key1); key0 is even. */
    void (*accumulate)(int rows, int key0, int key1, int ld, const union cell *p,
                       const union cell *v, float *o);
    /* y[i] = x[i] * f */
    void (*scale_row)(int n, float f, const float *x, float *y);
    /* The merge of two parts of a row: a *= fa, then a += b * fb. */
    void (*merge_row)(int n, float fa, float *a, float fb, const float *b);
    /* exp(x) */
    float (*exp)(float x);
};

/* The arithmetic of a path; isa as in attention_kernels_fill. */
const struct attend_micro *attend_micro_get(enum isa isa, enum dtype kv_type);

/* Rows that a tile holds at these sizes: ATTEND_ROWS or ATTEND_WIDE_ROWS. */
int attend_tile_rows(int dim_k, int dim_v);

/* Takes the `rows` rows of q (row stride ld) into a tile for keys of dim_k channels, the first
 * dim_k0 of them at key_row. */
void attend_load(const struct attend_micro *micro, struct attend_tile *tile, int rows, int dim_k,
                 int dim_k0, int dim_v, const float *q, int64_t ld, float scale);

/* Empties the tile's running softmax. */
void attend_begin(struct attend_tile *tile);

/* Adds the block of `keys` keys that the tile points to (key_row, rope_row, value_row), of which
 * row r sees the first limit0 + r * step: none if that is not positive, all if it is more than
 * there are; step is 0 or 1. Serves the lane if `poll` is given. */
void attend_block(const struct attend_micro *micro, struct attend_tile *tile, int keys, int limit0,
                  int step, struct lane *poll);

/* Divides row r by its denominator. */
void attend_finish(const struct attend_micro *micro, const struct attend_tile *tile, int r,
                   float *out);

/* Calls unit(arg, index, poll) for all indices on the lane's threads, first come first served;
 * poll is the lane on the caller's thread, which serves it until the last unit ends, else NULL.
 * madds: multiply-adds of all units; few are not worth waking the other threads. */
void attend_units(struct lane *lane, int units, double madds,
                  void (*unit)(const void *arg, int index, struct lane *poll), const void *arg);

/* The two kernels; micro is chosen by the installed wrappers. */
void attend_prefill(struct lane *lane, const struct mla_prefill_args *args,
                    const struct attend_micro *micro);
void attend_decode(struct lane *lane, const struct mla_decode_args *args,
                   const struct attend_micro *micro);

/* One per path, in micro_<path>.c; [0] for an F32 cache, [1] for BF16. */
extern const struct attend_micro attend_micro_portable[2];
extern const struct attend_micro attend_micro_avx2[2];
extern const struct attend_micro attend_micro_avx512[2];
extern const struct attend_micro attend_micro_avx512bf16[1]; /* BF16 only */

/* rmsnorm, rope and kv_write of a path, in rows_<path>.c. */
void attention_rows_portable(struct kernels *k);
void attention_rows_avx2(struct kernels *k);
void attention_rows_avx512(struct kernels *k);

#endif
