/* attention.c - picks the path of an instruction set and fills the table. */
#include "attention/attention.h"

#include "attention/attend.h"

#include <stddef.h>

enum status attention_check_dims(int dim_nope, int dim_rope, int dim_v, int dim_latent)
{
    int dims[4] = {dim_nope, dim_rope, dim_v, dim_latent};
    const char *names[4] = {"qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank"};
    for (int i = 0; i < 4; i++)
        if (dims[i] <= 0 || dims[i] % 2)
            return error_set(ERR_INPUT, "%s is %d: attention needs a positive even number",
                             names[i], dims[i]);
    int widest = (dim_nope > dim_latent ? dim_nope : dim_latent) + dim_rope;
    if (widest > ATTENTION_MAX_DIM_K)
        return error_set(ERR_INPUT,
                         "keys have %d channels (qk_nope_head_dim %d or kv_lora_rank %d, plus "
                         "qk_rope_head_dim %d): attention takes at most %d",
                         widest, dim_nope, dim_latent, dim_rope, ATTENTION_MAX_DIM_K);
    if (dim_v > ATTENTION_MAX_DIM_V || dim_latent > ATTENTION_MAX_DIM_V)
        return error_set(ERR_INPUT,
                         "v_head_dim is %d and kv_lora_rank %d: attention takes at most %d", dim_v,
                         dim_latent, ATTENTION_MAX_DIM_V);
    return OK;
}

const struct attend_micro *attend_micro_get(enum isa isa, enum dtype kv_type)
{
    bool bf16 = kv_type == DT_BF16;
    if (isa == ISA_PORTABLE) return &attend_micro_portable[bf16];
    if (isa == ISA_AVX2) return &attend_micro_avx2[bf16];
    if (isa == ISA_AVX512 || !bf16) return &attend_micro_avx512[bf16];
    return &attend_micro_avx512bf16[0];
}

/* The table's functions carry no context, so each path has its pair of wrappers. */
#define ATTENTION_PATH(path, isa)                                                      \
    static void prefill_##path(struct lane *lane, const struct mla_prefill_args *args) \
    {                                                                                  \
        attend_prefill(lane, args, attend_micro_get(isa, args->kv_type));              \
    }                                                                                  \
    static void decode_##path(struct lane *lane, const struct mla_decode_args *args)   \
    {                                                                                  \
        attend_decode(lane, args, attend_micro_get(isa, args->kv_type));               \
    }
ATTENTION_PATH(portable, ISA_PORTABLE)
ATTENTION_PATH(avx2, ISA_AVX2)
ATTENTION_PATH(avx512, ISA_AVX512)
ATTENTION_PATH(avx512bf16, ISA_AVX512_BF16)

struct path {
    void (*rows)(struct kernels *k);
    void (*prefill)(struct lane *, const struct mla_prefill_args *);
    void (*decode)(struct lane *, const struct mla_decode_args *);
};

enum status attention_kernels_fill(struct kernels *k, enum isa isa)
{
    static const struct path paths[ISA_COUNT] = {
        [ISA_PORTABLE] = {attention_rows_portable, prefill_portable, decode_portable},
        [ISA_AVX2] = {attention_rows_avx2, prefill_avx2, decode_avx2},
        [ISA_AVX512] = {attention_rows_avx512, prefill_avx512, decode_avx512},
        [ISA_AVX512_BF16] = {attention_rows_avx512, prefill_avx512bf16, decode_avx512bf16},
        [ISA_AMX] = {attention_rows_avx512, prefill_avx512bf16, decode_avx512bf16},
    };
    const char *why = 0;
    if (!isa_supported(isa, &why))
        return error_set(ERR_RESOURCE, "isa %s: this host lacks %s; choose isa: auto",
                         isa_name(isa), why);
    paths[isa].rows(k);
    k->mla_prefill = paths[isa].prefill;
    k->mla_decode = paths[isa].decode;
    return OK;
}
