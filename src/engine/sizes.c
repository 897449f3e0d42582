/* sizes.c - phase 3: how many KV pages, how large the buffers, and whether the host holds it all;
 * the arithmetic is engine/memory's.
 */
#include "core/host_memory.h"
#include "core/log.h"
#include "engine/start.h"

#include <limits.h>
#include <string.h>

static double gib(double bytes)
{
    return bytes / (double)(1u << 30);
}

/* Everything but the pages, and how many of those this rank would like. Decode ranks speak for
 * pages[1], the others for pages[0]. */
static enum status measure(struct engine *e, double have, struct rank_memory *n)
{
    struct rank *r = &e->rank;
    int slots = (e->cfg->experts + r->cfg->redundant_experts) / r->cfg->ep;
    TRY(weights_plan(e->ck, &e->kernels, (enum numerics)e->job.numerics, slots, &r->weights));
    struct memory_facts facts = {r->role, transport_topology(r->transport)->nodes, 0, &r->weights};
    e->ep_params = memory_ep_params(&e->job, e->cfg, r->role, r->weights.experts_fp8, facts.nodes);
    TRY(memory_of_rank(&e->job, e->cfg, &facts, n));
    e->pages[r->role == RANK_DECODE] =
        memory_choose_pages(&e->job, e->cfg, r->role, have / e->node.size);
    return OK;
}

/* Ranks of all hosts find the same pages: the smallest. What the ranks of this host then need. */
static void agree_on_pages(struct engine *e, struct rank_memory *n, struct rank_memory *sum)
{
    MPI_Allreduce(MPI_IN_PLACE, e->pages, 2, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    if (e->job.mixed.present) e->pages[1] = e->pages[0];
    memory_set_pages(&e->job, e->cfg, e->rank.role, e->pages[e->rank.role == RANK_DECODE], n);
    struct rank_memory mine = *n;
    mine.shared /= e->node.size;
    MPI_Allreduce(&mine, sum, MEMORY_PARTS, MPI_DOUBLE, MPI_SUM, e->node.comm);
}

enum status start_sizes(struct engine *e)
{
    struct rank_memory n, sum;
    memset(&n, 0, sizeof n);
    double have = (double)host_memory_available();
    /* One figure for the host: ranks look at different moments. */
    MPI_Bcast(&have, 1, MPI_DOUBLE, 0, e->node.comm);
    e->pages[0] = e->pages[1] = INT_MAX;
    TRY(agree(MPI_COMM_WORLD, measure(e, have, &n)));
    agree_on_pages(e, &n, &sum);
    double share = memory_pages_share(&e->job, &sum, have), least = 1;
    MPI_Allreduce(&share, &least, 1, MPI_DOUBLE, MPI_MIN, MPI_COMM_WORLD);
    if (least > 0 && least < 1) {
        for (int i = 0; i < 2; i++)
            e->pages[i] = e->pages[i] * least > 1 ? (int)(e->pages[i] * least) : 1;
        agree_on_pages(e, &n, &sum);
    }
    e->planned = n;
    log_info("memory on %s: weights %.2f GiB shared + %.2f experts, KV %.2f, activations %.2f, "
             "all-to-all %.2f, program %.2f of %.2f GiB free",
             e->rank.host, gib(sum.shared), gib(sum.experts), gib(sum.kv + sum.index),
             gib(sum.activations + sum.growth), gib(sum.ep), gib(sum.requests + sum.program),
             gib(have));
    return agree(MPI_COMM_WORLD, memory_check(&sum, e->rank.host, e->node.size,
                                              e->pages[e->rank.role == RANK_DECODE], have));
}
