/* memory.c - see memory.h. */
#include "engine/memory.h"

#include "engine/sequence.h"
#include "kvcache/page_pool.h"
#include "kvcache/prefix_index.h"

/* What a rank of the demonstration holds besides the components that are counted one by one, as
 * resident private memory: measured at 4 to 6 MiB with 1 to 176 ranks; code and libraries are
 * shared, 45 MiB a host. MPI keeps some bytes for every other rank. */
static const double rank_program = 6.0 * (1 << 20), rank_peer = 2048;

double memory_useful_pages(const struct job *job, const struct model_config *cfg,
                           enum rank_role role)
{
    /* A decode rank its full batch at the longest context, a prefill rank two chunks beside the
     * longest prompt, and as much again for cached prefixes. */
    const struct job_role *c = rank_map_role(job, role);
    double longest = pages_for((uint32_t)cfg->max_positions, (uint32_t)job->kv.page_tokens);
    double chunk = pages_for((uint32_t)c->chunk_tokens, (uint32_t)job->kv.page_tokens);
    double decode = role == RANK_PREFILL ? 0 : longest * c->max_batch;
    double prefill = role == RANK_DECODE ? 0 : 2 * (longest + 3 * chunk) + 4096;
    return decode + prefill;
}

size_t memory_page_bytes(const struct job *job, const struct model_config *cfg)
{
    return model_page_bytes(cfg, model_kv_type((enum numerics)job->numerics), job->kv.page_tokens);
}

struct ep_params memory_ep_params(const struct job *job, const struct model_config *cfg,
                                  enum rank_role role, bool experts_fp8, int nodes)
{
    const struct job_role *c = rank_map_role(job, role);
    enum numerics num = (enum numerics)job->numerics;
    /* An operation carries one micro-batch: its share of the rank's rows. */
    int mbs = c->microbatches, batch = (job->ep.max_tokens_per_rank + mbs - 1) / mbs;
    return (struct ep_params){
        .ep_size = c->ep,
        .nodes = nodes,
        .experts = cfg->experts,
        .slots = cfg->experts + c->redundant_experts,
        .topk = cfg->topk,
        .hidden = cfg->hidden,
        .n_group = cfg->n_group,
        .max_tokens = role == RANK_PREFILL ? 0 : batch,
        .chunk_tokens = role == RANK_DECODE ? 0 : c->chunk_tokens,
        .recv_rows_factor = job->ep.recv_rows_factor,
        .row_align = 1,
        .dispatch_type = model_dispatch_type(num, experts_fp8),
        .combine_type = model_combine_type(num),
    };
}

/* A whole chunk may fall into one micro-batch (its attention work may be tiny); a decode batch is
 * halved. */
int memory_max_rows(const struct job *job, enum rank_role role)
{
    const struct job_role *c = rank_map_role(job, role);
    int mbs = c->microbatches > 0 ? c->microbatches : 1;
    int decode = role == RANK_PREFILL ? 0 : (c->max_batch + mbs - 1) / mbs;
    int prefill = role == RANK_DECODE ? 0 : c->chunk_tokens;
    return decode > prefill ? decode : prefill;
}

struct model_limits memory_model_limits(const struct job *job, const struct model_config *cfg,
                                        enum rank_role role)
{
    return (struct model_limits){memory_max_rows(job, role), cfg->max_positions,
                                 role != RANK_DECODE, role != RANK_PREFILL};
}

enum status memory_ep(const struct job *job, const struct model_config *cfg,
                      const struct memory_facts *f, struct ep_memory *out)
{
    *out = (struct ep_memory){0};
    if (model_config_moe_layers(cfg) == 0) return OK;
    struct ep_params params =
        memory_ep_params(job, cfg, f->role, f->planned->experts_fp8, f->nodes);
    return ep_memory(&params, out);
}

struct model_memory memory_activations(const struct job *job, const struct model_config *cfg,
                                       const struct memory_facts *f)
{
    const struct job_role *c = rank_map_role(job, f->role);
    struct model_limits limits = memory_model_limits(job, cfg, f->role);
    /* Even load: as many rows come as go. */
    int mbs = c->microbatches > 0 ? c->microbatches : 1;
    int rows = ((f->role == RANK_DECODE ? c->max_batch : c->chunk_tokens) + mbs - 1) / mbs;
    if (f->role == RANK_MIXED && c->max_batch > c->chunk_tokens) rows = limits.max_rows;
    return model_memory(cfg, (enum numerics)job->numerics, &limits, mbs, f->longest,
                        rows * cfg->topk);
}

/* Requests that the router lets a rank have: a batch and those whose prompt is being computed, two
 * chunks of queued prompts. */
static double request_bytes(const struct job *job, const struct memory_facts *f)
{
    const struct job_role *c = rank_map_role(job, f->role);
    double longest = f->longest > 0 ? f->longest : MODEL_PLAN_CONTEXT;
    double tokens = longest + job->sampling.max_tokens;
    double each =
        sizeof(struct sequence) + sizeof(int32_t) * (2 * tokens + tokens / job->kv.page_tokens);
    double queued = f->role == RANK_DECODE ? 0 : 2.0 * c->chunk_tokens * sizeof(int32_t) + each;
    double batch = f->role == RANK_PREFILL ? 0 : c->max_batch + c->max_batch / 4.0 + 1;
    return queued + batch * each;
}

enum status memory_of_rank(const struct job *job, const struct model_config *cfg,
                           const struct memory_facts *f, struct rank_memory *out)
{
    struct ep_memory ep;
    TRY(memory_ep(job, cfg, f, &ep));
    struct model_memory act = memory_activations(job, cfg, f);
    *out = (struct rank_memory){
        .shared = (double)f->planned->shared_bytes,
        .experts = (double)f->planned->private_bytes,
        .activations = (double)act.start,
        .growth = (double)(act.context + act.routed),
        .ep = (double)(ep.window + ep.heap),
        .requests = request_bytes(job, f),
        .program = rank_program + rank_peer * job_ranks(job),
    };
    return OK;
}

/* Bytes besides the page itself. */
static double index_bytes(const struct job *job, enum rank_role role, double pages)
{
    bool prefix = role != RANK_DECODE && job->kv.prefix_cache == JOB_PREFIX_MEMORY;
    return (double)page_pool_bytes((uint32_t)pages) +
           (prefix ? (double)prefix_index_bytes((uint32_t)pages, (uint32_t)job->kv.page_tokens)
                   : 0);
}

int memory_choose_pages(const struct job *job, const struct model_config *cfg, enum rank_role role,
                        double share)
{
    if (job->kv.pages_per_rank != JOB_AUTO) return job->kv.pages_per_rank;
    double pages = memory_useful_pages(job, cfg, role);
    double fit = 0.5 * share / (double)memory_page_bytes(job, cfg);
    if (share > 0 && pages > fit) pages = fit;
    if (pages > 1e9) pages = 1e9;
    return pages < 1 ? 1 : (int)pages;
}

void memory_set_pages(const struct job *job, const struct model_config *cfg, enum rank_role role,
                      int pages, struct rank_memory *rank)
{
    rank->kv = pages * (double)memory_page_bytes(job, cfg);
    rank->index = index_bytes(job, role, pages);
}

double memory_pages_share(const struct job *job, const struct rank_memory *host, double have)
{
    double kv = host->kv + host->index, rest = memory_sum(host) - kv;
    if (job->kv.pages_per_rank != JOB_AUTO || have <= 0 || rest + kv <= have) return 1;
    double share = (0.98 * have - rest) / kv;
    return share > 0 ? share : 0;
}

double memory_sum(const struct rank_memory *m)
{
    return m->shared + m->experts + m->kv + m->index + m->activations + m->growth + m->ep +
           m->requests + m->program;
}

void memory_add(struct rank_memory *host, const struct rank_memory *rank, int n)
{
    if (n > 0 && rank->shared > host->shared) host->shared = rank->shared;
    host->experts += n * rank->experts;
    host->kv += n * rank->kv;
    host->index += n * rank->index;
    host->activations += n * rank->activations;
    host->growth += n * rank->growth;
    host->ep += n * rank->ep;
    host->requests += n * rank->requests;
    host->program += n * rank->program;
}

enum status memory_check(const struct rank_memory *m, const char *name, int ranks, int pages,
                         double have)
{
    const double gib = 1u << 30;
    double all = memory_sum(m);
    if (have <= 0 || all <= have) return OK;
    return error_set(ERR_RESOURCE,
                     "%d rank%s on %s need %.2f GiB, %.2f GiB are free: shared weights %.2f, "
                     "experts %.2f, KV pages %.2f (kv.pages_per_rank %d), activations %.2f, "
                     "all-to-all %.2f, program %.2f. Lower kv.pages_per_rank, chunk_tokens, "
                     "max_batch or ep.max_tokens_per_rank, or use more hosts",
                     ranks, ranks > 1 ? "s" : "", name, all / gib, have / gib, m->shared / gib,
                     m->experts / gib, (m->kv + m->index) / gib, pages,
                     (m->activations + m->growth) / gib, m->ep / gib,
                     (m->requests + m->program) / gib);
}
