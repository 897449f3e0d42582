/* rank.h - one rank at work: its model, its KV pool, its queues, and the two kinds of steps.
 *
 * engine/run.c builds a struct rank and calls rank_loop, which alternates tick_next and steps
 * until the leader says stop. Messages change only the queues (rank_message), so they may arrive
 * at any time, also in the middle of a kernel.
 */
#ifndef ENGINE_RANK_H
#define ENGINE_RANK_H

#include "balance/eplb.h"
#include "config/job.h"
#include "engine/ctl.h"
#include "engine/disk.h"
#include "engine/inquiry.h"
#include "engine/rank_map.h"
#include "engine/sequence.h"
#include "engine/tick.h"
#include "ep/ep.h"
#include "kvcache/prefix_index.h"
#include "model/forward.h"
#include "model/sampling.h"

struct router;

struct rank_stats {
    double compute_s, exposed_s, step_s;
    int64_t prefill_tokens, decode_tokens, prefill_requests, decode_requests;
    int64_t kv_pages_peak, swaps;
};

struct rank {
    const struct job *job;
    const struct job_role *cfg; /* of its unit */
    enum rank_role role;
    int world_rank, world_size;
    int unit, local; /* unit number within its role; rank within the unit */
    char unit_name[16], host[64];
    int node;    /* physical or virtual node number in the job */
    int attempt; /* of the job: 0 unless it was resumed */
    double t0;   /* the job's start on this host's clock */

    struct ctl *ctl;
    struct transport *transport;
    struct waiter waiter;
    struct tick *tick;
    struct ep_group *ep;
    struct lane lane;
    const struct kernels *kernels;
    struct weights weights;
    struct model model;
    struct forward forward;
    struct replica_table *replica;
    struct schedule sched_prefill, sched_decode;
    struct placement placement;

    struct page_pool pool;
    struct prefix_index prefix;
    bool use_prefix;
    struct rank_disk *disk;  /* NULL: no disk tier, or a rank that does not prefill */
    size_t page_layer_bytes; /* one page of one layer */

    struct sequence_list queue;    /* to prefill, FIFO */
    struct sequence_list arriving; /* KV under way from a prefill rank */
    struct sequence_list waiting;  /* ready to decode */
    struct sequence_list active;   /* decoding */
    struct sequence_list swapped;  /* decoding, pages in host memory, oldest first */
    uint64_t admissions;

    /* the step that is running */
    struct sequence **row_seq[MODEL_MICROBATCHES]; /* decode: [rows]; prefill: [segments] */
    int32_t *pick_rows;                            /* [max_rows] scratch for logits */
    struct sampler *sampler;
    struct tick_report report;

    struct rank_stats stats;
    int64_t steps[2]; /* leader: prefill, decode steps reported so far */
    int64_t taken[2]; /* steps of the unit begun, this one included */
    double step_start;
    enum tick_kind last_kind;
    struct trace_buf trace;
    bool stopping;       /* leader: the router said that no more work comes */
    enum status failed;  /* set by message handlers */
    enum status aborted; /* rank 0 ends the job with this status */
    struct inquiry inquiry;
    struct router *router; /* world rank 0 only */
};

/* Seconds since the job's start. */
double rank_now(const struct rank *r);

/* Runs until the leader stops the unit. */
enum status rank_loop(struct rank *r);

/* ctl handler. */
void rank_message(void *rank, int from, enum ctl_kind kind, const void *data, size_t bytes);
/* waiter poll: control plane, and the router on rank 0. */
enum status rank_poll(void *rank);
/* lane poll: transport and control plane, never the router. */
void rank_kernel_poll(void *rank);

/* ---- prefill.c ---- */
bool rank_can_prefill(struct rank *r);
enum status rank_prefill_step(struct rank *r);

/* ---- decode.c ---- */
bool rank_can_decode(const struct rank *r);
enum status rank_decode_step(struct rank *r);
/* A sequence whose KV is complete joins the decoders of this rank. */
void rank_decode_add(struct rank *r, struct sequence *s);

/* ---- transfer.c ---- */
/* Sends pages [page0, page0 + n) of a layer to the sequence's decode rank. */
enum status rank_send_pages(struct rank *r, struct sequence *s, int layer, int page0, int n);
enum status rank_send_start(struct rank *r, const struct sequence *s);
enum status rank_send_first(struct rank *r, const struct sequence *s);
enum status rank_send_done(struct rank *r, const struct sequence *s);
void rank_receive_kv(struct rank *r, const void *data, size_t bytes);
void rank_receive_start(struct rank *r, const void *data, size_t bytes);
/* Moves all pages of s to host memory, or back (false when the pool has too few). */
enum status rank_swap_out(struct rank *r, struct sequence *s);
bool rank_swap_in(struct rank *r, struct sequence *s);
/* n pages, evicting cached prefixes if need be. */
bool rank_alloc_pages(struct rank *r, int n, int32_t *out);

#endif
