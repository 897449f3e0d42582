/* wait.c - see wait.h. */
#include "transport/wait.h"

#include "core/clock.h"
#include "transport/internal.h"

#include <sched.h>

enum {
    SPINS = 200,         /* about 20 us of looking before the first sleep, one rank a core */
    SLEEP_FIRST_US = 50, /* backoff while MPI or a control plane must be polled */
    SLEEP_LAST_US = 1000,
    SLEEP_SHM_US = 100000,
    OVERLOAD_MAX = 20 /* sleeps grow with ranks per core, up to this factor */
};

enum status wait_poll(struct waiter *w)
{
    if (w->transport) {
        transport_poll(w->transport);
        if (transport_aborted(w->transport))
            return error_set(ERR_COMM, "another rank of this host gave up");
    }
    return w->poll ? w->poll(w->poll_arg) : OK;
}

static void sleep_a_while(struct waiter *w, uint32_t seen, unsigned rings, int round)
{
    struct transport *t = w->transport;
    struct watch watch = {0, seen + rings};
    long overload = 1, last = w->poll && w->poll_max_us > 0 ? w->poll_max_us : SLEEP_LAST_US;
    if (t) overload = t->topo.host_ranks / t->cores;
    if (overload < 1) overload = 1;
    if (overload > OVERLOAD_MAX) overload = OVERLOAD_MAX;
    long us = (long)SLEEP_FIRST_US << (round > 10 ? 10 : round);
    if (us > last) us = last;
    us *= overload;
    if (t && !t->link && !w->poll) us = SLEEP_SHM_US;
    if (!t) {
        clock_sleep_us(us);
        return;
    }
    transport_flush(t); /* missing() may have put something */
    if (t->watch.key) watch = t->watch;
    doorbell_sleep(t->bell[t->topo.rank], seen, watch, us);
}

enum status wait_until(struct waiter *w, unsigned (*missing)(void *arg), void *arg)
{
    struct transport *t = w->transport;
    int spins = t && t->topo.host_ranks <= t->cores ? SPINS : 0;
    for (int round = 0;;) {
        /* Read first: a ring after this is either counted in `missing` below or wakes us. */
        uint32_t seen = t ? atomic_load(&t->bell[t->topo.rank]->count) : 0;
        enum status st = wait_poll(w);
        if (st != OK) return st;
        if (t) t->watch.key = 0;
        unsigned rings = missing(arg);
        if (rings == 0) return OK;
        if (spins > 0) {
            spins--;
            sched_yield();
        } else {
            sleep_a_while(w, seen, rings, round++);
        }
    }
}
