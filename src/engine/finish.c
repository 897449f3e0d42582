/* finish.c - phase 8, the end of a job: every rank's figures, the results file, the closing table.
 */
#include "core/clock.h"
#include "core/host_memory.h"
#include "core/log.h"
#include "engine/interrupt.h"
#include "engine/links.h"
#include "engine/start.h"
#include "engine/watch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- 8. the end ----------------------------------------------------------------------------- */

static void fill_memory(const struct engine *e, struct rank_row *row)
{
    const struct rank *r = &e->rank;
    const struct rank_memory *p = &e->planned;
    struct model_memory act = model_memory_held(&r->model);
    struct ep_memory ep = {0};
    if (r->ep) ep = ep_memory_held(r->ep);
    row->experts_bytes = (int64_t)r->weights.private_bytes;
    row->kv_bytes = (int64_t)((size_t)r->pool.pages * r->page_layer_bytes * (size_t)e->cfg->layers);
    row->activation_bytes = (int64_t)(act.start + act.context + act.routed);
    row->alltoall_bytes = (int64_t)(ep.window + ep.heap);
    row->memory_bytes =
        row->experts_bytes + row->kv_bytes + row->activation_bytes + row->alltoall_bytes;
    row->planned_bytes = (int64_t)(p->experts + p->kv + p->activations + p->growth + p->ep);
    row->resident_bytes = (int64_t)process_memory_private();
}

static void fill_rank_row(const struct engine *e, struct rank_row *row)
{
    const struct rank *r = &e->rank;
    memset(row, 0, sizeof *row);
    snprintf(row->host, sizeof row->host, "%s", r->host);
    snprintf(row->unit, sizeof row->unit, "%s", r->unit_name);
    snprintf(row->role, sizeof row->role, "%s", rank_role_name(r->role));
    row->attempt = e->attempt;
    row->rank = r->world_rank;
    row->node = r->node;
    row->local = r->local;
    row->compute_s = r->stats.compute_s;
    row->exposed_comm_s = r->stats.exposed_s;
    double idle = rank_now(r) - e->resumed_s - r->stats.compute_s - r->stats.exposed_s;
    row->idle_s = idle > 0 ? idle : 0;
    row->prefill_tokens = r->stats.prefill_tokens;
    row->decode_tokens = r->stats.decode_tokens;
    row->prefill_requests = r->stats.prefill_requests;
    row->decode_requests = r->stats.decode_requests;
    row->attn_work = r->model.attn_work;
    row->kv_pages = r->pool.pages;
    row->kv_pages_peak = r->stats.kv_pages_peak;
    row->moved_out = r->stats.swaps;
    row->expert_rows = r->model.expert_rows;
    if (r->disk) {
        struct disk_stats d;
        rank_disk_stats(r->disk, &d);
        row->disk_hit_pages = (int64_t)d.read_pages;
        row->disk_miss_pages = (int64_t)(rank_disk_missed(r->disk) + d.missed_pages);
        row->disk_bad_pages = (int64_t)d.bad_pages;
        row->disk_written_pages = (int64_t)d.written_pages;
        row->disk_dropped_pages = (int64_t)d.dropped_pages;
        row->disk_read_bytes = (int64_t)d.read_bytes;
        row->disk_written_bytes = (int64_t)d.written_bytes;
    }
    fill_memory(e, row);
}

/* /experts/placement: each unit's leader tells its own. */
static enum status send_places(struct engine *e)
{
    const struct placement *p = &e->rank.placement;
    if (e->rank.local != 0 || !p->slot_expert) return OK;
    struct placement_row *rows = calloc((size_t)(p->shape.layers * p->shape.slots), sizeof *rows);
    if (!rows) return error_set(ERR_RESOURCE, "no memory for the placement table");
    size_t n = 0;
    for (int l = 0, m = 0; l < e->cfg->layers; l++) {
        if (!model_config_layer_is_moe(e->cfg, l)) continue;
        const int32_t *slots = placement_slots(p, m++);
        for (int s = 0; s < p->shape.slots; s++) {
            struct placement_row *row = &rows[n++];
            snprintf(row->unit, sizeof row->unit, "%s", e->rank.unit_name);
            row->layer = l;
            row->slot = s;
            row->expert = slots[s];
            row->rank = placement_slot_rank(p, s);
        }
    }
    struct ctl_part part = {rows, n * sizeof *rows};
    enum status st = ctl_send(e->rank.ctl, 0, CTL_PLACES, &part, 1);
    free(rows);
    return st;
}

static enum status send_figures(struct engine *e)
{
    struct rank_row row;
    TRY(send_places(e));
    TRY(links_send(e));
    fill_rank_row(e, &row);
    size_t cells = (size_t)e->cfg->layers * (size_t)e->cfg->experts;
    struct ctl_part part[2] = {{&row, sizeof row},
                               {e->rank.model.expert_load, cells * sizeof(int64_t)}};
    TRY(ctl_send(e->rank.ctl, 0, CTL_STATS, part, 2));
    if (!e->job.trace[0]) return OK;
    const struct trace_buf *t = &e->rank.trace;
    struct ctl_part events[2] = {{e->rank.unit_name, sizeof e->rank.unit_name},
                                 {t->events, t->n * sizeof *t->events}};
    return ctl_send(e->rank.ctl, 0, CTL_TRACE, events, 2);
}

/* Polls until fn says so: other ranks end when they end. */
static enum status poll_until(struct engine *e, bool (*fn)(const struct engine *))
{
    while (!fn(e)) {
        watch_beat();
        TRY(ctl_poll(e->rank.ctl));
        TRY(e->rank.failed);
        if (e->rank.router) TRY(router_failure(e->rank.router));
        TRY(inquiry_poll(&e->rank));
        clock_sleep_us(300);
    }
    return OK;
}

static bool all_reported(const struct engine *e)
{
    return router_stats_received(e->rank.router) == e->world_size;
}

static bool all_sent(const struct engine *e)
{
    return ctl_outstanding(e->rank.ctl) == 0;
}

static enum status pending_id(void *ctx, int64_t index, char *buf)
{
    struct engine *e = ctx;
    struct request q;
    memset(&q, 0, sizeof q);
    enum status st = token_file_get(e->tokens, index, &q);
    memcpy(buf, q.custom_id, sizeof q.custom_id);
    request_free(&q);
    return st;
}

static enum status build(struct engine *e, bool complete, struct summary *summary)
{
    enum { MAX_ATTRS = 48 };
    struct results_attr attrs[MAX_ATTRS];
    char end_utc[24] = "", hits[2][24];
    struct router_order_report order = router_order_report(e->rank.router);
    clock_utc(end_utc);
    int n = 0;
    attrs[n++] = (struct results_attr){"program_version", e->setup->version};
    attrs[n++] = (struct results_attr){"argv", e->setup->argv};
    attrs[n++] = (struct results_attr){"job_yaml", e->yaml};
    attrs[n++] = (struct results_attr){"hosts", e->hosts};
    attrs[n++] = (struct results_attr){"isa", e->kernels.name};
    attrs[n++] = (struct results_attr){"transport", e->transports};
    attrs[n++] = (struct results_attr){"start_utc", e->start_utc};
    attrs[n++] = (struct results_attr){"end_utc", end_utc};
    attrs[n++] = (struct results_attr){"order", order.by_prefix ? "prefix" : "file"};
    if (order.by_prefix) {
        snprintf(hits[0], sizeof hits[0], "%lld", (long long)order.hit_as_sent);
        snprintf(hits[1], sizeof hits[1], "%lld", (long long)order.hit_in_file);
        attrs[n++] = (struct results_attr){"modelled_hit_tokens_as_sent", hits[0]};
        attrs[n++] = (struct results_attr){"modelled_hit_tokens_in_file_order", hits[1]};
    }
    for (int i = 0; i < e->setup->n_attrs && n < MAX_ATTRS; i++) attrs[n++] = e->setup->attrs[i];
    struct journal_build b = {
        .path = e->job.results,
        .complete = complete,
        .id_bytes = complete ? router_id_bytes(e->rank.router) : RESULTS_ID_MAX,
        .pending_id = pending_id,
        .pending_ctx = e,
        .moved = watch_move,
        .attrs = attrs,
        .n_attrs = (size_t)n,
        .prices = e->prices,
    };
    return journal_build_results(e->journal, &b, summary);
}

enum status finish_snapshot(void *engine)
{
    struct summary *summary = malloc(sizeof *summary);
    if (!summary) return error_set(ERR_RESOURCE, "no memory for a partial results file");
    summary_init(summary);
    enum status st = build(engine, false, summary);
    free(summary);
    return st;
}

static enum status end_attempt(struct engine *e, const char *outcome)
{
    struct attempt_row a;
    memset(&a, 0, sizeof a);
    clock_utc(a.end_utc);
    snprintf(a.outcome, sizeof a.outcome, "%s", outcome);
    a.wall_s = rank_now(&e->rank) - e->resumed_s;
    a.gpu_s = a.wall_s * e->world_size;
    a.requests_finished = journal_finished(e->journal);
    a.prefill_tokens = router_prefill_tokens(e->rank.router);
    a.decode_tokens = router_decode_tokens(e->rank.router);
    return journal_attempt_end(e->journal, &a);
}

/* The disk tier in one line, all ranks together. */
static void log_disk(const struct engine *e, const struct summary *s)
{
    const struct rank_row *rows = router_rank_rows(e->rank.router);
    struct rank_row sum = {0};
    if (!e->job.kv.disk.dir[0]) return;
    for (int i = 0; i < e->world_size; i++) {
        sum.disk_hit_pages += rows[i].disk_hit_pages;
        sum.disk_miss_pages += rows[i].disk_miss_pages;
        sum.disk_bad_pages += rows[i].disk_bad_pages;
        sum.disk_written_pages += rows[i].disk_written_pages;
        sum.disk_dropped_pages += rows[i].disk_dropped_pages;
        sum.disk_read_bytes += rows[i].disk_read_bytes;
        sum.disk_written_bytes += rows[i].disk_written_bytes;
    }
    log_info("disk cache %s: prompt tokens from memory %lld, from disk %lld; pages read %lld "
             "(%.3f GB), not there %lld, of these bad %lld; written %lld (%.3f GB), dropped %lld",
             e->job.kv.disk.dir, (long long)(s->hit_tokens - s->hit_tokens_disk),
             (long long)s->hit_tokens_disk, (long long)sum.disk_hit_pages,
             1e-9 * (double)sum.disk_read_bytes, (long long)sum.disk_miss_pages,
             (long long)sum.disk_bad_pages, (long long)sum.disk_written_pages,
             1e-9 * (double)sum.disk_written_bytes, (long long)sum.disk_dropped_pages);
}

static enum status write_results(struct engine *e)
{
    TRY(lock_check(&e->lock));
    TRY(journal_expert_load(e->journal, e->cfg->layers, e->cfg->experts,
                            router_expert_load(e->rank.router)));
    TRY(end_attempt(e, "complete"));
    TRY(journal_sync(e->journal));
    struct summary *summary = malloc(sizeof *summary);
    if (!summary) return error_set(ERR_RESOURCE, "no memory for the summary");
    summary_init(summary);
    enum status st = build(e, true, summary);
    struct router_order_report order = router_order_report(e->rank.router);
    summary->by_prefix = order.by_prefix;
    summary->hit_in_file = order.hit_in_file;
    summary->hit_as_sent = order.hit_as_sent;
    if (st == OK) {
        log_disk(e, summary);
        summary_print(summary, e->job.results, stdout);
        if (!summary->valid) st = error_set(ERR_INVALID, "INVALID: %s", summary->reason);
    }
    free(summary);
    return st;
}

enum status finish_job(struct engine *e)
{
    watch_owes(false);
    watch_phase(WATCH_RESULTS);
    watch_point("results");
    rank_disk_close(&e->rank);
    TRY(send_figures(e));
    watch_wait(e->world_rank == 0 ? WATCH_FIGURES : WATCH_LAST);
    if (e->world_rank != 0) return poll_until(e, all_sent);
    TRY(poll_until(e, all_reported));
    watch_wait(WATCH_NO);
    TRY(router_close_trace(e->rank.router));
    return write_results(e);
}

enum status finish_partial(struct engine *e)
{
    if (e->world_rank != 0 || !e->journal || !e->rank.router) return OK;
    if (lock_lost(&e->lock)) return OK; /* another job writes these files now */
    TRY(end_attempt(e, "interrupted"));
    TRY(journal_sync(e->journal));
    (void)router_flush_responses(e->rank.router); /* they may be what has failed */
    if (!interrupt_hurried()) TRY(finish_snapshot(e));
    log_info("%lld finished requests are kept in %s", (long long)journal_finished(e->journal),
             e->job.results);
    return OK;
}

void finish_free(struct engine *e)
{
    struct rank *r = &e->rank;
    router_free(r->router);
    if (e->journal) (void)journal_close(e->journal);
    if (e->tokens) token_file_close(e->tokens);
    free(e->yaml);
    free(e->expert_load);
    free(e->trace_events);
    for (int i = 0; i < MODEL_MICROBATCHES; i++) free(r->row_seq[i]);
    free(r->pick_rows);
    sampler_free(r->sampler);
    if (r->model.lane) {
        forward_free(&r->forward);
        schedule_free(&r->sched_prefill);
        schedule_free(&r->sched_decode);
        model_free(&r->model);
    }
    for (int l = 0; r->replica && l < e->cfg->layers; l++) replica_table_free(&r->replica[l]);
    free(r->replica);
    rank_disk_free(r);
    if (r->use_prefix) prefix_index_free(&r->prefix);
    page_pool_free(&r->pool);
    if (r->placement.slot_expert) placement_free(&r->placement);
    weights_free(&r->weights);
    if (r->lane.dev) {
        r->lane.dev->free(r->lane.dev, e->expert_memory);
        r->lane.dev->free(r->lane.dev, e->cache);
        lane_free(&r->lane);
    }
    checkpoint_close(e->ck);
    node_unshare(&e->weights);
    node_unshare(&e->listing);
}
