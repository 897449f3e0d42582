/* entries.h - private to gemm/: the functions of struct kernels for one micro-kernel. They carry
 * no context, so each instruction set's file makes its own with GEMM_ENTRIES(name).
 */
#ifndef GEMM_ENTRIES_H
#define GEMM_ENTRIES_H

#include "gemm/ukernel.h"

/* Defines gemm_entries_<name>(k), which fills k's gemm part with calls that use ukernel_<name>. */
#define GEMM_ENTRIES(name)                                                                         \
    static size_t packed_bytes(enum dtype type, const int *source_n, int sources, int k)           \
    {                                                                                              \
        return gemm_layout(&ukernel_##name, type, source_n, sources, k).bytes;                     \
    }                                                                                              \
    static enum status pack(enum dtype type, const struct weight_src *src, int sources, void *dst, \
                            struct wmat *out)                                                      \
    {                                                                                              \
        return gemm_pack_stack(&ukernel_##name, type, src, sources, dst, out);                     \
    }                                                                                              \
    static void dense(struct lane *lane, int m, const struct amat *a, const struct wmat *w,        \
                      float *c, int ldc)                                                           \
    {                                                                                              \
        struct gemm_call call = {                                                                  \
            .uk = &ukernel_##name, .groups = 1, .m = m, .a = a, .w = w, .c = c, .ldc = ldc};       \
        gemm_drive(lane, &call);                                                                   \
    }                                                                                              \
    static void grouped(struct lane *lane, int groups, const int32_t *begin, const int32_t *rows,  \
                        const struct amat *a, const struct wmat *w, float *c, int ldc)             \
    {                                                                                              \
        struct gemm_call call = {.uk = &ukernel_##name,                                            \
                                 .groups = groups,                                                 \
                                 .begin = begin,                                                   \
                                 .rows = rows,                                                     \
                                 .a = a,                                                           \
                                 .w = w,                                                           \
                                 .c = c,                                                           \
                                 .ldc = ldc};                                                      \
        gemm_drive(lane, &call);                                                                   \
    }                                                                                              \
    static void batched(struct lane *lane, int batch, int m, const struct amat *a,                 \
                        int64_t a_stride, const struct wmat *w, float *c, int ldc,                 \
                        int64_t c_stride)                                                          \
    {                                                                                              \
        struct gemm_call call = {.uk = &ukernel_##name,                                            \
                                 .groups = batch,                                                  \
                                 .m = m,                                                           \
                                 .a = a,                                                           \
                                 .a_stride = a_stride,                                             \
                                 .w = w,                                                           \
                                 .c = c,                                                           \
                                 .ldc = ldc,                                                       \
                                 .c_stride = c_stride};                                            \
        gemm_drive(lane, &call);                                                                   \
    }                                                                                              \
    static void convert(struct lane *lane, int m, const float *x, int ldx, struct amat *out,       \
                        bool ue8m0)                                                                \
    {                                                                                              \
        act_drive(&ukernel_##name, lane, m, x, ldx, out, ue8m0);                                   \
    }                                                                                              \
    void gemm_entries_##name(struct kernels *k)                                                    \
    {                                                                                              \
        k->gemm_packed_bytes = packed_bytes;                                                       \
        k->gemm_pack = pack;                                                                       \
        k->gemm = dense;                                                                           \
        k->gemm_grouped = grouped;                                                                 \
        k->gemm_batched = batched;                                                                 \
        k->act_convert = convert;                                                                  \
    }

void gemm_entries_portable(struct kernels *k);
void gemm_entries_avx2(struct kernels *k);
void gemm_entries_avx512(struct kernels *k);
void gemm_entries_avx512bf16(struct kernels *k);
void gemm_entries_amx(struct kernels *k);

#endif
