/* start.h - the start of a job in numbered phases; private to engine/.
 *
 * struct engine is the whole state of a running job on this rank. Phases fill it in order; each
 * is collective and ends with agree(), so either all ranks go on or all leave with one message.
 */
#ifndef ENGINE_START_H
#define ENGINE_START_H

#include "account/account.h"
#include "checkpoint/checkpoint.h"
#include "engine/lock.h"
#include "engine/memory.h"
#include "engine/node.h"
#include "engine/rank.h"
#include "engine/router.h"
#include "engine/run.h"

struct engine {
    const struct engine_setup *setup;
    struct job job; /* resolved */
    int world_rank, world_size;
    struct node node;
    struct node_region listing; /* what one rank of the host found in the checkpoint */
    struct node_region weights; /* packed replicated weights */
    struct checkpoint *ck;
    const struct model_config *cfg;
    enum isa isa;
    struct kernels kernels;
    MPI_Comm unit_comm;
    struct rank rank;
    struct ep_params ep_params;
    void *expert_memory, *cache; /* private weights, KV pool */
    struct rank_memory planned;  /* what this rank was expected to need */
    int pages[2];                /* KV pages of a prefill (or mixed) and of a decode rank */
    double *expert_load;         /* [layers][experts] of an earlier run, or NULL */
    struct trace_event *trace_events;
    /* rank 0 */
    struct account_prices prices;
    struct token_file *tokens;
    struct journal *journal;
    struct lock lock;
    int attempt;      /* 0, or attempts before this one (all ranks) */
    double resumed_s; /* job time at which this attempt starts (all ranks) */
    char start_utc[24];
    char hosts[256], transports[32];
    char *yaml;
};

enum status start_job(struct engine *e);     /* resolve the job, open model and inputs */
enum status start_units(struct engine *e);   /* ranks, units, transport, kernels */
enum status start_sizes(struct engine *e);   /* pages, buffers, memory check */
enum status start_weights(struct engine *e); /* load and pack */
enum status start_model(struct engine *e);   /* buffers, all-to-all, schedules, KV pool */
enum status start_files(struct engine *e);   /* rank 0: journal, router (files.c) */

/* finish.c */
enum status finish_job(struct engine *e); /* figures, results file, table */
/* After a failure, rank 0: what has finished is kept in journal and results file. */
enum status finish_partial(struct engine *e);
enum status finish_snapshot(void *engine); /* a partial results file as of now */
void finish_free(struct engine *e);

#endif
