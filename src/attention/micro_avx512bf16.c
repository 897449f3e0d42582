/* micro_avx512bf16.c - a block of attention over a BF16 cache with vdpbf16ps: a cell holds two
 * channels (scores) or two keys (values), multiplied and added together.
 *
 * Scores are computed as K Q^T: a cell of a key's row, as it lies in the cache, is spread over a
 * vector and multiplied with the same two channels of 16 queries. So keys need no transposition
 * (the queries are transposed once), and softmax works on 16 rows side by side without a sum
 * across lanes. Its weights are the spread operand of the second product; values are packed in
 * pairs of keys, a strip of channels at a time, which stays in the first cache.
 *
 * vdpbf16ps takes denormal inputs as zero and flushes denormal results; the number of its steps
 * in a row's chain depends only on the number of keys the row sees.
 */
#include "attention/attend.h"

#if defined(__AVX512BF16__)
#include "attention/micro_rows.h"

#include <string.h>

enum {
    LANES = ATTEND_SCORE_ROWS, /* rows whose scores are computed together: two vectors */
    STRIP = ATTEND_PAD,        /* channels of v side by side: two vectors */
    STRIPS = 4,                /* packed at a time */
    PAIRS = ATTEND_KEYS / 2,
    KEY_STEP = 16 /* keys are padded to this */
};

static int least(int a, int b)
{
    return a < b ? a : b;
}

static int round_up(int n, int to)
{
    return (n + to - 1) / to * to;
}

static inline __m512 dp(__m512 acc, uint32_t a, __m512i b)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)b);
}

static inline uint32_t cell_at(const char *p)
{
    uint32_t pair;
    memcpy(&pair, p, sizeof pair);
    return pair;
}

/* ---- queries ---- */

/* Columns of q and s for the rows from row0 on: one vector or two. */
static int columns(int rows, int row0)
{
    return rows - row0 > VW ? LANES : VW;
}

/* 32 channels of a row as 16 cells; n may be less or <= 0. */
static inline vf load_cells(const float *x, int n)
{
    if (n >= 2 * VW) return (vf)(__m512i)_mm512_cvtne2ps_pbh(vf_load(x + VW), vf_load(x));
    vf hi = n > VW ? vf_load_n(x + VW, n - VW) : vf_set1(0);
    return (vf)(__m512i)_mm512_cvtne2ps_pbh(hi, vf_load_n(x, n));
}

/* [rows][dim] FP32 -> for each LANES rows [dim / 2][columns], BF16. */
static void pack_q(int rows, int dim, const float *q, int64_t ld, union cell *out)
{
    int depth = dim / 2;
    for (int row0 = 0; row0 < rows; row0 += VW) {
        int width = columns(rows, row0 / LANES * LANES);
        union cell *to = out + row0 / LANES * LANES * depth + row0 % LANES;
        VF_FOR(d, depth)
        {
            vf t[VW];
            for (int i = 0; i < VW; i++)
                t[i] = row0 + i < rows ? load_cells(q + (row0 + i) * ld + 2 * d, dim - 2 * d)
                                       : vf_set1(0);
            vf_transpose(t);
            int n = least(VW, depth - d);
            for (int i = 0; i < n; i++) vf_store(to + (d + i) * width, t[i]);
        }
    }
}

/* ---- scores ---- */

/* s[R][C vectors] = scale k[R] q[][C vectors], fetching R rows from `ahead`; ldk in bytes; R and
 * C are constants after inlining. */
static inline __attribute__((always_inline)) void
tile_scores(const int R, const int C, int depth, const char *k, int64_t ldk, const char *ahead,
            const union cell *q, float scale, float *s)
{
    __m512 acc[8][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int c = 0; c < C; c++) acc[r][c] = _mm512_setzero_ps();
    for (int d = 0; d < depth; d++, k += 4, q += C * VW, ahead += 4 * R) {
        _mm_prefetch(ahead, _MM_HINT_T1);
        __m512i b[2];
#pragma GCC unroll 2
        for (int c = 0; c < C; c++) b[c] = _mm512_loadu_si512(q + c * VW);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int c = 0; c < C; c++) acc[r][c] = dp(acc[r][c], cell_at(k + r * ldk), b[c]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int c = 0; c < C; c++)
            vf_store(s + (r * C + c) * VW, vf_mul(acc[r][c], vf_set1(scale)));
}

/* Byte distance of row r of 8, from a few multiples of the stride that stay in registers: left to
 * itself, gcc keeps one pointer a row and spills. */
struct strides {
    int64_t by1, by3, by5, by7;
};

static inline __attribute__((always_inline)) int64_t distance(struct strides ld, const int r)
{
    switch (r) {
    case 0: return 0;
    case 1: return ld.by1;
    case 2: return ld.by1 * 2;
    case 3: return ld.by3;
    case 4: return ld.by1 * 4;
    case 5: return ld.by5;
    case 6: return ld.by3 * 2;
    default: return ld.by7;
    }
}

/* tile_scores for up to 8 rows of q, in half vectors, which cost half; 16 keys. */
static inline void tile_scores_half(int depth, const char *k, int64_t ldk, const char *ahead,
                                    const union cell *q, float scale, float *s)
{
    struct strides ld = {ldk, 3 * ldk, 5 * ldk, 7 * ldk};
    const char *k8 = k + 8 * ldk;
    __asm__("" : "+r"(ld.by3), "+r"(ld.by5), "+r"(ld.by7), "+r"(k8));
    __m256 acc[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++) acc[r] = _mm256_setzero_ps();
    for (int64_t d = 0; d < depth; d++) {
        _mm_prefetch(ahead + d * 64, _MM_HINT_T1);
        __m256bh b = (__m256bh)_mm256_loadu_si256((const __m256i *)(const void *)(q + d * VW));
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) {
            uint32_t a0 = cell_at(k + distance(ld, r)), a8 = cell_at(k8 + distance(ld, r));
            acc[r] = _mm256_dpbf16_ps(acc[r], (__m256bh)_mm256_set1_epi32((int)a0), b);
            acc[r + 8] = _mm256_dpbf16_ps(acc[r + 8], (__m256bh)_mm256_set1_epi32((int)a8), b);
        }
        k += 4;
        k8 += 4;
        __asm__("" : "+r"(k), "+r"(k8));
    }
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++)
        vf_store(s + r * VW, vf_mul(_mm512_zextps256_ps512(acc[r]), vf_set1(scale)));
}

/* Scaled scores of keys 0 .. most against up to LANES rows: s[key][columns]. As many bytes as are
 * read of k are fetched from `ahead`, a line at most for each step of the products: fetched in
 * bursts they would hold the products up. */
static void scores(int rows, int most, int depth, const char *k, int64_t ldk, const char *ahead,
                   const union cell *q, float scale, float *s)
{
    int width = rows > VW ? LANES : VW;
    for (int j = 0; j<most; j += rows> VW / 2 ? 8 : 16) {
        const char *at = k + j * ldk, *next = ahead + j * ldk;
        if (rows > VW)
            tile_scores(8, 2, depth, at, ldk, next, q, scale, s + j * width);
        else if (rows > VW / 2)
            tile_scores(8, 1, depth, at, ldk, next, q, scale, s + j * width);
        else
            tile_scores_half(depth, at, ldk, next, q, scale, s + j * width);
    }
}

/* ---- softmax ---- */

/* The sum of 16 vectors, in the order in which vf_sum adds 16 lanes. */
static inline vf sum_tree(vf *x)
{
    for (int n = VW / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++) x[i] = vf_add(x[i], x[i + n]);
    return x[0];
}

/* x in the lanes that see key j, else `fill`; all of them unless `masked`. */
static inline __attribute__((always_inline)) vf only_seen(const bool masked, vf x, int j,
                                                          __m512i seen, float fill)
{
    if (!masked) return x;
    __mmask16 sees = _mm512_cmpgt_epi32_mask(seen, _mm512_set1_epi32(j));
    return _mm512_mask_mov_ps(vf_set1(fill), sees, x);
}

/* Weights of keys 0 .. most (a pair at a time) -> p; returns their sum. `most` is even unless
 * masked. Key j goes to partial sum j % 16, then the tree: as lanes of one row would be added. */
static inline __attribute__((always_inline)) vf weights(const bool masked, int most, int width,
                                                        const float *s, vf best, __m512i seen,
                                                        union cell *p)
{
    static const uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                       21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i pairs = _mm512_loadu_si512(order), upper = _mm512_set1_epi32((int)0xffff0000);
    vf sum[VW];
    for (int i = 0; i < VW; i += 2) {
        vf sum0 = vf_set1(0), sum1 = vf_set1(0);
        for (int j = i; j < most; j += VW) { /* row most of s is allocated */
            vf lo = vf_exp(vf_sub(vf_load(s + j * width), best));
            vf hi = vf_exp(vf_sub(vf_load(s + (j + 1) * width), best));
            lo = only_seen(masked, lo, j, seen, 0);
            hi = only_seen(masked, hi, j + 1, seen, 0);
            __m512i both = (__m512i)_mm512_cvtne2ps_pbh(hi, lo);
            both = _mm512_permutexvar_epi16(pairs, both);
            _mm512_storeu_si512(p + j / 2 * ATTEND_ROWS, both);
            sum0 = vf_add(sum0, _mm512_castsi512_ps(_mm512_slli_epi32(both, 16)));
            sum1 = vf_add(sum1, _mm512_castsi512_ps(_mm512_and_si512(both, upper)));
        }
        sum[i] = sum0;
        sum[i + 1] = sum1;
    }
    return sum_tree(sum);
}

/* Softmax weights of 16 rows, of which lane i sees the first seen[i] keys, `most` at most; p is
 * [pairs][ATTEND_ROWS]. Updates m and l; returns what each row of o must be multiplied by.
 * A NaN score is skipped by the maximum but not by the sum, so it reaches the whole row. */
static inline __attribute__((always_inline)) vf softmax(const bool masked, int most, int width,
                                                        const float *s, __m512i seen, union cell *p,
                                                        float *m, float *l)
{
    vf before = vf_load(m), best = before;
    for (int j = 0; j < most; j++)
        best = vf_max(only_seen(masked, vf_load(s + j * width), j, seen, -INFINITY), best);
    vf sum = weights(masked, most, width, s, best, seen, p);
    __mmask16 moved = _mm512_cmp_ps_mask(before, best, _CMP_NEQ_UQ);
    vf f = _mm512_mask_mov_ps(vf_set1(1), moved, vf_exp(vf_sub(before, best)));
    vf_store(l, vf_add(vf_mul(vf_load(l), f), sum));
    vf_store(m, best);
    return f;
}

/* Rows row0 .. row0 + 16 of the tile, and the rescaling of their sums. */
static void softmax_rows(struct attend_tile *t, int row0, int most, int width, const float *s,
                         const int *seen)
{
    __m512i n = _mm512_loadu_si512(seen + row0);
    union cell *p = t->p + row0;
    float *m = t->m + row0, *l = t->l + row0;
    vf f = seen[row0] == most && most % 2 == 0 ? softmax(false, most, width, s, n, p, m, l)
                                               : softmax(true, most, width, s, n, p, m, l);
    float factor[VW];
    vf_store(factor, f);
    for (unsigned left = _mm512_cmp_ps_mask(f, vf_set1(1), _CMP_NEQ_UQ); left; left &= left - 1) {
        int r = __builtin_ctz(left);
        if (row0 + r >= t->rows) break;
        float *o = t->o + (row0 + r) * t->ldo;
        scale_row(t->ldo, factor[r], o, o);
    }
}

/* ---- values ---- */

/* One strip of two keys, of which only `lanes` exist, in pairs. */
static inline __attribute__((always_inline)) void pair_keys(const void *row0, const void *row1,
                                                            int d, __mmask32 lanes, __m512i out[2])
{
    static const uint16_t zip[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    __m512i first = _mm512_loadu_si512(zip);
    __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(VW));
    __m512i a = _mm512_maskz_loadu_epi16(lanes, (const uint16_t *)row0 + d);
    __m512i b = _mm512_maskz_loadu_epi16(row1 ? lanes : 0, (const uint16_t *)row1 + d);
    out[0] = _mm512_permutex2var_epi16(a, first, b);
    out[1] = _mm512_permutex2var_epi16(a, second, b);
}

/* Channels of a strip at d that exist. */
static __mmask32 strip_lanes(int d, int dim)
{
    return dim - d >= STRIP ? ~(__mmask32)0 : ((__mmask32)1 << (dim - d)) - 1;
}

/* Channels d0 .. d0 + 32 n of the keys -> [n][pairs][STRIP]; channels >= dim and the second key
 * of an odd pair become 0. */
static void pack_v(const void *const *row, int keys, int d0, int n, int dim, union cell *v)
{
    for (int j = 0; j < keys; j += 2)
        for (int i = 0; i < n; i++) {
            int d = d0 + i * STRIP;
            __m512i pair[2];
            pair_keys(row[j], j + 1 < keys ? row[j + 1] : NULL, d, strip_lanes(d, dim), pair);
            union cell *to = v + (i * PAIRS + j / 2) * STRIP;
            _mm512_storeu_si512(to, pair[0]);
            _mm512_storeu_si512(to + VW, pair[1]);
        }
}

/* o[R][STRIP] += p[R][k0 .. k1) v[k0 .. k1)[STRIP], then, if `odd`, pair k1 with only its first
 * key; R is a constant after inlining. */
static inline __attribute__((always_inline)) void tile_values(const int R, int k0, int k1, bool odd,
                                                              const union cell *p,
                                                              const union cell *v, float *o,
                                                              int ldo)
{
    __m512 acc[ATTEND_GROUP][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        acc[r][0] = _mm512_loadu_ps(o + r * ldo);
        acc[r][1] = _mm512_loadu_ps(o + r * ldo + VW);
    }
    for (int k = k0; k < k1; k++) {
        __m512i b0 = _mm512_loadu_si512(v + k * STRIP), b1 = _mm512_loadu_si512(v + k * STRIP + VW);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            acc[r][0] = dp(acc[r][0], p[k * ATTEND_ROWS + r].pair, b0);
            acc[r][1] = dp(acc[r][1], p[k * ATTEND_ROWS + r].pair, b1);
        }
    }
    if (odd) {
        __m512i low = _mm512_set1_epi32(0xffff);
        __m512i b0 = _mm512_and_si512(_mm512_loadu_si512(v + k1 * STRIP), low);
        __m512i b1 = _mm512_and_si512(_mm512_loadu_si512(v + k1 * STRIP + VW), low);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            acc[r][0] = dp(acc[r][0], p[k1 * ATTEND_ROWS + r].pair, b0);
            acc[r][1] = dp(acc[r][1], p[k1 * ATTEND_ROWS + r].pair, b1);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        _mm512_storeu_ps(o + r * ldo, acc[r][0]);
        _mm512_storeu_ps(o + r * ldo + VW, acc[r][1]);
    }
}

/* Keys that all rows of a group see go in together; the rest, where the causal mask cuts through
 * the block, row by row. Either way a row adds its keys in ascending order. */
static void group_values(const struct attend_tile *t, int row0, const int *seen,
                         const union cell *v, float *o)
{
    const union cell *p = t->p + row0;
    int rows = least(ATTEND_GROUP, t->rows - row0), common = seen[row0] & ~1;
    if (seen[row0] == seen[row0 + rows - 1]) {
        tile_values(ATTEND_GROUP, 0, common / 2, seen[row0] & 1, p, v, o, t->ldo);
        return;
    }
    if (common) tile_values(ATTEND_GROUP, 0, common / 2, false, p, v, o, t->ldo);
    for (int r = 0; r < rows; r++) {
        int keys = seen[row0 + r];
        if (keys > common)
            tile_values(1, common / 2, keys / 2, keys & 1, p + r, v, o + r * t->ldo, t->ldo);
    }
}

/* tile_values of a whole group from the keys' rows: pairs are formed on the way, which for one
 * group costs less than to pack them. */
static void unpacked_values(const void *const *row, int keys, int d, int dim, const union cell *p,
                            float *o, int ldo)
{
    __mmask32 lanes = strip_lanes(d, dim);
    __m512 acc[ATTEND_GROUP][2];
#pragma GCC unroll 8
    for (int r = 0; r < ATTEND_GROUP; r++) {
        acc[r][0] = _mm512_loadu_ps(o + r * ldo);
        acc[r][1] = _mm512_loadu_ps(o + r * ldo + VW);
    }
    for (int j = 0; j < keys; j += 2, p += ATTEND_ROWS) {
        __m512i b[2];
        pair_keys(row[j], row[j + 1], d, lanes, b);
#pragma GCC unroll 8
        for (int r = 0; r < ATTEND_GROUP; r++) {
            acc[r][0] = dp(acc[r][0], p[r].pair, b[0]);
            acc[r][1] = dp(acc[r][1], p[r].pair, b[1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ATTEND_GROUP; r++) {
        _mm512_storeu_ps(o + r * ldo, acc[r][0]);
        _mm512_storeu_ps(o + r * ldo + VW, acc[r][1]);
    }
}

/* o of all rows += p v. */
static void values(struct attend_tile *t, int keys, const int *seen, struct lane *poll)
{
    if (t->rows <= ATTEND_GROUP && seen[0] == keys && keys % 2 == 0) {
        for (int d = 0; d < t->dim_v; d += STRIP)
            unpacked_values(t->value_row, keys, d, t->dim_v, t->p, t->o + d, t->ldo);
        if (poll) lane_poll(poll);
        return;
    }
    for (int d0 = 0; d0 < t->dim_v; d0 += STRIPS * STRIP) {
        int n = least(STRIPS, (t->dim_v - d0 + STRIP - 1) / STRIP);
        pack_v(t->value_row, keys, d0, n, t->dim_v, t->v);
        for (int i = 0; i < n; i++) {
            const union cell *v = t->v + i * PAIRS * STRIP;
            for (int row0 = 0; row0 < t->rows; row0 += ATTEND_GROUP)
                if (seen[least(row0 + ATTEND_GROUP, t->rows) - 1] > 0)
                    group_values(t, row0, seen, v, t->o + row0 * t->ldo + d0 + i * STRIP);
        }
        if (poll) lane_poll(poll);
    }
}

/* ---- a block ---- */

/* The keys' rows at one distance (*stride, bytes), a multiple of KEY_STEP of them: where they lie
 * or copied to t->k, the rest zero. */
static const char *key_rows(struct attend_tile *t, int keys, int64_t *stride)
{
    size_t row = (size_t)t->dim_k * 2, first = (size_t)t->dim_k0 * 2;
    *stride = (int64_t)row;
    bool there = t->dim_k == t->dim_k0 && keys % KEY_STEP == 0;
    for (int j = 1; there && j < keys; j++)
        there = (const char *)t->key_row[j] == (const char *)t->key_row[j - 1] + row;
    if (there) return t->key_row[0];
    char *to = (char *)t->k;
    for (int j = 0; j < keys; j++) {
        memcpy(to + (size_t)j * row, t->key_row[j], first);
        if (row > first) memcpy(to + (size_t)j * row + first, t->rope_row[j], row - first);
    }
    memset(to + (size_t)keys * row, 0, (size_t)(round_up(keys, KEY_STEP) - keys) * row);
    return to;
}

/* Of all rows, row0 .. row0 + LANES against the keys at a time; then the values. */
static void block(struct attend_tile *t, int keys, int limit0, int step, struct lane *poll)
{
    int32_t seen[ATTEND_ROWS];
    for (int r = 0; r < ATTEND_ROWS; r++) {
        int n = limit0 + r * step;
        seen[r] = n < 0 ? 0 : least(n, keys);
    }
    int64_t ldk;
    const char *k = key_rows(t, keys, &ldk);
    for (int row0 = 0; row0 < t->rows; row0 += LANES) {
        int rows = least(LANES, t->rows - row0), width = columns(t->rows, row0);
        int most = seen[row0 + rows - 1];
        if (most == 0) continue;
        scores(rows, most, t->dim_k / 2, k, ldk, t->ahead && row0 == 0 ? t->ahead : k,
               t->q + row0 * (t->dim_k / 2), t->scale, t->s);
        for (int c = 0; c < width; c += VW) softmax_rows(t, row0 + c, most, width, t->s + c, seen);
        if (poll) lane_poll(poll);
    }
    values(t, keys, seen, poll);
}

const struct attend_micro attend_micro_avx512bf16[1] = {
    {.pack_q = pack_q,
     .block = block,
     .scale_row = scale_row,
     .merge_row = merge_row,
     .exp = exp_scalar},
};
#else
const struct attend_micro attend_micro_avx512bf16[1] = {{0}};
#endif
