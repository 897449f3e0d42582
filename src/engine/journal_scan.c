/* journal_scan.c - reads a journal back into the state that its writer had. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

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
        h.finish < FINISH_NONE || h.finish > FINISH_ERROR || h.prompt_tokens < 0 || h.output_tokens < 0)
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

/* Checks that this program wrote it, and takes the job's identity from it. */
static enum status read_header(struct journal *j, const struct record *record)
{
    static const uint32_t expected[] = {
        JOURNAL_FORMAT,          sizeof(struct request_head), sizeof(struct step_row),
        sizeof(struct rank_row), sizeof(struct attempt_row),  sizeof(struct placement_row)};
    struct cursor c = {record->payload, record->payload + record->bytes, false};
    uint32_t found[sizeof expected / sizeof *expected];
    uint64_t fingerprint;
    int64_t requests;
    cursor_get(&c, found, sizeof found);
    cursor_get(&c, &fingerprint, sizeof fingerprint);
    cursor_get(&c, &requests, sizeof requests);
    if (c.bad || memcmp(found, expected, sizeof found) != 0)
        return error_set(ERR_INPUT,
                         "journal: %s was written by another version of this program (format %u, "
                         "this one reads %d): pass --force to discard it",
                         j->dir, found[0], JOURNAL_FORMAT);
    return journal_apply_header(j, fingerprint, requests);
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

/* A segment without a good header says nothing: it was torn at birth. */
static enum status scan_segment(struct journal *j, int number, struct journal_report *report)
{
    struct segment_reader *r = &j->reader;
    bool more = false, headed = false;
    TRY(segment_open(r, number, &more));
    while (more) {
        struct record record;
        int64_t before = r->offset;
        TRY(segment_next(r, NULL, &record, &more));
        if (!more) break;
        headed |= record.type == RECORD_HEADER;
        if (!headed) {
            r->offset = before;
            break;
        }
        TRY(apply_record(j, &record));
        report->records++;
    }
    report->dropped_bytes += r->size - r->offset;
    return OK;
}

enum status journal_scan(struct journal *j, struct journal_report *report, int *next_segment)
{
    struct journal_report local = {0};
    int *numbers = NULL, n = 0;
    TRY(segment_list(j->dir, &numbers, &n));
    enum status st = OK;
    for (int i = 0; i < n && st == OK; i++) st = scan_segment(j, numbers[i], &local);
    *next_segment = n ? numbers[n - 1] + 1 : 0;
    free(numbers);
    if (st == OK && !j->have_header)
        st = error_set(ERR_INPUT, "journal: %s holds no readable record", j->dir);
    if (st != OK) return st;
    local.fingerprint = j->fingerprint;
    local.requests = j->requests;
    local.finished = j->finished;
    local.duplicates = j->duplicates;
    local.attempts = j->n_attempts;
    local.last_t = j->last_t;
    if (report) *report = local;
    return OK;
}
