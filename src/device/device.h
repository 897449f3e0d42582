/* device.h - a rank's memory and its two lanes of work.
 *
 * A tensor lives in device memory; kernels and copies are enqueued on a lane and ordered by
 * events; the host touches a tensor only after lane_sync or through device copies. On the CPU
 * (device/cpu.c) memory is the heap, the compute lane runs inline on the rank's threads (pool.h),
 * events are empty, and the communication lane advances whenever lane_poll is called: kernels
 * call it from thread 0 between tiles, so MPI keeps moving under a long GEMM. On CUDA a lane is
 * a stream.
 *
 * Who owns what: the engine creates one device and its lanes; everybody else borrows them.
 */
#ifndef DEVICE_DEVICE_H
#define DEVICE_DEVICE_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kernels;
struct device;
struct pool;

/* Ordered work of one kind. `threads` kernels may use; `poll` is called with poll_arg at least
 * every 500 us of kernel time by thread 0 (NULL: nobody to serve). */
struct lane {
    struct device *dev;
    void *impl; /* the backend's queue; NULL on the CPU */
    int threads;
    void (*poll)(void *arg);
    void *poll_arg;
    int64_t last_poll_ns;
    struct pool *pool; /* made by lane_run when it is first needed */
    void *scratch;     /* of lane_scratch */
    size_t scratch_bytes;
};

struct event {
    void *impl; /* NULL on the CPU: work is complete when the call returns */
};

/* The leaf interface; cpu.c fills one, a CUDA plug-in another. */
struct device {
    const char *name; /* "cpu", "cuda" */
    void *impl;
    void *(*alloc)(struct device *, size_t bytes); /* 64-byte aligned, zeroed; NULL when full */
    void (*free)(struct device *, void *p);
    enum status (*copy_in)(struct lane *, void *dst, const void *host_src, size_t bytes);
    enum status (*copy_out)(struct lane *, void *host_dst, const void *src, size_t bytes);
    void (*record)(struct lane *, struct event *);
    void (*wait)(struct lane *, const struct event *); /* later work of the lane waits */
    enum status (*sync)(struct lane *);                /* the host waits for the lane */
};

/* The CPU device; static, never freed. */
struct device *device_cpu(void);

/* A lane of dev with its number of threads (CPU); lane_free ends the threads. */
void lane_init(struct lane *lane, struct device *dev, int threads);
void lane_free(struct lane *lane);

/* Calls fn(arg, piece, poll) once for each piece on the lane's threads, in no order, and returns
 * when all are done. poll is the lane where communication may be served (the caller's thread),
 * else NULL: fn passes it to lane_poll between its own pieces of work. The lane is served while
 * the caller waits. One thread calls at a time; fn must not call lane_run. CPU only. */
typedef void lane_fn(void *arg, int piece, struct lane *poll);
void lane_run(struct lane *lane, int pieces, lane_fn *fn, void *arg);

/* lane_run over rows [0, rows), cut into runs of at least `grain` rows: fn gets [first, end). With
 * too little work for two threads all rows are one run on the caller. */
typedef void lane_rows_fn(void *arg, int first, int end, struct lane *poll);
void lane_rows(struct lane *lane, int rows, int grain, lane_rows_fn *fn, void *arg);

/* At least `bytes` of memory, 64-byte aligned, for one call at a time; NULL when there is none. */
void *lane_scratch(struct lane *lane, size_t bytes);

/* Serves communication if 200 us have passed since it was last served. Kernels call this
 * between tiles, with NULL on threads that must not. */
void lane_poll(struct lane *lane);

#endif
