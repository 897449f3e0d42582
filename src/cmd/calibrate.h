/* calibrate.h - what the parts of `moebatch calibrate` share: timing that bears a busy machine,
 * and one function for each group of figures of cluster/host_speed.h.
 *
 * Computation is timed by each thread's own processor time, so that other programs on the cores
 * do not count (what they do to the caches does); of many samples the lower quartile is kept.
 * What waits for others (waking threads, the all-to-all) can only be timed by the clock.
 */
#ifndef CMD_CALIBRATE_H
#define CMD_CALIBRATE_H

#include "cluster/host_cost.h"
#include "cluster/host_speed.h"
#include "device/kernels.h"

#include <mpi.h>

struct calibration {
    struct kernels k;
    int cores;       /* of this process's host */
    int samples;     /* of each figure */
    double sample_s; /* least duration of one */
    bool quick;
    int rank, ranks;               /* of mpirun */
    double spread_sum, spread_max; /* (third quartile - first) / median of the samples */
    int spreads;
    struct host_speed speed; /* the result */
};

enum { CAL_THREADS_MAX = 64 };

/* A kernel call to time: thread t calls fn(arg[t]) again and again. */
struct cal_call {
    void (*fn)(void *arg);
    void *arg[CAL_THREADS_MAX];
};

/* us of a call while `threads` threads do the same, mean over the threads. */
double cal_time(struct calibration *c, const struct cal_call *call, int threads);

/* The quartile of n samples, sorted in place; notes their spread. */
double cal_quartile(struct calibration *c, double *samples, int n);

/* Threads busy in enum speed_cores. */
int cal_threads(const struct calibration *c, enum speed_cores cores);

/* Each fills its part of c->speed. Rank 0 alone but for the last two, which are collective over
 * MPI_COMM_WORLD. */
enum status cal_products(struct calibration *c);                  /* calibrate_gemm.c */
enum status cal_rows(struct calibration *c);                      /* calibrate_rows.c */
enum status cal_attention(struct calibration *c);                 /* calibrate_attention.c */
enum status cal_all_to_all(struct calibration *c, MPI_Comm comm); /* calibrate_ep.c */
enum status cal_engine(struct calibration *c);                    /* calibrate_engine.c */

/* A lane of `threads` threads with somebody to serve, as the engine's have: kernels look at the
 * clock for it. */
void cal_lane(struct lane *lane, int threads);

/* Random numbers around 0, [n]; the caller frees them. */
float *cal_numbers(size_t n);

#endif
