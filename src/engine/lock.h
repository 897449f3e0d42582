/* lock.h - one job at a time on a results file.
 *
 * NAME.lock is created exclusively, which also a network file system does atomically. It says who
 * has it (host, process, and what tells this process from a later one with the same number), and its
 * modification time is a heartbeat: a thread of its own touches it every LOCK_BEAT_S, whatever the
 * job computes, reads or writes meanwhile. A lock without heartbeat for LOCK_STALE_S, or whose
 * process has ended on this very host, is left over and is taken over.
 *
 * Who takes a lock over does so under a second file, NAME.lock.takeover, so that of two only one
 * removes the old lock. A job that was stopped for so long that another has taken its lock notices
 * at its next beat (lock_check) and must not write any more. Ages are taken against a file written
 * at that moment, so the hosts' clocks need not agree. Rank 0 owns the lock.
 */
#ifndef ENGINE_LOCK_H
#define ENGINE_LOCK_H

#include "core/status.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

enum { LOCK_STALE_S = 60, LOCK_BEAT_S = 10 };

/* Other times than these are for tests. */
struct lock_times {
    double stale_s, beat_s;
    double patience_s; /* a holder may be about to leave, or be found stale, so long */
};

struct lock {
    char path[1100]; /* "": not held */
    char text[320];  /* what we wrote into it */
    struct lock_times times;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool beating, stop; /* stop: under the mutex */
    atomic_bool lost;
};

/* Lock for a results path; *lock stays where it is until lock_release. times NULL: the usual ones.
 * ERR_RESOURCE naming the holder when another job has it. */
enum status lock_take(const char *results_path, const struct lock_times *times, struct lock *lock);
/* ERR_RESOURCE once another job has taken the lock over. */
enum status lock_check(struct lock *lock);
bool lock_lost(const struct lock *lock);
void lock_release(struct lock *lock);

#endif
