/* run.c - a job in phases: 1 job and model, 2 ranks and units, 3 sizes, 4 weights, 5 model,
 * 6 files, 7 requests, 8 results. Phases up to 6 end together or not at all (agree); in phase 7 a
 * failing rank tells rank 0, which ends the job.
 */
#include "engine/run.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/nap.h"
#include "engine/interrupt.h"
#include "engine/start.h"
#include "engine/watch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static enum status timed(struct engine *e, const char *name, enum watch_phase which,
                         enum status (*phase)(struct engine *))
{
    double begin = clock_now_s();
    watch_phase(which);
    enum status st = phase(e);
    if (st == OK) st = agree(MPI_COMM_WORLD, interrupt_check());
    if (st == OK) log_info("%s: %.2f s", name, clock_now_s() - begin);
    return st;
}

static enum status start(struct engine *e)
{
    TRY(timed(e, "job and model", WATCH_JOB, start_job));
    if (e->setup->dump_config) return OK;
    TRY(timed(e, "units", WATCH_UNITS, start_units));
    log_info("%d ranks on %d host(s), isa %s, %d thread(s) a rank; %s", e->world_size,
             e->node.count, e->kernels.name, e->job.threads_per_rank,
             e->job.mixed.present ? "mixed units" : "prefill and decode units");
    TRY(timed(e, "sizes", WATCH_SIZES, start_sizes));
    TRY(timed(e, "weights", WATCH_WEIGHTS, start_weights));
    TRY(timed(e, "model", WATCH_MODEL, start_model));
    return timed(e, "files", WATCH_FILES, start_files);
}

/* Rank 0 may notice that a wait was cut off before it hears who cut it off and why. */
static enum status hear_reason(struct engine *e, enum status st)
{
    const double until = clock_now_s() + 1;
    struct rank *r = &e->rank;
    if (e->world_rank != 0 || st != ERR_COMM || !r->router || r->inquiry.judged) return st;
    char own[512];
    snprintf(own, sizeof own, "%s", error_text());
    error_clear();
    while (clock_now_s() < until && router_failure(r->router) == OK) {
        (void)ctl_poll(r->ctl);
        clock_sleep_us(1000);
    }
    enum status told = router_failure(r->router);
    /* Heard before this call, the reason is in `own` already. */
    return told != OK && *error_text() ? told : error_set(told != OK ? told : st, "%s", own);
}

/* A host may be cut off. mpirun notices that by keepalive probes (slurm/run.sbatch), but only while
 * it has nothing to send there: asked to end the job it would wait for that host for many minutes.
 * So it gets the time to notice first. */
static void leave_it_to_mpirun(void)
{
    enum { PROBES_S = 12 };
    log_warn("%s", error_text());
    log_warn("no rank of that host answers: %d s for mpirun to notice", PROBES_S);
    clock_sleep_us(PROBES_S * 1000000L);
}

/* Tells rank 0 why this rank stops and leaves it to rank 0 to say so, once, and to end the job with
 * that status; a rank that hears nothing goes by itself. Returns the status to leave with. */
static enum status spread_failure(struct engine *e, enum status st)
{
    struct rank *r = &e->rank;
    const double patience_s = 3, sending_s = 0.2;
    if (!r->ctl) return st;
    watch_phase(WATCH_LEAVE);
    st = hear_reason(e, st);
    if (e->world_rank == 0) {
        int32_t status = (int32_t)st;
        struct ctl_part part = {&status, sizeof status};
        for (int i = 1; i < e->world_size; i++) (void)ctl_send(r->ctl, i, CTL_ABORT, &part, 1);
    } else if (st != ERR_COMM) {
        struct wire_error w;
        memset(&w, 0, sizeof w);
        w.status = (int32_t)st;
        w.rank = e->world_rank;
        memcpy(w.host, r->host, sizeof w.host);
        snprintf(w.text, sizeof w.text, "%s", error_text());
        struct ctl_part part = {&w, sizeof w};
        (void)ctl_send(r->ctl, 0, CTL_ERROR, &part, 1);
    }
    if (r->transport) transport_abort(r->transport);
    const double begin = clock_now_s();
    while (clock_now_s() < begin + patience_s && r->aborted == OK) {
        (void)ctl_poll(r->ctl);
        if (e->world_rank == 0 &&
            (clock_now_s() > begin + sending_s || ctl_outstanding(r->ctl) == 0))
            break;
        clock_sleep_us(1000);
    }
    return r->aborted != OK ? r->aborted : st;
}

static void free_collective(struct engine *e)
{
    struct rank *r = &e->rank;
    if (r->tick) tick_destroy(r->tick);
    if (r->ep) ep_destroy(r->ep);
    if (r->ctl) ctl_destroy(r->ctl);
    if (r->transport) transport_destroy(r->transport);
    node_free(&e->node);
}

/* All ranks leave together; those that are ready sleep instead of spinning. Rank 0, which writes the
 * results meanwhile, may still fail: then all leave with its status. */
static enum status meet(struct engine *e)
{
    MPI_Request request;
    int done = 0;
    MPI_Ibarrier(MPI_COMM_WORLD, &request);
    for (;;) {
        MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (done) return OK;
        watch_beat();
        TRY(ctl_poll(e->rank.ctl));
        TRY(e->rank.aborted);
        TRY(inquiry_poll(&e->rank));
        clock_sleep_us(1000);
    }
}

enum status engine_run(const struct engine_setup *setup)
{
    struct engine *e = calloc(1, sizeof *e);
    if (!e) return error_set(ERR_RESOURCE, "no memory for the engine");
    e->setup = setup;
    MPI_Comm_rank(MPI_COMM_WORLD, &e->world_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &e->world_size);
    clock_utc(e->start_utc);
    interrupt_install();
    log_init(e->world_rank, e->world_rank == 0 && !setup->dump_config);
    enum status st = node_create(MPI_COMM_WORLD, &e->node);
    if (st == OK) st = watch_create(&e->node, e->world_rank, e->world_size, setup->job->watchdog_s);
    if (st == OK) st = start(e);
    if (st == OK && setup->dump_config) {
        if (e->world_rank == 0) job_dump(&e->job, false, stdout);
    } else if (st == OK) {
        nap_hold(true);
        watch_phase(WATCH_SERVE);
        st = rank_loop(&e->rank);
        if (st == OK) st = finish_job(e);
        nap_hold(false);
        if (st != OK && st != ERR_INVALID) {
            st = spread_failure(e, st);
            (void)finish_partial(e);
        }
    }
    lock_release(&e->lock);
    if (e->rank.inquiry.judged && e->rank.inquiry.lost_host) leave_it_to_mpirun();
    watch_phase(e->world_rank == 0 || st != OK ? WATCH_LEAVE : WATCH_RESULTS);
    if ((st == OK || st == ERR_INVALID) && !setup->dump_config) {
        enum status met = meet(e);
        if (met != OK) st = met;
    }
    /* After a failure peers may be gone: memory is left to the end of the process. */
    if (st != OK && st != ERR_INVALID) {
        /* What rank 0 has told all is rank 0's to print, and to end. */
        if (e->world_rank != 0 && e->rank.aborted != OK) error_clear();
        return st;
    }
    watch_destroy();
    free_collective(e);
    finish_free(e);
    free(e);
    return st;
}
