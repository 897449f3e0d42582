/* trace.h - what ran when: a bounded buffer of events per rank, and the writer of the Chrome /
 * Perfetto JSON file that merges the ranks' buffers.
 *
 * Filled by schedule/runner.h (wall clock) and schedule/list_sim.h (modelled times); the same
 * file either way: one process (pid) per rank, one track per micro-batch and lane. Events are
 * plain bytes, so that a caller may send them between ranks. The writer is the only I/O in this
 * folder.
 *
 * Ownership: the caller owns the event memory that it gives to trace_buf_init.
 */
#ifndef SCHEDULE_TRACE_H
#define SCHEDULE_TRACE_H

#include "core/status.h"
#include "schedule/schedule.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct trace_event {
    double t0, t1; /* seconds; the origin is the same on all ranks of a file */
    int32_t layer; /* as struct op */
    uint8_t stage; /* enum stage */
    uint8_t mb;
    uint8_t lane; /* enum op_lane */
    uint8_t pad;
};

struct trace_buf {
    struct trace_event *events; /* [cap], borrowed */
    size_t n, cap;
    size_t dropped; /* events that came when the buffer was full */
};

void trace_buf_init(struct trace_buf *buf, struct trace_event *events, size_t cap);

static inline void trace_add(struct trace_buf *buf, const struct op *op, double t0, double t1)
{
    if (buf->n == buf->cap) {
        buf->dropped++;
        return;
    }
    buf->events[buf->n++] = (struct trace_event){.t0 = t0,
                                                 .t1 = t1,
                                                 .layer = op->layer,
                                                 .stage = (uint8_t)op->stage,
                                                 .mb = (uint8_t)op->mb,
                                                 .lane = (uint8_t)op->lane};
}

/* One rank's events for the writer; nothing is kept after the call. */
struct trace_rank {
    int rank;         /* pid in the file */
    const char *name; /* shown as the process name: "prefill0 rank 3"; may be NULL */
    const struct trace_event *events;
    size_t n;
};

/* A file is open, ranks in any order, close: each rank's events can be dropped once written.
 * Errors: ERR_RESOURCE, naming the path, when writing fails (reported by close at the latest). */
struct trace_writer {
    FILE *file;
    char path[512];
    size_t written; /* records so far */
};
enum status trace_open(struct trace_writer *w, const char *path);
enum status trace_write_rank(struct trace_writer *w, const struct trace_rank *rank);
enum status trace_close(struct trace_writer *w);

/* The three in one call. */
enum status trace_write(const char *path, const struct trace_rank *ranks, int n_ranks);

#endif
