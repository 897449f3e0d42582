/* pool.h - the threads behind a CPU lane: pieces of one call, dealt out to whoever comes.
 *
 * A call is over when its pieces are done, not when all threads have come by: where another
 * program holds a core, the thread that should have run there is late for nothing, and the caller
 * does its pieces. (A fork-join region waits a whole time slice at each of its barriers then.)
 * Threads that find nothing to do spin for a while, since the next call mostly follows within
 * microseconds, and then sleep on a futex; the spin adapts to how often it was worth it.
 *
 * Who owns what: a lane owns one pool, made at its first call that has pieces for more than one
 * thread, and ended by lane_free. One thread calls pool_run at a time.
 */
#ifndef DEVICE_POOL_H
#define DEVICE_POOL_H

#include <stdbool.h>

struct pool;

enum { POOL_PIECES_MAX = 0xffff };

/* threads - 1 sleeping threads; NULL when even one cannot be had. Fewer than asked for are
 * enough: the pieces are done by those that came. */
struct pool *pool_new(int threads);
void pool_free(struct pool *pool);

/* Calls fn(arg, piece) once for each piece below `pieces` (at most POOL_PIECES_MAX), the caller
 * being one of those that do. between(between_arg) (may be NULL) runs on the caller after each
 * of its pieces and while it waits for the last ones. Returns when all pieces are done; what
 * they wrote is visible to the caller. */
void pool_run(struct pool *pool, int pieces, void (*fn)(void *arg, int piece, bool caller),
              void *arg, void (*between)(void *arg), void *between_arg);

#endif
