/* start.c - phases 1 and 2: job, model, inputs; ranks, units, kernels. */
#include "engine/start.h"

#include "attention/attention.h"
#include "config/installed.h"
#include "config/prices.h"
#include "core/clock.h"
#include "core/log.h"
#include "engine/binding.h"
#include "engine/resume.h"
#include "engine/watch.h"
#include "model/kernels_compose.h"
#include "moe/moe.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- 1. job, model, inputs ------------------------------------------------------------------ */

/* One rank of a host reads the checkpoint's headers; the others take its list from it. */
static enum status open_checkpoint(struct engine *e)
{
    void *blob = 0;
    size_t bytes = 0;
    enum status st = OK;
    bool first = e->node.rank == 0;
    if (first) st = checkpoint_open(e->job.model, &e->ck);
    if (first && st == OK) st = checkpoint_pack(e->ck, &blob, &bytes);
    st = agree(MPI_COMM_WORLD, st);
    if (st == OK) st = node_share(&e->node, "the list of tensors", bytes, &e->listing);
    if (first && st == OK) memcpy(e->listing.base, blob, bytes);
    free(blob);
    TRY(agree(MPI_COMM_WORLD, st));
    MPI_Barrier(e->node.comm);
    return first ? OK : checkpoint_unpack(e->listing.base, e->listing.bytes, &e->ck);
}

static enum status open_model(struct engine *e)
{
    TRY(agree(MPI_COMM_WORLD, open_checkpoint(e)));
    e->cfg = checkpoint_config(e->ck);
    /* The thorough check is one rank's work. */
    if (e->world_rank == 0) TRY(checkpoint_validate(e->ck));
    const struct model_config *c = e->cfg;
    return attention_check_dims(c->dim_nope, c->dim_rope, c->dim_v, c->kv_lora);
}

static enum status resolve(struct engine *e)
{
    struct job_facts facts = {
        .ranks = e->world_size,
        .ranks_on_node = e->node.max_size,
        .cores_per_node = binding_host_cpus(&e->node),
        .experts = e->cfg->experts,
        .n_group = e->cfg->n_group,
    };
    /* Looking at a job needs no ranks: it is shown as if mpirun had started what it asks for. */
    int asked = job_ranks(&e->job);
    if (e->setup->dump_config && e->world_size == 1 && asked > 0) facts.ranks = asked;
    TRY(job_resolve(&e->job, &facts));
    if (e->job.backend != JOB_AUTO && e->job.backend != JOB_BACKEND_CPU)
        return error_set(ERR_RESOURCE, "backend: %s is not in this build: use cpu or auto",
                         job_backend_name(e->job.backend));
    return OK;
}

/* Whether a file can be made there; nothing is made yet. */
static enum status check_folder(const char *key, const char *path)
{
    char folder[JOB_PATH_BYTES];
    const char *slash = strrchr(path, '/');
    if (!path[0]) return OK;
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path + 1) : 1,
             slash ? path : ".");
    if (access(folder, W_OK | X_OK) == 0) return OK;
    return error_set(ERR_INPUT, "%s: cannot write %s: folder %s: %s", key, path, folder,
                     strerror(errno));
}

/* An interrupted job's journal is continued or thrown away only on request. */
static enum status check_journal(const struct job *job, bool replace)
{
    char *dir = journal_dir_of(job->results), first[JOB_PATH_BYTES + 64];
    if (!dir) return error_set(ERR_RESOURCE, "no memory to look for a journal");
    snprintf(first, sizeof first, "%s/000000.seg", dir);
    bool there = access(first, F_OK) == 0;
    free(dir);
    if (!there || replace) return OK;
    return error_set(ERR_INPUT,
                     "results: %s has the journal of an earlier job: pass --resume to go on with "
                     "it, --force to start anew, or choose another name",
                     job->results);
}

/* A mistyped path shows now, not after the weights have been read. */
static enum status check_paths(const struct job *job)
{
    bool replace = job->force || resume_wanted(job);
    TRY(results_check_path(job->results, replace));
    TRY(check_journal(job, replace));
    TRY(check_folder("responses", job->responses));
    TRY(check_folder("trace", job->trace));
    if (access(job->tokens, R_OK) == 0) return OK;
    return error_set(ERR_INPUT, "tokens: cannot open %s: %s", job->tokens, strerror(errno));
}

static enum status read_inputs(struct engine *e)
{
    if (e->world_rank != 0 || e->setup->dump_config) return OK;
    TRY(check_paths(&e->job));
    (void)installed_find(e->job.prices, sizeof e->job.prices);
    TRY(prices_read(e->job.prices, &e->prices));
    TRY(resume_peek(e));
    if (!e->job.experts.load[0]) return OK;
    return results_read_expert_load(e->job.experts.load, e->cfg->layers, e->cfg->experts,
                                    e->expert_load);
}

enum status start_job(struct engine *e)
{
    e->job = *e->setup->job;
    watch_point("start");
    TRY(agree(MPI_COMM_WORLD, open_model(e)));
    TRY(agree(MPI_COMM_WORLD, resolve(e)));
    size_t cells = (size_t)e->cfg->layers * (size_t)(e->cfg->experts + 1);
    enum status st = OK;
    if (e->job.experts.load[0]) {
        e->expert_load = calloc(cells, sizeof *e->expert_load);
        if (!e->expert_load) st = error_set(ERR_RESOURCE, "no memory for the expert load");
    }
    if (st == OK) st = read_inputs(e);
    TRY(agree(MPI_COMM_WORLD, st));
    MPI_Bcast(&e->job.isa, 1, MPI_INT, 0, MPI_COMM_WORLD); /* a journal may ask for one */
    if (e->expert_load) MPI_Bcast(e->expert_load, (int)cells, MPI_DOUBLE, 0, MPI_COMM_WORLD);
    return OK;
}

/* ---- 2. ranks, units, kernels --------------------------------------------------------------- */

static void place_rank(struct engine *e)
{
    struct rank *r = &e->rank;
    struct rank_place place = rank_map_place(&e->job, e->world_rank);
    r->role = place.role;
    r->cfg = rank_map_role(&e->job, r->role);
    r->unit = place.unit;
    r->local = place.local;
    snprintf(r->unit_name, sizeof r->unit_name, "%s%d", rank_role_name(r->role), r->unit);
    gethostname(r->host, sizeof r->host - 1);
    r->node = e->job.ranks_per_node > 0 ? e->world_rank / e->job.ranks_per_node : e->node.index;
}

static enum status choose_isa(struct engine *e)
{
    int best = ISA_PORTABLE, found = 0;
    enum status st = kernels_choose_isa(e->job.isa, &best);
    /* Not yet TRY: the others wait here. */
    MPI_Allreduce(&best, &found, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    TRY(st);
    e->isa = (enum isa)found;
    return kernels_compose(e->isa, &e->kernels);
}

enum status start_units(struct engine *e)
{
    struct rank *r = &e->rank;
    r->job = &e->job;
    r->world_rank = e->world_rank;
    r->world_size = e->world_size;
    place_rank(e);
    TRY(watch_names(MPI_COMM_WORLD, r->unit_name, r->host));
    int color = r->unit + (r->role == RANK_DECODE ? e->job.prefill.units : 0);
    MPI_Comm_split(MPI_COMM_WORLD, color, e->world_rank, &e->unit_comm);
    MPI_Comm_set_name(e->unit_comm, r->unit_name);
    sequence_list_init(&r->queue);
    sequence_list_init(&r->arriving);
    sequence_list_init(&r->waiting);
    sequence_list_init(&r->active);
    sequence_list_init(&r->swapped);
    enum status st = choose_isa(e);
    TRY(agree(MPI_COMM_WORLD, st));
    int per_node = e->job.ranks_per_node > 0 ? e->job.ranks_per_node : 0;
    st = transport_create(e->unit_comm, per_node, &r->transport);
    TRY(agree(MPI_COMM_WORLD, st));
    TRY(agree(MPI_COMM_WORLD, ctl_create(MPI_COMM_WORLD, rank_message, r, &r->ctl)));
    r->waiter.transport = r->transport;
    r->waiter.poll = rank_poll;
    r->waiter.poll_arg = r;
    /* More ranks than cores: polling costs the time of those that compute. */
    r->waiter.poll_max_us = e->node.size > 2 * cpu_count() ? 10000 : 1000;
    lane_init(&r->lane, device_cpu(), e->job.threads_per_rank);
    r->lane.poll = rank_kernel_poll;
    r->lane.poll_arg = r;
    r->kernels = &e->kernels;
    return binding_report(MPI_COMM_WORLD, &e->node, e->job.threads_per_rank);
}
