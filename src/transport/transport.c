/* transport.c - topology, windows, and the choice between shared memory and the link. */
#include "transport/transport.h"

#include "core/host_memory.h"
#include "core/log.h"
#include "transport/internal.h"
#include "transport/shm.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* All ranks of comm return OK only if all of them are OK. */
static enum status agree(MPI_Comm comm, enum status mine)
{
    int in = (int)mine, out = 0;
    MPI_Allreduce(&in, &out, 1, MPI_INT, MPI_MAX, comm);
    if (out == OK || mine != OK) return mine;
    return error_set((enum status)out, "another rank failed while the transport was set up");
}

/* Fills topo from node_key[rank] = lowest rank of its node. */
static void topology_fill(struct topology *tp, int *index, const int *key)
{
    int n = tp->ranks;
    int *node_of = index, *local_of = index + n, *size = index + 2 * n, *first = index + 3 * n,
        *members = index + 4 * n;
    int nodes = 0;
    for (int r = 0; r < n; r++) {
        if (key[r] == r) {
            size[nodes] = 0;
            node_of[r] = nodes++;
        } else {
            node_of[r] = node_of[key[r]];
        }
        local_of[r] = size[node_of[r]]++;
    }
    for (int i = 0, at = 0; i < nodes; at += size[i++]) first[i] = at;
    for (int r = 0; r < n; r++) members[first[node_of[r]] + local_of[r]] = r;
    tp->nodes = nodes;
    tp->node = node_of[tp->rank];
    tp->local = local_of[tp->rank];
    tp->node_of = node_of;
    tp->local_of = local_of;
    tp->node_size = size;
    tp->node_first = first;
    tp->node_ranks = members;
}

/* Node grouping, and which ranks share this host. host[r] = lowest rank on r's host. */
static enum status group_ranks(struct transport *t, int ranks_per_node, int *host)
{
    int n = t->topo.ranks, lowest = t->topo.rank;
    MPI_Comm_split_type(t->comm, MPI_COMM_TYPE_SHARED, t->topo.rank, MPI_INFO_NULL, &t->host_comm);
    MPI_Comm_size(t->host_comm, &t->topo.host_ranks);
    MPI_Bcast(&lowest, 1, MPI_INT, 0, t->host_comm);
    MPI_Allgather(&lowest, 1, MPI_INT, host, 1, MPI_INT, t->comm);
    int *key = calloc((size_t)n, sizeof *key);
    t->index = calloc((size_t)n * 5, sizeof *t->index);
    if (!key || !t->index) {
        free(key);
        return error_set(ERR_RESOURCE, "out of memory for a unit of %d ranks", n);
    }
    enum status st = OK;
    for (int r = 0; r < n; r++) {
        key[r] = ranks_per_node > 0 ? r - r % ranks_per_node : host[r];
        if (st == OK && host[key[r]] != host[r])
            st = error_set(ERR_INPUT,
                           "ranks_per_node is %d, but ranks %d and %d of one such node are on "
                           "different hosts: lower ranks_per_node or place ranks by host",
                           ranks_per_node, key[r], r);
    }
    topology_fill(&t->topo, t->index, key);
    free(key);
    return st;
}

/* Cores that the ranks of this host may run on together. */
static int host_cores(MPI_Comm host)
{
    cpu_set_t set, all;
    CPU_ZERO(&set);
    CPU_ZERO(&all);
    if (sched_getaffinity(0, sizeof set, &set) != 0) CPU_SET(0, &set);
    MPI_Allreduce(&set, &all, (int)sizeof set, MPI_BYTE, MPI_BOR, host);
    int n = CPU_COUNT(&all);
    return n > 0 ? n : 1;
}

static enum status map_control(struct transport *t, const int *host)
{
    t->control_bytes = sizeof *t->control + (size_t)t->topo.host_ranks * sizeof(struct doorbell);
    t->bell = calloc((size_t)t->topo.ranks, sizeof *t->bell);
    if (!t->bell) return error_set(ERR_RESOURCE, "out of memory for doorbells");
    void *base = NULL;
    TRY(shm_map(t->host_comm, "doorbells", false, &t->control_bytes, &base));
    t->control = base;
    for (int r = 0, i = 0; r < t->topo.ranks; r++)
        if (host[r] == host[t->topo.rank]) t->bell[r] = &t->control->bell[i++];
    return OK;
}

enum status transport_create(MPI_Comm comm, int ranks_per_node, struct transport **out)
{
    struct transport *t = calloc(1, sizeof *t);
    if (!t) return error_set(ERR_RESOURCE, "out of memory for a transport");
    t->comm = t->node_comm = t->host_comm = MPI_COMM_NULL;
    MPI_Comm_dup(comm, &t->comm);
    MPI_Comm_rank(t->comm, &t->topo.rank);
    MPI_Comm_size(t->comm, &t->topo.ranks);
    int *host = calloc((size_t)t->topo.ranks, sizeof *host);
    enum status st = host ? OK : error_set(ERR_RESOURCE, "out of memory for a transport");
    if ((st = agree(t->comm, st)) != OK) goto fail;
    if ((st = agree(t->comm, group_ranks(t, ranks_per_node, host))) != OK) goto fail;
    MPI_Comm_split(t->comm, t->topo.node, t->topo.rank, &t->node_comm);
    t->cores = host_cores(t->host_comm);
    if ((st = agree(t->comm, map_control(t, host))) != OK) goto fail;
    if (t->topo.nodes > 1 && (st = agree(t->comm, link_mpi_create(t, &t->link))) != OK) goto fail;
    free(host);
    *out = t;
    return OK;
fail:
    free(host);
    transport_destroy(t);
    return st;
}

void transport_destroy(struct transport *t)
{
    if (!t) return;
    if (t->link) {
        t->link->drain(t->link);
        t->link->destroy(t->link);
    }
    for (int i = 0; i < TRANSPORT_MAX_WINDOWS; i++)
        if (t->window[i]) log_warn("transport: window %d was not destroyed", i);
    if (t->control) shm_unmap(t->control, t->control_bytes);
    if (t->node_comm != MPI_COMM_NULL) MPI_Comm_free(&t->node_comm);
    if (t->host_comm != MPI_COMM_NULL) MPI_Comm_free(&t->host_comm);
    if (t->comm != MPI_COMM_NULL) MPI_Comm_free(&t->comm);
    free(t->bell);
    free(t->index);
    free(t);
}

const struct topology *transport_topology(const struct transport *t)
{
    return &t->topo;
}

const char *transport_name(const struct transport *t)
{
    if (t->topo.ranks == 1) return "self";
    if (!t->link) return "shm";
    return t->topo.nodes == t->topo.ranks ? "mpi" : "shm+mpi";
}

/* ---- windows ---- */

static enum status window_map(struct transport *t, struct window *w)
{
    double need = (double)w->stride * t->topo.host_ranks, have = (double)host_memory_available();
    if (agree(t->host_comm, have == 0 || need <= have ? OK : ERR_RESOURCE) != OK) {
        error_clear();
        return error_set(ERR_RESOURCE,
                         "the all-to-all buffers of %d ranks on this host need %.1f MiB (%.1f MiB "
                         "a rank), but %.1f MiB are free: lower ep.max_tokens_per_rank, "
                         "chunk_tokens or recv_rows_factor, or use fewer ranks a host",
                         t->topo.host_ranks, need / 1048576.0, (double)w->stride / 1048576.0,
                         have / 1048576.0);
    }
    int size = t->topo.node_size[t->topo.node];
    size_t bytes = w->stride * (size_t)size;
    void *base = NULL;
    if (size == 1) {
        base = mmap(NULL, w->stride, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED)
            return error_set(ERR_RESOURCE, "cannot map %zu bytes of buffers", w->stride);
    } else {
        TRY(shm_map(t->node_comm, "the all-to-all buffers", false, &bytes, &base));
    }
    w->base = base;
    w->mine = t->topo.rank;
    const int *ranks = t->topo.node_ranks + t->topo.node_first[t->topo.node];
    for (int i = 0; i < size; i++) w->part[ranks[i]] = w->base + (size_t)i * w->stride;
    return OK;
}

static void window_free(struct transport *t, struct window *w)
{
    if (w->base) shm_unmap(w->base, w->stride * (size_t)t->topo.node_size[t->topo.node]);
    free(w->part);
    free(w);
}

enum status transport_window_create(struct transport *t, size_t bytes, int signals,
                                    struct window **out)
{
    int id = 0;
    while (id < TRANSPORT_MAX_WINDOWS && t->window[id]) id++;
    if (id == TRANSPORT_MAX_WINDOWS) return error_set(ERR_BUG, "too many transport windows");
    struct window *w = calloc(1, sizeof *w);
    if (w) w->part = calloc((size_t)t->topo.ranks, sizeof *w->part);
    enum status st = w && w->part ? OK : error_set(ERR_RESOURCE, "out of memory for a window");
    if ((st = agree(t->comm, st)) == OK) {
        w->id = id;
        w->signals = signals;
        w->bytes = bytes;
        w->data_offset = ((size_t)signals * CACHE_LINE + 4095) & ~(size_t)4095;
        w->stride = (w->data_offset + bytes + 4095) & ~(size_t)4095;
        st = agree(t->comm, window_map(t, w));
    }
    if (st != OK) {
        if (w) window_free(t, w);
        return st;
    }
    t->window[id] = w;
    *out = w;
    return OK;
}

void transport_window_destroy(struct transport *t, struct window *w)
{
    if (!w) return;
    /* No late packet may find another window under this id. */
    if (t->link) t->link->drain(t->link);
    t->window[w->id] = NULL;
    window_free(t, w);
}

/* ---- puts and signals ---- */

void *transport_ptr(const struct window *w, int peer)
{
    return w->part[peer] ? w->part[peer] + w->data_offset : NULL;
}

uint64_t transport_signal_value(const struct window *w, int signal)
{
    return atomic_load_explicit(window_signal(w, w->mine, signal), memory_order_acquire);
}

size_t transport_reserve_max(const struct transport *t)
{
    return t->link ? t->link->reserve_max : SIZE_MAX;
}

void *transport_reserve(struct transport *t, struct window *w, int peer, size_t offset,
                        size_t bytes)
{
    if (w->part[peer]) return w->part[peer] + w->data_offset + offset;
    return t->link->reserve(t->link, peer, w->id, offset, bytes);
}

enum status transport_put(struct transport *t, struct window *w, int peer, size_t offset,
                          const void *src, size_t bytes)
{
    const char *from = src;
    size_t most = transport_reserve_max(t);
    while (bytes > 0) {
        size_t n = bytes < most ? bytes : most;
        void *to = transport_reserve(t, w, peer, offset, n);
        if (!to) return error_set(ERR_COMM, "the transport was aborted during a put");
        memcpy(to, from, n);
        from += n;
        offset += n;
        bytes -= n;
    }
    return OK;
}

enum status transport_signal(struct transport *t, struct window *w, int peer, int signal,
                             uint64_t add)
{
    if (!w->part[peer]) return t->link->signal(t->link, peer, w->id, signal, add);
    /* Release: the bytes written before are visible to whoever reads the new value. */
    uint64_t now =
        atomic_fetch_add_explicit(window_signal(w, peer, signal), add, memory_order_release) + add;
    if (peer != w->mine) doorbell_ring(t->bell[peer], 1, watch_key(w, signal), now);
    return OK;
}

void transport_watch(struct transport *t, const struct window *w, int signal, uint64_t value)
{
    if (!t->link) t->watch = (struct watch){watch_key(w, signal), (uint32_t)value};
}

enum status transport_put_signal(struct transport *t, struct window *w, int peer, size_t offset,
                                 const void *src, size_t bytes, int signal, uint64_t add)
{
    TRY(transport_put(t, w, peer, offset, src, bytes));
    return transport_signal(t, w, peer, signal, add);
}

enum status transport_flush(struct transport *t)
{
    return t->link ? t->link->flush(t->link) : OK;
}

/* ---- progress and abort ---- */

void transport_poll(void *transport)
{
    struct transport *t = transport;
    if (t->polling) return; /* a hook that waits for a buffer must not run hooks again */
    t->polling = true;
    if (t->link) t->link->progress(t->link);
    for (int i = 0; i < TRANSPORT_MAX_HOOKS; i++)
        if (t->hook[i].fn) t->hook[i].fn(t->hook[i].arg);
    if (t->link) t->link->flush(t->link);
    t->polling = false;
}

enum status transport_hook(struct transport *t, void (*fn)(void *arg), void *arg)
{
    for (int i = 0; i < TRANSPORT_MAX_HOOKS; i++) {
        bool match = fn ? t->hook[i].fn == NULL : t->hook[i].arg == arg;
        if (!match) continue;
        t->hook[i].fn = fn;
        t->hook[i].arg = fn ? arg : NULL;
        return OK;
    }
    return fn ? error_set(ERR_BUG, "too many transport hooks") : OK;
}

void transport_abort(struct transport *t)
{
    atomic_store(&t->control->aborted, 1);
    for (int r = 0; r < t->topo.ranks; r++)
        if (t->bell[r]) doorbell_ring(t->bell[r], 1u << 30, 0, 0); /* beyond any target */
}

bool transport_aborted(const struct transport *t)
{
    return atomic_load_explicit(&t->control->aborted, memory_order_relaxed) != 0;
}
