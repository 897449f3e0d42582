/* pack.c - weights in checkpoint order to panels (layout: ukernel.h).
 *
 * A panel is packed 16 rows at a time over the whole of k, so that memory sees 16 ascending
 * streams; 16 x 16 units are transposed in registers and written as whole cache lines. Edges
 * and type conversions go through a small staging tile.
 */
#include "core/numfmt.h"
#include "gemm/ukernel.h"

#include <string.h>

enum { STRIP = 16 };

struct gemm_layout gemm_layout(const struct ukernel *uk, enum dtype type, const int *source_n,
                               int sources, int k)
{
    struct gemm_layout l = {0};
    for (int s = 0; s < sources; s++) {
        l.panels += (source_n[s] + uk->nr - 1) / uk->nr;
        if (s == 0) l.panels0 = l.panels;
    }
    l.blocks = fp8_blocks(k);
    size_t column = dtype_bytes(type) * (size_t)uk->nr;
    l.block_bytes = column * GEMM_KC;
    l.panel_bytes = column * (size_t)((k + GEMM_KALIGN - 1) / GEMM_KALIGN * GEMM_KALIGN);
    l.bytes = l.panel_bytes * (size_t)l.panels;
    if (type == DT_E4M3) {
        l.scales = (l.bytes + 63) / 64 * 64;
        l.bytes = l.scales + sizeof(float) * (size_t)l.panels * (size_t)l.blocks;
    }
    l.bytes = (l.bytes + 63) / 64 * 64;
    return l;
}

/* ---- one row's part of a staging tile, converted ---- */

/* Value of element k of a source row in FP32; FP8 times its block's scale. */
static float source_value(const struct weight_src *src, int row, int k)
{
    size_t i = (size_t)row * (size_t)src->ldk + (size_t)k;
    if (src->type == DT_F32) return ((const float *)src->data)[i];
    if (src->type == DT_BF16) return bf16_to_f32(((const uint16_t *)src->data)[i]);
    float scale = src->scale[(size_t)(row / FP8_BLOCK) * (size_t)src->lds + k / FP8_BLOCK];
    return e4m3_to_f32(((const uint8_t *)src->data)[i]) * scale;
}

static void stage_row(enum dtype type, const struct weight_src *src, int row, int k0, int count,
                      void *dst)
{
    if (type == src->type) {
        size_t b = dtype_bytes(type);
        const char *from = src->data;
        memcpy(dst, from + ((size_t)row * (size_t)src->ldk + (size_t)k0) * b, (size_t)count * b);
    } else if (type == DT_F32) {
        float *f = dst;
        for (int i = 0; i < count; i++) f[i] = source_value(src, row, k0 + i);
    } else {
        uint16_t *h = dst;
        for (int i = 0; i < count; i++) h[i] = bf16_from_f32(source_value(src, row, k0 + i));
    }
}

/* Packs units [u0, u0 + units) of one block for rows row0 .. row0 + 15 of a source. */
static void pack_chunk(const struct ukernel *uk, enum dtype type, const struct weight_src *src,
                       int row0, int k0, int units, uint32_t *dst)
{
    int per_unit = 4 / (int)dtype_bytes(type);
    size_t bytes = dtype_bytes(type);
    int rows = src->n - row0 < STRIP ? src->n - row0 : STRIP;
    int count = src->k - k0 < STRIP * per_unit ? src->k - k0 : STRIP * per_unit;
    if (count > units * per_unit) count = units * per_unit;
    if (type == src->type && rows == STRIP && count == STRIP * per_unit) {
        const char *from = src->data;
        from += ((size_t)row0 * (size_t)src->ldk + (size_t)k0) * bytes;
        uk->transpose16(type, from, (size_t)src->ldk * bytes, dst, (size_t)uk->nr);
        return;
    }
    uint32_t tile[STRIP][STRIP] __attribute__((aligned(64)));
    uint32_t turned[STRIP][STRIP] __attribute__((aligned(64)));
    memset(tile, 0, sizeof tile);
    for (int r = 0; r < rows; r++) stage_row(type, src, row0 + r, k0, count, tile[r]);
    uk->transpose16(type, tile, sizeof tile[0], turned[0], STRIP);
    for (int u = 0; u < units; u++) memcpy(dst + u * uk->nr, turned[u], sizeof turned[u]);
}

static void pack_panel(const struct ukernel *uk, enum dtype type, const struct weight_src *src,
                       int row0, char *dst)
{
    int per_unit = 4 / (int)dtype_bytes(type);
    size_t block_bytes = dtype_bytes(type) * (size_t)uk->nr * GEMM_KC;
    for (int strip = 0; strip < uk->nr; strip += STRIP)
        for (int b = 0; b < fp8_blocks(src->k); b++) {
            uint32_t *block = (uint32_t *)(void *)(dst + (size_t)b * block_bytes) + strip;
            int units = gemm_depth(src->k, b) / per_unit;
            for (int u = 0; u < units; u += STRIP)
                pack_chunk(uk, type, src, row0 + strip, b * GEMM_KC + u * per_unit,
                           units - u < STRIP ? units - u : STRIP, block + u * uk->nr);
        }
}

static enum status check_sources(enum dtype type, const struct weight_src *src, int sources)
{
    if (sources < 1 || sources > 2)
        return error_set(ERR_BUG, "gemm_pack: %d sources, expected 1 or 2", sources);
    for (int s = 0; s < sources; s++) {
        if (src[s].n < 1 || src[s].k < 1 || src[s].k != src[0].k || src[s].ldk < src[s].k)
            return error_set(ERR_BUG,
                             "gemm_pack: source %d is [%d, %d] with row stride %d, the "
                             "first has k %d",
                             s, src[s].n, src[s].k, src[s].ldk, src[0].k);
        if (type == DT_E4M3 && src[s].type != DT_E4M3)
            return error_set(ERR_BUG, "gemm_pack: only e4m3 weights can be packed as e4m3");
        if (src[s].type == DT_E4M3 && !src[s].scale)
            return error_set(ERR_BUG, "gemm_pack: e4m3 source %d has no scales", s);
    }
    return OK;
}

enum status gemm_pack_stack(const struct ukernel *uk, enum dtype type, const struct weight_src *src,
                            int sources, void *dst, struct wmat *out)
{
    TRY(check_sources(type, src, sources));
    int source_n[2] = {src[0].n, sources > 1 ? src[1].n : 0};
    struct gemm_layout l = gemm_layout(uk, type, source_n, sources, src[0].k);
    char *panel = dst;
    float *scale = (float *)(void *)((char *)dst + l.scales);
    for (int s = 0; s < sources; s++)
        for (int row0 = 0; row0 < src[s].n; row0 += uk->nr, panel += l.panel_bytes) {
            pack_panel(uk, type, &src[s], row0, panel);
            if (type != DT_E4M3) continue;
            size_t scale_row = (size_t)(row0 / FP8_BLOCK) * (size_t)src[s].lds;
            memcpy(scale, src[s].scale + scale_row, sizeof(float) * (size_t)l.blocks);
            scale += l.blocks;
        }
    *out = (struct wmat){.type = type,
                         .n = source_n[0] + source_n[1],
                         .k = src[0].k,
                         .sources = sources,
                         .source_n = {source_n[0], source_n[1]},
                         .data = dst};
    return OK;
}
