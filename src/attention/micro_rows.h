/* micro_rows.h - the parts of struct attend_micro that work on one FP32 row, over vf: shared by the
 * FP32 arithmetic (micro_body.h) and the BF16 products (micro_avx512bf16.c).
 */
#include "attention/attend.h"
#include "attention/vec.h"

/* A NaN score is skipped by the maximum but not by the sum, so it reaches the whole row. */
static float running_max(int keys, float scale, const float *s, float m)
{
    vf best = vf_set1(m);
    VF_FOR(j, keys)
    best = vf_max(vf_keep_n(vf_mul(vf_load(s + j), vf_set1(scale)), keys - j, -INFINITY), best);
    return vf_hmax(best);
}

static float rescale_factor(float before, float after)
{
    return before == after ? 1.0f : exp_scalar(before - after);
}

static void scale_row(int n, float f, const float *x, float *y)
{
    VF_FOR(i, n) vf_store_n(y + i, vf_mul(vf_load_n(x + i, n - i), vf_set1(f)), n - i);
}

static void merge_row(int n, float fa, float *a, float fb, const float *b)
{
    VF_FOR(i, n)
    {
        vf sum = vf_mul(vf_load_n(a + i, n - i), vf_set1(fa));
        vf_store_n(a + i, vf_fma(vf_load_n(b + i, n - i), vf_set1(fb), sum), n - i);
    }
}
