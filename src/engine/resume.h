/* resume.h - whether a job goes on where an earlier attempt stopped, and whether it may.
 *
 * A job may go on when it computes the same bits as before: the same checkpoint, token file,
 * numerics, sampling and isa. Everything else of the job file may change between attempts, since
 * results do not depend on it: units, ranks, threads, batches, pages, paths, prices, intervals.
 * The keys that decide bits are marked in config/job.c; what differs is named, key by key, whether
 * it is refused or not. `isa: auto` takes the isa of the journal.
 */
#ifndef ENGINE_RESUME_H
#define ENGINE_RESUME_H

#include "engine/journal.h"
#include "engine/start.h"

/* --resume, or a job that Slurm has requeued. */
bool resume_wanted(const struct job *job);

/* Rank 0, before anything is loaded: refuses what the two job files tell, and settles the isa in
 * e->job. */
enum status resume_peek(struct engine *e);

/* Rank 0: opens the journal in dir to go on with it, or starts one where there is none. Sets
 * e->journal, e->attempt, e->resumed_s. */
enum status resume_open(struct engine *e, const struct journal_job *now, const char *dir);

#endif
