/* disk_io_threads.c - the portable back-end: threads that take requests from a list and call pread
 * or pwrite; and the choice between back-ends.
 */
#include "kvcache/disk_io.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { THREADS_MAX = 8 };

struct request_list {
    struct disk_io_request *head, **tail;
};

struct disk_io {
    pthread_mutex_t mutex;
    pthread_cond_t todo_cond, done_cond;
    struct request_list todo, done;
    bool closing;
    int n;
    pthread_t thread[THREADS_MAX];
};

static void list_init(struct request_list *l)
{
    l->head = NULL;
    l->tail = &l->head;
}

static void list_put(struct request_list *l, struct disk_io_request *r)
{
    r->next = NULL;
    *l->tail = r;
    l->tail = &r->next;
}

static struct disk_io_request *list_take(struct request_list *l)
{
    struct disk_io_request *r = l->head;
    if (!r) return NULL;
    l->head = r->next;
    if (!l->head) l->tail = &l->head;
    return r;
}

static int transfer(const struct disk_io_request *r)
{
    size_t at = 0;
    while (at < r->bytes) {
        char *p = (char *)r->buffer + at;
        off_t offset = (off_t)(r->offset + at);
        ssize_t n = r->write ? pwrite(r->fd, p, r->bytes - at, offset)
                             : pread(r->fd, p, r->bytes - at, offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -errno;
        if (n == 0) return -EIO; /* the file ends here */
        at += (size_t)n;
    }
    return 0;
}

static void *work(void *arg)
{
    struct disk_io *io = arg;
    pthread_mutex_lock(&io->mutex);
    for (;;) {
        struct disk_io_request *r = list_take(&io->todo);
        if (r) {
            pthread_mutex_unlock(&io->mutex);
            r->result = transfer(r);
            pthread_mutex_lock(&io->mutex);
            list_put(&io->done, r);
            pthread_cond_signal(&io->done_cond);
        } else if (io->closing) {
            break;
        } else {
            pthread_cond_wait(&io->todo_cond, &io->mutex);
        }
    }
    pthread_mutex_unlock(&io->mutex);
    return NULL;
}

static void threads_close(struct disk_io *io)
{
    pthread_mutex_lock(&io->mutex);
    io->closing = true;
    pthread_cond_broadcast(&io->todo_cond);
    pthread_mutex_unlock(&io->mutex);
    for (int i = 0; i < io->n; i++) pthread_join(io->thread[i], NULL);
    pthread_cond_destroy(&io->todo_cond);
    pthread_cond_destroy(&io->done_cond);
    pthread_mutex_destroy(&io->mutex);
    free(io);
}

static struct disk_io *threads_open(unsigned depth)
{
    struct disk_io *io = calloc(1, sizeof *io);
    if (!io) return NULL;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&io->mutex, NULL);
    pthread_cond_init(&io->todo_cond, &attr);
    pthread_cond_init(&io->done_cond, &attr);
    pthread_condattr_destroy(&attr);
    list_init(&io->todo);
    list_init(&io->done);
    int n = depth < THREADS_MAX ? (int)depth : THREADS_MAX;
    while (io->n < n && pthread_create(&io->thread[io->n], NULL, work, io) == 0) io->n++;
    if (io->n > 0) return io;
    threads_close(io);
    return NULL;
}

static void threads_submit(struct disk_io *io, struct disk_io_request *request)
{
    pthread_mutex_lock(&io->mutex);
    list_put(&io->todo, request);
    pthread_cond_signal(&io->todo_cond);
    pthread_mutex_unlock(&io->mutex);
}

static struct disk_io_request *threads_wait(struct disk_io *io, long timeout_us)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += timeout_us * 1000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&io->mutex);
    struct disk_io_request *r = list_take(&io->done);
    while (!r && timeout_us > 0 && pthread_cond_timedwait(&io->done_cond, &io->mutex, &until) == 0)
        r = list_take(&io->done);
    pthread_mutex_unlock(&io->mutex);
    return r;
}

const struct disk_io_backend disk_io_threads = {
    .name = "threads",
    .open = threads_open,
    .close = threads_close,
    .submit = threads_submit,
    .wait = threads_wait,
};

struct disk_io *disk_io_open(const char *name, unsigned depth,
                             const struct disk_io_backend **backend)
{
    bool any = !name || strcmp(name, "auto") == 0;
    *backend = disk_io_uring();
    if (*backend && (any || strcmp(name, (*backend)->name) == 0)) {
        struct disk_io *io = (*backend)->open(depth);
        if (io || !any) return io;
    }
    *backend = &disk_io_threads;
    if (!any && strcmp(name, disk_io_threads.name) != 0) return NULL;
    return disk_io_threads.open(depth);
}
