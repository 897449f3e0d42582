/* tick.c - window of a rank: the leader's word, then (used on the leader) a report per rank. */
#include "engine/tick.h"

#include "engine/watch.h"

#include <stdlib.h>
#include <string.h>

enum { SIGNAL_STEP, SIGNAL_REPORT, SIGNAL_WAKE, SIGNALS };
enum { REPORT_AT = 64, REPORT_BYTES = 128, WORD_AT = 0 };

_Static_assert(sizeof(struct tick_report) <= REPORT_BYTES - 16, "a report fits its slot");

struct tick {
    struct waiter *waiter;
    struct window *window;
    int ranks, rank;
    uint64_t rounds; /* reports each rank has sent */
    uint32_t told;   /* work bits the leader knows of me */
    enum tick_kind last;
    struct tick_report *reports; /* [ranks] leader */
    /* of the wait that is going on */
    uint32_t (*work)(void *);
    bool (*stop)(void *);
    void *arg;
    enum status failed;
};

enum status tick_create(struct waiter *waiter, struct tick **out)
{
    const struct topology *topo = transport_topology(waiter->transport);
    struct tick *t = calloc(1, sizeof *t);
    if (!t) return error_set(ERR_RESOURCE, "no memory for the step agreement");
    t->waiter = waiter;
    t->ranks = topo->ranks;
    t->rank = topo->rank;
    t->last = TICK_NONE;
    t->reports = calloc((size_t)t->ranks, sizeof *t->reports);
    size_t bytes = REPORT_AT + (size_t)t->ranks * REPORT_BYTES;
    enum status st = t->reports ? OK : error_set(ERR_RESOURCE, "no memory for step reports");
    if (st == OK) st = transport_window_create(waiter->transport, bytes, SIGNALS, &t->window);
    if (st != OK) {
        free(t->reports);
        free(t);
        return st;
    }
    *out = t;
    return OK;
}

void tick_destroy(struct tick *t)
{
    if (!t) return;
    transport_window_destroy(t->waiter->transport, t->window);
    free(t->reports);
    free(t);
}

static char *own(struct tick *t)
{
    return transport_ptr(t->window, t->rank);
}

/* Tells the leader about work that came after the report. */
static void tell_news(struct tick *t)
{
    uint32_t now = t->work(t->arg);
    if ((now & ~t->told) == 0) return;
    t->told |= now;
    size_t at = REPORT_AT + (size_t)t->rank * REPORT_BYTES + REPORT_BYTES - 8;
    uint64_t word = now;
    enum status st = transport_put_signal(t->waiter->transport, t->window, 0, at, &word,
                                          sizeof word, SIGNAL_WAKE, 1);
    if (st != OK) t->failed = st;
}

static uint32_t all_work(struct tick *t)
{
    uint32_t bits = 0;
    for (int r = 0; r < t->ranks; r++) {
        const char *slot = own(t) + REPORT_AT + (size_t)r * REPORT_BYTES;
        struct tick_report report;
        uint64_t news;
        memcpy(&report, slot, sizeof report);
        memcpy(&news, slot + REPORT_BYTES - 8, sizeof news);
        bits |= report.work | (uint32_t)news;
    }
    return bits;
}

static unsigned missing_reports(void *arg)
{
    struct tick *t = arg;
    uint64_t have = transport_signal_value(t->window, SIGNAL_REPORT);
    uint64_t want = t->rounds * (uint64_t)t->ranks;
    return have >= want ? 0 : (unsigned)(want - have);
}

static unsigned missing_work(void *arg)
{
    struct tick *t = arg;
    if (t->failed != OK) return 0;
    tell_news(t);
    return all_work(t) || t->stop(t->arg) ? 0 : 1;
}

static unsigned missing_word(void *arg)
{
    struct tick *t = arg;
    if (t->failed != OK) return 0;
    if (transport_signal_value(t->window, SIGNAL_STEP) >= t->rounds) return 0;
    tell_news(t);
    return 1;
}

/* A mixed unit takes at least one decode step between two prefill steps while requests decode. */
static enum tick_kind decide(struct tick *t)
{
    uint32_t bits = all_work(t);
    if (!bits) return TICK_STOP;
    bool decode = bits & WORK_DECODE;
    if ((bits & WORK_PREFILL) && !(decode && t->last == TICK_PREFILL)) return TICK_PREFILL;
    return decode ? TICK_DECODE : TICK_PREFILL;
}

static void collect(struct tick *t)
{
    for (int r = 0; r < t->ranks; r++)
        memcpy(&t->reports[r], own(t) + REPORT_AT + (size_t)r * REPORT_BYTES, sizeof t->reports[r]);
}

/* The word of everyone's next step goes out with the last look at the wake bits: they are cleared
 * before, so what comes later stands for the step after. */
static enum status lead(struct tick *t, void (*done)(void *, const struct tick_report *, int))
{
    watch_wait(WATCH_REPORTS);
    TRY(wait_until(t->waiter, missing_reports, t));
    collect(t);
    if (done) done(t->arg, t->reports, t->ranks);
    watch_wait(WATCH_WORK);
    TRY(wait_until(t->waiter, missing_work, t));
    TRY(t->failed);
    uint64_t word = (uint64_t)decide(t);
    for (int r = 0; r < t->ranks; r++)
        memset(own(t) + REPORT_AT + (size_t)r * REPORT_BYTES + REPORT_BYTES - 8, 0, 8);
    for (int r = 0; r < t->ranks; r++)
        TRY(transport_put_signal(t->waiter->transport, t->window, r, WORD_AT, &word, sizeof word,
                                 SIGNAL_STEP, 1));
    return transport_flush(t->waiter->transport);
}

enum status tick_next(struct tick *t, const struct tick_report *report, uint32_t (*work)(void *),
                      bool (*stop)(void *), void (*done)(void *, const struct tick_report *, int),
                      void *arg, enum tick_kind *next)
{
    t->work = work;
    t->stop = stop;
    t->arg = arg;
    t->rounds++;
    t->told = report->work;
    size_t at = REPORT_AT + (size_t)t->rank * REPORT_BYTES;
    struct tick_report mine = *report;
    mine.round = (uint32_t)t->rounds;
    TRY(transport_put_signal(t->waiter->transport, t->window, 0, at, &mine, sizeof mine,
                             SIGNAL_REPORT, 1));
    TRY(transport_flush(t->waiter->transport));
    if (t->rank == 0) TRY(lead(t, done));
    watch_wait(WATCH_WORD);
    TRY(wait_until(t->waiter, missing_word, t));
    watch_wait(WATCH_NO);
    TRY(t->failed);
    uint64_t word;
    memcpy(&word, own(t) + WORD_AT, sizeof word);
    *next = t->last = (enum tick_kind)word;
    return OK;
}

void tick_awaited(const struct tick *t, uint8_t *marks)
{
    const char *own = transport_ptr(t->window, t->rank);
    memset(marks, 0, (size_t)t->ranks);
    if (t->rank != 0) {
        marks[0] = transport_signal_value(t->window, SIGNAL_STEP) < t->rounds;
        return;
    }
    for (int r = 0; r < t->ranks; r++) {
        struct tick_report report;
        memcpy(&report, own + REPORT_AT + (size_t)r * REPORT_BYTES, sizeof report);
        marks[r] = report.round != (uint32_t)t->rounds;
    }
}
