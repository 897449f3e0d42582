/* memory.h - how many bytes a rank needs, by component: the start of a job checks itself with it,
 * and commands that look ahead use the same figures. Pure functions of the resolved job and the
 * model.
 */
#ifndef ENGINE_MEMORY_H
#define ENGINE_MEMORY_H

#include "config/job.h"
#include "engine/rank.h"
#include "ep/ep.h"
#include "model/weights.h"

struct rank_memory {
    double shared;  /* replicated weights: once for all ranks of a host */
    double experts; /* weights of its own experts */
    double kv, buffers, ep;
};

const struct job_role *memory_role(const struct job *job, enum rank_role role);

/* KV pages that a rank can put to use, more than that only costs memory; bytes of one page. */
double memory_useful_pages(const struct job *job, const struct model_config *cfg,
                           enum rank_role role);
size_t memory_page_bytes(const struct job *job, const struct model_config *cfg);

/* The all-to-all of a role's unit, whose ranks are on `nodes` nodes. */
struct ep_params memory_ep_params(const struct job *job, const struct model_config *cfg,
                                  enum rank_role role, bool experts_fp8, int nodes);

/* planned: after weights_plan with the slots of a rank of this role. */
enum status memory_of_rank(const struct job *job, const struct model_config *cfg,
                           const struct weights *planned, enum rank_role role, int nodes,
                           double pages, struct rank_memory *out);

#endif
