/* journal_state.h - what the journal keeps in memory, shared by its files: journal.c appends,
 * journal_scan.c reads back, journal_build.c makes the results file. Private to the journal.
 */
#ifndef ENGINE_JOURNAL_STATE_H
#define ENGINE_JOURNAL_STATE_H

#include "engine/journal.h"
#include "engine/journal_segment.h"

enum { JOURNAL_FORMAT = 2, JOURNAL_STEP_BATCH = 64 };

enum record_type {
    RECORD_HEADER = 1,
    RECORD_ATTEMPT_BEGIN,
    RECORD_ATTEMPT_END,
    RECORD_MARK,
    RECORD_REQUEST,
    RECORD_STEPS,
    RECORD_RANKS,
    RECORD_EXPERT_LOAD,
    RECORD_PLACEMENT,
    RECORD_LINKS
};

/* A sign of life. */
struct mark {
    double t;
    int64_t prefill_tokens, decode_tokens; /* computed by this attempt so far */
};

/* A request's record: this, custom_id, error (each with its NUL), zeros up to a multiple of four,
 * then tokens, logprobs, prompt_logprobs as far as there are any. */
struct request_head {
    int64_t index;
    double t_arrival, t_prefill_start, t_first_token, t_finish;
    int32_t status, finish, prompt_tokens, cached_tokens, output_tokens;
    int32_t prefill_rank, decode_rank;
    uint32_t flags;
    int32_t cached_tokens_disk, reserved;
};
enum { HAS_LOGPROBS = 1, HAS_PROMPT_LOGPROBS = 2 };

/* Before the rows of a STEPS, RANKS, EXPERT_LOAD (layers, experts) or PLACEMENT record. */
struct rows_head {
    int32_t kind; /* enum step_kind; layers */
    int32_t n;    /* rows; experts */
};

struct attempt_state {
    struct attempt_row row;
    bool ended;
    struct mark last;                  /* latest sign of life */
    int64_t prefill_kept, decode_kept; /* tokens of the requests it finished */
    segment_place ranks;               /* its latest RANKS record */
};

struct journal {
    char *dir;
    bool writing;
    struct segment_writer writer;
    struct segment_reader reader;
    struct payload payload; /* of the record being written */
    struct payload header;  /* RECORD_HEADER of the job, written into each segment */
    uint32_t id;            /* the journal's own number */
    uint64_t model, tokens, settings;
    int64_t requests;
    bool have_header;
    segment_place *place; /* [requests] */
    int64_t finished, duplicates;
    int64_t damaged;               /* bytes that a read found to be no record */
    int32_t id_bytes, error_bytes; /* longest so far */
    bool logprobs, prompt_logprobs;
    struct attempt_state *attempts;
    int n_attempts, attempts_room;
    int layers, experts;             /* of the two below, 0 before the first load */
    int64_t *load_before, *load_now; /* [layers * experts]: earlier attempts, this one */
    struct step_row steps[2][JOURNAL_STEP_BATCH]; /* not yet written */
    int n_steps[2];
    double sync_s, last_sync, last_mark, last_t;
};

/* The effect of a record on the state, from memory (append) or from the file (scan). */
enum status journal_apply_header(struct journal *j, const struct journal_job *job);
enum status journal_apply_attempt(struct journal *j, const struct attempt_row *row);
void journal_apply_end(struct journal *j, const struct attempt_row *row);
void journal_apply_mark(struct journal *j, const struct mark *mark);
void journal_apply_request(struct journal *j, const struct request_row *row, segment_place place);
enum status journal_apply_load(struct journal *j, int layers, int experts, const void *rows);
/* The running attempt; NULL before the first. */
struct attempt_state *journal_attempt(struct journal *j);

/* Decodes a HEADER payload; its strings go into it. ERR_INPUT: another version wrote it. */
enum status journal_decode_header(const char *dir, const struct record *record, uint32_t *id,
                                  struct journal_job *job);
/* Decodes a REQUEST payload; the row's pointers go into it. false: it does not add up. */
bool journal_decode_request(const struct record *record, struct request_row *row);
/* Reads every segment into the state. */
enum status journal_scan(struct journal *j, struct journal_report *report, int *next_segment);
/* The same for a journal that nothing has been written to but a torn start. */
enum status journal_scan_torn(struct journal *j, struct journal_report *report, int *next_segment);
/* Writes buffered steps out to the segment. */
enum status journal_write_out(struct journal *j);

#endif
