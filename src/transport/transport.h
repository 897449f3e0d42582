/* transport.h - put bytes into a peer's memory and signal it.
 *
 * A transport joins the ranks of one unit. Memory is a window: the same number of bytes and of
 * 64-bit signals on every rank, created collectively. Ranks of one node map each other's windows
 * (shm.c): the sender writes straight into the receiver's memory. Ranks of other nodes are
 * reached through a link (mpi.c: non-blocking MPI; later verbs, nccl) that only moves when
 * somebody calls transport_poll. Nothing here blocks after creation except transport_reserve
 * when a link has no buffer left, and that keeps receiving while it waits.
 *
 * Signals count up for ever and are never cleared: a waiter remembers where it started. A signal
 * becomes visible after all bytes that the same rank put to the same peer before it.
 *
 * Who owns what: the engine creates one transport per unit and destroys it last; windows belong
 * to their creator (ep/) and are destroyed before the transport. All calls come from the thread
 * that initialised MPI; only plain writes through pointers from transport_ptr may come from
 * others, if they end before that thread calls transport_signal.
 */
#ifndef TRANSPORT_TRANSPORT_H
#define TRANSPORT_TRANSPORT_H

#include "core/status.h"

#include <mpi.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct transport;
struct window;

/* Which rank sits where. Arrays are [ranks] or [nodes]; owned by the transport. */
struct topology {
    int ranks, rank;       /* of the unit */
    int nodes, node;       /* nodes in order of their lowest rank; mine */
    int local;             /* my index in my node */
    const int *node_of;    /* [ranks] */
    const int *local_of;   /* [ranks] index in its node */
    const int *node_size;  /* [nodes] */
    const int *node_first; /* [nodes] start in node_ranks */
    const int *node_ranks; /* [ranks] ranks sorted by (node, rank) */
    int host_ranks;        /* ranks of the unit on this real host, whatever the node grouping */
};

/* Collective over comm (duplicated, so other traffic on comm is not disturbed).
 * ranks_per_node 0: real nodes (MPI_Comm_split_type); n: virtual nodes of n consecutive ranks,
 * which must also share a host. */
enum status transport_create(MPI_Comm comm, int ranks_per_node, struct transport **out);
/* Collective: completes what is still on its way, unless the transport was aborted. */
void transport_destroy(struct transport *t);

const struct topology *transport_topology(const struct transport *t);
/* "self", "shm", "mpi" or "shm+mpi": what this unit's traffic uses; for logs and results. */
const char *transport_name(const struct transport *t);

/* Collective, same arguments everywhere. Zeroed. ERR_RESOURCE when the host lacks the memory. */
enum status transport_window_create(struct transport *t, size_t bytes, int signals,
                                    struct window **out);
void transport_window_destroy(struct transport *t, struct window *w); /* collective */

/* Start of the peer's window where this process can write it (own node, itself), else NULL. */
void *transport_ptr(const struct window *w, int peer);
/* Own signal's value (acquire: bytes put before it are visible). */
uint64_t transport_signal_value(const struct window *w, int signal);

/* The next `bytes` of a put to [offset, offset + bytes) of the peer's window are to be written
 * at the returned address before the next call of any transport function for this peer. At most
 * transport_reserve_max() bytes to peers of other nodes. NULL after transport_abort. */
void *transport_reserve(struct transport *t, struct window *w, int peer, size_t offset,
                        size_t bytes);
size_t transport_reserve_max(const struct transport *t);
/* Copies src; any size. */
enum status transport_put(struct transport *t, struct window *w, int peer, size_t offset,
                          const void *src, size_t bytes);
/* Adds to a signal of the peer, after everything put to it before, and rings its doorbell. */
enum status transport_signal(struct transport *t, struct window *w, int peer, int signal,
                             uint64_t add);
/* For wait_until's missing: the wait can only end, or go on in any way, when this own signal
 * reaches `value`. The next sleep is then not disturbed by other signals. Has no effect where
 * anything comes over a link. */
void transport_watch(struct transport *t, const struct window *w, int signal, uint64_t value);
/* transport_put, then transport_signal. */
enum status transport_put_signal(struct transport *t, struct window *w, int peer, size_t offset,
                                 const void *src, size_t bytes, int signal, uint64_t add);
/* Small puts to one peer are gathered into packets; this sends what is gathered. transport_poll
 * does it too. */
enum status transport_flush(struct transport *t);

/* Makes communication move: flushes, receives, then calls the progress hooks. Cheap when there
 * is nothing to do. Fit for struct lane's poll. */
void transport_poll(void *transport);
/* A hook run by every transport_poll (ep's forwarding). At most 8; fn NULL with arg removes. */
enum status transport_hook(struct transport *t, void (*fn)(void *arg), void *arg);

/* Makes every wait of this node's ranks end with ERR_COMM, now. Other nodes learn of a failure
 * through the engine. Callable by any rank at any time, from a poll callback too. */
void transport_abort(struct transport *t);
bool transport_aborted(const struct transport *t);

#endif
