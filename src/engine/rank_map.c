/* rank_map.c - see rank_map.h. */
#include "engine/rank_map.h"

const char *rank_role_name(enum rank_role role)
{
    static const char *const names[RANK_ROLES] = {"prefill", "decode", "mixed"};
    return names[role];
}

const struct job_role *rank_map_role(const struct job *job, enum rank_role role)
{
    return role == RANK_PREFILL ? &job->prefill : role == RANK_DECODE ? &job->decode : &job->mixed;
}

int rank_map_first(const struct job *job, enum rank_role role, int unit)
{
    int before = role == RANK_DECODE ? job->prefill.units * job->prefill.ep : 0;
    return before + unit * rank_map_role(job, role)->ep;
}

struct rank_place rank_map_place(const struct job *job, int rank)
{
    struct rank_place p = {job->mixed.present ? RANK_MIXED : RANK_PREFILL, 0, 0};
    if (p.role == RANK_PREFILL && rank >= rank_map_first(job, RANK_DECODE, 0)) p.role = RANK_DECODE;
    int at = rank - rank_map_first(job, p.role, 0), ep = rank_map_role(job, p.role)->ep;
    p.unit = at / ep;
    p.local = at % ep;
    return p;
}

int rank_map_nodes(const struct job *job, enum rank_role role, int unit, int ranks_per_host)
{
    int ep = rank_map_role(job, role)->ep, virtual = job->ranks_per_node;
    if (virtual > 0) return (ep + virtual - 1) / virtual;
    int first = rank_map_first(job, role, unit);
    return (first + ep - 1) / ranks_per_host - first / ranks_per_host + 1;
}

int rank_map_on_host(const struct job *job, enum rank_role role, int host, int ranks_per_host)
{
    const struct job_role *c = rank_map_role(job, role);
    if (!c->present) return 0;
    int64_t begin = rank_map_first(job, role, 0), end = begin + (int64_t)c->units * c->ep;
    int64_t lo = (int64_t)host * ranks_per_host, hi = lo + ranks_per_host;
    if (lo < begin) lo = begin;
    if (hi > end) hi = end;
    return hi > lo ? (int)(hi - lo) : 0;
}
