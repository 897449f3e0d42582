/* rank_map.h - which rank of a job is what: units fill the ranks in order, all prefill (or mixed)
 * units, then the decode units. Pure functions of the resolved job; no MPI.
 */
#ifndef ENGINE_RANK_MAP_H
#define ENGINE_RANK_MAP_H

#include "config/job.h"

enum rank_role { RANK_PREFILL, RANK_DECODE, RANK_MIXED, RANK_ROLES };

struct rank_place {
    enum rank_role role;
    int unit, local; /* unit's number within its role; rank within the unit */
};

/* "prefill", "decode", "mixed"; a unit is called "prefill0". */
const char *rank_role_name(enum rank_role role);

/* That part of the job; its `present` says whether there are such units. */
const struct job_role *rank_map_role(const struct job *job, enum rank_role role);

struct rank_place rank_map_place(const struct job *job, int rank);
/* Its first rank in the job. */
int rank_map_first(const struct job *job, enum rank_role role, int unit);
/* Nodes that the unit's all-to-all sees: virtual ones, else hosts of ranks_per_host consecutive
 * ranks. */
int rank_map_nodes(const struct job *job, enum rank_role role, int unit, int ranks_per_host);
/* Ranks of a role on a host of ranks_per_host consecutive ranks. */
int rank_map_on_host(const struct job *job, enum rank_role role, int host, int ranks_per_host);

#endif
