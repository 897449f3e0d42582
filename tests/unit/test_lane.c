/* links: core device */
/* A lane's threads: every piece exactly once, whoever comes late; memory visible afterwards; the
 * lane served by the caller alone. Sleeps and yields are drawn to mix the threads' order. */
#include "core/clock.h"
#include "core/rng.h"
#include "device/device.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MOST = 200000 };

struct job {
    atomic_int *count; /* [pieces] */
    int *value;        /* [pieces] plain memory, read by the caller afterwards */
    int call;
    atomic_int with_poll;
    pthread_t caller;
};

static void piece(void *arg, int i, struct lane *poll)
{
    struct job *j = arg;
    atomic_fetch_add(&j->count[i], 1);
    j->value[i] = j->call ^ i;
    if (poll) {
        atomic_fetch_add(&j->with_poll, 1);
        if (!pthread_equal(pthread_self(), j->caller)) abort();
    }
    uint64_t r = rng_u64((uint64_t)j->call, (uint64_t)i);
    if (r % 97 == 0) sched_yield();
    if (r % 5003 == 0) clock_sleep_us(200);
}

static void run_and_check(struct lane *lane, struct job *j, int pieces)
{
    memset(j->count, 0, sizeof *j->count * (size_t)pieces);
    j->call++;
    lane_run(lane, pieces, piece, j);
    for (int i = 0; i < pieces; i++) {
        assert_int_equal(atomic_load(&j->count[i]), 1);
        assert_int_equal(j->value[i], j->call ^ i);
    }
}

static void test_every_piece_once(void **state)
{
    (void)state;
    struct job j = {.count = calloc(MOST, sizeof *j.count),
                    .value = calloc(MOST, sizeof(int)),
                    .caller = pthread_self()};
    const int threads[] = {1, 2, 3, 8};
    for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
        struct lane lane;
        lane_init(&lane, device_cpu(), threads[t]);
        for (int round = 0; round < 2000; round++)
            run_and_check(&lane, &j, (int)(rng_u64(7, (uint64_t)round) % 9));
        run_and_check(&lane, &j, 65535);
        run_and_check(&lane, &j, MOST); /* more than one call of the pool */
        lane_free(&lane);
    }
    assert_true(atomic_load(&j.with_poll) > 0);
    free(j.count);
    free(j.value);
}

/* Threads asleep since long ago wake up, and lanes end while theirs sleep or spin. */
static void test_long_pauses(void **state)
{
    (void)state;
    struct job j = {.count = calloc(64, sizeof *j.count),
                    .value = calloc(64, sizeof(int)),
                    .caller = pthread_self()};
    for (int round = 0; round < 20; round++) {
        struct lane lane;
        lane_init(&lane, device_cpu(), 3);
        run_and_check(&lane, &j, 64);
        clock_sleep_us(round % 4 * 1000);
        run_and_check(&lane, &j, 64);
        if (round % 2) clock_sleep_us(1000);
        lane_free(&lane);
    }
    free(j.count);
    free(j.value);
}

struct rows {
    atomic_int *seen;
    atomic_int calls, least;
};

static void rows_seen(void *arg, int first, int end, struct lane *poll)
{
    struct rows *r = arg;
    (void)poll;
    atomic_fetch_add(&r->calls, 1);
    if (end - first < atomic_load(&r->least)) atomic_store(&r->least, end - first);
    for (int i = first; i < end; i++) atomic_fetch_add(&r->seen[i], 1);
}

static void test_rows_are_cut_by_grain(void **state)
{
    (void)state;
    struct lane lane;
    lane_init(&lane, device_cpu(), 4);
    const int cases[][2] = {{0, 1}, {1, 1},    {2, 1},      {7, 4},
                            {8, 4}, {1000, 1}, {1000, 300}, {5, 99}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        int rows = cases[c][0], grain = cases[c][1];
        struct rows r = {.seen = calloc((size_t)rows + 1, sizeof *r.seen), .least = 1 << 30};
        lane_rows(&lane, rows, grain, rows_seen, &r);
        for (int i = 0; i < rows; i++) assert_int_equal(atomic_load(&r.seen[i]), 1);
        if (rows < 2 * grain)
            assert_true(atomic_load(&r.calls) <= 1);
        else
            assert_true(atomic_load(&r.calls) > 1 && atomic_load(&r.least) >= grain);
        free(r.seen);
    }
    lane_free(&lane);
}

static void count_poll(void *arg)
{
    ++*(int *)arg;
}

static void slow_elsewhere(void *arg, int i, struct lane *poll)
{
    (void)arg;
    clock_sleep_us(poll ? 0 : 20000);
    (void)i;
}

/* While the last piece runs on another thread the caller serves the lane. */
static void test_served_while_waiting(void **state)
{
    (void)state;
    int polls = 0;
    for (int tries = 0; polls < 5 && tries < 200; tries++) {
        struct lane lane;
        lane_init(&lane, device_cpu(), 2);
        polls = 0;
        lane.poll = count_poll;
        lane.poll_arg = &polls;
        lane_run(&lane, 64, slow_elsewhere, NULL);
        lane_free(&lane);
    }
    assert_true(polls >= 5);
}

static void test_scratch_grows(void **state)
{
    (void)state;
    struct lane lane;
    lane_init(&lane, device_cpu(), 1);
    char *a = lane_scratch(&lane, 100);
    assert_non_null(a);
    assert_int_equal((uintptr_t)a % 64, 0);
    memset(a, 1, 100);
    assert_ptr_equal(lane_scratch(&lane, 50), a);
    memset(lane_scratch(&lane, 1 << 20), 1, 1 << 20);
    lane_free(&lane);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_piece_once),      cmocka_unit_test(test_long_pauses),
        cmocka_unit_test(test_rows_are_cut_by_grain), cmocka_unit_test(test_served_while_waiting),
        cmocka_unit_test(test_scratch_grows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
