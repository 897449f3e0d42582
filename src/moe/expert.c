/* expert.c - the gated MLP over groups of rows.
 *
 * The scratch holds one FP32 row [gate | up] per row. silu_mul leaves its product in the gate
 * half; the converted row then takes the place of the up half, so no third buffer is needed.
 */
#include "moe/expert.h"

size_t moe_ffn_scratch_bytes(enum dtype act_type, int span, int inner)
{
    (void)act_type; /* a converted row of any type fits into half of the FP32 row */
    return (size_t)span * 2 * (size_t)inner * sizeof(float);
}

/* The converted rows from row0 on: bytes first, FP8 scales behind them. */
static struct amat converted(const struct moe_ffn *f, int inner, int row0)
{
    size_t unit = dtype_bytes(f->act_type), stride = 2 * (size_t)inner;
    float *half = (float *)f->scratch + (size_t)row0 * stride;
    if (f->act_type != DT_F32) half += inner;
    struct amat a = {
        .type = f->act_type, .k = inner, .data = half, .ld = (int)(stride * sizeof(float) / unit)};
    if (f->act_type == DT_E4M3) {
        a.scale = half + (inner + 3) / 4;
        a.lds = (int)stride;
    }
    return a;
}

static void activate(struct lane *lane, const struct kernels *k, const struct moe_ffn *f, int inner,
                     int row0, int rows)
{
    float *x = (float *)f->scratch + (size_t)row0 * 2 * (size_t)inner;
    k->silu_mul(lane, rows, inner, x, 2 * inner, x, 2 * inner);
    if (f->act_type == DT_F32) return;
    struct amat a = converted(f, inner, row0);
    k->act_convert(lane, rows, x, 2 * inner, &a, f->ue8m0);
}

void moe_ffn(struct lane *lane, const struct kernels *k, const struct moe_ffn *f)
{
    if (f->groups == 0) return;
    int inner = f->down[0].k;
    k->gemm_grouped(lane, f->groups, f->begin, f->rows, &f->in, f->gate_up, f->scratch, 2 * inner);
    for (int g = 0; g < f->groups;) { /* neighbours without a gap in one call */
        int row0 = f->begin[g], end = row0 + f->rows[g];
        while (++g < f->groups && (f->rows[g] == 0 || f->begin[g] == end)) end += f->rows[g];
        if (end > row0) activate(lane, k, f, inner, row0, end - row0);
    }
    struct amat act = converted(f, inner, 0);
    k->gemm_grouped(lane, f->groups, f->begin, f->rows, &act, f->down, f->out, f->ldo);
}
