/* journal_scan.c - reads a journal back into the state that its writer had. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/journal_state.h"

bool journal_decode_request(const struct record *record, struct request_row *row)
{
    struct cursor c = {record->payload, record->payload + record->bytes, false};
    struct request_head h;
    cursor_get(&c, &h, sizeof h);
    *row = (struct request_row){
        .index = h.index,
        .status = (enum request_status)h.status,
        .finish = (enum finish_reason)h.finish,
        .prompt_tokens = h.prompt_tokens,
        .cached_tokens = h.cached_tokens,
        .cached_tokens_disk = h.cached_tokens_disk,
        .output_tokens = h.output_tokens,
        .prefill_rank = h.prefill_rank,
        .decode_rank = h.decode_rank,
        .t_arrival = h.t_arrival,
        .t_prefill_start = h.t_prefill_start,
        .t_first_token = h.t_first_token,
        .t_finish = h.t_finish,
    };
    if (c.bad || h.status < REQUEST_PENDING || h.status > REQUEST_FAILED ||
        h.finish < FINISH_NONE || h.finish > FINISH_ERROR || h.prompt_tokens < 0 ||
        h.output_tokens < 0)
        return false;
    row->custom_id = cursor_text(&c);
    row->error = cursor_text(&c);
    cursor_array(&c, (4 - (size_t)(c.at - record->payload) % 4) % 4, 1);
    row->tokens = cursor_array(&c, (size_t)h.output_tokens, sizeof *row->tokens);
    if (h.flags & HAS_LOGPROBS)
        row->logprobs = cursor_array(&c, (size_t)h.output_tokens, sizeof *row->logprobs);
    if (h.flags & HAS_PROMPT_LOGPROBS)
        row->prompt_logprobs = cursor_array(&c, (size_t)h.prompt_tokens, sizeof(float));
    return !c.bad;
}

enum status journal_decode_header(const char *dir, const struct record *record, uint32_t *id,
                                  struct journal_job *job)
{
    static const uint32_t expected[] = {
        JOURNAL_FORMAT,          sizeof(struct request_head), sizeof(struct step_row),
        sizeof(struct rank_row), sizeof(struct attempt_row),  sizeof(struct placement_row)};
    struct cursor c = {record->payload, record->payload + record->bytes, false};
    uint32_t found[sizeof expected / sizeof *expected];
    cursor_get(&c, found, sizeof found);
    if (c.bad || memcmp(found, expected, sizeof found) != 0)
        return error_set(ERR_INPUT,
                         "journal: %s was written by another version of this program (format %u, "
                         "this one reads %d): pass --force to discard it",
                         dir, found[0], JOURNAL_FORMAT);
    cursor_get(&c, id, sizeof *id);
    cursor_get(&c, &job->model, sizeof job->model);
    cursor_get(&c, &job->tokens, sizeof job->tokens);
    cursor_get(&c, &job->settings, sizeof job->settings);
    cursor_get(&c, &job->requests, sizeof job->requests);
    job->yaml = cursor_text(&c);
    job->isa = cursor_text(&c);
    job->version = cursor_text(&c);
    return c.bad ? error_set(ERR_INPUT, "journal: %s: a header makes no sense", dir) : OK;
}

/* A header stands only at the front of a segment. */
static enum status read_header(struct journal *j, const struct record *record)
{
    uint32_t id;
    struct journal_job job;
    if (record->place << 24) return OK;
    TRY(journal_decode_header(j->dir, record, &id, &job));
    if (id != j->id)
        return error_set(ERR_INPUT,
                         "journal: %s/%06d.seg comes from another journal than the segments before "
                         "it: take it away",
                         j->dir, (int)(record->place >> 40));
    return journal_apply_header(j, &job);
}

static enum status read_load(struct journal *j, const struct record *record)
{
    struct cursor c = {record->payload, record->payload + record->bytes, false};
    struct rows_head head;
    cursor_get(&c, &head, sizeof head);
    if (c.bad || head.kind <= 0 || head.n <= 0) return OK;
    const void *rows = cursor_array(&c, (size_t)head.kind * (size_t)head.n, sizeof(int64_t));
    return rows ? journal_apply_load(j, head.kind, head.n, rows) : OK;
}

static enum status read_attempt(struct journal *j, const struct record *record)
{
    struct attempt_row row;
    struct cursor c = {record->payload, record->payload + record->bytes, false};
    cursor_get(&c, &row, sizeof row);
    if (c.bad) return OK;
    if (record->type == RECORD_ATTEMPT_BEGIN) return journal_apply_attempt(j, &row);
    journal_apply_end(j, &row);
    return OK;
}

static enum status apply_record(struct journal *j, const struct record *record)
{
    struct cursor c = {record->payload, record->payload + record->bytes, false};
    struct attempt_state *a = journal_attempt(j);
    struct request_row row;
    struct mark mark;
    switch (record->type) {
    case RECORD_HEADER: return read_header(j, record);
    case RECORD_ATTEMPT_BEGIN:
    case RECORD_ATTEMPT_END: return read_attempt(j, record);
    case RECORD_MARK:
        cursor_get(&c, &mark, sizeof mark);
        if (!c.bad) journal_apply_mark(j, &mark);
        return OK;
    case RECORD_REQUEST:
        if (!journal_decode_request(record, &row) || row.index < 0 || row.index >= j->requests)
            return error_set(ERR_INPUT, "journal: %s: a request's record makes no sense", j->dir);
        journal_apply_request(j, &row, record->place);
        return OK;
    case RECORD_RANKS:
        if (a) a->ranks = record->place;
        return OK;
    case RECORD_EXPERT_LOAD: return read_load(j, record);
    default: return OK; /* steps and placement are read when the results are built */
    }
}

static enum status scan_segment(struct journal *j, int number, struct journal_report *report)
{
    struct segment_reader *r = &j->reader;
    bool more = false;
    TRY(segment_open(r, number, &more));
    while (more) {
        struct record record;
        TRY(segment_next(r, NULL, &record, &more));
        if (!more) break;
        TRY(apply_record(j, &record));
        report->records++;
    }
    report->dropped_bytes += r->bad;
    report->bytes += r->size;
    return OK;
}

/* The first record of a segment, if it is a header that can be read; *size of the segment. */
static enum status first_header(struct segment_reader *r, int number, struct record *record,
                                bool *found)
{
    TRY(segment_open(r, number, found));
    if (*found) TRY(segment_next(r, NULL, record, found));
    *found = *found && record->type == RECORD_HEADER && record->place << 24 == 0;
    return OK;
}

static enum status copy_identity(const char *dir, const struct record *record,
                                 struct journal_identity *out)
{
    uint32_t id;
    struct record copy = *record;
    out->memory = malloc(record->bytes);
    if (!out->memory) return error_set(ERR_RESOURCE, "journal: out of memory");
    memcpy(out->memory, record->payload, record->bytes);
    copy.payload = out->memory;
    enum status st = journal_decode_header(dir, &copy, &id, &out->job);
    if (st != OK) journal_identity_free(out);
    return st;
}

void journal_identity_free(struct journal_identity *identity)
{
    free(identity->memory);
    identity->memory = NULL;
}

/* A start writes its header and its attempt, some kilobytes, and brings them to the disk before it
 * goes on. A journal with no more than that and without a header has lost nothing but a start. */
enum { TORN_START = 16384 };

enum status journal_identify(const char *dir, bool *found, struct journal_identity *out)
{
    struct segment_reader r;
    int *numbers = NULL, n = 0;
    int64_t bytes = 0;
    *found = false;
    segment_reader_init(&r, dir);
    if (access(dir, F_OK) != 0) return OK;
    TRY(segment_list(dir, &numbers, &n));
    enum status st = OK;
    for (int i = 0; i < n && st == OK && !*found; i++) {
        struct record record;
        st = first_header(&r, numbers[i], &record, found);
        if (st == OK && *found) st = copy_identity(dir, &record, out);
        if (r.size > bytes) bytes = r.size;
    }
    if (st == OK && !*found && bytes > TORN_START)
        st = error_set(ERR_INPUT,
                       "journal: %s holds %lld bytes and more, but no header that this version can "
                       "read: its disk may be damaged; start with --force and without --resume "
                       "to discard it",
                       dir, (long long)bytes);
    segment_reader_close(&r);
    free(numbers);
    return st;
}

static int missing(const int *numbers, int n)
{
    return n ? numbers[n - 1] + 1 - n : 0;
}

enum status journal_scan(struct journal *j, struct journal_report *report, int *next_segment)
{
    struct journal_report local = {0};
    int *numbers = NULL, n = 0;
    struct record record;
    bool found = false;
    TRY(segment_list(j->dir, &numbers, &n));
    enum status st = OK;
    for (int i = 0; i < n && st == OK && !found; i++)
        st = first_header(&j->reader, numbers[i], &record, &found);
    if (st == OK && !found)
        st = error_set(ERR_INPUT, "journal: %s holds no readable record", j->dir);
    struct journal_job job;
    if (st == OK) st = journal_decode_header(j->dir, &record, &j->id, &job);
    if (st == OK) st = journal_apply_header(j, &job);
    j->reader.id = j->id;
    for (int i = 0; i < n && st == OK; i++) st = scan_segment(j, numbers[i], &local);
    *next_segment = n ? numbers[n - 1] + 1 : 0;
    local.missing_segments = missing(numbers, n);
    free(numbers);
    if (st != OK) return st;
    j->damaged = local.dropped_bytes;
    local.requests = j->requests;
    local.finished = j->finished;
    local.duplicates = j->duplicates;
    local.attempts = j->n_attempts;
    local.last_t = j->last_t;
    if (report) *report = local;
    return OK;
}

enum status journal_scan_torn(struct journal *j, struct journal_report *report, int *next_segment)
{
    int *numbers = NULL, n = 0;
    TRY(segment_list(j->dir, &numbers, &n));
    *next_segment = n ? numbers[n - 1] + 1 : 0;
    free(numbers);
    if (report) *report = (struct journal_report){0};
    return OK;
}
