/* lock.h - one job at a time on a results file.
 *
 * NAME.lock is created exclusively (which also a network file system does atomically), holds host
 * and pid, and its modification time is a heartbeat. A lock without heartbeat for
 * LOCK_STALE_S is left over from a killed job and is taken over. Rank 0 owns it.
 */
#ifndef ENGINE_LOCK_H
#define ENGINE_LOCK_H

#include "core/status.h"

enum { LOCK_STALE_S = 60, LOCK_BEAT_S = 10 };

struct lock {
    char path[1100];
    double next_beat_s;
};

/* Lock for a results path. ERR_RESOURCE naming the holder when another job has it. */
enum status lock_take(const char *results_path, struct lock *lock);
/* Call often; touches the file every LOCK_BEAT_S. now_s: any clock that goes on. */
void lock_beat(struct lock *lock, double now_s);
void lock_release(struct lock *lock);

#endif
