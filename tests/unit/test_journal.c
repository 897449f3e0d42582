/* links: core account */
/* test_journal.c - records survive truncation anywhere and flipped bits; the results file built
 * from a journal. Rerun alone: make unit-journal
 *
 * The journal's files are included, not linked, so that this test does not need the rest of
 * engine/ (and MPI). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <hdf5.h>

#include "core/clock.h"
#include "engine/journal.c"
#include "engine/journal_build.c"
#include "engine/journal_scan.c"
#include "engine/journal_segment.c"

enum { REQUESTS = 12 };
static const struct journal_job job = {.model = 0x1234,
                                       .tokens = 5,
                                       .settings = 6,
                                       .requests = REQUESTS,
                                       .yaml = "model: x\n",
                                       .isa = "portable",
                                       .version = "test"};
static const struct account_prices prices = {2.0, 0.14, 0.55, 2.19};
static char folder[64];

static const char *in_folder(const char *name)
{
    static char path[2][256];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

static int setup(void **state)
{
    (void)state;
    error_clear();
    snprintf(folder, sizeof folder, "/tmp/moebatch_journal_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

/* Request i: i tokens of value 100 i + k; odd ones with logprobs, every third with prompt's. */
struct sample {
    struct request_row row;
    int32_t tokens[REQUESTS];
    float logprobs[REQUESTS], prompt[3];
    char id[16];
};

static void make_sample(struct sample *s, int i)
{
    snprintf(s->id, sizeof s->id, "req-%d", i);
    for (int k = 0; k < REQUESTS; k++) {
        s->tokens[k] = 100 * i + k;
        s->logprobs[k] = -0.5f * (float)k - (float)i;
    }
    s->prompt[0] = NAN;
    s->prompt[1] = -1.0f;
    s->prompt[2] = -2.0f - (float)i;
    s->row = (struct request_row){
        .index = i,
        .custom_id = s->id,
        .error = i == 5 ? "token id 99 is outside the vocabulary of 32" : NULL,
        .status = i == 5 ? REQUEST_FAILED : REQUEST_OK,
        .finish = i == 5 ? FINISH_ERROR : FINISH_LENGTH,
        .prompt_tokens = 3,
        .cached_tokens = 1,
        .output_tokens = i == 5 ? 0 : i,
        .prefill_rank = 0,
        .decode_rank = i % 2,
        .t_arrival = 0.5,
        .t_prefill_start = 1,
        .t_first_token = 2,
        .t_finish = 2.0 + i,
        .tokens = s->tokens,
        .logprobs = i % 2 ? s->logprobs : NULL,
        .prompt_logprobs = i % 3 ? NULL : s->prompt,
    };
}

static void put_sample(struct journal *j, int i)
{
    struct sample s;
    make_sample(&s, i);
    assert_int_equal(journal_request(j, &s.row), OK);
}

static void check_sample(struct journal *j, int i)
{
    struct sample s;
    struct request_row got;
    make_sample(&s, i);
    assert_int_equal(journal_read_request(j, i, &got), OK);
    assert_string_equal(got.custom_id, s.id);
    assert_string_equal(got.error, s.row.error ? s.row.error : "");
    assert_int_equal(got.status, s.row.status);
    assert_int_equal(got.finish, s.row.finish);
    assert_int_equal(got.output_tokens, s.row.output_tokens);
    size_t bytes = (size_t)s.row.output_tokens * 4;
    assert_memory_equal(got.tokens, s.tokens, bytes);
    assert_int_equal(!got.logprobs, !s.row.logprobs);
    if (got.logprobs) assert_memory_equal(got.logprobs, s.logprobs, bytes);
    assert_int_equal(!got.prompt_logprobs, !s.row.prompt_logprobs);
    if (got.prompt_logprobs) assert_memory_equal(got.prompt_logprobs, s.prompt, 12);
}

static void begin(struct journal *j, double t)
{
    struct attempt_row a = {.ranks = 2,
                            .nodes = 1,
                            .t_start = t,
                            .start_utc = "2026-01-31T12:00:00Z",
                            .isa = "portable",
                            .transport = "shm",
                            .hosts = "h*2"};
    assert_int_equal(journal_attempt_begin(j, &a), OK);
}

static void end(struct journal *j, double wall)
{
    struct attempt_row a = {.end_utc = "2026-01-31T12:00:10Z",
                            .outcome = "complete",
                            .wall_s = wall,
                            .gpu_s = 2 * wall,
                            .prefill_tokens = 40,
                            .decode_tokens = 70};
    assert_int_equal(journal_attempt_end(j, &a), OK);
}

/* Everything a job appends, requests in the order 11, 10, ..., 0, the last `missing` left out. */
static void put_job(struct journal *j, int missing)
{
    begin(j, 0);
    struct placement_row slot = {"mixed0", 1, 0, 0, 0};
    assert_int_equal(journal_placement(j, &slot, 1), OK);
    for (int i = REQUESTS - 1; i >= missing; i--) put_sample(j, i);
    for (int i = 0; i < 100; i++) {
        struct step_row step = {
            .unit = "mixed0", .step = i, .t_start = i * 0.1, .duration = 0.1, .tokens = 3};
        assert_int_equal(journal_step(j, i % 2 ? STEP_DECODE : STEP_PREFILL, &step), OK);
    }
    struct rank_row ranks[2] = {{.rank = 0, .role = "mixed", .unit = "mixed0", .compute_s = 1},
                                {.rank = 1, .role = "mixed", .unit = "mixed0", .local = 1}};
    assert_int_equal(journal_ranks(j, ranks, 2), OK);
    int64_t load[2 * 4] = {0, 0, 0, 0, 1, 2, 3, 4};
    assert_int_equal(journal_expert_load(j, 2, 4, load), OK);
    assert_int_equal(journal_expert_load(j, 2, 4, load), OK); /* replaces, does not add */
}

static struct journal *fresh(void)
{
    struct journal *j = NULL;
    assert_int_equal(journal_create(in_folder("a.journal"), &job, false, 5, &j), OK);
    return j;
}

static void test_dir_of(void **state)
{
    (void)state;
    char *dir = journal_dir_of("outputs/x.h5");
    assert_string_equal(dir, "outputs/x.journal");
    free(dir);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct journal *j = fresh();
    put_job(j, 2);
    check_sample(j, 7); /* readable before anything was synced */
    put_sample(j, 1);
    check_sample(j, 1); /* and after the reader had the file open */
    assert_false(journal_has(j, 0));
    end(j, 10);
    assert_int_equal(journal_close(j), OK);

    struct journal_report report;
    assert_int_equal(journal_open(in_folder("a.journal"), &report, &j), OK);
    assert_int_equal(report.finished, REQUESTS - 1);
    assert_int_equal(report.requests, REQUESTS);
    assert_int_equal(report.attempts, 1);
    assert_int_equal(report.dropped_bytes, 0);
    assert_true(report.last_t == 13); /* request 11 finished then, after the attempt's 10 s */
    for (int i = 1; i < REQUESTS; i++) check_sample(j, i);
    struct request_row row;
    assert_int_equal(journal_read_request(j, 0, &row), ERR_INPUT);
    error_clear();
    assert_int_equal(journal_close(j), OK);
}

static long file_size(const char *path)
{
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    return info.st_size;
}

static void flip(const char *path, long at, int bit)
{
    FILE *f = fopen(path, "r+b");
    fseek(f, at, SEEK_SET);
    int byte = fgetc(f);
    fseek(f, at, SEEK_SET);
    fputc(byte ^ (1 << bit), f);
    fclose(f);
}

/* Bytes of the start: a header and an attempt. */
static long start_bytes(void)
{
    struct journal *j;
    assert_int_equal(journal_create(in_folder("start.journal"), &job, true, 5, &j), OK);
    begin(j, 0);
    long bytes = file_size(in_folder("start.journal/000000.seg")); /* on the disk at once */
    assert_int_equal(journal_close(j), OK);
    assert_int_equal(file_size(in_folder("start.journal/000000.seg")), bytes);
    return bytes;
}

/* A journal cut at any byte reads back a prefix of its records, says what it dropped, and goes on
 * to the end. */
static void test_truncated_anywhere(void **state)
{
    (void)state;
    struct journal *j = fresh();
    begin(j, 0);
    for (int i = 0; i < REQUESTS; i++) put_sample(j, i);
    assert_int_equal(journal_close(j), OK);
    char path[256];
    snprintf(path, sizeof path, "%s", in_folder("a.journal/000000.seg"));
    int64_t before = REQUESTS;
    const long whole = file_size(path), start = start_bytes();
    for (long size = whole - 1; size >= 0; size--) {
        assert_int_equal(truncate(path, size), 0);
        struct journal_report report;
        enum status st = journal_open(in_folder("a.journal"), &report, &j);
        if (st != OK) { /* not even the header is left */
            assert_int_equal(st, ERR_INPUT);
            assert_non_null(strstr(error_text(), "holds no readable record"));
            error_clear();
            assert_int_equal(before, 0);
            assert_true(size < start);
        } else {
            assert_true(report.finished <= before);
            if (size == whole - 1) assert_int_equal(report.finished, REQUESTS - 1);
            assert_true(report.dropped_bytes <= size && report.bytes == size);
            for (int i = 0; i < REQUESTS; i++)
                assert_int_equal(journal_has(j, i), i < report.finished);
            if (report.finished) check_sample(j, (int)report.finished - 1);
            before = report.finished;
            assert_int_equal(journal_close(j), OK);
        }
        assert_int_equal(journal_resume(in_folder("a.journal"), &job, 5, &report, &j), OK);
        assert_int_equal(report.finished, before);
        begin(j, report.last_t);
        for (int i = (int)before; i < REQUESTS; i++) put_sample(j, i);
        assert_int_equal(journal_finished(j), REQUESTS);
        for (int i = 0; i < REQUESTS; i++) check_sample(j, i);
        assert_int_equal(journal_close(j), OK);
        assert_int_equal(unlink(in_folder("a.journal/000001.seg")), 0);
    }
}

/* A flipped bit anywhere costs the record that it is in and no other. */
static void test_flipped_bits(void **state)
{
    (void)state;
    struct journal *j = fresh();
    begin(j, 0);
    for (int i = 0; i < REQUESTS; i++) put_sample(j, i);
    assert_int_equal(journal_close(j), OK);
    char path[256];
    snprintf(path, sizeof path, "%s", in_folder("a.journal/000000.seg"));
    const long size = file_size(path), start = start_bytes();
    int refused = 0;
    for (long at = 0; at < size; at++) {
        struct journal_report report;
        flip(path, at, (int)(at % 8));
        enum status st = journal_open(in_folder("a.journal"), &report, &j);
        flip(path, at, (int)(at % 8));
        if (st != OK) {
            error_clear();
            refused++;
            assert_true(at < start);
            continue;
        }
        assert_true(report.dropped_bytes > 0);
        assert_int_equal(report.finished, at < start ? REQUESTS : REQUESTS - 1);
        assert_int_equal(report.attempts, at < start ? 0 : 1);
        for (int i = 0; i < REQUESTS; i++)
            if (journal_has(j, i)) check_sample(j, i);
        assert_int_equal(journal_close(j), OK);
    }
    assert_true(refused > 90 && refused < start); /* each of the header's bytes */
}

/* Appends a whole segment of a journal to the tail of another's. */
static void append_file(const char *from, const char *to)
{
    char buf[65536];
    FILE *f = fopen(from, "rb");
    size_t n = fread(buf, 1, sizeof buf, f);
    fclose(f);
    f = fopen(to, "ab");
    assert_int_equal(fwrite(buf, 1, n, f), n);
    fclose(f);
}

/* What a disk brings back of a journal that was deleted is good by its own checksum, and yet not
 * ours: nothing of it counts. */
static void test_records_of_an_older_journal(void **state)
{
    (void)state;
    struct journal *j;
    struct journal_report report;
    char path[256], old[256];
    assert_int_equal(journal_create(in_folder("old.journal"), &job, false, 5, &j), OK);
    put_job(j, 0);
    assert_int_equal(journal_close(j), OK);
    j = fresh();
    begin(j, 0);
    put_sample(j, 3);
    assert_int_equal(journal_close(j), OK);
    snprintf(path, sizeof path, "%s", in_folder("a.journal/000000.seg"));
    snprintf(old, sizeof old, "%s", in_folder("old.journal/000000.seg"));
    append_file(old, path);
    assert_int_equal(journal_open(in_folder("a.journal"), &report, &j), OK);
    assert_int_equal(report.finished, 1);
    assert_int_equal(report.attempts, 1);
    assert_true(report.dropped_bytes > 1000 && report.dropped_bytes < file_size(old));
    check_sample(j, 3);
    assert_int_equal(journal_close(j), OK);
    /* As a segment of its own it is refused. */
    assert_int_equal(rename(old, in_folder("a.journal/000001.seg")), 0);
    assert_int_equal(journal_resume(in_folder("a.journal"), &job, 5, &report, &j), ERR_INPUT);
    assert_non_null(strstr(error_text(), "000001.seg comes from another journal"));
    error_clear();
}

static void note_order(int64_t **at, int64_t index)
{
    *(*at)++ = index;
}

static enum status each(void *ctx, const struct request_row *row)
{
    note_order(ctx, row->index);
    return OK;
}

/* Three attempts, the middle one's segment gone: its requests are missing, the others are not. */
static void test_missing_segment(void **state)
{
    (void)state;
    struct journal_report report;
    struct journal *j = fresh();
    for (int k = 0; k < 3; k++) {
        begin(j, k);
        for (int i = 4 * k; i < 4 * k + 4; i++) put_sample(j, 11 - i);
        assert_int_equal(journal_close(j), OK);
        assert_int_equal(journal_resume(in_folder("a.journal"), &job, 5, &report, &j), OK);
        assert_int_equal(report.finished, 4 * (k + 1));
    }
    int64_t order[REQUESTS], *at = order;
    assert_int_equal(journal_each_request(j, each, &at), OK);
    for (int i = 0; i < REQUESTS; i++) assert_int_equal(order[i], 11 - i);
    assert_int_equal(journal_close(j), OK);
    for (int lost = 0; lost < 3; lost++) {
        char path[256], away[256];
        snprintf(path, sizeof path, "%s/a.journal/%06d.seg", folder, lost);
        snprintf(away, sizeof away, "%s/away", folder);
        assert_int_equal(rename(path, away), 0);
        assert_int_equal(journal_resume(in_folder("a.journal"), &job, 5, &report, &j), OK);
        assert_int_equal(report.finished, 8);
        assert_int_equal(report.attempts, 2);
        /* A last one that is missing leaves no gap. */
        assert_int_equal(report.missing_segments, lost < 2);
        assert_int_equal(report.dropped_bytes, 0);
        for (int i = 0; i < REQUESTS; i++) {
            assert_int_equal(journal_has(j, i), (11 - i) / 4 != lost);
            if (journal_has(j, i)) check_sample(j, i);
        }
        at = order;
        assert_int_equal(journal_each_request(j, each, &at), OK);
        assert_int_equal(at - order, 8);
        assert_int_equal(journal_close(j), OK);
        assert_int_equal(rename(away, path), 0);
    }
}

/* More than a start and no header: nobody can say whose it is. */
static void test_no_header(void **state)
{
    (void)state;
    struct journal_report report;
    struct journal *j = fresh();
    begin(j, 0);
    for (int k = 0; k < 300; k++) put_sample(j, k % REQUESTS);
    assert_int_equal(journal_close(j), OK);
    char path[256];
    snprintf(path, sizeof path, "%s", in_folder("a.journal/000000.seg"));
    flip(path, 40, 3);
    assert_int_equal(journal_resume(in_folder("a.journal"), &job, 5, &report, &j), ERR_INPUT);
    assert_non_null(strstr(error_text(), "no header"));
    error_clear();
    flip(path, 40, 3);
    assert_int_equal(journal_resume(in_folder("a.journal"), &job, 5, &report, &j), OK);
    assert_int_equal(report.duplicates, 300 - REQUESTS);
    begin(j, 0);
    assert_int_equal(journal_close(j), OK);
    /* With another segment's header its records are known again, all but the damaged one. */
    flip(path, 40, 3);
    assert_int_equal(journal_open(in_folder("a.journal"), &report, &j), OK);
    assert_int_equal(report.finished, REQUESTS);
    assert_int_equal(report.attempts, 2);
    assert_int_equal(journal_close(j), OK);
}

/* A torn attempt is continued in a new segment; what it finished counts once. */
static void test_resume(void **state)
{
    (void)state;
    struct journal *j = fresh();
    begin(j, 0);
    for (int i = 0; i < 6; i++) put_sample(j, i);
    assert_int_equal(journal_tick(j, 0.5, 7, 3), OK); /* too early: no mark */
    assert_int_equal(journal_tick(j, 9, 50, 30), OK);
    assert_int_equal(journal_close(j), OK); /* no end: killed */
    FILE *f = fopen(in_folder("a.journal/000000.seg"), "ab");
    fputs("torn", f);
    fclose(f);

    struct journal_report report;
    assert_int_equal(journal_resume(in_folder("a.journal"), &job, 5, &report, &j), OK);
    assert_int_equal(report.finished, 6);
    assert_int_equal(report.dropped_bytes, 4);
    assert_true(report.last_t == 9);
    begin(j, report.last_t);
    for (int i = 5; i < REQUESTS; i++) put_sample(j, i); /* 5 once more: ignored */
    assert_int_equal(journal_finished(j), REQUESTS);
    int64_t load[8] = {0, 0, 0, 0, 1, 2, 3, 4};
    assert_int_equal(journal_expert_load(j, 2, 4, load), OK);
    end(j, 6);

    static struct summary summary;
    struct journal_build build = {.path = in_folder("a.h5"), .complete = true, .prices = prices};
    assert_int_equal(journal_build_results(j, &build, &summary), OK);
    assert_true(summary.valid);
    assert_int_equal(summary.attempts, 2);
    assert_true(summary.gpu_s == 2 * 9 + 2 * 6); /* the killed attempt up to its last sign */
    assert_int_equal(journal_close(j), OK);

    struct attempt_row first = {0};
    assert_int_equal(journal_open(in_folder("a.journal"), &report, &j), OK);
    first = attempt_now(j, 0);
    assert_string_equal(first.outcome, "killed");
    assert_int_equal(first.requests_finished, 6);
    /* 50 prefill tokens computed, 5 answered requests of 3 - 1; 30 decoded, 0 + 1 + 2 + 3 kept */
    assert_int_equal(first.prefill_tokens_lost, 50 - 10);
    assert_int_equal(first.decode_tokens_lost, 30 - 6);
    assert_int_equal(report.duplicates, 1);
    assert_int_equal(journal_close(j), OK);
}

static void test_other_job_and_force(void **state)
{
    (void)state;
    struct journal *j = fresh();
    begin(j, 0);
    assert_int_equal(journal_close(j), OK);
    struct journal_job other = job;
    other.model = 9;
    other.requests = 3;
    assert_int_equal(journal_resume(in_folder("a.journal"), &other, 5, NULL, &j), ERR_INPUT);
    assert_non_null(strstr(error_text(), "belongs to another job (another model; 12 requests"));
    error_clear();
    assert_int_equal(journal_create(in_folder("a.journal"), &job, false, 5, &j), ERR_INPUT);
    assert_non_null(strstr(error_text(), "pass --force"));
    error_clear();
    assert_int_equal(journal_create(in_folder("a.journal"), &other, true, 5, &j), OK);
    begin(j, 0);
    assert_int_equal(journal_close(j), OK);
    struct journal_report report;
    assert_int_equal(journal_open(in_folder("a.journal"), &report, &j), OK);
    assert_int_equal(report.requests, 3);
    struct sample s;
    make_sample(&s, 1);
    assert_int_equal(journal_request(j, &s.row), ERR_BUG); /* opened for reading */
    error_clear();
    assert_int_equal(journal_close(j), OK);
    bool found = false;
    struct journal_identity identity;
    assert_int_equal(journal_identify(in_folder("a.journal"), &found, &identity), OK);
    assert_true(found);
    assert_true(identity.job.model == 9 && identity.job.requests == 3);
    assert_string_equal(identity.job.yaml, "model: x\n");
    assert_string_equal(identity.job.isa, "portable");
    journal_identity_free(&identity);
    assert_int_equal(journal_identify(in_folder("none.journal"), &found, &identity), OK);
    assert_false(found);
}

static enum status pending_name(void *ctx, int64_t index, char *buf)
{
    (void)ctx;
    snprintf(buf, RESULTS_ID_MAX + 1, "pending-%lld", (long long)index);
    return OK;
}

static void read_array(const char *path, const char *name, hid_t type, void *out, int64_t expected)
{
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    hid_t set = H5Dopen2(file, name, H5P_DEFAULT), space = H5Dget_space(set);
    hsize_t n = 0;
    H5Sget_simple_extent_dims(space, &n, NULL);
    assert_int_equal(n, expected);
    assert_true(H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out) >= 0);
    H5Sclose(space);
    H5Dclose(set);
    H5Fclose(file);
}

/* A partial file in the middle of a job, then the complete one over it. */
static void test_build(void **state)
{
    (void)state;
    static struct summary summary;
    struct journal *j = fresh();
    put_job(j, 2);
    char path[256];
    snprintf(path, sizeof path, "%s", in_folder("a.h5"));
    struct journal_build build = {
        .path = path, .pending_id = pending_name, .id_bytes = 9, .prices = prices};
    assert_int_equal(journal_build_results(j, &build, &summary), OK);
    assert_false(summary.valid);
    assert_int_equal(summary.pending, 2);

    put_sample(j, 1);
    put_sample(j, 0);
    end(j, 10);
    build.complete = true;
    assert_int_equal(journal_build_results(j, &build, &summary), OK);
    assert_true(summary.valid);
    assert_int_equal(summary.steps[STEP_PREFILL] + summary.steps[STEP_DECODE], 100);
    assert_int_equal(summary.throughput.prefill_ranks, 2);
    assert_int_equal(journal_close(j), OK);
    assert_int_not_equal(access(in_folder("a.h5.tmp"), F_OK), 0);

    enum { TOTAL = 11 * 12 / 2 - 5 }; /* request 5 failed */
    int32_t tokens[TOTAL];
    int64_t offsets[REQUESTS + 1], prompt_offsets[REQUESTS + 1];
    float logprobs[TOTAL], prompt[4 * 3];
    read_array(path, "/outputs/tokens", H5T_NATIVE_INT32, tokens, TOTAL);
    read_array(path, "/outputs/offsets", H5T_NATIVE_INT64, offsets, REQUESTS + 1);
    read_array(path, "/outputs/logprobs", H5T_NATIVE_FLOAT, logprobs, TOTAL);
    read_array(path, "/outputs/prompt_logprobs", H5T_NATIVE_FLOAT, prompt, 4 * 3);
    read_array(path, "/outputs/prompt_offsets", H5T_NATIVE_INT64, prompt_offsets, REQUESTS + 1);
    int64_t at = 0;
    for (int i = 0; i < REQUESTS; i++) {
        struct sample s;
        make_sample(&s, i);
        assert_int_equal(offsets[i], at);
        assert_int_equal(prompt_offsets[i + 1] - prompt_offsets[i], i % 3 ? 0 : 3);
        for (int k = 0; k < s.row.output_tokens; k++, at++) {
            assert_int_equal(tokens[at], s.tokens[k]);
            if (i % 2)
                assert_true(logprobs[at] == s.logprobs[k]);
            else
                assert_true(isnan(logprobs[at]));
        }
    }
    assert_int_equal(offsets[REQUESTS], at);
    assert_true(isnan(prompt[0]) && prompt[3 + 2] == -5.0f);

    double load[3 * 4];
    assert_int_equal(results_read_expert_load(path, 3, 4, load), OK);
    const double expected[3 * 4] = {0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0};
    assert_memory_equal(load, expected, sizeof load);
}

/* Opens and reads the file again and again until `more` is closed; exit code 0: always whole. */
static int read_on(const char *path, int more)
{
    char byte;
    int64_t times = 0;
    while (read(more, &byte, 1) < 0) { /* nothing yet, and not closed */
        int64_t offsets[REQUESTS + 1];
        hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
        hid_t set = file >= 0 ? H5Dopen2(file, "/outputs/offsets", H5P_DEFAULT) : -1;
        if (set < 0 || H5Dget_storage_size(set) == 0 || H5Aexists(file, "status") <= 0 ||
            H5Dread(set, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, offsets) < 0)
            return 1;
        H5Dclose(set);
        H5Fclose(file);
        times++;
    }
    return times ? 0 : 2;
}

/* A reader never meets half a file, however often it is written anew. */
static void test_readable_at_any_moment(void **state)
{
    (void)state;
    static struct summary summary;
    char path[256];
    int more[2], how;
    snprintf(path, sizeof path, "%s", in_folder("a.h5"));
    struct journal *j = fresh();
    struct journal_build build = {
        .path = path, .pending_id = pending_name, .id_bytes = 9, .prices = prices};
    put_job(j, REQUESTS);
    assert_int_equal(journal_build_results(j, &build, &summary), OK);
    assert_int_equal(pipe(more), 0);
    assert_int_equal(fcntl(more[0], F_SETFL, O_NONBLOCK), 0);
    pid_t child = fork();
    if (child == 0) {
        close(more[1]);
        _exit(read_on(path, more[0]));
    }
    close(more[0]);
    for (int k = 0; k < 10; k++)
        for (int i = 0; i < REQUESTS; i++) {
            if (k == 0) put_sample(j, i);
            assert_int_equal(journal_build_results(j, &build, &summary), OK);
        }
    clock_sleep_us(50000); /* a last look at the last one */
    close(more[1]);
    waitpid(child, &how, 0);
    assert_true(WIFEXITED(how));
    assert_int_equal(WEXITSTATUS(how), 0);
    assert_int_equal(journal_close(j), OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dir_of),
        cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_truncated_anywhere, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flipped_bits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_records_of_an_older_journal, setup, teardown),
        cmocka_unit_test_setup_teardown(test_missing_segment, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_header, setup, teardown),
        cmocka_unit_test_setup_teardown(test_resume, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_job_and_force, setup, teardown),
        cmocka_unit_test_setup_teardown(test_build, setup, teardown),
        cmocka_unit_test_setup_teardown(test_readable_at_any_moment, setup, teardown),
    };
    return cmocka_run_group_tests_name("journal", tests, NULL, NULL);
}
