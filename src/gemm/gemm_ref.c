/* gemm_ref.c - the products by definition, in double, from weights in checkpoint order. */
#include "core/numfmt.h"
#include "gemm/gemm.h"

#include <math.h>

static double activation(const struct amat *a, int i, int k)
{
    size_t at = (size_t)i * (size_t)a->ld + (size_t)k;
    if (a->type == DT_F32) return ((const float *)a->data)[at];
    if (a->type == DT_BF16) return bf16_to_f32(((const uint16_t *)a->data)[at]);
    return (double)e4m3_to_f32(((const uint8_t *)a->data)[at]) *
           a->scale[(size_t)i * (size_t)a->lds + (size_t)(k / FP8_BLOCK)];
}

static double weight(const struct weight_src *w, int j, int k)
{
    size_t at = (size_t)j * (size_t)w->ldk + (size_t)k;
    if (w->type == DT_F32) return ((const float *)w->data)[at];
    if (w->type == DT_BF16) return bf16_to_f32(((const uint16_t *)w->data)[at]);
    size_t block = (size_t)(j / FP8_BLOCK) * (size_t)w->lds + (size_t)(k / FP8_BLOCK);
    return (double)e4m3_to_f32(((const uint8_t *)w->data)[at]) * w->scale[block];
}

void gemm_ref(int m, const struct amat *a, const struct weight_src *w, int sources, double *c,
              double *mag)
{
    int n = w[0].n + (sources > 1 ? w[1].n : 0), column = 0;
    for (int s = 0; s < sources; column += w[s++].n)
        for (int i = 0; i < m; i++)
            for (int j = 0; j < w[s].n; j++) {
                double sum = 0, abs_sum = 0;
                for (int k = 0; k < a->k; k++) {
                    double product = activation(a, i, k) * weight(&w[s], j, k);
                    sum += product;
                    abs_sum += fabs(product);
                }
                size_t at = (size_t)i * (size_t)n + (size_t)(column + j);
                c[at] = sum;
                if (mag) mag[at] = abs_sum;
            }
}
