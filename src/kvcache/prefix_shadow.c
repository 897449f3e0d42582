/* prefix_shadow.c - a hash table and a list in order of use. A prompt's pages are touched last to
 * first, so a page is never older than those after it, and what is found is a whole prefix.
 */
#include "kvcache/prefix_shadow.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { NONE = -1, MOST_PAGES = 1 << 16 };

struct shadow_page {
    uint64_t key;
    int32_t next; /* in the bucket */
    int32_t older, newer;
};

enum status prefix_shadow_init(struct prefix_shadow *s, uint64_t pages)
{
    memset(s, 0, sizeof *s);
    s->rate = (pages + MOST_PAGES - 1) / MOST_PAGES;
    if (s->rate == 0) s->rate = 1;
    s->capacity = (uint32_t)(pages / s->rate);
    s->n_buckets = 16;
    while (s->n_buckets < s->capacity) s->n_buckets *= 2;
    s->oldest = s->newest = NONE;
    s->page = malloc(((size_t)s->capacity + 1) * sizeof *s->page);
    s->bucket = malloc(s->n_buckets * sizeof *s->bucket);
    if (!s->page || !s->bucket) {
        prefix_shadow_free(s);
        return error_set(ERR_RESOURCE, "no memory to model the prefix cache");
    }
    memset(s->bucket, 0xff, s->n_buckets * sizeof *s->bucket);
    return OK;
}

void prefix_shadow_free(struct prefix_shadow *s)
{
    free(s->page);
    free(s->bucket);
    memset(s, 0, sizeof *s);
}

static int32_t *bucket_of(struct prefix_shadow *s, uint64_t key)
{
    return &s->bucket[key & (s->n_buckets - 1)];
}

static void unlink_page(struct prefix_shadow *s, int32_t i)
{
    struct shadow_page *p = &s->page[i];
    *(p->older == NONE ? &s->oldest : &s->page[p->older].newer) = p->newer;
    *(p->newer == NONE ? &s->newest : &s->page[p->newer].older) = p->older;
}

static void make_newest(struct prefix_shadow *s, int32_t i)
{
    struct shadow_page *p = &s->page[i];
    p->older = s->newest;
    p->newer = NONE;
    *(p->older == NONE ? &s->oldest : &s->page[p->older].newer) = i;
    s->newest = i;
}

/* A page of the table for a new key: an unused one, else the oldest. */
static int32_t claim_page(struct prefix_shadow *s)
{
    if (s->used < s->capacity) return (int32_t)s->used++;
    int32_t i = s->oldest;
    int32_t *at = bucket_of(s, s->page[i].key);
    while (*at != i) at = &s->page[*at].next;
    *at = s->page[i].next;
    unlink_page(s, i);
    return i;
}

/* Whether the page was there; it is the newest afterwards. */
static bool touch(struct prefix_shadow *s, uint64_t key)
{
    int32_t *bucket = bucket_of(s, key), i = *bucket;
    while (i != NONE && s->page[i].key != key) i = s->page[i].next;
    bool found = i != NONE;
    if (found) {
        unlink_page(s, i);
    } else {
        i = claim_page(s);
        s->page[i].key = key;
        s->page[i].next = *bucket;
        *bucket = i;
    }
    make_newest(s, i);
    return found;
}

void prefix_shadow_prompt(struct prefix_shadow *s, const struct hash128 *chain, int32_t pages,
                          int32_t usable)
{
    if (s->capacity == 0) return;
    for (int32_t p = pages - 1; p >= 0; p--) {
        if (chain[p].hi % s->rate) continue;
        bool may_hit = p < usable;
        if (touch(s, chain[p].lo) && may_hit) s->hit_pages += s->rate;
    }
}
