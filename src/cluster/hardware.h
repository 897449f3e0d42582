/* hardware.h - what a GPU and its node can do: peaks, bandwidths, measured kernel times and the
 * constants taken from traces, read from inputs/hardware/NAME.yaml and the CSV table it names.
 *
 * The YAML carries single numbers, each with its source in a comment; the CSV carries measured
 * points, one a row, with the source in its last column. All memory belongs to struct hardware;
 * hardware_free. Read-only once read. Units are in the names; points are in microseconds.
 * Errors: ERR_INPUT with file, line, key, found and expected.
 */
#ifndef CLUSTER_HARDWARE_H
#define CLUSTER_HARDWARE_H

#include "core/status.h"

#include <stdbool.h>

/* A measured point's kind, and what its columns a, b, c, d mean. The value column is `us`,
 * `tflops` (2 n k m of all groups, converted) or, for all-to-all in normal mode, `gb_s`. */
enum hw_op {
    HW_GEMM_FP8,        /* n, k, m, -: block-scaled FP8, dense */
    HW_GEMM_BF16,       /* n, k, m, - */
    HW_GROUPED,         /* n, k, m of each group, groups: contiguous layout (prefill) */
    HW_MASKED,          /* n, k, m of each group, groups: masked layout (decode) */
    HW_MLA_PREFILL,     /* heads, tokens of a prompt, prompts, cached tokens of each */
    HW_MLA_DECODE,      /* heads, kv tokens, requests, query tokens of a request */
    HW_LL_DISPATCH,     /* ep, tokens a rank, hidden, top-k */
    HW_LL_COMBINE,      /* ep, tokens a rank, hidden, top-k */
    HW_NORMAL_DISPATCH, /* ep, tokens a rank, hidden, groups kept (topk_group): logical GB/s */
    HW_NORMAL_COMBINE,  /* the same */
    HW_OP_COUNT
};

struct hw_point {
    enum hw_op op;
    double a, b, c, d;
    double value; /* us, or GB/s for HW_NORMAL_* */
};

enum { HW_NAME_BYTES = 64, HW_TEXT_BYTES = 512 };

struct hardware {
    char name[HW_NAME_BYTES];
    char source[HW_TEXT_BYTES]; /* where the figures come from, in a line */
    char tables[HW_TEXT_BYTES]; /* CSV beside the YAML; "" none */
    int gpus_per_node;          /* GPUs behind one network box: where `nodes` are counted */
    int nvlink_domain;          /* that reach each other without the network */
    int sms;
    double memory_bytes, reserve_bytes;
    double hbm_gb_s;
    double fp8_tflops, bf16_tflops; /* dense peaks */
    double nvlink_gb_s, rdma_gb_s;  /* usable, one direction, a GPU */
    struct {                        /* shares of the peaks where no measured point speaks */
        double gemm_fp8, gemm_bf16, grouped, hbm, core_prefill, core_decode;
        double launch_us; /* shortest kernel */
    } share;
    bool expert_rows_whole; /* HW_GROUPED and HW_MASKED points time the whole expert layer:
                                  * activation, quantisation and permutation with the products */
    struct {
        double decode_gb_s;    /* KV read by MLA decode; 0: share.hbm of the peak */
        double decode_tflops;  /* 0: share.core_decode of the peak */
        double prefill_tflops; /* 0: share.core_prefill of the peak */
    } attention;
    struct {
        int comm_sms_prefill; /* SMs that normal-mode all-to-all takes from computation */
        double ll_fixed_us;   /* low latency without any row, where no point speaks */
    } comm;
    struct { /* level `calibrated` only; 1 or 0 where a trace says nothing */
        double gemm_prefill, grouped_prefill, shared_prefill, core_prefill; /* factors */
        double elementwise_attn_us_per_token, elementwise_mlp_us_per_row;
        double gemm_decode, masked_decode, core_decode;
        double elementwise_attn_decode_us, elementwise_gate_decode_us, silu_decode_us;
        double ll_dispatch, ll_combine, normal_dispatch, normal_combine; /* contention */
        double gap_decode_us, gap_prefill_us;   /* between a micro-batch's ops of a layer */
        double step_decode_ms, step_prefill_ms; /* host, sampling, sync */
    } calibrated;
    struct hw_point *points; /* [n_points] sorted by op, a, b, d, c; owned */
    int n_points;
};

/* Reads PATH. hw is set only on OK. */
enum status hardware_read(const char *path, struct hardware *hw);

/* The same by short name ("h800": DIR/h800.yaml) or by path when it contains '/' or ".yaml"; an
 * unknown name is ERR_INPUT with the nearest names of DIR. */
enum status hardware_find(const char *dir, const char *name, struct hardware *hw);
void hardware_free(struct hardware *hw);

/* First point of an op and how many. */
const struct hw_point *hardware_points(const struct hardware *hw, enum hw_op op, int *n);
const char *hw_op_name(enum hw_op op);

#endif
