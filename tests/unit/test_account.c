/* links: core account */
/* test_account.c - the account's arithmetic against the published day, and the running summary.
 * Rerun alone: make unit-account */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "account/account.h"
#include "account/summary.h"
#include "core/rng.h"

#define ASSERT_NEAR(value, expected, tolerance)                                               \
    do {                                                                                      \
        double v_ = (value), e_ = (expected), t_ = (tolerance);                               \
        printf("# %s = %.9g, expected %.9g, %.1f %% of the tolerance used\n", #value, v_, e_, \
               fabs(v_ - e_) / t_ * 100);                                                     \
        assert_true(fabs(v_ - e_) <= t_);                                                     \
    } while (0)

static const struct account_prices published = {2.0, 0.14, 0.55, 2.19};

/* deepseek-ai/open-infra-index, day 6: 226.75 nodes of 8 GPUs over 24 hours. */
static void test_published_day(void **state)
{
    (void)state;
    struct account_usage day = {
        .gpu_seconds = 226.75 * 8 * 24 * 3600,
        .wall_s = 86400,
        .ranks = 226.75 * 8,
        .nodes = 226.75,
        .hit_tokens = 342e9,
        .miss_tokens = 266e9,
        .output_tokens = 168e9,
    };
    struct account a = account_compute(&day, &published);
    ASSERT_NEAR(a.cost_usd, 87072, 1e-6);
    ASSERT_NEAR(a.revenue_usd, 562100, 1e-6);
    ASSERT_NEAR(a.profit_usd, 562100 - 87072, 1e-6);
    ASSERT_NEAR(a.margin_on_cost * 100, 545.6, 0.05);
    ASSERT_NEAR(a.gross_margin * 100, 84.5, 0.05);
    ASSERT_NEAR(a.output_tokens_per_s_node, 8575, 0.5);
    ASSERT_NEAR(a.output_tokens_per_s_rank, 8575.3 / 8, 0.05);
    ASSERT_NEAR(a.usd_cost_per_m_output, 87072 / 168e3, 1e-9);
    /* 562,027 was published, from token counts before rounding */
    ASSERT_NEAR(a.revenue_usd, 562027, 100);
}

static void test_nothing_to_divide_by(void **state)
{
    (void)state;
    struct account a = account_compute(&(struct account_usage){0}, &published);
    assert_true(a.cost_usd == 0 && a.revenue_usd == 0 && a.profit_usd == 0);
    assert_true(isnan(a.margin_on_cost) && isnan(a.gross_margin));
    assert_true(isnan(a.output_tokens_per_s_node) && isnan(a.usd_cost_per_m_output));

    struct account_usage idle = {.gpu_seconds = 3600, .wall_s = 3600, .ranks = 1, .nodes = 1};
    a = account_compute(&idle, &published);
    assert_true(a.cost_usd == 2.0 && a.margin_on_cost == -1.0);
    assert_true(isnan(a.gross_margin));
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Percentiles against the sorted samples: the header promises 1 %. */
static void test_histogram(void **state)
{
    (void)state;
    enum { N = 5000 };
    static double sample[N];
    static struct histogram h;
    memset(&h, 0, sizeof h);
    for (int i = 0; i < N; i++) {
        sample[i] = exp(rng_normal(7, (uint64_t)i) * 2 - 3); /* 1e-4 .. 1e2 s */
        histogram_add(&h, sample[i]);
    }
    histogram_add(&h, (double)NAN); /* ignored */
    assert_int_equal(h.count, N);
    qsort(sample, N, sizeof *sample, by_value);
    const double quantile[] = {0, 0.01, 0.5, 0.9, 0.99, 1};
    for (size_t i = 0; i < sizeof quantile / sizeof *quantile; i++) {
        int rank = (int)ceil(quantile[i] * N);
        double exact = sample[rank ? rank - 1 : 0];
        ASSERT_NEAR(histogram_quantile(&h, quantile[i]), exact, exact * 0.0101);
    }
    struct histogram empty = {0};
    assert_true(isnan(histogram_quantile(&empty, 0.5)) && isnan(histogram_mean(&empty)));
    histogram_add(&empty, 1e-12);
    histogram_add(&empty, 1e12);
    assert_true(histogram_quantile(&empty, 0.5) <= 1.1e-6);
    assert_true(empty.max == 1e12);
}

static struct request_row answered(int64_t index, int32_t prompt, int32_t cached, int32_t output)
{
    return (struct request_row){
        .index = index,
        .status = REQUEST_OK,
        .prompt_tokens = prompt,
        .cached_tokens = cached,
        .output_tokens = output,
        .t_arrival = 1,
        .t_first_token = 3,
        .t_finish = 3 + 0.25 * (output - 1),
    };
}

static struct rank_row rank_of(const char *role, int attempt, int rank, int node, int local,
                               double compute)
{
    struct rank_row r = {.attempt = attempt,
                         .rank = rank,
                         .node = node,
                         .local = local,
                         .compute_s = compute,
                         .exposed_comm_s = 1,
                         .idle_s = 3 - compute};
    snprintf(r.role, sizeof r.role, "%s", role);
    return r;
}

/* Two prefill ranks on two nodes, two decode ranks on one, one attempt of 10 s before it. */
static void fill(struct summary *s)
{
    summary_init(s);
    for (int i = 0; i < 4; i++) {
        struct request_row r = answered(i, 100, 20, 5);
        summary_add_request(s, &r);
    }
    struct request_row failed = {.status = REQUEST_FAILED, .prompt_tokens = 9};
    summary_add_request(s, &failed);
    struct step_row step = {.t_start = 2,
                            .duration = 1,
                            .tokens = 320,
                            .attn_mean = 10,
                            .attn_max = 15,
                            .expert_mean = 4,
                            .expert_max = 4};
    summary_add_step(s, STEP_PREFILL, &step);
    step = (struct step_row){.t_start = 3, .duration = 1, .tokens = 8, .kv_mean = 1, .kv_max = 3};
    summary_add_step(s, STEP_DECODE, &step);
    step = (struct step_row){.t_start = 4, .duration = 3, .tokens = 8, .kv_mean = 1, .kv_max = 1};
    summary_add_step(s, STEP_DECODE, &step);
    struct rank_row old = rank_of("decode", 0, 0, 9, 0, 3);
    summary_add_rank(s, &old); /* forgotten when the next attempt's rows come */
    for (int i = 0; i < 2; i++) {
        struct rank_row p = rank_of("prefill", 1, i, i, i, 1),
                        d = rank_of("decode", 1, 2 + i, 1, i, 1 + i);
        summary_add_rank(s, &p);
        summary_add_rank(s, &d);
    }
    struct attempt_row a = {.ranks = 1, .nodes = 1, .wall_s = 10, .gpu_s = 10, .isa = "portable"};
    summary_add_attempt(s, &a);
    a = (struct attempt_row){
        .ranks = 4, .nodes = 2, .wall_s = 10, .gpu_s = 40, .isa = "avx2", .transport = "shm"};
    summary_add_attempt(s, &a);
    summary_finish(s, &published);
}

static void test_summary(void **state)
{
    (void)state;
    static struct summary s;
    fill(&s);
    const struct throughput_row *t = &s.throughput;
    assert_int_equal(t->prefill_tokens, 320);
    assert_int_equal(t->cached_tokens, 80);
    assert_int_equal(t->decode_tokens, 16);
    assert_int_equal(t->prefill_ranks, 2);
    assert_int_equal(t->prefill_nodes, 2);
    assert_int_equal(t->decode_ranks, 2);
    assert_int_equal(t->decode_nodes, 1);
    assert_true(t->prefill_span_s == 1 && t->decode_span_s == 4 && t->decode_step_s == 4);
    assert_true(t->prefill_tokens_per_s == 320 && t->prefill_tokens_per_s_node == 160);
    assert_true(t->input_tokens_per_s_node == 200);
    assert_true(t->decode_tokens_per_s == 4 && t->decode_tokens_per_s_rank == 2);
    ASSERT_NEAR(t->ttft_p50_s, 2, 0.02);
    ASSERT_NEAR(t->tpot_mean_s, 0.25, 1e-12);
    assert_true(s.busy[ROLE_DECODE].min == 1.0 / 4 && s.busy[ROLE_DECODE].max == 2.0 / 4);
    ASSERT_NEAR(summary_deviation(&s, STEP_PREFILL, LOAD_ATTENTION), 1.5, 1e-12);
    ASSERT_NEAR(summary_deviation(&s, STEP_DECODE, LOAD_KV), (3 * 1 + 1 * 3) / 4.0, 1e-12);
    assert_true(isnan(summary_deviation(&s, STEP_DECODE, LOAD_ATTENTION)));
    /* 50 GPU-seconds over 20 s: 2.5 ranks, 1.5 nodes on average */
    ASSERT_NEAR(s.account.cost_usd, 50.0 / 3600 * 2, 1e-12);
    ASSERT_NEAR(s.account.output_tokens_per_s_node, 20 / 20.0 / 1.5, 1e-12);
    ASSERT_NEAR(s.account.revenue_usd, (80 * 0.14 + 320 * 0.55 + 20 * 2.19) / 1e6, 1e-15);
    assert_true(s.valid);
    assert_string_equal(s.reason, "all 5 requests ended: 4 ok, 1 failed");
}

static void test_table_and_verdict(void **state)
{
    (void)state;
    static struct summary s;
    fill(&s);
    char *text;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    summary_print(&s, "outputs/x.h5", out);
    fclose(out);
    fputs(text, stdout);
    assert_non_null(strstr(text, "25.0 / 37.5 / 50.0"));
    assert_non_null(strstr(text, "# results: outputs/x.h5\n"));
    const char *last = strstr(text, "\nVALID: ");
    assert_non_null(last);
    assert_int_equal(strchr(last + 1, '\n') - text, (ptrdiff_t)bytes - 1);
    free(text);

    summary_init(&s);
    struct request_row pending = {.status = REQUEST_PENDING};
    summary_add_request(&s, &pending);
    summary_finish(&s, &published);
    assert_false(s.valid);
    assert_string_equal(s.reason, "1 of 1 requests are pending");
    summary_invalid(&s, "later reasons do not replace it");
    assert_string_equal(s.reason, "1 of 1 requests are pending");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_day),     cmocka_unit_test(test_nothing_to_divide_by),
        cmocka_unit_test(test_histogram),         cmocka_unit_test(test_summary),
        cmocka_unit_test(test_table_and_verdict),
    };
    return cmocka_run_group_tests_name("account", tests, NULL, NULL);
}
