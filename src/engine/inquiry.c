/* inquiry.c - see inquiry.h. Runs on main threads, inside polls. */
#include "engine/inquiry.h"

#include "core/clock.h"
#include "core/log.h"
#include "engine/rank.h"
#include "engine/router.h"
#include "engine/watch.h"

#include <stdlib.h>
#include <string.h>

static void mark_unit(const struct rank *r, const uint8_t *marks, uint8_t *bits)
{
    int first = r->world_rank - r->local, n = r->cfg->ep; /* units fill the ranks in order */
    for (int i = 0; i < n; i++)
        if (marks[i]) bits[(first + i) / 8] |= (uint8_t)(1u << (first + i) % 8);
}

/* Whom this rank waits for, into `bits` and its slot. */
static const char *awaited_now(struct rank *r, const struct watch_report *own, uint8_t *bits)
{
    const char *what = "";
    uint8_t *marks = calloc((size_t)r->cfg->ep, 1);
    if (!marks) return what;
    switch ((enum watch_wait)own->wait) {
    case WATCH_ROWS:
        if (r->ep) what = ep_awaited(r->ep, own->mb, marks);
        break;
    case WATCH_REPORTS:
        what = "report of the last step";
        tick_awaited(r->tick, marks);
        break;
    case WATCH_WORD:
        what = "word on the next step";
        tick_awaited(r->tick, marks);
        break;
    case WATCH_LAST:
        what = "results file";
        bits[0] |= 1;
        break;
    case WATCH_FIGURES:
        what = "closing figures";
        if (r->router) router_awaited(r->router, bits);
        break;
    default: break;
    }
    mark_unit(r, marks, bits);
    free(marks);
    return what;
}

/* This rank's own report, also left in its slot for the watchdog's threads. */
static void fill_own(struct rank *r, struct watch_report *out)
{
    size_t set = (size_t)(r->world_size + 7) / 8;
    watch_read(watch_host_rank(), out);
    memset(out->awaited, 0, set);
    const char *what = awaited_now(r, out, out->awaited);
    watch_set_awaited(out->awaited, what);
    memset(out->what, 0, sizeof out->what);
    strncpy(out->what, what, sizeof out->what - 1);
    out->known = KNOWN_ALIVE;
    out->silent_s = 0;
}

static enum status answer(struct rank *r)
{
    struct watch_report *report = malloc(watch_report_bytes());
    if (!report) return error_set(ERR_RESOURCE, "no memory for a report of this rank");
    struct ctl_part part = {report, watch_report_bytes()};
    fill_own(r, report);
    enum status st = ctl_send(r->ctl, 0, CTL_STATE, &part, 1);
    for (int i = 0; i < watch_host_ranks() && st == OK; i++) {
        watch_read(i, report);
        if (i == watch_host_rank() || report->silent_s == 0) continue;
        report->known = KNOWN_SILENT; /* unless it answers itself */
        st = ctl_send(r->ctl, 0, CTL_STATE, &part, 1);
    }
    free(report);
    return st;
}

/* ---- rank 0 ---------------------------------------------------------------------------------- */

static struct watch_report *report_at(const struct inquiry *q, int rank)
{
    return (void *)(q->reports + (size_t)rank * watch_report_bytes());
}

static enum status ask(struct rank *r)
{
    struct inquiry *q = &r->inquiry;
    if (q->asking || clock_now_s() < q->next_s) return OK;
    q->reports = calloc((size_t)r->world_size, watch_report_bytes());
    if (!q->reports) return error_set(ERR_RESOURCE, "no memory to ask %d ranks", r->world_size);
    q->asking = true;
    q->answers = 0;
    q->deadline_s = clock_now_s() + watch_patience_s();
    for (int i = 0; i < r->world_size; i++) {
        report_at(q, i)->rank = i;
        report_at(q, i)->known = KNOWN_SILENT;
        report_at(q, i)->process = '?';
        TRY(ctl_send(r->ctl, i, CTL_ASK, 0, 0));
    }
    return OK;
}

static void take_report(struct rank *r, const void *data, size_t bytes)
{
    struct inquiry *q = &r->inquiry;
    const struct watch_report *in = data;
    if (!q->asking || bytes != watch_report_bytes() || in->rank < 0 || in->rank >= r->world_size)
        return;
    struct watch_report *known = report_at(q, in->rank);
    if (known->known == KNOWN_ALIVE) return;
    memcpy(known, in, bytes);
    q->answers += in->known == KNOWN_ALIVE;
}

/* Somebody has waited for so long, or rank 0 has heard of nothing. */
static bool still_stuck(const struct rank *r)
{
    for (int i = 0; i < r->world_size; i++) {
        const struct watch_report *w = report_at(&r->inquiry, i);
        if (w->known != KNOWN_ALIVE) return true;
        if (w->wait == WATCH_ROWS || w->wait == WATCH_REPORTS || w->wait == WATCH_FIGURES)
            if (w->quiet_s >= watch_limit_s()) return true;
    }
    return report_at(&r->inquiry, 0)->quiet_s >= watch_limit_s();
}

static bool silent_host(const struct rank *r, const struct watch_name *names, int root)
{
    for (int i = 0; root >= 0 && i < r->world_size; i++)
        if (report_at(&r->inquiry, i)->known == KNOWN_ALIVE &&
            strcmp(names[i].host, names[root].host) == 0)
            return false;
    return root >= 0;
}

static enum status judge(struct rank *r)
{
    struct inquiry *q = &r->inquiry;
    enum status st = OK;
    struct verdict *v = malloc(sizeof *v);
    struct watch_name *names = malloc((size_t)r->world_size * sizeof *names);
    bool late = clock_now_s() > q->deadline_s + watch_limit_s() / 2; /* itself stopped meanwhile */
    if (v && names && !late && !watch_said() && still_stuck(r)) {
        for (int i = 0; i < r->world_size; i++) watch_name(i, &names[i]);
        verdict_find(q->reports, watch_report_bytes(), names, r->world_size, watch_limit_s(), v);
        q->lost_host = silent_host(r, names, v->rank);
        if (v->answers)
            log_warn("%s; it answers, so the job goes on", v->text);
        else
            st = error_set(ERR_COMM, "%s. What has finished is kept; continue with --resume",
                           v->text);
    }
    free(v);
    free(names);
    free(q->reports);
    q->reports = 0;
    q->asking = false;
    q->judged = st != OK;
    q->next_s = clock_now_s() + watch_limit_s();
    return st;
}

/* ---- all ranks ------------------------------------------------------------------------------- */

enum status inquiry_poll(struct rank *r)
{
    struct inquiry *q = &r->inquiry;
    bool alarm = watch_alarm();
    if (!alarm) q->told = false;
    if (alarm && !q->told) {
        q->told = true;
        struct watch_report *own = malloc(watch_report_bytes());
        if (own) fill_own(r, own);
        free(own);
        TRY(ctl_send(r->ctl, 0, CTL_STUCK, 0, 0));
    }
    if (!q->asking) return OK;
    if (q->answers < r->world_size && clock_now_s() < q->deadline_s) return OK;
    return judge(r);
}

void inquiry_message(struct rank *r, enum ctl_kind kind, const void *data, size_t bytes)
{
    enum status st = OK;
    if (kind == CTL_STUCK) st = ask(r);
    if (kind == CTL_ASK) st = answer(r);
    if (kind == CTL_STATE) take_report(r, data, bytes);
    if (st != OK && r->failed == OK) r->failed = st;
}
