/* stage_time_gemm.h - the time of a matrix product from measured points.
 *
 * Base time = launch + weights and activations over the memory bandwidth + operations over the
 * peak: the sum, so that the three regimes blend. A measured point says by what factor the real
 * kernel differs; the factor is interpolated in log(rows), held constant outside the measured
 * rows, and taken from the nearest shapes when (n, k) itself was not measured. Without points the
 * shares of the hardware file stand in, and memory and compute are blended as sqrt(a^2 + b^2),
 * since no factor takes the sum's excess back.
 *
 * A curve is plain data of a fixed size; build once, evaluate often. Times in microseconds.
 */
#ifndef CLUSTER_STAGE_TIME_GEMM_H
#define CLUSTER_STAGE_TIME_GEMM_H

#include "cluster/hardware.h"

#include <stdbool.h>

enum { GEMM_CURVE_POINTS = 24 };

struct gemm_curve {
    double n, k;
    double weight_bytes, in_bytes, out_bytes; /* of an element */
    double peak_tflops, hbm_gb_s, launch_us;
    bool measured;
    int points;
    double log_m[GEMM_CURVE_POINTS], factor[GEMM_CURVE_POINTS]; /* ascending rows */
};

enum gemm_kind { GEMM_FP8, GEMM_BF16, GEMM_GROUPED_FP8, GEMM_MASKED_FP8, GEMM_GROUPED_BF16 };

void gemm_curve_build(const struct hardware *hw, enum gemm_kind kind, double n, double k,
                      struct gemm_curve *out);

struct gemm_time {
    double us;
    double launch_us, memory_us, compute_us; /* parts of the base time, for naming the bound */
};

/* m rows in each of `groups` products (1: dense), on a share (0, 1] of the multiprocessors. */
struct gemm_time gemm_curve_at(const struct gemm_curve *c, double m, double groups,
                               double sm_share);

#endif
