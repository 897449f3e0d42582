/* memory.h - how many bytes a rank needs, by component, how many KV pages it gets, and whether a
 * host holds its ranks. The start of a job checks itself with it and `moebatch plan` and `slurm`
 * print it: one computation. Pure functions of the resolved job and the model; no MPI.
 *
 * What is counted is what gets allocated. The KV pool and the buffers take memory of the host only
 * as they are used, so a run's resident memory stays below this sum.
 */
#ifndef ENGINE_MEMORY_H
#define ENGINE_MEMORY_H

#include "config/job.h"
#include "engine/rank_map.h"
#include "ep/ep.h"
#include "model/model.h"

/* Bytes of a rank, or of the ranks of a host together. Doubles only: summed by MPI as an array. */
struct rank_memory {
    double shared;      /* replicated weights: once for all ranks of a host */
    double experts;     /* weights of its own experts */
    double kv;          /* KV pages */
    double index;       /* which pages are free, which hold which prefix */
    double activations; /* buffers of a step */
    double growth;      /* the longest prompt's context, rows of the routed experts */
    double ep;          /* all-to-all */
    double requests;    /* tokens and page tables of requests under way */
    double program;     /* code and libraries, MPI, tables */
};
enum { MEMORY_PARTS = sizeof(struct rank_memory) / sizeof(double) };

/* KV pages that a rank can put to use, more than that only costs memory; bytes of one page. */
double memory_useful_pages(const struct job *job, const struct model_config *cfg,
                           enum rank_role role);
size_t memory_page_bytes(const struct job *job, const struct model_config *cfg);

/* The all-to-all of a role's unit, whose ranks are on `nodes` nodes. */
struct ep_params memory_ep_params(const struct job *job, const struct model_config *cfg,
                                  enum rank_role role, bool experts_fp8, int nodes);

/* Most rows of a micro-batch. */
int memory_max_rows(const struct job *job, enum rank_role role);
struct model_limits memory_model_limits(const struct job *job, const struct model_config *cfg,
                                        enum rank_role role);

/* What a rank's memory follows from, besides job and model. */
struct memory_facts {
    enum rank_role role;
    int nodes;                     /* of its unit */
    int longest;                   /* tokens of the longest prompt, 0: not known */
    const struct weights *planned; /* weights_plan with the slots of a rank of this role */
};

/* All but the KV pages, which depend on what the rest leaves. */
enum status memory_of_rank(const struct job *job, const struct model_config *cfg,
                           const struct memory_facts *facts, struct rank_memory *out);

/* The same part by part, for those who print it. */
enum status memory_ep(const struct job *job, const struct model_config *cfg,
                      const struct memory_facts *facts, struct ep_memory *out);
struct model_memory memory_activations(const struct job *job, const struct model_config *cfg,
                                       const struct memory_facts *facts);

/* kv.pages_per_rank; auto: as many as are useful, within half of this rank's share of a host's free
 * bytes (0: no such limit). At least 1. */
int memory_choose_pages(const struct job *job, const struct model_config *cfg, enum rank_role role,
                        double share_bytes);
/* auto only: the share of the host's pages, 0 to 1, that `have` bytes hold beside the rest. */
double memory_pages_share(const struct job *job, const struct rank_memory *host, double have);
/* Adds the pages to a rank's sum. */
void memory_set_pages(const struct job *job, const struct model_config *cfg, enum rank_role role,
                      int pages, struct rank_memory *rank);

double memory_sum(const struct rank_memory *m);
/* Adds n such ranks to a host; what is shared counts once. */
void memory_add(struct rank_memory *host, const struct rank_memory *rank, int n);

/* ERR_RESOURCE with every figure when `have` bytes (0: unknown) do not hold the host's sum. pages:
 * of one of its ranks. */
enum status memory_check(const struct rank_memory *host, const char *name, int ranks, int pages,
                         double have);

#endif
