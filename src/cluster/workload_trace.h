/* workload_trace.h - requests as they really came: Mooncake JSONL (timestamp in ms, input_length,
 * output_length, hash_ids of 512-token blocks) or the Azure/Splitwise CSV (arrived_at in seconds,
 * num_prefill_tokens, num_decode_tokens). Sorted by time; checked line by line.
 */
#ifndef CLUSTER_WORKLOAD_TRACE_H
#define CLUSTER_WORKLOAD_TRACE_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

enum { TRACE_BLOCK_TOKENS = 512 };

struct trace_row {
    double t_s;
    uint32_t prompt, output;
    uint32_t first_block, n_blocks; /* into blocks[] */
};

struct workload_trace {
    struct trace_row *row; /* [n] ascending t_s; owned */
    size_t n;
    uint32_t *blocks; /* [n_blocks] prefix block ids, dense from 0; owned */
    size_t n_blocks;
    uint32_t max_block;                  /* largest id + 1; 0: the trace has no ids */
    double prompt_tokens, output_tokens; /* sums */
};

/* Kind by the name's end: .jsonl or .csv. ERR_INPUT with file:line. */
enum status workload_trace_read(const char *path, struct workload_trace *out);
void workload_trace_free(struct workload_trace *t);

#endif
