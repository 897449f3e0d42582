/* binding.h - which rank runs on which node, CPUs and GPU, near which NIC, and whether that makes
 * sense.
 *
 * Reported once at the start: a table (hosts that look alike share a line) and a warning for each
 * kind of bad binding of a host. Nothing is changed: binding is the launcher's work. The first rank
 * of a host reads its topology (hwloc); the others only send their CPU mask and the GPUs that they were
 * given (CUDA_VISIBLE_DEVICES). Where a host has neither GPU nor NIC to be seen, the table says so.
 */
#ifndef ENGINE_BINDING_H
#define ENGINE_BINDING_H

#include "engine/node.h"

#include <hwloc.h>
#include <stdint.h>

enum { BINDING_WORDS = 16, BINDING_TEXT = 1024 }; /* 1024 CPUs */

/* One rank of a host. */
struct binding_rank {
    uint64_t cpus[BINDING_WORDS]; /* CPUs it may run on, by the system's numbers */
    int32_t world_rank;
    int32_t threads; /* OpenMP threads that its kernels use */
    char gpus[32];   /* "2" or "0,1,2,3", "" when none were given */
};

/* What is to be said about a host; plain data. */
struct binding_host {
    char host[64];
    int32_t ranks, first;        /* how many, lowest rank of the job */
    int32_t no_gpu, no_nic;      /* no rank was given a GPU; the topology shows no NIC */
    char table[BINDING_TEXT];    /* "0: cpus 0-3, gpu 0, nic mlx5_0; 1: cpus 4-7, ...", ranks
                                     numbered on the host */
    char warnings[BINDING_TEXT]; /* lines, "" when all is well */
};

/* Fills ranks, first, table and warnings. ranks[n] in the order of the host; the topology is
 * loaded. */
void binding_describe(hwloc_topology_t topology, const struct binding_rank *ranks, int n,
                      struct binding_host *out);

/* The conflict of OMP_NUM_THREADS and OMP_THREAD_LIMIT (their values, NULL: unset) with
 * threads_per_rank as a warning, "" if there is none. */
void binding_check_omp(const char *num_threads, const char *limit, int threads, char *text,
                       size_t bytes);

/* Collective over the host: CPUs that its ranks may use together, however they are bound. */
int binding_host_cpus(const struct node *node);

/* Collective over world: rank 0 prints table and warnings. threads: this rank's. */
enum status binding_report(MPI_Comm world, const struct node *node, int threads);

#endif
