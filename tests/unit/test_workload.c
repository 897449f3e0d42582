/* links: core cluster balance schedule kvcache checkpoint config account */
/* test_workload.c - tables, fit, curve, traces. Alone: make unit-workload. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cluster/workload_fit.h"
#include "cluster/workload_trace.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct session_params given(void)
{
    return (struct session_params){.turns = 2,
                                   .first_tokens = 1000,
                                   .first_sigma = 1,
                                   .followup_tokens = 120,
                                   .followup_sigma = 1,
                                   .output_tokens = 500,
                                   .output_sigma = 1,
                                   .returned = 0.35,
                                   .think_s = 60,
                                   .think_sigma = 1,
                                   .max_prompt = 65536};
}

static void share(const char *what, double error, double tolerance)
{
    printf("%s: error %.3g, %.0f %% of the tolerance\n", what, error, 100 * error / tolerance);
    assert_true(error <= tolerance);
}

/* Rounding to whole tokens keeps a table's mean. */
static void tables_keep_their_mean(void **state)
{
    (void)state;
    static struct workload w;
    struct session_params s = given();
    assert_int_equal(workload_build(&s, &w), OK);
    double sum = 0;
    for (int i = 0; i < DRAW_ENTRIES; i++) sum += w.first.v[i];
    share("first message", fabs(sum / DRAW_ENTRIES - s.first_tokens), 0.01);
    share("output", fabs(w.mean_output - s.output_tokens), 0.01);
}

/* An independent sample of sessions shows the fitted means. */
static void fit_meets_targets(void **state)
{
    (void)state;
    static struct workload w;
    struct session_params s = given();
    struct workload_means m, again;
    struct workload_targets t = {3576.47, 988.235, 0.5625, 4989};
    assert_int_equal(workload_fit(&t, 1, &s, &m), OK);
    assert_int_equal(workload_build(&s, &w), OK);
    workload_measure(&w, 99, 400000, &again);
    share("prompt", fabs(again.prompt / t.prompt - 1), 0.005);
    share("output", fabs(again.output / t.output - 1), 0.001);
    share("hit ratio", fabs(again.hit_ratio - t.hit_ratio), 0.003);
    share("KV", fabs(again.kv_per_output / t.kv_per_output - 1), 0.005);
}

static void refused(const struct workload_targets *t, const char *text)
{
    struct session_params s = given();
    struct workload_means m;
    error_clear();
    assert_int_equal(workload_fit(t, 1, &s, &m), ERR_INPUT);
    if (!strstr(error_text(), text)) fail_msg("%s is not in: %s", text, error_text());
    error_clear();
}

static void fit_refuses_the_impossible(void **state)
{
    (void)state;
    refused(&(struct workload_targets){3000, 1000, 0.5, 3200}, "impossible");
    refused(&(struct workload_targets){3000, 1000, 0.99, 5000}, "hit ratio");
    refused(&(struct workload_targets){600, 2000, 0.9, 5000}, "turns a session");
    refused(&(struct workload_targets){-5, 1000, 0.5, 5000}, "at least 1 token");
}

/* Each hour's integral is its bar. */
static void curve_keeps_the_bars(void **state)
{
    (void)state;
    double bar[CURVE_HOURS], sum = 0, worst = 0;
    struct arrival_curve c;
    for (int h = 0; h < CURVE_HOURS; h++) sum += bar[h] = 20 + 10 * sin(h * 0.26);
    assert_int_equal(arrival_curve_build(bar, "test", &c), OK);
    for (int h = 0; h < CURVE_HOURS; h++) {
        double integral = 0;
        for (int i = 0; i < 1000; i++)
            integral += arrival_curve_at(&c, h + (i + 0.5) / 1000) / 1000;
        worst = fmax(worst, fabs(integral * sum / CURVE_HOURS / bar[h] - 1));
    }
    share("bars", worst, 1e-5);
    bar[3] = -1;
    assert_int_equal(arrival_curve_build(bar, "test", &c), ERR_INPUT);
    error_clear();
}

static enum status read_text(const char *text, const char *end, struct workload_trace *t)
{
    char path[64] = "/tmp/moebatch-trace-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    unlink(path);
    strcat(path, end);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    error_clear();
    enum status st = workload_trace_read(path, t);
    unlink(path);
    return st;
}

static void traces(void **state)
{
    (void)state;
    struct workload_trace t;
    assert_int_equal(read_text("{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 5, "
                               "\"hash_ids\": [0, 1]}\n{\"timestamp\": 3000, "
                               "\"input_length\": 700, "
                               "\"output_length\": 7, \"hash_ids\": [0, 2]}\n",
                               ".jsonl", &t),
                     OK);
    assert_int_equal(t.n, 2);
    assert_int_equal(t.max_block, 3);
    assert_int_equal(t.blocks[t.row[1].first_block + 1], 2);
    assert_true(t.row[1].t_s == 3.0);
    workload_trace_free(&t);
    assert_int_equal(read_text("arrived_at,num_prefill_tokens,num_decode_tokens\n"
                               "0,10,2\n0.5,4,3\n",
                               ".csv", &t),
                     OK);
    assert_true(t.n == 2 && t.row[1].output == 3);
    workload_trace_free(&t);
    const struct {
        const char *text, *error;
    } bad[] = {{"arrived_at,num_prefill_tokens,num_decode_tokens\n", "empty"},
               {"5,10,2\n4,10,2\n", "sorted"},
               {"0,-10,2\n", "-10 prompt"},
               {"0,10\n", ":1: expected"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(read_text(bad[i].text, ".csv", &t), ERR_INPUT);
        if (!strstr(error_text(), bad[i].error)) fail_msg("%s: %s", bad[i].error, error_text());
        error_clear();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_keep_their_mean),
        cmocka_unit_test(fit_meets_targets),
        cmocka_unit_test(fit_refuses_the_impossible),
        cmocka_unit_test(curve_keeps_the_bars),
        cmocka_unit_test(traces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
