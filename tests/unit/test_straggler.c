/* links: core account */
/* test_straggler.c - who is named slow, from made-up /ranks and /links: a rank that computes slowly,
 * one of two, accidents, a slow link among good ones, links that are all alike, nothing.
 */
#include "account/straggler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { N = 6 };

struct scene {
    struct straggler s;
    struct rank_row rank[N];
    struct link_row link[N * N];
    char slow_rank[STRAGGLER_TEXT], slow_link[STRAGGLER_TEXT];
};

/* n ranks of a unit, two a node, 10 s in steps each; every pair waits a little for the other. */
static void scene_init(struct scene *c, int n, int nodes)
{
    memset(c, 0, sizeof *c);
    for (int i = 0; i < n; i++) {
        struct rank_row *r = &c->rank[i];
        r->rank = i;
        r->local = i;
        r->node = i * nodes / n;
        r->compute_s = 8;
        r->exposed_comm_s = 2;
        snprintf(r->unit, sizeof r->unit, "decode0");
        snprintf(r->host, sizeof r->host, "host%d", r->node);
    }
    for (int s = 0; s < n; s++)
        for (int d = 0; d < n; d++) {
            struct link_row *l = &c->link[s * n + d];
            snprintf(l->unit, sizeof l->unit, "decode0");
            l->src = s;
            l->dst = d;
            l->waits = 100;
            l->last = 20;
            l->late_s = s == d ? 0 : 0.1F;
            l->late_error_s = 0.02F;
            l->latencies = c->rank[s].node != c->rank[d].node ? 50 : 0;
            l->latency_mean_ms = 2;
            l->transfer_s = l->latencies ? 0.01F : 0;
        }
}

static void find(struct scene *c, int n)
{
    assert_int_equal(straggler_add_links(&c->s, c->link, (size_t)(n * n)), OK);
    assert_int_equal(straggler_add_ranks(&c->s, c->rank, (size_t)n), OK);
    assert_int_equal(straggler_find(&c->s, c->slow_rank, c->slow_link), OK);
    straggler_free(&c->s);
    if (c->slow_rank[0]) print_message("# %s\n", c->slow_rank);
    if (c->slow_link[0]) print_message("# %s\n", c->slow_link);
}

static void nothing(void **state)
{
    (void)state;
    struct scene c;
    scene_init(&c, N, 3);
    find(&c, N);
    assert_string_equal(c.slow_rank, "");
    assert_string_equal(c.slow_link, "");
}

static void slow_rank(void **state)
{
    (void)state;
    struct scene c;
    scene_init(&c, N, 3);
    for (int d = 0; d < N; d++) c.link[4 * N + d].late_s = 1.1F;
    c.rank[4].compute_s = 9.6;
    find(&c, N);
    /* Its row with itself (1.1 s) counts like one more pair: 6 x 1.1 / 5 - 0.1 = 1.22 of 10.27 s. */
    assert_non_null(strstr(c.slow_rank, "rank 4 on host2 (decode0) computes slowly"));
    assert_non_null(strstr(c.slow_rank, "11.9 % of their step time"));
    assert_non_null(strstr(c.slow_rank, "1.20 x the median"));
    assert_string_equal(c.slow_link, "");
}

/* Of two the other one is the measure. */
static void one_of_two(void **state)
{
    (void)state;
    struct scene c;
    scene_init(&c, 2, 1);
    c.link[1 * 2 + 0].late_s = 0.9F;
    find(&c, 2);
    assert_non_null(strstr(c.slow_rank, "rank 1 on host0"));
    assert_non_null(strstr(c.slow_rank, "8.0 %"));
}

static void accidents(void **state)
{
    (void)state;
    struct scene c;
    scene_init(&c, N, 3);
    for (int d = 0; d < N; d++) c.link[4 * N + d].late_s = 1.1F;
    for (int d = 0; d < N; d++) c.link[4 * N + d].late_error_s = 0.7F; /* two long ones */
    find(&c, N);
    assert_string_equal(c.slow_rank, "");
}

static void slow_link(void **state)
{
    (void)state;
    struct scene c;
    scene_init(&c, N, 3);
    for (int i = 0; i < N * N; i++) {
        struct link_row *l = &c.link[i];
        if (!l->latencies || (c.rank[l->src].node != 1 && c.rank[l->dst].node != 1)) continue;
        l->latency_mean_ms = 5;
        l->transfer_s = 0.3F;
    }
    find(&c, N);
    assert_string_equal(c.slow_rank, "");
    /* 16 pairs touch node 1: 16 x 0.3 s / 6 ranks = 0.8 s of 10 s. */
    assert_non_null(strstr(c.slow_link, "the link of node 1, host1 (decode0), is slow"));
    assert_non_null(strstr(c.slow_link, "8.0 %"));
    assert_non_null(strstr(c.slow_link, "5.00 ms, 2.00 ms over the other links"));
}

/* All cost much, none is slower than the others: that is the network, not a straggler. */
static void even_links(void **state)
{
    (void)state;
    struct scene c;
    scene_init(&c, N, 3);
    for (int i = 0; i < N * N; i++)
        if (c.link[i].latencies) c.link[i].transfer_s = 0.3F;
    find(&c, N);
    assert_string_equal(c.slow_link, "");
}

/* A resumed job is judged by its last attempt. */
static void last_attempt(void **state)
{
    (void)state;
    struct scene c;
    scene_init(&c, N, 3);
    for (int d = 0; d < N; d++) c.link[4 * N + d].late_s = 1.1F;
    assert_int_equal(straggler_add_links(&c.s, c.link, (size_t)(N * N)), OK);
    assert_int_equal(straggler_add_ranks(&c.s, c.rank, N), OK);
    for (int d = 0; d < N; d++) c.link[4 * N + d].late_s = 0.1F;
    for (int i = 0; i < N; i++) c.rank[i].attempt = 1;
    for (int i = 0; i < N * N; i++) c.link[i].attempt = 1;
    find(&c, N);
    assert_string_equal(c.slow_rank, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing),      cmocka_unit_test(slow_rank), cmocka_unit_test(one_of_two),
        cmocka_unit_test(accidents),    cmocka_unit_test(slow_link), cmocka_unit_test(even_links),
        cmocka_unit_test(last_attempt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
