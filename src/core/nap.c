/* nap.c - sched_yield and usleep in place of libc's (see nap.h). Each thread backs off by
 * itself: naps double while it only waits, and begin short again once it has done work. */
#include "core/nap.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define YIELD_FIRST_US 50
#define INIT_FIRST_US 1000
#define INIT_LIMIT_US 20000
#define SHORT_WAIT_US 100 /* a library's usleep up to this is a poll, not a wish for a time */
#define WORKED_US 200     /* so long between two naps means that work was done in between */

static atomic_long yield_limit_us; /* 0: off; process-wide, as are the functions replaced */
static atomic_bool held;           /* sched_yield neither naps nor yields */

struct backoff {
    int64_t woke_us;
    long us;
};

static _Thread_local struct backoff yielding, starting;

static int64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static int sleep_us(long us)
{
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    return nanosleep(&t, NULL);
}

static void back_off(struct backoff *b, long first_us, long limit_us)
{
    bool worked = now_us() - b->woke_us > WORKED_US;
    b->us = worked || b->us < first_us ? first_us : 2 * b->us;
    if (b->us > limit_us) b->us = limit_us;
    sleep_us(b->us);
    b->woke_us = now_us();
}

void nap_enable(double ranks_per_core)
{
    /* A wake-up that finds nothing costs some 5 us; at 50 us a rank they cost a tenth of a core. */
    double limit = ranks_per_core * 50;
    if (limit < 500) limit = 500;
    if (limit > 5000) limit = 5000;
    atomic_store(&yield_limit_us, ranks_per_core > 1 ? (long)limit : 0);
}

void nap_hold(bool hold)
{
    atomic_store(&held, hold && atomic_load(&yield_limit_us));
}

int sched_yield(void)
{
    if (atomic_load_explicit(&held, memory_order_relaxed)) return 0;
    long limit = atomic_load_explicit(&yield_limit_us, memory_order_relaxed);
    if (!limit) return (int)syscall(SYS_sched_yield);
    back_off(&yielding, YIELD_FIRST_US, limit);
    return 0;
}

int usleep(useconds_t us)
{
    long limit = atomic_load_explicit(&yield_limit_us, memory_order_relaxed);
    if (!limit || us > SHORT_WAIT_US) return sleep_us((long)us);
    back_off(&starting, INIT_FIRST_US, INIT_LIMIT_US);
    return 0;
}
