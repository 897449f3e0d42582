/* bench_onednn.h - oneDNN's BF16 matrix product as a baseline, where libdnnl.so.2 is installed.
 * It is loaded at run time; without its headers at compile time the baseline is absent.
 */
#ifndef CMD_BENCH_ONEDNN_H
#define CMD_BENCH_ONEDNN_H

#include <stdbool.h>

/* Loads the library; false, with *why, when it cannot be used. */
bool onednn_open(const char **why);

/* "2.6.3" after onednn_open. */
const char *onednn_version(void);

/* Seconds of c[m, n] = a[m, k] * w[k, n] with weights in the library's preferred order, BF16 in,
 * FP32 out, on `threads` threads; 0 if the library refuses the shape. */
double onednn_bf16_seconds(int threads, int m, int n, int k, double budget_s);

#endif
