/* checkpoint_read.c - values out of an open checkpoint: views by role, conversion to FP32, hints
 * to the page cache, the fingerprint.
 */
#include "checkpoint/checkpoint.h"

#include "checkpoint/checkpoint_internal.h"
#include "checkpoint/json_field.h"
#include "core/numfmt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 128, SAMPLE_BYTES = 4096, CONFIG_BYTES_MAX = 16 << 20 };

enum status checkpoint_tensor(const struct checkpoint *ck, const char *name,
                              struct tensor_view *view)
{
    const struct tensor_view *t = checkpoint_find(ck, name);
    if (!t) return error_set(ERR_INPUT, "%s: tensor %s is missing", checkpoint_dir(ck), name);
    *view = *t;
    return OK;
}

enum status checkpoint_weight(const struct checkpoint *ck, enum tensor_role role, int layer,
                              int expert, struct checkpoint_weight *w)
{
    struct tensor_spec s;
    char scale[TENSOR_NAME_MAX];
    struct checkpoint_weight out = {.fp8 = false};
    if (role == ROLE_HEAD && ck->config.tie_embeddings) role = ROLE_EMBED;
    tensor_spec_make(&ck->config, role, layer, expert, &s);
    TRY(checkpoint_tensor(ck, s.name, &out.data));
    if (out.data.dtype == TENSOR_E4M3) {
        tensor_scale_name(s.name, scale);
        TRY(checkpoint_tensor(ck, scale, &out.scale));
        out.fp8 = true;
    }
    *w = out;
    return OK;
}

static void e4m3_table(float table[256])
{
    for (int i = 0; i < 256; i++) table[i] = e4m3_to_f32((uint8_t)i);
}

enum status tensor_read_f32(const struct tensor_view *v, size_t first, size_t count, float *out)
{
    const uint8_t *p = (const uint8_t *)v->data + first * tensor_dtype_bytes(v->dtype);
    uint16_t h;
    float table[256];
    switch (v->dtype) {
    case TENSOR_F32: memcpy(out, p, count * 4); return OK;
    case TENSOR_BF16:
        for (size_t i = 0; i < count; i++) {
            memcpy(&h, p + 2 * i, 2);
            out[i] = bf16_to_f32(h);
        }
        return OK;
    case TENSOR_F16:
        for (size_t i = 0; i < count; i++) {
            memcpy(&h, p + 2 * i, 2);
            out[i] = f16_to_f32(h);
        }
        return OK;
    case TENSOR_E4M3:
        e4m3_table(table);
        for (size_t i = 0; i < count; i++) out[i] = table[p[i]];
        return OK;
    case TENSOR_E8M0:
    case TENSOR_U8:
        for (size_t i = 0; i < count; i++) out[i] = e8m0_to_f32(p[i]);
        return OK;
    default:
        return error_set(ERR_BUG, "%s: tensor %s: no conversion from %s", v->file, v->name,
                         tensor_dtype_name(v->dtype));
    }
}

enum status checkpoint_weight_rows_f32(const struct checkpoint_weight *w, int64_t first,
                                       int64_t rows, float *out)
{
    int64_t k = w->data.shape[1];
    TRY(tensor_read_f32(&w->data, (size_t)(first * k), (size_t)(rows * k), out));
    if (!w->fp8) return OK;
    int64_t blocks = (k + BLOCK - 1) / BLOCK;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t b = 0; b < blocks; b++) {
            float s;
            size_t at = (size_t)((first + r) / BLOCK * blocks + b);
            TRY(tensor_read_f32(&w->scale, at, 1, &s));
            int64_t end = (b + 1) * BLOCK < k ? (b + 1) * BLOCK : k;
            for (int64_t i = b * BLOCK; i < end; i++) out[r * k + i] *= s;
        }
    }
    return OK;
}

static int by_name(const void *a, const void *b)
{
    const struct tensor_view *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

enum status checkpoint_fingerprint(const struct checkpoint *ck, struct hash128 *fp)
{
    char *path = NULL, *text = NULL;
    size_t bytes = 0;
    struct hash128 h = {0, 0};
    const struct tensor_view **sorted = malloc(((size_t)ck->tensors + 1) * sizeof *sorted);
    if (!sorted || asprintf(&path, "%s/config.json", ck->dir) < 0) {
        free(sorted);
        return error_set(ERR_RESOURCE, "%s: no memory for the fingerprint", ck->dir);
    }
    enum status st = json_read_file(path, CONFIG_BYTES_MAX, &text, &bytes);
    if (st != OK) goto done;
    h = hash128(text, bytes, h);
    for (int i = 0; i < ck->files; i++) h = hash128(ck->file[i].map, ck->file[i].header_bytes, h);
    for (int i = 0; i < ck->tensors; i++) sorted[i] = &ck->tensor[i];
    qsort(sorted, (size_t)ck->tensors, sizeof *sorted, by_name);
    for (int i = 0; i < ck->tensors; i++) {
        size_t n = sorted[i]->bytes < SAMPLE_BYTES ? sorted[i]->bytes : SAMPLE_BYTES;
        size_t at = (sorted[i]->bytes - n) / 2;
        h = hash128((const uint8_t *)sorted[i]->data + at, n, h);
    }
    *fp = h;
done:
    free(text);
    free(path);
    free(sorted);
    return st;
}
