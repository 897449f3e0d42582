/* results.h - the results file NAME.h5: its rows, its writer, and the readers of single parts.
 *
 * The writer is serial HDF5 and belongs to rank 0. It streams: requests go in one by one in the
 * order of the token file, other rows in batches, so memory does not grow with the job. It writes
 * NAME.h5.tmp and renames at commit, so that NAME.h5 is readable at any moment.
 *
 * Every table is a chunked, compressed one-dimensional dataset of a compound type; its attribute
 * `units` is a JSON object {column: unit} (for a plain array: the unit itself). Strings are
 * fixed-length, NUL-padded UTF-8. Times t_* are seconds since the start of the job's first
 * attempt. The columns custom_id, status, error, finish_reason, prompt_tokens, output_tokens,
 * output_offset and everything in /outputs depend on the model and the token file alone; never put
 * a rank, a time or a layout into `error`.
 *
 * This module knows nothing of the journal, of MPI or of the engine.
 */
#ifndef ACCOUNT_RESULTS_H
#define ACCOUNT_RESULTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "account/account.h"
#include "core/status.h"

enum {
    RESULTS_SCHEMA_VERSION = 1,
    RESULTS_ID_MAX = 256,    /* bytes of a custom_id kept */
    RESULTS_ERROR_MAX = 512, /* bytes of a request's error kept */
    RESULTS_UNIT_MAX = 16,
    RESULTS_HOST_MAX = 64
};

enum request_status { REQUEST_PENDING, REQUEST_OK, REQUEST_FAILED };
enum finish_reason { FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_ERROR };

const char *request_status_name(enum request_status status); /* "pending", "ok", "failed" */
const char *finish_reason_name(enum finish_reason reason);   /* "", "stop", "length", "error" */

/* Bytes of UTF-8 text that fit into `room` bytes without cutting a character; NULL = 0. */
size_t results_clip(const char *text, size_t room);

/* One request of the token file. Pointers are borrowed for the call. */
struct request_row {
    int64_t index;         /* its place in the token file, from 0 */
    const char *custom_id; /* NULL = "" */
    const char *error;     /* NULL = none */
    enum request_status status;
    enum finish_reason finish;
    int32_t prompt_tokens;
    int32_t cached_tokens;      /* of these found in the prefix cache, in memory or on disk */
    int32_t cached_tokens_disk; /* of these read from the disk tier for this request */
    int32_t output_tokens;
    int32_t prefill_rank, decode_rank;                          /* world ranks, -1 = none */
    double t_arrival, t_prefill_start, t_first_token, t_finish; /* s; NaN = did not happen */
    const int32_t *tokens;                                      /* [output_tokens] */
    const float *logprobs;        /* [output_tokens], NULL = not asked for */
    const float *prompt_logprobs; /* [prompt_tokens], first NaN; NULL = not asked for */
};

enum step_kind { STEP_PREFILL, STEP_DECODE };

/* One step of one unit. Stage times are the mean over the unit's ranks, compute lane, except
 * dispatch and combine: the time from begin to finish on the communication lane. */
struct step_row {
    char unit[RESULTS_UNIT_MAX]; /* "prefill0", "decode1", "mixed0" */
    int32_t attempt;
    int32_t microbatches;
    int64_t step;             /* counted within unit and kind */
    double t_start, duration; /* s */
    int32_t requests;         /* with at least one token in the step */
    int32_t tokens;           /* computed in the step, all ranks */
    int32_t rounds;           /* all-to-all rounds, 1 unless receive buffers overflowed */
    int32_t reserved;
    float attn_ms, dispatch_ms, mlp_ms, shared_ms, combine_ms, head_ms;
    float exposed_comm_ms; /* waited for communication with nothing to compute, mean of ranks */
    float idle_ms;         /* rest of the duration, mean of ranks */
    /* loads over the unit's ranks; max / mean is the load deviation */
    float attn_mean, attn_max;     /* attention work: (query, key) pairs */
    float kv_mean, kv_max;         /* KV pages in use */
    float tokens_mean, tokens_max; /* tokens of a rank */
    float expert_mean, expert_max; /* rows through a rank's routed experts, all layers */
};

/* One rank of one attempt. */
struct rank_row {
    char host[RESULTS_HOST_MAX];
    char unit[RESULTS_UNIT_MAX];
    char role[RESULTS_UNIT_MAX]; /* "prefill", "decode", "mixed" */
    int32_t attempt, rank;       /* world rank */
    int32_t node, local;         /* node number; rank within its unit */
    double compute_s, exposed_comm_s, idle_s;
    int64_t prefill_tokens, decode_tokens; /* computed by this rank */
    int64_t prefill_requests, decode_requests;
    double attn_work;                /* (query, key) pairs */
    int64_t kv_pages, kv_pages_peak; /* pool size, most in use at once */
    int64_t moved_out;               /* times that a request gave up its pages for host memory */
    int64_t expert_rows;             /* rows through its routed experts */
    int64_t memory_bytes;            /* device memory held at the end: the next four */
    int64_t experts_bytes, kv_bytes, activation_bytes, alltoall_bytes;
    int64_t planned_bytes;  /* what the start of the job expected those four to be together */
    int64_t resident_bytes; /* private memory of the process that the host has given it */
    /* disk tier (kv.disk), pages: read and used; looked for but not there; read but not as they
     * were written (misses too); written; not kept (writer behind, disk full) */
    int64_t disk_hit_pages, disk_miss_pages, disk_bad_pages, disk_written_pages;
    int64_t disk_dropped_pages;
    int64_t disk_read_bytes, disk_written_bytes;
};

/* One start of the job. */
struct attempt_row {
    int32_t attempt; /* from 0 */
    int32_t ranks, nodes;
    int32_t reserved;
    char start_utc[24], end_utc[24];
    char outcome[16]; /* "complete", "interrupted", "killed" (no end was journalled), "running" */
    char isa[16], transport[32];
    char hosts[256];        /* "host1*8 host2*8", cut at the end */
    double t_start, wall_s; /* s; for a killed attempt up to its last journalled sign of life */
    double gpu_s;           /* ranks x wall_s */
    int64_t requests_finished;
    int64_t prefill_tokens, decode_tokens;           /* computed */
    int64_t prefill_tokens_lost, decode_tokens_lost; /* of these for requests it did not finish */
};

/* What a rank waited for another one of its unit. Every 17th all-to-all operation is looked at
 * (ep/probe.h); seconds are shares of the rank's exposed_comm_s. A row for each pair whose source came last at least once or whose messages
 * crossed a node border. */
struct link_row {
    char unit[RESULTS_UNIT_MAX];
    int32_t attempt, src, dst; /* ranks: sender and receiver */
    int32_t waits, last;       /* sampled waits of the receiver; of them the sender came last */
    float late_s;              /* waited until the sender sent, when it came last */
    float late_error_s;        /* standard error of late_s */
    float transfer_s;          /* then waited for its rows to arrive (other nodes only) */
    int32_t latencies;         /* sampled messages between nodes that were seen to arrive, */
    float latency_mean_ms, latency_max_ms; /* how long they took */
};

struct placement_row {
    char unit[RESULTS_UNIT_MAX];
    int32_t layer, slot, expert, rank; /* slot within the unit; rank within the unit */
};

struct expert_load_row {
    int32_t layer, expert;
    int64_t rows; /* (token, expert) pairs routed by the gate, whole job */
};

/* Prefill and decode apart. A rate is tokens / span; the span of a phase runs from its first
 * step's start to its last step's end. step_s is the time inside steps, mean over units. */
struct throughput_row {
    int64_t prefill_tokens, cached_tokens, decode_tokens;
    int32_t prefill_ranks, decode_ranks, prefill_nodes, decode_nodes;
    double prefill_span_s, decode_span_s, prefill_step_s, decode_step_s;
    double prefill_tokens_per_s, prefill_tokens_per_s_rank, prefill_tokens_per_s_node;
    double input_tokens_per_s_node; /* cached tokens included */
    double decode_tokens_per_s, decode_tokens_per_s_rank, decode_tokens_per_s_node;
    double ttft_mean_s, ttft_p50_s, ttft_p90_s, ttft_p99_s;
    double tpot_mean_s, tpot_p50_s, tpot_p90_s, tpot_p99_s;
};

/* One root attribute. The engine writes: program_version, git_revision, argv, job_yaml, hosts,
 * isa, transport, libraries, start_utc, end_utc. schema_version and status are the builder's. */
struct results_attr {
    const char *key, *value;
};

/* What must be known before the first row. */
struct results_shape {
    int64_t requests;    /* rows in /requests */
    int32_t id_bytes;    /* longest custom_id, at most RESULTS_ID_MAX */
    int32_t error_bytes; /* longest error */
    bool logprobs;       /* some request has them: write /outputs/logprobs */
    bool prompt_logprobs;
};

struct results_file;

/* OK when `path` may be written: it does not exist (or force) and its folder is writable. */
enum status results_check_path(const char *path, bool force);

/* Opens PATH.tmp. Release with results_commit() or results_abort(). */
enum status results_create(const char *path, const struct results_shape *shape,
                           struct results_file **out);
/* Requests in token-file order, each index once, shape.requests in all. */
enum status results_put_request(struct results_file *f, const struct request_row *row);
enum status results_put_steps(struct results_file *f, enum step_kind kind,
                              const struct step_row *rows, size_t n);
enum status results_put_ranks(struct results_file *f, const struct rank_row *rows, size_t n);
enum status results_put_attempts(struct results_file *f, const struct attempt_row *rows, size_t n);
enum status results_put_expert_load(struct results_file *f, const struct expert_load_row *rows,
                                    size_t n);
enum status results_put_links(struct results_file *f, const struct link_row *rows, size_t n);
enum status results_put_placement(struct results_file *f, const struct placement_row *rows,
                                  size_t n);
enum status results_put_throughput(struct results_file *f, const struct throughput_row *row);
enum status results_put_account(struct results_file *f, const struct account *account,
                                const struct account_prices *prices);
enum status results_put_attr(struct results_file *f, const char *key, const char *value);
/* Flushes, closes and renames PATH.tmp to PATH. Frees f also on failure. */
enum status results_commit(struct results_file *f);
/* Closes and removes PATH.tmp. NULL is fine. */
void results_abort(struct results_file *f);

/* Reads /experts/load of an earlier results file into load[layers][experts] (zero where no row).
 * layers counts all layers of the model, dense ones included (their rows stay zero). */
enum status results_read_expert_load(const char *path, int layers, int experts, double *load);

/* "1.10.8" of the library compiled against / loaded; buffers of 16 bytes. */
void results_hdf5_versions(char *compiled, char *loaded);

#endif
