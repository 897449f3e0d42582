/* disk_pages.c - the thread that reads and writes pages: as many at once as there are buffers,
 * reads before writes.
 */
#include "core/log.h"
#include "kvcache/disk_state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { FILES_MAX = 128, WAIT_US = 500 };

/* A lease outlives the last read that asked for it by this share of lease_s. */
static double lease_hold(const struct disk_store *s)
{
    return 0.25 * s->c.lease_s;
}

static struct disk_job *take(struct disk_jobs *q)
{
    struct disk_job *j = q->head;
    q->head = j->next;
    if (!q->head) q->tail = &q->head;
    q->n--;
    return j;
}

static void put(struct disk_jobs *q, struct disk_job *j)
{
    j->next = NULL;
    *q->tail = j;
    q->tail = &j->next;
    q->n++;
}

static void take_out(struct disk_jobs *q, struct disk_job *j)
{
    for (struct disk_job **at = &q->head; *at; at = &(*at)->next) {
        if (*at != j) continue;
        *at = j->next;
        if (q->tail == &j->next) q->tail = at;
        q->n--;
        return;
    }
}

static void submit(struct disk_store *s, struct disk_job *j, int fd)
{
    j->io = (struct disk_io_request){.fd = fd,
                                     .write = j->write,
                                     .buffer = j->buffer,
                                     .bytes = s->stride,
                                     .offset = disk_record_at(&s->shape, j->slot)};
    put(&s->flying, j);
    s->backend->submit(s->io, &j->io);
}

/* ---- reads ---------------------------------------------------------------------------------- */

static void read_failed(struct disk_store *s, struct disk_job *j)
{
    s->stats.missed_pages++;
    disk_put_event(s, DISK_EVENT_MISS, j);
    free(j);
}

/* The oldest file that nobody reads makes room for another. */
static void limit_files(struct disk_store *s)
{
    uint32_t n = 0, oldest = 0;
    for (uint32_t i = 0; i < s->n_segments; i++) {
        const struct disk_segment *g = s->segment[i];
        if (!g || g->open || g->fd < 0) continue;
        n++;
        const struct disk_segment *o = s->segment[oldest];
        bool better = !o || o->open || o->fd < 0 || o->flying || g->used < o->used;
        if (g->flying == 0 && better) oldest = i;
    }
    struct disk_segment *g = n > FILES_MAX ? s->segment[oldest] : NULL;
    if (!g || g->open || g->fd < 0 || g->flying) return;
    close(g->fd);
    g->fd = -1;
}

/* A lease first, then the file: disk_store.h says why. The mutex is given up meanwhile; `flying`
 * keeps the segment. */
static bool ready_to_read(struct disk_store *s, struct disk_segment *g)
{
    double now = disk_now(s);
    bool lease = !g->open && g->leased_until < now + 0.1 * s->c.lease_s;
    g->used = now;
    if (lease) g->leased_until = now + lease_hold(s);
    if (!lease && g->fd >= 0) return true;
    int had = g->fd;
    char name[DISK_NAME_MAX];
    memcpy(name, g->name, sizeof name);
    pthread_mutex_unlock(&s->mutex);
    bool ok = !lease || disk_lease_now(s);
    int fd = -1;
    /* Opened again under the new lease: an old descriptor proves nothing about the folder. */
    if (ok) fd = disk_open_file(s, name, O_RDONLY);
    if (ok && fd >= 0 && lease) (void)utimensat(s->dir.fd, name, NULL, 0);
    pthread_mutex_lock(&s->mutex);
    if (fd < 0) return false;
    if (had >= 0 && g->flying == 1)
        close(had);
    else if (had >= 0) {
        close(fd); /* others still read through the old one */
        fd = had;
    }
    g->fd = fd;
    g->touched = disk_now(s);
    limit_files(s);
    return true;
}

/* Whether the next read has to wait: its segment is just being closed and renamed. */
static bool read_waits(const struct disk_store *s)
{
    if (s->reads.n == 0 || s->sealing < 0) return false;
    int32_t page = disk_index_find(s->index, s->reads.head->key.hash);
    return page >= 0 && disk_index_place(s->index, page) == (uint32_t)s->sealing;
}

static bool can_read(const struct disk_store *s)
{
    return s->reads.n > 0 && s->n_free > 0 && !read_waits(s);
}

static void start_read(struct disk_store *s)
{
    struct disk_job *j = take(&s->reads);
    int32_t page = disk_index_find(s->index, j->key.hash);
    if (page < 0) {
        read_failed(s, j);
        return;
    }
    j->segment = disk_index_place(s->index, page);
    j->slot = disk_index_slot(s->index, page);
    struct disk_segment *g = s->segment[j->segment];
    g->flying++;
    if (!ready_to_read(s, g)) {
        g->flying--;
        g->gone = true; /* the keeper forgets it */
        disk_segment_unindex(s, j->segment);
        read_failed(s, j);
        return;
    }
    j->buffer = s->free_buffer[--s->n_free];
    submit(s, j, g->fd);
}

/* The page to the caller, checked on the way. Called without the mutex. */
static bool deliver(const struct disk_store *s, const struct disk_job *j)
{
    struct disk_key key;
    const int32_t *tokens;
    uint64_t check;
    if (!disk_record_open(&s->shape, j->buffer, &key, &tokens, &check)) return false;
    bool asked_for = key.hash.lo == j->key.hash.lo && key.hash.hi == j->key.hash.hi &&
                     key.parent.lo == j->key.parent.lo && key.parent.hi == j->key.parent.hi &&
                     key.depth == j->key.depth &&
                     memcmp(tokens, j->tokens, s->shape.page_tokens * sizeof *tokens) == 0;
    const char *page = j->buffer + disk_page_at(&s->shape);
    for (size_t at = 0; asked_for && at < s->shape.page_bytes; at += DISK_PIECE) {
        size_t n = s->shape.page_bytes - at < DISK_PIECE ? s->shape.page_bytes - at : DISK_PIECE;
        check = disk_check_piece(check, page + at, n);
        s->c.scatter(s->c.arg, j->page, at, n, page + at);
    }
    return asked_for && disk_record_right(check, j->buffer);
}

/* The page into the job's buffer as a record. Called without the mutex. */
static void collect(const struct disk_store *s, const struct disk_job *j)
{
    uint64_t check = disk_record_begin(&s->shape, &j->key, j->tokens, j->buffer);
    char *page = j->buffer + disk_page_at(&s->shape);
    for (size_t at = 0; at < s->shape.page_bytes; at += DISK_PIECE) {
        size_t n = s->shape.page_bytes - at < DISK_PIECE ? s->shape.page_bytes - at : DISK_PIECE;
        s->c.gather(s->c.arg, j->page, at, n, page + at);
        check = disk_check_piece(check, page + at, n);
    }
    disk_record_end(check, j->buffer);
}

static void forget_page(struct disk_store *s, const struct disk_job *j)
{
    int32_t page = disk_index_find(s->index, j->key.hash);
    if (page < 0 || disk_index_place(s->index, page) != j->segment) return;
    disk_index_remove(s->index, page);
    s->segment[j->segment]->live--;
}

static void finish_read(struct disk_store *s, struct disk_job *j)
{
    bool read = j->io.result == 0, right = false;
    pthread_mutex_unlock(&s->mutex);
    if (read) right = deliver(s, j);
    pthread_mutex_lock(&s->mutex);
    s->segment[j->segment]->flying--;
    if (right) {
        s->stats.read_pages++;
        s->stats.read_bytes += s->stride;
        disk_put_event(s, DISK_EVENT_READ, j);
    } else {
        if (read) s->stats.bad_pages++;
        s->stats.missed_pages++;
        forget_page(s, j);
        disk_put_event(s, DISK_EVENT_MISS, j);
    }
}

/* ---- writes --------------------------------------------------------------------------------- */

static void stop_writing(struct disk_store *s, const char *what, int error)
{
    if (!s->broken)
        log_warn("disk cache: %s in %s: %s; no more pages are written", what, s->c.dir,
                 strerror(error));
    s->broken = true;
}

/* A new open segment with its header; the mutex is given up meanwhile. */
static bool open_segment(struct disk_store *s)
{
    char name[DISK_NAME_MAX];
    uint32_t number = 0;
    disk_name_make(&s->dir, s->shape.fingerprint.lo, s->next_number++, name);
    char *block = s->free_buffer[s->n_free - 1]; /* there is one, and nobody else takes it */
    pthread_mutex_unlock(&s->mutex);
    int fd = disk_open_file(s, name, O_RDWR | O_CREAT | O_EXCL), error = errno;
    disk_header_put(&s->shape, block);
    if (fd >= 0 && pwrite(fd, block, DISK_BLOCK, 0) != DISK_BLOCK) {
        error = errno ? errno : EIO;
        close(fd);
        unlinkat(s->dir.fd, name, 0);
        fd = -1;
    }
    pthread_mutex_lock(&s->mutex);
    struct disk_row *rows = calloc(s->segment_slots, sizeof *rows);
    struct disk_segment *g = fd >= 0 && rows ? disk_segment_new(s, name, &number) : NULL;
    if (!g) {
        free(rows);
        if (fd >= 0) close(fd);
        if (fd >= 0) unlinkat(s->dir.fd, name, 0);
        stop_writing(s, "cannot make a segment", fd >= 0 ? ENOMEM : error);
        return false;
    }
    g->open = true;
    g->fd = fd;
    g->rows = rows;
    s->open_segment = (int32_t)number;
    s->open_since = disk_now(s);
    return true;
}

static void start_write(struct disk_store *s)
{
    if (s->open_segment < 0 && !open_segment(s)) return;
    struct disk_job *j = take(&s->writes);
    struct disk_segment *g = s->segment[s->open_segment];
    j->segment = (uint32_t)s->open_segment;
    j->slot = g->slots++;
    j->buffer = s->free_buffer[--s->n_free];
    s->write_buffers++;
    g->flying++;
    put(&s->flying, j); /* so that nobody queues it again */
    pthread_mutex_unlock(&s->mutex);
    if (j->record)
        memcpy(j->buffer, j->record, s->stride);
    else
        collect(s, j);
    pthread_mutex_lock(&s->mutex);
    if (!j->record) disk_put_event(s, DISK_EVENT_TAKEN, j);
    take_out(&s->flying, j);
    submit(s, j, g->fd);
}

static void finish_write(struct disk_store *s, struct disk_job *j)
{
    struct disk_segment *g = s->segment[j->segment];
    g->flying--;
    s->write_buffers--;
    if (j->io.result != 0) {
        stop_writing(s, "cannot write", -j->io.result);
        s->stats.dropped_pages++;
        return;
    }
    *(j->record ? &s->stats.moved_pages : &s->stats.written_pages) += 1;
    s->stats.written_bytes += s->stride;
    g->rows[g->n_rows++] = (struct disk_row){j->key, j->slot, 1};
    if (disk_index_insert(s->index, j->key.hash, j->key.parent, j->segment, j->slot,
                          j->record ? j->last : disk_now(s)) >= 0)
        g->live++;
}

/* A full segment, or one that has waited long enough for more, goes to the keeper. */
static void hand_over(struct disk_store *s)
{
    if (s->open_segment < 0 || s->sealing >= 0) {
        if (s->open_segment < 0 && s->sealing < 0 && s->seal_wanted && s->writes.n == 0) {
            s->seal_wanted = false;
            pthread_cond_broadcast(&s->done_cond);
        }
        return;
    }
    struct disk_segment *g = s->segment[s->open_segment];
    bool full = g->slots == s->segment_slots;
    bool idle = s->writes.n == 0 && g->flying == 0;
    bool old = disk_now(s) - s->open_since > s->c.lease_s;
    if (g->flying > 0 && (full || s->broken)) return;
    if (!full && !s->broken && !(idle && (s->closing || s->seal_wanted || old))) return;
    s->sealing = s->open_segment;
    s->open_segment = -1;
    pthread_cond_signal(&s->keeper_cond);
}

static bool can_write(const struct disk_store *s)
{
    if (s->writes.n == 0 || s->broken || s->n_free == 0) return false;
    if (s->reads.n > 0 && s->write_buffers >= s->n_buffers / 2) return false;
    if (s->open_segment < 0) return s->sealing < 0; /* one open segment a rank, no more */
    return s->segment[s->open_segment]->slots < s->segment_slots;
}

/* ---- the thread ----------------------------------------------------------------------------- */

static void finish(struct disk_store *s, struct disk_job *j)
{
    take_out(&s->flying, j);
    if (j->write)
        finish_write(s, j);
    else
        finish_read(s, j);
    s->free_buffer[s->n_free++] = j->buffer;
    free(j->record);
    free(j);
}

static void drop_writes(struct disk_store *s)
{
    while (s->writes.n > 0) {
        struct disk_job *j = take(&s->writes);
        s->stats.dropped_pages++;
        if (!j->record) disk_put_event(s, DISK_EVENT_TAKEN, j);
        free(j->record);
        free(j);
    }
}

static void sleep_ms(pthread_cond_t *cond, pthread_mutex_t *mutex, long ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += ms * 1000000;
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    pthread_cond_timedwait(cond, mutex, &t);
}

void *disk_pages_thread(void *store)
{
    struct disk_store *s = store;
    pthread_mutex_lock(&s->mutex);
    for (;;) {
        while (can_read(s)) start_read(s);
        if (s->broken) drop_writes(s);
        if (can_write(s)) start_write(s);
        hand_over(s);
        bool more = can_read(s) || can_write(s);
        if (s->flying.n > 0) {
            long wait_us = more ? 0 : WAIT_US;
            pthread_mutex_unlock(&s->mutex);
            struct disk_io_request *r = s->backend->wait(s->io, wait_us);
            pthread_mutex_lock(&s->mutex);
            if (r) finish(s, (struct disk_job *)(void *)r);
        } else if (s->closing && s->reads.n == 0 && s->writes.n == 0 && s->open_segment < 0) {
            break;
        } else if (!more) {
            sleep_ms(&s->page_cond, &s->mutex, 1000);
        }
    }
    s->pages_done = true;
    pthread_cond_signal(&s->keeper_cond);
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}
