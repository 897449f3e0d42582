/* links: core config */
/* test_config.c - the option table over YAML and --set: values, every error's text, the dump. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "config/job.h"
#include "config/job_args.h"
#include "config/options.h"
#include "config/prices.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEAD "model: m\ntokens: t.jsonl\nresults: r.h5\n"

/* Writes text to a new file, whose name the caller frees after unlink. */
static char *temp_file(const char *text, size_t bytes)
{
    char *path = strdup("/tmp/moebatch-test-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, bytes), bytes);
    close(fd);
    return path;
}

static enum status read_text(const char *text, int n, const char *const *set, struct job *job)
{
    char *path = temp_file(text, strlen(text));
    error_clear();
    enum status st = job_read(path, n, set, job);
    unlink(path);
    free(path);
    return st;
}

static void assert_message(const char *fragment)
{
    if (!strstr(error_text(), fragment)) {
        print_error("message: %s\nexpected: %s\n", error_text(), fragment);
        fail();
    }
}

static void test_defaults(void **state)
{
    (void)state;
    struct job j;
    assert_int_equal(read_text(HEAD, 0, NULL, &j), OK);
    assert_string_equal(j.model, "m");
    assert_string_equal(j.responses, "");
    assert_string_equal(j.prices, "inputs/prices/deepseek_r1.yaml");
    assert_int_equal(j.backend, JOB_AUTO);
    assert_int_equal(j.numerics, JOB_NUMERICS_CHECKPOINT);
    assert_false(j.prefill.present || j.decode.present || j.mixed.present);
    assert_int_equal(j.kv.page_tokens, 64);
    assert_int_equal(j.kv.pages_per_rank, JOB_AUTO);
    assert_int_equal(j.sampling.max_tokens, 64);
    assert_true(j.sampling.top_p == 1 && j.ep.recv_rows_factor == 2 && j.journal_fsync_s == 5);
    assert_int_equal(j.mixed.ep, JOB_AUTO);
    assert_int_equal(j.decode.max_batch, 128);
}

static void test_values(void **state)
{
    (void)state;
    struct job j;
    const char *text = HEAD
        "# a comment\nisa: avx512_bf16\nbackend: cuda-emu\nnumerics: fp32\n"
        "prefill: {units: 2, ep: 32, redundant_experts: 32, chunk_tokens: 512, overlap: false}\n"
        "decode:\n  ep: 144\n  max_batch: 8\n  microbatches: 1\n"
        "sampling: {temperature: 0.7, top_p: 9.5e-1, seed: 18446744073709551615, logprobs: true}\n"
        "kv: {pages_per_rank: auto, prefix_cache: off}\nexperts:\nwatchdog_s: 0\n"
        "responses: \"a \\\"b\\\" é.jsonl\"\n";
    assert_int_equal(read_text(text, 0, NULL, &j), OK);
    assert_int_equal(j.isa, 3);
    assert_int_equal(j.backend, JOB_BACKEND_CUDA_EMU);
    assert_int_equal(j.numerics, JOB_NUMERICS_FP32);
    assert_true(j.prefill.present && j.decode.present && !j.mixed.present);
    assert_int_equal(job_ranks(&j), 2 * 32 + 144);
    assert_false(j.prefill.overlap);
    assert_true(j.decode.overlap);
    assert_true(j.sampling.temperature == 0.7 && j.sampling.top_p == 0.95);
    assert_true(j.sampling.seed == UINT64_MAX);
    assert_int_equal(j.kv.prefix_cache, JOB_PREFIX_OFF);
    assert_string_equal(j.responses, "a \"b\" é.jsonl");
}

/* Every kind of wrong file: what the message must say. */
static void test_errors(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {HEAD "decode:\n  max_bach: 8\n",
         ":5:3: unknown key decode.max_bach in this job file: did you mean decode.max_batch?"},
        {HEAD "max_batch: 8\n", ":4:1: unknown key max_batch in this job file: did you mean "
                                "decode.max_batch?"},
        {HEAD "prefil: {ep: 1}\n", ":4:1: unknown key prefil in this job file: did you mean "
                                   "prefill?"},
        {HEAD "max_tokens: 1\n", "did you mean sampling.max_tokens?"},
        {HEAD "decode: {ep: many}\n",
         ":4:14: decode.ep: found \"many\", expected an integer in 1..65536 or auto"},
        {HEAD "decode: {ep: \"8\"}\n", "decode.ep: found the text \"8\", expected an integer"},
        {HEAD "decode: {ep: 8.0}\n", "found \"8.0\""},
        {HEAD "decode: {ep: +8}\n", "found \"+8\""},
        {HEAD "decode: {ep: 0}\n", "found \"0\", expected an integer in 1..65536 or auto"},
        {HEAD "decode: {ep: -1}\n", "found \"-1\""},
        {HEAD "decode: {ep: 99999999999999999999}\n", "found \"99999999999999999999\""},
        {HEAD "decode: {ep: [1, 2]}\n", "decode.ep: found a list, expected an integer"},
        {HEAD "decode: {ep: {a: 1}}\n", "decode.ep: found a mapping"},
        {HEAD "decode: {ep: }\n", "decode.ep: found nothing"},
        {HEAD "decode: {units: auto}\n", "found \"auto\", expected an integer in 1..65536"},
        {HEAD "decode: {microbatches: 3}\n", "expected an integer in 1..2"},
        {HEAD "decode: 8\n", ":4:9: decode: found \"8\", expected a mapping {key: value, ...} or"},
        {HEAD "ep: 8\n", ":4:5: ep: found \"8\", expected a mapping, as in "
                         "{max_tokens_per_rank: ...}"},
        {HEAD "decode: {overlap: 1}\n", "expected true or false"},
        {HEAD "decode: {overlap: yes}\n", "found \"yes\", expected true or false"},
        {HEAD "isa: sse\n", "isa: found \"sse\", expected one of auto, portable, avx2, avx512, "
                            "avx512_bf16, amx"},
        {HEAD "numerics: auto\n", "expected one of checkpoint, bf16, fp32"},
        {HEAD "sampling: {top_p: 1.5}\n", "expected a number in 0..1"},
        {HEAD "sampling: {top_p: 0}\n", "sampling.top_p: found 0, expected a number above 0"},
        {HEAD "sampling: {temperature: .nan}\n", "expected a number in 0..100"},
        {HEAD "sampling: {temperature: 0x10}\n", "found \"0x10\""},
        {HEAD "sampling: {seed: -1}\n", "expected an integer in 0..2^64-1"},
        {HEAD "sampling: {seed: 18446744073709551616}\n", "expected an integer in 0..2^64-1"},
        {HEAD "sampling: {max_tokens: -5}\n", "expected an integer of at least 0"},
        {HEAD "model: again\n", ":4:1: model is given twice, first in line 1"},
        {HEAD "kv: {page_tokens: 1, page_tokens: 2}\n", "page_tokens is given twice"},
        {"tokens: t\nresults: r\n", ": model is missing: add \"model: PATH\""},
        {"model: m\nresults: r\n", ": tokens is missing"},
        {"model: m\ntokens: t\nresults: null\n", ": results is missing"},
        {"model: [m]\n", "model: found a list, expected text of at most 1023 bytes"},
        {HEAD "prefill: {ep: 1}\n", ": prefill is given without decode"},
        {HEAD "decode: {ep: 1}\n", ": decode is given without prefill"},
        {HEAD "mixed: {}\nprefill: {}\ndecode: {}\n", ": mixed and prefill are both given"},
        {HEAD "mixed: {max_batch: 160}\nep: {max_tokens_per_rank: 128}\n",
         "mixed.max_batch is 160, but the dispatch buffer holds 128 tokens a rank: set "
         "ep.max_tokens_per_rank to 160 or auto, or lower mixed.max_batch"},
        {HEAD "? [a]\n: b\n", "found a list as a key"},
        {HEAD "kv: &x {kv: *x}\n", "unknown key kv.kv"},
        {HEAD "---\nmodel: b\n", ":5:1: a second YAML document"},
        {HEAD "  bad: indent\n", ":4:6: not YAML"},
        {HEAD "kv: {page_tokens: 1\n", "not YAML"},
        {HEAD "kv: *nobody\n", "not YAML"},
        {HEAD "\xff\xfe\n", "not YAML"},
        {"", ": the file is empty, expected a job file"},
        {"# only a comment\n", ": the file is empty"},
        {"just text\n", ":1:1: found \"just text\", expected the keys of a job file"},
        {"- a\n", ":1:1: found a list, expected the keys of a job file"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct job j;
        enum status st = read_text(cases[i].text, 0, NULL, &j);
        if (st != ERR_INPUT) print_error("case %zu: %s", i, cases[i].text);
        assert_int_equal(st, ERR_INPUT);
        assert_message(cases[i].message);
    }
}

static void test_no_file(void **state)
{
    (void)state;
    struct job j;
    error_clear();
    assert_int_equal(job_read("/nowhere/job.yaml", 0, NULL, &j), ERR_INPUT);
    assert_message("cannot open job file /nowhere/job.yaml: No such file or directory");
    error_clear();
    assert_int_equal(job_read("/tmp", 0, NULL, &j), ERR_INPUT);
    assert_message("cannot read job file /tmp: Is a directory");
    char nul[] = HEAD "isa: \"a\\0b\"\n";
    char *path = temp_file(nul, sizeof nul - 1);
    error_clear();
    assert_int_equal(job_read(path, 0, NULL, &j), ERR_INPUT);
    unlink(path);
    free(path);
}

static void test_set(void **state)
{
    (void)state;
    struct job j;
    const char *ok[] = {"decode.ep=8",     "prefill.ep=4", "results=a=b.h5",
                        "sampling.seed=7", "decode.ep=16", "responses=null"};
    assert_int_equal(read_text(HEAD "responses: x\n", 6, ok, &j), OK);
    assert_true(j.decode.present && j.prefill.present);
    assert_int_equal(j.decode.ep, 16);
    assert_string_equal(j.results, "a=b.h5");
    assert_string_equal(j.responses, "");
    const char *mixed[] = {"prefill=null", "decode=null", "mixed.ep=8"};
    assert_int_equal(read_text(HEAD "prefill: {ep: 4}\ndecode: {ep: 4}\n", 3, mixed, &j), OK);
    assert_true(j.mixed.present && !j.prefill.present && !j.decode.present);
    static const struct {
        const char *set, *message;
    } bad[] = {
        {"decode.max_bach=8", "unknown key decode.max_bach: did you mean decode.max_batch?"},
        {"decode.ep", "--set decode.ep: expected key=value"},
        {"=8", "expected key=value"},
        {"decode.ep=", "--set: decode.ep: found \"\", expected an integer in 1..65536 or auto"},
        {"decode.ep=x", "--set: decode.ep: found \"x\""},
        {"kv=8", "--set kv=8: kv is a section: set one of its keys, as in kv.page_tokens"},
        {"decode=8", "--set: decode: found \"8\", expected a mapping {key: value, ...} or null"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(read_text(HEAD, 1, &bad[i].set, &j), ERR_USAGE);
        assert_message(bad[i].message);
    }
}

/* Reading the dump gives the same bytes back, with and without comments. */
static void test_dump_round_trip(void **state)
{
    (void)state;
    static const char *texts[] = {
        HEAD,
        HEAD "mixed: {ep: 3}\nsampling: {temperature: 0.1, top_p: 0.3333333333333333}\n",
        HEAD "prefill: {units: 3}\ndecode: {redundant_experts: 5, overlap: false}\nisa: amx\n",
        ("model: \"null\"\ntokens: \"a: b # c\"\nresults: \"é\\t\\\"\\\\ 'x'\"\ntrace: \"12\"\n"
         "responses: ' lead'\nexperts: {load: \"-x\"}\nwatchdog_s: 1e-3\nforce: true\n"),
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        for (int docs = 0; docs < 2; docs++) {
            struct job a, b;
            assert_int_equal(read_text(texts[i], 0, NULL, &a), OK);
            char *text = NULL;
            size_t n = 0;
            FILE *m = open_memstream(&text, &n);
            job_dump(&a, docs, m);
            fclose(m);
            if (read_text(text, 0, NULL, &b) != OK) print_error("%s\n%s", error_text(), text);
            assert_string_equal(error_text(), "");
            assert_memory_equal(&a, &b, sizeof a);
            free(text);
        }
    struct job a;
    assert_int_equal(read_text(HEAD, 0, NULL, &a), OK);
    char *yaml = job_yaml(&a);
    assert_non_null(strstr(yaml, "model: m\n"));
    assert_non_null(strstr(yaml, "kv:\n  page_tokens: 64\n  pages_per_rank: auto\n"));
    assert_null(strstr(yaml, "prefill:"));
    free(yaml);
}

static void test_distance(void **state)
{
    (void)state;
    assert_int_equal(options_distance("", "abc"), 3);
    assert_int_equal(options_distance("kitten", "sitting"), 3);
    assert_int_equal(options_distance("same", "same"), 0);
}

static void test_args(void **state)
{
    (void)state;
    char *path = temp_file(HEAD, strlen(HEAD));
    char *argv[] = {"run",     "--set",  "mixed.ep=2",    path, "--force", "--set=strict=true",
                    "--trace", "t.json", "--dump-config", NULL};
    struct job_args args;
    error_clear();
    assert_int_equal(job_args_parse(9, argv, &args), OK);
    assert_string_equal(args.path, path);
    assert_true(args.dump_config && args.job.force && args.job.strict && args.job.mixed.ep == 2);
    assert_string_equal(args.job.trace, "t.json");
    static const struct {
        char *argv[4];
        int n;
        const char *message;
    } bad[] = {
        {{"run"}, 1, "no job file: moebatch run JOB.yaml"},
        {{"run", "a", "b"}, 3, "two job files, a and b"},
        {{"run", "a", "--sett"}, 3, "unknown option --sett: see moebatch run --help"},
        {{"run", "a", "--set"}, 3, "--set needs a value: --set KEY=VALUE"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        error_clear();
        assert_int_equal(job_args_parse(bad[i].n, (char **)bad[i].argv, &args), ERR_USAGE);
        assert_message(bad[i].message);
    }
    unlink(path);
    free(path);
}

static void test_prices(void **state)
{
    (void)state;
    struct account_prices p;
    if (access("inputs/prices/deepseek_r1.yaml", R_OK) == 0) {
        assert_int_equal(prices_read("inputs/prices/deepseek_r1.yaml", &p), OK);
        assert_true(p.usd_per_gpu_hour == 2 && p.usd_per_m_hit == 0.14);
        assert_true(p.usd_per_m_miss == 0.55 && p.usd_per_m_output == 2.19);
    } else {
        print_message("# test_prices: inputs/ is not here: run from the repository's root\n");
    }
    const char *missing = "usd_per_gpu_hour: 2\nusd_per_million: {output: 1}\n";
    char *path = temp_file(missing, strlen(missing));
    error_clear();
    assert_int_equal(prices_read(path, &p), ERR_INPUT);
    assert_message("usd_per_million.input_cache_hit is missing");
    unlink(path);
    free(path);
}

/* What a resumed job may change and what not, named with both values. */
static void test_compare(void **state)
{
    (void)state;
    const char *before[] = {"model=m",    "tokens=t.jsonl",           "results=r.h5",
                            "mixed.ep=4", "sampling.temperature=0.5", "decode=null"};
    const char *now[] = {"model=m",
                         "tokens=t.jsonl",
                         "results=r.h5",
                         "mixed.ep=4",
                         "mixed.units=2",
                         "mixed.max_batch=7",
                         "sampling.temperature=0.25",
                         "sampling.seed=9",
                         "numerics=fp32",
                         "responses=a.jsonl",
                         "resume=true"};
    static struct job a, b;
    static struct job_changes changes;
    assert_int_equal(job_read(NULL, 6, before, &a), OK);
    char *yaml = job_yaml(&a);
    assert_int_equal(job_compare(yaml, &a, &changes), OK);
    assert_string_equal(changes.fixed, "");
    assert_string_equal(changes.free, "");
    assert_int_equal(job_read(NULL, 11, now, &b), OK);
    assert_int_equal(job_compare(yaml, &b, &changes), OK);
    assert_string_equal(changes.fixed,
                        "numerics was checkpoint, is fp32; sampling.temperature was 0.5, is 0.25; "
                        "sampling.seed was 0, is 9");
    assert_string_equal(changes.free, "responses was null, is a.jsonl; mixed.units was 1, is 2; "
                                      "mixed.max_batch was 128, is 7");
    /* Units of another kind: the sections count, not their keys. */
    const char *split[] = {"model=m",      "tokens=t.jsonl", "results=r.h5",
                           "prefill.ep=2", "decode.ep=2",    "sampling.temperature=0.5"};
    assert_int_equal(job_read(NULL, 6, split, &b), OK);
    assert_int_equal(job_compare(yaml, &b, &changes), OK);
    assert_string_equal(changes.free,
                        "prefill was not given, is given; decode was not given, is given; mixed "
                        "was given, is not given");
    assert_int_equal(job_compare("no_such_key: 1\n", &b, &changes), ERR_INPUT);
    error_clear();
    free(yaml);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults), cmocka_unit_test(test_values),
        cmocka_unit_test(test_errors),   cmocka_unit_test(test_no_file),
        cmocka_unit_test(test_set),      cmocka_unit_test(test_dump_round_trip),
        cmocka_unit_test(test_distance), cmocka_unit_test(test_args),
        cmocka_unit_test(test_prices),   cmocka_unit_test(test_compare),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}
