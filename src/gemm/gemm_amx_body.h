/* gemm_amx_body.h - the micro-kernel over AMX tiles: BF16 products of 16 x 32 by 32 x 16, FP8 widened
 * to BF16 first. Written over six macros so that gemm_amx.c builds it for the tile registers and a
 * test builds it for their emulation in plain C (tests/unit/amx_emulated.h); packing, widening and
 * FP32 products are the AVX-512 BF16 path's, and so is the packed layout.
 *
 *   TILE_CONFIG(cfg) TILE_RELEASE()      tile shapes of this thread
 *   TILE_ZERO(t) TILE_LOAD(t, p, stride) TILE_STORE(t, p, stride)
 *   TILE_DOT(c, a, b)                    c += a * b, as TDPBF16PS rounds: for each element two chains
 *                                        of FMA over the 16 even and 16 odd k of the tile, from
 *                                        zero, then c + (even + odd); denormals count as zero
 *
 * A tile call multiplies up to 32 rows with a panel of 64 columns: two row tiles (16 + rest) times
 * two column tiles at a time, so that each tile loaded serves two products; 8 tile registers: 4
 * sums, 2 of rows, 2 of columns. A ragged k ends with one narrower step.
 */
#include "gemm/act.h"
#include "gemm/entries.h"

enum { AMX_NR = 64, AMX_MR = 32, AMX_ROWS = 16, AMX_COLS = 16, AMX_K = 32 };

/* Tile registers: sums of (row tile, column tile), rows, columns. */
enum { TILE_SUM = 0, TILE_A = 4, TILE_B = 6 };

struct amx_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));

/* What the thread's tiles are configured for: rows of the call and depth of a step; 0: nothing. */
static _Thread_local struct {
    int rows, depth;
} amx_shape;

static void amx_configure(int rows, int depth)
{
    if (amx_shape.rows == rows && amx_shape.depth == depth) return;
    struct amx_config c = {.palette = 1};
    int height[2] = {rows < AMX_ROWS ? rows : AMX_ROWS, rows > AMX_ROWS ? rows - AMX_ROWS : 1};
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 2; j++) {
            c.rows[TILE_SUM + 2 * i + j] = (uint8_t)height[i];
            c.row_bytes[TILE_SUM + 2 * i + j] = AMX_COLS * sizeof(float);
        }
        c.rows[TILE_A + i] = (uint8_t)height[i];
        c.row_bytes[TILE_A + i] = (uint16_t)(depth * (int)sizeof(uint16_t));
        c.rows[TILE_B + i] = (uint8_t)(depth / 2);
        c.row_bytes[TILE_B + i] = AMX_COLS * sizeof(uint32_t);
    }
    TILE_CONFIG(&c);
    amx_shape.rows = rows;
    amx_shape.depth = depth;
}

/* One step of k: two row tiles (or one) times two column tiles. */
static inline __attribute__((always_inline)) void amx_step(const bool two, const uint16_t *a,
                                                           const char *b)
{
    TILE_LOAD(4, a, GEMM_KC * sizeof(uint16_t));
    TILE_LOAD(6, b, AMX_NR * sizeof(uint32_t));
    TILE_DOT(0, 4, 6);
    TILE_LOAD(7, b + AMX_COLS * sizeof(uint32_t), AMX_NR * sizeof(uint32_t));
    TILE_DOT(1, 4, 7);
    if (!two) return;
    TILE_LOAD(5, a + AMX_ROWS * GEMM_KC, GEMM_KC * sizeof(uint16_t));
    TILE_DOT(2, 5, 6);
    TILE_DOT(3, 5, 7);
}

static inline __attribute__((always_inline)) void amx_sums_begin(const bool two, const bool zero,
                                                                 const float *c)
{
    const size_t pitch = AMX_NR * sizeof(float);
    if (zero) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        if (!two) return;
        TILE_ZERO(2);
        TILE_ZERO(3);
        return;
    }
    TILE_LOAD(0, c, pitch);
    TILE_LOAD(1, c + AMX_COLS, pitch);
    if (!two) return;
    TILE_LOAD(2, c + AMX_ROWS * AMX_NR, pitch);
    TILE_LOAD(3, c + AMX_ROWS * AMX_NR + AMX_COLS, pitch);
}

static inline __attribute__((always_inline)) void amx_sums_end(const bool two, float *c, int ldc)
{
    const size_t pitch = (size_t)ldc * sizeof(float);
    TILE_STORE(0, c, pitch);
    TILE_STORE(1, c + AMX_COLS, pitch);
    if (!two) return;
    TILE_STORE(2, c + AMX_ROWS * ldc, pitch);
    TILE_STORE(3, c + AMX_ROWS * ldc + AMX_COLS, pitch);
}

/* c (+)= sum * a_scale * w_scale for 32 columns. */
static void amx_scale(const struct gemm_tile *t, int rows, const float *sum, float *c)
{
    enum { WIDTH = 2 * AMX_COLS };
    for (int r = 0; r < rows; r++, sum += WIDTH, c += AMX_NR) {
        float scale = t->a_scale[r] * t->w_scale;
        for (int j = 0; j < WIDTH; j++)
            c[j] = __builtin_fmaf(sum[j], scale, t->first ? 0.0f : c[j]);
    }
}

static inline __attribute__((always_inline)) void
amx_half(const bool two, const struct gemm_tile *t, int rows, int column)
{
    const uint16_t *a = t->a;
    const char *b = (const char *)t->b + (size_t)column * sizeof(uint32_t);
    float *c = t->c + column;
    float sum[AMX_MR * 2 * AMX_COLS] __attribute__((aligned(64)));
    int whole = t->depth / AMX_K * AMX_K;
    amx_configure(rows, whole ? AMX_K : t->depth);
    amx_sums_begin(two, t->first || t->scaled, c);
    for (int k = 0; k < whole; k += AMX_K)
        amx_step(two, a + k, b + (size_t)k / 2 * AMX_NR * sizeof(uint32_t));
    if (whole && whole < t->depth) { /* the sums wait in memory: a new configuration clears tiles */
        amx_sums_end(two, sum, 2 * AMX_COLS);
        amx_configure(rows, t->depth - whole);
        const size_t pitch = 2 * AMX_COLS * sizeof(float);
        TILE_LOAD(0, sum, pitch);
        TILE_LOAD(1, sum + AMX_COLS, pitch);
        if (two) TILE_LOAD(2, sum + AMX_ROWS * 2 * AMX_COLS, pitch);
        if (two) TILE_LOAD(3, sum + AMX_ROWS * 2 * AMX_COLS + AMX_COLS, pitch);
    }
    if (whole < t->depth)
        amx_step(two, a + whole, b + (size_t)whole / 2 * AMX_NR * sizeof(uint32_t));
    if (!t->scaled) {
        amx_sums_end(two, c, AMX_NR);
        return;
    }
    amx_sums_end(two, sum, 2 * AMX_COLS);
    amx_scale(t, rows, sum, c);
}

static void amx_tile(enum dtype type, int rows, const struct gemm_tile *t)
{
    if (type == DT_F32) { /* no tiles for it */
        struct gemm_tile part = *t;
        for (int r = 0; r < rows; r += ukernel_avx512bf16.mr) {
            int some = rows - r < ukernel_avx512bf16.mr ? rows - r : ukernel_avx512bf16.mr;
            part.a = (const float *)t->a + r * GEMM_KC;
            part.c = t->c + r * AMX_NR;
            ukernel_avx512bf16.tile(type, some, &part);
        }
        return;
    }
    for (int column = 0; column < AMX_NR; column += 2 * AMX_COLS) {
        if (rows > AMX_ROWS)
            amx_half(true, t, rows, column);
        else
            amx_half(false, t, rows, column);
    }
}

/* Other code of the thread may use tiles between our calls. */
static void amx_leave(void)
{
    if (amx_shape.rows == 0) return;
    TILE_RELEASE();
    amx_shape.rows = amx_shape.depth = 0;
}

static void amx_transpose16(enum dtype type, const void *src, size_t stride, uint32_t *dst,
                            size_t ldd)
{
    ukernel_avx512bf16.transpose16(type, src, stride, dst, ldd);
}

static void amx_widen_block(enum dtype from, const void *block, int depth, void *wide)
{
    ukernel_avx512bf16.widen_block(from, block, depth, wide);
}

static void amx_widen_row(enum dtype from, const void *src, int n, void *dst)
{
    ukernel_avx512bf16.widen_row(from, src, n, dst);
}

#define AMX_UKERNEL                                                                     \
    {                                                                                   \
        .nr = AMX_NR, .mr = AMX_MR, .wide = DT_BF16, .fused_rows = 0, .poll_work = 2e7, \
        .transpose16 = amx_transpose16, .widen_block = amx_widen_block,                 \
        .widen_row = amx_widen_row, .tile = amx_tile, .leave = amx_leave,               \
        .row_bf16 = act_row_bf16, .row_e4m3 = act_row_e4m3,                             \
    }
