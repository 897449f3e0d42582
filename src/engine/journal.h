/* journal.h - what a job has done so far, appended to NAME.journal/ as it happens, and the results
 * file built from it.
 *
 * Rank 0 owns the journal. Records are appended in completion order to segment files
 * (000000.seg, 000001.seg, ...), each with its length and a CRC-32C; an attempt always starts
 * a new segment, so nothing is ever written behind a torn tail. journal_flush hands what has been
 * appended to the system: from then on it survives the end of the process, however sudden. It reaches
 * the disk on an interval (journal_tick) and at the end: what a crash of the host can take is no more
 * than that interval.
 *
 * Reading takes every good record there is: bytes that are none (a torn tail, flipped bits) and
 * segments that are missing are counted and passed over, and the requests in them are computed
 * again. A record counts only in the journal that wrote it (journal_segment.h).
 *
 * The results file can be built at any moment, also while requests finish. It is written under
 * another name, closed, synced and renamed: whoever opens NAME.h5 sees a whole file, an older or the
 * newer one, never one that is being written, and who has it open keeps what they opened. HDF5's
 * file locks are off: a reader never stops the job.
 *
 * Memory: 8 bytes a request (where its record is), whatever the length of its answer. Plain C and
 * POSIX; no MPI.
 */
#ifndef ENGINE_JOURNAL_H
#define ENGINE_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "account/account.h"
#include "account/results.h"
#include "account/summary.h"
#include "core/status.h"

struct journal;

/* What the job is: the first record of every segment. A journal can only be continued by a job that
 * computes the same bits. */
struct journal_job {
    uint64_t model;    /* hash of the checkpoint */
    uint64_t tokens;   /* hash of the token file's bytes */
    uint64_t settings; /* hash of the settings that decide bits: numerics, sampling, isa */
    int64_t requests;  /* of the token file */
    const char *yaml;  /* resolved job */
    const char *isa;
    const char *version; /* program version and git revision */
};

/* The job of an existing journal. Its strings are in `memory`: journal_identity_free. */
struct journal_identity {
    struct journal_job job;
    char *memory;
};

/* What a read found. */
struct journal_report {
    int64_t requests;   /* in the token file, from the header */
    int64_t finished;   /* requests with a record */
    int64_t duplicates; /* records of a request that had one (the first is kept) */
    int64_t attempts;
    int64_t records;
    int64_t dropped_bytes; /* in no good record */
    int missing_segments;  /* gaps in their numbers */
    int64_t bytes;         /* of all segments */
    double last_t;         /* job time of the last record, s; a next attempt starts here */
};

/* DIR of results path NAME.h5 is NAME.journal (malloc'ed; NULL when out of memory). */
char *journal_dir_of(const char *results_path);

/* Starts an empty journal in dir, which is created; with force, an old journal there is removed
 * first, else an existing one is an error. sync_s: seconds between fsyncs. */
enum status journal_create(const char *dir, const struct journal_job *job, bool force,
                           double sync_s, struct journal **out);
/* Whose journal lies in dir; *found = false: none, or one whose start was torn before any request
 * had finished. ERR_INPUT when nothing tells whose it is although there is more in it. */
enum status journal_identify(const char *dir, bool *found, struct journal_identity *out);
void journal_identity_free(struct journal_identity *identity);
/* Reads an existing journal and continues it in a new segment; one that journal_identify does not
 * find begins here. ERR_INPUT when model, tokens, settings or the number of requests differ. report
 * may be NULL. */
enum status journal_resume(const char *dir, const struct journal_job *job, double sync_s,
                           struct journal_report *report, struct journal **out);
/* Reads a journal to look at it or build from it: nothing is written. */
enum status journal_open(const char *dir, struct journal_report *report, struct journal **out);

/* Whether request `index` has its record. */
bool journal_has(const struct journal *j, int64_t index);
int64_t journal_finished(const struct journal *j);

/* Appends. Each copies what it is given. After a failure (disk full) the journal refuses all.
 * The journal numbers the attempts and writes that number into the rows it is given. */
/* Is on the disk when it returns. */
enum status journal_attempt_begin(struct journal *j, const struct attempt_row *attempt);
enum status journal_request(struct journal *j, const struct request_row *row);
enum status journal_step(struct journal *j, enum step_kind kind, const struct step_row *row);
/* All ranks of the job at once; the last call of an attempt counts. */
enum status journal_ranks(struct journal *j, const struct rank_row *rows, size_t n);
/* The whole job's totals of this attempt so far; the last call of an attempt counts.
 * rows[layers * experts], layer-major, dense layers zero. */
enum status journal_expert_load(struct journal *j, int layers, int experts, const int64_t *rows);
/* Calls of one attempt add up (one per unit, or one in all). */
enum status journal_placement(struct journal *j, const struct placement_row *rows, size_t n);
enum status journal_links(struct journal *j, const struct link_row *rows, size_t n);
/* end_utc, outcome, wall_s, gpu_s, tokens computed; the rest of the row is ignored. */
enum status journal_attempt_end(struct journal *j, const struct attempt_row *attempt);

/* Hands what has been appended to the system; syncs it where sync_s is 0. Cheap when there is
 * nothing. */
enum status journal_flush(struct journal *j);
/* Call often, t = seconds since the job's start. Every second or sync_s, if that is less, writes a
 * sign of life with the tokens that this attempt computed so far; every sync_s fsyncs. */
enum status journal_tick(struct journal *j, double t, int64_t prefill_tokens,
                         int64_t decode_tokens);
/* Writes out and fsyncs now. */
enum status journal_sync(struct journal *j);
/* Syncs and frees; NULL is fine. */
enum status journal_close(struct journal *j);

/* Reads one finished request back; ERR_INPUT when it has no record. Pointers in *row are valid
 * until the next call on j. */
enum status journal_read_request(struct journal *j, int64_t index, struct request_row *row);

/* Calls fn for every finished request in the order they finished. The row is valid during the
 * call. */
enum status journal_each_request(struct journal *j,
                                 enum status (*fn)(void *ctx, const struct request_row *row),
                                 void *ctx);

/* What the results file needs beyond the journal. */
struct journal_build {
    const char *path; /* NAME.h5 */
    bool complete;    /* root attribute status: complete | partial */
    int32_t id_bytes; /* longest custom_id of the token file */
    /* custom_id of a request without record, into buf[RESULTS_ID_MAX + 1]; NULL = "" */
    enum status (*pending_id)(void *ctx, int64_t index, char *buf);
    void *pending_ctx;
    void (*moved)(void);              /* called now and then, for a watchdog; or NULL */
    const struct results_attr *attrs; /* provenance: version, git, argv, yaml, hosts, ... */
    size_t n_attrs;
    struct account_prices prices;
};

/* Builds the results file in token-file order and fills *summary (what the closing table prints).
 * Can be called at any time between appends. Requests without record are `pending`. schema_version
 * and status are written here; all other root attributes come from attrs. */
enum status journal_build_results(struct journal *j, const struct journal_build *build,
                                  struct summary *summary);

#endif
