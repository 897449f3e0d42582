/* pool.c - pieces are claimed with one compare-and-swap on {call, pieces, next}: a thread that
 * wakes late for a call that is over cannot claim any, whatever it remembered. */
#include "device/pool.h"
#include "core/clock.h"
#include "core/cpu.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    STACK_BYTES = 8 << 20,
    SPIN_MOST_NS = 100000, /* gaps between the calls of a step are shorter */
    SPIN_LEAST_NS = 4000,
    WAIT_SPIN_NS = 20000,  /* the caller's, before it sleeps */
    WAIT_SLEEP_NS = 200000 /* as often as lane_poll wants to be called */
};

struct pool {
    _Alignas(64) _Atomic uint64_t claim; /* call << 32 | pieces << 16 | next piece */
    _Alignas(64) _Atomic uint32_t done;  /* pieces of this call; the caller sleeps on it */
    _Atomic bool caller_sleeps;
    _Alignas(64) _Atomic uint32_t calls; /* futex of idle threads */
    _Atomic int sleepers;
    _Atomic bool end;
    void (*fn)(void *arg, int piece, bool caller); /* of the call; stable while a piece is open */
    void *arg;
    bool spin; /* there is a core for each thread */
    int threads;
    pthread_t thread[];
};

static void futex_wait(_Atomic uint32_t *word, uint32_t seen, const struct timespec *limit)
{
    syscall(SYS_futex, (void *)word, FUTEX_WAIT_PRIVATE, seen, limit, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int threads)
{
    syscall(SYS_futex, (void *)word, FUTEX_WAKE_PRIVATE, threads, NULL, NULL, 0);
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* The next piece of the call under way, or -1. */
static int claim_piece(struct pool *p)
{
    uint64_t state = atomic_load_explicit(&p->claim, memory_order_acquire);
    while ((state & 0xffff) < (state >> 16 & 0xffff))
        if (atomic_compare_exchange_weak_explicit(&p->claim, &state, state + 1,
                                                  memory_order_acq_rel, memory_order_acquire))
            return (int)(state & 0xffff);
    return -1;
}

static bool claimable(struct pool *p)
{
    uint64_t state = atomic_load_explicit(&p->claim, memory_order_acquire);
    return (state & 0xffff) < (state >> 16 & 0xffff);
}

/* ---- the other threads ---- */

static bool idle_over(struct pool *p)
{
    return claimable(p) || atomic_load_explicit(&p->end, memory_order_relaxed);
}

/* Until there may be pieces. The spin grows while it pays and shrinks while it does not. */
static void idle(struct pool *p, int64_t *spin_ns)
{
    uint32_t seen = atomic_load(&p->calls);
    if (p->spin) {
        int64_t start = clock_now_ns();
        while (clock_now_ns() - start < *spin_ns) {
            for (int i = 0; i < 32; i++) {
                if (idle_over(p)) {
                    *spin_ns = 2 * *spin_ns > SPIN_MOST_NS ? SPIN_MOST_NS : 2 * *spin_ns;
                    return;
                }
                relax();
            }
        }
        *spin_ns = *spin_ns / 2 < SPIN_LEAST_NS ? SPIN_LEAST_NS : *spin_ns / 2;
    }
    atomic_fetch_add(&p->sleepers, 1);
    /* A call begun since `seen` was read has counted up, and the futex does not wait. */
    if (!idle_over(p)) futex_wait(&p->calls, seen, NULL);
    atomic_fetch_sub(&p->sleepers, 1);
}

static void *thread_main(void *arg)
{
    struct pool *p = arg;
    int64_t spin_ns = SPIN_MOST_NS;
    while (!atomic_load(&p->end)) {
        for (int piece; (piece = claim_piece(p)) >= 0;) {
            p->fn(p->arg, piece, false);
            atomic_fetch_add(&p->done, 1);
            if (atomic_load(&p->caller_sleeps)) futex_wake(&p->done, 1);
        }
        idle(p, &spin_ns);
    }
    return NULL;
}

struct pool *pool_new(int threads)
{
    size_t bytes = sizeof(struct pool) + sizeof(pthread_t) * (size_t)threads;
    struct pool *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) return NULL;
    *p = (struct pool){.spin = threads <= cpu_count()};
    pthread_attr_t attr;
    if (pthread_attr_init(&attr) != 0) {
        free(p);
        return NULL;
    }
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    while (p->threads < threads - 1 &&
           pthread_create(&p->thread[p->threads], &attr, thread_main, p) == 0)
        p->threads++;
    pthread_attr_destroy(&attr);
    if (p->threads > 0) return p;
    free(p);
    return NULL;
}

void pool_free(struct pool *p)
{
    if (!p) return;
    atomic_store(&p->end, true);
    atomic_fetch_add(&p->calls, 1);
    futex_wake(&p->calls, INT_MAX);
    for (int i = 0; i < p->threads; i++) pthread_join(p->thread[i], NULL);
    free(p);
}

/* ---- the caller ---- */

static void wait_done(struct pool *p, uint32_t pieces, void (*between)(void *), void *arg)
{
    const struct timespec nap = {.tv_nsec = WAIT_SLEEP_NS};
    int64_t start = clock_now_ns();
    for (uint32_t done; (done = atomic_load(&p->done)) < pieces;) {
        if (between) between(arg);
        if (p->spin && clock_now_ns() - start < WAIT_SPIN_NS) {
            for (int i = 0; i < 32 && atomic_load(&p->done) < pieces; i++) relax();
            continue;
        }
        atomic_store(&p->caller_sleeps, true);
        if ((done = atomic_load(&p->done)) < pieces) futex_wait(&p->done, done, &nap);
        atomic_store(&p->caller_sleeps, false);
    }
}

void pool_run(struct pool *p, int pieces, void (*fn)(void *arg, int piece, bool caller), void *arg,
              void (*between)(void *arg), void *between_arg)
{
    uint64_t call = (atomic_load_explicit(&p->claim, memory_order_relaxed) >> 32) + 1;
    p->fn = fn;
    p->arg = arg;
    atomic_store(&p->done, 0);
    atomic_store(&p->claim, call << 32 | (uint64_t)pieces << 16);
    atomic_fetch_add(&p->calls, 1);
    if (atomic_load(&p->sleepers) > 0) {
        int wanted = pieces - 1 < p->threads ? pieces - 1 : p->threads;
        futex_wake(&p->calls, wanted);
    }
    for (int piece; (piece = claim_piece(p)) >= 0;) {
        fn(arg, piece, true);
        atomic_fetch_add(&p->done, 1);
        if (between) between(between_arg);
    }
    wait_done(p, (uint32_t)pieces, between, between_arg);
}
