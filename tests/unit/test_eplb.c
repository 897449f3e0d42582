/* links: core config balance */
/* test_eplb.c - the published algorithm's results (its README example literally, others by
 * checksum), and what holds for any load: every expert placed, no rank holds one twice, groups
 * stay on nodes, the balance is good. Alone: make unit-eplb.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "balance/eplb.h"
#include "config/expert_slots.h"
#include "core/hash.h"
#include "core/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* deepseek-ai/EPLB, README: 2 layers, 12 experts, 16 replicas, 4 groups, 2 nodes, 8 GPUs. log2phy
 * and counts as that code returns them. */
static void test_readme_example(void **state)
{
    (void)state;
    static const float load[2][12] = {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
                                      {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}};
    static const int32_t phy2log[2][16] = {{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1},
                                           {7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}};
    static const int32_t log2phy[2][12][2] = {{{12, -1},
                                               {15, 13},
                                               {11, -1},
                                               {6, -1},
                                               {7, 5},
                                               {0, 2},
                                               {1, -1},
                                               {3, -1},
                                               {4, -1},
                                               {9, -1},
                                               {8, 10},
                                               {14, -1}},
                                              {{13, -1},
                                               {15, 11},
                                               {8, -1},
                                               {14, -1},
                                               {9, -1},
                                               {10, 12},
                                               {2, 4},
                                               {0, -1},
                                               {6, 3},
                                               {7, -1},
                                               {1, -1},
                                               {5, -1}}};
    static const int32_t count[2][12] = {{1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1},
                                         {1, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1}};
    struct eplb_shape shape = {
        .layers = 2, .experts = 12, .groups = 4, .slots = 16, .ranks = 8, .nodes = 2};
    struct placement p;
    assert_int_equal(eplb_place(&shape, &load[0][0], &p), OK);
    assert_true(p.hierarchical);
    assert_int_equal(p.slots_per_rank, 2);
    assert_int_equal(p.max_replicas, 2);
    assert_memory_equal(p.slot_expert, phy2log, sizeof phy2log);
    assert_memory_equal(p.expert_slot, log2phy, sizeof log2phy);
    assert_memory_equal(p.count, count, sizeof count);
    placement_free(&p);
}

struct published {
    int experts, groups, slots, ranks, nodes;
    uint64_t key;
    uint32_t phy2log, log2phy; /* CRC-32C of the int32 arrays */
};

/* Made by running deepseek-ai/EPLB's eplb.py with torch 2.15 on the loads of test_load, its sort
 * made stable (torch's default orders equal loads as the machine's vector sort happens to); those
 * of its results that put no expert twice on a rank. */
static const struct published published[] = {
    {256, 8, 288, 32, 4, 2, 0x7b1f5074, 0xc21f4061},
    {256, 8, 288, 32, 4, 4, 0x1d545353, 0xe218b40f},
    {256, 8, 288, 32, 4, 6, 0xe82889f4, 0x91f179b6},
    {256, 8, 288, 144, 18, 1, 0xc9218f95, 0x83e61951},
    {256, 8, 288, 144, 18, 2, 0x7892cbc8, 0xd8a5131a},
    {256, 8, 288, 144, 18, 3, 0x47f00539, 0xef0f34d8},
    {256, 8, 288, 144, 18, 4, 0xa12d9f47, 0x2f5cf9b5},
    {256, 8, 288, 144, 18, 5, 0x624db1a0, 0x4408aa7c},
    {256, 8, 288, 144, 18, 6, 0xff7e2b24, 0x6f94cfdc},
    {64, 1, 72, 8, 1, 2, 0xac64bd29, 0xf820f262},
    {64, 1, 72, 8, 1, 4, 0x020c7322, 0x9c08b578},
    {64, 1, 72, 8, 1, 6, 0x9db65ba7, 0x5586f8a3},
    {160, 8, 176, 16, 2, 2, 0xc8fb1a17, 0x4a888306},
    {160, 8, 176, 16, 2, 4, 0xb2f043b9, 0xe73d46a5},
    {160, 8, 176, 16, 2, 6, 0x42da82c9, 0x42e705fa},
    {384, 1, 416, 32, 4, 2, 0x357c5720, 0x5e5c8017},
    {384, 1, 416, 32, 4, 4, 0xee95defe, 0xcc7d23ba},
    {384, 1, 416, 32, 4, 6, 0xc14b0c0e, 0x6b78f583},
};

/* Odd keys: few distinct loads, so ties everywhere; even keys: skewed. Whole numbers. */
static void test_load(uint64_t key, int experts, float *load)
{
    for (int e = 0; e < experts; e++) {
        uint64_t u = rng_u64(key, (uint64_t)e);
        load[e] =
            key % 2 ? (float)(u % 7 + 1) : (float)(u % 1000 * (u % 1000) / 50 + (u >> 32) % 10);
    }
}

static void test_published_results(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        const struct published *c = &published[i];
        struct eplb_shape shape = {.layers = 1,
                                   .experts = c->experts,
                                   .groups = c->groups,
                                   .slots = c->slots,
                                   .ranks = c->ranks,
                                   .nodes = c->nodes};
        float load[384];
        struct placement p;
        test_load(c->key, c->experts, load);
        assert_int_equal(eplb_place(&shape, load, &p), OK);
        assert_int_equal(p.hierarchical, c->groups % c->nodes == 0);
        assert_int_equal(crc32c(0, p.slot_expert, (size_t)c->slots * 4), c->phy2log);
        assert_int_equal(crc32c(0, p.expert_slot, (size_t)(c->experts * p.max_replicas) * 4),
                         c->log2phy);
        placement_free(&p);
    }
}

/* Every expert has its counted replicas where both maps say, no rank an expert twice, groups on
 * one node where promised. */
static void check_placement(const struct placement *p)
{
    const struct eplb_shape *s = &p->shape;
    int *seen = calloc((size_t)s->experts, sizeof *seen);
    for (int layer = 0; layer < s->layers; layer++) {
        const int32_t *slots = placement_slots(p, layer);
        memset(seen, 0, (size_t)s->experts * sizeof *seen);
        for (int slot = 0; slot < s->slots; slot++) {
            assert_in_range(slots[slot], 0, s->experts - 1);
            seen[slots[slot]]++;
            int rank = placement_slot_rank(p, slot), first = rank * p->slots_per_rank;
            for (int k = first; k < slot; k++) assert_int_not_equal(slots[k], slots[slot]);
        }
        for (int e = 0; e < s->experts; e++) {
            int n;
            const int32_t *at = placement_replicas(p, layer, e, &n);
            assert_true(n >= 1 && n == seen[e] && n <= p->max_replicas);
            for (int j = 0; j < n; j++) {
                assert_int_equal(slots[at[j]], e);
                for (int k = 0; k < j; k++) assert_int_not_equal(at[j], at[k]);
                int of_group = placement_slots(p, layer)[at[j]] / (s->experts / s->groups);
                int n0;
                int first =
                    placement_replicas(p, layer, of_group * (s->experts / s->groups), &n0)[0];
                int node_slots = s->slots / s->nodes;
                if (p->hierarchical) assert_int_equal(at[j] / node_slots, first / node_slots);
            }
            for (int j = n; j < p->max_replicas; j++) assert_int_equal(at[j], -1);
        }
    }
    free(seen);
}

/* Random shapes and loads, many of which the published packing would put twice on a rank. */
static void test_random(void **state)
{
    (void)state;
    static const int node_counts[] = {1, 2, 4, 3, 9}, rank_counts[] = {1, 2, 3, 8, 4};
    int hierarchical = 0, placed = 0;
    for (uint64_t key = 1; key <= 400; key++) {
        struct eplb_shape s = {.layers = 2};
        s.groups = 1 << (rng_u64(key, 0) % 4);
        s.experts = s.groups * (2 + (int)(rng_u64(key, 1) % 12));
        s.nodes = node_counts[rng_u64(key, 2) % 5];
        s.ranks = s.nodes * rank_counts[rng_u64(key, 3) % 5];
        int spare = (int)(rng_u64(key, 4) % (uint64_t)(s.experts + 1));
        s.slots = s.experts + spare + (s.ranks - (s.experts + spare) % s.ranks) % s.ranks;
        float load[2 * 112];
        for (int i = 0; i < 2 * s.experts; i++) {
            double u = rng_uniform(key, 100 + (uint64_t)i);
            load[i] = key % 5 == 0 ? (i % s.experts == 0 ? 1e6f : 0) : (float)(1e4 * u * u * u * u);
        }
        struct placement p, again;
        error_clear();
        enum status st = eplb_place(&s, load, &p);
        bool legal = expert_slots_legal(s.experts, s.slots - s.experts, s.ranks);
        assert_int_equal(st, legal ? OK : ERR_INPUT);
        if (!legal) continue;
        check_placement(&p);
        placed++;
        hierarchical += p.hierarchical;
        assert_int_equal(eplb_place(&s, load, &again), OK);
        assert_memory_equal(p.slot_expert, again.slot_expert, (size_t)(2 * s.slots) * 4);
        assert_memory_equal(p.expert_slot, again.expert_slot,
                            (size_t)(2 * s.experts * p.max_replicas) * 4);
        placement_free(&again);
        placement_free(&p);
    }
    assert_true(placed > 200 && hierarchical > 50 && hierarchical < placed);
    error_clear();
}

/* Production shapes, skewed loads: the heaviest rank is within a few percent of the mean, and
 * replicas help. */
static void test_quality(void **state)
{
    (void)state;
    static const struct {
        struct eplb_shape shape;
        double limit;
    } cases[] = {{{8, 256, 8, 288, 32, 4}, 1.15}, {{8, 256, 8, 288, 144, 18}, 1.30}};
    for (size_t c = 0; c < 2; c++) {
        struct eplb_shape shape = cases[c].shape;
        float load[8 * 256];
        for (int i = 0; i < 8 * 256; i++)
            load[i] = (float)exp(0.6 * rng_normal(7 + c, (uint64_t)i)); /* log-normal experts */
        struct placement p, plain;
        assert_int_equal(eplb_place(&shape, load, &p), OK);
        check_placement(&p);
        double worst = 0;
        for (int layer = 0; layer < 8; layer++)
            worst = fmax(worst, placement_imbalance(&p, layer, load + layer * 256));
        printf("# EP%d: heaviest rank %.3f x mean, limit %.2f\n", shape.ranks, worst,
               cases[c].limit);
        assert_true(worst < cases[c].limit);
        assert_true(worst >= 1);
        placement_free(&p);
        assert_int_equal(eplb_place(&shape, NULL, &plain), OK);
        check_placement(&plain);
        /* 288 slots of equal experts: at worst a rank of two single ones beside one of halves. */
        assert_true(placement_imbalance(&plain, 0, NULL) < 1.13);
        placement_free(&plain);
    }
    /* One slot a rank and expert, nothing to choose: balanced exactly. */
    struct eplb_shape even = {1, 256, 8, 256, 32, 4};
    struct placement p;
    assert_int_equal(eplb_place(&even, NULL, &p), OK);
    assert_true(placement_imbalance(&p, 0, NULL) == 1.0);
    placement_free(&p);
}

static void test_sizes_and_errors(void **state)
{
    (void)state;
    assert_int_equal(expert_slots_auto(256, 1), 0);
    assert_int_equal(expert_slots_auto(256, 8), 32);
    assert_int_equal(expert_slots_auto(256, 32), 32);
    assert_int_equal(expert_slots_auto(256, 144), 32);
    assert_int_equal(expert_slots_auto(256, 5), 34);
    assert_int_equal(expert_slots_auto(64, 8), 8);
    assert_int_equal(expert_slots_auto(4, 2), 0);
    static const int legal[] = {2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 36, 48, 72, 96, 144, 288};
    int n = 0;
    for (int ep = 2; ep <= 300; ep++)
        if (expert_slots_legal(256, 32, ep)) assert_int_equal(ep, legal[n++]);
    assert_int_equal(n, 17);

    struct placement p;
    struct eplb_shape shape = {1, 256, 8, 288, 5, 1};
    error_clear();
    assert_int_equal(eplb_place(&shape, NULL, &p), ERR_INPUT);
    assert_string_equal(error_text(), "expert placement: 256 experts + 32 redundant = 288 slots, "
                                      "not a multiple of ep 5: set redundant_experts to 34 or 29");
    shape = (struct eplb_shape){1, 256, 8, 288, 1, 1};
    error_clear();
    assert_int_equal(eplb_place(&shape, NULL, &p), ERR_INPUT);
    assert_non_null(strstr(error_text(), "twice on one rank: at most 0"));
    shape = (struct eplb_shape){1, 8, 1, 8, 2, 1};
    float load[8] = {1, 2, NAN};
    error_clear();
    assert_int_equal(eplb_place(&shape, load, &p), ERR_INPUT);
    assert_non_null(strstr(error_text(), "layer 0, expert 2"));
    error_clear();
    shape.layers = 0; /* a model without routed layers */
    assert_int_equal(eplb_place(&shape, NULL, &p), OK);
    placement_free(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_readme_example),   cmocka_unit_test(test_published_results),
        cmocka_unit_test(test_random),           cmocka_unit_test(test_quality),
        cmocka_unit_test(test_sizes_and_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
