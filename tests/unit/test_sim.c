/* links: core cluster balance schedule kvcache checkpoint config account */
/* test_sim.c - the simulation against what can be worked out by hand. Alone: make unit-sim. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "balance/decode_balance.h"
#include "cluster/expert_drift.h"
#include "cluster/sim.h"
#include "cluster/study_day.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Step times linear in the load, so that the table is exact. */
static double decode_time(void *ctx, double batch, double context)
{
    (void)ctx;
    return 0.010 + 0.0002 * batch + 1e-9 * batch * context;
}

static double prefill_time(void *ctx, double tokens, double context)
{
    (void)ctx;
    (void)context;
    return 0.020 + 1e-4 * tokens;
}

struct bench {
    struct workload w;
    struct arrival_curve curve;
    struct node_plan plan;
    struct sim_config c;
};

static struct bench *bench_new(double requests)
{
    struct bench *b = calloc(1, sizeof *b);
    struct session_params s = {.turns = 2,
                               .first_tokens = 800,
                               .first_sigma = 0.8,
                               .followup_tokens = 100,
                               .followup_sigma = 0.8,
                               .output_tokens = 200,
                               .output_sigma = 0.8,
                               .returned = 0.5,
                               .think_s = 20,
                               .think_sigma = 0.5,
                               .max_prompt = 32768};
    double bar[CURVE_HOURS];
    struct plan_role role = {.max_units = 3, .min_units = 1, .start_units = 3, .nodes = 1};
    struct autoscale_params a = {.drain_s = 30};
    for (int h = 0; h < CURVE_HOURS; h++) bar[h] = 1;
    assert_non_null(b);
    assert_int_equal(workload_build(&s, &b->w), OK);
    assert_int_equal(arrival_curve_build(bar, "flat", &b->curve), OK);
    assert_int_equal(node_plan_init(&b->plan, PLAN_FIXED, &role, &role, &a), OK);
    b->c = (struct sim_config){
        .workload = &b->w,
        .curve = &b->curve,
        .requests = requests,
        .hours = 0.5,
        .warmup_s = 600,
        .epoch_s = 0.1,
        .seed = 5,
        .tokens_per_step = 1,
        .kv_pages_per_gpu = 1000,
        .high_water = 0.95,
        .plan = &b->plan,
        .prefill = {.max_units = 3,
                    .gpus = 8,
                    .ranks = 1,
                    .nodes = 1,
                    .tokens_per_gpu = 4096,
                    .uneven = 1},
        .decode =
            {.max_units = 3, .gpus = 8, .ranks = 1, .nodes = 1, .tokens_per_gpu = 64, .uneven = 1},
    };
    assert_int_equal(sim_time_build(decode_time, NULL, 64, 8192, &b->c.decode.time), OK);
    assert_int_equal(sim_time_build(prefill_time, NULL, 4096, 8192, &b->c.prefill.time), OK);
    return b;
}

static void bench_free(struct bench *b)
{
    node_plan_free(&b->plan);
    free(b);
}

static struct sim_result run(struct bench *b)
{
    struct exchange ex = exchange_serial();
    struct sim_result r;
    assert_int_equal(sim_run(&b->c, &ex, &r), OK);
    return r;
}

/* In a steady state Little's law holds, tokens are those of the workload, and a token takes the
 * step time of the batch. */
static void steady_state(void **state)
{
    (void)state;
    struct bench *b = bench_new(90000); /* 50 a second */
    struct workload_means m;
    workload_measure(&b->w, 3, 200000, &m);
    struct sim_result r = run(b);
    double in = (double)(r.total[SIM_HIT] + r.total[SIM_MISS]), n = (double)r.total[SIM_ARRIVALS];
    double running = 0, out = (double)r.total[SIM_OUTPUT_Q10] / 1024;
    for (int i = 0; i < r.minutes; i++)
        running += (double)r.minute[i].n[SIM_DECODE_RUNNING] / r.minutes;
    double tpot =
        (double)r.total[SIM_TPOT_TICKS] / SIM_TICKS_PER_S / (double)r.total[SIM_TPOT_TOKENS];
    double little = n / 1800 * tpot * (m.output - 1), batch = running / 24;
    double step = decode_time(NULL, batch, m.kv_per_output);
    printf("arrivals %.0f, prompt %.1f (%.1f), output %.1f (%.1f), hits %.4f (%.4f)\n", n, in / n,
           m.prompt, out / n, m.output, (double)r.total[SIM_HIT] / in, m.hit_ratio);
    printf("running %.1f, Little %.1f; time per token %.3f ms, a step %.3f ms\n", running, little,
           1e3 * tpot, 1e3 * step);
    assert_true(fabs(n / 90000 - 1) < 0.008);
    assert_true(fabs(in / n / m.prompt - 1) < 0.02);
    assert_true(fabs(out / n / m.output - 1) < 0.02);
    assert_true(fabs((double)r.total[SIM_HIT] / in - m.hit_ratio) < 0.02);
    assert_true(fabs(running / little - 1) < 0.1);
    assert_true(tpot > 0.98 * step && tpot < 1.15 * step); /* hand-over adds part of an epoch */
    double kv = (double)r.total[SIM_KV_READ_Q10] / (double)r.total[SIM_OUTPUT_Q10];
    assert_true(fabs(kv / m.kv_per_output - 1) < 0.03);
    sim_result_free(&r);
    bench_free(b);
}

static void same_seed_same_bits(void **state)
{
    (void)state;
    struct bench *b = bench_new(40000);
    struct sim_result a = run(b), c = run(b);
    assert_memory_equal(a.total, c.total, sizeof a.total);
    b->c.seed++;
    struct sim_result d = run(b);
    assert_true(memcmp(a.total, d.total, sizeof a.total) != 0);
    sim_result_free(&a);
    sim_result_free(&c);
    sim_result_free(&d);
    bench_free(b);
}

/* A cache that holds a few seconds of conversations forgets them; what it keeps is bounded. */
static void small_cache_forgets(void **state)
{
    (void)state;
    struct bench *b = bench_new(40000);
    struct sim_result all = run(b);
    b->c.cache_pages = 2000;
    struct sim_result few = run(b);
    double share = (double)few.total[SIM_HIT] / (double)all.total[SIM_HIT];
    printf("hits of a small cache: %.3f of an unbounded one's, %lld entries lost\n", share,
           (long long)few.total[SIM_CACHE_LOST]);
    assert_true(share < 0.5);
    assert_true(few.total[SIM_CACHE_LOST] > 0 && all.total[SIM_CACHE_LOST] == 0);
    assert_true(few.total[SIM_CACHE_PAGES] < 2 * 2000);
    sim_result_free(&all);
    sim_result_free(&few);
    bench_free(b);
}

/* KV that does not suffice keeps requests waiting instead of overfilling the pages. */
static void admission_bounds_pages(void **state)
{
    (void)state;
    struct bench *b = bench_new(90000);
    b->c.kv_pages_per_gpu = 60;
    struct sim_result r = run(b);
    int64_t most = 0, waiting = 0;
    for (int i = 0; i < r.minutes; i++) {
        if (r.minute[i].n[SIM_KV_PAGES] > most) most = r.minute[i].n[SIM_KV_PAGES];
        waiting += r.minute[i].n[SIM_DECODE_WAITING];
    }
    printf("pages in use at most %lld of %d\n", (long long)most, 3 * 8 * 60);
    assert_true(most < 3 * 8 * 60 && waiting > 0);
    sim_result_free(&r);
    bench_free(b);
}

/* Answers longer than expected overfill the pages: the youngest requests step aside, nothing is
 * computed twice, and all tokens come out. */
static void pages_run_out(void **state)
{
    (void)state;
    struct bench *b = bench_new(58000), *roomy = bench_new(58000);
    b->c.kv_pages_per_gpu = 62;
    b->c.high_water = 1; /* admission promises all pages by the mean answer: some are longer */
    struct sim_result r = run(b), all = run(roomy);
    int64_t most = 0, host = 0;
    for (int i = 0; i < r.minutes; i++) {
        if (r.minute[i].n[SIM_KV_PAGES] > most) most = r.minute[i].n[SIM_KV_PAGES];
        host += r.minute[i].n[SIM_DECODE_ON_HOST];
    }
    double out = (double)r.total[SIM_OUTPUT_Q10], same = (double)all.total[SIM_OUTPUT_Q10];
    printf("moved to the host %lld, seen there at minutes' ends %lld, pages at most %lld of %d, "
           "output %.4f\n",
           (long long)r.total[SIM_PREEMPTED], (long long)host, (long long)most, 3 * 8 * 62,
           out / same);
    assert_true(r.total[SIM_PREEMPTED] > 20 && host > 0 && all.total[SIM_PREEMPTED] == 0);
    assert_true(most <= 3 * 8 * 62);
    assert_true(fabs((double)r.total[SIM_FINISHED] / (double)r.total[SIM_ARRIVALS] - 1) < 0.1);
    assert_true(fabs(out / same - 1) < 0.05);
    sim_result_free(&r);
    sim_result_free(&all);
    bench_free(b);
    bench_free(roomy);
}

/* The engine's balancers deal to the ranks of a unit: the same tokens, somewhat uneven ranks, and
 * steps as long as the busiest takes. */
static void balancers_deal_to_ranks(void **state)
{
    (void)state;
    struct bench *b = bench_new(90000), *whole = bench_new(90000);
    b->c.prefill.ranks = b->c.decode.ranks = 8;
    b->c.prefill.own_share = b->c.decode.own_share = 1;
    struct sim_result r = run(b), u = run(whole);
    double steps = (double)r.total[SIM_DECODE_STEPS] * 1024;
    double uneven = (double)r.total[SIM_DECODE_UNEVEN_Q10] / steps;
    double tpot = (double)r.total[SIM_TPOT_TICKS] / (double)r.total[SIM_TPOT_TOKENS];
    double even = (double)u.total[SIM_TPOT_TICKS] / (double)u.total[SIM_TPOT_TOKENS];
    printf("a step takes %.4f of an even one; time per token %.4f of a unit's as a whole\n", uneven,
           tpot / even);
    assert_true(uneven > 1.002 && uneven < 1.2);
    assert_true(fabs(tpot / even / uneven - 1) < 0.02);
    b->c.decode.ranks = 1; /* and as the factor of a unit as a whole */
    b->c.decode.uneven = uneven;
    struct sim_result f = run(b);
    double factor = (double)f.total[SIM_TPOT_TICKS] / (double)f.total[SIM_TPOT_TOKENS];
    assert_true(fabs(factor / tpot - 1) < 0.01);
    sim_result_free(&f);
    assert_true(fabs((double)r.total[SIM_OUTPUT_Q10] / (double)u.total[SIM_OUTPUT_Q10] - 1) < 0.02);
    sim_result_free(&r);
    sim_result_free(&u);
    bench_free(b);
    bench_free(whole);
}

/* A unit that leaves hands its requests on; none is lost and none is counted twice. */
static void moved_requests_are_kept(void **state)
{
    (void)state;
    struct bench *b = bench_new(60000);
    b->plan.mode = PLAN_STEPS;
    b->plan.n_steps = 2;
    b->plan.step[0] = (struct plan_step){0, 3, 3};
    b->plan.step[1] = (struct plan_step){900, 1, 1};
    b->plan.scale.drain_s = 0;
    struct sim_result r = run(b);
    struct bench *c = bench_new(60000);
    struct sim_result kept = run(c);
    double out = (double)r.total[SIM_OUTPUT_Q10], same = (double)kept.total[SIM_OUTPUT_Q10];
    printf("moved %lld, output %.4f of the run without\n", (long long)r.total[SIM_MOVED],
           out / same);
    assert_true(r.total[SIM_MOVED] > 0);
    assert_true(fabs(out / same - 1) < 0.02);
    assert_true(fabs((double)r.total[SIM_FINISHED] / (double)kept.total[SIM_FINISHED] - 1) < 0.02);
    assert_true(r.minute[20].prefill_node_ms == 60000);
    sim_result_free(&r);
    sim_result_free(&kept);
    bench_free(b);
    bench_free(c);
}

/* With more than one token a step the same tokens come out, in fewer steps. */
static void speculation_keeps_the_tokens(void **state)
{
    (void)state;
    struct bench *b = bench_new(60000);
    struct sim_result plain = run(b);
    b->c.tokens_per_step = 1.75;
    struct sim_result fast = run(b);
    double share = (double)fast.total[SIM_OUTPUT_Q10] / (double)plain.total[SIM_OUTPUT_Q10];
    double tpot = (double)fast.total[SIM_TPOT_TICKS] / (double)fast.total[SIM_TPOT_TOKENS] /
                  ((double)plain.total[SIM_TPOT_TICKS] / (double)plain.total[SIM_TPOT_TOKENS]);
    printf("output %.4f of plain, time per token %.3f\n", share, tpot);
    assert_true(fabs(share - 1) < 0.02);
    assert_true(tpot < 0.7);
    sim_result_free(&plain);
    sim_result_free(&fast);
    bench_free(b);
}

/* Buckets rise with the value, and a quantile is within a bucket's width. */
static void histogram(void **state)
{
    (void)state;
    static int64_t hist[SIM_HIST];
    int before = -1;
    for (uint32_t t = 1; t < 1u << 31; t += t / 7 + 1) {
        int b = sim_hist_bucket(t);
        assert_in_range(b, 0, SIM_HIST - 1);
        assert_true(b >= before);
        before = b;
        memset(hist, 0, sizeof hist);
        hist[b] = 1;
        double back = sim_hist_quantile(hist, 0.5);
        assert_true(fabs(back - t) <= 0.02 * t + 0.5);
    }
    memset(hist, 0, sizeof hist);
    assert_true(isnan(sim_hist_quantile(hist, 0.5)));
}

/* Loads that drift leave their placement; a new one by EPLB mends that, for a while. */
static void replanning_follows_the_load(void **state)
{
    (void)state;
    struct eplb_shape shape = {
        .layers = 4, .experts = 256, .groups = 8, .slots = 288, .ranks = 144, .nodes = 18};
    struct expert_drift_params p = {.sigma = 0.5, .tau_s = 7200, .replan_s = 600, .seed = 3};
    struct expert_drift d, never, still;
    assert_int_equal(expert_drift_run(&p, &shape, 241, &d), OK);
    p.replan_s = 0;
    assert_int_equal(expert_drift_run(&p, &shape, 241, &never), OK);
    p.sigma = 0;
    assert_int_equal(expert_drift_run(&p, &shape, 10, &still), OK);
    double mean = 0, stay = 0;
    for (int m = 0; m < 241; m++) {
        mean += d.imbalance[m] / 241;
        stay += d.never[m] / 241;
        assert_true(d.never[m] == never.imbalance[m]);
    }
    printf("imbalance %.3f with, %.3f without new plans; each from %.3f to %.3f\n", mean, stay,
           d.before, d.after);
    assert_int_equal(d.replans, 24);
    assert_int_equal(never.replans, 0);
    assert_true(d.after < 0.97 * d.before && mean < 0.95 * stay && d.after > 1);
    assert_true(still.imbalance[9] == still.imbalance[0]);
    expert_drift_free(&d);
    expert_drift_free(&never);
    expert_drift_free(&still);
}

static double slow_decode_time(void *ctx, double batch, double context)
{
    return 2 * decode_time(ctx, batch, context);
}

/* Step times follow the minute's imbalance: halfway between two tables is the mean of both. */
static void imbalance_slows_the_steps(void **state)
{
    (void)state;
    struct bench *b = bench_new(40000);
    struct sim_time *t = calloc(2 * SIM_EXPERT_TABLES, sizeof *t);
    float one[64], half[64];
    assert_non_null(t);
    for (int i = 0; i < SIM_EXPERT_TABLES; i++) {
        t[i] = b->c.prefill.time;
        t[SIM_EXPERT_TABLES + i] = b->c.decode.time;
    }
    assert_int_equal(sim_time_build(slow_decode_time, NULL, 64, 8192, &t[SIM_EXPERT_TABLES + 1]),
                     OK);
    for (int m = 0; m < 64; m++) {
        one[m] = 1;
        half[m] = 1.5;
    }
    struct sim_experts e = {.minutes = 64,
                            .imbalance = {one, half},
                            .at = {1, 2, 3, 4},
                            .table = {t, t + SIM_EXPERT_TABLES}};
    struct sim_result even = run(b);
    b->c.experts = &e;
    struct sim_result slow = run(b);
    double tpot[2] = {(double)even.total[SIM_TPOT_TICKS] / (double)even.total[SIM_TPOT_TOKENS],
                      (double)slow.total[SIM_TPOT_TICKS] / (double)slow.total[SIM_TPOT_TOKENS]};
    printf("time per token %.3f of even load\n", tpot[1] / tpot[0]);
    assert_true(tpot[1] > 1.4 * tpot[0] && tpot[1] < 1.6 * tpot[0]);
    sim_result_free(&even);
    sim_result_free(&slow);
    free(t);
    bench_free(b);
}

/* A sweep's point is the day that `study` runs: the money adds up, and what arrives leaves. */
static void a_point_is_a_day(void **state)
{
    (void)state;
    const char *const set[] = {
        "published=null",  "workload.hours=0.2", "workload.requests=1e5", "workload.warmup_s=300",
        "prefill.units=2", "decode.units=2",     "nodes.mode=fixed"};
    struct study s;
    struct study_plant *p = calloc(1, sizeof *p);
    struct study_day_totals t;
    assert_non_null(p);
    assert_int_equal(study_read("inputs/studies/deepseek_day.yaml", 7, set, &s, NULL), OK);
    assert_int_equal(study_plant_build(&s, p), OK);
    assert_int_equal(study_day_point(p, &t), OK);
    printf("requests %.0f, TPOT p50 %.4f s, batch %.1f, $ %.2f\n", t.requests, t.tpot_s[0], t.batch,
           t.cost_usd);
    assert_true(fabs(t.cost_usd - 44 * 8 * 2.0 * 0.2) < 1e-6);
    assert_true(fabs(t.requests / 1e5 - 1) < 0.02 && fabs(t.finished / t.requests - 1) < 0.1);
    assert_true(fabs(t.tokens_per_s_request * t.tpot_s[0] - 1) < 0.1);
    assert_true(t.batch > 1 && t.ttft_s[0] < t.ttft_s[2] && t.minutes == 12);
    study_plant_free(p);
    free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steady_state),
        cmocka_unit_test(same_seed_same_bits),
        cmocka_unit_test(small_cache_forgets),
        cmocka_unit_test(admission_bounds_pages),
        cmocka_unit_test(pages_run_out),
        cmocka_unit_test(balancers_deal_to_ranks),
        cmocka_unit_test(moved_requests_are_kept),
        cmocka_unit_test(speculation_keeps_the_tokens),
        cmocka_unit_test(histogram),
        cmocka_unit_test(replanning_follows_the_load),
        cmocka_unit_test(imbalance_slows_the_steps),
        cmocka_unit_test(a_point_is_a_day),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
