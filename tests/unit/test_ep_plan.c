/* links: core config device gemm moe transport ep */
/* test_ep_plan.c - the arithmetic of expert parallelism against brute force: slots of experts,
 * replica choice, row indices, rounds, sizes, and the messages for sizes that do not fit.
 *
 *     build/tests/unit/ep_plan
 */
#include "core/rng.h"
#include "ep/backend.h"
#include "ep/plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- every row's place, against a list built row by row ---- */

struct world {
    int ranks, slots, local, align, cap;
    int32_t *counts; /* [ranks][slots] */
};

/* A row of the brute-force list of one destination. */
struct place {
    int source, slot, nth, row;
};

static int list_rows(const struct world *w, int dest, struct place *out)
{
    int n = 0, row = 0;
    for (int s = dest * w->local; s < (dest + 1) * w->local; s++) {
        while (row % w->align != 0) row++;
        for (int r = 0; r < w->ranks; r++)
            for (int i = 0; i < w->counts[r * w->slots + s]; i++)
                out[n++] = (struct place){r, s, i, row++};
    }
    return n;
}

static void check_world(const struct world *w)
{
    int32_t begin[64], total[64], mine[64], group[64], rows[64];
    struct place *place = malloc(100000 * sizeof *place);
    for (int me = 0; me < w->ranks; me++) {
        struct ep_counted c = {.ranks = w->ranks,
                               .slots = w->slots,
                               .local = w->local,
                               .rank = me,
                               .cap = w->cap,
                               .align = w->align,
                               .counts = w->counts,
                               .stride = w->slots,
                               .begin = begin,
                               .total = total,
                               .mine = mine};
        int messages = 0;
        ep_count(&c);
        for (int d = 0; d < w->ranks; d++) {
            int n = list_rows(w, d, place), rounds = 1, own_rounds = 0;
            for (int i = 0; i < n; i++) {
                int round = place[i].row / w->cap;
                rounds = round + 1;
                if (place[i].source != me) continue;
                own_rounds = round + 1;
                assert_int_equal(mine[place[i].slot] + place[i].nth, place[i].row);
            }
            assert_int_equal(ep_rounds(&c, d), rounds);
            assert_int_equal(ep_rounds_mine(&c, d), own_rounds);
            for (int r = 0; r < rounds; r++) {
                int own = 0;
                for (int i = 0; i < n; i++)
                    own += place[i].source == me && place[i].row / w->cap == r;
                assert_int_equal(ep_round_mine(&c, d, r), own);
                messages += own > 0;
            }
            if (d != me) continue;
            for (int r = 0; r < rounds; r++) {
                int end = ep_round_groups(&c, r, group, rows), seen = 0, last = 0;
                for (int s = 0; s < w->ranks; s++) {
                    int from = 0;
                    for (int i = 0; i < n; i++)
                        from += place[i].source == s && place[i].row / w->cap == r;
                    assert_int_equal(ep_round_source(&c, s, r), from > 0);
                }
                for (int i = 0; i < n; i++) {
                    int l = place[i].slot - me * w->local, at = place[i].row - r * w->cap;
                    if (place[i].row / w->cap != r) continue;
                    assert_true(at >= group[l] && at < group[l] + rows[l]);
                    seen++;
                    last = at + 1;
                }
                for (int l = 0; l < w->local; l++) seen -= rows[l];
                assert_int_equal(seen, 0);
                assert_int_equal(end, last);
                assert_true(end <= w->cap);
            }
        }
        assert_int_equal(ep_messages_mine(&c), messages);
    }
    free(place);
}

static void test_places(void **state)
{
    static const int shapes[][4] = {/* ranks, slots, align, cap */
                                    {1, 4, 1, 1000}, {2, 8, 1, 7},  {3, 9, 4, 8},
                                    {4, 8, 8, 16},   {4, 24, 1, 1}, {8, 8, 1, 5}};
    int worlds = 0;
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int trial = 0; trial < 20; trial++) {
            int32_t counts[512];
            struct world w = {.ranks = shapes[i][0],
                              .slots = shapes[i][1],
                              .local = shapes[i][1] / shapes[i][0],
                              .align = shapes[i][2],
                              .cap = shapes[i][3],
                              .counts = counts};
            for (int j = 0; j < w.ranks * w.slots; j++) {
                uint64_t r = rng_u64((uint64_t)trial, i * 1000 + (uint64_t)j);
                counts[j] = trial == 0 || r % 3 == 0 ? 0 : (int32_t)(r / 3 % 9);
                if (trial == 1 && j % w.slots == 1) counts[j] = 50; /* one hot slot */
            }
            check_world(&w);
            worlds++;
        }
    printf("#   %d count matrices agree with the row-by-row list\n", worlds);
}

static void test_route(void **state)
{
    struct ep_route r;
    (void)state;
    assert_int_equal(ep_route_init(&r, 50, 4, 16), OK);
    for (int m = 0; m <= 50; m += 25) {
        r.m = m;
        for (int i = 0; i < m * 4; i++) r.slot[i] = (int32_t)(rng_u64(9, (uint64_t)i) % 16);
        ep_route_sort(&r);
        assert_int_equal(r.first[0], 0);
        assert_int_equal(r.first[16], m * 4);
        for (int s = 0; s < 16; s++)
            for (int j = r.first[s]; j < r.first[s + 1]; j++) {
                assert_int_equal(r.slot[r.order[j]], s);
                if (j > r.first[s]) assert_true(r.order[j] > r.order[j - 1]); /* stable */
            }
    }
    ep_route_free(&r);
}

static void test_table(void **state)
{
    static const int32_t experts[] = {0, 1, 2, 3, 1, 0}, missing[] = {0, 1, 2, 2, 1, 0},
                         twice[] = {0, 1, 1, 2, 3, 0}, wild[] = {0, 1, 2, 3, 9, 0};
    static const int32_t ids[] = {0, 3, 1, 2};
    struct ep_table t;
    int32_t slots[4];
    (void)state;
    assert_int_equal(ep_table_init(&t, 4, 6, 2, experts), OK);
    ep_choose_default(&t, 0, 0, 2, 2, ids, slots);
    assert_int_equal(slots[0], 0); /* expert 0: slots 0, 5; (rank 0 + token 0) mod 2 */
    assert_int_equal(slots[1], 3);
    assert_int_equal(slots[2], 4); /* expert 1: slots 1, 4; token 1 */
    assert_int_equal(slots[3], 2);
    ep_choose_default(&t, 0, 1, 2, 2, ids, slots);
    assert_int_equal(slots[0], 5);
    assert_int_equal(slots[2], 1);
    ep_table_free(&t);
    assert_int_equal(ep_table_init(&t, 4, 6, 2, missing), ERR_INPUT);
    assert_non_null(strstr(error_text(), "expert 3 has no slot"));
    error_clear();
    assert_int_equal(ep_table_init(&t, 4, 6, 2, twice), ERR_INPUT);
    assert_non_null(strstr(error_text(), "rank 0 holds expert 1 twice (slots 1, 2)"));
    error_clear();
    assert_int_equal(ep_table_init(&t, 4, 6, 2, wild), ERR_INPUT);
    error_clear();
}

/* 8 experts in 4 groups on 4 ranks of 2 nodes: group 0 is whole on node 0, group 2 on node 1 but
 * for a replica elsewhere, group 3 whole on node 1, group 1 apart. */
static void test_reduce(void **state)
{
    static const int32_t experts[] = {0, 1, 2, 0, 4, 5, 1, 3, 6, 4, 5, 7};
    static const int node_of[] = {0, 0, 1, 1};
    static const int32_t home[] = {0, 0, -1, -1, -1, -1, 1, 1};
    static const int32_t ids[] = {6, 0, 2, 7, 1, 0, 1, 2, 3, 4, 7, 1, 5, 0, 6};
    static const int8_t place[] = {0, 1, 2, 0, 3, 0, 1, 2, 3, 4, 0, 1, 2, 3, 0};
    static const int8_t reduce[] = {1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1};
    static const int8_t both[] = {0, 1, 2, 0, 1, 0, 0, 1, 2, 3, 0, 1, 2, 1, 0};
    const bool far[] = {false, true}, none[] = {false, false}, all[] = {true, true};
    struct ep_table t;
    struct ep_route r;
    (void)state;
    /* Slots 3 a rank: ranks 0, 1 (node 0) hold slots 0-5, ranks 2, 3 hold 6-11. */
    int32_t local[12];
    memcpy(local, experts, sizeof local);
    local[6] = 2; /* expert 1 stays on node 0: group 0 is whole there */
    assert_int_equal(ep_table_init(&t, 8, 12, 4, local), OK);
    for (int e = 0; e < 8; e++) assert_int_equal(t.home[e], -1);
    assert_true(ep_table_homes(&t, 4, 3, node_of));
    for (int e = 0; e < 8; e++) assert_int_equal(t.home[e], home[e]);
    assert_int_equal(ep_route_init(&r, 3, 5, 12), OK);
    r.m = 3;
    memcpy(r.ids, ids, sizeof ids);
    ep_route_reduce(&r, &t, 4, far);
    assert_true(r.reduced);
    assert_memory_equal(r.place, place, sizeof place);
    assert_memory_equal(r.reduce, reduce, sizeof reduce);
    ep_route_reduce(&r, &t, 4, all);
    assert_memory_equal(r.place, both, sizeof both);
    ep_route_reduce(&r, &t, 4, none);
    assert_false(r.reduced);
    ep_route_free(&r);
    ep_table_free(&t);
    /* A replica on the other node: no longer whole. */
    assert_int_equal(ep_table_init(&t, 8, 12, 4, experts), OK);
    assert_true(ep_table_homes(&t, 4, 3, node_of));
    assert_int_equal(t.home[0], -1);
    assert_int_equal(t.home[6], 1);
    ep_table_free(&t);
}

/* DeepSeek-V3's decode unit. */
static struct ep_params v3(int ep)
{
    return (struct ep_params){.ep_size = ep,
                              .nodes = 1,
                              .experts = 256,
                              .slots = 288,
                              .topk = 8,
                              .hidden = 7168,
                              .n_group = 8,
                              .max_tokens = 64,
                              .recv_rows_factor = 2,
                              .dispatch_type = DT_E4M3,
                              .combine_type = DT_BF16};
}

/* Signals, a cache line each, then the bytes, both in whole pages. */
static size_t window_of(const struct ep_params *p, const struct ep_layout *o)
{
    size_t signals = (size_t)ep_backend_host.signals(p->ep_size, o->clients, p->nodes) * 64;
    return (signals + 4095) / 4096 * 4096 + (o->window_bytes + 4095) / 4096 * 4096;
}

static void test_sizes(void **state)
{
    struct ep_params p = v3(144);
    struct ep_memory m;
    struct ep_layout o;
    (void)state;
    assert_int_equal(ep_params_check(&p), OK);
    ep_layout_fill(&p, 0, false, &o);
    assert_int_equal(o.row_data, 7168);
    assert_int_equal(o.row_scales, 56 * 4);
    assert_int_equal(o.row_bytes % 64, 0);
    assert_true(o.row_data_at >= sizeof(struct ep_row_tag));
    assert_true(o.row_bytes >= o.row_scale_at + o.row_scales);
    assert_int_equal(o.part_rows, 64 * 2); /* two slots a rank: a token has two rows there */
    assert_int_equal(ep_memory(&p, &m), OK);
    assert_int_equal(m.window, window_of(&p, &o));
    printf("#   EP144, 64 tokens: window %.1f MiB, heap %.1f MiB a rank\n",
           (double)m.window / 1048576, (double)m.heap / 1048576);
    /* The receive buffer is the mean times the factor, at most the worst case. */
    struct ep_params n = v3(32);
    n.max_tokens = 0;
    n.chunk_tokens = 1000;
    assert_int_equal(ep_params_check(&n), OK);
    ep_layout_fill(&n, 0, false, &o);
    assert_int_equal(o.cap, 16000);
    n.recv_rows_factor = 1e6;
    ep_layout_fill(&n, 0, false, &o);
    assert_int_equal(o.cap, 32 * 1000 * 8);
    n.slots = 256;
    n.ep_size = 1;
    ep_layout_fill(&n, 0, false, &o);
    assert_int_equal(o.receive_bytes, o.row_bytes);
    assert_int_equal(o.cap, 1000 * 8); /* alone: exactly its own rows, no fixed parts */
    assert_false(o.fixed_slots);
}

/* Reduction inside nodes: outputs fit in the rows of the receive buffer, all is counted. */
static void test_reduce_sizes(void **state)
{
    struct ep_params p = v3(32);
    struct ep_memory with, without;
    struct ep_layout o;
    (void)state;
    p.max_tokens = 0;
    p.chunk_tokens = 1000;
    p.nodes = 4;
    assert_int_equal(ep_params_check(&p), OK);
    assert_true(ep_reduce_possible(&p));
    ep_layout_fill(&p, 3, true, &o);
    assert_true(o.receive_bytes >= o.row_data_at + o.y_bytes);
    assert_int_equal(o.receive_bytes % 64, 0);
    assert_int_equal(ep_memory(&p, &with), OK);
    assert_int_equal(with.window, window_of(&p, &o));
    assert_int_equal(with.heap, o.heap_bytes);
    p.n_group = 1;
    assert_false(ep_reduce_possible(&p));
    assert_int_equal(ep_memory(&p, &without), OK);
    assert_true(with.window - without.window >= 2 * 16000 * (o.receive_bytes - o.row_bytes));
    assert_true(with.heap - without.heap >= 2 * 3 * 1000 * o.record_bytes);
    p.n_group = 8;
    p.nodes = 3; /* EPLB would not keep groups whole */
    assert_false(ep_reduce_possible(&p));
    printf("#   EP32 on 4 nodes, 1000 tokens: window %.1f MiB, heap %.1f MiB; rows only: %.1f, "
           "%.1f\n",
           (double)with.window / 1048576, (double)with.heap / 1048576,
           (double)without.window / 1048576, (double)without.heap / 1048576);
}

static void test_refusals(void **state)
{
    struct ep_params p = v3(10);
    struct ep_memory m;
    (void)state;
    assert_int_equal(ep_memory(&p, &m), ERR_INPUT);
    printf("#   %s\n", error_text());
    assert_non_null(strstr(error_text(), "ep size 10 does not divide 288 slots"));
    assert_non_null(strstr(error_text(), "use 9 or 12"));
    error_clear();
    p = v3(8);
    p.max_tokens = 0;
    assert_int_equal(ep_memory(&p, &m), ERR_INPUT);
    assert_non_null(strstr(error_text(), "tokens of an operation"));
    error_clear();
    p = v3(8);
    p.combine_type = DT_E4M3;
    assert_int_equal(ep_memory(&p, &m), ERR_INPUT);
    error_clear();
    p = v3(8);
    p.n_group = 7;
    assert_int_equal(ep_memory(&p, &m), ERR_INPUT);
    error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places),  cmocka_unit_test(test_route),
        cmocka_unit_test(test_table),   cmocka_unit_test(test_reduce),
        cmocka_unit_test(test_sizes),   cmocka_unit_test(test_reduce_sizes),
        cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
