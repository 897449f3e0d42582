/* disk_store.c - the caller's side: open, close, look-ups, queues, events; and what both threads
 * use. */
#include "kvcache/disk_state.h"

#include "core/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { WRITE_QUEUE = 256, BUFFERS_MIN = 4, BUFFERS_MAX = 32 };
#define BUFFER_BYTES ((size_t)64 << 20)
#define SEGMENT_BYTES_MAX ((uint64_t)512 << 20)

double disk_now(const struct disk_store *s)
{
    return disk_dir_now(&s->dir);
}

uint64_t disk_segment_id(const char *name)
{
    const char *dot = strrchr(name, '.');
    return hash64(name, dot ? (size_t)(dot - name) : strlen(name), 1);
}

/* ---- segments ------------------------------------------------------------------------------- */

struct disk_segment *disk_segment_new(struct disk_store *s, const char *name, uint32_t *number)
{
    uint32_t at = 0;
    while (at < s->n_segments && s->segment[at]) at++;
    if (at == s->cap_segments) {
        uint32_t cap = at ? 2 * at : 64;
        struct disk_segment **all = realloc(s->segment, cap * sizeof(struct disk_segment *));
        if (!all) return NULL;
        s->segment = all;
        s->cap_segments = cap;
    }
    struct disk_segment *g = calloc(1, sizeof *g);
    if (!g) return NULL;
    strncpy(g->name, name, sizeof g->name - 1);
    g->id = disk_segment_id(name);
    g->fd = -1;
    s->segment[at] = g;
    if (at == s->n_segments) s->n_segments++;
    *number = at;
    return g;
}

void disk_segment_unindex(struct disk_store *s, uint32_t number)
{
    struct disk_segment *g = s->segment[number];
    for (uint32_t i = 0; i < g->n_rows && g->live > 0; i++) {
        int32_t page = disk_index_find(s->index, g->rows[i].key.hash);
        if (page < 0 || disk_index_place(s->index, page) != number) continue;
        disk_index_remove(s->index, page);
        g->live--;
    }
}

void disk_segment_forget(struct disk_store *s, uint32_t number)
{
    struct disk_segment *g = s->segment[number];
    disk_segment_unindex(s, number);
    if (g->fd >= 0) close(g->fd);
    free(g->rows);
    free(g);
    s->segment[number] = NULL;
}

int disk_open_file(struct disk_store *s, const char *name, int flags)
{
    int fd = -1;
    if (s->direct) fd = openat(s->dir.fd, name, flags | O_DIRECT | O_CLOEXEC, 0666);
    if (fd < 0 && (!s->direct || errno == EINVAL))
        fd = openat(s->dir.fd, name, flags | O_CLOEXEC, 0666);
    return fd;
}

bool disk_lease_now(struct disk_store *s)
{
    pthread_mutex_lock(&s->lease_mutex);
    pthread_mutex_lock(&s->mutex);
    double now = disk_now(s);
    size_t n = 0;
    char(*names)[DISK_NAME_MAX] = malloc((s->n_segments + 1) * sizeof *names);
    for (uint32_t i = 0; names && i < s->n_segments; i++) {
        const struct disk_segment *g = s->segment[i];
        if (g && g->leased_until > now) memcpy(names[n++], g->name, DISK_NAME_MAX);
    }
    pthread_mutex_unlock(&s->mutex);
    bool ok = names && disk_lease_write(&s->dir, (const char(*)[DISK_NAME_MAX])names, n);
    pthread_mutex_unlock(&s->lease_mutex);
    free(names);
    return ok;
}

/* ---- events --------------------------------------------------------------------------------- */

void disk_put_event(struct disk_store *s, enum disk_event_kind kind, const struct disk_job *job)
{
    /* Room was made when the job was queued. */
    uint32_t at = (s->event_first + s->n_events) % s->cap_events;
    s->event[at] = (struct disk_event){kind, job->page, job->user};
    s->n_events++;
    __atomic_store_n(&s->events_waiting, s->n_events, __ATOMIC_RELEASE);
}

/* Room for the events of all jobs that are queued or under way, and one more. */
static bool reserve_event(struct disk_store *s)
{
    uint32_t need = s->n_events + s->reads.n + s->writes.n + s->flying.n + 1;
    if (need <= s->cap_events) return true;
    uint32_t cap = s->cap_events ? 2 * s->cap_events : DISK_EVENTS;
    while (cap < need) cap *= 2;
    struct disk_event *event = malloc(cap * sizeof *event);
    if (!event) return false;
    for (uint32_t i = 0; i < s->n_events; i++)
        event[i] = s->event[(s->event_first + i) % s->cap_events];
    free(s->event);
    s->event = event;
    s->event_first = 0;
    s->cap_events = cap;
    return true;
}

uint32_t disk_store_poll(struct disk_store *s, struct disk_event *events, uint32_t n)
{
    if (__atomic_load_n(&s->events_waiting, __ATOMIC_ACQUIRE) == 0) return 0;
    pthread_mutex_lock(&s->mutex);
    if (n > s->n_events) n = s->n_events;
    for (uint32_t i = 0; i < n; i++) {
        events[i] = s->event[s->event_first];
        s->event_first = (s->event_first + 1) % s->cap_events;
    }
    s->n_events -= n;
    __atomic_store_n(&s->events_waiting, s->n_events, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&s->mutex);
    return n;
}

/* ---- look-ups and queues -------------------------------------------------------------------- */

uint32_t disk_store_match(struct disk_store *s, const struct hash128 *chain, uint32_t from,
                          uint32_t n)
{
    if (from >= n) return 0;
    pthread_mutex_lock(&s->mutex);
    uint32_t found = disk_index_match(s->index, chain + from, n - from);
    pthread_mutex_unlock(&s->mutex);
    return found;
}

static bool being_written(const struct disk_jobs *jobs, struct hash128 hash)
{
    for (const struct disk_job *j = jobs->head; j; j = j->next)
        if (j->write && j->key.hash.lo == hash.lo && j->key.hash.hi == hash.hi) return true;
    return false;
}

static bool has(const struct disk_store *s, struct hash128 hash)
{
    return disk_index_find(s->index, hash) >= 0 || being_written(&s->writes, hash) ||
           being_written(&s->flying, hash);
}

bool disk_store_has(struct disk_store *s, struct hash128 hash)
{
    pthread_mutex_lock(&s->mutex);
    bool there = has(s, hash);
    pthread_mutex_unlock(&s->mutex);
    return there;
}

void disk_store_touch(struct disk_store *s, const struct hash128 *chain, uint32_t hits,
                      uint32_t total)
{
    pthread_mutex_lock(&s->mutex);
    disk_index_touch(s->index, chain, hits, total, disk_now(s));
    pthread_mutex_unlock(&s->mutex);
}

static void jobs_init(struct disk_jobs *q)
{
    q->head = NULL;
    q->tail = &q->head;
    q->n = 0;
}

static void jobs_free(struct disk_jobs *q)
{
    for (struct disk_job *j = q->head, *next; j; j = next) {
        next = j->next;
        free(j->record);
        free(j);
    }
    jobs_init(q);
}

static bool queue_job(struct disk_store *s, struct disk_jobs *q, const struct disk_page *page,
                      bool write)
{
    size_t tokens = s->shape.page_tokens * sizeof(int32_t);
    struct disk_job *j = reserve_event(s) ? calloc(1, sizeof *j + tokens) : NULL;
    if (!j) return false;
    j->write = write;
    j->key = page->key;
    j->page = page->page;
    j->user = page->user;
    memcpy(j->tokens, page->tokens, tokens);
    *q->tail = j;
    q->tail = &j->next;
    q->n++;
    pthread_cond_signal(&s->page_cond);
    return true;
}

void disk_queue_moved(struct disk_store *s, const struct disk_key *key, char *record, double last)
{
    struct disk_job *j = has(s, key->hash) ? NULL : calloc(1, sizeof *j);
    if (!j) {
        free(record);
        return;
    }
    j->write = true;
    j->key = *key;
    j->record = record;
    j->last = last;
    *s->writes.tail = j;
    s->writes.tail = &j->next;
    s->writes.n++;
    pthread_cond_signal(&s->page_cond);
}

bool disk_store_read(struct disk_store *s, const struct disk_page *page)
{
    pthread_mutex_lock(&s->mutex);
    bool ok = queue_job(s, &s->reads, page, false);
    pthread_mutex_unlock(&s->mutex);
    return ok;
}

bool disk_store_write(struct disk_store *s, const struct disk_page *page)
{
    pthread_mutex_lock(&s->mutex);
    bool ok = !has(s, page->key.hash);
    if (ok &&
        (s->broken || s->writes.n >= s->write_limit || !queue_job(s, &s->writes, page, true))) {
        s->stats.dropped_pages++;
        ok = false;
    }
    pthread_mutex_unlock(&s->mutex);
    return ok;
}

void disk_store_stats(struct disk_store *s, struct disk_stats *out)
{
    pthread_mutex_lock(&s->mutex);
    *out = s->stats;
    out->pages = disk_index_count(s->index);
    out->segments = 0;
    for (uint32_t i = 0; i < s->n_segments; i++)
        if (s->segment[i] && !s->segment[i]->foreign) out->segments++;
    out->io = s->backend->name;
    out->direct = s->direct;
    out->depth = s->n_buffers;
    pthread_mutex_unlock(&s->mutex);
}

void disk_store_rescan(struct disk_store *s)
{
    pthread_mutex_lock(&s->mutex);
    uint64_t want = s->looks + 2; /* one may be under way */
    s->looks_wanted = want;
    pthread_cond_signal(&s->keeper_cond);
    while (s->looks < want) pthread_cond_wait(&s->done_cond, &s->mutex);
    pthread_mutex_unlock(&s->mutex);
}

void disk_store_seal(struct disk_store *s)
{
    pthread_mutex_lock(&s->mutex);
    s->seal_wanted = true;
    pthread_cond_signal(&s->page_cond);
    while (s->seal_wanted || s->sealing >= 0) pthread_cond_wait(&s->done_cond, &s->mutex);
    pthread_mutex_unlock(&s->mutex);
}

/* ---- open and close ------------------------------------------------------------------------- */

/* Whether the folder's file system takes O_DIRECT. */
static bool direct_works(const struct disk_dir *dir)
{
    char name[DISK_NAME_MAX];
    snprintf(name, sizeof name, "%s.probe", dir->writer);
    int fd = openat(dir->fd, name, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0666);
    bool ok = fd >= 0;
    void *block = NULL;
    if (ok && posix_memalign(&block, DISK_BLOCK, DISK_BLOCK) == 0) {
        memset(block, 0, DISK_BLOCK);
        ok = pwrite(fd, block, DISK_BLOCK, 0) == DISK_BLOCK &&
             pread(fd, block, DISK_BLOCK, 0) == DISK_BLOCK;
    }
    free(block);
    if (fd >= 0) close(fd);
    unlinkat(dir->fd, name, 0);
    return ok;
}

static enum status choose_sizes(struct disk_store *s)
{
    s->stride = disk_stride(&s->shape);
    uint64_t least = DISK_BLOCK + s->stride + disk_table_bytes(1);
    if (s->c.bytes < 2 * least)
        return error_set(ERR_INPUT,
                         "kv.disk.bytes: found %.0f, but a segment of one page takes %llu bytes: "
                         "use at least %llu",
                         (double)s->c.bytes, (unsigned long long)least,
                         (unsigned long long)(2 * least));
    uint64_t bytes = s->c.segment_bytes;
    if (bytes == 0) {
        bytes = s->c.bytes / 64;
        if (bytes > SEGMENT_BYTES_MAX) bytes = SEGMENT_BYTES_MAX;
    }
    if (bytes > s->c.bytes / 2) bytes = s->c.bytes / 2;
    uint64_t slots = bytes / s->stride;
    while (slots > 1 && DISK_BLOCK + slots * s->stride + disk_table_bytes((uint32_t)slots) > bytes)
        slots--;
    s->segment_slots = slots < 1 ? 1 : (uint32_t)slots;
    size_t n = BUFFER_BYTES / s->stride;
    s->n_buffers = n < BUFFERS_MIN ? BUFFERS_MIN : n > BUFFERS_MAX ? BUFFERS_MAX : (uint32_t)n;
    s->write_limit = WRITE_QUEUE;
    return OK;
}

static enum status make_buffers(struct disk_store *s)
{
    void *p = NULL;
    s->free_buffer = calloc(s->n_buffers, sizeof *s->free_buffer);
    if (!s->free_buffer || posix_memalign(&p, DISK_BLOCK, s->n_buffers * s->stride) != 0)
        return error_set(ERR_RESOURCE, "no memory for %u buffers of %zu bytes", s->n_buffers,
                         s->stride);
    s->buffers = p;
    for (uint32_t i = 0; i < s->n_buffers; i++)
        s->free_buffer[s->n_free++] = s->buffers + (size_t)i * s->stride;
    s->io = disk_io_open(s->c.io, s->n_buffers, &s->backend);
    if (!s->io)
        return error_set(ERR_RESOURCE, "no I/O back-end %s for the disk tier on this machine",
                         s->c.io ? s->c.io : "auto");
    if (s->backend->memory) s->backend->memory(s->io, s->buffers, s->n_buffers * s->stride);
    return OK;
}

static enum status start_threads(struct disk_store *s)
{
    if (pthread_create(&s->page_thread, NULL, disk_pages_thread, s) != 0)
        return error_set(ERR_RESOURCE, "cannot start a thread for the disk tier");
    if (pthread_create(&s->keeper_thread, NULL, disk_keeper_thread, s) == 0) {
        s->started = true;
        return OK;
    }
    pthread_mutex_lock(&s->mutex);
    s->closing = true;
    pthread_cond_broadcast(&s->page_cond);
    pthread_mutex_unlock(&s->mutex);
    pthread_join(s->page_thread, NULL);
    return error_set(ERR_RESOURCE, "cannot start a second thread for the disk tier");
}

static void init_locks(struct disk_store *s)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->mutex, NULL);
    pthread_mutex_init(&s->lease_mutex, NULL);
    pthread_cond_init(&s->page_cond, &attr);
    pthread_cond_init(&s->keeper_cond, &attr);
    pthread_cond_init(&s->done_cond, &attr);
    pthread_condattr_destroy(&attr);
}

enum status disk_store_open(const struct disk_store_config *config, struct disk_store **out)
{
    struct disk_store *s = calloc(1, sizeof *s);
    if (!s) return error_set(ERR_RESOURCE, "no memory for the disk tier");
    s->c = *config;
    s->shape = config->shape;
    s->dir.fd = -1;
    s->open_segment = s->sealing = -1;
    if (s->c.lease_s <= 0) s->c.lease_s = 60;
    if (s->c.scan_s <= 0) s->c.scan_s = 5;
    jobs_init(&s->reads);
    jobs_init(&s->writes);
    jobs_init(&s->flying);
    init_locks(s);
    enum status st = choose_sizes(s);
    if (st == OK) st = disk_dir_open(s->c.dir, s->c.rank, s->c.lease_s, &s->dir);
    if (st == OK) s->direct = direct_works(&s->dir);
    if (st == OK) st = disk_index_create(DISK_POLICY_BEST, &s->index);
    if (st == OK) st = make_buffers(s);
    if (st == OK) {
        disk_keeper_start(s);
        st = start_threads(s);
    }
    if (st != OK) {
        disk_store_close(s, NULL);
        return st;
    }
    *out = s;
    return OK;
}

void disk_store_close(struct disk_store *s, struct disk_stats *last)
{
    if (!s) return;
    if (s->started) {
        pthread_mutex_lock(&s->mutex);
        s->closing = true;
        pthread_cond_broadcast(&s->page_cond);
        pthread_mutex_unlock(&s->mutex);
        pthread_join(s->page_thread, NULL);
        pthread_join(s->keeper_thread, NULL);
        if (last) disk_store_stats(s, last);
    }
    for (uint32_t i = 0; i < s->n_segments; i++)
        if (s->segment[i]) disk_segment_forget(s, i);
    free(s->segment);
    if (s->io) s->backend->close(s->io);
    if (s->dir.fd >= 0) disk_dir_close(&s->dir);
    disk_index_free(s->index);
    jobs_free(&s->reads);
    jobs_free(&s->writes);
    free(s->event);
    free(s->buffers);
    free(s->free_buffer);
    pthread_mutex_destroy(&s->mutex);
    pthread_mutex_destroy(&s->lease_mutex);
    pthread_cond_destroy(&s->page_cond);
    pthread_cond_destroy(&s->keeper_cond);
    pthread_cond_destroy(&s->done_cond);
    free(s);
}
