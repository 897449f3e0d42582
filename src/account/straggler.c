/* straggler.c - see straggler.h. */
#include "account/straggler.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A link is called slow when its messages take this much longer than on the others. */
#define SLOWER 1.3

static enum status grow(void **rows, size_t *cap, size_t need, size_t bytes)
{
    if (need <= *cap) return OK;
    size_t n = need * 2;
    void *more = realloc(*rows, n * bytes);
    if (!more) return error_set(ERR_RESOURCE, "no memory for %zu rows of link statistics", n);
    *rows = more;
    *cap = n;
    return OK;
}

static void start_attempt(struct straggler *s, int32_t attempt)
{
    if (attempt != s->attempt) s->n_ranks = s->n_links = 0;
    s->attempt = attempt;
}

enum status straggler_add_ranks(struct straggler *s, const struct rank_row *rows, size_t n)
{
    if (n == 0) return OK;
    start_attempt(s, rows[0].attempt);
    TRY(grow((void **)&s->ranks, &s->cap_ranks, s->n_ranks + n, sizeof *rows));
    memcpy(s->ranks + s->n_ranks, rows, n * sizeof *rows);
    s->n_ranks += n;
    return OK;
}

enum status straggler_add_links(struct straggler *s, const struct link_row *rows, size_t n)
{
    if (n == 0) return OK;
    start_attempt(s, rows[0].attempt);
    TRY(grow((void **)&s->links, &s->cap_links, s->n_links + n, sizeof *rows));
    memcpy(s->links + s->n_links, rows, n * sizeof *rows);
    s->n_links += n;
    return OK;
}

void straggler_free(struct straggler *s)
{
    free(s->ranks);
    free(s->links);
    memset(s, 0, sizeof *s);
}

/* ---- one unit -------------------------------------------------------------------------------- */

struct unit {
    const struct straggler *s;
    const char *name;
    const struct rank_row **rank; /* [n] */
    double *cost;                 /* [n] s that the mean other rank waits for it to send */
    double *error;                /* [n] s its standard error, ranks taken to see the same */
    double *scratch;              /* [n] */
    int n;
    double step_s; /* mean time in steps */
};

static int member(const struct unit *u, int rank)
{
    for (int i = 0; i < u->n; i++)
        if (u->rank[i]->rank == rank) return i;
    return -1;
}

static bool of_unit(const struct unit *u, const char *name)
{
    return strncmp(u->name, name, RESULTS_UNIT_MAX) == 0;
}

static int ascending(const void *a, const void *b)
{
    double x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* Median of value(i) over all members but one. */
static double median_but(struct unit *u, int but, double (*value)(const struct unit *, int))
{
    int n = 0;
    for (int i = 0; i < u->n; i++)
        if (i != but) u->scratch[n++] = value(u, i);
    qsort(u->scratch, (size_t)n, sizeof *u->scratch, ascending);
    return n % 2 ? u->scratch[n / 2] : 0.5 * (u->scratch[n / 2 - 1] + u->scratch[n / 2]);
}

static double cost_of(const struct unit *u, int i)
{
    return u->cost[i];
}

static double compute_of(const struct unit *u, int i)
{
    return u->rank[i]->compute_s;
}

static void unit_fill(struct unit *u)
{
    u->n = 0;
    u->step_s = 0;
    for (size_t i = 0; i < u->s->n_ranks; i++) {
        const struct rank_row *r = &u->s->ranks[i];
        if (!of_unit(u, r->unit)) continue;
        u->cost[u->n] = u->error[u->n] = 0;
        u->rank[u->n++] = r;
        u->step_s += r->compute_s + r->exposed_comm_s;
    }
    u->step_s /= u->n;
    for (size_t i = 0; i < u->s->n_links; i++) {
        const struct link_row *l = &u->s->links[i];
        int src = of_unit(u, l->unit) ? member(u, l->src) : -1;
        if (src < 0 || u->n < 2) continue;
        u->cost[src] += (double)l->late_s / (u->n - 1);
        u->error[src] += (double)l->late_error_s / (u->n - 1);
    }
}

static double judge_rank(struct unit *u, char text[STRAGGLER_TEXT])
{
    int worst = 0;
    for (int i = 1; i < u->n; i++)
        if (u->cost[i] > u->cost[worst]) worst = i;
    double usual = median_but(u, worst, cost_of), compute = median_but(u, worst, compute_of);
    const struct rank_row *r = u->rank[worst];
    double share = (u->cost[worst] - usual) / u->step_s;
    if (share < STRAGGLER_SHARE || u->cost[worst] - usual < 2 * u->error[worst]) return 0;
    snprintf(text, STRAGGLER_TEXT,
             "rank %d on %.63s (%.15s) computes slowly: the others wait %.1f %% of their step time "
             "for it to send (%.2f s; %.2f s for the median rank); its own computing takes %.2f x "
             "the median",
             r->rank, r->host, r->unit, 100 * share, u->cost[worst], usual,
             compute > 0 ? r->compute_s / compute : 1);
    return share;
}

/* ---- links ----------------------------------------------------------------------------------- */

/* What the links of one node of a unit carried, and all others. */
struct traffic {
    double transfer_s, latency_s, rest_latency_s;
    int64_t messages, rest_messages;
    int nodes;
};

static struct traffic traffic_of(const struct unit *u, int node)
{
    struct traffic t = {0};
    for (int i = 0; i < u->n; i++) {
        bool first = true;
        for (int j = 0; j < i; j++) first &= u->rank[j]->node != u->rank[i]->node;
        t.nodes += first;
    }
    for (size_t i = 0; i < u->s->n_links; i++) {
        const struct link_row *l = &u->s->links[i];
        int src = of_unit(u, l->unit) ? member(u, l->src) : -1, dst = member(u, l->dst);
        if (src < 0 || dst < 0 || u->rank[src]->node == u->rank[dst]->node) continue;
        double latency = 1e-3 * (double)l->latency_mean_ms * (double)l->latencies;
        if (u->rank[src]->node == node || u->rank[dst]->node == node) {
            t.transfer_s += (double)l->transfer_s / u->n;
            t.latency_s += latency;
            t.messages += l->latencies;
        } else {
            t.rest_latency_s += latency;
            t.rest_messages += l->latencies;
        }
    }
    if (t.messages > 0) t.latency_s /= (double)t.messages;
    if (t.rest_messages > 0) t.rest_latency_s /= (double)t.rest_messages;
    return t;
}

static double judge_links(const struct unit *u, char text[STRAGGLER_TEXT])
{
    int worst = -1;
    struct traffic w = {0};
    for (int i = 0; i < u->n; i++) {
        struct traffic t = traffic_of(u, u->rank[i]->node);
        if (worst >= 0 && t.latency_s <= w.latency_s) continue;
        worst = i;
        w = t;
    }
    double share = w.transfer_s / u->step_s;
    bool apart = w.rest_messages > 0;
    if (w.nodes < 2 || share < STRAGGLER_SHARE) return 0;
    if (apart && w.latency_s < SLOWER * w.rest_latency_s) return 0;
    if (apart)
        snprintf(text, STRAGGLER_TEXT,
                 "the link of node %d, %.63s (%.15s), is slow: ranks wait %.1f %% of their step "
                 "time for its transfers; a message takes %.2f ms, %.2f ms over the other links",
                 u->rank[worst]->node, u->rank[worst]->host, u->name, 100 * share,
                 1e3 * w.latency_s, 1e3 * w.rest_latency_s);
    else
        snprintf(text, STRAGGLER_TEXT,
                 "the only link between the nodes of %.15s: ranks wait %.1f %% of their step time "
                 "for its transfers; a message takes %.2f ms",
                 u->name, 100 * share, 1e3 * w.latency_s);
    return share;
}

enum status straggler_find(const struct straggler *s, char rank[STRAGGLER_TEXT],
                           char link[STRAGGLER_TEXT])
{
    double worst_rank = 0, worst_link = 0;
    struct unit u = {.s = s};
    rank[0] = link[0] = '\0';
    u.rank = malloc((s->n_ranks + 1) * sizeof *u.rank);
    u.cost = malloc((s->n_ranks + 1) * sizeof *u.cost);
    u.error = malloc((s->n_ranks + 1) * sizeof *u.error);
    u.scratch = malloc((s->n_ranks + 1) * sizeof *u.scratch);
    bool ok = u.rank && u.cost && u.error && u.scratch;
    for (size_t i = 0; i < s->n_ranks && ok; i++) {
        if (s->ranks[i].local != 0) continue;
        char text[STRAGGLER_TEXT];
        u.name = s->ranks[i].unit;
        unit_fill(&u);
        if (u.n < 2 || u.step_s <= 0) continue;
        double share = judge_rank(&u, text);
        if (share > worst_rank) memcpy(rank, text, sizeof text);
        if (share > worst_rank) worst_rank = share;
        share = judge_links(&u, text);
        if (share > worst_link) memcpy(link, text, sizeof text);
        if (share > worst_link) worst_link = share;
    }
    free(u.rank);
    free(u.cost);
    free(u.error);
    free(u.scratch);
    return ok ? OK : error_set(ERR_RESOURCE, "no memory to look for the slowest rank");
}
