/* gemm_amx.c - the AMX micro-kernel on the tile registers. */
#include "gemm/entries.h"

#if defined(__AMX_BF16__) || defined(__AMXBF16__) /* gcc, clang */
#include <immintrin.h>

#define TILE_CONFIG(config) _tile_loadconfig(config)
#define TILE_RELEASE() _tile_release()
#define TILE_ZERO(t) _tile_zero(t)
#define TILE_LOAD(t, p, stride) _tile_loadd(t, p, stride)
#define TILE_STORE(t, p, stride) _tile_stored(t, p, stride)
#define TILE_DOT(c, a, b) _tile_dpbf16ps(c, a, b)
#include "gemm/gemm_amx_body.h"

const struct ukernel ukernel_amx = AMX_UKERNEL;

GEMM_ENTRIES(amx)
#endif
