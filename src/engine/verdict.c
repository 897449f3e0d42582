/* verdict.c - see verdict.h. */
#include "engine/verdict.h"

#include "schedule/schedule.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAMED = 4 }; /* ranks of each kind that a message lists */

/* Whom to accuse: the lower, the sooner. */
enum guilt { GUILT_STOPPED, GUILT_SILENT, GUILT_BUSY, GUILT_UNKNOWN, GUILT_WAITING, GUILT_IDLE };

struct case_file {
    const char *reports;
    size_t bytes;
    const struct watch_name *names;
    int n;
    int *score;    /* [n] ranks that wait for it, directly or not */
    uint8_t *seen; /* [n] scratch */
    int *queue;    /* [n] scratch */
    struct verdict *out;
    size_t used;
};

static const struct watch_report *report_of(const struct case_file *c, int rank)
{
    return (const void *)(c->reports + (size_t)rank * c->bytes);
}

static enum guilt guilt_of(const struct watch_report *r)
{
    if (r->process && strchr("TtXZ", r->process)) return GUILT_STOPPED;
    if (r->known == KNOWN_SILENT) return GUILT_SILENT;
    if (r->known == KNOWN_NOT) return GUILT_UNKNOWN;
    if (r->wait == WATCH_NO) return GUILT_BUSY;
    return r->wait == WATCH_WORK ? GUILT_IDLE : GUILT_WAITING;
}

/* In the start a rank waits for all that have not come as far; else for those it names. */
static bool waits_for(const struct watch_report *r, const struct watch_report *other)
{
    if (r->rank == other->rank || r->known == KNOWN_NOT) return false;
    if (r->wait == WATCH_MEET)
        return other->known == KNOWN_NOT || other->meets < r->meets ||
               (other->known == KNOWN_SILENT && !other->seen);
    return watch_awaits(r, other->rank);
}

static int count_waiting(struct case_file *c, int root)
{
    int head = 0, tail = 0;
    memset(c->seen, 0, (size_t)c->n);
    c->seen[root] = 1;
    c->queue[tail++] = root;
    while (head < tail) {
        const struct watch_report *to = report_of(c, c->queue[head++]);
        for (int i = 0; i < c->n; i++) {
            if (c->seen[i] || !waits_for(report_of(c, i), to)) continue;
            c->seen[i] = 1;
            c->queue[tail++] = i;
        }
    }
    return tail - 1;
}

static __attribute__((format(printf, 2, 3))) void add(struct case_file *c, const char *fmt, ...)
{
    size_t room = sizeof c->out->text - c->used;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(c->out->text + c->used, room, fmt, ap);
    va_end(ap);
    if (n > 0) c->used += (size_t)n < room ? (size_t)n : room - 1;
}

/* "rank 3 on host (decode0, decode step 12, layer 2, COMBINE)" */
static void add_rank(struct case_file *c, const struct watch_report *r)
{
    static const char *const phases[WATCH_PHASES] = {"start",          "start: job and model",
                                                     "start: units",   "start: sizes",
                                                     "start: weights", "start: model",
                                                     "start: files",   "",
                                                     "results",        "leaving"};
    add(c, "rank %d on %s (", r->rank, c->names[r->rank].host);
    if (c->names[r->rank].unit[0]) add(c, "%s, ", c->names[r->rank].unit);
    if (r->known == KNOWN_NOT || !r->seen) {
        add(c, "step and op unknown)");
    } else if (r->phase != WATCH_SERVE) {
        add(c, "%s)", phases[r->phase]);
    } else if (r->kind < 0) {
        add(c, "no step yet)");
    } else {
        add(c, "%s step %lld", r->kind ? "decode" : "prefill", (long long)r->step);
        if (r->stage >= 0)
            add(c, ", layer %d, %s)", r->layer, stage_name((enum stage)r->stage));
        else
            add(c, ", between steps)");
    }
}

static const char *condition(const struct watch_report *r)
{
    if (r->process == 'T' || r->process == 't') return "its process is stopped";
    if (r->process == 'X' || r->process == 'Z') return "its process is gone";
    if (r->process == 'D') return "its process hangs in the kernel (disk, network file system)";
    if (r->known == KNOWN_SILENT) return "it does not answer";
    if (r->known == KNOWN_NOT) return "nothing is known of it here";
    if (r->wait == WATCH_NO) return "it computes, reads or writes";
    return "it waits itself";
}

static void add_waiting(struct case_file *c, int root)
{
    int listed = 0, direct = 0;
    for (int i = 0; i < c->n; i++) direct += waits_for(report_of(c, i), report_of(c, root));
    if (direct == 0) return;
    for (int i = 0; i < c->n && listed < NAMED; i++) {
        const struct watch_report *r = report_of(c, i);
        if (!waits_for(r, report_of(c, root))) continue;
        add(c, "%s", listed++ ? "; " : ". Waiting: ");
        add_rank(c, r);
        if (r->what[0]) add(c, " for its %s", r->what);
    }
    if (direct > listed) add(c, "; and %d more", direct - listed);
}

/* The others that are as guilty: a whole host may be gone. */
static void add_others(struct case_file *c, int root, enum guilt guilt)
{
    int listed = 0, others = 0;
    if (guilt > GUILT_BUSY) return;
    for (int i = 0; i < c->n; i++) {
        const struct watch_report *r = report_of(c, i);
        if (i == root || guilt_of(r) != guilt || (guilt == GUILT_BUSY && c->score[i] == 0))
            continue;
        if (++others > NAMED) continue;
        add(c, "%s%d on %s", listed++ ? ", " : ". The same holds for rank ", i, c->names[i].host);
    }
    if (others > listed) add(c, " and %d more", others - listed);
}

static int find_root(struct case_file *c)
{
    int root = -1;
    for (int i = 0; i < c->n; i++) {
        enum guilt g = guilt_of(report_of(c, i));
        c->score[i] = count_waiting(c, i);
        if (g == GUILT_IDLE || (g > GUILT_SILENT && c->score[i] == 0)) continue;
        enum guilt best = root < 0 ? GUILT_IDLE : guilt_of(report_of(c, root));
        if (root < 0 || g < best || (g == best && c->score[i] > c->score[root])) root = i;
    }
    return root;
}

void verdict_find(const void *reports, size_t bytes, const struct watch_name *names, int n,
                  double limit_s, struct verdict *out)
{
    memset(out, 0, sizeof *out);
    struct case_file c = {.reports = reports, .bytes = bytes, .names = names, .n = n, .out = out};
    c.score = calloc((size_t)n, sizeof *c.score);
    c.seen = calloc((size_t)n, 1);
    c.queue = calloc((size_t)n, sizeof *c.queue);
    out->rank = -1;
    add(&c, "watchdog: no progress for %g s: ", limit_s);
    int root = c.score && c.seen && c.queue ? find_root(&c) : -1;
    if (root < 0) {
        add(&c, "requests are under way, but every rank is idle");
    } else {
        const struct watch_report *r = report_of(&c, root);
        enum guilt g = guilt_of(r);
        out->rank = root;
        out->waiting = c.score[root];
        out->answers = g == GUILT_BUSY;
        if (out->waiting > 0)
            add(&c, "%d rank%s for ", out->waiting, out->waiting == 1 ? " waits" : "s wait");
        add_rank(&c, r);
        add(&c, ", %s", condition(r));
        if (r->silent_s > 0) add(&c, ", no sign of it for %.1f s", (double)r->silent_s);
        add_others(&c, root, g);
        add_waiting(&c, root);
    }
    free(c.score);
    free(c.seen);
    free(c.queue);
}
