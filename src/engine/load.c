/* load.c - phases 4 and 5: weights into their packed form, then everything that holds state:
 * all-to-all, KV pool, activation buffers, schedules.
 */
#include "core/clock.h"
#include "core/log.h"
#include "engine/interrupt.h"
#include "engine/links.h"
#include "engine/start.h"
#include "engine/watch.h"

#include <stdlib.h>
#include <string.h>

/* ---- 4. weights ----------------------------------------------------------------------------- */

/* Expert placement of the unit, one row for each MoE layer. */
static enum status place_experts(struct engine *e)
{
    struct rank *r = &e->rank;
    const struct topology *topo = transport_topology(r->transport);
    int moe = model_config_moe_layers(e->cfg), experts = e->cfg->experts;
    if (!moe) return OK;
    bool even = topo->ranks % topo->nodes == 0;
    for (int i = 0; i < topo->nodes; i++)
        even = even && topo->node_size[i] == topo->ranks / topo->nodes;
    struct eplb_shape shape = {
        .layers = moe,
        .experts = experts,
        .groups = e->cfg->n_group,
        .slots = e->ep_params.slots,
        .ranks = topo->ranks,
        .nodes = even ? topo->nodes : 1,
    };
    float *load = 0;
    if (e->expert_load) {
        load = malloc((size_t)moe * (size_t)experts * sizeof *load);
        if (!load) return error_set(ERR_RESOURCE, "no memory for the expert load");
        for (int l = 0, at = 0; l < e->cfg->layers; l++) {
            if (!model_config_layer_is_moe(e->cfg, l)) continue;
            for (int x = 0; x < experts; x++)
                load[at++] = (float)e->expert_load[(size_t)l * (size_t)experts + (size_t)x];
        }
    }
    enum status st = eplb_place(&shape, load, &r->placement);
    free(load);
    return st;
}

static enum status replica_tables(struct engine *e)
{
    struct rank *r = &e->rank;
    const struct topology *topo = transport_topology(r->transport);
    r->replica = calloc((size_t)e->cfg->layers, sizeof *r->replica);
    if (!r->replica) return error_set(ERR_RESOURCE, "no memory for replica tables");
    int per_node = topo->node_size[0];
    for (int l = 0; l < r->placement.shape.layers; l++)
        TRY(replica_table_build(&r->placement, l, per_node, topo->rank, &r->replica[l]));
    return OK;
}

/* [layers][local slots]: which expert each of this rank's slots holds. */
static int32_t *own_slots(const struct engine *e)
{
    const struct rank *r = &e->rank;
    int slots = r->weights.local_slots;
    int32_t *own = calloc((size_t)e->cfg->layers * (size_t)slots + 1, sizeof *own);
    if (!own) return 0;
    for (int l = 0, moe = 0; l < e->cfg->layers; l++) {
        if (!model_config_layer_is_moe(e->cfg, l)) continue;
        const int32_t *all = placement_slots(&r->placement, moe++);
        memcpy(own + (size_t)l * (size_t)slots, all + (size_t)r->local * (size_t)slots,
               (size_t)slots * sizeof *own);
    }
    return own;
}

/* Loading takes minutes for a large model: it shows life, and a signal ends it. */
static enum status loading(void)
{
    watch_move();
    return interrupt_check();
}

static enum status pack(struct engine *e)
{
    struct rank *r = &e->rank;
    r->weights.check = loading;
    e->expert_memory = r->lane.dev->alloc(r->lane.dev, r->weights.private_bytes + 64);
    int32_t *slots = own_slots(e);
    if (!e->expert_memory || !slots) {
        free(slots);
        return error_set(ERR_RESOURCE, "no memory for %zu bytes of experts",
                         r->weights.private_bytes);
    }
    weights_attach(&r->weights, e->weights.base, e->expert_memory);
    int threads = r->lane.threads;
    enum status st = weights_pack_shared(&r->weights, e->node.rank, e->node.size, threads);
    if (st == OK && model_config_moe_layers(e->cfg))
        st = weights_pack_experts(&r->weights, slots, threads);
    free(slots);
    return st;
}

enum status start_weights(struct engine *e)
{
    double begin = clock_now_s();
    TRY(agree(MPI_COMM_WORLD, place_experts(e)));
    enum status st =
        node_share(&e->node, "the packed weights", e->rank.weights.shared_bytes + 64, &e->weights);
    TRY(agree(MPI_COMM_WORLD, st));
    watch_point("load");
    TRY(agree(MPI_COMM_WORLD, pack(e)));
    MPI_Barrier(e->node.comm);
    unsigned long long read = e->rank.weights.bytes_read, sum = 0;
    MPI_Reduce(&read, &sum, 1, MPI_UNSIGNED_LONG_LONG, MPI_SUM, 0, MPI_COMM_WORLD);
    double s = clock_now_s() - begin;
    log_info("weights: %.3f GB read and packed in %.2f s, %.2f GB/s, all ranks together",
             (double)sum * 1e-9, s, (double)sum * 1e-9 / s);
    return OK;
}

/* ---- 5. model ------------------------------------------------------------------------------- */

static enum status make_schedules(struct engine *e)
{
    struct rank *r = &e->rank;
    int layers = e->cfg->layers;
    bool *moe = calloc((size_t)layers, sizeof *moe);
    if (!moe) return error_set(ERR_RESOURCE, "no memory for the schedules");
    for (int l = 0; l < layers; l++) moe[l] = model_config_layer_is_moe(e->cfg, l);
    enum status st = OK;
    int mbs = r->cfg->microbatches;
    if (r->role != RANK_DECODE)
        st = schedule_build(layers, moe, mbs, r->cfg->overlap, false, &r->sched_prefill);
    if (st == OK && r->role != RANK_PREFILL)
        st = schedule_build(layers, moe, mbs, r->cfg->overlap, true, &r->sched_decode);
    free(moe);
    return st;
}

static enum status make_kv(struct engine *e)
{
    struct rank *r = &e->rank;
    int pages = e->pages[r->role == RANK_DECODE];
    size_t page_bytes = memory_page_bytes(&e->job, e->cfg);
    r->page_layer_bytes = page_bytes / (size_t)e->cfg->layers;
    e->cache = r->lane.dev->alloc(r->lane.dev, (size_t)pages * page_bytes);
    if (!e->cache)
        return error_set(ERR_RESOURCE,
                         "the system refuses %.2f GiB for %d KV pages of %zu bytes (a limit of "
                         "this process, ulimit -v, or of its container): lower kv.pages_per_rank "
                         "or use fewer ranks a host",
                         (double)page_bytes * pages / (1 << 30), pages, page_bytes);
    TRY(page_pool_init(&r->pool, (uint32_t)pages));
    r->use_prefix = r->role != RANK_DECODE && e->job.kv.prefix_cache == JOB_PREFIX_MEMORY;
    if (r->use_prefix)
        TRY(prefix_index_init(&r->prefix, &r->pool, (uint32_t)e->job.kv.page_tokens));
    return OK;
}

static double rank_clock(void *rank)
{
    return rank_now(rank);
}

static enum status make_model(struct engine *e)
{
    struct rank *r = &e->rank;
    struct model_limits limits = memory_model_limits(&e->job, e->cfg, r->role);
    int rows = limits.max_rows;
    TRY(make_kv(e));
    TRY(model_create(&r->weights, &r->lane, &limits, e->job.kv.page_tokens, (int)r->pool.pages,
                     e->cache, &r->model));
    r->model.ep = r->ep;
    TRY(make_schedules(e));
    if (r->ep) TRY(replica_tables(e));
    forward_init(&r->forward, &r->model, r->replica, rank_clock, r);
    r->forward.check = interrupt_check;
    r->forward.runner.note = watch_op;
    for (int i = 0; i < MODEL_MICROBATCHES; i++)
        r->row_seq[i] = calloc((size_t)rows, sizeof *r->row_seq[i]);
    r->pick_rows = calloc((size_t)rows, sizeof *r->pick_rows);
    r->sampler = sampler_create(e->cfg->vocab);
    if (!r->row_seq[0] || !r->row_seq[1] || !r->pick_rows || !r->sampler)
        return error_set(ERR_RESOURCE, "no memory for a step's rows");
    if (e->job.trace[0]) {
        enum { TRACE_EVENTS = 1 << 15 };
        e->trace_events = malloc(TRACE_EVENTS * sizeof *e->trace_events);
        if (!e->trace_events) return error_set(ERR_RESOURCE, "no memory for the trace");
        trace_buf_init(&r->trace, e->trace_events, TRACE_EVENTS);
        r->forward.runner.trace = &r->trace;
    }
    return OK;
}

/* Pages are shared by all jobs whose pages have the same bits. */
static enum status open_disk(struct engine *e)
{
    struct rank *r = &e->rank;
    struct hash128 fp = {0, 0};
    enum status st = e->world_rank == 0 ? checkpoint_fingerprint(e->ck, &fp) : OK;
    TRY(agree(MPI_COMM_WORLD, st));
    MPI_Bcast(&fp, sizeof fp, MPI_BYTE, 0, MPI_COMM_WORLD);
    int32_t rest[] = {e->job.numerics, (int32_t)e->isa, JOB_BACKEND_CPU, KERNELS_BITS,
                      (int32_t)r->model.kv_type};
    fp = hash128(rest, sizeof rest, fp);
    if (r->role != RANK_DECODE) st = rank_disk_open(r, fp);
    TRY(agree(MPI_COMM_WORLD, st));
    if (e->world_rank != 0) return OK; /* rank 0 prefills */
    struct disk_stats d;
    rank_disk_stats(r->disk, &d);
    log_info(
        "disk cache %s: %llu pages of this model found in %llu segments; %.3f of %.3f GB used; "
        "%s%s",
        e->job.kv.disk.dir, (unsigned long long)d.pages, (unsigned long long)d.segments,
        1e-9 * (double)d.folder_bytes, 1e-9 * e->job.kv.disk.bytes, d.io,
        d.direct ? ", direct" : "");
    return OK;
}

enum status start_model(struct engine *e)
{
    struct rank *r = &e->rank;
    enum status st = OK;
    if (model_config_moe_layers(e->cfg)) {
        struct ep_placement place = {e->ep_params.slots, r->placement.shape.layers,
                                     r->placement.slot_expert};
        st = ep_create(&e->ep_params, &place, &r->waiter, r->kernels, &r->lane, &r->ep);
    }
    TRY(agree(MPI_COMM_WORLD, st));
    TRY(links_clocks(e));
    TRY(agree(MPI_COMM_WORLD, make_model(e)));
    if (e->job.kv.disk.dir[0]) TRY(open_disk(e));
    TRY(agree(MPI_COMM_WORLD, tick_create(&r->waiter, &r->tick)));
    return OK;
}
