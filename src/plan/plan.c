/* plan.c - see plan.h. */
#include "plan/plan.h"

#include "account/results.h"
#include "attention/attention.h"
#include "config/installed.h"
#include "config/prices.h"
#include "core/cpu.h"
#include "core/host_memory.h"
#include "kvcache/page_pool.h"
#include "model/kernels_compose.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static enum status open_model(struct plan *p)
{
    TRY(checkpoint_open(p->job.model, &p->ck));
    TRY(checkpoint_validate(p->ck));
    const struct model_config *c = p->model = checkpoint_config(p->ck);
    return attention_check_dims(c->dim_nope, c->dim_rope, c->dim_v, c->kv_lora);
}

static enum status resolve(const struct plan_setup *s, struct plan *p)
{
    int asked = job_ranks(&p->job);
    p->ranks = s->ranks > 0 ? s->ranks : asked > 0 ? asked : 1;
    p->ranks_per_host =
        s->ranks_per_host > 0 && s->ranks_per_host < p->ranks ? s->ranks_per_host : p->ranks;
    p->hosts = (p->ranks + p->ranks_per_host - 1) / p->ranks_per_host;
    p->cores_per_host = s->cores_per_host > 0 ? s->cores_per_host : cpu_count();
    struct job_facts facts = {
        .ranks = p->ranks,
        .ranks_on_node = p->ranks_per_host,
        .cores_per_node = p->cores_per_host,
        .experts = p->model->experts,
        .n_group = p->model->n_group,
    };
    return job_resolve(&p->job, &facts);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static enum status plan_role(struct plan *p, const struct kernels *kernels, struct plan_role *r)
{
    struct weights w;
    r->job = rank_map_role(&p->job, r->role);
    r->slots = (p->model->experts + r->job->redundant_experts) / r->job->ep;
    for (int u = 0; u < r->job->units; u++) {
        int nodes = rank_map_nodes(&p->job, r->role, u, p->ranks_per_host);
        if (nodes > r->nodes) r->nodes = nodes;
    }
    enum status st = weights_plan(p->ck, kernels, (enum numerics)p->job.numerics, r->slots, &w);
    struct memory_facts facts = {r->role, r->nodes, p->tokens.longest_prompt, &w};
    if (st == OK) st = memory_of_rank(&p->job, p->model, &facts, &r->memory);
    if (st == OK) st = memory_ep(&p->job, p->model, &facts, &r->ep);
    if (st == OK) {
        r->activations = memory_activations(&p->job, p->model, &facts);
        p->experts_fp8 = w.experts_fp8;
        p->absorbed_bytes = (double)w.absorbed_bytes;
        for (int i = 0; i < PART_COUNT; i++)
            p->part_bytes[i] = i == PART_ROUTED ? 0 : (double)w.part_bytes[i];
    }
    weights_free(&w);
    return st;
}

static void set_pages(struct plan *p, double share)
{
    for (int i = 0; i < p->roles; i++) {
        struct plan_role *r = &p->role[i];
        r->pages = r->pages * share > 1 ? (int)(r->pages * share) : 1;
        memory_set_pages(&p->job, p->model, r->role, r->pages, &r->memory);
        p->pages_cut |= p->job.kv.pages_per_rank == JOB_AUTO && r->pages < r->useful_pages;
    }
}

/* The hungriest host. Rank 0's has the token file's index too. */
static void find_fullest(struct plan *p)
{
    memset(&p->host, 0, sizeof p->host);
    for (int h = 0; h < p->hosts; h++) {
        struct rank_memory host = {0};
        for (int i = 0; i < p->roles; i++)
            memory_add(&host, &p->role[i].memory,
                       rank_map_on_host(&p->job, p->role[i].role, h, p->ranks_per_host));
        if (h == 0) host.requests += p->tokens.index_bytes;
        if (memory_sum(&host) <= memory_sum(&p->host)) continue;
        p->host = host;
        p->fullest = h;
    }
}

static enum status plan_memory(const struct plan_setup *s, struct plan *p)
{
    struct kernels kernels;
    int isa = 0;
    TRY(kernels_choose_isa(p->job.isa, &isa));
    TRY(kernels_compose((enum isa)isa, &kernels));
    p->isa = isa_name((enum isa)isa);
    p->host_free = s->host_bytes > 0   ? s->host_bytes
                   : s->host_bytes < 0 ? 0
                                       : (double)host_memory_available();
    p->roles = p->job.mixed.present ? 1 : 2;
    p->role[0].role = p->job.mixed.present ? RANK_MIXED : RANK_PREFILL;
    p->role[1].role = RANK_DECODE;
    for (int i = 0; i < p->roles; i++) {
        struct plan_role *r = &p->role[i];
        TRY(plan_role(p, &kernels, r));
        r->useful_pages = memory_useful_pages(&p->job, p->model, r->role);
        r->pages =
            memory_choose_pages(&p->job, p->model, r->role, p->host_free / p->ranks_per_host);
    }
    set_pages(p, 1);
    find_fullest(p);
    double share = memory_pages_share(&p->job, &p->host, p->host_free);
    if (share <= 0 || share >= 1) return OK;
    set_pages(p, share);
    find_fullest(p);
    return OK;
}

/* ---- life ------------------------------------------------------------------------------------ */

static enum status read_load(struct plan *p)
{
    size_t layers = (size_t)p->model->layers, experts = (size_t)p->model->experts;
    if (!p->job.experts.load[0]) return OK;
    p->expert_load = calloc(layers * (experts + 1), sizeof *p->expert_load);
    if (!p->expert_load) return error_set(ERR_RESOURCE, "no memory for the expert load");
    return results_read_expert_load(p->job.experts.load, p->model->layers, p->model->experts,
                                    p->expert_load);
}

static enum status make(const struct plan_setup *s, struct plan *p)
{
    TRY(open_model(p));
    TRY(resolve(s, p));
    (void)installed_find(p->job.prices, sizeof p->job.prices);
    TRY(prices_read(p->job.prices, &p->prices));
    TRY(read_load(p));
    TRY(plan_tokens_read(&p->job, p->model, &p->tokens));
    return plan_memory(s, p);
}

enum status plan_make(const struct plan_setup *setup, struct plan *p)
{
    memset(p, 0, sizeof *p);
    p->job = *setup->job;
    enum status st = make(setup, p);
    if (st != OK) plan_free(p);
    return st;
}

void plan_free(struct plan *p)
{
    plan_tokens_free(&p->tokens);
    free(p->expert_load);
    checkpoint_close(p->ck);
    memset(p, 0, sizeof *p);
}

enum status plan_check(const struct plan *p)
{
    char name[64];
    snprintf(name, sizeof name, p->hosts > 1 ? "host %d of %d" : "one host", p->fullest, p->hosts);
    int ranks = p->ranks - p->fullest * p->ranks_per_host;
    if (ranks > p->ranks_per_host) ranks = p->ranks_per_host;
    return memory_check(&p->host, name, ranks, p->role[p->roles - 1].pages, p->host_free);
}

double plan_requests_held(const struct plan *p, const struct plan_role *r)
{
    const struct plan_tokens *t = &p->tokens;
    double requests = (double)(t->requests - t->bad),
           answers = r->role == RANK_PREFILL ? 0 : t->output;
    if (requests <= 0) return 0;
    double tokens = (t->prompt + answers) / requests;
    double each = ceil(tokens / p->job.kv.page_tokens);
    return floor(r->pages / (each > 1 ? each : 1)) * r->job->units * r->job->ep;
}
