/* links.c - see links.h. */
#include "engine/links.h"

#include "core/clock.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUND_TRIPS = 16, CLOCK_TAG = 9 };

/* Rank 0 asks a host's first rank for its time; how far it is ahead, from the quickest trip. */
static int64_t ask_clock(int peer)
{
    int64_t best = INT64_MAX, ahead = 0;
    for (int i = 0; i < ROUND_TRIPS; i++) {
        int64_t theirs = 0, begin = clock_now_ns() / 1000;
        MPI_Send(&theirs, 1, MPI_INT64_T, peer, CLOCK_TAG, MPI_COMM_WORLD);
        MPI_Recv(&theirs, 1, MPI_INT64_T, peer, CLOCK_TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        int64_t end = clock_now_ns() / 1000;
        if (end - begin >= best) continue;
        best = end - begin;
        ahead = theirs - (begin + end) / 2;
    }
    return ahead;
}

static void tell_clock(void)
{
    for (int i = 0; i < ROUND_TRIPS; i++) {
        int64_t mine;
        MPI_Recv(&mine, 1, MPI_INT64_T, 0, CLOCK_TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        mine = clock_now_ns() / 1000;
        MPI_Send(&mine, 1, MPI_INT64_T, 0, CLOCK_TAG, MPI_COMM_WORLD);
    }
}

enum status links_clocks(struct engine *e)
{
    if (e->node.count == 1) return OK;
    int first = e->world_rank;
    size_t n = (size_t)e->world_size;
    int *firsts = malloc(n * sizeof *firsts);
    int64_t *ahead = calloc(n, sizeof *ahead); /* of rank 0 */
    enum status st = firsts && ahead ? OK : error_set(ERR_RESOURCE, "no memory for clocks");
    st = agree(MPI_COMM_WORLD, st);
    if (st == OK) {
        MPI_Bcast(&first, 1, MPI_INT, 0, e->node.comm);
        MPI_Allgather(&first, 1, MPI_INT, firsts, 1, MPI_INT, MPI_COMM_WORLD);
        if (e->world_rank == first && first != 0) tell_clock();
        for (int i = 1; i < e->world_size && e->world_rank == 0; i++)
            ahead[i] = firsts[i] == i ? ask_clock(i) : ahead[firsts[i]];
        MPI_Bcast(ahead, (int)n, MPI_INT64_T, 0, MPI_COMM_WORLD);
        int64_t mine = ahead[e->world_rank];
        for (size_t i = 0; i < n; i++) ahead[i] -= mine;
        if (e->rank.ep) ep_set_clocks(e->rank.ep, ahead + e->world_rank - e->rank.local);
    }
    free(firsts);
    free(ahead);
    return st;
}

static void fill_row(const struct engine *e, const struct ep_link *l, int source, double scale,
                     struct link_row *row)
{
    const struct rank *r = &e->rank;
    snprintf(row->unit, sizeof row->unit, "%s", r->unit_name);
    row->attempt = e->attempt;
    row->src = r->world_rank - r->local + source;
    row->dst = r->world_rank;
    row->waits = (int32_t)l->waits;
    row->last = (int32_t)l->last;
    row->late_s = (float)(l->late_s * scale);
    row->late_error_s = (float)(sqrt(l->late_s2) * scale);
    row->transfer_s = (float)(l->transfer_s * scale);
    row->latencies = (int32_t)l->latencies;
    row->latency_mean_ms = (float)(l->latencies ? 1e3 * l->latency_s / (double)l->latencies : 0);
    row->latency_max_ms = (float)(1e3 * l->latency_max_s);
}

enum status links_send(struct engine *e)
{
    double sampled_s = 0;
    const struct ep_link *link = e->rank.ep ? ep_links(e->rank.ep, &sampled_s) : NULL;
    /* The sample says how the time that this rank waited is shared out. */
    double scale = sampled_s > 0 ? e->rank.stats.exposed_s / sampled_s : 0;
    int n = e->rank.cfg->ep, rows = 0;
    if (!link) return OK;
    struct link_row *row = calloc((size_t)n, sizeof *row);
    if (!row) return error_set(ERR_RESOURCE, "no memory for the table of links");
    for (int i = 0; i < n; i++)
        if (link[i].last > 0 || link[i].latencies > 0)
            fill_row(e, &link[i], i, scale, &row[rows++]);
    struct ctl_part part = {row, (size_t)rows * sizeof *row};
    enum status st = rows ? ctl_send(e->rank.ctl, 0, CTL_LINKS, &part, 1) : OK;
    free(row);
    return st;
}
