/* mpi.c - the link to ranks of other nodes over public, non-blocking MPI calls.
 *
 * Puts and signals to one peer are gathered as records in a packet; a full or flushed packet is
 * one MPI_Isend. A fixed ring of receives is always posted; progress completes them in the order
 * in which they were posted. MPI matches the messages of one sender in the order sent, so
 * records of one sender are applied in order, which is all that put-then-signal needs. When the
 * ring is behind, MPI keeps messages for later; no sender ever depends on a particular receiver
 * being posted, and a sender that runs out of packets keeps receiving while it waits, so rings
 * of full ranks cannot lock up.
 */
#include "core/clock.h"
#include "transport/internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    PACKET_BYTES = 64 * 1024,
    RECEIVES = 16, /* 1 MiB a rank */
    PACKETS_LEAST = 64,
    PACKET_TAG = 1,
    NAP_US = 100 /* while no packet is free and nothing moves */
};

/* A put of `bytes` that follow (padded to a record's size), or a signal. */
struct record {
    uint64_t offset; /* in the window's bytes; a signal's number */
    uint64_t add;    /* signal only */
    uint32_t bytes;
    uint16_t window;
    uint16_t is_signal;
    uint64_t reserved;
};
_Static_assert(sizeof(struct record) == 32, "records keep payloads aligned to 32 bytes");

struct packet {
    struct packet *next;
    MPI_Request request;
    int used, signals;
    _Alignas(CACHE_LINE) char data[PACKET_BYTES];
};

struct mpi_link {
    struct link base;
    struct transport *t;
    MPI_Comm comm;
    struct packet *receive[RECEIVES];
    int head;                               /* oldest posted receive */
    struct packet **open;                   /* [ranks] being filled, or NULL */
    int *dirty, dirty_count;                /* peers with an open packet */
    struct packet *sending, **sending_tail; /* oldest first */
    struct packet *spare;
    int packets, packets_most;
    int *sent; /* [ranks] packets since the last drain */
    int received;
};

/* ---- receiving ---- */

static void apply(struct mpi_link *l, const char *data, int used)
{
    struct transport *t = l->t;
    for (int at = 0; at + (int)sizeof(struct record) <= used;) {
        struct record r;
        memcpy(&r, data + at, sizeof r);
        at += (int)sizeof r;
        struct window *w = r.window < TRANSPORT_MAX_WINDOWS ? t->window[r.window] : NULL;
        if (r.is_signal) {
            if (w && r.offset < (uint64_t)w->signals)
                atomic_fetch_add_explicit(window_signal(w, w->mine, (int)r.offset), r.add,
                                          memory_order_release);
            continue;
        }
        if (w && r.offset <= w->bytes && r.bytes <= w->bytes - r.offset)
            memcpy(w->part[w->mine] + w->data_offset + r.offset, data + at, r.bytes);
        at += (int)((r.bytes + sizeof r - 1) / sizeof r * sizeof r);
    }
}

static void post(struct mpi_link *l, struct packet *p)
{
    MPI_Irecv(p->data, PACKET_BYTES, MPI_BYTE, MPI_ANY_SOURCE, PACKET_TAG, l->comm, &p->request);
}

static bool receive(struct mpi_link *l)
{
    bool moved = false;
    for (;;) {
        int done = 0, used = 0;
        struct packet *p = l->receive[l->head];
        MPI_Status st;
        MPI_Test(&p->request, &done, &st);
        if (!done) return moved;
        MPI_Get_count(&st, MPI_BYTE, &used);
        apply(l, p->data, used);
        l->received++;
        post(l, p);
        l->head = (l->head + 1) % RECEIVES;
        moved = true;
    }
}

/* ---- sending ---- */

/* Frees finished sends: the oldest ones, or any when `all`. */
static bool reap(struct mpi_link *l, bool all)
{
    bool moved = false;
    for (struct packet **at = &l->sending; *at;) {
        int done = 0;
        struct packet *p = *at;
        MPI_Test(&p->request, &done, MPI_STATUS_IGNORE);
        if (done) {
            *at = p->next;
            if (l->sending_tail == &p->next) l->sending_tail = at;
            p->next = l->spare;
            l->spare = p;
            moved = true;
        } else if (all) {
            at = &p->next;
        } else {
            break;
        }
    }
    return moved;
}

static bool mpi_progress(struct link *base)
{
    struct mpi_link *l = (struct mpi_link *)base;
    bool moved = receive(l);
    return reap(l, false) || moved;
}

static void send_packet(struct mpi_link *l, int peer)
{
    struct packet *p = l->open[peer];
    l->open[peer] = NULL;
    MPI_Isend(p->data, p->used, MPI_BYTE, peer, PACKET_TAG, l->comm, &p->request);
    l->sent[peer]++;
    p->next = NULL;
    *l->sending_tail = p;
    l->sending_tail = &p->next;
    /* A peer on this host (virtual nodes) sleeps on its doorbell; tell it to look at MPI. */
    if (l->t->bell[peer])
        doorbell_ring(l->t->bell[peer], (uint32_t)(p->signals ? p->signals : 1), 0, 0);
}

static enum status mpi_flush(struct link *base)
{
    struct mpi_link *l = (struct mpi_link *)base;
    for (int i = 0; i < l->dirty_count; i++)
        if (l->open[l->dirty[i]]) send_packet(l, l->dirty[i]);
    l->dirty_count = 0;
    return OK;
}

/* A packet to fill. At the limit, everything open is sent and sends are waited for. */
static struct packet *packet_get(struct mpi_link *l)
{
    if (!l->spare) reap(l, false);
    if (!l->spare && l->packets < l->packets_most) {
        l->spare = aligned_alloc(CACHE_LINE, sizeof *l->spare);
        if (l->spare) {
            l->spare->next = NULL;
            l->packets++;
        }
    }
    if (!l->spare) mpi_flush(&l->base);
    while (!l->spare) {
        if (transport_aborted(l->t)) return NULL;
        bool moved = receive(l);
        if (!reap(l, true) && !moved) clock_sleep_us(NAP_US);
    }
    struct packet *p = l->spare;
    l->spare = p->next;
    p->used = p->signals = 0;
    return p;
}

/* Room for a record and `bytes` in the peer's open packet. */
static struct packet *packet_open(struct mpi_link *l, int peer, size_t bytes)
{
    struct packet *p = l->open[peer];
    if (p && (size_t)p->used + bytes + sizeof(struct record) <= PACKET_BYTES) return p;
    if (p) send_packet(l, peer);
    bool listed = p != NULL;
    p = packet_get(l); /* may flush, which empties the list */
    if (!p) return NULL;
    l->open[peer] = p;
    if (!listed || l->dirty_count == 0) l->dirty[l->dirty_count++] = peer;
    return p;
}

static void *mpi_reserve(struct link *base, int peer, int window, size_t offset, size_t bytes)
{
    struct mpi_link *l = (struct mpi_link *)base;
    size_t padded =
        (bytes + sizeof(struct record) - 1) / sizeof(struct record) * sizeof(struct record);
    struct packet *p = packet_open(l, peer, padded);
    if (!p) return NULL;
    struct record r = {.offset = offset, .bytes = (uint32_t)bytes, .window = (uint16_t)window};
    memcpy(p->data + p->used, &r, sizeof r);
    void *at = p->data + p->used + sizeof r;
    p->used += (int)(sizeof r + padded);
    return at;
}

static enum status mpi_signal(struct link *base, int peer, int window, int signal, uint64_t add)
{
    struct mpi_link *l = (struct mpi_link *)base;
    struct packet *p = packet_open(l, peer, 0);
    if (!p) return error_set(ERR_COMM, "the transport was aborted during a signal");
    struct record r = {
        .offset = (uint64_t)signal, .add = add, .window = (uint16_t)window, .is_signal = 1};
    memcpy(p->data + p->used, &r, sizeof r);
    p->used += (int)sizeof r;
    p->signals++;
    return OK;
}

/* ---- creation and the end ---- */

/* Waits for a collective request; with hooks while other ranks may still need our forwarding. */
static bool drain_wait(struct mpi_link *l, MPI_Request *request, bool hooks)
{
    for (int done = 0; !done;) {
        if (transport_aborted(l->t)) return false;
        if (hooks)
            transport_poll(l->t);
        else
            mpi_progress(&l->base);
        MPI_Test(request, &done, MPI_STATUS_IGNORE);
        if (!done) clock_sleep_us(NAP_US);
    }
    return true;
}

/* 1. everybody has come, so nobody starts anything new; 2. everybody learns how many packets are
 * on their way to it and receives that many; 3. nobody leaves before all have theirs, so a
 * packet of what comes next is never taken for one of these. */
static void mpi_drain(struct link *base)
{
    struct mpi_link *l = (struct mpi_link *)base;
    int expected = 0;
    MPI_Request request;
    if (transport_aborted(l->t)) return;
    MPI_Ibarrier(l->comm, &request);
    if (!drain_wait(l, &request, true)) return;
    mpi_flush(base);
    MPI_Ireduce_scatter_block(l->sent, &expected, 1, MPI_INT, MPI_SUM, l->comm, &request);
    if (!drain_wait(l, &request, false)) return;
    while (l->received < expected || l->sending) {
        if (transport_aborted(l->t)) return;
        if (!mpi_progress(base)) clock_sleep_us(NAP_US);
    }
    MPI_Ibarrier(l->comm, &request);
    if (!drain_wait(l, &request, false)) return;
    l->received = 0;
    memset(l->sent, 0, (size_t)l->t->topo.ranks * sizeof *l->sent);
}

static void free_list(struct packet *p)
{
    while (p) {
        struct packet *next = p->next;
        free(p);
        p = next;
    }
}

static void mpi_destroy(struct link *base)
{
    struct mpi_link *l = (struct mpi_link *)base;
    /* After an abort, packets that MPI still holds are left to the end of the process. */
    for (int i = 0; i < RECEIVES && !transport_aborted(l->t); i++) {
        struct packet *p = l->receive[i];
        if (!p) continue;
        MPI_Cancel(&p->request);
        MPI_Wait(&p->request, MPI_STATUS_IGNORE);
        free(p);
    }
    free_list(l->spare);
    free(l->open);
    free(l->dirty);
    free(l->sent);
    free(l);
}

enum status link_mpi_create(struct transport *t, struct link **out)
{
    int n = t->topo.ranks;
    struct mpi_link *l = calloc(1, sizeof *l);
    if (!l) return error_set(ERR_RESOURCE, "out of memory for the MPI link");
    l->base = (struct link){"mpi",       PACKET_BYTES - sizeof(struct record),
                            mpi_reserve, mpi_signal,
                            mpi_flush,   mpi_progress,
                            mpi_drain,   mpi_destroy};
    l->t = t;
    l->comm = t->comm;
    l->sending_tail = &l->sending;
    /* One packet may be open to each peer while as many are on their way. */
    l->packets_most = n > PACKETS_LEAST / 2 ? 2 * n : PACKETS_LEAST;
    l->open = calloc((size_t)n, sizeof *l->open);
    l->dirty = calloc((size_t)n, sizeof *l->dirty);
    l->sent = calloc((size_t)n, sizeof *l->sent);
    bool ok = l->open && l->dirty && l->sent;
    for (int i = 0; i < RECEIVES && ok; i++) {
        l->receive[i] = aligned_alloc(CACHE_LINE, sizeof(struct packet));
        ok = l->receive[i] != NULL;
        if (ok) post(l, l->receive[i]);
    }
    *out = &l->base;
    if (!ok) return error_set(ERR_RESOURCE, "out of memory for the MPI link's packets");
    return OK;
}
