/* plan_print.c - the table that `moebatch plan` prints. Reads struct plan, decides nothing. */
#include "plan/plan.h"

#include "config/expert_slots.h"

#include <math.h>
#include <string.h>

/* "12.3 MiB" in a column, "-" for none. */
static const char *bytes(char buf[24], double v)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int u = 0;
    if (v == 0) return "-";
    while (fabs(v) >= 1024 && u < 4) v /= 1024, u++;
    snprintf(buf, 24, u == 0 ? "%.0f %s" : "%.2f %s", v, unit[u]);
    return buf;
}

static void print_head(const struct plan *p, FILE *out)
{
    const struct model_config *c = p->model;
    char type[64];
    snprintf(type, sizeof type, "%s", c->model_type);
    fprintf(out, "# %s: %s, %d layers (%d MoE), %d experts, top %d; %s weights, isa %s\n",
            p->job.model, type, c->layers, model_config_moe_layers(c), c->experts, c->topk,
            p->experts_fp8 ? "FP8"
            : c->dtype[0]  ? c->dtype
                           : "unquantised",
            p->isa);
    fprintf(out, "# %d rank%s on %d host%s of %d, %d thread%s a rank, %d core%s a host%s\n",
            p->ranks, p->ranks > 1 ? "s" : "", p->hosts, p->hosts > 1 ? "s" : "", p->ranks_per_host,
            p->job.threads_per_rank, p->job.threads_per_rank > 1 ? "s" : "", p->cores_per_host,
            p->cores_per_host > 1 ? "s" : "",
            (int64_t)p->ranks_per_host * p->job.threads_per_rank > p->cores_per_host
                ? ": more threads than cores"
                : "");
}

/* ---- ranks ----------------------------------------------------------------------------------- */

static void print_unit(const struct plan *p, const struct plan_role *r, int unit, int units,
                       FILE *out)
{
    char name[40], ranks[40], hosts[40], chunk[16] = "-", batch[16] = "-";
    const struct job_role *j = r->job;
    const char *role = rank_role_name(r->role);
    int first = rank_map_first(&p->job, r->role, unit), last = first + units * j->ep - 1;
    int h0 = first / p->ranks_per_host, h1 = last / p->ranks_per_host;
    snprintf(name, sizeof name, units > 1 ? "%s%d-%d" : "%s%d", role, unit, unit + units - 1);
    snprintf(ranks, sizeof ranks, last > first ? "%d-%d" : "%d", first, last);
    snprintf(hosts, sizeof hosts, h1 > h0 ? "%d-%d" : "%d", h0, h1);
    if (r->role != RANK_DECODE) snprintf(chunk, sizeof chunk, "%d", j->chunk_tokens);
    if (r->role != RANK_PREFILL) snprintf(batch, sizeof batch, "%d", j->max_batch);
    fprintf(out, "  %-14s %10s %8s %6d %6d %10d %6d %8s %6s %4d %8s\n", name, ranks, hosts, j->ep,
            rank_map_nodes(&p->job, r->role, unit, p->ranks_per_host), j->redundant_experts,
            r->slots, chunk, batch, j->microbatches,
            j->overlap && j->microbatches > 1 ? "yes" : "no");
}

static void print_ranks(const struct plan *p, FILE *out)
{
    enum { EACH = 8 };
    fprintf(out, "\n# %-14s %10s %8s %6s %6s %10s %6s %8s %6s %4s %8s\n", "unit", "ranks", "hosts",
            "EP", "nodes", "redundant", "slots", "chunk", "batch", "mbs", "overlap");
    for (int i = 0; i < p->roles; i++) {
        const struct plan_role *r = &p->role[i];
        if (r->job->units <= EACH)
            for (int u = 0; u < r->job->units; u++) print_unit(p, r, u, 1, out);
        else
            print_unit(p, r, 0, r->job->units, out);
    }
    if (p->job.ranks_per_node > 0)
        fprintf(out, "  (nodes: virtual, %d consecutive ranks of a unit)\n", p->job.ranks_per_node);
    for (int i = 0; i < p->roles && p->model->experts; i++) {
        const struct job_role *j = p->role[i].job;
        char list[160];
        expert_slots_redundant(p->model->experts, j->ep, list, sizeof list);
        fprintf(out, "  legal redundant experts at EP %d: %s\n", j->ep, list);
        if (i > 0 && j->redundant_experts == p->role[0].job->redundant_experts) break;
        expert_slots_list(p->model->experts, j->redundant_experts, list, sizeof list);
        fprintf(out, "  legal EP sizes with %d + %d redundant = %d slots: %s\n", p->model->experts,
                j->redundant_experts, p->model->experts + j->redundant_experts, list);
    }
}

/* ---- memory ---------------------------------------------------------------------------------- */

enum { LINES = 14 };

static const char *const line_names[LINES] = {
    "experts' weights",
    "KV pages",
    "index of the KV pages",
    "activations of a step",
    "context of the longest prompt",
    "rows of the routed experts",
    "receive: normal all-to-all",
    "receive: low-latency slots",
    "send and return: COMBINE rows",
    "forwarding into the node",
    "all-to-all: counts, packed rows",
    "requests under way",
    "program, MPI",
    "a rank",
};

/* The bytes behind those names. */
static void fill_lines(const struct plan_role *r, double out[LINES])
{
    const struct rank_memory *m = &r->memory;
    const struct model_memory *act = &r->activations;
    const struct ep_memory *ep = &r->ep;
    double all[LINES] = {
        m->experts,
        m->kv,
        m->index,
        (double)act->start,
        (double)act->context,
        (double)act->routed,
        (double)ep->receive,
        (double)ep->fixed,
        (double)ep->combine,
        (double)ep->rings,
        (double)(ep->control + ep->heap),
        m->requests,
        m->program,
        memory_sum(m) - m->shared,
    };
    memcpy(out, all, sizeof all);
}

static void print_rank_memory(const struct plan *p, FILE *out)
{
    char buf[24];
    double value[2][LINES];
    fprintf(out, "\n# %-32s", "memory of a rank");
    for (int i = 0; i < p->roles; i++) {
        fprintf(out, " %14s", rank_role_name(p->role[i].role));
        fill_lines(&p->role[i], value[i]);
    }
    for (int k = 0; k < LINES; k++) {
        fprintf(out, "\n  %-32s", line_names[k]);
        for (int i = 0; i < p->roles; i++) fprintf(out, " %14s", bytes(buf, value[i][k]));
    }
    fprintf(out, "\n  rank 0 also keeps %s of the token file's index and the journal's",
            bytes(buf, p->tokens.index_bytes));
    fprintf(out,
            "\n  (buffers take memory as they fill; routed rows at an even load of experts)\n");
}

static void print_host_memory(const struct plan *p, FILE *out)
{
    char a[24], b[24];
    fprintf(out, "\n# weights that the ranks of a host share\n");
    for (int i = 0; i < PART_COUNT; i++)
        if (i == PART_ATTENTION && p->absorbed_bytes > 0)
            fprintf(out, "  %-32s %14s of this in absorbed form, for decode: %s\n",
                    tensor_part_name((enum tensor_part)i), bytes(a, p->part_bytes[i]),
                    bytes(b, p->absorbed_bytes));
        else if (i == PART_EMBED)
            fprintf(out, "  %-32s %14s read from the checkpoint's files\n", "embedding", "-");
        else if (p->part_bytes[i] > 0)
            fprintf(out, "  %-32s %14s\n", tensor_part_name((enum tensor_part)i),
                    bytes(a, p->part_bytes[i]));
    fprintf(out, "  %-32s %14s\n", "together", bytes(a, p->host.shared));
    fprintf(out, "\n# %-32s %14s",
            p->hosts > 1 ? "memory of the fullest host" : "memory of the host",
            bytes(a, memory_sum(&p->host)));
    if (p->host_free > 0)
        fprintf(out, " of %s free: %s", bytes(a, p->host_free),
                memory_sum(&p->host) <= p->host_free ? "fits" : "DOES NOT FIT");
    fputc('\n', out);
}

/* ---- requests -------------------------------------------------------------------------------- */

static void print_capacity(const struct plan *p, FILE *out)
{
    char buf[24];
    int pt = p->job.kv.page_tokens, least = p->role[0].pages;
    fprintf(out, "\n# %-12s %10s %14s %16s %18s %12s\n", "KV capacity", "pages", "tokens a rank",
            "tokens in all", "requests at once", "max_batch");
    for (int i = 0; i < p->roles; i++) {
        const struct plan_role *r = &p->role[i];
        char batch[24] = "-";
        int64_t ranks = (int64_t)r->job->units * r->job->ep, tokens = (int64_t)r->pages * pt;
        if (r->role != RANK_PREFILL)
            snprintf(batch, sizeof batch, "%lld", (long long)ranks * r->job->max_batch);
        if (r->pages < least) least = r->pages;
        fprintf(out, "  %-12s %10d %14lld %16lld %18.0f %12s\n", rank_role_name(r->role), r->pages,
                (long long)tokens, (long long)(tokens * ranks), plan_requests_held(p, r), batch);
    }
    fprintf(out, "  a page: %d tokens, %s%s\n", pt,
            bytes(buf, (double)memory_page_bytes(&p->job, p->model)),
            p->pages_cut ? "; pages are limited by memory" : "");
    int64_t beyond = plan_tokens_beyond(&p->tokens, (int64_t)least * pt);
    if (beyond > 0)
        fprintf(out, "  %lld request%s would fail: longer than the %lld tokens of a rank's pages\n",
                (long long)beyond, beyond > 1 ? "s" : "", (long long)least * pt);
}

static void print_tokens(const struct plan *p, FILE *out)
{
    const struct plan_tokens *t = &p->tokens;
    double n = (double)(t->requests - t->bad);
    fprintf(out, "\n# %s: %lld requests%s\n", p->job.tokens, (long long)t->requests,
            t->step > 1 ? ", figures from a sample" : "");
    if (t->step > 1) fprintf(out, "  every %lldth was read\n", (long long)t->step);
    if (t->bad > 0)
        fprintf(out, "  %lld cannot run, the first: %s\n", (long long)t->bad, t->first_error);
    if (n <= 0) return;
    fprintf(out, "  prompts  %14.0f tokens, mean %.1f, longest %d\n", t->prompt, t->prompt / n,
            t->longest_prompt);
    if (t->cached > 0)
        fprintf(out, "  of these %14.0f tokens repeat an earlier prompt's full pages (%.1f %%)\n",
                t->cached, 100 * t->cached / t->prompt);
    fprintf(out, "  answers  %14.0f tokens at most, mean %.1f; longest request %d\n", t->output,
            t->output / n, t->longest);
}

void plan_print(const struct plan *p, FILE *out)
{
    print_head(p, out);
    print_ranks(p, out);
    print_rank_memory(p, out);
    print_host_memory(p, out);
    print_capacity(p, out);
    print_tokens(p, out);
}
