/* memory.c - see memory.h. */
#include "engine/memory.h"

#include "kvcache/page_pool.h"
#include "model/model.h"

const struct job_role *memory_role(const struct job *job, enum rank_role role)
{
    return role == RANK_PREFILL ? &job->prefill : role == RANK_DECODE ? &job->decode : &job->mixed;
}

/* A decode rank its full batch at the longest context, a prefill rank two chunks beside the longest
 * prompt, and as much again for cached prefixes. */
double memory_useful_pages(const struct job *job, const struct model_config *cfg,
                           enum rank_role role)
{
    const struct job_role *c = memory_role(job, role);
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
    const struct job_role *c = memory_role(job, role);
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

enum status memory_of_rank(const struct job *job, const struct model_config *cfg,
                           const struct weights *planned, enum rank_role role, int nodes,
                           double pages, struct rank_memory *out)
{
    const struct job_role *c = memory_role(job, role);
    struct ep_params params = memory_ep_params(job, cfg, role, planned->experts_fp8, nodes);
    struct ep_memory ep = {0, 0};
    if (model_config_moe_layers(cfg)) TRY(ep_memory(&params, &ep));
    int rows = role == RANK_DECODE ? job->ep.max_tokens_per_rank : c->chunk_tokens;
    struct model_limits limits = {rows, cfg->max_positions, role != RANK_DECODE,
                                  role != RANK_PREFILL};
    *out = (struct rank_memory){
        .shared = (double)planned->shared_bytes,
        .experts = (double)planned->private_bytes,
        .kv = pages * (double)memory_page_bytes(job, cfg),
        .buffers = (double)model_buffer_bytes(cfg, (enum numerics)job->numerics, &limits, rows),
        .ep = (double)(ep.window + ep.heap),
    };
    return OK;
}
