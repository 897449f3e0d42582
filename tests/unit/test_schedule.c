/* links: core schedule */
/* test_schedule.c - the published orders spelled out, the invariants of every schedule, the
 * runner against a table that records and checks each call, the list simulator against sums done
 * by hand, the trace file's shape. Alone: make unit-schedule.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/rng.h"
#include "schedule/list_sim.h"
#include "schedule/runner.h"
#include "schedule/schedule.h"
#include "schedule/trace.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const bool moe_v3[4] = {false, true, true, true}; /* first layer dense, as the demo */
static const bool moe_all[4] = {true, true, true, true};

/* "STAGE(mb)layer STAGE(mb)layer ..." of a lane. */
static void lane_text(const struct schedule *s, enum op_lane lane, char *buf, size_t cap)
{
    size_t at = 0;
    buf[0] = 0;
    for (int i = 0; i < s->n_lane[lane]; i++) {
        const struct op *op = &s->ops[s->lane[lane][i]];
        at += (size_t)snprintf(buf + at, cap - at, "%s%s(%d)%d", i ? " " : "",
                               stage_name(op->stage), op->mb, op->layer);
        assert_true(at < cap);
    }
}

static void expect_lanes(struct schedule *s, const char *compute, const char *comm)
{
    char text[4096];
    lane_text(s, OP_COMPUTE, text, sizeof text);
    assert_string_equal(text, compute);
    lane_text(s, OP_COMM, text, sizeof text);
    assert_string_equal(text, comm);
    schedule_free(s);
}

/* Per layer, compute ATTN(1) SHARED(0) ATTN(0) MLP(1) MLP(0) SHARED(1), communication COMBINE(0)
 * DISPATCH(1) DISPATCH(0) COMBINE(1); micro-batch 0 one layer ahead. */
static void test_prefill_order(void **state)
{
    (void)state;
    struct schedule s;
    assert_int_equal(schedule_prefill_dual_batch(4, moe_all, &s), OK);
    expect_lanes(&s,
                 "EMBED(0)-1 EMBED(1)-1 "
                 "ATTN(0)0 MLP(0)0 "
                 "ATTN(1)0 SHARED(0)0 ATTN(0)1 MLP(1)0 MLP(0)1 SHARED(1)0 "
                 "ATTN(1)1 SHARED(0)1 ATTN(0)2 MLP(1)1 MLP(0)2 SHARED(1)1 "
                 "ATTN(1)2 SHARED(0)2 ATTN(0)3 MLP(1)2 MLP(0)3 SHARED(1)2 "
                 "ATTN(1)3 SHARED(0)3 MLP(1)3 SHARED(1)3 "
                 "HEAD(0)4 HEAD(1)4",
                 "DISPATCH(0)0 "
                 "COMBINE(0)0 DISPATCH(1)0 DISPATCH(0)1 COMBINE(1)0 "
                 "COMBINE(0)1 DISPATCH(1)1 DISPATCH(0)2 COMBINE(1)1 "
                 "COMBINE(0)2 DISPATCH(1)2 DISPATCH(0)3 COMBINE(1)2 "
                 "COMBINE(0)3 DISPATCH(1)3 COMBINE(1)3");
    assert_int_equal(schedule_prefill_dual_batch(4, moe_v3, &s), OK);
    expect_lanes(&s,
                 "EMBED(0)-1 EMBED(1)-1 "
                 "ATTN(0)0 DENSE_MLP(0)0 "
                 "ATTN(1)0 ATTN(0)1 DENSE_MLP(1)0 MLP(0)1 "
                 "ATTN(1)1 SHARED(0)1 ATTN(0)2 MLP(1)1 MLP(0)2 SHARED(1)1 "
                 "ATTN(1)2 SHARED(0)2 ATTN(0)3 MLP(1)2 MLP(0)3 SHARED(1)2 "
                 "ATTN(1)3 SHARED(0)3 MLP(1)3 SHARED(1)3 "
                 "HEAD(0)4 HEAD(1)4",
                 "DISPATCH(0)1 "
                 "COMBINE(0)1 DISPATCH(1)1 DISPATCH(0)2 COMBINE(1)1 "
                 "COMBINE(0)2 DISPATCH(1)2 DISPATCH(0)3 COMBINE(1)2 "
                 "COMBINE(0)3 DISPATCH(1)3 COMBINE(1)3");
}

/* DISPATCH(0) under SHARED(0) + ATTN_0(1); MLP(0) alone; COMBINE(0) under ATTN_1(1); swapped. */
static void test_decode_order(void **state)
{
    (void)state;
    struct schedule s;
    assert_int_equal(schedule_decode_five_stage(4, moe_all, &s), OK);
    expect_lanes(&s,
                 "EMBED(0)-1 EMBED(1)-1 "
                 "ATTN_0(0)0 ATTN_1(0)0 "
                 "SHARED(0)0 ATTN_0(1)0 MLP(0)0 ATTN_1(1)0 "
                 "SHARED(1)0 ATTN_0(0)1 MLP(1)0 ATTN_1(0)1 "
                 "SHARED(0)1 ATTN_0(1)1 MLP(0)1 ATTN_1(1)1 "
                 "SHARED(1)1 ATTN_0(0)2 MLP(1)1 ATTN_1(0)2 "
                 "SHARED(0)2 ATTN_0(1)2 MLP(0)2 ATTN_1(1)2 "
                 "SHARED(1)2 ATTN_0(0)3 MLP(1)2 ATTN_1(0)3 "
                 "SHARED(0)3 ATTN_0(1)3 MLP(0)3 ATTN_1(1)3 "
                 "SHARED(1)3 MLP(1)3 "
                 "HEAD(0)4 HEAD(1)4",
                 "DISPATCH(0)0 COMBINE(0)0 DISPATCH(1)0 COMBINE(1)0 "
                 "DISPATCH(0)1 COMBINE(0)1 DISPATCH(1)1 COMBINE(1)1 "
                 "DISPATCH(0)2 COMBINE(0)2 DISPATCH(1)2 COMBINE(1)2 "
                 "DISPATCH(0)3 COMBINE(0)3 DISPATCH(1)3 COMBINE(1)3");
    assert_int_equal(schedule_decode_five_stage(2, moe_v3, &s), OK);
    expect_lanes(&s,
                 "EMBED(0)-1 EMBED(1)-1 "
                 "ATTN_0(0)0 ATTN_1(0)0 "
                 "ATTN_0(1)0 DENSE_MLP(0)0 ATTN_1(1)0 "
                 "ATTN_0(0)1 DENSE_MLP(1)0 ATTN_1(0)1 "
                 "SHARED(0)1 ATTN_0(1)1 MLP(0)1 ATTN_1(1)1 "
                 "SHARED(1)1 MLP(1)1 "
                 "HEAD(0)2 HEAD(1)2",
                 "DISPATCH(0)1 COMBINE(0)1 DISPATCH(1)1 COMBINE(1)1");
}

static void test_sequential_order(void **state)
{
    (void)state;
    struct schedule s;
    assert_int_equal(schedule_single_batch(2, moe_v3, 1, false, &s), OK);
    expect_lanes(&s, "EMBED(0)-1 ATTN(0)0 DENSE_MLP(0)0 ATTN(0)1 MLP(0)1 SHARED(0)1 HEAD(0)2",
                 "DISPATCH(0)1 COMBINE(0)1");
    assert_int_equal(schedule_single_batch(2, moe_v3, 2, true, &s), OK);
    expect_lanes(&s,
                 "EMBED(0)-1 EMBED(1)-1 "
                 "ATTN_0(0)0 ATTN_1(0)0 DENSE_MLP(0)0 ATTN_0(1)0 ATTN_1(1)0 DENSE_MLP(1)0 "
                 "ATTN_0(0)1 ATTN_1(0)1 MLP(0)1 SHARED(0)1 "
                 "ATTN_0(1)1 ATTN_1(1)1 MLP(1)1 SHARED(1)1 "
                 "HEAD(0)2 HEAD(1)2",
                 "DISPATCH(0)1 COMBINE(0)1 DISPATCH(1)1 COMBINE(1)1");
}

static void test_build_and_bad_arguments(void **state)
{
    (void)state;
    static const struct {
        int mb;
        bool overlap, decode;
        enum schedule_kind kind;
    } cases[] = {{1, true, false, SCHEDULE_PREFILL_SEQUENTIAL},
                 {2, false, false, SCHEDULE_PREFILL_SEQUENTIAL},
                 {2, true, false, SCHEDULE_PREFILL_DUAL},
                 {1, false, true, SCHEDULE_DECODE_SEQUENTIAL},
                 {2, true, true, SCHEDULE_DECODE_FIVE_STAGE}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct schedule s;
        assert_int_equal(
            schedule_build(3, moe_v3, cases[i].mb, cases[i].overlap, cases[i].decode, &s), OK);
        assert_int_equal(s.kind, cases[i].kind);
        assert_int_equal(s.micro_batches, cases[i].mb);
        schedule_free(&s);
    }
    struct schedule s;
    error_clear();
    assert_int_equal(schedule_build(3, moe_v3, 3, true, false, &s), ERR_BUG);
    assert_non_null(strstr(error_text(), "3 micro-batches"));
    error_clear();
    assert_int_equal(schedule_single_batch(0, moe_v3, 1, false, &s), ERR_BUG);
    error_clear();
}

/* A list that someone broke does not pass. */
static void test_check_finds_damage(void **state)
{
    (void)state;
    for (int damage = 0; damage < 6; damage++) {
        struct schedule s;
        assert_int_equal(schedule_prefill_dual_batch(4, moe_all, &s), OK);
        assert_int_equal(schedule_check(&s, moe_all), OK);
        int mlp = s.lane[OP_COMPUTE][3];
        assert_int_equal(s.ops[mlp].stage, STAGE_MLP);
        switch (damage) {
        case 0: s.ops[mlp].n_deps = 0; break;
        case 1: s.ops[mlp].deps[0] = mlp; break;
        case 2: s.ops[mlp].mb = 1; break;
        case 3: s.lane[OP_COMPUTE][3] = s.lane[OP_COMPUTE][4]; break;
        case 4: s.ops[mlp].lane = OP_COMM; break;
        case 5: s.n_ops--; break;
        }
        error_clear();
        assert_int_equal(schedule_check(&s, moe_all), ERR_BUG);
        assert_non_null(strstr(error_text(), "schedule:"));
        schedule_free(&s);
    }
    error_clear();
}

/* Stage functions that check the rules as they are called and keep a virtual clock. */
struct probe {
    const struct schedule *s;
    unsigned char *done; /* [n_ops] 0, 1 open, 2 done */
    int open, max_open, n_called, last_comm, fail_at;
    double now, net_free; /* seconds; when the link is free */
    double *ready;        /* [n_ops] when an operation's data has arrived */
    double compute_time, comm_time;
    char text[8192];
    size_t at;
};

static void probe_note(struct probe *p, const char *what, const struct op *op)
{
    p->at += (size_t)snprintf(p->text + p->at, sizeof p->text - p->at, "%s%s(%d)%d ", what,
                              stage_name(op->stage), op->mb, op->layer);
    assert_true(p->at < sizeof p->text);
}

static void probe_deps(struct probe *p, const struct op *op)
{
    assert_int_equal(p->done[op->index], 0);
    for (int i = 0; i < op->n_deps; i++) assert_int_equal(p->done[op->deps[i]], 2);
}

static enum status probe_compute(void *ctx, const struct op *op)
{
    struct probe *p = ctx;
    assert_int_equal(op->lane, OP_COMPUTE);
    probe_deps(p, op);
    if (p->n_called++ == p->fail_at) return error_set(ERR_COMM, "planned");
    p->now += p->compute_time;
    p->done[op->index] = 2;
    if (p->s->n_ops < 100) probe_note(p, "", op);
    return OK;
}

static enum status probe_begin(void *ctx, const struct op *op)
{
    struct probe *p = ctx;
    assert_int_equal(op->lane, OP_COMM);
    probe_deps(p, op);
    assert_true(op->index > p->last_comm); /* the lane's order */
    p->last_comm = op->index;
    p->done[op->index] = 1;
    if (++p->open > p->max_open) p->max_open = p->open;
    p->net_free = fmax(p->net_free, p->now) + p->comm_time;
    p->ready[op->index] = p->net_free;
    if (p->s->n_ops < 100) probe_note(p, "+", op);
    return OK;
}

static bool probe_test(void *ctx, const struct op *op)
{
    struct probe *p = ctx;
    return p->ready[op->index] <= p->now;
}

static enum status probe_finish(void *ctx, const struct op *op)
{
    struct probe *p = ctx;
    assert_int_equal(p->done[op->index], 1);
    p->now = fmax(p->now, p->ready[op->index]);
    p->done[op->index] = 2;
    p->open--;
    if (p->s->n_ops < 100) probe_note(p, "-", op);
    return OK;
}

static double probe_now(void *arg)
{
    return ((struct probe *)arg)->now;
}

static const struct stage_ops probe_ops = {probe_compute, probe_begin, probe_finish, probe_test};

static void probe_reset(struct probe *p, const struct schedule *s, double compute, double comm)
{
    memset(p, 0, sizeof *p);
    p->s = s;
    p->done = calloc((size_t)s->n_ops, 1);
    p->ready = calloc((size_t)s->n_ops, sizeof *p->ready);
    p->last_comm = -1;
    p->fail_at = -1;
    p->compute_time = compute;
    p->comm_time = comm;
}

static void probe_free(struct probe *p)
{
    free(p->done);
    free(p->ready);
}

/* Which waits happen where, call by call. */
static void test_runner_calls(void **state)
{
    (void)state;
    struct schedule s;
    struct probe p;
    struct runner r;
    assert_int_equal(schedule_prefill_dual_batch(2, moe_all, &s), OK);
    probe_reset(&p, &s, 1, 1);
    runner_init(&r, &probe_ops, &p);
    assert_int_equal(runner_run(&r, &s), OK);
    assert_string_equal(p.text,
                        "EMBED(0)-1 EMBED(1)-1 ATTN(0)0 +DISPATCH(0)0 -DISPATCH(0)0 MLP(0)0 "
                        "+COMBINE(0)0 ATTN(1)0 +DISPATCH(1)0 SHARED(0)0 -COMBINE(0)0 ATTN(0)1 "
                        "+DISPATCH(0)1 -DISPATCH(1)0 MLP(1)0 +COMBINE(1)0 -DISPATCH(0)1 MLP(0)1 "
                        "+COMBINE(0)1 SHARED(1)0 -COMBINE(1)0 ATTN(1)1 +DISPATCH(1)1 SHARED(0)1 "
                        "-DISPATCH(1)1 MLP(1)1 +COMBINE(1)1 SHARED(1)1 -COMBINE(0)1 HEAD(0)2 "
                        "-COMBINE(1)1 HEAD(1)2 ");
    probe_free(&p);
    schedule_free(&s);

    assert_int_equal(schedule_decode_five_stage(2, moe_v3, &s), OK);
    probe_reset(&p, &s, 1, 1);
    r.ctx = &p;
    assert_int_equal(runner_run(&r, &s), OK);
    assert_string_equal(
        p.text, "EMBED(0)-1 EMBED(1)-1 ATTN_0(0)0 ATTN_1(0)0 ATTN_0(1)0 DENSE_MLP(0)0 ATTN_1(1)0 "
                "ATTN_0(0)1 DENSE_MLP(1)0 ATTN_1(0)1 +DISPATCH(0)1 SHARED(0)1 ATTN_0(1)1 "
                "-DISPATCH(0)1 MLP(0)1 +COMBINE(0)1 ATTN_1(1)1 +DISPATCH(1)1 SHARED(1)1 "
                "-DISPATCH(1)1 MLP(1)1 +COMBINE(1)1 -COMBINE(0)1 HEAD(0)2 -COMBINE(1)1 HEAD(1)2 ");
    probe_free(&p);
    schedule_free(&s);

    /* No overlap: every begin is followed by its finish before anything is computed. */
    assert_int_equal(schedule_single_batch(4, moe_v3, 2, false, &s), OK);
    probe_reset(&p, &s, 1, 1);
    r.ctx = &p;
    assert_int_equal(runner_run(&r, &s), OK);
    assert_int_equal(p.max_open, 1);
    for (char *c = p.text; (c = strchr(c, '+')); c++) assert_int_equal(strchr(c, ' ')[1], '-');
    probe_free(&p);
    schedule_free(&s);
    runner_free(&r);
}

/* More communication than buffers: the third operation waits until one is finished, and the one
 * that is needed gets its turn; what nobody needs is finished in the end. */
static void test_runner_limit(void **state)
{
    (void)state;
    struct op ops[6] = {
        {.stage = STAGE_EMBED, .lane = OP_COMPUTE, .layer = -1, .index = 0},
        {.stage = STAGE_DISPATCH, .lane = OP_COMM, .layer = 0, .index = 1, .n_deps = 1},
        {.stage = STAGE_DISPATCH, .lane = OP_COMM, .layer = 1, .index = 2, .n_deps = 1},
        {.stage = STAGE_DISPATCH, .lane = OP_COMM, .layer = 2, .index = 3, .n_deps = 1},
        {.stage = STAGE_SHARED, .lane = OP_COMPUTE, .layer = 0, .index = 4},
        {.stage = STAGE_MLP, .lane = OP_COMPUTE, .layer = 2, .index = 5, .n_deps = 1, .deps = {3}}};
    int compute[3] = {0, 4, 5}, comm[3] = {1, 2, 3};
    struct schedule s = {.layers = 3,
                         .micro_batches = 1,
                         .n_ops = 6,
                         .ops = ops,
                         .n_lane = {3, 3},
                         .lane = {compute, comm}};
    struct probe p;
    struct runner r;
    probe_reset(&p, &s, 1, 1);
    runner_init(&r, &probe_ops, &p);
    assert_int_equal(runner_run(&r, &s), OK);
    assert_string_equal(p.text, "EMBED(0)-1 +DISPATCH(0)0 +DISPATCH(0)1 SHARED(0)0 -DISPATCH(0)0 "
                                "+DISPATCH(0)2 -DISPATCH(0)2 MLP(0)2 -DISPATCH(0)1 ");
    assert_int_equal(p.max_open, SCHEDULE_MAX_OPEN);
    probe_free(&p);
    ops[3].deps[0] = 5; /* needs its own consumer: refused, not a hang */
    probe_reset(&p, &s, 1, 1);
    error_clear();
    assert_int_equal(runner_run(&r, &s), ERR_BUG);
    assert_non_null(strstr(error_text(), "DISPATCH(0) of layer 2 is needed but cannot begin"));
    error_clear();
    probe_free(&p);
    runner_free(&r);
}

static double fixed_time(void *arg, const struct op *op)
{
    const double *t = arg;
    return t[op->lane];
}

static void random_schedule(uint64_t key, bool *moe, struct schedule *s)
{
    int layers = 1 + (int)(rng_u64(key, 0) % 7);
    for (int l = 0; l < layers; l++) moe[l] = rng_u64(key, 10 + (uint64_t)l) % 3 != 0;
    int mb = 1 + (int)(rng_u64(key, 1) & 1);
    bool overlap = rng_u64(key, 2) & 1, decode = rng_u64(key, 3) & 1;
    assert_int_equal(schedule_build(layers, moe, mb, overlap, decode, s), OK);
}

/* Any mix of dense and routed layers: every op runs once after its dependencies, at most two
 * operations are open, the clocks agree with the list simulator. */
static void test_runner_random(void **state)
{
    (void)state;
    struct runner r;
    runner_init(&r, &probe_ops, NULL);
    double worst = 0;
    for (uint64_t key = 1; key <= 300; key++) {
        bool moe[8];
        struct schedule s;
        random_schedule(key, moe, &s);
        struct probe p;
        double times[OP_LANES] = {rng_uniform(key, 5), 2 * rng_uniform(key, 6)};
        probe_reset(&p, &s, times[OP_COMPUTE], times[OP_COMM]);
        r.ctx = r.now_arg = &p;
        r.now = probe_now;
        memset(&r.stats, 0, sizeof r.stats);
        struct trace_event *events = calloc((size_t)s.n_ops, sizeof *events);
        struct trace_buf trace;
        trace_buf_init(&trace, events, (size_t)s.n_ops);
        r.trace = &trace;
        assert_int_equal(runner_run(&r, &s), OK);
        for (int i = 0; i < s.n_ops; i++) assert_int_equal(p.done[i], 2);
        assert_true(p.max_open <= SCHEDULE_MAX_OPEN && p.open == 0);
        assert_int_equal(trace.n, s.n_ops);
        assert_int_equal(trace.dropped, 0);
        assert_true(fabs(r.stats.wall_s - r.stats.compute_s - r.stats.comm_exposed_s -
                         r.stats.comm_unpack_s) < 1e-9);
        struct list_sim_result sim;
        double *end = calloc((size_t)s.n_ops, sizeof *end);
        list_sim_run(&s, fixed_time, times, 0, end, NULL, &sim);
        worst = fmax(worst, fabs(sim.makespan_s - r.stats.wall_s));
        assert_true(fabs(sim.makespan_s - r.stats.wall_s) < 1e-9);
        assert_true(fabs(sim.exposed_s - r.stats.comm_exposed_s) < 1e-9);
        free(end);
        free(events);
        probe_free(&p);
        schedule_free(&s);
    }
    printf("# runner against list_sim: largest difference %.1e s, %.1e of the tolerance\n", worst,
           worst / 1e-9);
    runner_free(&r);
}

static void test_runner_error(void **state)
{
    (void)state;
    struct schedule s;
    struct probe p;
    struct runner r;
    assert_int_equal(schedule_prefill_dual_batch(4, moe_v3, &s), OK);
    probe_reset(&p, &s, 1, 1);
    p.fail_at = 7;
    runner_init(&r, &probe_ops, &p);
    error_clear();
    assert_int_equal(runner_run(&r, &s), ERR_COMM);
    assert_string_equal(error_text(), "planned");
    assert_int_equal(p.n_called, 8);
    error_clear();
    probe_free(&p);
    schedule_free(&s);
    runner_free(&r);
}

static double stage_time(void *arg, const struct op *op)
{
    return ((const double *)arg)[op->stage];
}

/* One routed layer, decode, ATTN_0 1, ATTN_1 2, SHARED 1, MLP 3, DISPATCH 4, COMBINE 5, HEAD 1,
 * by hand (start-end, seconds):
 *   ATTN_0(0) 0-1   ATTN_1(0) 1-3   DISPATCH(0) 3-7   SHARED(0) 3-4   ATTN_0(1) 4-5
 *   MLP(0) 7-10     COMBINE(0) 10-15   ATTN_1(1) 10-12
 *   DISPATCH(1) 15-19 (the link is busy until 15)   SHARED(1) 12-13   MLP(1) 19-22
 *   COMBINE(1) 22-27   HEAD(0) 22-23   HEAD(1) 27-28
 * compute 16 = 2 x (1 + 2 + 1 + 3 + 1), so 12 exposed. */
static void test_list_sim_by_hand(void **state)
{
    (void)state;
    double t[STAGE_COUNT] = {
        [STAGE_ATTN_0] = 1,   [STAGE_ATTN_1] = 2,  [STAGE_SHARED] = 1, [STAGE_MLP] = 3,
        [STAGE_DISPATCH] = 4, [STAGE_COMBINE] = 5, [STAGE_HEAD] = 1};
    struct schedule s;
    assert_int_equal(schedule_decode_five_stage(1, moe_all, &s), OK);
    double *end = calloc((size_t)s.n_ops, sizeof *end);
    struct list_sim_result sim;
    list_sim_run(&s, stage_time, t, 100, end, NULL, &sim);
    assert_true(sim.makespan_s == 28 && sim.compute_s == 16 && sim.comm_s == 18);
    assert_true(sim.exposed_s == 12 && sim.stage_s[STAGE_MLP] == 6);
    for (int i = 0; i < s.n_ops; i++) {
        const struct op *op = &s.ops[i];
        if (op->stage == STAGE_DISPATCH) assert_true(end[i] == (op->mb ? 119 : 107));
        if (op->stage == STAGE_COMBINE) assert_true(end[i] == (op->mb ? 127 : 115));
        if (op->stage == STAGE_MLP) assert_true(end[i] == (op->mb ? 122 : 110));
    }
    free(end);
    schedule_free(&s);
}

/* Nothing to communicate: the sum of the computation, whichever order. Enough computation: in
 * the steady state nothing is exposed, only prologue and epilogue, whatever the layers. */
static void test_list_sim_overlap(void **state)
{
    (void)state;
    bool moe[32];
    for (int i = 0; i < 32; i++) moe[i] = true;
    double end[32 * 12 + 4];
    for (int decode = 0; decode < 2; decode++) {
        double exposed[2];
        for (int k = 0; k < 2; k++) {
            int layers = k ? 32 : 8;
            struct schedule dual, single;
            assert_int_equal(schedule_build(layers, moe, 2, true, decode, &dual), OK);
            assert_int_equal(schedule_build(layers, moe, 2, false, decode, &single), OK);
            double none[OP_LANES] = {1, 0}, some[OP_LANES] = {1, 0.9};
            struct list_sim_result a, b;
            list_sim_run(&dual, fixed_time, none, 0, end, NULL, &a);
            list_sim_run(&single, fixed_time, none, 0, end, NULL, &b);
            assert_true(a.makespan_s == a.compute_s && a.exposed_s == 0);
            assert_true(b.makespan_s == a.makespan_s);
            list_sim_run(&dual, fixed_time, some, 0, end, NULL, &a);
            list_sim_run(&single, fixed_time, some, 0, end, NULL, &b);
            assert_true(fabs(b.exposed_s - b.comm_s) < 1e-9); /* the baseline hides nothing */
            exposed[k] = a.exposed_s;
            schedule_free(&dual);
            schedule_free(&single);
        }
        assert_true(fabs(exposed[0] - exposed[1]) < 1e-9 && exposed[0] < 3.0);
    }
}

static void test_trace_file(void **state)
{
    (void)state;
    struct trace_event events[2];
    struct trace_buf buf;
    trace_buf_init(&buf, events, 2);
    struct op attn = {.stage = STAGE_ATTN_0, .lane = OP_COMPUTE, .mb = 1, .layer = 3};
    struct op comb = {.stage = STAGE_COMBINE, .lane = OP_COMM, .mb = 0, .layer = 2};
    trace_add(&buf, &attn, 0.5, 0.75);
    trace_add(&buf, &comb, 0.25, 0.5000015);
    trace_add(&buf, &comb, 1, 2);
    assert_int_equal(buf.dropped, 1);
    struct trace_rank ranks[2] = {{7, "decode0 \"r\" 3", events, buf.n}, {8, NULL, events, 0}};
    char path[] = "/tmp/test_schedule_trace_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(trace_write(path, ranks, 2), OK);
    char text[4096];
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    assert_true(n > 0);
    text[n] = 0;
    close(fd);
    unlink(path);
    assert_string_equal(
        text, "[\n"
              "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":7,"
              "\"args\":{\"name\":\"decode0 \\\"r\\\" 3\"}},\n"
              "{\"name\":\"process_sort_index\",\"ph\":\"M\",\"pid\":7,"
              "\"args\":{\"sort_index\":7}},\n"
              "{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":7,\"tid\":82,"
              "\"args\":{\"name\":\"micro-batch 0 communication\"}},\n"
              "{\"name\":\"thread_sort_index\",\"ph\":\"M\",\"pid\":7,\"tid\":82,"
              "\"args\":{\"sort_index\":1}},\n"
              "{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":7,\"tid\":83,"
              "\"args\":{\"name\":\"micro-batch 1 compute\"}},\n"
              "{\"name\":\"thread_sort_index\",\"ph\":\"M\",\"pid\":7,\"tid\":83,"
              "\"args\":{\"sort_index\":2}},\n"
              "{\"name\":\"ATTN_0(1)\",\"cat\":\"compute\",\"ph\":\"X\",\"ts\":500000.000,"
              "\"dur\":250000.000,\"pid\":7,\"tid\":83,\"args\":{\"layer\":3}},\n"
              "{\"name\":\"COMBINE(0)\",\"cat\":\"communication\",\"ph\":\"X\",\"ts\":250000.000,"
              "\"dur\":250001.500,\"pid\":7,\"tid\":82,\"args\":{\"layer\":2}},\n"
              "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":8,"
              "\"args\":{\"name\":\"rank 8\"}},\n"
              "{\"name\":\"process_sort_index\",\"ph\":\"M\",\"pid\":8,"
              "\"args\":{\"sort_index\":8}}\n"
              "]\n");
    error_clear();
    assert_int_equal(trace_write("/nonexistent/dir/t.json", ranks, 2), ERR_RESOURCE);
    assert_non_null(strstr(error_text(), "/nonexistent/dir/t.json"));
    error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill_order),      cmocka_unit_test(test_decode_order),
        cmocka_unit_test(test_sequential_order),   cmocka_unit_test(test_build_and_bad_arguments),
        cmocka_unit_test(test_check_finds_damage), cmocka_unit_test(test_runner_calls),
        cmocka_unit_test(test_runner_random),      cmocka_unit_test(test_runner_error),
        cmocka_unit_test(test_list_sim_by_hand),   cmocka_unit_test(test_list_sim_overlap),
        cmocka_unit_test(test_runner_limit),       cmocka_unit_test(test_trace_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
