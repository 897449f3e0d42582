/* gemm_avx512bf16.c - the micro-kernel for AVX-512 with BF16 dot products: tiles of 6 x 64,
 * vdpbf16ps over pairs of k; FP8 is widened to BF16 by two 128-entry byte tables (VBMI). */
#include "core/numfmt.h"
#include "gemm/act.h"
#include "gemm/entries.h"

#if defined(__AVX512BF16__)
#include "gemm/avx512_body.h"

enum { FUSED_MR = 5 };

/* ---- packing ---- */

/* In each 128-bit lane, four units of bytes (k0 k1 k2 k3): the four pairs (k0 k1) first, then
 * the pairs (k2 k3), so that interleaving low and high bytes gives whole BF16 pairs. */
INLINE __m512i pairs_apart(__m512i x)
{
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(order));
}

static void transpose16(enum dtype type, const void *src, size_t stride, uint32_t *dst, size_t ldd)
{
    __m512i t[16];
    transpose_units(src, stride, t);
#pragma GCC unroll 16
    for (int u = 0; u < 16; u++)
        _mm512_storeu_si512(dst + (size_t)u * ldd, type == DT_E4M3 ? pairs_apart(t[u]) : t[u]);
}

/* ---- widening e4m3 to BF16 ---- */

/* The low and high bytes of the BF16 of every e4m3 magnitude. */
static const uint8_t e4m3_low[128] __attribute__((aligned(64))) = {
#define LOW8(odd) \
    0x00 | odd, 0x10 | odd, 0x20 | odd, 0x30 | odd, 0x40 | odd, 0x50 | odd, 0x60 | odd, 0x70 | odd
    0x00,       0x00,       0x80,       0xc0,       0x00,       0x20,       0x40,       0x60,
    LOW8(0x80), /* denormals; 2^-6.. */
    LOW8(0x00), LOW8(0x80), LOW8(0x00), LOW8(0x80), LOW8(0x00), LOW8(0x80), LOW8(0x00), LOW8(0x80),
    LOW8(0x00), LOW8(0x80), LOW8(0x00), LOW8(0x80), LOW8(0x00), 0x80,       0x90,       0xa0,
    0xb0,       0xc0,       0xd0,       0xe0,       0xc0, /* 256 .. 448, NaN */
#undef LOW8
};
static const uint8_t e4m3_high[128] __attribute__((aligned(64))) = {
#define HIGH8(h) h, h, h, h, h, h, h, h
    0x00,        0x3b,        0x3b,        0x3b,        0x3c,        0x3c,
    0x3c,        0x3c,        HIGH8(0x3c), HIGH8(0x3d), HIGH8(0x3d), HIGH8(0x3e),
    HIGH8(0x3e), HIGH8(0x3f), HIGH8(0x3f), HIGH8(0x40), HIGH8(0x40), HIGH8(0x41),
    HIGH8(0x41), HIGH8(0x42), HIGH8(0x42), HIGH8(0x43), 0x43,        0x43,
    0x43,        0x43,        0x43,        0x43,        0x43,        0x7f,
#undef HIGH8
};

struct tables {
    __m512i low0, low1, high0, high1, sign;
};

INLINE struct tables tables_load(void)
{
    return (struct tables){_mm512_load_si512(e4m3_low), _mm512_load_si512(e4m3_low + 64),
                           _mm512_load_si512(e4m3_high), _mm512_load_si512(e4m3_high + 64),
                           _mm512_set1_epi8((char)0x80)};
}

/* 64 e4m3 to the low and high bytes of their BF16; the table lookup ignores the sign bit. */
INLINE void e4m3_bytes(const struct tables *tab, __m512i x, __m512i *low, __m512i *high)
{
    enum { OR_AND = 0xf8 }; /* a | (b & c) */
    *low = _mm512_permutex2var_epi8(tab->low0, x, tab->low1);
    __m512i h = _mm512_permutex2var_epi8(tab->high0, x, tab->high1);
    *high = _mm512_ternarylogic_epi32(h, x, tab->sign, OR_AND);
}

/* 16 columns x 4 k of a packed block to the pairs (k0 k1) and (k2 k3). */
INLINE void e4m3_pairs(const struct tables *tab, const char *p, __m512i *k01, __m512i *k23)
{
    __m512i low, high;
    e4m3_bytes(tab, _mm512_loadu_si512(p), &low, &high);
    *k01 = _mm512_unpacklo_epi8(low, high);
    *k23 = _mm512_unpackhi_epi8(low, high);
}

static void widen_block(enum dtype from, const void *block, int depth, void *wide)
{
    (void)from; /* only e4m3 is widened here */
    struct tables tab = tables_load();
    const char *in = block;
    __m512i *out = wide;
    for (int k = 0; k < depth; k += 4, in += 4 * NR, out += 2 * VECS)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) {
            _mm_prefetch(in + v * 64 + AHEAD, _MM_HINT_T0);
            e4m3_pairs(&tab, in + v * 64, &out[v], &out[VECS + v]);
        }
}

static void widen_row(enum dtype from, const void *src, int n, void *dst)
{
    (void)from;
    struct tables tab = tables_load();
    const uint8_t *q = src;
    uint16_t *out = dst;
    /* Restores the order that interleaving within lanes disturbs. */
    const __m512i lo_order = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i hi_order = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for (int i = 0; i < n; i += 64) {
        int left = n - i;
        __mmask64 in_mask = left >= 64 ? ~0ull : (1ull << left) - 1;
        __mmask32 lo_mask = left >= 32 ? ~0u : (1u << left) - 1;
        __mmask32 hi_mask = left >= 64 ? ~0u : left > 32 ? (1u << (left - 32)) - 1 : 0;
        __m512i low, high;
        e4m3_bytes(&tab, _mm512_maskz_loadu_epi8(in_mask, q + i), &low, &high);
        __m512i even = _mm512_unpacklo_epi8(low, high), odd = _mm512_unpackhi_epi8(low, high);
        _mm512_mask_storeu_epi16(out + i, lo_mask, _mm512_permutex2var_epi64(even, lo_order, odd));
        _mm512_mask_storeu_epi16(out + i + 32, hi_mask,
                                 _mm512_permutex2var_epi64(even, hi_order, odd));
    }
}

/* ---- tiles ---- */

/* A pair of activations in every lane. */
INLINE __m512bh pair(const uint16_t *a)
{
    int32_t both;
    memcpy(&both, a, sizeof both);
    return (__m512bh)_mm512_set1_epi32(both);
}

INLINE void tile_bf16(const int rows, const bool stream, const struct gemm_tile *t)
{
    const uint16_t *a = t->a;
    const char *b = t->b;
    struct acc acc;
    acc_begin(rows, t, &acc);
    for (int k = 0; k < t->depth; k += 2, a += 2, b += 4 * NR) {
        __m512bh w[VECS];
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) {
            w[v] = (__m512bh)_mm512_loadu_si512(b + v * 64);
            if (stream) _mm_prefetch(b + v * 64 + AHEAD, _MM_HINT_T0);
        }
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m512bh x = pair(a + r * GEMM_KC);
#pragma GCC unroll 4
            for (int v = 0; v < VECS; v++) acc.v[r][v] = _mm512_dpbf16_ps(acc.v[r][v], x, w[v]);
        }
    }
    acc_end(rows, t, &acc);
}

/* E4M3 weights straight from the packed block: for few rows, where memory is the bound. The
 * chain of every element is tile_bf16's. */
INLINE void tile_e4m3(const int rows, const struct gemm_tile *t)
{
    struct tables tab = tables_load();
    const uint16_t *a = t->a;
    const char *b = t->b;
    struct acc acc;
    acc_begin(rows, t, &acc);
    for (int k = 0; k < t->depth; k += 4, a += 4, b += 4 * NR) {
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) {
            __m512i k01, k23;
            e4m3_pairs(&tab, b + v * 64, &k01, &k23);
            _mm_prefetch(b + v * 64 + AHEAD, _MM_HINT_T0);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                const uint16_t *x = a + r * GEMM_KC;
                acc.v[r][v] = _mm512_dpbf16_ps(acc.v[r][v], pair(x), (__m512bh)k01);
                acc.v[r][v] = _mm512_dpbf16_ps(acc.v[r][v], pair(x + 2), (__m512bh)k23);
            }
        }
    }
    acc_end(rows, t, &acc);
}

INLINE void tile_rows(const int rows, enum dtype type, const struct gemm_tile *t)
{
    if (type == DT_F32)
        tile_f32(rows, t);
    else if (type == DT_E4M3)
        tile_e4m3(rows, t);
    else if (t->stream)
        tile_bf16(rows, true, t);
    else
        tile_bf16(rows, false, t);
}

static void tile(enum dtype type, int rows, const struct gemm_tile *t)
{
    GEMM_EACH_HEIGHT(rows, tile_rows, type, t)
}

const struct ukernel ukernel_avx512bf16 = {
    .nr = NR,
    .mr = MR,
    .wide = DT_BF16,
    .fused_rows = 2 * FUSED_MR,
    .fused_mr = FUSED_MR,
    .poll_work = 5e6,
    .transpose16 = transpose16,
    .widen_block = widen_block,
    .widen_row = widen_row,
    .tile = tile,
    .row_bf16 = act_row_bf16,
    .row_e4m3 = act_row_e4m3,
};

GEMM_ENTRIES(avx512bf16)
#endif
