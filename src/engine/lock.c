/* lock.c - see lock.h. */
#include "engine/lock.h"

#include "core/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const struct lock_times usual = {LOCK_STALE_S, LOCK_BEAT_S, 2};

/* ---- who holds it ---- */

/* A process beyond its number: host, this start of the host, its space of numbers, its own start. */
struct holder {
    char host[65], boot[40];
    unsigned long long space, started;
    int pid;
};

static void read_word(const char *path, char *word, size_t bytes)
{
    FILE *f = fopen(path, "r");
    word[0] = '\0';
    if (!f) return;
    if (fgets(word, (int)bytes, f)) word[strcspn(word, " \n")] = '\0';
    fclose(f);
}

/* Clock ticks from the host's start to the process's, field 22 of its stat; 0: no such process. */
static unsigned long long started_at(int pid)
{
    char path[64], line[1024] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    char *at = fgets(line, sizeof line, f) ? strrchr(line, ')') : NULL; /* behind the name */
    fclose(f);
    for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
    return at ? strtoull(at, NULL, 10) : 0;
}

static void describe_self(struct holder *h)
{
    struct stat space = {0};
    memset(h, 0, sizeof *h);
    gethostname(h->host, sizeof h->host - 1);
    read_word("/proc/sys/kernel/random/boot_id", h->boot, sizeof h->boot);
    if (stat("/proc/self/ns/pid", &space) == 0) h->space = space.st_ino;
    h->pid = (int)getpid();
    h->started = started_at(h->pid);
}

static bool parse_holder(const char *text, struct holder *h)
{
    memset(h, 0, sizeof *h);
    return sscanf(text, "%64s %d %39s %llu %llu", h->host, &h->pid, h->boot, &h->space,
                  &h->started) == 5;
}

/* Whether its process has certainly ended: looked for where its number means something. */
static bool has_ended(const struct holder *h)
{
    struct holder me;
    describe_self(&me);
    if (!h->boot[0] || strcmp(h->boot, me.boot) != 0 || h->space != me.space || !h->space)
        return false;
    if (kill(h->pid, 0) != 0 && errno == ESRCH) return true;
    return h->started && started_at(h->pid) != h->started;
}

static void read_text(const char *path, char *text, size_t bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, bytes - 1) : 0;
    if (fd >= 0) close(fd);
    text[n > 0 ? n : 0] = '\0';
}

/* Seconds since its last beat by the file system's own clock; 0 when it is gone. */
static double age_s(const char *path)
{
    char probe[1200];
    struct stat then, now;
    snprintf(probe, sizeof probe, "%s.%d", path, (int)getpid());
    int fd = open(probe, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
    /* A network file system's time comes with the data's way to the server. */
    if (fd < 0 || write(fd, "x", 1) != 1 || (fsync(fd) != 0 && errno == EIO) ||
        fstat(fd, &now) != 0)
        clock_gettime(CLOCK_REALTIME, &now.st_mtim);
    if (fd >= 0) close(fd);
    unlink(probe);
    if (stat(path, &then) != 0) return 0;
    return difftime(now.st_mtim.tv_sec, then.st_mtim.tv_sec) +
           1e-9 * (double)(now.st_mtim.tv_nsec - then.st_mtim.tv_nsec);
}

/* Left over; says whose it is. An empty one is somebody's who has just made it. */
static bool is_stale(const char *path, double stale_s, char who[256])
{
    char text[sizeof((struct lock *)0)->text];
    struct holder h;
    read_text(path, text, sizeof text);
    bool known = parse_holder(text, &h);
    double age = age_s(path);
    snprintf(who, 256, "process %d on %s, last seen %.0f s ago", h.pid, known ? h.host : "?", age);
    return (known && has_ended(&h)) || age > stale_s;
}

/* ---- taking it ---- */

/* OK and *done when it is ours. */
static enum status create(const char *path, struct lock *lock, bool *done)
{
    int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
    *done = fd >= 0;
    if (fd < 0) {
        if (errno == EEXIST) return OK;
        return error_set(ERR_INPUT, "results: cannot create %s: %s", path, strerror(errno));
    }
    struct holder me;
    describe_self(&me);
    snprintf(lock->text, sizeof lock->text, "%s %d %s %llu %llu\n", me.host, me.pid,
             me.boot[0] ? me.boot : "-", me.space, me.started);
    ssize_t n = write(fd, lock->text, strlen(lock->text));
    int err = errno;
    close(fd);
    if (n == (ssize_t)strlen(lock->text)) return OK;
    unlink(path);
    *done = false;
    return error_set(ERR_RESOURCE, "results: cannot write %s: %s", path, strerror(err));
}

/* Removes a stale lock, one job at a time; looks once more when no other can do the same. A takeover
 * file without an owner is left from a job that was killed just here. */
static void take_over(const char *path, double stale_s)
{
    char guard[1160], who[256];
    snprintf(guard, sizeof guard, "%s.takeover", path);
    int fd = open(guard, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
    if (fd < 0) {
        if (errno == EEXIST && age_s(guard) > stale_s) unlink(guard);
        return;
    }
    close(fd);
    if (is_stale(path, stale_s, who)) unlink(path);
    unlink(guard);
}

/* ---- keeping it ---- */

static void beat(struct lock *lock)
{
    char text[sizeof lock->text];
    read_text(lock->path, text, sizeof text);
    if (strcmp(text, lock->text) != 0)
        atomic_store(&lock->lost, true);
    else
        (void)utimensat(AT_FDCWD, lock->path, NULL, 0);
}

static void *beat_on(void *arg)
{
    struct lock *lock = arg;
    pthread_mutex_lock(&lock->mutex);
    while (!lock->stop && !atomic_load(&lock->lost)) {
        struct timespec next;
        clock_gettime(CLOCK_MONOTONIC, &next);
        double at = (double)next.tv_nsec * 1e-9 + lock->times.beat_s;
        next.tv_sec += (time_t)at;
        next.tv_nsec = (long)((at - (double)(time_t)at) * 1e9);
        if (pthread_cond_timedwait(&lock->wake, &lock->mutex, &next) == ETIMEDOUT) beat(lock);
    }
    pthread_mutex_unlock(&lock->mutex);
    return NULL;
}

/* Signals are for the thread that computes. */
static enum status start_beating(struct lock *lock)
{
    sigset_t all, before;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&lock->mutex, NULL);
    pthread_cond_init(&lock->wake, &attr);
    pthread_condattr_destroy(&attr);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int err = pthread_create(&lock->thread, NULL, beat_on, lock);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    lock->beating = err == 0;
    return err ? error_set(ERR_RESOURCE, "results: no thread for the heartbeat of %s: %s",
                           lock->path, strerror(err))
               : OK;
}

enum status lock_take(const char *results_path, const struct lock_times *times, struct lock *lock)
{
    char path[sizeof lock->path], who[256] = "";
    memset(lock, 0, sizeof *lock);
    lock->times = times ? *times : usual;
    snprintf(path, sizeof path, "%s.lock", results_path);
    double end = clock_now_s() + lock->times.patience_s;
    for (;;) {
        bool done;
        TRY(create(path, lock, &done));
        if (done) break;
        bool stale = is_stale(path, lock->times.stale_s, who);
        if (stale) take_over(path, lock->times.stale_s);
        if (clock_now_s() > end)
            return error_set(ERR_RESOURCE,
                             "results: %s is being written by another job (%s): wait for it, "
                             "choose another name, or remove %s if that job is gone",
                             results_path, who, path);
        clock_sleep_us(stale ? 1000 : 100000);
    }
    memcpy(lock->path, path, sizeof path);
    enum status st = start_beating(lock);
    if (st != OK) lock_release(lock);
    return st;
}

bool lock_lost(const struct lock *lock)
{
    return atomic_load(&lock->lost);
}

enum status lock_check(struct lock *lock)
{
    char text[sizeof lock->text];
    struct holder h;
    if (!lock_lost(lock)) return OK;
    read_text(lock->path, text, sizeof text);
    bool known = parse_holder(text, &h);
    return error_set(ERR_RESOURCE,
                     "results: this job stood still for more than %.0f s and another one (process "
                     "%d on %s) has taken over %s: this one ends; what it had finished is in the "
                     "journal",
                     lock->times.stale_s, h.pid, known ? h.host : "?", lock->path);
}

void lock_release(struct lock *lock)
{
    if (!lock->path[0]) return;
    if (lock->beating) {
        pthread_mutex_lock(&lock->mutex);
        lock->stop = true;
        pthread_cond_signal(&lock->wake);
        pthread_mutex_unlock(&lock->mutex);
        pthread_join(lock->thread, NULL);
        pthread_cond_destroy(&lock->wake);
        pthread_mutex_destroy(&lock->mutex);
        lock->beating = false;
    }
    beat(lock); /* is it still ours? */
    if (!lock_lost(lock)) unlink(lock->path);
    lock->path[0] = '\0';
}
