/* journal.c - opening and appending; the state that appended records leave behind. */
#include "engine/journal.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/hash.h"
#include "engine/journal_state.h"

char *journal_dir_of(const char *results_path)
{
    size_t n = strlen(results_path);
    if (n > 3 && !strcmp(results_path + n - 3, ".h5")) n -= 3;
    char *dir = malloc(n + sizeof ".journal");
    if (!dir) return NULL;
    memcpy(dir, results_path, n);
    memcpy(dir + n, ".journal", sizeof ".journal");
    return dir;
}

/* ---- state ---- */

static enum status another_job(const struct journal *j, const struct journal_job *job)
{
    return error_set(ERR_INPUT,
                     "journal: %s belongs to another job (%s%s%s%lld requests, this job has "
                     "%lld): choose another results name, or start with --force and without "
                     "--resume to discard it",
                     j->dir, j->model != job->model ? "another model; " : "",
                     j->tokens != job->tokens ? "another token file; " : "",
                     j->settings != job->settings ? "other numerics, sampling or isa; " : "",
                     (long long)j->requests, (long long)job->requests);
}

enum status journal_apply_header(struct journal *j, const struct journal_job *job)
{
    if (j->have_header) {
        bool same = job->model == j->model && job->tokens == j->tokens &&
                    job->settings == j->settings && job->requests == j->requests;
        return same ? OK : another_job(j, job);
    }
    int64_t requests = job->requests;
    if (requests < 0 || requests > INT64_MAX / (int64_t)sizeof *j->place - 1)
        return error_set(ERR_INPUT, "journal: %s: header with %lld requests", j->dir,
                         (long long)requests);
    j->place = malloc(sizeof *j->place * (size_t)(requests + 1));
    if (!j->place)
        return error_set(ERR_RESOURCE, "journal: out of memory for %lld requests (%zu bytes each)",
                         (long long)requests, sizeof *j->place);
    for (int64_t i = 0; i < requests; i++) j->place[i] = SEGMENT_NOWHERE;
    j->model = job->model;
    j->tokens = job->tokens;
    j->settings = job->settings;
    j->requests = requests;
    j->have_header = true;
    return OK;
}

struct attempt_state *journal_attempt(struct journal *j)
{
    return j->n_attempts ? &j->attempts[j->n_attempts - 1] : NULL;
}

static void note_time(struct journal *j, double t)
{
    struct attempt_state *a = journal_attempt(j);
    if (isnan(t)) return;
    if (t > j->last_t) j->last_t = t;
    if (a && t > a->last.t) a->last.t = t;
}

enum status journal_apply_attempt(struct journal *j, const struct attempt_row *row)
{
    if (j->n_attempts == j->attempts_room) {
        int room = j->attempts_room ? 2 * j->attempts_room : 4;
        struct attempt_state *more = realloc(j->attempts, sizeof *more * (size_t)room);
        if (!more) return error_set(ERR_RESOURCE, "journal: out of memory");
        j->attempts = more;
        j->attempts_room = room;
    }
    struct attempt_state *a = &j->attempts[j->n_attempts];
    *a = (struct attempt_state){.row = *row, .ranks = SEGMENT_NOWHERE};
    a->row.attempt = j->n_attempts++;
    a->row.requests_finished = 0;
    a->last.t = row->t_start;
    note_time(j, row->t_start);
    for (int i = 0; i < j->layers * j->experts; i++) {
        j->load_before[i] += j->load_now[i];
        j->load_now[i] = 0;
    }
    return OK;
}

void journal_apply_end(struct journal *j, const struct attempt_row *row)
{
    struct attempt_state *a = journal_attempt(j);
    if (!a) return;
    memcpy(a->row.end_utc, row->end_utc, sizeof a->row.end_utc);
    memcpy(a->row.outcome, row->outcome, sizeof a->row.outcome);
    a->row.wall_s = row->wall_s;
    a->row.gpu_s = row->gpu_s;
    a->last.prefill_tokens = row->prefill_tokens;
    a->last.decode_tokens = row->decode_tokens;
    a->ended = true;
    note_time(j, a->row.t_start + row->wall_s);
}

void journal_apply_mark(struct journal *j, const struct mark *mark)
{
    struct attempt_state *a = journal_attempt(j);
    if (!a) return;
    a->last.prefill_tokens = mark->prefill_tokens;
    a->last.decode_tokens = mark->decode_tokens;
    note_time(j, mark->t);
}

void journal_apply_request(struct journal *j, const struct request_row *r, segment_place place)
{
    if (j->place[r->index] != SEGMENT_NOWHERE) {
        j->duplicates++;
        return;
    }
    j->place[r->index] = place;
    j->finished++;
    size_t id = results_clip(r->custom_id, RESULTS_ID_MAX);
    size_t error = results_clip(r->error, RESULTS_ERROR_MAX);
    if ((int32_t)id > j->id_bytes) j->id_bytes = (int32_t)id;
    if ((int32_t)error > j->error_bytes) j->error_bytes = (int32_t)error;
    j->logprobs |= r->logprobs != NULL;
    j->prompt_logprobs |= r->prompt_logprobs != NULL;
    note_time(j, r->t_finish);
    struct attempt_state *a = journal_attempt(j);
    if (!a) return;
    a->row.requests_finished++;
    if (r->status != REQUEST_OK) return;
    a->prefill_kept += r->prompt_tokens - r->cached_tokens;
    a->decode_kept += r->output_tokens > 1 ? r->output_tokens - 1 : 0; /* prefill made the first */
}

enum status journal_apply_load(struct journal *j, int layers, int experts, const void *rows)
{
    size_t n = (size_t)layers * (size_t)experts;
    if (!j->load_now) {
        j->load_now = calloc(n, sizeof *j->load_now);
        j->load_before = calloc(n, sizeof *j->load_before);
        if (!j->load_now || !j->load_before)
            return error_set(ERR_RESOURCE, "journal: out of memory for the expert load");
        j->layers = layers;
        j->experts = experts;
    }
    if (layers != j->layers || experts != j->experts)
        return error_set(ERR_INPUT, "journal: %s: expert load of %d x %d after one of %d x %d",
                         j->dir, layers, experts, j->layers, j->experts);
    memcpy(j->load_now, rows, n * sizeof *j->load_now);
    return OK;
}

/* ---- opening ---- */

static void put_u32(struct payload *p, uint32_t v)
{
    payload_put(p, &v, sizeof v);
}

static void encode_header(struct payload *p, uint32_t id, const struct journal_job *job)
{
    p->bytes = 0;
    put_u32(p, JOURNAL_FORMAT);
    put_u32(p, sizeof(struct request_head));
    put_u32(p, sizeof(struct step_row));
    put_u32(p, sizeof(struct rank_row));
    put_u32(p, sizeof(struct attempt_row));
    put_u32(p, sizeof(struct placement_row));
    put_u32(p, id);
    payload_put(p, &job->model, sizeof job->model);
    payload_put(p, &job->tokens, sizeof job->tokens);
    payload_put(p, &job->settings, sizeof job->settings);
    payload_put(p, &job->requests, sizeof job->requests);
    payload_put_text(p, job->yaml);
    payload_put_text(p, job->isa);
    payload_put_text(p, job->version);
}

static void journal_free(struct journal *j)
{
    if (!j) return;
    segment_reader_close(&j->reader);
    free(j->payload.data);
    free(j->header.data);
    free(j->place);
    free(j->attempts);
    free(j->load_before);
    free(j->load_now);
    free(j->dir);
    free(j);
}

static struct journal *journal_new(const char *dir, double sync_s)
{
    struct journal *j = calloc(1, sizeof *j);
    if (j) j->dir = strdup(dir);
    if (!j || !j->dir) {
        error_set(ERR_RESOURCE, "journal: out of memory");
        journal_free(j);
        return NULL;
    }
    j->sync_s = sync_s;
    j->writer.fd = -1;
    segment_reader_init(&j->reader, j->dir);
    return j;
}

/* A number that no other journal has, but for bad luck in four thousand million. */
static uint32_t new_id(void)
{
    struct {
        struct timespec now;
        int64_t pid;
    } seed = {.pid = getpid()};
    clock_gettime(CLOCK_REALTIME, &seed.now);
    uint32_t id = (uint32_t)hash64(&seed, sizeof seed, 0);
    return id ? id : 1;
}

/* Makes an opened journal one that is written, from segment `first` on. */
static enum status begin_writing(struct journal *j, const struct journal_job *job, int first)
{
    if (!j->id) j->id = new_id();
    TRY(journal_apply_header(j, job));
    TRY(segment_writer_init(&j->writer, j->dir, first));
    j->writer.id = j->reader.id = j->id;
    encode_header(&j->header, j->id, job);
    j->writing = true;
    return OK;
}

/* Creates dir, or empties the journal that lies there. */
static enum status fresh_dir(const char *dir, bool force)
{
    if (mkdir(dir, 0755) == 0) return OK;
    if (errno != EEXIST)
        return error_set(ERR_RESOURCE, "journal: cannot create %s: %s", dir, strerror(errno));
    int *numbers, n;
    TRY(segment_list(dir, &numbers, &n));
    enum status st = OK;
    if (n && !force)
        st = error_set(ERR_INPUT,
                       "journal: %s holds an earlier run: pass --force to discard it, or choose "
                       "another results name",
                       dir);
    for (int i = 0; i < n && st == OK; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%06d.seg", dir, numbers[i]);
        if (unlink(path) != 0)
            st = error_set(ERR_RESOURCE, "journal: cannot remove %s: %s", path, strerror(errno));
    }
    free(numbers);
    return st;
}

enum status journal_create(const char *dir, const struct journal_job *job, bool force,
                           double sync_s, struct journal **out)
{
    TRY(fresh_dir(dir, force));
    struct journal *j = journal_new(dir, sync_s);
    if (!j) return ERR_RESOURCE;
    enum status st = begin_writing(j, job, 0);
    if (st != OK)
        journal_free(j);
    else
        *out = j;
    return st;
}

enum status journal_open(const char *dir, struct journal_report *report, struct journal **out)
{
    struct journal *j = journal_new(dir, 0);
    if (!j) return ERR_RESOURCE;
    int next;
    enum status st = journal_scan(j, report, &next);
    if (st != OK)
        journal_free(j);
    else
        *out = j;
    return st;
}

enum status journal_resume(const char *dir, const struct journal_job *job, double sync_s,
                           struct journal_report *report, struct journal **out)
{
    bool found;
    struct journal_identity identity;
    TRY(journal_identify(dir, &found, &identity));
    if (found) journal_identity_free(&identity);
    struct journal *j = journal_new(dir, sync_s);
    if (!j) return ERR_RESOURCE;
    int next = 0;
    enum status st = found ? journal_scan(j, report, &next) : journal_scan_torn(j, report, &next);
    if (st == OK) st = begin_writing(j, job, next);
    if (st != OK)
        journal_free(j);
    else
        *out = j;
    return st;
}

bool journal_has(const struct journal *j, int64_t index)
{
    return index >= 0 && index < j->requests && j->place[index] != SEGMENT_NOWHERE;
}

int64_t journal_finished(const struct journal *j)
{
    return j->finished;
}

/* ---- appending ---- */

/* Writes j->payload as one record, the job's header before it where a segment begins. */
static enum status append(struct journal *j, enum record_type type, segment_place *place)
{
    if (!j->writing) return error_set(ERR_BUG, "journal: %s is open for reading only", j->dir);
    if (segment_writer_fresh(&j->writer))
        TRY(segment_append(&j->writer, RECORD_HEADER, true, &j->header, NULL));
    return segment_append(&j->writer, (uint32_t)type, false, &j->payload, place);
}

static enum status append_rows(struct journal *j, enum record_type type, int kind, int n,
                               const void *rows, size_t bytes, segment_place *place)
{
    struct rows_head head = {kind, n};
    j->payload.bytes = 0;
    payload_put(&j->payload, &head, sizeof head);
    payload_put(&j->payload, rows, bytes);
    return append(j, type, place);
}

enum status journal_attempt_begin(struct journal *j, const struct attempt_row *attempt)
{
    j->payload.bytes = 0;
    payload_put(&j->payload, attempt, sizeof *attempt);
    TRY(append(j, RECORD_ATTEMPT_BEGIN, NULL));
    j->last_sync = j->last_mark = attempt->t_start;
    TRY(journal_apply_attempt(j, attempt));
    return segment_sync(&j->writer);
}

enum status journal_attempt_end(struct journal *j, const struct attempt_row *attempt)
{
    TRY(journal_write_out(j));
    j->payload.bytes = 0;
    payload_put(&j->payload, attempt, sizeof *attempt);
    TRY(append(j, RECORD_ATTEMPT_END, NULL));
    journal_apply_end(j, attempt);
    return segment_sync(&j->writer);
}

static void put_clipped(struct payload *p, const char *text, size_t room)
{
    payload_put(p, text, results_clip(text, room));
    payload_put(p, "", 1);
}

static void encode_request(struct payload *p, const struct request_row *r)
{
    struct request_head head = {
        .index = r->index,
        .t_arrival = r->t_arrival,
        .t_prefill_start = r->t_prefill_start,
        .t_first_token = r->t_first_token,
        .t_finish = r->t_finish,
        .status = (int32_t)r->status,
        .finish = (int32_t)r->finish,
        .prompt_tokens = r->prompt_tokens,
        .cached_tokens = r->cached_tokens,
        .cached_tokens_disk = r->cached_tokens_disk,
        .output_tokens = r->output_tokens,
        .prefill_rank = r->prefill_rank,
        .decode_rank = r->decode_rank,
        .flags =
            (r->logprobs ? HAS_LOGPROBS : 0u) | (r->prompt_logprobs ? HAS_PROMPT_LOGPROBS : 0u),
    };
    size_t n = (size_t)r->output_tokens, prompt = (size_t)r->prompt_tokens;
    p->bytes = 0;
    payload_put(p, &head, sizeof head);
    put_clipped(p, r->custom_id, RESULTS_ID_MAX);
    put_clipped(p, r->error, RESULTS_ERROR_MAX);
    payload_put(p, "\0\0\0", (4 - p->bytes % 4) % 4);
    payload_put(p, r->tokens, n * sizeof *r->tokens);
    if (r->logprobs) payload_put(p, r->logprobs, n * sizeof *r->logprobs);
    if (r->prompt_logprobs) payload_put(p, r->prompt_logprobs, prompt * sizeof(float));
}

enum status journal_request(struct journal *j, const struct request_row *row)
{
    if (row->index < 0 || row->index >= j->requests || row->output_tokens < 0 ||
        row->prompt_tokens < 0)
        return error_set(ERR_BUG, "journal: request %lld of %lld with %d + %d tokens",
                         (long long)row->index, (long long)j->requests, row->prompt_tokens,
                         row->output_tokens);
    segment_place place;
    encode_request(&j->payload, row);
    TRY(append(j, RECORD_REQUEST, &place));
    journal_apply_request(j, row, place);
    return OK;
}

static int32_t attempt_number(const struct journal *j)
{
    return j->n_attempts ? j->n_attempts - 1 : 0;
}

enum status journal_write_out(struct journal *j)
{
    for (int k = 0; k < 2; k++) {
        if (!j->n_steps[k]) continue;
        int n = j->n_steps[k];
        j->n_steps[k] = 0;
        TRY(append_rows(j, RECORD_STEPS, k, n, j->steps[k], (size_t)n * sizeof(struct step_row),
                        NULL));
    }
    return OK;
}

enum status journal_step(struct journal *j, enum step_kind kind, const struct step_row *row)
{
    struct step_row *mine = &j->steps[kind][j->n_steps[kind]++];
    *mine = *row;
    mine->attempt = attempt_number(j);
    return j->n_steps[kind] == JOURNAL_STEP_BATCH ? journal_write_out(j) : OK;
}

enum status journal_ranks(struct journal *j, const struct rank_row *rows, size_t n)
{
    struct rows_head head = {0, (int32_t)n};
    j->payload.bytes = 0;
    payload_put(&j->payload, &head, sizeof head);
    for (size_t i = 0; i < n; i++) {
        struct rank_row row = rows[i];
        row.attempt = attempt_number(j);
        payload_put(&j->payload, &row, sizeof row);
    }
    segment_place place;
    TRY(append(j, RECORD_RANKS, &place));
    struct attempt_state *a = journal_attempt(j);
    if (a) a->ranks = place;
    return OK;
}

enum status journal_expert_load(struct journal *j, int layers, int experts, const int64_t *rows)
{
    TRY(append_rows(j, RECORD_EXPERT_LOAD, layers, experts, rows,
                    (size_t)layers * (size_t)experts * sizeof *rows, NULL));
    return journal_apply_load(j, layers, experts, rows);
}

enum status journal_placement(struct journal *j, const struct placement_row *rows, size_t n)
{
    return append_rows(j, RECORD_PLACEMENT, 0, (int)n, rows, n * sizeof *rows, NULL);
}

enum status journal_flush(struct journal *j)
{
    return j->sync_s > 0 ? segment_flush(&j->writer) : segment_sync(&j->writer);
}

enum status journal_links(struct journal *j, const struct link_row *rows, size_t n)
{
    return append_rows(j, RECORD_LINKS, 0, (int)n, rows, n * sizeof *rows, NULL);
}

enum status journal_tick(struct journal *j, double t, int64_t prefill_tokens, int64_t decode_tokens)
{
    const double mark_s = j->sync_s < 1 ? j->sync_s : 1;
    if (t - j->last_mark >= mark_s) {
        struct mark mark = {t, prefill_tokens, decode_tokens};
        j->last_mark = t;
        j->payload.bytes = 0;
        payload_put(&j->payload, &mark, sizeof mark);
        TRY(append(j, RECORD_MARK, NULL));
        journal_apply_mark(j, &mark);
    }
    if (t - j->last_sync < j->sync_s) return journal_flush(j);
    j->last_sync = t;
    return journal_sync(j);
}

enum status journal_sync(struct journal *j)
{
    TRY(journal_write_out(j));
    return segment_sync(&j->writer);
}

enum status journal_close(struct journal *j)
{
    if (!j) return OK;
    enum status st = OK;
    if (j->writing) {
        st = j->writer.failed ? OK : journal_write_out(j);
        enum status closed = segment_writer_close(&j->writer);
        if (st == OK) st = closed;
    }
    journal_free(j);
    return st;
}
