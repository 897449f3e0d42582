/* sizes.c - phase 3: how many KV pages, how large the buffers, and whether the host holds it all.
 */
#include "core/log.h"
#include "engine/start.h"
#include "kvcache/page_pool.h"

#include <string.h>

static double gib(double bytes)
{
    return bytes / (double)(1u << 30);
}

/* Pages a rank can put to use: a decode rank its full batch at the longest context, a prefill rank
 * two chunks beside the longest prompt, and as much again for cached prefixes. */
static double useful_pages(const struct engine *e, enum rank_role role)
{
    const struct job_role *c = engine_role(e, role);
    double longest = pages_for((uint32_t)e->cfg->max_positions, (uint32_t)e->job.kv.page_tokens);
    double chunk = pages_for((uint32_t)c->chunk_tokens, (uint32_t)e->job.kv.page_tokens);
    double decode = role == RANK_PREFILL ? 0 : longest * c->max_batch;
    double prefill = role == RANK_DECODE ? 0 : 2 * (longest + 3 * chunk) + 4096;
    return decode + prefill;
}

/* auto: what is useful, within this rank's share of half the host's free memory. */
static int choose_pages(const struct engine *e, enum rank_role role, size_t page_bytes,
                        double share_bytes)
{
    if (e->job.kv.pages_per_rank != JOB_AUTO) return e->job.kv.pages_per_rank;
    double pages = useful_pages(e, role), fit = share_bytes / (double)page_bytes;
    if (pages > fit) pages = fit;
    if (pages > 1e9) pages = 1e9;
    return pages < 1 ? 1 : (int)pages;
}

static void fill_ep_params(struct engine *e)
{
    const struct job_role *c = e->rank.cfg;
    enum numerics num = (enum numerics)e->job.numerics;
    /* An operation carries one micro-batch: its share of the rank's rows. */
    int mbs = c->microbatches, batch = (e->job.ep.max_tokens_per_rank + mbs - 1) / mbs;
    e->ep_params = (struct ep_params){
        .ep_size = c->ep,
        .nodes = transport_topology(e->rank.transport)->nodes,
        .experts = e->cfg->experts,
        .slots = e->cfg->experts + c->redundant_experts,
        .topk = e->cfg->topk,
        .hidden = e->cfg->hidden,
        .n_group = e->cfg->n_group,
        .max_tokens = e->rank.role == RANK_PREFILL ? 0 : batch,
        .chunk_tokens = e->rank.role == RANK_DECODE ? 0 : c->chunk_tokens,
        .recv_rows_factor = e->job.ep.recv_rows_factor,
        .row_align = 1,
        .dispatch_type = model_dispatch_type(num, e->rank.weights.experts_fp8),
        .combine_type = model_combine_type(num),
    };
}

struct needs {
    double shared, experts, kv, buffers, ep;
};

static enum status measure(struct engine *e, struct needs *n)
{
    struct rank *r = &e->rank;
    int slots = (e->cfg->experts + r->cfg->redundant_experts) / r->cfg->ep;
    enum numerics num = (enum numerics)e->job.numerics;
    TRY(weights_plan(e->ck, &e->kernels, num, slots, &r->weights));
    fill_ep_params(e);
    size_t page_bytes = model_page_bytes(e->cfg, model_kv_type(num), e->job.kv.page_tokens);
    double share = 0.5 * (double)node_available_bytes() / e->node.size;
    enum rank_role first = e->job.mixed.present ? RANK_MIXED : RANK_PREFILL;
    e->pages[0] = choose_pages(e, first, page_bytes, share);
    e->pages[1] = e->job.mixed.present ? e->pages[0]
                                       : choose_pages(e, RANK_DECODE, page_bytes, share);
    struct ep_memory ep = {0, 0};
    if (model_config_moe_layers(e->cfg)) TRY(ep_memory(&e->ep_params, &ep));
    int pages = e->pages[r->role == RANK_DECODE];
    int rows = r->role == RANK_DECODE ? e->job.ep.max_tokens_per_rank : r->cfg->chunk_tokens;
    struct model_limits limits = {rows, e->cfg->max_positions, r->role != RANK_DECODE,
                                  r->role != RANK_PREFILL};
    n->shared = (double)r->weights.shared_bytes / e->node.size;
    n->experts = (double)r->weights.private_bytes;
    n->kv = (double)pages * (double)page_bytes;
    n->buffers = (double)model_buffer_bytes(e->cfg, num, &limits, rows);
    n->ep = (double)(ep.window + ep.heap);
    return OK;
}

enum status start_sizes(struct engine *e)
{
    struct needs n, sum;
    memset(&n, 0, sizeof n);
    TRY(agree(MPI_COMM_WORLD, measure(e, &n)));
    /* Ranks of a host must find the same pages: the smallest. */
    MPI_Allreduce(MPI_IN_PLACE, e->pages, 2, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    MPI_Allreduce(&n, &sum, 5, MPI_DOUBLE, MPI_SUM, e->node.comm);
    double all = sum.shared + sum.experts + sum.kv + sum.buffers + sum.ep;
    double have = (double)node_available_bytes();
    enum status st = OK;
    if (have > 0 && all > have)
        st = error_set(ERR_RESOURCE,
                       "%d ranks on %s need %.2f GiB, %.2f GiB are free: shared weights %.2f, "
                       "experts %.2f, KV pages %.2f (kv.pages_per_rank %d), activations %.2f, "
                       "all-to-all %.2f. Lower kv.pages_per_rank, chunk_tokens, max_batch or "
                       "ep.max_tokens_per_rank, or use more hosts",
                       e->node.size, e->rank.host, gib(all), gib(have), gib(sum.shared),
                       gib(sum.experts), gib(sum.kv), e->pages[e->rank.role == RANK_DECODE],
                       gib(sum.buffers), gib(sum.ep));
    log_info("memory on %s: weights %.2f GiB shared + %.2f experts, KV %.2f, activations %.2f, "
             "all-to-all %.2f of %.2f GiB free", e->rank.host, gib(sum.shared), gib(sum.experts),
             gib(sum.kv), gib(sum.buffers), gib(sum.ep), gib(have));
    return agree(MPI_COMM_WORLD, st);
}
