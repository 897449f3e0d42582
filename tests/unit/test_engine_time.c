/* links: core cluster balance schedule kvcache checkpoint config account */
/* test_engine_time.c - predictions of runs from a host file with round numbers, against what can be
 * counted by hand. Alone: make unit-engine_time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cluster/engine_step.h"
#include "cluster/engine_time.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void near(double a, double b)
{
    if (!(fabs(a - b) <= 1e-9 * fmax(1, fabs(b)))) fail_msg("%.12g, expected %.12g", a, b);
}

/* Every kernel call takes 1 us whatever its size, each half of an all-to-all 10. */
static struct host_speed calls_only(void)
{
    struct host_speed s;
    memset(&s, 0, sizeof s);
    snprintf(s.name, sizeof s.name, "calls");
    s.cores = 2;
    for (int i = 0; i < SPEED_FOOTPRINTS; i++) s.footprint.mb[i] = 1 << i;
    for (int t = 0; t < SPEED_TYPES; t++) {
        s.panel[t] = 64;
        s.gemm[t].call = 1;
    }
    for (int op = 0; op < SPEED_ROW_OPS; op++) s.rows[op][0] = 1;
    s.prefill_attention[0] = s.decode_attention[0] = 1;
    s.ep.n = s.engine.n = 1;
    s.ep.ranks[0] = s.engine.ranks[0] = 1;
    for (int mode = 0; mode < 2; mode++)
        for (int p = 0; p < SPEED_EP_PARTS; p++) s.ep.part[0][mode][p][0] = 10;
    return s;
}

/* Times that grow with sizes, as a machine's do: blocks 1 us + 0.1 a row, three times from memory. */
static struct host_speed growing(void)
{
    struct host_speed s = calls_only();
    for (int t = 0; t < SPEED_TYPES; t++)
        for (int r = 0; r < SPEED_ROWS; r++) {
            double us = 1 + 0.1 * host_speed_rows[r];
            for (int c = 0; c < SPEED_CORES; c++) {
                s.gemm[t].block[c][r] = us;
                s.gemm[t].cold[c][r] = us + 2;
            }
            s.gemm[t].shallow[r] = us / 4;
            s.gemm[t].panel[r] = 0.25;
        }
    for (int c = 0; c < SPEED_CORES; c++) {
        s.fork[c] = 10;
        for (int i = 0; i < SPEED_FOOTPRINTS; i++)
            s.footprint.share[c][i] = (double)i / (SPEED_FOOTPRINTS - 1);
    }
    for (int op = 0; op < SPEED_ROW_OPS; op++) s.rows[op][2] = 1e-3;
    s.prefill_attention[4] = s.decode_attention[4] = 1e-3;
    return s;
}

/* A dense layer, then one with 16 experts. */
static struct model_config small_model(void)
{
    struct model_config m;
    memset(&m, 0, sizeof m);
    m.vocab = 512, m.hidden = 256, m.layers = 2, m.max_positions = 4096, m.heads = 4;
    m.q_lora = 64, m.kv_lora = 64, m.dim_nope = 32, m.dim_rope = 16, m.dim_v = 32;
    m.intermediate = 256, m.moe_intermediate = 64, m.experts = 16, m.shared_experts = 1;
    m.topk = 4, m.n_group = 1, m.topk_group = 1, m.first_dense = 1, m.moe_layer_freq = 1;
    return m;
}

static struct job small_job(int max_batch, int chunk)
{
    struct job j;
    memset(&j, 0, sizeof j);
    j.threads_per_rank = 1;
    j.ranks_per_node = -1;
    j.kv.page_tokens = 64;
    j.mixed = (struct job_role){.present = true,
                                .overlap = true,
                                .units = 1,
                                .ep = 1,
                                .chunk_tokens = chunk,
                                .max_batch = max_batch,
                                .microbatches = 1};
    return j;
}

static struct engine_time predict(const struct host_speed *h, const struct model_config *m,
                                  const struct job *j, int n, int prompt, int output)
{
    struct engine_request *r = calloc((size_t)n, sizeof *r);
    struct engine_time t;
    for (int i = 0; i < n; i++) r[i] = (struct engine_request){.prompt = prompt, .output = output};
    struct engine_time_setup s = {.host = h, .model = m, .job = j, .requests = r, .n_requests = n};
    assert_int_equal(engine_time_predict(&s, &t), OK);
    free(r);
    return t;
}

/* ---- kernels --------------------------------------------------------------------------------- */

static void test_product(void **state)
{
    struct host_speed s = growing();
    struct host_weights w = {SPEED_BF16, 128, 0, 256}; /* 2 panels, 2 blocks deep */
    struct host_view hot = host_view_make(&s, 1, 1, 0), cold = host_view_make(&s, 1, 1, 1e4);
    near(hot.cold, 0);
    near(cold.cold, 1);
    near(host_dense_us(&hot, &w, 5), 1 + 2 * (2 * 1.5 + 0.25));
    near(host_dense_us(&cold, &w, 5), 1 + 2 * (2 * 3.5 + 0.25));
    w.k = 160; /* a block and a quarter */
    near(host_dense_us(&hot, &w, 5), 1 + 2 * (1.5 + 0.375 + 0.25));
    w.k = 256;
    s.gemm[SPEED_BF16].pack[5] = 0;
    for (int r = 0; r < SPEED_ROWS; r++) s.gemm[SPEED_BF16].pack[r] = 0.5;
    near(host_dense_us(&hot, &w, 5), 1 + 2 * (2 * 1.5 + 0.25) + 2 * 0.5);
    (void)state;
}

static void test_rows_beyond_a_block(void **state)
{
    struct host_speed s = growing();
    struct host_weights w = {SPEED_FP8, 64, 0, 128};
    struct host_view v = host_view_make(&s, 1, 1, 1e4);
    /* 384 rows: two blocks of 192; the weights come from memory once. */
    near(host_dense_us(&v, &w, 384), 1 + (1 + 19.2 + 2 + 0.25) + (1 + 19.2 + 0.25));
    (void)state;
}

static void test_threads(void **state)
{
    struct host_speed s = growing();
    struct host_weights w = {SPEED_BF16, 512, 0, 1024}; /* 8 panels, 8 deep */
    struct host_view one = host_view_make(&s, 1, 1, 0), two = host_view_make(&s, 2, 2, 0);
    double us = 8 * (8 * 1.4 + 0.25);
    near(host_dense_us(&one, &w, 4), 1 + us);
    near(host_dense_us(&two, &w, 4), 1 + 10 + us / 2);
    w.n0 = 64, w.k = 128; /* not worth waking anybody */
    near(host_dense_us(&two, &w, 4), host_dense_us(&one, &w, 4));
    (void)state;
}

static void test_spread(void **state)
{
    struct host_spread s = {.n = 0};
    host_spread_binomial(&s, 16, 20, 0.25);
    assert_true(fabs(host_spread_rows(&s) - 16 * 5) < 1e-3);
    assert_true(fabs(host_spread_busy(&s) - 16 * (1 - pow(0.75, 20))) < 1e-3);
    s.n = 0;
    host_spread_binomial(&s, 8, 1, 1);
    near(host_spread_rows(&s), 8);
    s.n = 0;
    host_spread_binomial(&s, 100, 5000, 0.1); /* taken together, the mean stays */
    assert_true(fabs(host_spread_rows(&s) / (100 * 500) - 1) < 1e-3);
    (void)state;
}

static void test_monotonic(void **state)
{
    struct host_speed s = growing();
    struct host_view v = host_view_make(&s, 2, 2, 4);
    struct host_weights w = {SPEED_FP8, 512, 512, 1024};
    struct host_heads h = {8, 64, 32, 64, 128};
    double m_before = 0, keys_before = 0, prompt_before = 0;
    for (double m = 1; m <= 4096; m *= 2) {
        double now = host_dense_us(&v, &w, m), keys = host_decode_us(&v, &h, 4, 4 * m, 4);
        double prompt = host_prefill_us(&v, &h, m, 64);
        assert_true(now >= m_before && keys >= keys_before && prompt >= prompt_before);
        m_before = now, keys_before = keys, prompt_before = prompt;
    }
    (void)state;
}

static void test_fit(void **state)
{
    double x[5][SPEED_COEFS] = {{1, 1}, {1, 10}, {1, 100}, {1, 3, 0}, {1, 30}}, y[5],
           c[SPEED_COEFS];
    for (int i = 0; i < 5; i++) y[i] = 2 + 0.5 * x[i][1];
    host_fit(5, 2, (const double(*)[SPEED_COEFS])x, y, NULL, c);
    assert_true(fabs(c[0] - 2) < 1e-6 && fabs(c[1] - 0.5) < 1e-6);
    for (int i = 0; i < 5; i++) y[i] = 10 - 0.05 * x[i][1]; /* a falling line: the mean */
    host_fit(5, 2, (const double(*)[SPEED_COEFS])x, y, NULL, c);
    assert_true(c[1] >= 0 && c[0] > 0);
    (void)state;
}

/* ---- steps ----------------------------------------------------------------------------------- */

/* Decode, FP8: calls counted in model/attn.c and model/mlp.c. */
static void test_decode_step(void **state)
{
    struct host_speed s = calls_only();
    struct model_config m = small_model();
    struct engine_unit u = {.host = &s,
                            .model = &m,
                            .decode = true,
                            .fp8 = true,
                            .ep = 1,
                            .threads = 1,
                            .node_ranks = 1,
                            .busy = 1};
    struct engine_step step;
    struct engine_step_time t;
    assert_int_equal(engine_step_create(&u, 1, true, &step), OK);
    struct host_view v = engine_unit_view(&u, 1, 0);
    struct engine_load load = {.tokens = 1, .unit_tokens = 1, .head_calls = 1, .head_rows = 1};
    double core = engine_keys_us(&u, &v, 1, 100, 1);
    engine_step_time(&step, &v, &load, &core, 1, &t);
    double attn0 = 13, attn1 = 7, dense = 6, gate = 3 + 10, experts = 4 + 20, shared = 4;
    double head = 2 + 10 + 5;
    near(t.us, 1 + (attn0 + attn1 + dense) + (attn0 + attn1 + gate + experts + shared) + head);
    /* The engine's own work on top, also for each operation of the schedule. */
    s.engine.op = 2;
    s.engine.decode_step[0] = 100;
    s.engine.row = 7;
    assert_int_equal(step.list.n_ops, 11);
    double before = t.us;
    engine_step_time(&step, &v, &load, &core, 3, &t);
    near(t.us, before + 11 * 2 + 100 + 3 * 7);
    engine_step_free(&step);
    (void)state;
}

/* ---- jobs ------------------------------------------------------------------------------------ */

static void test_schedule_of_a_job(void **state)
{
    struct host_speed s = calls_only();
    struct model_config m = small_model();
    struct job j = small_job(2, 1024);
    /* Three requests of three tokens, two at a time: one prefill step, then 2 + 2 decode steps. */
    struct engine_time t = predict(&s, &m, &j, 3, 10, 3);
    assert_int_equal(t.prefill_steps, 1);
    assert_int_equal(t.prefill_tokens, 30);
    assert_int_equal(t.decode_steps, 4);
    assert_int_equal(t.decode_tokens, 6);
    /* BF16 converts as often as FP8: each decode step is test_decode_step's. */
    near(t.decode_span_s, 4 * 105e-6);
    near(t.mean_batch, 1.5);
    near(t.total_s, t.prefill_span_s + t.decode_span_s);
    near(t.ttft_s.p99, t.prefill_span_s);
    near(t.decode_tokens_per_s, 6 / t.decode_span_s);
    /* Chunks of 16 tokens: a prompt and a part; decode steps in between. */
    j = small_job(2, 16);
    t = predict(&s, &m, &j, 3, 10, 3);
    assert_int_equal(t.prefill_steps, 2);
    assert_int_equal(t.prefill_tokens, 30);
    assert_int_equal(t.decode_tokens, 6);
    (void)state;
}

static void test_job_grows(void **state)
{
    struct host_speed s = growing();
    struct model_config m = small_model();
    struct job j = small_job(8, 512);
    double base = predict(&s, &m, &j, 16, 100, 20).total_s;
    assert_true(predict(&s, &m, &j, 16, 200, 20).total_s > base);
    assert_true(predict(&s, &m, &j, 16, 100, 40).total_s > base);
    assert_true(predict(&s, &m, &j, 32, 100, 20).total_s > base);
    struct job wide = small_job(16, 512);
    assert_true(predict(&s, &m, &wide, 16, 100, 20).decode_tokens_per_s >
                predict(&s, &m, &j, 16, 100, 20).decode_tokens_per_s);
    (void)state;
}

static void test_split_units(void **state)
{
    struct host_speed s = growing();
    struct model_config m = small_model();
    struct job j = small_job(8, 512);
    j.prefill = j.decode = j.mixed;
    j.mixed = (struct job_role){.present = false};
    struct engine_time t = predict(&s, &m, &j, 16, 100, 20);
    assert_int_equal(t.prefill_tokens, 1600);
    assert_int_equal(t.decode_tokens, 16 * 19);
    assert_true(t.total_s < t.prefill_step_s + t.decode_step_s + 1e-9); /* they overlap, or meet */
    (void)state;
}

static void test_popular_experts_cost_less(void **state)
{
    struct host_speed s = growing();
    struct model_config m = small_model();
    struct job j = small_job(8, 512);
    struct engine_request r[8];
    double load[2][16] = {{0}};
    for (int i = 0; i < 8; i++) r[i] = (struct engine_request){.prompt = 20, .output = 20};
    for (int e = 0; e < 4; e++) load[1][e] = 1; /* all tokens choose the same four */
    struct engine_time_setup setup = {
        .host = &s, .model = &m, .job = &j, .requests = r, .n_requests = 8};
    struct engine_time uniform, skewed;
    assert_int_equal(engine_time_predict(&setup, &uniform), OK);
    setup.expert_load = &load[0][0];
    assert_int_equal(engine_time_predict(&setup, &skewed), OK);
    assert_true(skewed.decode_span_s < uniform.decode_span_s); /* fewer matrices to read */
    (void)state;
}

static void test_unmeasured_ranks(void **state)
{
    struct host_speed s = calls_only();
    struct model_config m = small_model();
    struct job j = small_job(8, 512);
    j.mixed.ep = 4;
    struct engine_request r = {.prompt = 20, .output = 20};
    struct engine_time_setup setup = {
        .host = &s, .model = &m, .job = &j, .requests = &r, .n_requests = 1};
    struct engine_time t;
    assert_int_equal(engine_time_predict(&setup, &t), ERR_INPUT);
    assert_non_null(strstr(error_text(), "mpirun -np 4 moebatch calibrate"));
    error_clear();
    (void)state;
}

/* ---- files ----------------------------------------------------------------------------------- */

static enum status read_text(const char *text, struct host_speed *out)
{
    char path[] = "/tmp/host_speed_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    enum status st = host_speed_read(path, out);
    unlink(path);
    return st;
}

enum { FILE_BYTES = 1 << 16 };

static char *written(const struct host_speed *s)
{
    char *text = calloc(1, FILE_BYTES);
    FILE *f = fmemopen(text, FILE_BYTES - 1, "w");
    host_speed_write(s, f);
    fclose(f);
    return text;
}

static void test_file_reads_back(void **state)
{
    struct host_speed s = growing(), back;
    s.ep.n = s.engine.n = 2;
    s.ep.ranks[1] = s.engine.ranks[1] = 2;
    s.ep.part[1][1][SPEED_COMBINE_FINISH][3] = 0.125;
    s.engine.decode_step[1] = 42;
    char *text = written(&s);
    assert_int_equal(read_text(text, &back), OK);
    near(back.ep.part[1][1][SPEED_COMBINE_FINISH][3], 0.125);
    near(back.engine.decode_step[1], 42);
    near(back.gemm[SPEED_FP8].block[SPEED_ALL][4], 1.5);
    assert_string_equal(back.name, "calls");
    assert_int_equal(back.engine.n, 2);
    free(text);
    (void)state;
}

/* Replaces the first `from` in the text. */
static void refuse(const char *from, const char *to, const char *message)
{
    struct host_speed s = growing(), out;
    char *text = written(&s), *at = strstr(text, from);
    assert_non_null(at);
    char *bad = malloc(strlen(text) + strlen(to) + 1);
    sprintf(bad, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    assert_int_equal(read_text(bad, &out), ERR_INPUT);
    if (!strstr(error_text(), message)) fail_msg("%s: not in: %s", message, error_text());
    error_clear();
    free(bad);
    free(text);
}

static void test_bad_files(void **state)
{
    refuse("two: \"10\"", "two: \"\"", "fork.two: found 0 numbers, expected 1");
    refuse("two: \"10\"", "two: \"-1\"", "fork.two: found '-1'");
    refuse("two: \"10\"", "two: \"ten\"", "fork.two: found 'ten'");
    refuse("mb: \"1 2 4", "mb: \"1 4 2", "footprint.mb: found 2 after 4");
    refuse("kind: cpu", "kind: gpu", "kind");
    refuse("cores: 2", "kernels: 2", "kernels");
    struct host_speed out;
    assert_int_equal(host_speed_find("/nowhere/host.yaml", &out), ERR_INPUT);
    assert_non_null(strstr(error_text(), "moebatch calibrate"));
    error_clear();
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_product),
        cmocka_unit_test(test_rows_beyond_a_block),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_spread),
        cmocka_unit_test(test_monotonic),
        cmocka_unit_test(test_fit),
        cmocka_unit_test(test_decode_step),
        cmocka_unit_test(test_schedule_of_a_job),
        cmocka_unit_test(test_job_grows),
        cmocka_unit_test(test_split_units),
        cmocka_unit_test(test_popular_experts_cost_less),
        cmocka_unit_test(test_unmeasured_ranks),
        cmocka_unit_test(test_file_reads_back),
        cmocka_unit_test(test_bad_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
