/* lock.c */
#include "engine/lock.h"

#include "core/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE = 20 }; /* tries, a tenth of a second apart */

static void read_holder(const char *path, char *host, int *pid)
{
    FILE *f = fopen(path, "r");
    host[0] = '\0';
    *pid = 0;
    if (!f) return;
    if (fscanf(f, "%63s %d", host, pid) != 2) *pid = 0;
    fclose(f);
}

/* The age is taken against a file of the same file system: its clock may not be ours. */
static double age_s(const char *path)
{
    char probe[1120];
    struct stat lock, now;
    snprintf(probe, sizeof probe, "%s.%d", path, (int)getpid());
    int fd = open(probe, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    if (fd < 0 || write(fd, "x", 1) != 1 || fstat(fd, &now) != 0) now.st_mtime = time(0);
    if (fd >= 0) close(fd);
    unlink(probe);
    return stat(path, &lock) == 0 ? difftime(now.st_mtime, lock.st_mtime) : 0;
}

/* Left over: no heartbeat, or its process is gone from this very host. */
static int is_stale(const char *path, char *holder, size_t bytes)
{
    char host[64], here[64] = "";
    int pid = 0;
    gethostname(here, sizeof here - 1);
    read_holder(path, host, &pid);
    double age = age_s(path);
    snprintf(holder, bytes, "process %d on %s, last seen %.0f s ago", pid, host, age);
    if (pid > 0 && strcmp(host, here) == 0 && kill(pid, 0) != 0 && errno == ESRCH) return 1;
    return age > LOCK_STALE_S;
}

enum status lock_take(const char *results_path, struct lock *lock)
{
    char host[64] = "", holder[160] = "", path[sizeof lock->path];
    memset(lock, 0, sizeof *lock);
    snprintf(path, sizeof path, "%s.lock", results_path);
    gethostname(host, sizeof host - 1);
    /* A job that was killed a moment ago may still be dying. */
    for (int attempt = 0; attempt < PATIENCE; attempt++) {
        int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);
        if (fd >= 0) {
            dprintf(fd, "%s %d\n", host, (int)getpid());
            close(fd);
            memcpy(lock->path, path, sizeof path);
            return OK;
        }
        if (errno != EEXIST)
            return error_set(ERR_INPUT, "results: cannot create %s: %s", path, strerror(errno));
        if (is_stale(path, holder, sizeof holder))
            unlink(path);
        else
            clock_sleep_us(100000);
    }
    return error_set(ERR_RESOURCE,
                     "results: %s is being written by another job (%s): wait for it, choose "
                     "another name, or remove %s if that job is gone",
                     results_path, holder, path);
}

void lock_beat(struct lock *lock, double now_s)
{
    if (!lock->path[0] || now_s < lock->next_beat_s) return;
    lock->next_beat_s = now_s + LOCK_BEAT_S;
    (void)utimensat(AT_FDCWD, lock->path, 0, 0);
}

void lock_release(struct lock *lock)
{
    if (lock->path[0]) unlink(lock->path);
    lock->path[0] = '\0';
}
