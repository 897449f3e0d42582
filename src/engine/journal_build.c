/* journal_build.c - the results file from the journal: requests in token-file order through the
 * index, everything else in one pass over the segments. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "account/straggler.h"
#include "engine/journal_state.h"

struct builder {
    struct journal *j;
    const struct journal_build *build;
    struct results_file *file;
    struct summary *summary;
    struct straggler straggler;
};

enum status journal_read_request(struct journal *j, int64_t index, struct request_row *row)
{
    if (!journal_has(j, index))
        return error_set(ERR_INPUT, "journal: %s has no record of request %lld", j->dir,
                         (long long)index);
    if (j->writing) TRY(segment_flush(&j->writer));
    struct record record;
    TRY(segment_read(&j->reader, j->place[index], &record));
    if (record.type != RECORD_REQUEST || !journal_decode_request(&record, row) ||
        row->index != index)
        return error_set(ERR_INPUT, "journal: %s: the record of request %lld is another's", j->dir,
                         (long long)index);
    return OK;
}

struct each {
    struct journal *j;
    enum status (*fn)(void *ctx, const struct request_row *row);
    void *ctx;
};

static bool is_request(uint32_t type)
{
    return type == RECORD_REQUEST;
}

static enum status each_in_segment(const struct each *e, int number)
{
    struct segment_reader *r = &e->j->reader;
    bool more;
    TRY(segment_open(r, number, &more));
    while (more) {
        struct record record;
        struct request_row row;
        TRY(segment_next(r, e->j->damaged ? NULL : is_request, &record, &more));
        if (!more || record.type != RECORD_REQUEST) continue;
        /* One that was recorded twice counts where it was first. */
        if (journal_decode_request(&record, &row) && row.index >= 0 && row.index < e->j->requests &&
            e->j->place[row.index] == record.place)
            TRY(e->fn(e->ctx, &row));
    }
    return OK;
}

enum status journal_each_request(struct journal *j,
                                 enum status (*fn)(void *ctx, const struct request_row *row),
                                 void *ctx)
{
    struct each each = {j, fn, ctx};
    int *numbers, n;
    if (j->writing) TRY(segment_flush(&j->writer));
    TRY(segment_list(j->dir, &numbers, &n));
    enum status st = OK;
    for (int i = 0; i < n && st == OK; i++) st = each_in_segment(&each, numbers[i]);
    free(numbers);
    return st;
}

static enum status put_pending(struct builder *b, int64_t index)
{
    char id[RESULTS_ID_MAX + 1] = "";
    if (b->build->pending_id) TRY(b->build->pending_id(b->build->pending_ctx, index, id));
    const double never = NAN;
    struct request_row row = {
        .index = index,
        .custom_id = id,
        .prefill_rank = -1,
        .decode_rank = -1,
        .t_arrival = never,
        .t_prefill_start = never,
        .t_first_token = never,
        .t_finish = never,
    };
    summary_add_request(b->summary, &row);
    return results_put_request(b->file, &row);
}

static enum status put_requests(struct builder *b)
{
    struct request_row row;
    for (int64_t i = 0; i < b->j->requests; i++) {
        if (!journal_has(b->j, i)) {
            TRY(put_pending(b, i));
            continue;
        }
        TRY(journal_read_request(b->j, i, &row));
        summary_add_request(b->summary, &row);
        TRY(results_put_request(b->file, &row));
        if (b->build->moved) b->build->moved();
    }
    return OK;
}

/* Rows behind a rows_head; *n = 0 when the record does not add up. */
static const void *rows_of(const struct record *record, size_t bytes, int *kind, size_t *n)
{
    struct cursor c = {record->payload, record->payload + record->bytes, false};
    struct rows_head head;
    cursor_get(&c, &head, sizeof head);
    *kind = head.kind;
    *n = head.n > 0 ? (size_t)head.n : 0;
    const void *rows = cursor_array(&c, *n, bytes);
    if (!rows) *n = 0;
    return rows;
}

static enum status put_steps(struct builder *b, const struct record *record)
{
    int kind;
    size_t n;
    const struct step_row *rows = rows_of(record, sizeof *rows, &kind, &n);
    if (kind != STEP_PREFILL && kind != STEP_DECODE) return OK;
    for (size_t i = 0; i < n; i++) summary_add_step(b->summary, (enum step_kind)kind, &rows[i]);
    return results_put_steps(b->file, (enum step_kind)kind, rows, n);
}

static enum status put_ranks(struct builder *b, const struct attempt_state *a)
{
    if (a->ranks == SEGMENT_NOWHERE) return OK;
    struct record record;
    TRY(segment_read(&b->j->reader, a->ranks, &record));
    int kind;
    size_t n;
    const struct rank_row *rows = rows_of(&record, sizeof *rows, &kind, &n);
    for (size_t i = 0; i < n; i++) summary_add_rank(b->summary, &rows[i]);
    TRY(straggler_add_ranks(&b->straggler, rows, n));
    return results_put_ranks(b->file, rows, n);
}

static int64_t positive(int64_t v)
{
    return v > 0 ? v : 0;
}

/* The row as it stands now: a missing end means killed, or still running. */
static struct attempt_row attempt_now(const struct journal *j, int i)
{
    const struct attempt_state *a = &j->attempts[i];
    struct attempt_row row = a->row;
    if (!a->ended) {
        bool running = j->writing && i == j->n_attempts - 1;
        memset(row.outcome, 0, sizeof row.outcome);
        strcpy(row.outcome, running ? "running" : "killed");
        memset(row.end_utc, 0, sizeof row.end_utc);
        row.wall_s = a->last.t - row.t_start;
        row.gpu_s = row.wall_s * row.ranks;
    }
    row.prefill_tokens = a->last.prefill_tokens;
    row.decode_tokens = a->last.decode_tokens;
    row.prefill_tokens_lost = positive(row.prefill_tokens - a->prefill_kept);
    row.decode_tokens_lost = positive(row.decode_tokens - a->decode_kept);
    return row;
}

static enum status put_attempts(struct builder *b)
{
    for (int i = 0; i < b->j->n_attempts; i++) {
        struct attempt_row row = attempt_now(b->j, i);
        summary_add_attempt(b->summary, &row);
        TRY(results_put_attempts(b->file, &row, 1));
        TRY(put_ranks(b, &b->j->attempts[i]));
    }
    return OK;
}

static enum status put_load(struct builder *b)
{
    const struct journal *j = b->j;
    for (int layer = 0; layer < j->layers; layer++) {
        const size_t first = (size_t)layer * (size_t)j->experts;
        int64_t sum = 0;
        for (int e = 0; e < j->experts; e++)
            sum += j->load_before[first + (size_t)e] + j->load_now[first + (size_t)e];
        if (!sum) continue; /* a dense layer */
        for (int e = 0; e < j->experts; e++) {
            const size_t at = first + (size_t)e;
            struct expert_load_row row = {layer, e, j->load_before[at] + j->load_now[at]};
            TRY(results_put_expert_load(b->file, &row, 1));
        }
    }
    return OK;
}

static bool wanted(uint32_t type)
{
    return type == RECORD_STEPS || type == RECORD_PLACEMENT || type == RECORD_LINKS ||
           type == RECORD_ATTEMPT_BEGIN;
}

static enum status put_links(struct builder *b, const struct record *record)
{
    int kind;
    size_t n;
    const struct link_row *rows = rows_of(record, sizeof *rows, &kind, &n);
    TRY(straggler_add_links(&b->straggler, rows, n));
    return results_put_links(b->file, rows, n);
}

/* Steps and links of all attempts, placement of the last. */
static enum status put_segment(struct builder *b, int number, int *attempt)
{
    struct segment_reader *r = &b->j->reader;
    bool more;
    TRY(segment_open(r, number, &more));
    while (more) {
        struct record record;
        /* Where a length may be wrong, only a checksum tells a record. */
        TRY(segment_next(r, b->j->damaged ? NULL : wanted, &record, &more));
        if (!more) break;
        if (record.type == RECORD_ATTEMPT_BEGIN) ++*attempt;
        if (record.type == RECORD_STEPS) TRY(put_steps(b, &record));
        if (record.type == RECORD_LINKS) TRY(put_links(b, &record));
        if (record.type != RECORD_PLACEMENT || *attempt != b->j->n_attempts) continue;
        int kind;
        size_t n;
        const struct placement_row *rows = rows_of(&record, sizeof *rows, &kind, &n);
        TRY(results_put_placement(b->file, rows, n));
    }
    return OK;
}

static enum status put_segments(struct builder *b)
{
    int *numbers, n, attempt = 0;
    TRY(segment_list(b->j->dir, &numbers, &n));
    enum status st = OK;
    for (int i = 0; i < n && st == OK; i++) st = put_segment(b, numbers[i], &attempt);
    free(numbers);
    return st;
}

static enum status put_all(struct builder *b)
{
    TRY(put_requests(b));
    TRY(put_segments(b));
    TRY(put_attempts(b));
    TRY(put_load(b));
    summary_finish(b->summary, &b->build->prices);
    TRY(straggler_find(&b->straggler, b->summary->slow_rank, b->summary->slow_link));
    TRY(results_put_throughput(b->file, &b->summary->throughput));
    TRY(results_put_account(b->file, &b->summary->account, &b->build->prices));
    TRY(results_put_attr(b->file, "status", b->build->complete ? "complete" : "partial"));
    for (size_t i = 0; i < b->build->n_attrs; i++)
        TRY(results_put_attr(b->file, b->build->attrs[i].key, b->build->attrs[i].value));
    return OK;
}

enum status journal_build_results(struct journal *j, const struct journal_build *build,
                                  struct summary *summary)
{
    if (j->writing) {
        TRY(journal_write_out(j));
        TRY(segment_flush(&j->writer));
    }
    struct results_shape shape = {
        .requests = j->requests,
        .id_bytes = build->id_bytes > j->id_bytes ? build->id_bytes : j->id_bytes,
        .error_bytes = j->error_bytes,
        .logprobs = j->logprobs,
        .prompt_logprobs = j->prompt_logprobs,
    };
    struct builder b = {j, build, NULL, summary, {0}};
    summary_init(summary);
    TRY(results_create(build->path, &shape, &b.file));
    enum status st = put_all(&b);
    straggler_free(&b.straggler);
    if (st != OK) {
        results_abort(b.file);
        return st;
    }
    return results_commit(b.file);
}
