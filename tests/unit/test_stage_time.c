/* links: core cluster balance schedule kvcache checkpoint config account */
/* test_stage_time.c - the stage-time and unit model against what it is made from: the ISCA'25
 * network bound, measured kernels, both traces; counting of destination nodes against a
 * simulation; monotony, table interpolation, memory, errors. No end-to-end throughput is a target
 * here. Alone: make unit-stage_time.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cluster/unit_model.h"
#include "core/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct hardware h800;
static struct model_config v3;

static int setup(void **state)
{
    (void)state;
    if (hardware_find("inputs/hardware", "h800", &h800) != OK) return -1;
    return model_config_read("inputs/shapes/deepseek-v3", &v3) == OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    hardware_free(&h800);
    return 0;
}

static void near_to(const char *what, double got, double want, double tolerance)
{
    double off = fabs(got - want) / want;
    printf("# %-46s %12.4f, expected %12.4f: %3.0f %% of the tolerance\n", what, got, want,
           100 * off / tolerance);
    if (!(off <= tolerance)) fail_msg("%s: %g, expected %g", what, got, want);
}

static struct unit_speed *unit(enum unit_role role, enum unit_level level, int ep, bool mtp)
{
    struct unit_config c;
    struct unit_speed *u = NULL;
    unit_config_defaults(&c, role);
    c.level = level, c.ep = ep, c.mtp = mtp;
    if (unit_speed_create(&h800, &v3, &c, &u) != OK) fail_msg("%s", error_text());
    return u;
}

/* Insights into DeepSeek-V3 (ISCA'25), section 2.3.2, with its rounded inputs and with 7168. */
static void test_isca_bound(void **state)
{
    (void)state;
    double us = comm_bound_us(32, 9, 7000, 1, 2, 50), exact = comm_bound_us(32, 9, 7168, 1, 2, 50);
    near_to("dispatch + combine, hidden 7000, us", us, 120.96, 1e-6);
    near_to("TPOT, 61 layers, 2 micro-batches, ms", us * 61 * 2e-3, 14.76, 5e-4);
    near_to("dispatch + combine, hidden 7168, us", exact, 123.86, 5e-5);
    near_to("TPOT, hidden 7168, ms", exact * 61 * 2e-3, 15.11, 5e-4);
}

/* A measured shape and row count comes back as measured. */
static void test_gemm_points(void **state)
{
    (void)state;
    struct gemm_curve c;
    gemm_curve_build(&h800, GEMM_FP8, 7168, 16384, &c);
    near_to("o_proj, 128 rows, us", gemm_curve_at(&c, 128, 1, 1).us,
            2.0 * 7168 * 16384 * 128 / 645e6, 1e-9);
    near_to("o_proj, 4096 rows, us", gemm_curve_at(&c, 4096, 1, 1).us,
            2.0 * 7168 * 16384 * 4096 / 1358e6, 1e-9);
    gemm_curve_build(&h800, GEMM_MASKED_FP8, 4096, 7168, &c);
    near_to("masked 2 x 512, us", gemm_curve_at(&c, 512, 2, 1).us,
            2.0 * 4096 * 7168 * 1024 / 1040e6, 1e-9);
    double last = 0;
    for (double m = 1; m < 40000; m *= 1.3) {
        double us = gemm_curve_at(&c, m, 4, 1).us;
        assert_true(us >= last);
        last = us;
    }
}

/* Distinct nodes of a token against drawing groups and experts. */
static void test_distinct_nodes(void **state)
{
    (void)state;
    static const int bins[] = {2, 4, 8};
    for (int b = 0; b < 3; b++) {
        double sum = 0;
        enum { DRAWS = 40000 };
        for (int t = 0; t < DRAWS; t++) {
            int group[8], expert[128], hit[8] = {0}, n = 0;
            for (int i = 0; i < 8; i++) group[i] = i;
            for (int i = 0; i < 4; i++) { /* the first four of a shuffle are kept */
                int j = i + (int)(rng_uniform(1, (uint64_t)(t * 64 + i)) * (8 - i));
                int g = group[j];
                group[j] = group[i], group[i] = g;
                for (int e = 0; e < 32; e++) expert[n++] = g * 32 + e;
            }
            for (int i = 0; i < 8; i++) {
                int j = i + (int)(rng_uniform(2, (uint64_t)(t * 64 + i)) * (128 - i));
                int e = expert[j];
                expert[j] = expert[i];
                hit[e / 32 / (8 / bins[b])] = 1;
            }
            for (int i = 0; i < bins[b]; i++) sum += hit[i];
        }
        char what[64];
        snprintf(what, sizeof what, "distinct nodes of %d", bins[b]);
        near_to(what, comm_distinct(&v3, bins[b]), sum / DRAWS, 0.005);
    }
    near_to("distinct groups", comm_distinct_groups(&v3), comm_distinct(&v3, 8), 1e-9);
    assert_true(comm_distinct(&v3, 1) == 1);
}

/* The decode trace that calibrated the constants: EP128, 128 requests, 2 query tokens, KV 4096. */
static void test_decode_trace(void **state)
{
    (void)state;
    struct unit_config c;
    struct unit_speed *u;
    struct unit_step s;
    unit_config_defaults(&c, UNIT_DECODE);
    c.ep = 128, c.redundant_experts = 0, c.mtp = true;
    assert_int_equal(unit_speed_create(&h800, &v3, &c, &u), OK);
    unit_decode_step(u, 128, 4096, &s);
    const struct stage_time *t = s.stage;
    near_to("dispatch, us", t[STAGE_DISPATCH].us, 187, 0.01);
    near_to("combine, us", t[STAGE_COMBINE].us, 394, 0.01);
    near_to("experts, silu, us", t[STAGE_MLP].us - h800.calibrated.gap_decode_us, 128, 0.01);
    near_to("attention and gate, us", t[STAGE_ATTN_0].us + t[STAGE_ATTN_1].us, 388 + 19, 0.02);
    near_to("layers, ms", (s.layers_s - 2 * s.stage_s[STAGE_HEAD]) * 1e3, 87.32, 0.005);
    near_to("step, ms", s.step_s * 1e3, 96.0, 0.005);
    unit_speed_free(u);
}

/* The training trace's forward layer: 4096 tokens, EP64 on 8 nodes, 20 SMs communicate. */
static void test_training_trace(void **state)
{
    (void)state;
    struct hardware hw = h800;
    hw.comm.comm_sms_prefill = 20;
    struct stage_setup setup = {.calibrated = true,
                                .overlap = true,
                                .ep = 64,
                                .nodes = 8,
                                .slots_per_gpu = 4,
                                .imbalance = 1};
    struct stage_model m;
    struct stage_times t;
    stage_model_build(&hw, &v3, &setup, &m);
    struct stage_load load = {
        .tokens = 4096, .pairs = unit_prompt_pairs(4096, 0), .head_tokens = 1};
    stage_times_at(&m, &load, &t);
    near_to("attention, us", t.stage[STAGE_ATTN].us, 4363 - 188, 0.01);
    near_to("experts + shared, us", t.stage[STAGE_MLP].us + t.stage[STAGE_SHARED].us, 4604 - 160,
            0.01);
    near_to("dispatch, us", t.stage[STAGE_DISPATCH].us, 4346, 0.02);
    near_to("combine, us", t.stage[STAGE_COMBINE].us, 5994, 0.02);
}

static void test_monotone(void **state)
{
    (void)state;
    for (int level = 0; level < 2; level++) {
        struct unit_speed *p = unit(UNIT_PREFILL, (enum unit_level)level, 32, false);
        struct unit_speed *d = unit(UNIT_DECODE, (enum unit_level)level, 144, level);
        double last = 0;
        for (double b = 1; b <= 128; b *= 2, last = unit_decode_step_s(d, b / 2, 4989))
            assert_true(unit_decode_step_s(d, b, 4989) > last);
        assert_true(unit_decode_step_s(d, 64, 8000) > unit_decode_step_s(d, 64, 4000));
        last = unit_prefill_step_s(p, 8192, 8192.0 * 2048);
        assert_true(unit_prefill_step_s(p, 16384, 16384.0 * 2048) > 1.8 * last);
        assert_true(unit_prefill_step_s(p, 8192, 8192.0 * 8192) > last);
        unit_speed_free(p);
        unit_speed_free(d);
    }
}

/* Overlap hides communication; imbalance and no overlap cost time; the placement is EPLB's. */
static void test_choices(void **state)
{
    (void)state;
    struct unit_config c;
    struct unit_speed *u;
    double step[4];
    float load[256];
    for (int e = 0; e < 256; e++) load[e] = e == 7 ? 3000.f : 10.f;
    for (int i = 0; i < 4; i++) {
        unit_config_defaults(&c, UNIT_DECODE);
        c.overlap = i != 1;
        c.imbalance = i == 2 ? 1.5 : 0;
        c.load = i == 3 ? load : NULL;
        assert_int_equal(unit_speed_create(&h800, &v3, &c, &u), OK);
        step[i] = unit_decode_step_s(u, 96, 4989);
        if (i == 3) assert_true(unit_imbalance(u) > 1.5); /* 32 replicas cannot level 300 x */
        unit_speed_free(u);
    }
    assert_true(step[1] > 1.15 * step[0]);
    assert_true(step[2] > step[0] && step[3] > step[0]);
}

static void test_table(void **state)
{
    (void)state;
    struct unit_speed *u[2] = {unit(UNIT_PREFILL, UNIT_CALIBRATED, 32, false),
                               unit(UNIT_DECODE, UNIT_CALIBRATED, 144, true)};
    const double max_x[2] = {16384, 128}, max_y[2] = {32768, 32768};
    for (int i = 0; i < 2; i++) {
        struct unit_table t;
        double worst = 0, worst_x = 0, worst_y = 0;
        assert_int_equal(unit_table_build(u[i], max_x[i], max_y[i], &t), OK);
        for (uint64_t k = 0; k < 400; k++) {
            double x = 1 + rng_uniform(5, k) * (max_x[i] - 1);
            double y = 64 + rng_uniform(6, k) * (max_y[i] - 64);
            double s = i ? unit_decode_step_s(u[i], x, y) : unit_prefill_step_s(u[i], x, x * y);
            double off = fabs(unit_table_at(&t, x, y) / s - 1);
            if (off > worst) worst = off, worst_x = x, worst_y = y;
        }
        printf("# table %s: worst interpolation error %.2f %% at (%.1f, %.0f), %.0f %% of the "
               "tolerance\n",
               i ? "decode" : "prefill", worst * 100, worst_x, worst_y, worst * 1e4);
        assert_true(worst < 0.01);
        unit_table_free(&t);
        unit_speed_free(u[i]);
    }
}

static void test_memory(void **state)
{
    (void)state;
    struct unit_speed *u = unit(UNIT_DECODE, UNIT_CALIBRATED, 144, false);
    struct unit_memory m;
    unit_memory(u, &m);
    near_to("KV of a token, bytes", unit_kv_bytes_per_token(u), 61 * 576 * 2, 1e-9);
    near_to("components sum to the capacity",
            m.replicated + m.routed + m.absorbed + m.comm + m.activation + m.reserve + m.kv,
            m.capacity, 1e-9);
    near_to("two expert slots, 58 layers, GB", m.routed * 1e-9, 2 * 58 * 44.04e-3, 0.01);
    assert_int_equal((int)unit_max_batch(u, 4989), 128);
    assert_true(unit_max_batch(u, 100000) < 8);
    unit_speed_free(u);
}

/* A load of several layers counts by the mean of their imbalances after EPLB. */
static void test_load_of_layers(void **state)
{
    (void)state;
    static float load[2 * 256];
    double alone[2] = {0, 0}, both = 0;
    for (int e = 0; e < 512; e++) load[e] = 100;
    load[256 + 17] = 5000; /* the second layer has a busy expert */
    for (int k = 0; k < 3; k++) {
        struct unit_config c;
        struct unit_speed *u = NULL;
        unit_config_defaults(&c, UNIT_DECODE);
        c.load = k == 2 ? load : load + 256 * k;
        c.load_layers = k == 2 ? 2 : 1;
        assert_int_equal(unit_speed_create(&h800, &v3, &c, &u), OK);
        *(k == 2 ? &both : &alone[k]) = unit_imbalance(u);
        unit_speed_free(u);
    }
    assert_true(alone[0] < alone[1]);
    near_to("imbalance of two layers", both, (alone[0] + alone[1]) / 2, 1e-9);
}

/* Where the table's rows time the whole expert layer, its small kernels are not added again; the
 * shared expert keeps its own. */
static void test_whole_expert_rows(void **state)
{
    (void)state;
    struct hardware whole = h800;
    whole.expert_rows_whole = true;
    for (int role = 0; role < 2; role++) {
        struct unit_config c;
        struct unit_speed *u[2];
        struct unit_step s[2];
        unit_config_defaults(&c, (enum unit_role)role);
        assert_int_equal(unit_speed_create(&h800, &v3, &c, &u[0]), OK);
        assert_int_equal(unit_speed_create(&whole, &v3, &c, &u[1]), OK);
        for (int k = 0; k < 2; k++) {
            if (role)
                unit_decode_step(u[k], 128, 4096, &s[k]);
            else
                unit_prefill_step(u[k], 16384, 16384.0 * 2048, &s[k]);
            unit_speed_free(u[k]);
        }
        double off =
            s[0].stage[STAGE_MLP].part[BOUND_KERNELS] - s[1].stage[STAGE_MLP].part[BOUND_KERNELS];
        double want =
            role ? 2 + 6 * 64 / 128.0 : h800.calibrated.elementwise_mlp_us_per_row * 8192 * v3.topk;
        near_to(role ? "decode experts' small kernels, us" : "prefill experts' small kernels, us",
                off, want, 1e-6);
        assert_true(s[1].stage[STAGE_SHARED].part[BOUND_KERNELS] ==
                    s[0].stage[STAGE_SHARED].part[BOUND_KERNELS]);
    }
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        int ep, nodes, redundant;
        double imbalance;
        const char *says;
    } bad[] = {
        {0, 0, -1, 0, "ep is 0"},
        {100, 0, -1, 0, "4 would stand idle"},
        {160, 0, 32, 0, "= 288 slots evenly: take ep 144 or 288"},
        {32, 3, -1, 0, "ep 32 on 3 nodes"},
        {8, 0, 0, 0, "does not fit a GPU of H800 with 80.0 GB"},
        {144, 0, 32, 0.5, "imbalance is 0.5"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct unit_config c;
        struct unit_speed *u = NULL;
        unit_config_defaults(&c, UNIT_DECODE);
        c.ep = bad[i].ep, c.nodes = bad[i].nodes, c.redundant_experts = bad[i].redundant;
        c.imbalance = bad[i].imbalance;
        error_clear();
        enum status st = unit_speed_create(&h800, &v3, &c, &u);
        assert_int_equal(st, strstr(bad[i].says, "fit") ? ERR_RESOURCE : ERR_INPUT);
        if (!strstr(error_text(), bad[i].says))
            fail_msg("'%s' lacks '%s'", error_text(), bad[i].says);
        assert_null(u);
    }
    error_clear();
}

/* Sizes beyond the measured ones are named; every committed model and GPU gives a finite step. */
static void test_everywhere(void **state)
{
    (void)state;
    static const char *const gpus[] = {"h800", "h100", "h200", "h20", "b200", "gb200", "gb300"};
    static const char *const models[] = {"deepseek-r1", "kimi-k2", "deepseek-v2-lite"};
    for (int g = 0; g < 7; g++)
        for (int k = 0; k < 3; k++) {
            struct hardware hw;
            struct model_config m;
            char dir[128];
            snprintf(dir, sizeof dir, "inputs/shapes/%s", models[k]);
            assert_int_equal(hardware_find("inputs/hardware", gpus[g], &hw), OK);
            assert_int_equal(model_config_read(dir, &m), OK);
            for (int role = 0; role < 2; role++) {
                struct unit_config c;
                struct unit_speed *u;
                unit_config_defaults(&c, (enum unit_role)role);
                c.ep = k == 2 ? 8 : role ? 144 : 32;
                if (unit_speed_create(&hw, &m, &c, &u) != OK)
                    fail_msg("%s on %s: %s", models[k], gpus[g], error_text());
                double s = role ? unit_decode_step_s(u, 64, 4096)
                                : unit_prefill_step_s(u, 8192, 8192.0 * 2048);
                assert_true(isfinite(s) && s > 1e-4 && s < 60);
                bool h100 = !strcmp(gpus[g], "h100");
                if (h100 && c.ep == 144) assert_non_null(unit_extrapolated(u));
                if (!strcmp(gpus[g], "h800")) assert_null(unit_extrapolated(u));
                unit_speed_free(u);
            }
            hardware_free(&hw);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_isca_bound),
                                       cmocka_unit_test(test_gemm_points),
                                       cmocka_unit_test(test_distinct_nodes),
                                       cmocka_unit_test(test_decode_trace),
                                       cmocka_unit_test(test_training_trace),
                                       cmocka_unit_test(test_monotone),
                                       cmocka_unit_test(test_choices),
                                       cmocka_unit_test(test_table),
                                       cmocka_unit_test(test_memory),
                                       cmocka_unit_test(test_load_of_layers),
                                       cmocka_unit_test(test_whole_expert_rows),
                                       cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_everywhere)};
    return cmocka_run_group_tests_name("stage_time", tests, setup, teardown);
}
