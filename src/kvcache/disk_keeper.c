/* disk_keeper.c - the thread that looks after the folder: finds the segments of others, takes over
 * those of the dead, and seals its own. Making room for them is in disk_evict.c.
 */
#include "core/log.h"
#include "kvcache/disk_state.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static double seconds(const struct timespec *t)
{
    return (double)t->tv_sec + 1e-9 * (double)t->tv_nsec;
}

void *disk_blocks(size_t bytes)
{
    void *p = NULL;
    return posix_memalign(&p, DISK_BLOCK, bytes) == 0 ? p : NULL;
}

bool disk_read_all(int fd, void *out, size_t bytes, uint64_t at)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(fd, (char *)out + done, bytes - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += (size_t)n;
    }
    return true;
}

static bool write_all(int fd, const void *from, size_t bytes, uint64_t at)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pwrite(fd, (const char *)from + done, bytes - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += (size_t)n;
    }
    return true;
}

/* ---- reading a segment's rows --------------------------------------------------------------- */

/* Rows of a sealed segment from its table; NULL when it has none that can be trusted. */
static struct disk_row *rows_of_table(int fd, uint64_t bytes, uint32_t *n)
{
    uint64_t at = 0;
    struct disk_row *rows = NULL;
    char *last = disk_blocks(DISK_BLOCK), *table = NULL;
    if (last && bytes >= 2 * DISK_BLOCK && bytes % DISK_BLOCK == 0 &&
        disk_read_all(fd, last, DISK_BLOCK, bytes - DISK_BLOCK) &&
        disk_tail_get(last, bytes, &at, n)) {
        size_t size = disk_table_bytes(*n);
        table = disk_blocks(size);
        const struct disk_row *found =
            table && disk_read_all(fd, table, size, at) ? disk_table_get(table, *n) : NULL;
        if (found) rows = malloc((*n + 1) * sizeof *rows);
        if (rows) memcpy(rows, found, *n * sizeof *rows);
    }
    free(last);
    free(table);
    return rows;
}

/* Rows of a segment without a table, record by record; *slots: records there is room for before
 * the end of the file. */
static struct disk_row *rows_of_records(const struct disk_shape *shape, int fd, uint64_t bytes,
                                        uint32_t *n, uint32_t *slots)
{
    size_t stride = disk_stride(shape);
    *n = 0;
    *slots = bytes > DISK_BLOCK ? (uint32_t)((bytes - DISK_BLOCK) / stride) : 0;
    struct disk_row *rows = malloc((*slots + 1) * sizeof *rows);
    char *record = disk_blocks(stride);
    for (uint32_t i = 0; rows && record && i < *slots; i++) {
        const int32_t *tokens;
        struct disk_row row = {.slot = i, .uses = 1};
        if (disk_read_all(fd, record, stride, disk_record_at(shape, i)) &&
            disk_record_get(shape, record, &row.key, &tokens))
            rows[(*n)++] = row;
    }
    free(record);
    return rows;
}

/* ---- sealing -------------------------------------------------------------------------------- */

/* Bytes of a sealed segment with `slots` records of which n are listed. */
static uint64_t sealed_bytes(const struct disk_shape *shape, uint32_t slots, uint32_t n)
{
    return disk_record_at(shape, slots) + disk_table_bytes(n);
}

/* Table and tail behind the records, everything on disk, the file closed. */
static bool complete(const struct disk_shape *shape, int fd, const struct disk_row *rows,
                     uint32_t n, uint32_t slots)
{
    uint64_t at = disk_record_at(shape, slots);
    size_t bytes = disk_table_bytes(n);
    char *table = disk_blocks(bytes);
    bool ok = table != NULL;
    if (ok) {
        disk_table_put(rows, n, at, table);
        ok = write_all(fd, table, bytes, at) && ftruncate(fd, (off_t)(at + bytes)) == 0 &&
             fsync(fd) == 0;
    }
    free(table);
    return close(fd) == 0 && ok;
}

/* ---- a look at the folder ------------------------------------------------------------------- */

struct found {
    char name[DISK_NAME_MAX];
    double modified;
    uint64_t bytes;
};

struct look {
    struct found *sealed; /* not known yet */
    size_t n, cap;
    uint64_t dying_bytes;
};

static int32_t known(const struct disk_store *s, uint64_t id)
{
    for (uint32_t i = 0; i < s->n_segments; i++)
        if (s->segment[i] && s->segment[i]->id == id) return (int32_t)i;
    return -1;
}

static void note_sealed(struct disk_store *s, struct look *l, const char *name)
{
    struct stat st;
    pthread_mutex_lock(&s->mutex);
    int32_t at = known(s, disk_segment_id(name));
    if (at >= 0) s->segment[at]->seen = s->looks + 1;
    pthread_mutex_unlock(&s->mutex);
    if (at >= 0) return;
    if (fstatat(s->dir.fd, name, &st, 0) != 0) return;
    if (l->n == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 64;
        struct found *all = realloc(l->sealed, cap * sizeof *all);
        if (!all) return;
        l->sealed = all;
        l->cap = cap;
    }
    struct found *f = &l->sealed[l->n++];
    strncpy(f->name, name, sizeof f->name - 1);
    f->name[sizeof f->name - 1] = '\0';
    f->modified = seconds(&st.st_mtim);
    f->bytes = (uint64_t)st.st_size;
}

static int by_time(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    return (x->modified > y->modified) - (x->modified < y->modified);
}

/* Reads the segment's table and enters its pages. What is not readable, or another model's, counts
 * its bytes alone. */
static void add_segment(struct disk_store *s, const struct found *f)
{
    uint64_t model = 0;
    uint32_t n = 0, slots = 0, number = 0;
    struct disk_row *rows = NULL;
    disk_name_parse(f->name, &model, NULL);
    bool ours = model == s->shape.fingerprint.lo;
    if (ours) {
        int fd = disk_open_file(s, f->name, O_RDONLY);
        char *block = disk_blocks(DISK_BLOCK);
        ours = fd >= 0 && block && disk_read_all(fd, block, DISK_BLOCK, 0) &&
               disk_header_check(&s->shape, block);
        if (ours) rows = rows_of_table(fd, f->bytes, &n);
        if (ours && !rows) rows = rows_of_records(&s->shape, fd, f->bytes, &n, &slots);
        free(block);
        if (fd >= 0) close(fd);
    }
    pthread_mutex_lock(&s->mutex);
    struct disk_segment *g = disk_segment_new(s, f->name, &number);
    if (g) {
        g->foreign = !rows;
        g->bytes = f->bytes;
        g->modified = g->touched = f->modified;
        g->seen = s->looks + 1;
        g->rows = rows;
        g->n_rows = rows ? n : 0;
        if (rows) disk_index_rows(s, number, f->modified);
    } else {
        free(rows);
    }
    pthread_mutex_unlock(&s->mutex);
}

/* A segment that its writer will never finish: the first to rename it reads it and seals it. */
static void adopt(struct disk_store *s, const char *name)
{
    char mine[DISK_NAME_MAX], sealed[DISK_NAME_MAX];
    uint64_t model = 0;
    struct stat st;
    struct disk_shape shape;
    disk_name_parse(name, &model, NULL);
    pthread_mutex_lock(&s->mutex);
    disk_name_make(&s->dir, model, s->next_number++, mine);
    pthread_mutex_unlock(&s->mutex);
    if (renameat(s->dir.fd, name, s->dir.fd, mine) != 0) return;
    int fd = disk_open_file(s, mine, O_RDWR);
    char *block = disk_blocks(DISK_BLOCK);
    uint32_t n = 0, slots = 0;
    struct disk_row *rows = NULL;
    if (fd >= 0 && block && fstat(fd, &st) == 0 && disk_read_all(fd, block, DISK_BLOCK, 0) &&
        disk_header_get(block, &shape))
        rows = rows_of_records(&shape, fd, (uint64_t)st.st_size, &n, &slots);
    free(block);
    bool any = rows && n > 0, ok = any && complete(&shape, fd, rows, n, rows[n - 1].slot + 1);
    if (fd >= 0 && !any) close(fd);
    free(rows);
    disk_name_suffix(mine, ".seg", sealed);
    if (ok && renameat(s->dir.fd, mine, s->dir.fd, sealed) == 0) {
        pthread_mutex_lock(&s->mutex);
        s->stats.adopted_segments++;
        pthread_mutex_unlock(&s->mutex);
    } else {
        unlinkat(s->dir.fd, mine, 0);
    }
}

/* Leases of the dead, with what else they may have left. */
static void clear_lease(struct disk_store *s, const char *name, const char *writer)
{
    static const char *const rest[] = {".lease.new", ".probe", ".stale"};
    struct stat st;
    char other[DISK_NAME_MAX];
    if (disk_writer_alive(&s->dir, writer) || fstatat(s->dir.fd, name, &st, 0) != 0 ||
        disk_now(s) - seconds(&st.st_mtim) < 2 * s->c.lease_s)
        return;
    unlinkat(s->dir.fd, name, 0);
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++) {
        disk_name_suffix(name, rest[i], other);
        unlinkat(s->dir.fd, other, 0);
    }
}

static void note_dying(struct disk_store *s, struct look *l, const char *name)
{
    struct stat st;
    if (fstatat(s->dir.fd, name, &st, 0) != 0) return;
    if (disk_now(s) - seconds(&st.st_ctim) > s->c.lease_s)
        unlinkat(s->dir.fd, name, 0); /* whoever evicted it is gone */
    else
        l->dying_bytes += (uint64_t)st.st_size;
}

/* Segments that the folder no longer has; those being read wait for another look. */
static void forget_gone(struct disk_store *s)
{
    pthread_mutex_lock(&s->mutex);
    for (uint32_t i = 0; i < s->n_segments; i++) {
        struct disk_segment *g = s->segment[i];
        if (!g || g->open || g->flying) continue;
        if (g->gone || g->seen != s->looks + 1) disk_segment_forget(s, i);
    }
    pthread_mutex_unlock(&s->mutex);
}

/* Bytes of segments that are being evicted just now. */
static uint64_t look_at_folder(struct disk_store *s)
{
    struct look l = {0};
    char writer[DISK_WRITER_MAX];
    int fd = openat(s->dir.fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d) {
        if (fd >= 0) close(fd);
        return 0;
    }
    for (struct dirent *e = readdir(d); e; e = readdir(d)) {
        switch (disk_name_parse(e->d_name, NULL, writer)) {
        case DISK_FILE_SEALED: note_sealed(s, &l, e->d_name); break;
        case DISK_FILE_DYING: note_dying(s, &l, e->d_name); break;
        case DISK_FILE_LEASE: clear_lease(s, e->d_name, writer); break;
        case DISK_FILE_OPEN:
            if (!disk_writer_alive(&s->dir, writer)) adopt(s, e->d_name);
            break;
        case DISK_FILE_OTHER: break;
        }
    }
    closedir(d);
    if (l.n) qsort(l.sealed, l.n, sizeof *l.sealed, by_time);
    for (size_t i = 0; i < l.n; i++) add_segment(s, &l.sealed[i]);
    free(l.sealed);
    forget_gone(s);
    pthread_mutex_lock(&s->mutex);
    s->looks++;
    s->stats.folder_bytes = disk_total_bytes(s);
    pthread_cond_broadcast(&s->done_cond);
    pthread_mutex_unlock(&s->mutex);
    return l.dying_bytes;
}

/* ---- sealing this store's own segment ------------------------------------------------------- */

static bool take_lock(struct disk_store *s)
{
    enum { TRY_MS = 5 };
    double give_up = disk_now(s) + s->c.lease_s + 5;
    while (!disk_lock_take(&s->dir)) {
        struct timespec t = {0, TRY_MS * 1000000L};
        if (disk_now(s) > give_up) return false;
        nanosleep(&t, NULL);
    }
    return true;
}

/* Into the folder under the bound, or not at all. */
static bool publish(struct disk_store *s, struct disk_segment *g)
{
    char sealed[DISK_NAME_MAX];
    disk_name_suffix(g->name, ".seg", sealed);
    if (!take_lock(s)) return false;
    uint64_t dying = look_at_folder(s);
    bool ok =
        disk_make_room(s, g->bytes, dying) && renameat(s->dir.fd, g->name, s->dir.fd, sealed) == 0;
    disk_lock_drop(&s->dir);
    pthread_mutex_lock(&s->mutex);
    if (ok) memcpy(g->name, sealed, sizeof sealed);
    pthread_mutex_unlock(&s->mutex);
    return ok;
}

static void seal(struct disk_store *s)
{
    pthread_mutex_lock(&s->mutex);
    uint32_t number = (uint32_t)s->sealing;
    struct disk_segment *g = s->segment[number];
    int fd = g->fd;
    g->fd = -1;
    pthread_mutex_unlock(&s->mutex);
    bool ok = g->n_rows > 0 && complete(&s->shape, fd, g->rows, g->n_rows, g->slots);
    if (g->n_rows == 0) close(fd);
    g->bytes = sealed_bytes(&s->shape, g->slots, g->n_rows);
    ok = ok && publish(s, g);
    if (!ok) unlinkat(s->dir.fd, g->name, 0);
    pthread_mutex_lock(&s->mutex);
    g->open = false;
    g->modified = g->touched = disk_now(s);
    g->seen = s->looks;
    if (!ok) {
        uint64_t lost = g->n_rows;
        s->stats.dropped_pages += lost;
        s->stats.written_pages -= lost < s->stats.written_pages ? lost : s->stats.written_pages;
        disk_segment_forget(s, number);
    }
    s->sealing = -1;
    s->stats.folder_bytes = disk_total_bytes(s);
    pthread_cond_broadcast(&s->page_cond);
    pthread_cond_broadcast(&s->done_cond);
    pthread_mutex_unlock(&s->mutex);
}

/* ---- the thread ----------------------------------------------------------------------------- */

void disk_keeper_start(struct disk_store *s)
{
    look_at_folder(s);
    if (s->stats.adopted_segments) look_at_folder(s);
    s->stats.found_at_start = disk_index_count(s->index);
    s->next_scan = disk_now(s) + s->c.scan_s;
    s->next_renew = disk_now(s) + 0.25 * s->c.lease_s;
}

static void wait_until_due(struct disk_store *s)
{
    double next = s->next_scan < s->next_renew ? s->next_scan : s->next_renew;
    double wait = next - disk_now(s);
    if (wait < 0) return;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += (time_t)wait;
    t.tv_nsec += (long)(1e9 * (wait - (double)(time_t)wait));
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&s->keeper_cond, &s->mutex, &t);
}

void *disk_keeper_thread(void *store)
{
    struct disk_store *s = store;
    pthread_mutex_lock(&s->mutex);
    while (s->sealing >= 0 || !s->pages_done) {
        if (s->sealing < 0 && s->looks >= s->looks_wanted) wait_until_due(s);
        bool to_seal = s->sealing >= 0;
        double now = disk_now(s);
        bool renew = now >= s->next_renew;
        bool scan = !s->closing && (now >= s->next_scan || s->looks < s->looks_wanted);
        pthread_mutex_unlock(&s->mutex);
        if (renew && !disk_lease_renew(&s->dir)) (void)disk_lease_now(s);
        if (to_seal) seal(s);
        if (scan) look_at_folder(s);
        pthread_mutex_lock(&s->mutex);
        if (renew) s->next_renew = disk_now(s) + 0.25 * s->c.lease_s;
        if (scan) s->next_scan = disk_now(s) + s->c.scan_s;
    }
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}
