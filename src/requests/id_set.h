/* id_set.h - finds names that were seen before, in about 13 bytes a name while it works.
 *
 * It keeps 4 bytes of hash a name and an open table of indices; when two hashes agree it asks the
 * caller whether the names do, so that the answer is exact. Private to requests/.
 */
#ifndef REQUESTS_ID_SET_H
#define REQUESTS_ID_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct id_set {
    uint32_t *hash;    /* [index], 0 for indices without a name */
    uint32_t *table;   /* [mask + 1], index + 1, 0: free */
    size_t cap;        /* of hash */
    size_t mask, used; /* of table */
    size_t peak_bytes;
};

/* Whether the names of two earlier indices are equal; `now` is the index being added. */
typedef bool (*id_equal_fn)(void *arg, uint32_t earlier, uint32_t now);

/* Adds name[0..n) as that of `index` (ascending from 0, holes allowed). *seen: it was there. False
 * when memory is short. */
bool id_set_add(struct id_set *s, uint32_t index, const char *name, size_t n, id_equal_fn equal,
                void *arg, bool *seen);

void id_set_free(struct id_set *s);

#endif
