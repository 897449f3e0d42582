/* checkpoint_validate.c - are the tensors what the configuration asks for? Looks at names, shapes
 * and types only; touches no weights.
 */
#include "checkpoint/checkpoint.h"

#include <stdio.h>
#include <string.h>

enum { BLOCK = 128 }; /* FP8 scales: one per 128 x 128 block */

static bool is_plain(enum tensor_dtype t)
{
    return t == TENSOR_BF16 || t == TENSOR_F16 || t == TENSOR_F32;
}

static bool is_scale(enum tensor_dtype t)
{
    return t == TENSOR_F32 || t == TENSOR_E8M0 || t == TENSOR_U8;
}

static enum status missing(const struct checkpoint *ck, const struct tensor_spec *s)
{
    char shape[96];
    const char *why = s->role == ROLE_GATE_BIAS ? ": a sigmoid gate chooses with it"
                      : s->role == ROLE_HEAD    ? " (tie_word_embeddings is false)"
                                                : "";
    return error_set(ERR_INPUT, "%s: tensor %s is missing, expected %s%s", checkpoint_dir(ck),
                     s->name, tensor_shape_text(s->rank, s->shape, shape), why);
}

static enum status check_shape(const struct tensor_view *t, int rank, const int64_t *shape)
{
    char found[96], want[96];
    bool same = t->rank == rank;
    for (int i = 0; i < rank && same; i++) same = t->shape[i] == shape[i];
    if (same) return OK;
    return error_set(ERR_INPUT, "%s: tensor %s: shape is %s, expected %s", t->file, t->name,
                     tensor_shape_text(t->rank, t->shape, found),
                     tensor_shape_text(rank, shape, want));
}

static enum status check_scale(const struct tensor_view *t, const struct tensor_view *scale,
                               const char *scale_name)
{
    if (!scale)
        return error_set(ERR_INPUT,
                         "%s: tensor %s: dtype is F8_E4M3 but %s is missing, expected its block "
                         "scales",
                         t->file, t->name, scale_name);
    if (!is_scale(scale->dtype))
        return error_set(ERR_INPUT, "%s: tensor %s: dtype is %s, expected F32, F8_E8M0 or U8",
                         scale->file, scale->name, tensor_dtype_name(scale->dtype));
    int64_t blocks[2] = {(t->shape[0] + BLOCK - 1) / BLOCK, (t->shape[1] + BLOCK - 1) / BLOCK};
    return check_shape(scale, 2, blocks);
}

static enum status check_tensor(void *ctx, const struct tensor_spec *s)
{
    const struct checkpoint *ck = ctx;
    char scale_name[TENSOR_NAME_MAX];
    const struct tensor_view *t = checkpoint_find(ck, s->name);
    if (!t) return missing(ck, s);
    bool fp8 = s->fp8_allowed && t->dtype == TENSOR_E4M3;
    if (!fp8 && !is_plain(t->dtype))
        return error_set(ERR_INPUT, "%s: tensor %s: dtype is %s, expected BF16, F16%s", t->file,
                         t->name, tensor_dtype_name(t->dtype),
                         s->fp8_allowed ? ", F32 or F8_E4M3 with block scales" : " or F32");
    TRY(check_shape(t, s->rank, s->shape));
    if (!s->fp8_allowed) return OK;
    tensor_scale_name(s->name, scale_name);
    const struct tensor_view *scale = checkpoint_find(ck, scale_name);
    if (fp8) return check_scale(t, scale, scale_name);
    if (scale)
        return error_set(ERR_INPUT, "%s: tensor %s: dtype is %s, expected F8_E4M3 (%s exists)",
                         t->file, t->name, tensor_dtype_name(t->dtype), scale_name);
    return OK;
}

enum status checkpoint_validate(const struct checkpoint *ck)
{
    return tensor_specs_visit(checkpoint_config(ck), check_tensor, (void *)(uintptr_t)ck);
}
