/* links: core config balance */
/* test_balance.c - replica choice, prefill and decode balancers: fairness, locality, bounds on
 * random loads, determinism, books that close. Alone: make unit-balance.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "balance/decode_balance.h"
#include "balance/eplb.h"
#include "balance/prefill_balance.h"
#include "balance/replica.h"
#include "core/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Tokens from every source for one expert: how they divide over its replicas, and how many stay
 * on the source's rank or node. */
struct spread {
    double worst; /* most loaded replica / mean */
    double near;  /* share of tokens taken on the source's node */
};

static struct spread spread_of(const struct placement *p, const struct replica_table *tables,
                               int per_node, int expert)
{
    int n;
    const int32_t *slots = placement_replicas(p, 0, expert, &n);
    double *got = calloc((size_t)p->shape.slots, sizeof *got), near = 0, worst = 0;
    enum { TOKENS = 4 * REPLICA_CYCLE };
    for (int src = 0; src < p->shape.ranks; src++)
        for (uint32_t t = 0; t < TOKENS; t++) {
            int slot = replica_choose(&tables[src], expert, t);
            assert_int_equal(placement_slots(p, 0)[slot], expert);
            got[slot]++;
            near += placement_slot_rank(p, slot) / per_node == src / per_node;
        }
    double total = (double)TOKENS * p->shape.ranks;
    for (int j = 0; j < n; j++) worst = fmax(worst, got[slots[j]] * n / total);
    free(got);
    return (struct spread){worst, near / total};
}

static void test_replica(void **state)
{
    (void)state;
    static const struct {
        struct eplb_shape shape;
        int per_node;
        double limit;
    } cases[] = {{{1, 256, 8, 288, 32, 4}, 8, 1.02}, {{1, 256, 8, 288, 144, 18}, 8, 1.02},
                 {{1, 16, 1, 32, 8, 1}, 8, 1.05},    {{1, 16, 1, 32, 8, 1}, 1, 1.05},
                 {{1, 16, 1, 40, 8, 1}, 3, 1.05},    {{1, 8, 1, 8, 8, 1}, 4, 1.0},
                 {{1, 4, 1, 28, 7, 1}, 2, 1.05}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const struct eplb_shape *s = &cases[c].shape;
        float load[256];
        for (int e = 0; e < s->experts; e++) load[e] = (float)exp(1.5 * rng_normal(c, (uint64_t)e));
        struct placement p;
        assert_int_equal(eplb_place(s, load, &p), OK);
        struct replica_table *t = calloc((size_t)s->ranks, sizeof *t);
        for (int r = 0; r < s->ranks; r++)
            assert_int_equal(replica_table_build(&p, 0, cases[c].per_node, r, &t[r]), OK);
        double worst = 0;
        for (int e = 0; e < s->experts; e++) {
            struct spread spread = spread_of(&p, t, cases[c].per_node, e);
            worst = fmax(worst, spread.worst);
            int n;
            const int32_t *slots = placement_replicas(&p, 0, e, &n);
            for (int j = 0; j < n; j++) { /* the holder of a replica always uses its own */
                int holder = placement_slot_rank(&p, slots[j]);
                for (uint32_t tok = 0; tok < REPLICA_CYCLE; tok++)
                    assert_int_equal(replica_choose(&t[holder], e, tok), slots[j]);
            }
        }
        printf("# replicas, %d ranks in nodes of %d: most loaded %.3f x mean, limit %.2f\n",
               s->ranks, cases[c].per_node, worst, cases[c].limit);
        assert_true(worst <= cases[c].limit);
        struct replica_table again;
        assert_int_equal(replica_table_build(&p, 0, cases[c].per_node, 1, &again), OK);
        assert_memory_equal(again.first, t[1].first, (size_t)s->experts * 4);
        assert_memory_equal(again.rows, t[1].rows, (size_t)t[1].n_rows * REPLICA_CYCLE * 4);
        replica_table_free(&again);
        for (int r = 0; r < s->ranks; r++) replica_table_free(&t[r]);
        free(t);
        placement_free(&p);
    }
}

/* Two nodes of four ranks, one expert with one replica on each: nobody crosses. Then both on one
 * node: the other node has to cross, and both replicas still get half. */
static void test_replica_locality(void **state)
{
    (void)state;
    for (int both = 0; both < 2; both++) {
        int32_t slot_expert[16], count[15], expert_slot[30];
        memset(expert_slot, 0xff, sizeof expert_slot);
        int second = both ? 4 : 12; /* two slots a rank: ranks 2 and 6 */
        for (int s = 0, e = 1; s < 16; s++) {
            slot_expert[s] = s == 0 || s == second ? 0 : e++;
            if (slot_expert[s]) expert_slot[2 * slot_expert[s]] = s;
        }
        for (int e = 0; e < 15; e++) count[e] = e ? 1 : 2;
        expert_slot[0] = 0;
        expert_slot[1] = second;
        struct placement p = {.shape = {1, 15, 1, 16, 8, 2},
                              .slots_per_rank = 2,
                              .max_replicas = 2,
                              .slot_expert = slot_expert,
                              .count = count,
                              .expert_slot = expert_slot};
        struct replica_table t[8];
        for (int r = 0; r < 8; r++) assert_int_equal(replica_table_build(&p, 0, 4, r, &t[r]), OK);
        struct spread spread = spread_of(&p, t, 4, 0);
        assert_true(spread.worst < 1.01);
        assert_true(spread.near == (both ? 0.5 : 1.0));
        for (int r = 0; r < 8; r++) replica_table_free(&t[r]);
    }
    struct placement p = {.shape = {1, 1, 1, 1, 1, 1}};
    struct replica_table t;
    error_clear();
    assert_int_equal(replica_table_build(&p, 0, 4, 1, &t), ERR_BUG);
    error_clear();
}

static void test_prefill_pick(void **state)
{
    (void)state;
    struct prefill_balance b;
    struct prefill_weights w = {.per_token = 1, .per_pair = 0.01, .reuse = 2};
    assert_int_equal(prefill_balance_init(&b, 2, 2, &w), OK);
    /* Equal requests go round the units, then the ranks. */
    static const int expect[4] = {0, 2, 1, 3};
    for (int i = 0; i < 4; i++) {
        int rank = prefill_balance_pick(&b, 100, NULL, NULL);
        assert_int_equal(rank, expect[i]);
        prefill_balance_add(&b, rank, 0, 100);
    }
    /* 100 tokens of which rank 3 has 96: 4 tokens, 4 * 96 + 10 = 394 pairs. Worth the wait. */
    assert_true(fabs(prefill_work(&w, 96, 4) - (4 + 3.94)) < 1e-12);
    uint32_t cached[4] = {0, 0, 0, 96};
    prefill_balance_done(&b, 0, 0, 100);
    assert_int_equal(prefill_balance_pick(&b, 100, cached, NULL), 3);
    /* Not when its queue is longer than twice what is saved. */
    prefill_balance_add(&b, 3, 0, 300);
    assert_int_equal(prefill_balance_pick(&b, 100, cached, NULL), 0);
    /* A hit on everything still computes a token. */
    uint32_t all[4] = {100, 100, 100, 100};
    assert_int_equal(prefill_balance_pick(&b, 100, all, NULL), 0);
    /* A rank that may not is passed over, even the one with the prefix. */
    const bool may[4] = {[1] = true}, none[4] = {false};
    assert_int_equal(prefill_balance_pick(&b, 100, all, may), 1);
    assert_int_equal(prefill_balance_pick(&b, 100, all, none), -1);
    prefill_balance_free(&b);
    error_clear();
    assert_int_equal(prefill_balance_init(&b, 0, 2, NULL), ERR_BUG);
    error_clear();
}

/* Room: at most two chunks queued, and where requests decode too, a place among them. */
static void test_prefill_room(void **state)
{
    (void)state;
    struct prefill_balance b;
    struct decode_balance d;
    struct decode_limits limits = {.units = 1,
                                   .ranks_per_unit = 3,
                                   .pages = 10,
                                   .page_tokens = 4,
                                   .max_batch = 2,
                                   .high_water = 0.9};
    bool may[3];
    assert_int_equal(prefill_balance_init(&b, 1, 3, NULL), OK);
    assert_int_equal(decode_balance_init(&d, &limits), OK);
    prefill_balance_add(&b, 0, 0, 200);
    prefill_balance_add(&b, 1, 0, 201);
    prefill_balance_room(&b, 100, NULL, 1, 4, may);
    assert_true(may[0] && !may[1] && may[2]);
    decode_balance_add(&d, 2, 7);
    prefill_balance_room(&b, 100, &d, 2, 4, may);
    assert_true(may[0] && !may[1] && may[2]);
    prefill_balance_room(&b, 100, &d, 3, 4, may); /* 10 pages of 9 */
    assert_true(may[0] && !may[1] && !may[2]);
    decode_balance_add(&d, 0, 1);
    decode_balance_add(&d, 0, 1);
    prefill_balance_room(&b, 100, &d, 1, 4, may);
    assert_true(!may[0] && !may[1] && may[2]);
    prefill_balance_free(&b);
    decode_balance_free(&d);
}

/* Random prompts of 16 to 16,384 tokens, chunks finishing at random: queued work stays even, and
 * the books are zero in the end. */
static void test_prefill_quality(void **state)
{
    (void)state;
    enum { UNITS = 2, RANKS = 16, N = 4000 };
    struct prefill_balance b;
    assert_int_equal(prefill_balance_init(&b, UNITS, RANKS, NULL), OK);
    struct prefill_piece left[UNITS * RANKS][N / 8];
    int n_left[UNITS * RANKS] = {0};
    double worst_excess = 0, longest = 0;
    for (int i = 0; i < N; i++) {
        uint32_t n = (uint32_t)exp2(4 + 10 * rng_uniform(3, (uint64_t)i));
        int rank = prefill_balance_pick(&b, n, NULL, NULL);
        prefill_balance_add(&b, rank, 0, n);
        longest = fmax(longest, prefill_work(&b.weights, 0, n));
        assert_true(n_left[rank] < N / 8);
        left[rank][n_left[rank]++] = (struct prefill_piece){0, n};
        double least = b.work[0], most = b.work[0];
        for (int r = 1; r < UNITS * RANKS; r++) {
            least = fmin(least, b.work[r]);
            most = fmax(most, b.work[r]);
        }
        worst_excess = fmax(worst_excess, (most - least) / longest);
    }
    /* Greedy: never further apart than the longest prompt so far. */
    printf("# prefill queues: furthest apart %.3f of the longest prompt's work, limit 1\n",
           worst_excess);
    assert_true(worst_excess <= 1.0 + 1e-9);
    double total = 0, most = 0;
    for (int r = 0; r < UNITS * RANKS; r++) {
        total += b.work[r];
        most = fmax(most, b.work[r]);
    }
    assert_true(most / (total / (UNITS * RANKS)) < 1.05);
    for (int r = 0; r < UNITS * RANKS; r++)
        for (int i = 0; i < n_left[r]; i++) { /* in chunks of 777 */
            for (uint32_t at = 0; at < left[r][i].n; at += 777) {
                uint32_t n = left[r][i].n - at < 777 ? left[r][i].n - at : 777;
                prefill_balance_done(&b, r, at, n);
            }
        }
    for (int r = 0; r < UNITS * RANKS; r++) assert_true(b.work[r] == 0 && b.tokens[r] == 0);
    assert_true(b.unit_tokens[0] == 0 && b.unit_tokens[1] == 0);
    prefill_balance_free(&b);
}

static void test_chunk_fill(void **state)
{
    (void)state;
    struct prefill_piece queue[3] = {{0, 5}, {64, 10}, {0, 7}}, take[3];
    assert_int_equal(prefill_chunk_fill(queue, 3, 12, 3, take), 2);
    assert_true(take[0].n == 5 && take[1].pos0 == 64 && take[1].n == 7);
    assert_int_equal(prefill_chunk_fill(queue, 3, 15, 3, take), 2); /* full: nothing of the third */
    assert_int_equal(take[1].n, 10);
    assert_int_equal(prefill_chunk_fill(queue, 3, 100, 3, take), 3);
    assert_int_equal(prefill_chunk_fill(queue, 3, 100, 1, take), 1);
    assert_int_equal(prefill_chunk_fill(queue, 0, 100, 3, take), 0);
    assert_int_equal(prefill_chunk_fill(queue, 3, 0, 3, take), 0);
}

static double work_before(const struct prefill_weights *w, const struct prefill_piece *pieces,
                          struct microbatch_cut cut)
{
    double sum = 0;
    for (int i = 0; i < cut.piece; i++) sum += prefill_work(w, pieces[i].pos0, pieces[i].n);
    return cut.tokens ? sum + prefill_work(w, pieces[cut.piece].pos0, cut.tokens) : sum;
}

static void test_microbatch_cut(void **state)
{
    (void)state;
    struct prefill_weights attention = {.per_token = 0, .per_pair = 1, .reuse = 1};
    struct prefill_weights tokens = {.per_token = 1, .per_pair = 0, .reuse = 1};
    /* 7 tokens from 0: 28 pairs, 5 tokens are 15, 4 are 10: 5 is nearer to 14. */
    struct prefill_piece one = {0, 7};
    struct microbatch_cut cut = microbatch_cut(&attention, &one, 1);
    assert_true(cut.piece == 0 && cut.tokens == 5);
    struct prefill_piece even[2] = {{0, 8}, {0, 8}};
    cut = microbatch_cut(&tokens, even, 2);
    assert_true(cut.piece == 1 && cut.tokens == 0);
    cut = microbatch_cut(&tokens, NULL, 0);
    assert_true(cut.piece == 0 && cut.tokens == 0);
    double worst = 0;
    for (uint64_t key = 1; key <= 500; key++) {
        struct prefill_piece pieces[12];
        int n = 1 + (int)(rng_u64(key, 0) % 12);
        double total = 0, largest = 0;
        struct prefill_weights w = key % 3 == 0   ? attention
                                   : key % 3 == 1 ? tokens
                                                  : prefill_weights_default();
        for (int i = 0; i < n; i++) {
            pieces[i].pos0 = (uint32_t)(rng_u64(key, 2u * (uint64_t)i + 1) % 5000);
            pieces[i].n = 1 + (uint32_t)(rng_u64(key, 2u * (uint64_t)i + 2) % 3000);
            total += prefill_work(&w, pieces[i].pos0, pieces[i].n);
            largest = fmax(largest, prefill_work(&w, pieces[i].pos0 + pieces[i].n - 1, 1));
        }
        cut = microbatch_cut(&w, pieces, n);
        assert_true(cut.piece <= n &&
                    (cut.piece < n ? cut.tokens < pieces[cut.piece].n : cut.tokens == 0));
        double first = work_before(&w, pieces, cut);
        double apart = fabs(2 * first - total) / largest;
        worst = fmax(worst, apart);
        assert_true(apart <= 1 + 1e-9); /* one token more or less */
    }
    printf("# micro-batches: furthest apart %.3f of one token's work, limit 1\n", worst);
}

static void test_expected_pages(void **state)
{
    (void)state;
    assert_int_equal(decode_expected_pages(100, 28, 0, 0, 64), 2); /* 128 tokens */
    assert_int_equal(decode_expected_pages(100, 29, 0, 0, 64), 3);
    assert_int_equal(decode_expected_pages(100, 1000, 0, 20.5, 64), 2); /* mean 21 */
    assert_int_equal(decode_expected_pages(100, 1000, 0, 28.5, 64), 3);
    assert_int_equal(decode_expected_pages(100, 10, 0, 500, 64), 2);
    assert_int_equal(decode_expected_pages(64, 0, 0, 0, 64), 2);       /* prompt + 1 token */
    assert_int_equal(decode_expected_pages(0, 1000, 200, 100, 64), 5); /* past the mean: 264 */
    assert_int_equal(decode_expected_pages(0, 210, 200, 100, 64), 4);
}

static void test_decode_admission(void **state)
{
    (void)state;
    struct decode_limits l = {.units = 1,
                              .ranks_per_unit = 2,
                              .pages = 100,
                              .page_tokens = 64,
                              .max_batch = 4,
                              .high_water = 0.95};
    struct decode_balance b;
    assert_int_equal(decode_balance_init(&b, &l), OK);
    /* An empty rank takes what fits now even if it may outgrow the pool's high water... */
    assert_int_equal(decode_balance_pick(&b, 99, 64), 0);
    /* ... but not a prompt that does not fit. */
    assert_int_equal(decode_balance_pick(&b, 101, 64 * 100), -1);
    decode_balance_add(&b, 0, 60);
    assert_int_equal(decode_balance_pick(&b, 30, 64), 1);
    decode_balance_add(&b, 1, 30);
    assert_int_equal(decode_balance_pick(&b, 40, 64), 1); /* 70 beside 60 + 40 > 95 */
    decode_balance_add(&b, 1, 40);
    assert_int_equal(decode_balance_pick(&b, 35, 64), 0); /* exactly 95 */
    assert_int_equal(decode_balance_pick(&b, 36, 64), -1);
    decode_balance_remove(&b, 0, 60);
    decode_balance_add(&b, 0, 61);
    assert_int_equal(decode_balance_pick(&b, 35, 64), -1);
    assert_true(decode_balance_admits(&b, 0, 34, 64) && !decode_balance_admits(&b, 0, 35, 64));
    for (int i = 0; i < 3; i++) decode_balance_add(&b, 0, 1);
    assert_false(decode_balance_admits(&b, 0, 1, 1)); /* max_batch */
    decode_balance_finished(&b, 10);
    decode_balance_finished(&b, 20);
    assert_true(b.mean_output == 15);
    decode_balance_free(&b);

    uint64_t admitted[4] = {7, 12, 3, 9};
    assert_int_equal(decode_victim(admitted, 4), 1);
    assert_int_equal(decode_victim(admitted, 1), -1);
    assert_int_equal(decode_victim(admitted, 0), -1);
    error_clear();
    l.pages = 0;
    assert_int_equal(decode_balance_init(&b, &l), ERR_BUG);
    error_clear();
}

/* Requests come and go at random: pages and counts stay even over 36 ranks of 2 units, the mark
 * holds, the books close. */
static void test_decode_quality(void **state)
{
    (void)state;
    enum { RANKS = 36, RUNNING = 36 * 40, STEPS = 20000 };
    struct decode_limits l = {.units = 2,
                              .ranks_per_unit = RANKS / 2,
                              .pages = 2000,
                              .page_tokens = 64,
                              .max_batch = 64,
                              .high_water = 0.95};
    struct decode_balance b;
    assert_int_equal(decode_balance_init(&b, &l), OK);
    static int rank_of[RUNNING];
    static uint32_t pages_of[RUNNING];
    memset(rank_of, 0xff, sizeof rank_of);
    double pages_worst = 0, count_worst = 0;
    int admitted = 0;
    for (uint64_t i = 0; i < STEPS; i++) {
        size_t k = rng_u64(11, i) % RUNNING;
        if (rank_of[k] >= 0) decode_balance_remove(&b, rank_of[k], pages_of[k]);
        uint32_t prompt = 16 + (uint32_t)exp2(4 + 8 * rng_uniform(12, i));
        pages_of[k] = decode_expected_pages(prompt, 2048, 0, 700, 64);
        rank_of[k] = decode_balance_pick(&b, pages_of[k], prompt);
        assert_true(rank_of[k] >= 0);
        decode_balance_add(&b, rank_of[k], pages_of[k]);
        admitted++;
        if (i < STEPS / 2) continue;
        double pages = 0, most = 0, most_count = 0;
        for (int r = 0; r < RANKS; r++) {
            pages += (double)b.expected[r];
            most = fmax(most, (double)b.expected[r]);
            most_count = fmax(most_count, b.requests[r]);
            assert_true((double)b.expected[r] <= 0.95 * l.pages);
        }
        uint64_t requests = b.unit_requests[0] + b.unit_requests[1];
        pages_worst = fmax(pages_worst, most * RANKS / pages);
        count_worst = fmax(count_worst, most_count * RANKS / (double)requests);
    }
    printf("# decode ranks: most pages %.3f x mean, limit 1.12; most requests %.3f x mean, limit "
           "1.12\n",
           pages_worst, count_worst);
    assert_true(pages_worst < 1.12 && count_worst < 1.12);
    for (size_t k = 0; k < RUNNING; k++)
        if (rank_of[k] >= 0) decode_balance_remove(&b, rank_of[k], pages_of[k]);
    for (int r = 0; r < RANKS; r++) assert_true(b.expected[r] == 0 && b.requests[r] == 0);
    decode_balance_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replica),          cmocka_unit_test(test_replica_locality),
        cmocka_unit_test(test_prefill_pick),     cmocka_unit_test(test_prefill_room),
        cmocka_unit_test(test_prefill_quality),  cmocka_unit_test(test_chunk_fill),
        cmocka_unit_test(test_microbatch_cut),   cmocka_unit_test(test_expected_pages),
        cmocka_unit_test(test_decode_admission), cmocka_unit_test(test_decode_quality),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
