/* bench_peak_amx.c - BF16 products of tiles from tile registers: the ceiling of AMX. The loop owns
 * the tile configuration of its thread while it runs. */
#include "cmd/bench.h"

#if defined(__AMX_BF16__) || defined(__AMXBF16__) /* gcc, clang */
#include <stdint.h>
#include <immintrin.h>

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));

double bench_peak_bf16_amx(long rounds)
{
    struct tile_config config = {.palette = 1};
    uint16_t a[16 * 32] __attribute__((aligned(64)));
    for (int t = 0; t < 8; t++) {
        config.row_bytes[t] = 64;
        config.rows[t] = 16;
    }
    for (int i = 0; i < 16 * 32; i++) a[i] = 0x3c00;
    _tile_loadconfig(&config);
    _tile_loadd(4, a, 64);
    _tile_loadd(5, a, 64);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    long products = rounds / 16; /* a tile product is 16 x 16 x 32 multiply-adds */
    for (long r = 0; r < products; r++) {
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 5);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 5);
    }
    float out[256] __attribute__((aligned(64)));
    _tile_stored(0, out, 64);
    _tile_release();
    __asm__ volatile("" : : "r"(out) : "memory");
    return 4 * 2.0 * 16 * 16 * 32 * (double)products;
}
#else
double bench_peak_bf16_amx(long rounds)
{
    (void)rounds;
    return 0;
}
#endif
