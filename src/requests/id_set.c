/* id_set.c - open addressing with linear probing, at most 7/8 full. */
#include "requests/id_set.h"

#include "core/hash.h"

#include <stdlib.h>
#include <string.h>

static void note_bytes(struct id_set *s)
{
    size_t bytes = (s->cap + (s->table ? s->mask + 1 : 0)) * 4;
    if (bytes > s->peak_bytes) s->peak_bytes = bytes;
}

static bool grow_hashes(struct id_set *s, size_t need)
{
    if (need <= s->cap) return true;
    size_t cap = s->cap + s->cap / 4 + 1024;
    if (cap < need) cap = need;
    uint32_t *p = realloc(s->hash, cap * sizeof *p);
    if (!p) return false;
    memset(p + s->cap, 0, (cap - s->cap) * sizeof *p);
    s->hash = p;
    s->cap = cap;
    note_bytes(s);
    return true;
}

/* The table is rebuilt from the hashes, so that no two tables live at once. */
static bool grow_table(struct id_set *s, uint32_t below)
{
    if (s->table && (s->used + 1) * 8 <= (s->mask + 1) * 7) return true;
    size_t size = s->table ? 2 * (s->mask + 1) : 1024;
    uint32_t *bigger = realloc(s->table, size * sizeof *bigger);
    if (!bigger) return false;
    memset(bigger, 0, size * sizeof *bigger);
    s->table = bigger;
    s->mask = size - 1;
    for (uint32_t i = 0; i < below; i++) {
        if (!s->hash[i]) continue;
        size_t at = s->hash[i] & s->mask;
        while (s->table[at]) at = (at + 1) & s->mask;
        s->table[at] = i + 1;
    }
    note_bytes(s);
    return true;
}

bool id_set_add(struct id_set *s, uint32_t index, const char *name, size_t n, id_equal_fn equal,
                void *arg, bool *seen)
{
    if (!grow_hashes(s, (size_t)index + 1) || !grow_table(s, index)) return false;
    uint64_t h64 = hash64(name, n, 0);
    uint32_t h = (uint32_t)(h64 ^ h64 >> 32);
    if (!h) h = 1;
    *seen = false;
    size_t at = h & s->mask;
    for (; s->table[at]; at = (at + 1) & s->mask) {
        uint32_t earlier = s->table[at] - 1;
        if (s->hash[earlier] == h && equal(arg, earlier, index)) {
            *seen = true;
            return true; /* the first one stays the one in the table */
        }
    }
    s->hash[index] = h;
    s->table[at] = index + 1;
    s->used++;
    return true;
}

void id_set_free(struct id_set *s)
{
    free(s->hash);
    free(s->table);
    memset(s, 0, sizeof *s);
}
