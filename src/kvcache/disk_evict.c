/* disk_evict.c - room in the folder: which segment is worth least, which of its pages are too young
 * to go, and its removal past the leases of others. Runs in the keeper's thread.
 */
#include "kvcache/disk_state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const double LEAST_AGE = 1e-3; /* s */
#define MOVE_BYTES ((size_t)64 << 20)

/* What a byte of the segment is worth: the sum of 1 / age over its pages, by the policy's view of
 * their age; pages that are dead or unreachable count nothing. Others' use shows in the file's
 * time. */
static double segment_worth(const struct disk_store *s, uint32_t number, double now)
{
    const struct disk_segment *g = s->segment[number];
    double idle = now - g->modified;
    if (idle < LEAST_AGE) idle = LEAST_AGE;
    if (g->foreign) return 1 / idle;
    double sum = 0;
    bool others = g->modified > g->touched + 1; /* somebody else has used it since */
    for (uint32_t i = 0; i < g->n_rows; i++) {
        int32_t page = disk_index_find(s->index, g->rows[i].key.hash);
        if (page < 0 || disk_index_place(s->index, page) != number) continue;
        double age = disk_index_age(s->index, page, now);
        if (others && age > idle) age = 0.5 * (age + idle);
        sum += 1 / (age < LEAST_AGE ? LEAST_AGE : age);
    }
    return sum * (double)s->stride / (double)(g->bytes ? g->bytes : 1);
}

/* Under the mutex; -1: nothing may go. */
static int32_t choose_segment(const struct disk_store *s, const bool *kept)
{
    double least = 0, now = disk_now(s);
    int32_t best = -1;
    for (uint32_t i = 0; i < s->n_segments; i++) {
        const struct disk_segment *g = s->segment[i];
        if (!g || g->open || g->gone || g->flying || kept[i]) continue;
        double worth = segment_worth(s, i, now);
        if (best >= 0 && worth >= least) continue;
        best = (int32_t)i;
        least = worth;
    }
    return best;
}

/* Under the mutex: the rows enter the index. A page that is there already was written again because
 * somebody could not read it: the newer copy counts. */
void disk_index_rows(struct disk_store *s, uint32_t number, double when)
{
    struct disk_segment *g = s->segment[number];
    for (uint32_t i = 0; i < g->n_rows; i++) {
        const struct disk_row *r = &g->rows[i];
        if (disk_record_at(&s->shape, r->slot + 1) > g->bytes) continue;
        int32_t page =
            disk_index_insert(s->index, r->key.hash, r->key.parent, number, r->slot, when);
        int32_t old = page == -1 ? disk_index_find(s->index, r->key.hash) : -1;
        if (old >= 0) {
            s->segment[disk_index_place(s->index, old)]->live--;
            disk_index_move(s->index, old, number, r->slot);
        }
        if (page >= 0 || old >= 0) g->live++;
    }
}

/* A page that is too young to go with its segment. */
struct young {
    struct disk_row row;
    double last;
};

/* Those of the segment's pages that are younger, by the policy's view, than half of its oldest one:
 * at most half of them, and MOVE_BYTES. Replaying the Mooncake trace with 64 segments, this keeps
 * 1.8 of the 2.9 points of hit ratio that evicting whole segments costs, for 1.16 times the
 * writes. Under the mutex. */
static uint32_t find_young(const struct disk_store *s, uint32_t number, struct young **out)
{
    const struct disk_segment *g = s->segment[number];
    double now = disk_now(s), oldest = 0;
    uint32_t n = 0, most = g->n_rows / 2;
    *out = NULL;
    if (g->foreign || s->broken || (s->closing && s->moved_last)) return 0;
    if (most > MOVE_BYTES / s->stride) most = (uint32_t)(MOVE_BYTES / s->stride);
    *out = malloc((most + 1) * sizeof **out);
    for (int pass = 0; *out && pass < 2; pass++)
        for (uint32_t i = 0; i < g->n_rows && n < most; i++) {
            int32_t page = disk_index_find(s->index, g->rows[i].key.hash);
            if (page < 0 || disk_index_place(s->index, page) != number) continue;
            double age = disk_index_age(s->index, page, now);
            if (pass == 0 && age > oldest) oldest = age;
            if (pass == 1 && age < 0.5 * oldest)
                (*out)[n++] = (struct young){g->rows[i], disk_index_last(s->index, page)};
        }
    return n;
}

/* Reads them out of the segment, which nobody else finds any more, and queues them to be written.
 * Without the mutex. */
static void move_young(struct disk_store *s, const char *name, const struct young *young,
                       uint32_t n)
{
    int fd = n ? disk_open_file(s, name, O_RDONLY) : -1;
    for (uint32_t i = 0; fd >= 0 && i < n; i++) {
        struct disk_key key;
        const int32_t *tokens;
        char *record = disk_blocks(s->stride);
        uint64_t at = disk_record_at(&s->shape, young[i].row.slot);
        if (record && disk_read_all(fd, record, s->stride, at) &&
            disk_record_get(&s->shape, record, &key, &tokens)) {
            pthread_mutex_lock(&s->mutex);
            disk_queue_moved(s, &key, record, young[i].last);
            s->moved_last = s->closing;
            pthread_mutex_unlock(&s->mutex);
        } else {
            free(record);
        }
    }
    if (fd >= 0) close(fd);
}

/* Renames it first and looks at the leases then (disk_store.h). Under the mutex, which it gives up
 * meanwhile. True when the bytes are free. */
static bool evict(struct disk_store *s, uint32_t number)
{
    struct disk_segment *g = s->segment[number];
    struct young *young;
    uint32_t n_young = find_young(s, number, &young);
    char name[DISK_NAME_MAX], dying[DISK_NAME_MAX];
    uint32_t pages = g->live;
    memcpy(name, g->name, sizeof name);
    disk_name_suffix(name, ".dying", dying);
    disk_segment_unindex(s, number);
    pthread_mutex_unlock(&s->mutex);
    bool leased = disk_segment_leased(&s->dir, name);
    bool away = !leased && renameat(s->dir.fd, name, s->dir.fd, dying) == 0;
    bool lost = !leased && !away && errno == ENOENT;
    if (away && disk_segment_leased(&s->dir, name)) {
        leased = true;
        lost = renameat(s->dir.fd, dying, s->dir.fd, name) != 0;
    } else if (away) {
        move_young(s, dying, young, n_young);
        unlinkat(s->dir.fd, dying, 0);
    }
    free(young);
    pthread_mutex_lock(&s->mutex);
    if (leased && !lost) {
        if (!g->foreign) disk_index_rows(s, number, g->modified);
        return false;
    }
    if (!away && !lost) return false;
    g->gone = true;
    if (away) {
        s->stats.evicted_segments++;
        s->stats.evicted_pages += pages;
    }
    return true;
}

/* Times and presence of all segments, as the folder has them now. Nobody but the keeper removes a
 * segment, so that the mutex need not be held meanwhile. */
static void refresh(struct disk_store *s)
{
    pthread_mutex_lock(&s->mutex);
    for (uint32_t i = 0; i < s->n_segments; i++) {
        struct stat st;
        struct disk_segment *g = s->segment[i];
        if (!g || g->open || g->gone) continue;
        pthread_mutex_unlock(&s->mutex);
        bool there = fstatat(s->dir.fd, g->name, &st, 0) == 0, lost = !there && errno == ENOENT;
        pthread_mutex_lock(&s->mutex);
        if (there) g->modified = (double)st.st_mtim.tv_sec + 1e-9 * (double)st.st_mtim.tv_nsec;
        if (lost) g->gone = true;
    }
    pthread_mutex_unlock(&s->mutex);
}

/* Under the mutex. */

uint64_t disk_total_bytes(const struct disk_store *s)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < s->n_segments; i++)
        if (s->segment[i] && !s->segment[i]->open && !s->segment[i]->gone)
            sum += s->segment[i]->bytes;
    return sum;
}

/* Holding the folder's lock, after a look at it: room for `need` more bytes. */
bool disk_make_room(struct disk_store *s, uint64_t need, uint64_t dying)
{
    pthread_mutex_lock(&s->mutex);
    bool fits = disk_total_bytes(s) + dying + need <= s->c.bytes;
    pthread_mutex_unlock(&s->mutex);
    if (fits) return true;
    refresh(s);
    pthread_mutex_lock(&s->mutex);
    bool *kept = calloc(s->n_segments + 1, sizeof *kept), ok = kept != NULL;
    while (ok && disk_total_bytes(s) + dying + need > s->c.bytes) {
        int32_t victim = choose_segment(s, kept);
        ok = victim >= 0;
        if (ok && !evict(s, (uint32_t)victim)) kept[victim] = true;
    }
    free(kept);
    pthread_mutex_unlock(&s->mutex);
    return ok;
}
