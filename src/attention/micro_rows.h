/* micro_rows.h - the parts of struct attend_micro that work on one FP32 row, over vf: shared by the
 * FP32 arithmetic (micro_body.h) and the BF16 products (micro_avx512bf16.c).
 */
#include "attention/attend.h"
#include "attention/vec.h"

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
