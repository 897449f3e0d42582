/* act.c - conversion of activation rows, spread over the lane's threads. */
#include "gemm/act.h"
#include "gemm/ukernel.h"

#include <math.h>
#include <omp.h>
#include <string.h>

static void row_convert(const struct ukernel *uk, int i, const float *x, const struct amat *out,
                        bool ue8m0)
{
    size_t at = (size_t)i * (size_t)out->ld;
    /* The destination is the caller's own buffer behind a const view (device/kernels.h). */
    char *data = (char *)(uintptr_t)out->data + at * dtype_bytes(out->type);
    if (out->type == DT_F32) {
        if ((const void *)data != (const void *)x)
            memcpy(data, x, sizeof(float) * (size_t)out->k);
    } else if (out->type == DT_BF16) {
        uk->row_bf16(out->k, x, (uint16_t *)(void *)data);
    } else {
        float *scale = (float *)(uintptr_t)out->scale + (size_t)i * (size_t)out->lds;
        uk->row_e4m3(out->k, x, ue8m0, (uint8_t *)data, scale);
    }
}

void act_drive(const struct ukernel *uk, struct lane *lane, int m, const float *x, int ldx,
               struct amat *out, bool ue8m0)
{
    enum { ROWS_AT_ONCE = 8, WORTH_THREADS = 1 << 17 };
    if (lane->threads == 1 || (int64_t)m * out->k < WORTH_THREADS) {
        for (int i = 0; i < m; i++) {
            row_convert(uk, i, x + (size_t)i * (size_t)ldx, out, ue8m0);
            if (i % ROWS_AT_ONCE == ROWS_AT_ONCE - 1) lane_poll(lane);
        }
        return;
    }
#pragma omp parallel for num_threads(lane->threads) schedule(dynamic, ROWS_AT_ONCE)
    for (int i = 0; i < m; i++) {
        row_convert(uk, i, x + (size_t)i * (size_t)ldx, out, ue8m0);
        if (i % ROWS_AT_ONCE == 0 && omp_get_thread_num() == 0) lane_poll(lane);
    }
}

void act_e4m3_ref(int k, const float *x, bool ue8m0, uint8_t *q, float *scale)
{
    for (int k0 = 0, b = 0; k0 < k; k0 += FP8_BLOCK, b++) {
        int end = k0 + FP8_BLOCK < k ? k0 + FP8_BLOCK : k;
        float amax = 0;
        for (int i = k0; i < end; i++)
            if (isnan(x[i]) || fabsf(x[i]) > amax) amax = fabsf(x[i]);
        float s = (isnan(amax) || amax > 1e-4f ? amax : 1e-4f) / 448.0f;
        if (ue8m0 && isfinite(s)) {
            int e;
            float mantissa = frexpf(s, &e); /* s = mantissa * 2^e, mantissa in [0.5, 1) */
            s = ldexpf(1.0f, mantissa == 0.5f ? e - 1 : e);
        }
        scale[b] = s;
        for (int i = k0; i < end; i++) q[i] = e4m3_from_f32(x[i] / s);
    }
}
