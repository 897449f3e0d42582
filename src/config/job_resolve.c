/* job_resolve.c - how the units of a job fit the ranks and the model: autos, legality, and
 * messages that carry the arithmetic and the nearest legal values. Pure functions of the job and
 * the facts. */
#include "config/job.h"

#include "config/expert_slots.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_BYTES 512

static void append(char text[TEXT_BYTES], const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static void append(char text[TEXT_BYTES], const char *fmt, ...)
{
    size_t used = strlen(text);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text + used, TEXT_BYTES - used, fmt, ap);
    va_end(ap);
}

int job_ranks(const struct job *job)
{
    const struct job_role *roles[] = {&job->prefill, &job->decode, &job->mixed};
    int64_t sum = 0;
    for (int i = 0; i < 3; i++) {
        if (!roles[i]->present) continue;
        if (roles[i]->ep == JOB_AUTO) return 0;
        sum += (int64_t)roles[i]->units * roles[i]->ep;
    }
    return sum > INT32_MAX ? INT32_MAX : (int)sum;
}

/* The units that a message calls by name. */
struct named_role {
    const char *name;
    struct job_role *role;
};

static int present_roles(struct job *job, struct named_role out[3])
{
    struct named_role all[] = {
        {"prefill", &job->prefill}, {"decode", &job->decode}, {"mixed", &job->mixed}};
    int n = 0;
    for (int i = 0; i < 3; i++) {
        if (all[i].role->present)
            out[n++] = all[i];
        else
            all[i].role->units = 0; /* nobody counts them by mistake */
    }
    return n;
}

static enum status check_slots(const struct named_role *r, const struct job_facts *facts)
{
    const struct job_role *role = r->role;
    int experts = facts->experts, redundant = role->redundant_experts;
    if (expert_slots_legal(experts, redundant, role->ep)) return OK;
    int slots = experts + redundant;
    if (experts == 0)
        return error_set(ERR_INPUT,
                         "%s.redundant_experts is %d, but the model has no routed experts: set it "
                         "to 0",
                         r->name, redundant);
    if (slots % role->ep == 0)
        return error_set(ERR_INPUT,
                         "%s.redundant_experts %d: %d experts on %d rank%s have room for %lld, as "
                         "no rank holds an expert twice: lower it, or set it to auto (%d)",
                         r->name, redundant, experts, role->ep, role->ep > 1 ? "s" : "",
                         (long long)experts * (role->ep - 1), expert_slots_auto(experts, role->ep));
    char legal[TEXT_BYTES];
    expert_slots_list(experts, redundant, legal, sizeof legal);
    return error_set(ERR_INPUT,
                     "%s.ep %d: %d experts + %d redundant = %d slots do not divide by %d: legal "
                     "sizes are %s; or set %s.redundant_experts to %d",
                     r->name, role->ep, experts, redundant, slots, role->ep, legal, r->name,
                     expert_slots_auto(experts, role->ep));
}

/* The ep that makes role `at` fill `ranks` exactly, given the others; 0 if there is none. */
static int fitting_ep(const struct named_role *roles, int n, int at, int ranks)
{
    int64_t rest = ranks;
    for (int i = 0; i < n; i++)
        if (i != at) rest -= (int64_t)roles[i].role->units * roles[i].role->ep;
    int units = roles[at].role->units;
    return rest > 0 && rest % units == 0 ? (int)(rest / units) : 0;
}

static bool ep_is_legal_for(const struct job_role *role, const struct job_facts *facts, int ep)
{
    return role->redundant_experts == JOB_AUTO ||
           expert_slots_legal(facts->experts, role->redundant_experts, ep);
}

/* "prefill 1 x 32 + decode 1 x 144 = 176 ranks, but mpirun started 100: ..." */
static enum status ranks_do_not_fit(const struct job *job, const struct named_role *roles, int n,
                                    const struct job_facts *facts)
{
    char sum[TEXT_BYTES] = "", remedy[TEXT_BYTES] = "";
    for (int i = 0; i < n; i++)
        append(sum, "%s%s %d x %d", i ? " + " : "", roles[i].name, roles[i].role->units,
               roles[i].role->ep);
    for (int i = n - 1; i >= 0; i--) {
        int ep = fitting_ep(roles, n, i, facts->ranks);
        if (ep > 0 && ep_is_legal_for(roles[i].role, facts, ep))
            append(remedy, ", or set %s.ep to %d", roles[i].name, ep);
    }
    return error_set(ERR_RESOURCE, "%s = %d ranks, but mpirun started %d: use mpirun -np %d%s", sum,
                     job_ranks(job), facts->ranks, job_ranks(job), remedy);
}

static enum status no_ep_fits(const struct named_role *r, int64_t rest, const struct job_facts *f)
{
    int units = r->role->units;
    int64_t below = rest > 0 ? f->ranks - rest % units : 0, above = f->ranks + units - rest % units;
    if (rest <= 0) above = f->ranks - rest + units;
    char nearest[TEXT_BYTES] = "";
    if (below > f->ranks - rest) append(nearest, "%lld or ", (long long)below);
    append(nearest, "%lld", (long long)above);
    return error_set(ERR_RESOURCE,
                     "%s.ep is auto, but %lld of the %d ranks that mpirun started are left for %s, "
                     "which do not divide by %d unit%s: use mpirun -np %s",
                     r->name, (long long)(rest > 0 ? rest : 0), f->ranks, r->name, units,
                     units > 1 ? "s" : "", nearest);
}

/* Both ep auto: the split nearest to equal shares that divides. */
static enum status split_evenly(struct named_role *roles, const struct job_facts *facts)
{
    struct job_role *a = roles[0].role, *b = roles[1].role;
    int target = facts->ranks / 2 / a->units;
    for (int step = 0; step <= facts->ranks; step++)
        for (int sign = 1; sign >= -1; sign -= 2) {
            int ep = target + sign * step;
            if (ep < 1) continue;
            int64_t rest = facts->ranks - (int64_t)a->units * ep;
            if (rest < b->units || rest % b->units) continue;
            int other = (int)(rest / b->units);
            if (!ep_is_legal_for(a, facts, ep) || !ep_is_legal_for(b, facts, other)) continue;
            a->ep = ep;
            b->ep = other;
            return OK;
        }
    return error_set(ERR_RESOURCE,
                     "%d ranks do not split into prefill %d x ep and decode %d x ep: give "
                     "prefill.ep and decode.ep, or use at least mpirun -np %d",
                     facts->ranks, a->units, b->units, a->units + b->units);
}

static enum status resolve_ep(struct named_role *roles, int n, const struct job_facts *facts)
{
    int autos = 0, at = 0;
    int64_t rest = facts->ranks;
    for (int i = 0; i < n; i++) {
        if (roles[i].role->ep == JOB_AUTO) {
            autos++;
            at = i;
        } else {
            rest -= (int64_t)roles[i].role->units * roles[i].role->ep;
        }
    }
    if (autos == 2) return split_evenly(roles, facts);
    if (autos == 0) return OK;
    struct job_role *role = roles[at].role;
    if (rest < role->units || rest % role->units) return no_ep_fits(&roles[at], rest, facts);
    role->ep = (int)(rest / role->units);
    return OK;
}

static void resolve_sizes(struct job *job, const struct job_facts *facts)
{
    if (job->threads_per_rank == JOB_AUTO) {
        int ranks = facts->ranks_on_node > 0 ? facts->ranks_on_node : 1;
        job->threads_per_rank = facts->cores_per_node > ranks ? facts->cores_per_node / ranks : 1;
    }
    if (job->order == JOB_AUTO)
        job->order = job->kv.prefix_cache == JOB_PREFIX_OFF ? JOB_ORDER_FILE : JOB_ORDER_PREFIX;
    if (job->ep.max_tokens_per_rank == JOB_AUTO)
        job->ep.max_tokens_per_rank =
            job->mixed.present ? job->mixed.max_batch : job->decode.max_batch;
}

enum status job_resolve(struct job *job, const struct job_facts *facts)
{
    if (!job->prefill.present && !job->decode.present) job->mixed.present = true;
    struct named_role roles[3];
    int n = present_roles(job, roles);
    TRY(resolve_ep(roles, n, facts));
    if (job_ranks(job) != facts->ranks) return ranks_do_not_fit(job, roles, n, facts);
    for (int i = 0; i < n; i++) {
        struct job_role *role = roles[i].role;
        if (role->redundant_experts == JOB_AUTO)
            role->redundant_experts = expert_slots_auto(facts->experts, role->ep);
        TRY(check_slots(&roles[i], facts));
    }
    resolve_sizes(job, facts);
    return OK;
}
