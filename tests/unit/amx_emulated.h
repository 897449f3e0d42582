/* amx_emulated.h - eight tile registers in plain C, so that the AMX kernels are tested on hosts that
 * lack them. Follows the instruction set reference: LDTILECFG clears tiles and sets their shapes, loads
 * and stores move rows x row_bytes, TDPBF16PS (below). Shapes that the processor would refuse
 * abort here. */
#ifndef TESTS_AMX_EMULATED_H
#define TESTS_AMX_EMULATED_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { AMX_TILES = 8, AMX_TILE_ROWS = 16, AMX_TILE_ROW_BYTES = 64 };

struct amx_registers {
    bool configured;
    int rows[AMX_TILES], row_bytes[AMX_TILES];
    uint8_t data[AMX_TILES][AMX_TILE_ROWS][AMX_TILE_ROW_BYTES];
};

static _Thread_local struct amx_registers amx;

static void amx_require(bool legal)
{
    if (!legal) abort(); /* #UD or #GP on the processor */
}

/* config: the 64 bytes that LDTILECFG reads. */
static void amx_load_config(const void *config)
{
    const uint8_t *c = config;
    amx_require(c[0] == 1 && c[1] == 0);
    memset(&amx, 0, sizeof amx);
    amx.configured = true;
    for (int t = 0; t < AMX_TILES; t++) {
        uint16_t bytes;
        memcpy(&bytes, c + 16 + 2 * t, sizeof bytes);
        amx_require(bytes <= AMX_TILE_ROW_BYTES && c[48 + t] <= AMX_TILE_ROWS);
        amx_require((bytes == 0) == (c[48 + t] == 0));
        amx.row_bytes[t] = bytes;
        amx.rows[t] = c[48 + t];
    }
}

static void amx_load(int t, const void *p, size_t stride)
{
    amx_require(amx.configured && amx.rows[t] > 0);
    memset(amx.data[t], 0, sizeof amx.data[t]);
    for (int r = 0; r < amx.rows[t]; r++)
        memcpy(amx.data[t][r], (const char *)p + (size_t)r * stride, (size_t)amx.row_bytes[t]);
}

static void amx_store(int t, void *p, size_t stride)
{
    amx_require(amx.configured && amx.rows[t] > 0);
    for (int r = 0; r < amx.rows[t]; r++)
        memcpy((char *)p + (size_t)r * stride, amx.data[t][r], (size_t)amx.row_bytes[t]);
}

static float amx_flush(float x)
{
    return fpclassify(x) == FP_SUBNORMAL ? copysignf(0.0f, x) : x;
}

static float amx_bf16(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return amx_flush(x);
}

/* For each row m: two sums per column from zero, over the even and the odd k, each step a fused
 * multiply-add; then c + (even + odd). Denormal inputs and results are zero, rounding is to
 * nearest even whatever MXCSR says. */
static void amx_dot(int c, int a, int b)
{
    amx_require(amx.configured && amx.rows[c] == amx.rows[a] &&
                amx.row_bytes[a] == 4 * amx.rows[b] && amx.row_bytes[c] == amx.row_bytes[b]);
    for (int m = 0; m < amx.rows[c]; m++)
        for (int n = 0; n < amx.row_bytes[c] / 4; n++) {
            float sum[2] = {0, 0}, before;
            for (int k = 0; k < amx.rows[b]; k++)
                for (int odd = 0; odd < 2; odd++)
                    sum[odd] = amx_flush(fmaf(amx_bf16(&amx.data[a][m][4 * k + 2 * odd]),
                                              amx_bf16(&amx.data[b][k][4 * n + 2 * odd]),
                                              sum[odd]));
            memcpy(&before, &amx.data[c][m][4 * n], sizeof before);
            float after = amx_flush(amx_flush(before) + amx_flush(sum[0] + sum[1]));
            memcpy(&amx.data[c][m][4 * n], &after, sizeof after);
        }
}

#define TILE_CONFIG(config) amx_load_config(config)
#define TILE_RELEASE() memset(&amx, 0, sizeof amx)
#define TILE_ZERO(t) memset(amx.data[t], 0, sizeof amx.data[t])
#define TILE_LOAD(t, p, stride) amx_load(t, p, stride)
#define TILE_STORE(t, p, stride) amx_store(t, p, stride)
#define TILE_DOT(c, a, b) amx_dot(c, a, b)

#endif
