/* watch.c - see watch.h. */
#include "engine/watch.h"

#include "core/clock.h"
#include "core/log.h"
#include "engine/interrupt.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE = 64, START_FACTOR = 4, LEAVE_S = 30, LOOKS = 8, STACK_BYTES = 256 * 1024 };

/* Written by its rank alone (awaited and known: by its main thread after an alarm). */
struct slot {
    _Alignas(LINE) _Atomic uint64_t moves;
    _Atomic uint64_t beats;
    _Atomic int64_t step;
    _Atomic int32_t phase, wait, kind, stage, mb, layer, meets;
    _Atomic int32_t owes, rank, pid;
    char what[32];
    _Atomic uint8_t awaited[];
};

/* In front of the slots. */
struct board {
    _Alignas(LINE) _Atomic uint32_t printing; /* a thread prints for this host */
};

/* What this process has seen of a rank of its host. */
struct sight {
    uint64_t moves, beats;
    _Atomic double moved_s, beat_s; /* clock of this process */
};

struct watch {
    struct node_region region;
    struct board *board;
    struct slot *self;
    int host_rank, host_ranks, world_rank, world_size;
    size_t stride, report_bytes;
    double limit_s;
    struct sight *sight; /* [host_ranks] the thread's; quiet times are read by the main thread */
    struct watch_name *names; /* [world_size] */
    const char *hold;         /* place where a test wants this rank to stop, or NULL */
    _Atomic bool alarm;
    pthread_t thread;
    pthread_mutex_t mutex; /* guards stop */
    pthread_cond_t wake;
    bool threaded, stop;
};

static struct watch *watch;

static struct slot *slot_at(const struct watch *w, int host_rank)
{
    return (struct slot *)(void *)((char *)w->board + sizeof *w->board +
                                   (size_t)host_rank * w->stride);
}

/* ---- publishing ----------------------------------------------------------------------------- */

/* One writer: no read-modify-write needed. */
static void count_up(_Atomic uint64_t *n)
{
    atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

#define PUT(field, value) atomic_store_explicit(&watch->self->field, value, memory_order_relaxed)
#define GET(slot, field) atomic_load_explicit(&(slot)->field, memory_order_relaxed)

void watch_move(void)
{
    if (watch) count_up(&watch->self->moves);
}

void watch_beat(void)
{
    if (watch) count_up(&watch->self->beats);
}

void watch_phase(enum watch_phase phase)
{
    if (!watch) return;
    PUT(phase, (int32_t)phase);
    watch_move();
}

void watch_step(int kind, int64_t step)
{
    if (!watch) return;
    PUT(kind, kind);
    PUT(step, step);
    PUT(stage, -1);
    watch_move();
}

void watch_op(void *unused, const struct op *op, bool waiting)
{
    (void)unused;
    if (!watch) return;
    PUT(stage, (int32_t)op->stage);
    PUT(layer, op->layer);
    PUT(mb, op->mb);
    PUT(wait, waiting ? WATCH_ROWS : WATCH_NO);
    watch_move();
}

void watch_wait(enum watch_wait wait)
{
    if (!watch) return;
    if (wait == WATCH_MEET) PUT(meets, GET(watch->self, meets) + 1);
    if (wait == WATCH_WORD || wait == WATCH_REPORTS) PUT(stage, -1);
    PUT(wait, (int32_t)wait);
    watch_move();
}

void watch_owes(bool owes)
{
    if (watch) PUT(owes, owes);
}

void watch_point(const char *name)
{
    if (!watch || !watch->hold || strcmp(name, watch->hold) != 0) return;
    watch->hold = NULL;
    log_warn("MOEBATCH_TEST_HOLD: process %d stops at %s", (int)getpid(), name);
    while (interrupt_check() == OK) clock_sleep_us(1000);
}

/* ---- reading -------------------------------------------------------------------------------- */

/* The state letter of a process; the comm field before it may hold anything, so from its end. */
static char process_state(int pid)
{
    char path[32], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "r");
    if (!f) return 'X';
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    const char *end = strrchr(text, ')');
    return end && end[1] && end[2] ? end[2] : '?';
}

void watch_read(int host_rank, struct watch_report *out)
{
    const struct watch *w = watch;
    struct slot *s = slot_at(w, host_rank);
    double now = clock_now_s();
    memset(out, 0, w->report_bytes);
    out->rank = GET(s, rank);
    out->phase = GET(s, phase);
    out->wait = GET(s, wait);
    out->kind = GET(s, kind);
    out->stage = GET(s, stage);
    out->mb = GET(s, mb);
    out->layer = GET(s, layer);
    out->meets = GET(s, meets);
    out->step = GET(s, step);
    out->seen = 1;
    out->known = KNOWN_ALIVE;
    out->process = process_state(GET(s, pid));
    if (w->sight) {
        const struct sight *seen = &w->sight[host_rank];
        double sign = seen->moved_s > seen->beat_s ? seen->moved_s : seen->beat_s;
        out->quiet_s = (float)(now - seen->moved_s);
        out->silent_s = now - sign >= w->limit_s / 2 ? (float)(now - sign) : 0;
    }
    memcpy(out->what, s->what, sizeof out->what - 1);
    for (int i = 0; i < (w->world_size + 7) / 8; i++) out->awaited[i] = GET(s, awaited[i]);
    /* Only its own process knows whom it waits for, and says so after an alarm; that all wait for
     * their leader, or for rank 0, is known without. */
    if (out->wait == WATCH_LAST) out->awaited[0] |= 1;
    if (strchr("TtXZ", out->process)) out->known = KNOWN_SILENT;
}

int watch_host_ranks(void)
{
    return watch ? watch->host_ranks : 0;
}

int watch_host_rank(void)
{
    return watch ? watch->host_rank : 0;
}

size_t watch_report_bytes(void)
{
    return watch ? watch->report_bytes : 0;
}

bool watch_alarm(void)
{
    return watch && atomic_load_explicit(&watch->alarm, memory_order_relaxed);
}

bool watch_said(void)
{
    return watch && atomic_load(&watch->board->printing);
}

double watch_limit_s(void)
{
    return watch ? watch->limit_s : 0;
}

static double patience(double limit_s)
{
    double s = limit_s / 4;
    return s < 1 ? 1 : s > 10 ? 10 : s;
}

double watch_patience_s(void)
{
    return patience(watch ? watch->limit_s : 0);
}

void watch_set_awaited(const uint8_t *bits, const char *what)
{
    if (!watch) return;
    for (int i = 0; i < (watch->world_size + 7) / 8; i++) PUT(awaited[i], bits[i]);
    snprintf(watch->self->what, sizeof watch->self->what, "%s", what);
}

void watch_name(int world_rank, struct watch_name *out)
{
    *out = watch->names[world_rank];
}

/* ---- the thread ----------------------------------------------------------------------------- */

/* Why a rank of this host would raise the alarm, from how long it has been quiet or silent. */
static bool alarming(const struct watch *w, struct slot *s, double quiet, double silent)
{
    enum watch_wait wait = (enum watch_wait)GET(s, wait);
    /* Rank 0 writes what has finished, then ends the others. */
    if (GET(s, phase) == WATCH_LEAVE) return silent >= w->limit_s + LEAVE_S;
    if (GET(s, owes) && quiet >= w->limit_s) return true;
    switch (wait) {
    case WATCH_ROWS:
    case WATCH_REPORTS:
    case WATCH_FIGURES: return quiet >= w->limit_s;
    case WATCH_MEET: return false; /* by whom it waits for, see all_meet */
    default: return silent >= w->limit_s;
    }
}

static bool look(struct watch *w, double now, bool slept)
{
    bool alarm = false, all_meet = true;
    double last_move = 0;
    for (int i = 0; i < w->host_ranks; i++) {
        struct slot *s = slot_at(w, i);
        struct sight *seen = &w->sight[i];
        uint64_t moves = GET(s, moves), beats = GET(s, beats);
        if (slept || moves != seen->moves) seen->moved_s = now;
        if (slept || beats != seen->beats) seen->beat_s = now;
        seen->moves = moves;
        seen->beats = beats;
        double sign = seen->moved_s > seen->beat_s ? seen->moved_s : seen->beat_s;
        alarm |= alarming(w, s, now - seen->moved_s, now - sign);
        all_meet &= GET(s, wait) == WATCH_MEET;
        if (seen->moved_s > last_move) last_move = seen->moved_s;
    }
    /* Other hosts may take longer to load; much longer is no longer likely. */
    return alarm || (all_meet && now - last_move >= START_FACTOR * w->limit_s);
}

/* The host's own verdict, for when rank 0 cannot tell. */
static void print_host(const struct watch *w)
{
    char *reports = calloc((size_t)w->world_size, w->report_bytes);
    struct verdict *v = malloc(sizeof *v);
    struct watch_report *own = malloc(w->report_bytes);
    if (!reports || !v || !own) return;
    for (int i = 0; i < w->world_size; i++)
        ((struct watch_report *)(void *)(reports + (size_t)i * w->report_bytes))->rank = i;
    for (int i = 0; i < w->host_ranks; i++) {
        watch_read(i, own);
        if (own->silent_s > 0 && own->wait != WATCH_NO && own->wait != WATCH_MEET)
            own->known = KNOWN_SILENT;
        memcpy(reports + (size_t)own->rank * w->report_bytes, own, w->report_bytes);
    }
    verdict_find(reports, w->report_bytes, w->names, w->world_size, w->limit_s, v);
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    fprintf(stderr, "moebatch: seen from %s, rank 0 said nothing: %s\n", host, v->text);
    free(reports);
    free(v);
    free(own);
}

static void end_host(struct watch *w)
{
    if (atomic_exchange(&w->board->printing, 1) == 0) print_host(w);
    clock_sleep_us(1000000); /* other hosts speak, too, before mpirun ends them */
    _exit(ERR_COMM);
}

/* Sleeps for `seconds`; true when the job is over. */
static bool sleep_or_stop(struct watch *w, double seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    int64_t ns = until.tv_nsec + (int64_t)(seconds * 1e9);
    until.tv_sec += ns / 1000000000;
    until.tv_nsec = ns % 1000000000;
    pthread_mutex_lock(&w->mutex);
    int rc = 0;
    while (!w->stop && rc == 0) rc = pthread_cond_timedwait(&w->wake, &w->mutex, &until);
    bool stop = w->stop;
    pthread_mutex_unlock(&w->mutex);
    return stop;
}

static void *thread_main(void *arg)
{
    struct watch *w = arg;
    double period = w->limit_s / LOOKS > 5 ? 5 : w->limit_s / LOOKS, since = 0;
    double last = clock_now_s();
    while (!sleep_or_stop(w, period)) {
        double now = clock_now_s();
        /* A process that was stopped itself has seen nothing meanwhile and accuses nobody. */
        bool alarm = look(w, now, now - last >= w->limit_s / 2 + period);
        last = now;
        if (!alarm) since = 0;
        if (alarm && since == 0) since = now;
        atomic_store_explicit(&w->alarm, alarm, memory_order_relaxed);
        if (alarm && now - since >= 2 * patience(w->limit_s) + 3) end_host(w);
    }
    return NULL;
}

/* Signals are the main thread's. */
static enum status start_thread(struct watch *w)
{
    sigset_t all, before;
    pthread_attr_t attr;
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&w->wake, &clock);
    pthread_condattr_destroy(&clock);
    pthread_mutex_init(&w->mutex, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    w->threaded = pthread_create(&w->thread, &attr, thread_main, w) == 0;
    pthread_attr_destroy(&attr);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return w->threaded ? OK : error_set(ERR_RESOURCE, "cannot start the watchdog's thread");
}

/* ---- start and end -------------------------------------------------------------------------- */

/* "weights:2" -> "weights" if this is rank 2. */
static const char *hold_of(int world_rank)
{
    static char name[32];
    const char *text = getenv("MOEBATCH_TEST_HOLD"), *colon = text ? strchr(text, ':') : NULL;
    if (!colon || atoi(colon + 1) != world_rank) return NULL;
    snprintf(name, sizeof name, "%.*s", (int)(colon - text), text);
    return name;
}

enum status watch_create(const struct node *n, int world_rank, int world_size, double limit_s)
{
    struct watch *w = calloc(1, sizeof *w);
    if (!w) return error_set(ERR_RESOURCE, "no memory for the watchdog");
    size_t set = (size_t)(world_size + 7) / 8;
    w->stride = (sizeof(struct slot) + set + LINE - 1) / LINE * LINE;
    w->report_bytes = (sizeof(struct watch_report) + set + 7) / 8 * 8;
    w->host_rank = n->rank;
    w->host_ranks = n->size;
    w->world_rank = world_rank;
    w->world_size = world_size;
    w->limit_s = limit_s;
    w->hold = hold_of(world_rank);
    w->sight = calloc((size_t)n->size, sizeof *w->sight);
    w->names = calloc((size_t)world_size, sizeof *w->names);
    enum status st = w->sight && w->names ? OK
                                          : error_set(ERR_RESOURCE, "no memory for the "
                                                                    "watchdog");
    st = agree(n->comm, st);
    if (st == OK)
        st = node_share(n, "the ranks' progress",
                        sizeof(struct board) + (size_t)n->size * w->stride, &w->region);
    if (st != OK) return st;
    w->board = w->region.base;
    w->self = slot_at(w, n->rank);
    atomic_store(&w->self->rank, world_rank);
    atomic_store(&w->self->pid, (int32_t)getpid());
    atomic_store(&w->self->kind, -1);
    atomic_store(&w->self->stage, -1);
    double now = clock_now_s();
    for (int i = 0; i < n->size; i++) w->sight[i].moved_s = w->sight[i].beat_s = now;
    for (int i = 0; i < world_size; i++) snprintf(w->names[i].host, 48, "an unknown host");
    MPI_Barrier(n->comm); /* nobody looks at a slot before its rank has filled it */
    watch = w;
    return limit_s > 0 ? start_thread(w) : OK;
}

enum status watch_names(MPI_Comm world, const char *unit, const char *host)
{
    struct watch_name mine;
    if (!watch) return OK;
    memset(&mine, 0, sizeof mine);
    snprintf(mine.unit, sizeof mine.unit, "%s", unit);
    snprintf(mine.host, sizeof mine.host, "%.47s", host);
    MPI_Allgather(&mine, (int)sizeof mine, MPI_BYTE, watch->names, (int)sizeof mine, MPI_BYTE,
                  world);
    return OK;
}

void watch_destroy(void)
{
    struct watch *w = watch;
    if (!w) return;
    if (w->threaded) {
        pthread_mutex_lock(&w->mutex);
        w->stop = true;
        pthread_cond_signal(&w->wake);
        pthread_mutex_unlock(&w->mutex);
        pthread_join(w->thread, NULL);
        pthread_cond_destroy(&w->wake);
        pthread_mutex_destroy(&w->mutex);
    }
    watch = NULL;
    node_unshare(&w->region);
    free(w->sight);
    free(w->names);
    free(w);
}
