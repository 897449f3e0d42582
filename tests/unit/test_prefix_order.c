/* links: core kvcache */
/* test_prefix_order.c - the order of sending: a permutation, nobody early or late beyond the
 * bounds, groups together, lanes apart, memory bounded, the same every time; under friendly,
 * random and adversarial files. And the modelled cache against a plain list.
 * Alone: make unit-prefix_order.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/rng.h"
#include "kvcache/prefix_order.h"
#include "kvcache/prefix_shadow.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CHAIN = 64 };

/* A prompt as page numbers: its chain of hashes. Prompts with the same first pages share hashes. */
static int32_t chain_of(const uint64_t *page, int32_t n, struct hash128 *out)
{
    struct hash128 hash = {0, 0};
    for (int32_t i = 0; i < n; i++) out[i] = hash = hash128(&page[i], sizeof page[i], hash);
    return n;
}

/* A file of `count` requests: prompt(i) writes the pages of request i and returns how many. */
struct file {
    int64_t count;
    int32_t (*prompt)(int64_t i, uint64_t *page);
};

struct order_case {
    struct prefix_order_limits limits;
    int read_rate; /* pushes between two takes, at most; 0: as many as fit */
};

struct outcome {
    int64_t *taken;      /* [count] */
    int64_t early, late; /* most places before and after its own */
    int64_t switches;    /* neighbours of one lane whose first pages differ */
    size_t most_bytes;
};

static void push_some(struct prefix_order *o, const struct file *f, int64_t *next, int rate)
{
    for (int n = 0; *next < f->count && prefix_order_wants(o) && (rate == 0 || n < rate); n++) {
        uint64_t page[MAX_CHAIN];
        struct hash128 chain[MAX_CHAIN];
        int32_t pages = chain_of(page, f->prompt(*next, page), chain);
        assert_int_equal(prefix_order_push(o, 1000 + *next, chain, pages), OK);
        ++*next;
    }
}

/* Takes everything; lanes take turns as `turn` says (NULL: lane 0 always). */
static struct outcome run(const struct file *f, const struct order_case *c, int (*turn)(int64_t))
{
    struct prefix_order *o = NULL;
    struct outcome out = {.taken = calloc((size_t)f->count, sizeof(int64_t))};
    char *seen = calloc(1, (size_t)f->count);
    uint64_t at[64] = {0}, page[MAX_CHAIN];
    int64_t next = 0;
    assert_int_equal(prefix_order_create(&c->limits, &o), OK);
    for (int64_t k = 0; k < f->count; k++) {
        push_some(o, f, &next, c->read_rate);
        int lane = turn ? turn(k) : 0;
        int64_t i = prefix_order_take(o, lane) - 1000;
        assert_true(i >= 0 && i < f->count && !seen[i]);
        prefix_order_went(o, lane);
        seen[i] = 1;
        out.taken[k] = i;
        if (i - k > out.early) out.early = i - k;
        if (k - i > out.late) out.late = k - i;
        uint64_t first = f->prompt(i, page) ? page[0] : 0;
        out.switches += first != at[lane];
        at[lane] = first;
        if (prefix_order_bytes(o) > out.most_bytes) out.most_bytes = prefix_order_bytes(o);
        assert_true(prefix_order_waiting(o) <= c->limits.window);
    }
    assert_int_equal(prefix_order_take(o, 0), -1);
    assert_int_equal(prefix_order_waiting(o), 0);
    assert_true(out.early < c->limits.window);
    assert_true(out.late <= c->limits.delay);
    prefix_order_free(o);
    free(seen);
    return out;
}

/* ---- files ---------------------------------------------------------------------------------- */

static int32_t no_pages(int64_t i, uint64_t *page)
{
    (void)i;
    (void)page;
    return 0;
}

/* Ten groups in turn: one page shared, one of its own. */
static int32_t ten_groups(int64_t i, uint64_t *page)
{
    page[0] = 100 + (uint64_t)(i % 10);
    page[1] = 5000 + (uint64_t)i;
    return 2;
}

/* One system prompt for all, 20 documents under it at random, questions of their own. */
static int32_t documents(int64_t i, uint64_t *page)
{
    page[0] = 1;
    page[1] = 2;
    page[2] = 100 + rng_u64(7, (uint64_t)i) % 20;
    page[3] = 100000 + (uint64_t)i;
    return 3 + (int32_t)(i % 2);
}

/* Request 3 stands alone; all others share a page and never run out. */
static int32_t one_alone(int64_t i, uint64_t *page)
{
    page[0] = i == 3 ? 9 : 1;
    page[1] = 1000 + (uint64_t)i;
    return 2;
}

/* Prompts of any length in a random tree with few branches. */
static int32_t random_tree(int64_t i, uint64_t *page)
{
    int32_t n = (int32_t)(rng_u64(11, (uint64_t)i) % 20);
    for (int32_t p = 0; p < n; p++) page[p] = 1 + rng_u64(13, (uint64_t)(i * 64 + p)) % 3;
    return n;
}

static int32_t long_prompts(int64_t i, uint64_t *page)
{
    for (int32_t p = 0; p < 50; p++) page[p] = (uint64_t)(i / 2 * 64 + p + 1);
    return 50;
}

static int turn_random(int64_t k)
{
    return (int)(rng_u64(17, (uint64_t)k) % 4);
}

static int turn_round(int64_t k)
{
    return (int)(k % 4);
}

/* ---- tests ---------------------------------------------------------------------------------- */

static const struct order_case WIDE = {{1000, 1 << 20, 4000, 1}, 0};

/* Nothing shared: file order exactly. */
static void test_file_order(void **state)
{
    (void)state;
    struct file f = {500, no_pages};
    struct outcome out = run(&f, &WIDE, NULL);
    for (int64_t k = 0; k < f.count; k++) assert_int_equal(out.taken[k], k);
    free(out.taken);
}

/* Groups whole, by their oldest member; inside a group in file order. */
static void test_groups(void **state)
{
    (void)state;
    struct file f = {200, ten_groups};
    struct outcome out = run(&f, &WIDE, NULL);
    for (int64_t k = 0; k < f.count; k++) assert_int_equal(out.taken[k], k / 20 + k % 20 * 10);
    assert_int_equal(out.switches, 10);
    free(out.taken);
}

/* A prefix inside a prefix: documents stay together under the system prompt that all share. */
static void test_nested(void **state)
{
    (void)state;
    struct file f = {800, documents};
    struct outcome out = run(&f, &WIDE, NULL);
    uint64_t page[MAX_CHAIN], before = 0;
    int changes = 0;
    for (int64_t k = 0; k < f.count; k++) {
        documents(out.taken[k], page);
        changes += page[2] != before;
        before = page[2];
    }
    assert_int_equal(changes, 20);
    free(out.taken);
}

/* Who shares nothing is not overtaken for ever by a group that never ends. */
static void test_no_starvation(void **state)
{
    (void)state;
    struct file f = {5000, one_alone};
    struct order_case c = {{64, 1 << 20, 200, 1}, 0};
    struct outcome out = run(&f, &c, NULL);
    assert_int_equal(out.taken[203], 3);
    assert_int_equal(out.late, 200);
    free(out.taken);
}

/* Random trees, windows, delays and reading speeds: the bounds hold (asserted in run). */
static void test_bounds(void **state)
{
    (void)state;
    struct file files[] = {{3000, random_tree}, {3000, documents}, {3000, ten_groups}};
    for (uint64_t i = 0; i < 90; i++) {
        int32_t window = 1 + (int32_t)(rng_u64(3, i) % 300);
        struct order_case c = {{window, 1 + (int32_t)(rng_u64(4, i) % 3000),
                                window + (int64_t)(rng_u64(5, i) % 500), 4},
                               (int)(rng_u64(6, i) % 4)};
        free(run(&files[i % 3], &c, i % 2 ? turn_random : turn_round).taken);
    }
}

/* The delay is rarely what decides: with 4 windows' delay shuffled groups stay together. */
static void test_shuffled_groups(void **state)
{
    (void)state;
    struct file f = {20000, documents};
    struct order_case c = {{512, 1 << 20, 2048, 1}, 0};
    struct outcome out = run(&f, &c, NULL);
    uint64_t page[MAX_CHAIN], before = 0;
    int64_t changes = 0;
    for (int64_t k = 0; k < f.count; k++) {
        documents(out.taken[k], page);
        changes += page[2] != before;
        before = page[2];
    }
    printf("# 20 groups shuffled, window 512: %lld runs of one group in 20000 requests, at most "
           "%lld places late\n",
           (long long)changes, (long long)out.late);
    assert_true(changes < 20000 / 25); /* 19,000 in file order, 20000 / (512 / 20) a cycle each */
    free(out.taken);
}

/* Lanes that take turns each work on groups of their own. */
static void test_lanes_apart(void **state)
{
    (void)state;
    struct file f = {2000, ten_groups};
    struct order_case c = {{2000, 1 << 20, 8000, 4}, 0};
    struct outcome out = run(&f, &c, turn_round);
    /* Ten groups in whole, and once those are all taken, what is left of some is shared out. */
    printf("# 10 groups on 4 lanes: %lld changes of group\n", (long long)out.switches);
    assert_true(out.switches <= 10 + 3 * 4);
    free(out.taken);
}

/* A lane goes on where its requests really went, not where it was meant to. */
static void test_went_elsewhere(void **state)
{
    (void)state;
    struct prefix_order_limits limits = {100, 1000, 400, 2};
    struct prefix_order *o = NULL;
    assert_int_equal(prefix_order_create(&limits, &o), OK);
    for (int64_t i = 0; i < 40; i++) {
        uint64_t page[MAX_CHAIN];
        struct hash128 chain[MAX_CHAIN];
        assert_int_equal(prefix_order_push(o, i, chain, chain_of(page, ten_groups(i, page), chain)),
                         OK);
    }
    assert_int_equal(prefix_order_take(o, 0), 0);
    prefix_order_went(o, 1);                      /* the balancer sent it to 1 */
    assert_int_equal(prefix_order_take(o, 0), 1); /* group 0 is lane 1's */
    prefix_order_went(o, 0);
    assert_int_equal(prefix_order_take(o, 1), 10);
    prefix_order_went(o, 1);
    assert_int_equal(prefix_order_take(o, 0), 11);
    prefix_order_free(o);
}

/* Many requests through a small window: memory stays where it was after the first few. */
static void test_memory(void **state)
{
    (void)state;
    struct order_case c = {{1000, 3000, 4000, 8}, 0};
    struct file few = {5000, long_prompts}, many = {200000, long_prompts};
    struct outcome a = run(&few, &c, NULL), b = run(&many, &c, NULL);
    printf("# %zu bytes with 5,000 requests, %zu with 200,000\n", a.most_bytes, b.most_bytes);
    assert_int_equal(a.most_bytes, b.most_bytes);
    /* 3,000 pages, one prompt beyond, 9 prompts that lanes stand on, doubled. */
    assert_true(b.most_bytes < (3000 + 50 + 9 * 50) * 2 * 64 + 1000 * 48);
    free(a.taken);
    free(b.taken);
}

static void test_same_every_time(void **state)
{
    (void)state;
    struct file f = {4000, random_tree};
    struct order_case c = {{300, 4000, 1200, 4}, 2};
    struct outcome a = run(&f, &c, turn_random), b = run(&f, &c, turn_random);
    assert_memory_equal(a.taken, b.taken, (size_t)f.count * sizeof *a.taken);
    free(a.taken);
    free(b.taken);
}

static void test_refusals(void **state)
{
    (void)state;
    struct prefix_order *o = NULL;
    struct prefix_order_limits bad = {8, 8, 7, 1}, small = {2, 8, 8, 1};
    assert_int_equal(prefix_order_create(&bad, &o), ERR_BUG);
    error_clear();
    assert_int_equal(prefix_order_create(&small, &o), OK);
    assert_int_equal(prefix_order_take(o, 0), -1);
    assert_int_equal(prefix_order_push(o, 0, NULL, 0), OK);
    assert_int_equal(prefix_order_push(o, 1, NULL, 0), OK);
    assert_false(prefix_order_wants(o));
    assert_int_equal(prefix_order_push(o, 2, NULL, 0), ERR_BUG);
    error_clear();
    prefix_order_free(o);
    prefix_order_free(NULL);
}

/* ---- the modelled cache --------------------------------------------------------------------- */

/* The same as a plain array of pages in order of use. */
struct plain_cache {
    uint64_t page[64];
    int n, cap;
};

static bool plain_touch(struct plain_cache *c, uint64_t key)
{
    int at = 0;
    while (at < c->n && c->page[at] != key) at++;
    bool found = at < c->n;
    if (!found && c->n == c->cap)
        at = 0; /* the oldest goes */
    else if (!found)
        at = c->n++;
    memmove(c->page + at, c->page + at + 1, (size_t)(c->n - 1 - at) * sizeof *c->page);
    c->page[c->n - 1] = key;
    return found;
}

static void test_shadow_plain(void **state)
{
    (void)state;
    struct plain_cache plain = {.cap = 40};
    struct prefix_shadow s;
    uint64_t hits = 0;
    assert_int_equal(prefix_shadow_init(&s, 40), OK);
    for (int64_t i = 0; i < 5000; i++) {
        uint64_t page[MAX_CHAIN];
        struct hash128 chain[MAX_CHAIN];
        int32_t n = chain_of(page, random_tree(i, page), chain), usable = n - (int32_t)(i % 2);
        for (int32_t p = n - 1; p >= 0; p--) hits += plain_touch(&plain, chain[p].lo) && p < usable;
        prefix_shadow_prompt(&s, chain, n, usable);
        assert_int_equal(s.hit_pages, hits);
    }
    assert_true(hits > 5000);
    prefix_shadow_free(&s);
    assert_int_equal(prefix_shadow_init(&s, 0), OK);
    prefix_shadow_prompt(&s, (struct hash128[]){{1, 2}}, 1, 1);
    prefix_shadow_prompt(&s, (struct hash128[]){{1, 2}}, 1, 1);
    assert_int_equal(s.hit_pages, 0);
    prefix_shadow_free(&s);
}

/* Beyond 2^16 pages a share of them stands for all: near the exact count, in bounded memory. */
static void test_shadow_sampled(void **state)
{
    (void)state;
    enum { PAGES = 1 << 19, PROMPTS = 60000, LENGTH = 16 };
    struct prefix_shadow s;
    assert_int_equal(prefix_shadow_init(&s, PAGES), OK);
    assert_true(s.capacity <= 1 << 16);
    uint64_t expected = 0;
    /* Each comes back 30,000 prompts, 480,000 pages, later. */
    for (int64_t i = 0; i < PROMPTS; i++) {
        uint64_t page[LENGTH];
        struct hash128 chain[LENGTH];
        for (int p = 0; p < LENGTH; p++) page[p] = (uint64_t)(i % (PROMPTS / 2) * LENGTH + p);
        prefix_shadow_prompt(&s, chain, chain_of(page, LENGTH, chain), LENGTH);
        if (i >= PROMPTS / 2) expected += LENGTH;
    }
    double error = (double)s.hit_pages / (double)expected - 1;
    printf("# 1 page of %llu followed: %llu hits, %llu expected, %.2f %% off (1 %% allowed)\n",
           (unsigned long long)s.rate, (unsigned long long)s.hit_pages,
           (unsigned long long)expected, 100 * error);
    assert_true(error < 0.01 && error > -0.01);
    prefix_shadow_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file_order),     cmocka_unit_test(test_groups),
        cmocka_unit_test(test_nested),         cmocka_unit_test(test_no_starvation),
        cmocka_unit_test(test_bounds),         cmocka_unit_test(test_shuffled_groups),
        cmocka_unit_test(test_lanes_apart),    cmocka_unit_test(test_went_elsewhere),
        cmocka_unit_test(test_memory),         cmocka_unit_test(test_same_every_time),
        cmocka_unit_test(test_refusals),       cmocka_unit_test(test_shadow_plain),
        cmocka_unit_test(test_shadow_sampled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
