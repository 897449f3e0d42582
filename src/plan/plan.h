/* plan.h - a job looked at before it starts, on one core and without ranks: which rank is what,
 * what a rank needs by component and whether the hosts hold it, how many requests the KV pages
 * take, and how long it takes at what cost.
 *
 * Sizes and memory are engine/memory.h's: the very code that checks a job when it starts. Times
 * come from cluster/ and a hardware file (plan_time.h).
 *
 * Life: plan_make -> plan_check, plan_print, ... -> plan_free. The plan owns the open checkpoint,
 * the list of requests and the expert load. Errors are those that `run` would end with: ERR_INPUT
 * for the files, ERR_RESOURCE for what does not fit, with the numbers.
 */
#ifndef PLAN_PLAN_H
#define PLAN_PLAN_H

#include "account/account.h"
#include "checkpoint/checkpoint.h"
#include "config/job.h"
#include "engine/memory.h"
#include "plan/plan_tokens.h"

#include <stdio.h>

struct plan_setup {
    const struct job *job; /* read, not resolved */
    int ranks;             /* that mpirun would start; 0: what the units ask for, else 1 */
    int ranks_per_host;    /* consecutive ranks; 0: all on one host */
    int cores_per_host;    /* 0: those of this process */
    double host_bytes;     /* free memory of a host; 0: of this one; below 0: no limit */
};

/* The ranks of one role: all alike. */
struct plan_role {
    enum rank_role role;
    const struct job_role *job; /* in the plan's job */
    int slots;                  /* experts of a rank and layer */
    int nodes;                  /* most that the all-to-all of a unit spans */
    struct rank_memory memory;  /* of a rank; shared: of its host */
    struct ep_memory ep;
    struct model_memory activations;
    int pages;           /* KV pages of a rank */
    double useful_pages; /* more would not help */
};

struct plan {
    struct job job; /* resolved */
    struct checkpoint *ck;
    const struct model_config *model; /* the checkpoint's */
    const char *isa;
    bool experts_fp8;
    int ranks, hosts, ranks_per_host, cores_per_host;
    struct plan_role role[2]; /* prefill and decode, or mixed */
    int roles;
    double part_bytes[PART_COUNT]; /* of the weights that a host shares, packed */
    double absorbed_bytes;         /* of the attention among them */
    struct rank_memory host;       /* of the fullest host's ranks together */
    int fullest;                   /* which host that is */
    double host_free;              /* 0: no limit */
    bool pages_cut;                /* auto, but fewer than useful */
    struct plan_tokens tokens;
    struct account_prices prices;
    double *expert_load; /* [layers][experts] of experts.load, or NULL */
};

enum status plan_make(const struct plan_setup *setup, struct plan *out);
/* ERR_RESOURCE when a host does not hold its ranks. */
enum status plan_check(const struct plan *p);
void plan_free(struct plan *p);

/* Most requests of this token file that the role's ranks hold at once, as far as KV pages reach;
 * each with its mean prompt (prefill) or its mean prompt and answer. */
double plan_requests_held(const struct plan *p, const struct plan_role *r);

/* plan_print.c: the table of all this. */
void plan_print(const struct plan *p, FILE *out);

#endif
