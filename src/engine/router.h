/* router.h - the head of the job, on world rank 0: reads the token file, sends every request to a
 * prefill rank and a decode rank, takes the answers, writes the journal and the responses.
 *
 * A request is sent out only when a prefill rank has room in its queue and a decode rank in its
 * pages and batch (decode_balance); so back-pressure reaches the token file and memory stays
 * bounded however long it is.
 */
#ifndef ENGINE_ROUTER_H
#define ENGINE_ROUTER_H

#include "config/job.h"
#include "core/status.h"
#include "engine/ctl.h"
#include "engine/journal.h"
#include "engine/lock.h"
#include "requests/token_file.h"

struct router;

/* Prompt tokens of this attempt that one cache as large as all prefill ranks' pages would have
 * found, for the requests in file order and in the order in which they went out: a model, beside
 * the measured cached_tokens. */
struct router_order_report {
    bool by_prefix;
    int64_t hit_in_file, hit_as_sent; /* tokens; 0 in file order */
};
struct router_setup {
    const struct job *job;
    struct ctl *ctl;
    struct token_file *tokens;            /* borrowed */
    struct journal *journal;              /* borrowed */
    const char *model_name;               /* for responses */
    double t0;                            /* the job's start */
    double resumed_s;                     /* job time at which this attempt started */
    struct lock *lock;                    /* borrowed */
    uint32_t prefill_pages, decode_pages; /* KV pages of a rank of each role */
    int ranks, layers, experts;
    const char *trace_path; /* "": no trace */
    /* Builds the results file as it stands; called now and then. May be NULL. */
    enum status (*snapshot)(void *arg);
    void *snapshot_arg;
};

enum status router_create(const struct router_setup *setup, struct router **out);
void router_free(struct router *r);

void router_message(struct router *r, int from, enum ctl_kind kind, const void *data, size_t bytes);
/* Sends out what fits, keeps journal and progress going. Cheap when nothing has changed. */
enum status router_serve(struct router *r);

/* Hands the responses so far to the system, whole lines. ERR_RESOURCE when they cannot be written
 * (disk full). */
enum status router_flush_responses(struct router *r);
/* Writes the rest of the trace file; after all figures have arrived. */
enum status router_close_trace(struct router *r);
/* Ranks whose closing figures have arrived. */
int router_stats_received(const struct router *r);
struct router_order_report router_order_report(const struct router *r);
/* Sets the bits of the ranks whose closing figures have not arrived. */
void router_awaited(const struct router *r, uint8_t *bits);
/* Closing figures of all ranks, [ranks]; zero where they have not arrived. */
const struct rank_row *router_rank_rows(const struct router *r);
/* Rows routed by the gates, summed over ranks: [layers][experts]. */
const int64_t *router_expert_load(const struct router *r);
/* The error that a rank reported, as status; its text is in error_text. */
enum status router_failure(const struct router *r);
/* Longest custom_id so far, bytes. */
int router_id_bytes(const struct router *r);
/* Tokens computed in all steps so far. */
int64_t router_prefill_tokens(const struct router *r);
int64_t router_decode_tokens(const struct router *r);

#endif
