/* watch.h - what every rank of a host is doing, and a thread that notices when nothing goes on.
 *
 * Each rank publishes in memory that the ranks of its host share: the phase of the job, the step,
 * layer and stage, what it waits for. Publishing is a few plain stores; nothing is locked, and
 * nobody reads until something is wrong.
 *
 * A thread in every process looks at the host's ranks a few times within `limit_s`. It raises the
 * alarm when a rank has waited for others for limit_s without getting on, when a rank that should
 * be computing or polling has given no sign for so long, or when the job has requests under way but
 * rank 0 heard nothing. What happens then (inquiry.h): ranks that still poll tell rank 0, which
 * asks all ranks what they wait for, names the one that everybody waits for and ends the job. If
 * that does not happen, because rank 0 or MPI itself is stuck, the thread of one rank of each host
 * prints the same about its host, and all of them leave with exit code 5.
 *
 * (Listed global: the slot of this process; publishing is called from everywhere. Without
 * watch_create all calls do nothing.)
 */
#ifndef ENGINE_WATCH_H
#define ENGINE_WATCH_H

#include "core/status.h"
#include "engine/node.h"
#include "engine/verdict.h"
#include "schedule/schedule.h"

#include <stdbool.h>
#include <stdint.h>

/* Collective over the host. limit_s 0: no thread, nobody is ever accused. */
enum status watch_create(const struct node *n, int world_rank, int world_size, double limit_s);
/* Collective over the world: unit and host of every rank, for messages. */
enum status watch_names(MPI_Comm world, const char *unit, const char *host);
void watch_destroy(void);

/* ---- publishing; by the main thread ---- */

void watch_phase(enum watch_phase phase);
void watch_step(int kind, int64_t step); /* 0 prefill, 1 decode */
/* An op begins, or is waited for (struct runner's note). */
void watch_op(void *unused, const struct op *op, bool waiting);
/* A wait begins (or ends: WATCH_NO). */
void watch_wait(enum watch_wait wait);
void watch_move(void); /* something got done */
void watch_beat(void); /* still polling */
/* Rank 0: requests are under way, so somebody must get on. */
void watch_owes(bool owes);
/* A place where a test may hold this rank: with MOEBATCH_TEST_HOLD=NAME:RANK in the environment
 * that rank says so and sleeps there until SIGUSR1 or SIGTERM. */
void watch_point(const char *name);

/* ---- the alarm ---- */

bool watch_alarm(void);
/* A thread of this host has spoken already: its processes are about to end. */
bool watch_said(void);
double watch_limit_s(void);
/* How long ranks have to answer rank 0; the thread leaves more than twice as much to rank 0. */
double watch_patience_s(void);
/* Bytes of a report with its set of ranks. */
size_t watch_report_bytes(void);
/* Which ranks this rank waits for, kept for the thread: [ (world_size + 7) / 8 ] bits. */
void watch_set_awaited(const uint8_t *bits, const char *what);
/* The report of a rank of this host. */
void watch_read(int host_rank, struct watch_report *out);
int watch_host_ranks(void);
int watch_host_rank(void);
void watch_name(int world_rank, struct watch_name *out);

#endif
