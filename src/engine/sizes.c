/* sizes.c - phase 3: how many KV pages, how large the buffers, and whether the host holds it all.
 */
#include "core/host_memory.h"
#include "core/log.h"
#include "engine/memory.h"
#include "engine/start.h"

#include <string.h>

static double gib(double bytes)
{
    return bytes / (double)(1u << 30);
}

/* auto: what is useful, within this rank's share of half the host's free memory. */
static int choose_pages(const struct engine *e, enum rank_role role, size_t page_bytes,
                        double share_bytes)
{
    if (e->job.kv.pages_per_rank != JOB_AUTO) return e->job.kv.pages_per_rank;
    double pages = memory_useful_pages(&e->job, e->cfg, role);
    double fit = share_bytes / (double)page_bytes;
    if (pages > fit) pages = fit;
    if (pages > 1e9) pages = 1e9;
    return pages < 1 ? 1 : (int)pages;
}

static enum status measure(struct engine *e, struct rank_memory *n)
{
    struct rank *r = &e->rank;
    int slots = (e->cfg->experts + r->cfg->redundant_experts) / r->cfg->ep;
    TRY(weights_plan(e->ck, &e->kernels, (enum numerics)e->job.numerics, slots, &r->weights));
    int nodes = transport_topology(r->transport)->nodes;
    e->ep_params = memory_ep_params(&e->job, e->cfg, r->role, r->weights.experts_fp8, nodes);
    size_t page_bytes = memory_page_bytes(&e->job, e->cfg);
    double share = 0.5 * (double)host_memory_available() / e->node.size;
    enum rank_role first = e->job.mixed.present ? RANK_MIXED : RANK_PREFILL;
    e->pages[0] = choose_pages(e, first, page_bytes, share);
    e->pages[1] = e->job.mixed.present ? e->pages[0]
                                       : choose_pages(e, RANK_DECODE, page_bytes, share);
    int pages = e->pages[r->role == RANK_DECODE];
    TRY(memory_of_rank(&e->job, e->cfg, &r->weights, r->role, nodes, pages, n));
    n->shared /= e->node.size;
    return OK;
}

enum status start_sizes(struct engine *e)
{
    struct rank_memory n, sum;
    memset(&n, 0, sizeof n);
    TRY(agree(MPI_COMM_WORLD, measure(e, &n)));
    /* Ranks of a host must find the same pages: the smallest. */
    MPI_Allreduce(MPI_IN_PLACE, e->pages, 2, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    MPI_Allreduce(&n, &sum, 5, MPI_DOUBLE, MPI_SUM, e->node.comm);
    double all = sum.shared + sum.experts + sum.kv + sum.buffers + sum.ep;
    double have = (double)host_memory_available();
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
