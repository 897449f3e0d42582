/* links: core cluster balance schedule kvcache checkpoint config account */
/* test_forecast.c - forecasters on a noisy daily wave; node plans. Alone: make unit-forecast. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cluster/autoscale.h"
#include "cluster/forecast.h"
#include "core/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PER_DAY = 96, DAYS = 14, LEAD = 4 };

static double wave(int i)
{
    double day = 100 + 60 * sin(2 * M_PI * i / PER_DAY);
    return day * (1 + 0.03 * rng_normal(7, (uint64_t)i));
}

/* Mean absolute error of the peak of the next LEAD values over an unseen day, % of the mean. */
static double error_of(enum forecast_kind kind)
{
    static double history[PER_DAY * DAYS];
    struct forecast *f;
    for (int i = 0; i < PER_DAY * DAYS; i++) history[i] = wave(i);
    assert_int_equal(forecast_create(kind, PER_DAY, LEAD, 3, &f), OK);
    assert_int_equal(forecast_train(f, history, PER_DAY * DAYS, 0, 0), OK);
    double error = 0;
    for (int i = 0; i < PER_DAY; i++) {
        int at = PER_DAY * DAYS + i;
        forecast_add(f, wave(at));
        double peak = 0;
        for (int k = 1; k <= LEAD; k++) peak = fmax(peak, wave(at + k));
        error += fabs(forecast_peak(f) - peak) / PER_DAY;
    }
    forecast_free(f);
    printf("%s: mean error %.2f %% of the mean load\n", forecast_name(kind), error);
    return error;
}

static void forecasters_beat_the_last_value(void **state)
{
    (void)state;
    double reactive = error_of(FORECAST_REACTIVE);
    assert_true(error_of(FORECAST_HOLT_WINTERS) < 0.6 * reactive);
    assert_true(error_of(FORECAST_LSTM) < 0.6 * reactive);
    assert_true(error_of(FORECAST_LSTM) == error_of(FORECAST_LSTM)); /* from its seed alone */
}

/* The first k units of the order fall into both halves of the numbers. */
static void order_is_spread(void **state)
{
    (void)state;
    for (int n = 1; n < 40; n++) {
        int order[40], seen[40] = {0}, low = 0;
        node_plan_order(n, order);
        for (int i = 0; i < n; i++) {
            assert_in_range(order[i], 0, n - 1);
            assert_int_equal(seen[order[i]]++, 0);
            low += order[i] < (n + 1) / 2;
            assert_true(abs(2 * low - (i + 1)) <= 3);
        }
    }
}

static struct plan_role role(int units, int nodes)
{
    return (struct plan_role){
        .max_units = units, .min_units = 1, .start_units = units, .nodes = nodes, .capacity = 10};
}

static void nodes_to_units(void **state)
{
    (void)state;
    struct node_plan p;
    struct plan_role prefill = role(29, 4), decode = role(9, 18);
    struct autoscale_params a = {.drain_s = 60};
    int np, nd;
    assert_int_equal(node_plan_init(&p, PLAN_STEPS, &prefill, &decode, &a), OK);
    assert_int_equal(node_plan_units_for(&p, 68, 3, 1, &np, &nd), OK);
    assert_true(np == 8 && nd == 2);
    assert_int_equal(node_plan_units_for(&p, 279, 3, 1, &np, &nd), ERR_INPUT);
    assert_non_null(strstr(error_text(), "are only 278"));
    error_clear();
    assert_int_equal(node_plan_units_for(&p, 277, 3, 1, &np, &nd), ERR_INPUT);
    assert_non_null(strstr(error_text(), "group of 30 nodes"));
    error_clear();
    node_plan_free(&p);
}

/* Start-up is paid for before it serves; a unit goes only after keep_s. */
static void autoscaling_takes_its_time(void **state)
{
    (void)state;
    struct node_plan p;
    struct plan_role r = role(4, 1);
    r.start_units = 1;
    struct autoscale_params a = {
        .interval_s = 60, .startup_s = 120, .drain_s = 60, .headroom = 1, .keep_s = 300};
    assert_int_equal(node_plan_init(&p, PLAN_AUTO, &r, &r, &a), OK);
    for (int i = 0; i < 2; i++)
        assert_int_equal(forecast_create(FORECAST_REACTIVE, 1440, 1, 1, &p.forecast[i]), OK);
    int serving_at = -1, fewer_at = -1;
    for (int t = 0; t < 1800; t += 10) {
        node_plan_advance(&p, t);
        if (t % 60 == 0) node_plan_observe(&p, t, t < 600 ? 35 : 5, 5);
        int serving = 0;
        for (int i = 0; i < 4; i++) serving += p.prefill.state[i] == UNIT_SERVING;
        if (t == 10) assert_int_equal(node_plan_paid(&p, &p.prefill), 4);
        if (serving == 4 && serving_at < 0) serving_at = t;
        if (serving_at >= 0 && serving < 4 && fewer_at < 0) fewer_at = t;
    }
    printf("four serve at %d s, fewer at %d s\n", serving_at, fewer_at);
    assert_in_range(serving_at, 120, 140);
    assert_in_range(fewer_at, 840, 970);
    assert_int_equal(node_plan_paid(&p, &p.decode), 1);
    forecast_free(p.forecast[0]);
    forecast_free(p.forecast[1]);
    node_plan_free(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forecasters_beat_the_last_value),
        cmocka_unit_test(order_is_spread),
        cmocka_unit_test(nodes_to_units),
        cmocka_unit_test(autoscaling_takes_its_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
