/* lane.c - a CPU lane's threads, its memory for one call, and its polling. */
#include "core/clock.h"
#include "device/device.h"
#include "device/pool.h"

#include <stdlib.h>
#include <string.h>

void lane_init(struct lane *lane, struct device *dev, int threads)
{
    memset(lane, 0, sizeof *lane);
    lane->dev = dev;
    lane->threads = threads > 0 ? threads : 1;
}

void lane_free(struct lane *lane)
{
    pool_free(lane->pool);
    free(lane->scratch);
    lane->pool = NULL;
    lane->scratch = NULL;
    lane->scratch_bytes = 0;
}

void lane_poll(struct lane *lane)
{
    enum { POLL_EVERY_NS = 200000 };
    if (!lane || !lane->poll) return;
    int64_t now = clock_now_ns();
    if (now - lane->last_poll_ns < POLL_EVERY_NS) return;
    lane->last_poll_ns = now;
    lane->poll(lane->poll_arg);
}

void *lane_scratch(struct lane *lane, size_t bytes)
{
    if (lane->scratch_bytes >= bytes) return lane->scratch;
    bytes = (bytes + 4095) / 4096 * 4096;
    free(lane->scratch);
    lane->scratch = aligned_alloc(4096, bytes);
    lane->scratch_bytes = lane->scratch ? bytes : 0;
    return lane->scratch;
}

/* ---- pieces ---- */

struct call {
    struct lane *lane;
    lane_fn *fn;
    void *arg;
    int first;
};

static void call_piece(void *arg, int piece, bool caller)
{
    const struct call *call = arg;
    call->fn(call->arg, call->first + piece, caller ? call->lane : NULL);
}

static void call_poll(void *arg)
{
    lane_poll(arg);
}

/* One thread that cannot be made is no error: the lane goes on with those it has. */
static bool pool_ready(struct lane *lane)
{
    if (lane->threads > 1 && !lane->pool) {
        lane->pool = pool_new(lane->threads);
        if (!lane->pool) lane->threads = 1;
    }
    return lane->pool;
}

void lane_run(struct lane *lane, int pieces, lane_fn *fn, void *arg)
{
    if (pieces <= 1 || lane->threads == 1 || !pool_ready(lane)) {
        for (int i = 0; i < pieces; i++) {
            fn(arg, i, lane);
            lane_poll(lane);
        }
        return;
    }
    struct call call = {lane, fn, arg, 0};
    for (; call.first < pieces; call.first += POOL_PIECES_MAX) {
        int left = pieces - call.first, some = left < POOL_PIECES_MAX ? left : POOL_PIECES_MAX;
        pool_run(lane->pool, some, call_piece, &call, lane->poll ? call_poll : NULL, lane);
    }
}

/* ---- rows ---- */

struct rows_call {
    lane_rows_fn *fn;
    void *arg;
    int rows, pieces;
};

static void rows_piece(void *arg, int piece, struct lane *poll)
{
    const struct rows_call *c = arg;
    int64_t rows = c->rows;
    c->fn(c->arg, (int)(rows * piece / c->pieces), (int)(rows * (piece + 1) / c->pieces), poll);
}

void lane_rows(struct lane *lane, int rows, int grain, lane_rows_fn *fn, void *arg)
{
    enum { PIECES_PER_THREAD = 2 };
    int64_t most = (int64_t)lane->threads * PIECES_PER_THREAD;
    int64_t pieces = rows / (grain > 0 ? grain : 1);
    if (pieces > most) pieces = most;
    if (lane->threads == 1 || pieces < 2) {
        if (rows > 0) fn(arg, 0, rows, lane);
        return;
    }
    struct rows_call call = {fn, arg, rows, (int)pieces};
    lane_run(lane, (int)pieces, rows_piece, &call);
}
