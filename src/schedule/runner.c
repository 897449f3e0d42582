/* runner.c - the loop over the compute lane, with the communication lane advancing beside it. */
#include "schedule/runner.h"

#include <stdlib.h>
#include <string.h>

enum { WAITING, OPEN, DONE };

/* One pass over a schedule. */
struct run {
    struct runner *r;
    const struct schedule *s;
    int next_comm; /* place in the communication lane of the op to begin next */
    int open[SCHEDULE_MAX_OPEN];
    int n_open; /* open[0] is the oldest */
};

void runner_init(struct runner *r, const struct stage_ops *table, void *ctx)
{
    memset(r, 0, sizeof *r);
    r->table = table;
    r->ctx = ctx;
}

void runner_free(struct runner *r)
{
    free(r->state);
    free(r->begun_s);
    r->state = NULL;
    r->begun_s = NULL;
    r->cap = 0;
}

static enum status runner_reserve(struct runner *r, int n_ops)
{
    if (n_ops <= r->cap) return OK;
    uint8_t *state = realloc(r->state, (size_t)n_ops);
    if (state) r->state = state;
    double *begun = realloc(r->begun_s, (size_t)n_ops * sizeof *begun);
    if (begun) r->begun_s = begun;
    if (!state || !begun)
        return error_set(ERR_RESOURCE, "schedule: no memory to run %d operations", n_ops);
    r->cap = n_ops;
    return OK;
}

static double run_now(const struct run *run)
{
    return run->r->now ? run->r->now(run->r->now_arg) : 0;
}

static void run_trace(const struct run *run, const struct op *op, double t0, double t1)
{
    if (run->r->trace && run->r->now) trace_add(run->r->trace, op, t0, t1);
}

static bool deps_done(const struct run *run, const struct op *op)
{
    for (int i = 0; i < op->n_deps; i++)
        if (run->r->state[op->deps[i]] != DONE) return false;
    return true;
}

/* Begins what can begin. */
static enum status begin_ready(struct run *run)
{
    struct runner *r = run->r;
    const struct schedule *s = run->s;
    while (run->next_comm < s->n_lane[OP_COMM] && run->n_open < SCHEDULE_MAX_OPEN) {
        const struct op *op = &s->ops[s->lane[OP_COMM][run->next_comm]];
        if (!deps_done(run, op)) return OK;
        double t0 = run_now(run);
        TRY(r->table->comm_begin(r->ctx, op));
        r->stats.comm_begin_s += run_now(run) - t0;
        r->begun_s[op->index] = t0;
        r->state[op->index] = OPEN;
        run->open[run->n_open++] = op->index;
        run->next_comm++;
    }
    return OK;
}

static enum status finish_open(struct run *run, int slot)
{
    struct runner *r = run->r;
    const struct op *op = &run->s->ops[run->open[slot]];
    bool complete = r->table->comm_test && r->table->comm_test(r->ctx, op);
    if (r->note) r->note(r->note_arg, op, true);
    double t0 = run_now(run);
    TRY(r->table->comm_finish(r->ctx, op));
    double t1 = run_now(run);
    *(complete ? &r->stats.comm_unpack_s : &r->stats.comm_exposed_s) += t1 - t0;
    r->stats.stage_s[op->stage] += t1 - t0;
    run_trace(run, op, r->begun_s[op->index], t1);
    r->state[op->index] = DONE;
    for (int i = slot + 1; i < run->n_open; i++) run->open[i - 1] = run->open[i];
    run->n_open--;
    return OK;
}

/* Finishes a communication op, begun or not. One that could not begin yet, because the buffers
 * are taken by others, gets its turn by finishing the oldest of them. */
static enum status finish_op(struct run *run, int index)
{
    struct runner *r = run->r;
    while (r->state[index] == WAITING) {
        if (run->n_open < SCHEDULE_MAX_OPEN) {
            int before = run->next_comm;
            TRY(begin_ready(run));
            if (run->next_comm != before) continue;
        }
        if (run->n_open == 0) {
            const struct op *op = &run->s->ops[index];
            return error_set(ERR_BUG, "schedule: %s(%d) of layer %d is needed but cannot begin",
                             stage_name(op->stage), op->mb, op->layer);
        }
        TRY(finish_open(run, 0));
    }
    for (int slot = 0; slot < run->n_open; slot++)
        if (run->open[slot] == index) return finish_open(run, slot);
    return OK;
}

static enum status run_compute(struct run *run, const struct op *op)
{
    struct runner *r = run->r;
    TRY(begin_ready(run));
    for (int i = 0; i < op->n_deps; i++) {
        const struct op *dep = &run->s->ops[op->deps[i]];
        if (dep->lane == OP_COMM && r->state[dep->index] != DONE) TRY(finish_op(run, dep->index));
        if (r->state[dep->index] != DONE)
            return error_set(ERR_BUG, "schedule: %s(%d) of layer %d comes before what it needs",
                             stage_name(op->stage), op->mb, op->layer);
    }
    TRY(begin_ready(run)); /* a finish may have made room */
    if (r->note) r->note(r->note_arg, op, false);
    double t0 = run_now(run);
    TRY(r->table->compute(r->ctx, op));
    double t1 = run_now(run);
    r->stats.compute_s += t1 - t0;
    r->stats.stage_s[op->stage] += t1 - t0;
    run_trace(run, op, t0, t1);
    r->state[op->index] = DONE;
    return OK;
}

enum status runner_run(struct runner *r, const struct schedule *s)
{
    TRY(runner_reserve(r, s->n_ops));
    memset(r->state, WAITING, (size_t)s->n_ops);
    struct run run = {.r = r, .s = s};
    double t0 = run_now(&run);
    for (int i = 0; i < s->n_lane[OP_COMPUTE]; i++)
        TRY(run_compute(&run, &s->ops[s->lane[OP_COMPUTE][i]]));
    /* Whatever nobody consumed. */
    while (run.next_comm < s->n_lane[OP_COMM] || run.n_open > 0)
        TRY(finish_op(&run, run.n_open ? run.open[0] : s->lane[OP_COMM][run.next_comm]));
    r->stats.wall_s += run_now(&run) - t0;
    return OK;
}
