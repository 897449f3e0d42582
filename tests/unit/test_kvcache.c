/* links: core kvcache */
/* test_kvcache.c - page pool, prefix index and route index, each against a plain reference under
 * random use: no page lost or held twice, counts right, matches exact and longest, parents never
 * gone before children, least recently used first. Alone: make unit-kvcache.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/rng.h"
#include "kvcache/page_pool.h"
#include "kvcache/prefix_index.h"
#include "kvcache/route_index.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void test_pool(void **state)
{
    (void)state;
    struct page_pool pool;
    int32_t p[8];
    assert_int_equal(page_pool_init(&pool, 4), OK);
    assert_true(page_pool_alloc(&pool, 3, p));
    assert_true(p[0] == 0 && p[1] == 1 && p[2] == 2);
    assert_false(page_pool_alloc(&pool, 2, p + 3)); /* all or nothing */
    assert_int_equal(pool.n_free, 1);
    page_pool_ref(&pool, 1);
    assert_false(page_pool_unref(&pool, 1));
    assert_true(page_pool_unref(&pool, 1));
    assert_int_equal(page_pool_used(&pool), 2);
    assert_true(page_pool_alloc(&pool, 2, p + 3));
    page_pool_unref_all(&pool, (int32_t[]){0, 2}, 2);
    page_pool_unref_all(&pool, p + 3, 2);
    assert_int_equal(pool.n_free, 4);
    assert_true(page_pool_alloc(&pool, 0, NULL));
    page_pool_free(&pool);
    assert_int_equal(page_pool_init(&pool, 0), OK);
    assert_false(page_pool_alloc(&pool, 1, p));
    page_pool_free(&pool);
    assert_int_equal(pages_for(0, 64), 0);
    assert_int_equal(pages_for(64, 64), 1);
    assert_int_equal(pages_for(65, 64), 2);
}

/* Random allocation, sharing and release: counts as a plain array says, every page somewhere. */
static void test_pool_random(void **state)
{
    (void)state;
    enum { PAGES = 50 };
    struct page_pool pool;
    uint32_t refs[PAGES] = {0};
    assert_int_equal(page_pool_init(&pool, PAGES), OK);
    for (uint64_t i = 0; i < 20000; i++) {
        uint64_t u = rng_u64(5, i);
        int32_t page = (int32_t)((u >> 8) % PAGES), got[8];
        uint32_t n = (u >> 32) % 8, n_free = 0;
        if (u % 4 == 0) {
            for (int k = 0; k < PAGES; k++) n_free += refs[k] == 0;
            assert_int_equal(page_pool_alloc(&pool, n, got), n <= n_free);
            for (uint32_t k = 0; k < n && n <= n_free; k++) assert_int_equal(refs[got[k]]++, 0);
        } else if (u % 4 == 1 && refs[page]) {
            page_pool_ref(&pool, page);
            refs[page]++;
        } else if (refs[page]) {
            assert_int_equal(page_pool_unref(&pool, page), --refs[page] == 0);
        }
        n_free = 0;
        for (int k = 0; k < PAGES; k++) {
            assert_int_equal(pool.refs[k], refs[k]);
            n_free += refs[k] == 0;
        }
        assert_int_equal(pool.n_free, n_free);
    }
    page_pool_free(&pool);
}

enum { PT = 4 }; /* tokens a page */

static void test_prefix(void **state)
{
    (void)state;
    struct page_pool pool;
    struct prefix_index ix;
    int32_t a[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, pages[3], hit[3];
    assert_int_equal(page_pool_init(&pool, 8), OK);
    assert_int_equal(prefix_index_init(&ix, &pool, PT), OK);
    assert_int_equal(prefix_index_lookup(&ix, a, 12, hit), 0);
    assert_true(page_pool_alloc(&pool, 3, pages));
    assert_int_equal(prefix_index_insert(&ix, a, 6, pages), 1);  /* a chunk: one full page */
    assert_int_equal(prefix_index_insert(&ix, a, 11, pages), 1); /* the second; third is partial */
    assert_int_equal(prefix_index_insert(&ix, a, 11, pages), 0);
    page_pool_unref_all(&pool, pages, 3);
    assert_int_equal(pool.n_free, 6); /* two stay with the index */

    assert_int_equal(prefix_index_lookup(&ix, a, 12, hit), 2);
    assert_true(hit[0] == pages[0] && hit[1] == pages[1]);
    assert_int_equal(pool.refs[hit[0]], 2);
    page_pool_unref_all(&pool, hit, 2);
    /* One token is left to compute: of 8 tokens only the first page may be reused. */
    assert_int_equal(prefix_index_peek(&ix, a, 8), 1);
    assert_int_equal(prefix_index_peek(&ix, a, 9), 2);
    assert_int_equal(prefix_index_peek(&ix, a, 4), 0);
    assert_int_equal(prefix_index_peek(&ix, a, 0), 0);
    /* The same second page after another first one is another page. */
    int32_t b[9] = {9, 9, 9, 9, 5, 6, 7, 8, 1};
    assert_int_equal(prefix_index_peek(&ix, b, 9), 0);
    assert_true(ix.hit_tokens == 8 && ix.miss_tokens == 12 + 4);

    /* In use: nothing can go. Then child before parent, one at a time. */
    assert_int_equal(prefix_index_lookup(&ix, a, 9, hit), 2);
    assert_int_equal(prefix_index_evictable(&ix), 0);
    assert_int_equal(prefix_index_evict(&ix, 8), 0);
    page_pool_unref_all(&pool, hit, 2);
    assert_int_equal(prefix_index_evictable(&ix), 2);
    assert_int_equal(prefix_index_evict(&ix, 1), 1);
    assert_int_equal(prefix_index_peek(&ix, a, 9), 1);
    assert_int_equal(prefix_index_evict(&ix, 8), 1);
    assert_int_equal(prefix_index_peek(&ix, a, 9), 0);
    assert_true(pool.n_free == 8 && ix.n_entries == 0 && ix.evicted_pages == 2);
    prefix_index_free(&ix);
    page_pool_free(&pool);
    error_clear();
    assert_int_equal(prefix_index_init(&ix, &pool, 0), ERR_BUG);
    error_clear();
}

/* A hash that is equal for different tokens must not match: forge one. */
static void test_prefix_collision(void **state)
{
    (void)state;
    struct page_pool pool;
    struct prefix_index ix;
    int32_t a[5] = {1, 2, 3, 4, 0}, page, hit;
    assert_int_equal(page_pool_init(&pool, 2), OK);
    assert_int_equal(prefix_index_init(&ix, &pool, PT), OK);
    assert_true(page_pool_alloc(&pool, 1, &page));
    assert_int_equal(prefix_index_insert(&ix, a, PT, &page), 1);
    assert_int_equal(prefix_index_lookup(&ix, a, 5, &hit), 1);
    page_pool_unref(&pool, hit);
    ix.tokens[(size_t)page * PT + 2] = 77; /* same hash in the index, other tokens behind it */
    assert_int_equal(prefix_index_lookup(&ix, a, 5, &hit), 0);
    page_pool_unref(&pool, page);
    prefix_index_free(&ix);
    assert_int_equal(pool.n_free, 2);
    page_pool_free(&pool);
}

/* Least recently used first: of three one-page prompts the one not looked up goes. */
static void test_prefix_lru(void **state)
{
    (void)state;
    struct page_pool pool;
    struct prefix_index ix;
    int32_t t[3][5], page, out[3];
    assert_int_equal(page_pool_init(&pool, 3), OK);
    assert_int_equal(prefix_index_init(&ix, &pool, PT), OK);
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < 5; k++) t[i][k] = 10 * i + k;
        assert_true(prefix_index_alloc(&ix, 1, &page));
        assert_int_equal(prefix_index_insert(&ix, t[i], PT, &page), 1);
        page_pool_unref(&pool, page);
    }
    assert_int_equal(prefix_index_lookup(&ix, t[0], 5, out), 1);
    page_pool_unref(&pool, out[0]);
    assert_true(prefix_index_alloc(&ix, 1, &page));
    assert_int_equal(prefix_index_peek(&ix, t[0], 5), 1);
    assert_int_equal(prefix_index_peek(&ix, t[1], 5), 0);
    assert_int_equal(prefix_index_peek(&ix, t[2], 5), 1);
    /* More than can be had: nothing is evicted for it. */
    assert_false(prefix_index_alloc(&ix, 3, out));
    assert_int_equal(ix.n_entries, 2);
    assert_true(prefix_index_alloc(&ix, 2, out));
    assert_int_equal(ix.n_entries, 0);
    page_pool_unref(&pool, page);
    page_pool_unref_all(&pool, out, 2);
    prefix_index_free(&ix);
    assert_int_equal(pool.n_free, 3);
    page_pool_free(&pool);
}

/* Requests as an engine runs them: look up, allocate the rest, hold, insert in chunks, release.
 * Prompts come from a small tree so that prefixes are shared at every depth. The reference keeps,
 * for every page, the whole prefix that was written to it: a hit must be exactly that. */
enum { POOL = 40, LIVE = 9, MAX_PAGES = 8 };

struct request {
    bool live;
    int32_t tokens[MAX_PAGES * PT];
    uint32_t n, n_pages;
    int32_t pages[MAX_PAGES];
};

struct world {
    struct page_pool pool;
    struct prefix_index ix;
    struct request r[LIVE];
    int32_t written[POOL][MAX_PAGES * PT]; /* the prefix up to and with the page */
    uint32_t written_n[POOL];
    uint64_t hits, refused;
};

static void world_admit(struct world *w, struct request *r, uint64_t key)
{
    r->n = 1 + (uint32_t)(rng_u64(key, 0) % (MAX_PAGES * PT));
    for (uint32_t i = 0; i < r->n; i++) /* two kinds of page, sometimes another token inside */
        r->tokens[i] = (int32_t)(rng_u64(key, 1 + i / PT) % 2 * 100 + i % PT +
                                 (rng_u64(key, 100 + i) % 40 == 0));
    uint32_t peek = prefix_index_peek(&w->ix, r->tokens, r->n);
    uint32_t hit = prefix_index_lookup(&w->ix, r->tokens, r->n, r->pages);
    assert_int_equal(peek, hit);
    assert_true(hit * PT < r->n);
    for (uint32_t i = 0; i < hit; i++) {
        assert_int_equal(w->written_n[r->pages[i]], (i + 1) * PT);
        assert_memory_equal(w->written[r->pages[i]], r->tokens, (i + 1) * PT * sizeof(int32_t));
    }
    w->hits += hit;
    r->n_pages = pages_for(r->n, PT);
    uint32_t evictable = prefix_index_evictable(&w->ix), n_free = w->pool.n_free;
    bool got = prefix_index_alloc(&w->ix, r->n_pages - hit, r->pages + hit);
    assert_int_equal(got, r->n_pages - hit <= evictable + n_free);
    if (!got) {
        page_pool_unref_all(&w->pool, r->pages, hit);
        w->refused++;
        return;
    }
    for (uint32_t i = hit; i < r->n_pages; i++) {
        w->written_n[r->pages[i]] = (i + 1) * PT;
        if ((i + 1) * PT <= r->n)
            memcpy(w->written[r->pages[i]], r->tokens, (i + 1) * PT * sizeof(int32_t));
    }
    r->live = true;
}

/* Every page's count is its holders', and the index is a forest with its newest parents. */
static void world_check(struct world *w)
{
    uint32_t refs[POOL] = {0}, entries = 0;
    for (int k = 0; k < LIVE; k++)
        for (uint32_t i = 0; w->r[k].live && i < w->r[k].n_pages; i++) refs[w->r[k].pages[i]]++;
    uint32_t n_free = 0;
    for (int p = 0; p < POOL; p++) {
        uint32_t more = w->pool.refs[p] - refs[p];
        assert_true(more <= 1); /* at most the index beside the requests */
        entries += more;
        n_free += w->pool.refs[p] == 0;
    }
    assert_int_equal(entries, w->ix.n_entries);
    assert_int_equal(n_free, w->pool.n_free);
}

static void test_prefix_random(void **state)
{
    (void)state;
    struct world *w = calloc(1, sizeof *w);
    assert_int_equal(page_pool_init(&w->pool, POOL), OK);
    assert_int_equal(prefix_index_init(&w->ix, &w->pool, PT), OK);
    for (uint64_t i = 1; i <= 30000; i++) {
        struct request *r = &w->r[rng_u64(9, i) % LIVE];
        if (!r->live) {
            world_admit(w, r, i);
        } else if (rng_u64(10, i) % 3) {
            prefix_index_insert(&w->ix, r->tokens, (uint32_t)(rng_u64(12, i) % (r->n + 1)),
                                r->pages);
        } else {
            prefix_index_insert(&w->ix, r->tokens, r->n, r->pages);
            page_pool_unref_all(&w->pool, r->pages, r->n_pages);
            r->live = false;
            assert_int_equal(prefix_index_peek(&w->ix, r->tokens, r->n), (r->n - 1) / PT);
        }
        if (rng_u64(13, i) % 50 == 0) {
            uint32_t can = prefix_index_evictable(&w->ix), want = (uint32_t)(i % 20);
            assert_int_equal(prefix_index_evict(&w->ix, want), want < can ? want : can);
        }
        world_check(w);
    }
    printf("# 30000 steps: %llu pages hit, %llu requests refused, %llu pages evicted\n",
           (unsigned long long)w->hits, (unsigned long long)w->refused,
           (unsigned long long)w->ix.evicted_pages);
    assert_true(w->hits > 1000 && w->refused > 10 && w->ix.evicted_pages > 1000);
    for (int k = 0; k < LIVE; k++)
        if (w->r[k].live) page_pool_unref_all(&w->pool, w->r[k].pages, w->r[k].n_pages);
    prefix_index_free(&w->ix);
    assert_int_equal(w->pool.n_free, POOL); /* nothing leaked */
    page_pool_free(&w->pool);
    free(w);
}

static void test_route(void **state)
{
    (void)state;
    struct route_index ix;
    int32_t a[13] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
    uint32_t cached[4];
    assert_int_equal(route_index_init(&ix, 1024, PT), OK);
    assert_int_equal(route_index_match(&ix, a, 13, 4, cached), -1);
    route_index_note_prompt(&ix, a, 9, 2);  /* two pages on rank 2 */
    route_index_note_prompt(&ix, a, 13, 1); /* three on rank 1 */
    assert_int_equal(route_index_match(&ix, a, 13, 4, cached), 1);
    assert_true(cached[0] == 0 && cached[1] == 12 && cached[2] == 8 && cached[3] == 0);
    assert_int_equal(route_index_match(&ix, a, 12, 4, cached), 1); /* one token left to compute */
    assert_true(cached[1] == 8 && cached[2] == 8);
    assert_int_equal(route_index_match(&ix, a, 13, 1, cached), -1); /* ranks that are gone */
    assert_int_equal(route_index_match(&ix, a, 4, 4, cached), -1);
    /* A later page without those before it is worth nothing. */
    struct hash128 hash = PAGE_HASH_ROOT;
    for (int i = 0; i < 2; i++) hash = page_hash(a + i * PT, PT, hash);
    route_index_note(&ix, hash, 3);
    assert_int_equal(route_index_match(&ix, a, 13, 4, cached), 1);
    assert_true(cached[3] == 0);
    route_index_free(&ix);
}

/* Bounded: the newest notes stay, many ranks for one page too. */
static void test_route_bounded(void **state)
{
    (void)state;
    struct route_index ix;
    uint32_t cached[20];
    assert_int_equal(route_index_init(&ix, 8, PT), OK);
    int32_t a[5] = {1, 2, 3, 4, 5};
    for (int rank = 0; rank < 20; rank++) route_index_note_prompt(&ix, a, 5, rank);
    route_index_note_prompt(&ix, a, 5, 12); /* renewed, not doubled */
    assert_int_equal(route_index_match(&ix, a, 5, 20, cached), 12);
    for (int rank = 0; rank < 20; rank++) assert_int_equal(cached[rank], rank < 12 ? 0 : PT);
    for (int32_t i = 0; i < 8; i++) { /* other prompts push it out, one by one */
        int32_t b[5] = {50 + i, 2, 3, 4, 5};
        route_index_note_prompt(&ix, b, 5, 3);
        uint32_t left = 0;
        route_index_match(&ix, a, 5, 20, cached);
        for (int rank = 0; rank < 20; rank++) left += cached[rank] != 0;
        assert_int_equal(left, 7 - i);
        assert_int_equal(cached[12] != 0, i < 7); /* the renewed one last */
    }
    route_index_free(&ix);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool),       cmocka_unit_test(test_pool_random),
        cmocka_unit_test(test_prefix),     cmocka_unit_test(test_prefix_collision),
        cmocka_unit_test(test_prefix_lru), cmocka_unit_test(test_prefix_random),
        cmocka_unit_test(test_route),      cmocka_unit_test(test_route_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
