/* journal.h - what a job has done so far, appended to NAME.journal/ as it happens, and the results
 * file built from it.
 *
 * Rank 0 owns the journal. Records are appended in completion order to segment files
 * (000000.seg, 000001.seg, ...), each with its length and a CRC-32C; an attempt always starts
 * a new segment, so nothing is ever written behind a torn tail. Written data reaches the disk on
 * an interval (journal_tick) and at the end; a crash loses at most the records since then.
 * Reading stops at a segment's first bad record and says how many bytes it skipped.
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

/* What the job is: the first record of every attempt. A journal can only be continued by
 * a job of the same fingerprint (model, token file, numerics, isa: all that decides bits). */
struct journal_job {
    uint64_t fingerprint;
    int64_t requests;     /* of the token file */
    const char *yaml;     /* resolved job */
    const char *isa;
    const char *version;  /* program version and git revision */
};

/* What a read found. */
struct journal_report {
    uint64_t fingerprint;
    int64_t requests;     /* in the token file, from the header */
    int64_t finished;     /* requests with a record */
    int64_t duplicates;   /* records of a request that had one (the first is kept) */
    int64_t attempts;
    int64_t records;
    int64_t dropped_bytes; /* behind the first bad record of each segment */
    double last_t;         /* job time of the last record, s; a next attempt starts here */
};

/* DIR of results path NAME.h5 is NAME.journal (malloc'ed; NULL when out of memory). */
char *journal_dir_of(const char *results_path);

/* Starts an empty journal in dir, which is created; with force, an old journal there is removed
 * first, else an existing one is an error. sync_s: seconds between fsyncs. */
enum status journal_create(const char *dir, const struct journal_job *job, bool force,
                           double sync_s, struct journal **out);
/* Reads an existing journal and continues it in a new segment. ERR_INPUT when the fingerprint or
 * the number of requests differs. report may be NULL. */
enum status journal_resume(const char *dir, const struct journal_job *job, double sync_s,
                           struct journal_report *report, struct journal **out);
/* Reads a journal to look at it or build from it: nothing is written. */
enum status journal_open(const char *dir, struct journal_report *report, struct journal **out);

/* Whether request `index` has its record. */
bool journal_has(const struct journal *j, int64_t index);
int64_t journal_finished(const struct journal *j);

/* Appends. Each copies what it is given. After a failure (disk full) the journal refuses all.
 * The journal numbers the attempts and writes that number into the rows it is given. */
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
/* end_utc, outcome, wall_s, gpu_s, tokens computed; the rest of the row is ignored. */
enum status journal_attempt_end(struct journal *j, const struct attempt_row *attempt);

/* Call often, t = seconds since the job's start. Every sync_s writes a sign of life with the tokens
 * that this attempt computed so far, and fsyncs. */
enum status journal_tick(struct journal *j, double t, int64_t prefill_tokens,
                         int64_t decode_tokens);
/* Writes out and fsyncs now. */
enum status journal_sync(struct journal *j);
/* Syncs and frees; NULL is fine. */
enum status journal_close(struct journal *j);

/* Reads one finished request back; ERR_INPUT when it has no record. Pointers in *row are valid
 * until the next call on j. */
enum status journal_read_request(struct journal *j, int64_t index, struct request_row *row);

/* What the results file needs beyond the journal. */
struct journal_build {
    const char *path;              /* NAME.h5 */
    bool complete;                 /* root attribute status: complete | partial */
    int32_t id_bytes;              /* longest custom_id of the token file */
    /* custom_id of a request without record, into buf[RESULTS_ID_MAX + 1]; NULL = "" */
    enum status (*pending_id)(void *ctx, int64_t index, char *buf);
    void *pending_ctx;
    void (*moved)(void); /* called now and then, for a watchdog; or NULL */
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
