/* ctl.h - the control plane: small (and KV-page) messages between any two ranks of the job.
 *
 * Non-blocking throughout: ctl_send copies and returns, ctl_poll completes sends and hands
 * received messages to the handler. Messages between two ranks arrive in the order they were sent.
 * A message to oneself is delivered by the next poll, never inside ctl_send.
 */
#ifndef ENGINE_CTL_H
#define ENGINE_CTL_H

#include "core/status.h"

#include <mpi.h>
#include <stddef.h>
#include <stdint.h>

enum ctl_kind {
    CTL_REQUEST, /* router -> prefill rank: struct wire_request, tokens */
    CTL_KV,      /* prefill -> decode rank: struct wire_kv, pages of one layer */
    CTL_START,   /* prefill -> decode rank: struct wire_start, ... */
    CTL_FIRST,   /* prefill rank -> router: ticket; the prompt is computed */
    CTL_DONE,    /* last rank -> router: struct wire_done, ... */
    CTL_STEP,    /* unit leader -> router: struct step_row */
    CTL_STOP,    /* router -> leaders: no more work will come */
    CTL_PLACES,  /* unit leader -> router at the end: struct placement_row, ... */
    CTL_STATS,   /* every rank -> router at the end: struct rank_row, expert load */
    CTL_LINKS,   /* every rank -> router at the end: struct link_row, ... */
    CTL_TRACE,   /* every rank -> router at the end: trace events */
    CTL_ERROR,   /* failing rank -> router: struct wire_error */
    CTL_ABORT,   /* router -> all: unwind */
    CTL_STUCK,   /* any rank -> rank 0: the watchdog's alarm */
    CTL_ASK,     /* rank 0 -> all: what do you wait for? */
    CTL_STATE    /* any rank -> rank 0: struct watch_report */
};

struct ctl_part {
    const void *data;
    size_t bytes;
};

struct ctl;

/* Called by ctl_poll; data is 16-byte aligned and valid during the call. */
typedef void (*ctl_handler)(void *arg, int from, enum ctl_kind kind, const void *data,
                            size_t bytes);

/* Collective over comm (duplicated). */
enum status ctl_create(MPI_Comm comm, ctl_handler handler, void *arg, struct ctl **out);
/* Collective; waits for nothing: outstanding sends are finished by ctl_drain before. */
void ctl_destroy(struct ctl *c);

enum status ctl_send(struct ctl *c, int to, enum ctl_kind kind, const struct ctl_part *part,
                     int parts);
enum status ctl_poll(struct ctl *c);
/* Sends that have not left yet. */
int ctl_outstanding(const struct ctl *c);

#endif
