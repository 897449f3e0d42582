/* act.c - conversion of activation rows, spread over the lane's threads. */
#include "gemm/act.h"
#include "gemm/ukernel.h"

#include <math.h>
#include <string.h>

static void row_convert(const struct ukernel *uk, int i, const float *x, const struct amat *out,
                        bool ue8m0)
{
    size_t at = (size_t)i * (size_t)out->ld;
    /* The destination is the caller's own buffer behind a const view (device/kernels.h). */
    char *data = (char *)(uintptr_t)out->data + at * dtype_bytes(out->type);
    if (out->type == DT_F32) {
        if ((const void *)data != (const void *)x) memcpy(data, x, sizeof(float) * (size_t)out->k);
    } else if (out->type == DT_BF16) {
        uk->row_bf16(out->k, x, (uint16_t *)(void *)data);
    } else {
        float *scale = (float *)(uintptr_t)out->scale + (size_t)i * (size_t)out->lds;
        uk->row_e4m3(out->k, x, ue8m0, (uint8_t *)data, scale);
    }
}

struct convert {
    const struct ukernel *uk;
    const float *x;
    int ldx;
    const struct amat *out;
    bool ue8m0;
};

static void rows_convert(void *arg, int first, int end, struct lane *poll)
{
    const struct convert *c = arg;
    for (int i = first; i < end; i++) {
        row_convert(c->uk, i, c->x + (size_t)i * (size_t)c->ldx, c->out, c->ue8m0);
        lane_poll(poll);
    }
}

void act_drive(const struct ukernel *uk, struct lane *lane, int m, const float *x, int ldx,
               struct amat *out, bool ue8m0)
{
    enum { NUMBERS_MIN = 1 << 15 }; /* for a run of rows: some microseconds */
    struct convert c = {uk, x, ldx, out, ue8m0};
    lane_rows(lane, m, NUMBERS_MIN / (out->k + 1) + 1, rows_convert, &c);
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
