/* internal.h - what the files of transport/ share: doorbells, shared segments, links. */
#ifndef TRANSPORT_INTERNAL_H
#define TRANSPORT_INTERNAL_H

#include "transport/transport.h"

#include <stdatomic.h>

enum { TRANSPORT_MAX_WINDOWS = 8, TRANSPORT_MAX_HOOKS = 8, CACHE_LINE = 64 };

/* ---- shm.c: doorbells in memory shared by processes of one host ---- */

/* What wakes a sleeping rank: one of its signals reaching a value, or any rings. */
struct watch {
    uint32_t key;   /* watch_key of the signal; 0: rings are counted */
    uint32_t value; /* of the signal, low bits; or of the doorbell's count */
};
/* A rank sleeps on `count`. Writers add to it after each signal; whoever brings about what is
 * watched while `sleeping` is set wakes the owner. */
struct doorbell {
    _Alignas(CACHE_LINE) _Atomic uint32_t count; /* futex word */
    _Atomic uint32_t sleeping;
    _Atomic uint32_t key, value; /* struct watch */
};
/* key, value: the signal that was raised, and to what; key 0: wakes whatever is watched, unless
 * that is a count that is not yet reached. */
void doorbell_ring(struct doorbell *d, uint32_t rings, uint32_t key, uint64_t value);
/* Sleeps until what is watched comes about, or timeout_us; returns at once if any ring came since
 * `seen` was read. May wake early. */
void doorbell_sleep(struct doorbell *d, uint32_t seen, struct watch watch, long timeout_us);

/* Shared by the unit's ranks of one host. */
struct control {
    _Alignas(CACHE_LINE) _Atomic uint32_t aborted;
    struct doorbell bell[]; /* [host_ranks] */
};

/* ---- links: ranks that cannot map each other's memory ---- */

/* Contract as transport_reserve, transport_signal, transport_flush; progress returns whether
 * anything moved. drain is collective: all that was put by any rank has arrived when it returns,
 * unless the transport was aborted. */
struct link {
    const char *name;
    size_t reserve_max;
    void *(*reserve)(struct link *, int peer, int window, size_t offset, size_t bytes);
    enum status (*signal)(struct link *, int peer, int window, int signal, uint64_t add);
    enum status (*flush)(struct link *);
    bool (*progress)(struct link *);
    void (*drain)(struct link *);
    void (*destroy)(struct link *);
};
enum status link_mpi_create(struct transport *t, struct link **out); /* collective */

/* ---- transport.c ---- */

struct window {
    int id, mine, signals; /* mine: this process's rank */
    size_t bytes;          /* caller's bytes a rank */
    size_t stride;         /* signals (one a cache line), then bytes, rounded up to pages */
    size_t data_offset;    /* of the caller's bytes in a rank's part */
    char *base;            /* this node's parts, in order of local index */
    char **part;           /* [ranks] start of a rank's part, NULL on other nodes */
};

struct transport {
    MPI_Comm comm, node_comm, host_comm;
    struct topology topo;
    int *index; /* backs topo's arrays */
    struct control *control;
    size_t control_bytes;
    struct doorbell **bell; /* [ranks], NULL on other hosts */
    int cores;              /* that the ranks of this host may use together */
    struct link *link;      /* NULL when the unit is one node */
    struct window *window[TRANSPORT_MAX_WINDOWS];
    struct {
        void (*fn)(void *);
        void *arg;
    } hook[TRANSPORT_MAX_HOOKS];
    bool polling;
    struct watch watch; /* of the next sleep, if its key is not 0 */
};

static inline uint32_t watch_key(const struct window *w, int signal)
{
    return (uint32_t)signal * TRANSPORT_MAX_WINDOWS + (uint32_t)w->id + 1;
}

static inline _Atomic uint64_t *window_signal(const struct window *w, int rank, int signal)
{
    return (_Atomic uint64_t *)(void *)(w->part[rank] + (size_t)signal * CACHE_LINE);
}

#endif
