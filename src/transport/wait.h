/* wait.h - the one function in which a rank waits for others.
 *
 * It polls the transport and the caller's control plane, asks whether the wait is over, spins
 * shortly, then sleeps on the rank's doorbell (a futex in shared memory). With more ranks than
 * cores a wake-up is what costs, so the waiter publishes how many rings it needs at least and
 * only the ring that completes the number wakes it: one wake-up for a whole all-to-all. Sleeps
 * are bounded: by 100 ms when everything comes through shared memory, by a backoff from 50 us
 * to 1 ms (longer when a host is oversubscribed) when MPI or a control plane must be polled.
 */
#ifndef TRANSPORT_WAIT_H
#define TRANSPORT_WAIT_H

#include "core/status.h"
#include "transport/transport.h"

/* How this rank waits; filled by the engine, borrowed by ep and others. */
struct waiter {
    struct transport *transport;    /* NULL: nothing but the control plane */
    enum status (*poll)(void *arg); /* control plane; a failure ends the wait with it; or NULL */
    void *poll_arg;
    int poll_max_us; /* longest sleep between two polls of it; 0 = 1000 */
};

/* Returns OK once missing(arg) returns 0, else the failure of poll or ERR_COMM after
 * transport_abort. missing returns a lower bound of the signals still to come before the wait
 * can end; 1 when it cannot say. It may itself make progress (call transport functions). */
enum status wait_until(struct waiter *w, unsigned (*missing)(void *arg), void *arg);

/* Polls once as wait_until does, without sleeping. */
enum status wait_poll(struct waiter *w);

#endif
