/* vec.h - one small vector type for the row and tile kernels: `vf` holds VW floats.
 *
 * A kernel body is written once over vf and compiled once per path: 16 lanes with AVX-512, 8 with
 * AVX2, 4 with plain C vectors elsewhere. Which one is decided by the flags of the including
 * file alone; nothing here looks at the host. Included by .c files only.
 *
 * Tails: functions ending in _n take a lane count n; lanes >= n are neither read nor written, n
 * may exceed VW (all lanes) or be <= 0 (none).
 * vf_max(a, b) is b where either is NaN. vf_exp has at most 2 ulp of error over the whole range
 * (denormal results, 0, +inf and NaN included); it is one polynomial on every path and calls no
 * libm.
 */
#ifndef ATTENTION_VEC_H
#define ATTENTION_VEC_H

#include "core/numfmt.h"

#include <math.h>
#include <stdint.h>

#if defined(__AVX512F__)
#include "attention/vec_avx512.h"
#elif defined(__AVX2__)
#include "attention/vec_avx2.h"
#else
#include "attention/vec_portable.h"
#endif

/* Lanes of the partial vector at i of n, and the loop over whole and partial vectors. */
#define VF_FOR(i, n) for (int i = 0; i < (n); i += VW)

/* exp(x) = 2^k * (1 + r + r^2 q(r)), k = round(x / ln 2), |r| <= ln(2)/2. q is the degree-4
 * polynomial that minimises the relative error of the whole (2^-28). ln 2 is split so that k
 * times the high part (9 bits) is exact. The clamps keep k within what vf_ldexp takes; past
 * them the result is 0 or +inf. */
static inline vf vf_exp(vf x)
{
    x = vf_max(vf_set1(-104.0f), vf_min(vf_set1(89.0f), x));
    vf k = vf_round(vf_mul(x, vf_set1(1.44269504f)));
    vf r = vf_fma(k, vf_set1(-0.693359375f), x);
    r = vf_fma(k, vf_set1(2.1219444e-4f), r);
    vf q = vf_set1(0x1.6a23d0p-10f);
    q = vf_fma(q, r, vf_set1(0x1.123a20p-7f));
    q = vf_fma(q, r, vf_set1(0x1.5558f2p-5f));
    q = vf_fma(q, r, vf_set1(0x1.555492p-3f));
    q = vf_fma(q, r, vf_set1(0x1.fffffcp-2f));
    vf p = vf_add(vf_fma(vf_mul(r, r), q, r), vf_set1(1.0f));
    return vf_ldexp(p, k);
}

/* 1 / (1 + exp(-x)) */
static inline vf vf_sigmoid(vf x)
{
    vf one = vf_set1(1.0f);
    return vf_div(one, vf_add(one, vf_exp(vf_sub(vf_set1(0.0f), x))));
}

static inline float exp_scalar(float x)
{
    float out[VW];
    vf_store(out, vf_exp(vf_set1(x)));
    return out[0];
}

#endif
