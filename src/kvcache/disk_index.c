/* disk_index.c - a slab of entries, a chained hash table, and one recency list per class.
 *
 * The policy: a prompt that continues an earlier one (its last page found is where that one ended)
 * is a further turn of a conversation, and the more turns a conversation has had the likelier there
 * is another. Its pages form a class by turns, each class a recency list, and a page's age counts
 * in multiples of its class's patience: the oldest in that sense goes first. Prefixes that many
 * prompts share (the last page found has branches) say nothing about a conversation; they stay
 * because they are used. With one class and patience 1 this is LRU from the leaves, the baseline.
 *
 * A request makes its pages the newest from the last to the first, so in a list a parent is newer
 * than its children; entries with children are passed over all the same, because a chain may lie in
 * several lists.
 */
#include "kvcache/disk_index.h"

#include <stdlib.h>
#include <string.h>

enum { NONE = -1, NO_MEMORY = -2, CLASSES = 4 };

/* How long a page of each class stays beside one of the first class. From the share of prompts of
 * each kind that had another turn in the Mooncake conversation trace: 0.31, 0.42, 0.50, 0.67; the
 * hit ratio is flat around these. */
static const double patience[CLASSES] = {1, 1.4, 1.8, 2.5};

struct entry {
    struct hash128 hash, parent;
    double last;          /* time of the last use */
    int32_t next;         /* in the hash bucket, or in the list of free entries */
    int32_t older, newer; /* in the class's list */
    int32_t n_children;   /* entries that were linked to this one */
    uint32_t born;        /* number of this insertion */
    uint32_t linked;      /* `born` of the parent that counts this entry; 0: none */
    uint32_t place, slot;
    int32_t class; /* turns of its conversation so far, at most CLASSES - 1; NONE: free */
};

struct list {
    int32_t oldest, newest;
};

struct disk_index {
    enum disk_policy policy;
    uint32_t count, slots, cap, n_buckets, born;
    int32_t free_entry;
    struct entry *entry; /* [cap] */
    int32_t *bucket;     /* [n_buckets], a power of two */
    struct list list[CLASSES];
};

enum status disk_index_create(enum disk_policy policy, struct disk_index **out)
{
    enum { FIRST_BUCKETS = 64 };
    struct disk_index *ix = calloc(1, sizeof *ix);
    if (ix) ix->bucket = malloc(FIRST_BUCKETS * sizeof *ix->bucket);
    if (!ix || !ix->bucket) {
        free(ix);
        return error_set(ERR_RESOURCE, "no memory for the index of pages on disk");
    }
    ix->policy = policy;
    ix->n_buckets = FIRST_BUCKETS;
    memset(ix->bucket, 0xff, FIRST_BUCKETS * sizeof *ix->bucket);
    ix->free_entry = NONE;
    for (int c = 0; c < CLASSES; c++) ix->list[c] = (struct list){NONE, NONE};
    *out = ix;
    return OK;
}

void disk_index_free(struct disk_index *ix)
{
    if (!ix) return;
    free(ix->entry);
    free(ix->bucket);
    free(ix);
}

uint32_t disk_index_count(const struct disk_index *ix)
{
    return ix->count;
}

static bool same(struct hash128 a, struct hash128 b)
{
    return a.lo == b.lo && a.hi == b.hi;
}

static int32_t *bucket_of(const struct disk_index *ix, struct hash128 hash)
{
    return &ix->bucket[hash.lo & (ix->n_buckets - 1)];
}

int32_t disk_index_find(const struct disk_index *ix, struct hash128 hash)
{
    int32_t at = *bucket_of(ix, hash);
    while (at != NONE && !same(ix->entry[at].hash, hash)) at = ix->entry[at].next;
    return at;
}

uint32_t disk_index_match(const struct disk_index *ix, const struct hash128 *chain, uint32_t n)
{
    uint32_t found = 0;
    while (found < n && disk_index_find(ix, chain[found]) != NONE) found++;
    return found;
}

/* ---- lists ---------------------------------------------------------------------------------- */

static void unlink_entry(struct disk_index *ix, int32_t at)
{
    struct entry *e = &ix->entry[at];
    struct list *l = &ix->list[e->class];
    *(e->older == NONE ? &l->oldest : &ix->entry[e->older].newer) = e->newer;
    *(e->newer == NONE ? &l->newest : &ix->entry[e->newer].older) = e->older;
}

static void make_newest(struct disk_index *ix, int32_t at, int class)
{
    struct entry *e = &ix->entry[at];
    struct list *l = &ix->list[class];
    e->class = class;
    e->older = l->newest;
    e->newer = NONE;
    *(e->older == NONE ? &l->oldest : &ix->entry[e->older].newer) = at;
    l->newest = at;
}

/* The parent counts the child, once, whichever of the two came first. */
static void link_parent(struct disk_index *ix, int32_t child, int32_t parent)
{
    struct entry *e = &ix->entry[child], *p = &ix->entry[parent];
    if (e->linked == p->born) return;
    e->linked = p->born;
    p->n_children++;
}

/* ---- use ------------------------------------------------------------------------------------ */

/* Before the request's own pages are there: whether the last page it found was an end. */
static int class_of(const struct disk_index *ix, const struct hash128 *chain, uint32_t hits,
                    uint32_t total)
{
    if (ix->policy == DISK_POLICY_LRU || hits == 0) return 0;
    int32_t at = disk_index_find(ix, chain[hits - 1]);
    if (at == NONE) return 0;
    /* The request's own next page may be linked already. */
    int32_t others = ix->entry[at].n_children;
    int32_t next = hits < total ? disk_index_find(ix, chain[hits]) : NONE;
    if (next != NONE && ix->entry[next].linked == ix->entry[at].born) others--;
    if (others > 0) return 0;
    int turns = ix->entry[at].class + 1;
    return turns < CLASSES ? turns : CLASSES - 1;
}

void disk_index_touch(struct disk_index *ix, const struct hash128 *chain, uint32_t hits,
                      uint32_t total, double now)
{
    int class = class_of(ix, chain, hits, total);
    int32_t child = NONE;
    for (uint32_t i = total; i-- > 0;) {
        int32_t at = disk_index_find(ix, chain[i]);
        if (at != NONE) {
            unlink_entry(ix, at);
            make_newest(ix, at, class);
            ix->entry[at].last = now;
            if (child != NONE) link_parent(ix, child, at);
        }
        child = at;
    }
}

/* ---- entries -------------------------------------------------------------------------------- */

static bool grow(struct disk_index *ix)
{
    uint32_t cap = ix->cap ? 2 * ix->cap : 64;
    if (cap > INT32_MAX) return false;
    struct entry *entry = realloc(ix->entry, (size_t)cap * sizeof *entry);
    if (!entry) return false;
    ix->entry = entry;
    ix->cap = cap;
    uint32_t buckets = ix->n_buckets;
    while (buckets < cap) buckets *= 2;
    if (buckets == ix->n_buckets) return true;
    int32_t *bucket = malloc(buckets * sizeof *bucket);
    if (!bucket) return true; /* longer chains */
    free(ix->bucket);
    ix->bucket = bucket;
    ix->n_buckets = buckets;
    memset(bucket, 0xff, buckets * sizeof *bucket);
    for (uint32_t i = 0; i < ix->slots; i++) {
        struct entry *e = &ix->entry[i];
        if (e->class == NONE) continue;
        e->next = *bucket_of(ix, e->hash);
        *bucket_of(ix, e->hash) = (int32_t)i;
    }
    return true;
}

int32_t disk_index_insert(struct disk_index *ix, struct hash128 hash, struct hash128 parent,
                          uint32_t place, uint32_t slot, double now)
{
    if (disk_index_find(ix, hash) != NONE) return NONE;
    int32_t at = ix->free_entry;
    if (at != NONE) {
        ix->free_entry = ix->entry[at].next;
    } else {
        if (ix->slots == ix->cap && !grow(ix)) return NO_MEMORY;
        at = (int32_t)ix->slots++;
    }
    struct entry *e = &ix->entry[at];
    *e = (struct entry){.hash = hash,
                        .parent = parent,
                        .last = now,
                        .born = ++ix->born,
                        .place = place,
                        .slot = slot};
    e->next = *bucket_of(ix, hash);
    *bucket_of(ix, hash) = at;
    int32_t before = disk_index_find(ix, parent);
    /* Pages are often written after the touch: they belong to the same prompt. */
    make_newest(ix, at, before != NONE ? ix->entry[before].class : 0);
    if (before != NONE) link_parent(ix, at, before);
    ix->count++;
    return at;
}

void disk_index_move(struct disk_index *ix, int32_t page, uint32_t place, uint32_t slot)
{
    ix->entry[page].place = place;
    ix->entry[page].slot = slot;
}

void disk_index_remove(struct disk_index *ix, int32_t page)
{
    struct entry *e = &ix->entry[page];
    int32_t *from = bucket_of(ix, e->hash);
    while (*from != page) from = &ix->entry[*from].next;
    *from = e->next;
    int32_t before = e->linked ? disk_index_find(ix, e->parent) : NONE;
    if (before != NONE && ix->entry[before].born == e->linked) ix->entry[before].n_children--;
    unlink_entry(ix, page);
    e->class = NONE;
    e->next = ix->free_entry;
    ix->free_entry = page;
    ix->count--;
}

/* ---- order ---------------------------------------------------------------------------------- */

double disk_index_age(const struct disk_index *ix, int32_t page, double now)
{
    const struct entry *e = &ix->entry[page];
    return (now - e->last) / patience[e->class];
}

int32_t disk_index_victim(const struct disk_index *ix, double now)
{
    int32_t best = NONE;
    double oldest = 0;
    for (int c = 0; c < CLASSES; c++) {
        int32_t at = ix->list[c].oldest;
        while (at != NONE && ix->entry[at].n_children > 0) at = ix->entry[at].newer;
        if (at == NONE) continue;
        double age = disk_index_age(ix, at, now);
        if (best != NONE && age <= oldest) continue;
        best = at;
        oldest = age;
    }
    return best;
}

uint32_t disk_index_replay(struct disk_index *ix, const struct hash128 *chain, uint32_t n,
                           uint32_t capacity, double now)
{
    static const struct hash128 root = {0, 0};
    uint32_t hits = disk_index_match(ix, chain, n);
    for (uint32_t i = hits; i < n; i++)
        disk_index_insert(ix, chain[i], i ? chain[i - 1] : root, 0, 0, now);
    disk_index_touch(ix, chain, hits, n, now);
    while (capacity && disk_index_count(ix) > capacity)
        disk_index_remove(ix, disk_index_victim(ix, now));
    return hits;
}

double disk_index_last(const struct disk_index *ix, int32_t page)
{
    return ix->entry[page].last;
}

uint32_t disk_index_place(const struct disk_index *ix, int32_t page)
{
    return ix->entry[page].place;
}

uint32_t disk_index_slot(const struct disk_index *ix, int32_t page)
{
    return ix->entry[page].slot;
}

struct hash128 disk_index_hash(const struct disk_index *ix, int32_t page)
{
    return ix->entry[page].hash;
}
