/* files.c - phase 6: what rank 0 writes (lock, journal, responses), new or resumed, and the start of
 * the job's clock.
 */
#include "core/clock.h"
#include "core/hash.h"
#include "engine/resume.h"
#include "engine/start.h"

#include <stdlib.h>
#include <string.h>

/* What decides bits beside model and tokens: the keys of config/job.c that are marked so. */
static uint64_t settings(const struct engine *e)
{
    uint64_t h = hash64(&e->isa, sizeof e->isa, 0);
    h = hash64(&e->job.numerics, sizeof e->job.numerics, h);
    return hash64(&e->job.sampling, sizeof e->job.sampling, h);
}

static enum status begin_attempt(struct engine *e)
{
    struct attempt_row a;
    memset(&a, 0, sizeof a);
    a.attempt = e->attempt;
    a.t_start = e->resumed_s;
    a.ranks = e->world_size;
    a.nodes = e->rank.job->ranks_per_node > 0
                  ? (e->world_size + e->job.ranks_per_node - 1) / e->job.ranks_per_node
                  : e->node.count;
    memcpy(a.start_utc, e->start_utc, sizeof a.start_utc);
    snprintf(a.outcome, sizeof a.outcome, "running");
    snprintf(a.isa, sizeof a.isa, "%s", e->kernels.name);
    snprintf(a.transport, sizeof a.transport, "%s", e->transports);
    snprintf(a.hosts, sizeof a.hosts, "%s", e->hosts);
    return journal_attempt_begin(e->journal, &a);
}

static enum status open_files(struct engine *e)
{
    const struct model_config *c = e->cfg;
    int pt = e->job.kv.page_tokens, least = e->pages[0] < e->pages[1] ? e->pages[0] : e->pages[1];
    struct request_limits limits = {c->vocab, c->max_positions, (int64_t)least * pt};
    struct hash128 model;
    TRY(lock_take(e->job.results, NULL, &e->lock));
    TRY(checkpoint_fingerprint(e->ck, &model));
    TRY(token_file_open(e->job.tokens, &e->job.sampling, &limits, &e->tokens));
    e->yaml = job_yaml(&e->job);
    char *dir = journal_dir_of(e->job.results);
    if (!e->yaml || !dir) {
        free(dir);
        return error_set(ERR_RESOURCE, "no memory to open the journal");
    }
    struct journal_job now = {
        .model = model.lo ^ model.hi,
        .tokens = token_file_hash(e->tokens),
        .settings = settings(e),
        .requests = token_file_count(e->tokens),
        .yaml = e->yaml,
        .isa = e->kernels.name,
        .version = e->setup->version,
    };
    enum status st = resume_open(e, &now, dir);
    free(dir);
    return st;
}

static enum status open_router(struct engine *e)
{
    struct router_setup rs = {
        .job = &e->job,
        .ctl = e->rank.ctl,
        .tokens = e->tokens,
        .journal = e->journal,
        .lock = &e->lock,
        .model_name = e->job.model,
        .t0 = e->rank.t0,
        .resumed_s = e->resumed_s,
        .prefill_pages = (uint32_t)e->pages[0],
        .decode_pages = (uint32_t)e->pages[1],
        .ranks = e->world_size,
        .layers = e->cfg->layers,
        .experts = e->cfg->experts,
        .trace_path = e->job.trace,
        .snapshot = finish_snapshot,
        .snapshot_arg = e,
    };
    TRY(router_create(&rs, &e->rank.router));
    return begin_attempt(e); /* last: a start that fails leaves no record behind */
}

/* "host1*8 host2*8" of all ranks, on rank 0. */
static void gather_hosts(struct engine *e)
{
    enum { HOST = 64 };
    char *all = e->world_rank == 0 ? malloc((size_t)e->world_size * HOST) : 0;
    MPI_Gather(e->rank.host, HOST, MPI_CHAR, all, HOST, MPI_CHAR, 0, MPI_COMM_WORLD);
    if (!all) return;
    size_t at = 0;
    for (int i = 0; i < e->world_size && at < sizeof e->hosts;) {
        int n = 1;
        const char *host = all + (size_t)i * HOST;
        while (i + n < e->world_size && strcmp(host, all + (size_t)(i + n) * HOST) == 0) n++;
        at += (size_t)snprintf(e->hosts + at, sizeof e->hosts - at, "%s%.63s*%d", i ? " " : "",
                               host, n);
        i += n;
    }
    free(all);
}

/* Names of the transports in use, all units. */
static void gather_transports(struct engine *e)
{
    static const char *const known[] = {"self", "shm", "mpi", "shm+mpi"};
    int mine = 0, all = 0;
    for (int i = 0; i < 4; i++)
        if (strcmp(transport_name(e->rank.transport), known[i]) == 0) mine = 1 << i;
    MPI_Reduce(&mine, &all, 1, MPI_INT, MPI_BOR, 0, MPI_COMM_WORLD);
    for (int i = 0; i < 4; i++) {
        if (!(all & (1 << i))) continue;
        size_t at = strlen(e->transports);
        snprintf(e->transports + at, sizeof e->transports - at, "%s%s", at ? " " : "", known[i]);
    }
}

enum status start_files(struct engine *e)
{
    gather_hosts(e);
    gather_transports(e);
    TRY(agree(MPI_COMM_WORLD, e->world_rank == 0 ? open_files(e) : OK));
    double known[2] = {e->attempt, e->resumed_s};
    MPI_Bcast(known, 2, MPI_DOUBLE, 0, MPI_COMM_WORLD);
    e->attempt = e->rank.attempt = (int)known[0];
    e->resumed_s = known[1];
    /* The job's clock starts here, or goes on from the last sign of life of the attempt before.
     * Ranks of a host have one clock and so one origin; between hosts it is as good as a barrier. */
    MPI_Barrier(MPI_COMM_WORLD);
    e->rank.t0 = clock_now_s() - e->resumed_s;
    MPI_Bcast(&e->rank.t0, 1, MPI_DOUBLE, 0, e->node.comm);
    return agree(MPI_COMM_WORLD, e->world_rank == 0 ? open_router(e) : OK);
}
