/* links: core transport */
/* ranks: 1 2 4 8 */
/* test_transport.c - puts of all sizes, order of put and signal, many small messages, waiting
 * without losing a wake-up, poll hooks, and abort, for real and virtual nodes.
 *
 *     mpirun -np 4 test_transport
 */
#include "core/clock.h"
#include "core/rng.h"
#include "transport/transport.h"
#include "transport/wait.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static int rank, ranks;
static const char *running = "";

#define CHECK(ok, ...)                                                          \
    do {                                                                        \
        if (!(ok)) {                                                            \
            fprintf(stderr, "FAILED rank %d %s: ", rank, running);              \
            fprintf(stderr, __VA_ARGS__);                                       \
            fprintf(stderr, " [%s:%d] %s\n", __FILE__, __LINE__, error_text()); \
            MPI_Abort(MPI_COMM_WORLD, 1);                                       \
        }                                                                       \
    } while (0)

static void on_alarm(int sig)
{
    fprintf(stderr, "HUNG (signal %d) rank %d %s\n", sig, rank, running);
    _exit(99);
}

enum { MAX_BYTES = 200000 }; /* more than three packets of the MPI link */

struct pair { /* what one test waits for */
    struct window *w;
    int signal;
    uint64_t want;
};

static unsigned pair_missing(void *arg)
{
    struct pair *p = arg;
    uint64_t have = transport_signal_value(p->w, p->signal);
    CHECK(have <= p->want, "signal %d is %llu, expected %llu", p->signal, (unsigned long long)have,
          (unsigned long long)p->want);
    return (unsigned)(p->want - have);
}

static void wait_for(struct waiter *wt, struct window *w, int signal, uint64_t want)
{
    struct pair p = {w, signal, want};
    CHECK(wait_until(wt, pair_missing, &p) == OK, "wait");
}

static uint8_t byte_at(int from, int to, int round, size_t i)
{
    return (uint8_t)(rng_u64((uint64_t)(from * 1000 + to), (uint64_t)round * 100003 + i / 8) >>
                     (i % 8 * 8));
}

/* Every rank puts to every rank; [round & 1][source][MAX_BYTES]; all sizes around a packet. */
static void test_sizes(struct transport *t, struct waiter *wt)
{
    static const size_t sizes[] = {0, 1, 31, 32, 33, 7424, 65471, 65504, 65505, 131072, MAX_BYTES};
    enum { ROUNDS = (int)(sizeof sizes / sizeof *sizes) };
    struct window *w;
    char *buf = malloc(MAX_BYTES);
    running = "sizes";
    CHECK(transport_window_create(t, (size_t)2 * (size_t)ranks * MAX_BYTES, 2, &w) == OK, "window");
    for (int r = 0; r < ROUNDS; r++) {
        for (int p = 0; p < ranks; p++) {
            for (size_t i = 0; i < sizes[r]; i++) buf[i] = (char)byte_at(rank, p, r, i);
            size_t at = ((size_t)(r & 1) * (size_t)ranks + (size_t)rank) * MAX_BYTES;
            CHECK(transport_put_signal(t, w, p, at, buf, sizes[r], r & 1, 1) == OK, "put");
            memset(buf, 0xee, sizes[r]); /* the source is free at once */
        }
        /* A fast rank may be one round ahead, so rounds alternate between two signals. */
        wait_for(wt, w, r & 1, (uint64_t)(r / 2 + 1) * (uint64_t)ranks);
        const char *own = transport_ptr(w, rank);
        for (int p = 0; p < ranks; p++)
            for (size_t i = 0; i < sizes[r]; i += 1 + sizes[r] / 999)
                CHECK(own[((size_t)(r & 1) * (size_t)ranks + (size_t)p) * MAX_BYTES + i] ==
                          (char)byte_at(p, rank, r, i),
                      "byte %zu of %d, size %zu", i, p, sizes[r]);
    }
    transport_window_destroy(t, w);
    free(buf);
}

/* A counter put before each signal is never older than the signal's value. */
static void test_order(struct transport *t, struct waiter *wt)
{
    enum { N = 3000 };
    struct window *w;
    int to = (rank + 1) % ranks;
    running = "order";
    CHECK(transport_window_create(t, 64, 2, &w) == OK, "window");
    const volatile uint64_t *seen = transport_ptr(w, rank);
    for (uint64_t i = 1; i <= N; i++) {
        CHECK(transport_put_signal(t, w, to, 0, &i, sizeof i, 0, 1) == OK, "put");
        if (i % 64 == 0) transport_poll(t);
        uint64_t signal = transport_signal_value(w, 0), value = *seen;
        CHECK(value >= signal, "signal %llu, value %llu", (unsigned long long)signal,
              (unsigned long long)value);
    }
    CHECK(transport_flush(t) == OK, "flush");
    wait_for(wt, w, 0, N);
    CHECK(*seen == N, "last value");
    transport_window_destroy(t, w);
}

/* A ring of short waits: a lost wake-up shows as a wait of 100 ms (shared memory) each. */
static void test_wakeups(struct transport *t, struct waiter *wt)
{
    enum { TURNS = 60 };
    struct window *w;
    struct rusage before, after;
    running = "wake-ups";
    CHECK(transport_window_create(t, 64, 3, &w) == OK, "window");
    MPI_Barrier(MPI_COMM_WORLD);
    getrusage(RUSAGE_SELF, &before);
    double start = clock_now_s();
    for (int turn = 0; turn < TURNS; turn++) {
        if (rank == 0) CHECK(transport_signal(t, w, (rank + 1) % ranks, 0, 1) == OK, "signal");
        wait_for(wt, w, 0, (uint64_t)turn + 1);
        if (rank != 0) CHECK(transport_signal(t, w, (rank + 1) % ranks, 0, 1) == OK, "signal");
        transport_flush(t);
    }
    double s = clock_now_s() - start;
    getrusage(RUSAGE_SELF, &after);
    if (rank == 0)
        printf("#   token around %d ranks: %.1f us a hop, rank 0 slept %ld times\n", ranks,
               s * 1e6 / (TURNS * ranks), after.ru_nvcsw - before.ru_nvcsw);
    CHECK(s < TURNS * ranks * 0.05, "%.3f s for %d hops: wake-ups are lost", s, TURNS * ranks);
    /* All-to-all: everybody rings everybody, the waiter is woken about once a round. */
    for (int turn = 0; turn < TURNS; turn++) {
        for (int p = 0; p < ranks; p++)
            CHECK(transport_signal(t, w, p, 1 + turn % 2, 1) == OK, "signal");
        wait_for(wt, w, 1 + turn % 2, (uint64_t)(turn / 2 + 1) * (uint64_t)ranks);
    }
    transport_window_destroy(t, w);
}

/* Hooks run in every poll, see arrivals, and may put. Rank 0's bytes travel by hooks alone. */
struct relay {
    struct transport *t;
    struct window *w;
    uint64_t passed;
};

static void relay_hook(void *arg)
{
    struct relay *r = arg;
    uint64_t have = transport_signal_value(r->w, 0);
    for (; r->passed < have; r->passed++)
        if (rank != 0) CHECK(transport_signal(r->t, r->w, (rank + 1) % ranks, 0, 1) == OK, "relay");
}

static void test_hooks(struct transport *t, struct waiter *wt)
{
    struct relay r = {.t = t};
    running = "hooks";
    CHECK(transport_window_create(t, 64, 2, &r.w) == OK, "window");
    CHECK(transport_hook(t, relay_hook, &r) == OK, "hook");
    if (rank == 0)
        for (int i = 0; i < 20; i++)
            CHECK(transport_signal(t, r.w, (rank + 1) % ranks, 0, 1) == OK, "signal");
    wait_for(wt, r.w, 0, 20);
    transport_poll(t); /* the last one may have come after the hook ran */
    transport_poll(t);
    MPI_Barrier(MPI_COMM_WORLD);
    transport_hook(t, NULL, &r);
    transport_window_destroy(t, r.w);
}

/* The control plane's failure and another rank's abort end a wait for what never comes. */
static enum status fail_poll(void *arg)
{
    return ++*(int *)arg > 3 ? ERR_INTERRUPT : OK;
}

static void test_abort(struct transport *t, struct waiter *wt)
{
    struct window *w;
    int calls = 0;
    running = "abort";
    CHECK(transport_window_create(t, 64, 1, &w) == OK, "window");
    struct waiter failing = {.transport = t, .poll = fail_poll, .poll_arg = &calls};
    struct pair p = {w, 0, 1};
    CHECK(wait_until(&failing, pair_missing, &p) == ERR_INTERRUPT, "poll's failure");
    struct waiter alone = {.poll = fail_poll, .poll_arg = &calls};
    CHECK(wait_until(&alone, pair_missing, &p) == ERR_INTERRUPT, "without a transport");
    MPI_Barrier(MPI_COMM_WORLD);
    transport_window_destroy(t, w);
    MPI_Barrier(MPI_COMM_WORLD);
    CHECK(transport_window_create(t, 64, 1, &w) == OK, "window");
    p.w = w;
    double start = clock_now_s();
    if (rank == ranks - 1) {
        clock_sleep_us(20000);
        transport_abort(t);
    }
    CHECK(wait_until(wt, pair_missing, &p) == ERR_COMM, "abort");
    CHECK(clock_now_s() - start < 3, "abort took %.3f s", clock_now_s() - start);
    error_clear();
    transport_window_destroy(t, w);
}

static void run(int ranks_per_node)
{
    struct transport *t = NULL;
    CHECK(transport_create(MPI_COMM_WORLD, ranks_per_node, &t) == OK, "create");
    struct waiter wt = {.transport = t};
    const struct topology *tp = transport_topology(t);
    int nodes = ranks_per_node ? (ranks + ranks_per_node - 1) / ranks_per_node : tp->nodes;
    CHECK(tp->nodes == nodes && tp->rank == rank && tp->ranks == ranks, "topology");
    for (int r = 0; r < ranks; r++)
        CHECK(tp->node_ranks[tp->node_first[tp->node_of[r]] + tp->local_of[r]] == r, "rank %d", r);
    test_sizes(t, &wt);
    test_order(t, &wt);
    test_wakeups(t, &wt);
    test_hooks(t, &wt);
    test_abort(t, &wt);
    if (rank == 0)
        printf("ok  transport %-7s %d ranks, %d a node: sizes order wake-ups hooks abort\n",
               transport_name(t), ranks, ranks_per_node);
    fflush(stdout);
    transport_destroy(t);
}

/* A window beyond the host's memory is refused on every rank, with numbers. */
static void test_too_large(void)
{
    struct transport *t = NULL;
    struct window *w = NULL;
    running = "too large";
    CHECK(transport_create(MPI_COMM_WORLD, 0, &t) == OK, "create");
    CHECK(transport_window_create(t, (size_t)1 << 46, 1, &w) == ERR_RESOURCE, "refusal");
    CHECK(strstr(error_text(), "lower ep.max_tokens_per_rank") != NULL, "message");
    if (rank == 0) printf("ok  transport refuses: %.100s ...\n", error_text());
    error_clear();
    transport_destroy(t);
}

int main(int argc, char **argv)
{
    int provided;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    signal(SIGALRM, on_alarm);
    alarm(170);
    for (int n = 0; n < ranks || n == 0; n = n ? n * 2 : 1) run(n);
    test_too_large();
    MPI_Finalize();
    return 0;
}
