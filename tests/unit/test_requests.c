/* links: core config requests */
/* test_requests.c - JSONL lines good and malformed, each error's text, duplicates, files that are
 * awkward as a whole, the memory bound, and response lines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/rng.h"
#include "requests/response.h"
#include "requests/token_file.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct job_sampling defaults = {.max_tokens = 64, .top_p = 1, .seed = 5};
static const struct request_limits limits = {.vocab = 100, .context = 50, .kv_pool_tokens = 40};

static struct token_file *open_bytes(const char *text, size_t n)
{
    char path[] = "/tmp/moebatch-test-XXXXXX.jsonl";
    int fd = mkstemps(path, 6);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, n), n);
    close(fd);
    error_clear();
    struct token_file *tf = NULL;
    enum status st = token_file_open(path, &defaults, &limits, &tf);
    unlink(path); /* the open file stays readable */
    if (st != OK) print_error("%s\n", error_text());
    assert_int_equal(st, OK);
    return tf;
}

static void get(struct token_file *tf, int64_t i, struct request *r)
{
    assert_int_equal(token_file_get(tf, i, r), OK);
    assert_int_equal(r->index, i);
}

#define LINE(body) "{\"custom_id\":\"a\",\"body\":" body "}"
#define P "\"prompt\":[1,2,3]"

static void test_good(void **state)
{
    (void)state;
    const char *text =
        "{\"custom_id\":\"x\\u00e9\\\"\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":"
        "{\"model\":\"m\",\"prompt\":[1, 2 ,99],\"max_tokens\":7,\"temperature\":0.5,"
        "\"top_p\":0.9,\"top_k\":40,\"seed\":-3,\"logprobs\":1,\"prompt_logprobs\":true,"
        "\"ignore_eos\":true,\"stop_token_ids\":[4,5],\"n\":1,\"echo\":false,\"stop\":null,"
        "\"stream\":false,\"frequency_penalty\":0.0,\"logit_bias\":{}}}\r\n"
        "\n  \t\r\n" /* blank lines */
        "{\"body\":{\"prompt\":[[7]],\"top_k\":-1,\"max_tokens\":0},\"custom_id\":\"y\"}\n"
        "{\"custom_id\":\"z\",\"body\":{\"pro\\u006dpt\":[3,0],\"max_tokens\":39}}"; /* no \\n */
    struct token_file *tf = open_bytes(text, strlen(text));
    struct request r = {0};
    assert_int_equal(token_file_count(tf), 3);
    get(tf, 0, &r);
    assert_string_equal(r.error, "");
    assert_string_equal(r.custom_id, "x\xc3\xa9\"");
    assert_true(r.n_tokens == 3 && r.tokens[0] == 1 && r.tokens[2] == 99);
    assert_true(r.max_tokens == 7 && r.temperature == 0.5f && r.top_p == 0.9f && r.top_k == 40);
    assert_true(r.seed == (uint64_t)-3 && r.logprobs && r.prompt_logprobs && r.ignore_eos);
    assert_true(r.n_stop == 2 && r.stop_token_ids[1] == 5);
    get(tf, 2, &r);
    assert_string_equal(r.error, "");
    assert_true(r.n_tokens == 2 && r.tokens[0] == 3);
    assert_true(r.seed == rng_u64(5, 2) && !r.logprobs && r.n_stop == 0 && r.top_k == 0);
    assert_int_equal(r.max_tokens, 39); /* the last place of the pool */
    get(tf, 1, &r);
    assert_true(r.n_tokens == 1 && r.tokens[0] == 7 && r.max_tokens == 0 && r.top_k == 0);
    request_free(&r);
    token_file_close(tf);
}

/* Each is one line; the message and the custom_id it must keep. */
static void test_malformed(void **state)
{
    (void)state;
    static const struct {
        const char *line, *id, *message;
    } cases[] = {
        {"{", "", "line 1: not JSON: "},
        {"{\"custom_id\":\"a\",\"body\":{\"prompt\":[1,2}", "a", "line 1: not JSON: "},
        {"{\"custom_id\":\"a\",\"body\":{" P "}} x", "a", "not JSON: end of file expected"},
        {"{\"custom_id\":\"a\",\"body\":{" P ",\"seed\":99999999999999999999}}", "a", "too big"},
        {"{\"custom_id\":\"a\",\"custom_id\":\"b\",\"body\":{" P "}}", "a", "duplicate object key"},
        {"{\"custom_id\":\"a\",\"body\":{" P "," P "}}", "a", "duplicate object key"},
        {"{\"custom_id\":\"a\\u0000b\",\"body\":{" P "}}", "", "not JSON: \\u0000"},
        {"{\"custom_id\":\"\xff\",\"body\":{" P "}}", "", "not JSON: unable to decode byte 0xff"},
        {"[1,2]", "", "expected an object with custom_id and body"},
        {"17", "", "expected an object with custom_id and body"},
        {"\"text\"", "", "expected an object"},
        {"{}", "", "custom_id is missing"},
        {"{\"body\":{" P "}}", "", "custom_id is missing"},
        {"{\"custom_id\":5,\"body\":{" P "}}", "", "custom_id is 5, expected text"},
        {"{\"custom_id\":\"\",\"body\":{" P "}}", "", "custom_id is empty"},
        {"{\"custom_id\":\"a\"}", "a", "body is missing, expected an object"},
        {"{\"custom_id\":\"a\",\"body\":[]}", "a", "body is a list, expected an object"},
        {"{\"custom_id\":\"a\",\"method\":\"GET\",\"body\":{" P "}}", "a",
         "method is \"GET\", expected \"POST\""},
        {"{\"custom_id\":\"a\",\"url\":\"/v1/embeddings\",\"body\":{" P "}}", "a",
         "url is \"/v1/embeddings\", expected \"/v1/completions\""},
        {"{\"custom_id\":\"a\",\"url\":\"/v1/chat/completions\",\"body\":{\"messages\":[]}}", "a",
         "line 1: a chat line: turn it into tokens first with scripts/tokenize.py"},
        {LINE("{\"messages\":[]}"), "a", "a chat line"},
        {LINE("{}"), "a", "body.prompt is missing, expected a list of token ids"},
        {LINE("{\"prompt\":\"In the beginning\"}"), "a",
         "line 1: body.prompt is text: tokenise it first with scripts/tokenize.py"},
        {LINE("{\"prompt\":[\"a\"]}"), "a", "body.prompt holds text: tokenise it first"},
        {LINE("{\"prompt\":null}"), "a", "body.prompt is null, expected a list of token ids"},
        {LINE("{\"prompt\":{}}"), "a", "body.prompt is an object"},
        {LINE("{\"prompt\":[]}"), "a", "line 1: the prompt is empty: give it at least one token"},
        {LINE("{\"prompt\":[[]]}"), "a", "the prompt is empty"},
        {LINE("{\"prompt\":[[1],[2]]}"), "a", "body.prompt holds 2 prompts"},
        {LINE("{\"prompt\":[1,2.5]}"), "a", "body.prompt[1] is 2.5, expected a token id"},
        {LINE("{\"prompt\":[1,true]}"), "a", "body.prompt[1] is true, expected a token id"},
        {LINE("{\"prompt\":[1,[2]]}"), "a", "body.prompt[1] is a list, expected a token id"},
        {LINE("{\"prompt\":[01]}"), "a", "not JSON"},
        {LINE("{\"prompt\":[1,]}"), "a", "not JSON"},
        {LINE("{\"prompt\":[-]}"), "a", "not JSON"},
        {LINE("{\"prompt\":[1,100]}"), "a",
         "prompt token 1 is 100, expected 0 to 99: tokenise with this model's tokenizer"},
        {LINE("{\"prompt\":[-1]}"), "a", "prompt token 0 is -1, expected 0 to 99"},
        {LINE("{\"prompt\":[1,4294967297]}"), "a", "body.prompt[1] is 4294967297, expected a"},
        {LINE("{\"prompt\":[9999999999999999999999]}"), "a", "not JSON: too big integer"},
        {LINE("{" P ",\"n\":2}"), "a", "body.n is 2: give one line for each answer"},
        {LINE("{" P ",\"echo\":true}"), "a", "body.echo is true: the prompt is in the token file"},
        {LINE("{" P ",\"stop\":[\"x\"]}"), "a",
         "body.stop is a list: text is unknown here; give "
         "stop_token_ids"},
        {LINE("{" P ",\"stop\":\"x\"}"), "a", "body.stop is \"x\""},
        {LINE("{" P ",\"stream\":true}"), "a", "body.stream is true"},
        {LINE("{" P ",\"presence_penalty\":0.5}"), "a", "presence_penalty is 0.5: not supported"},
        {LINE("{" P ",\"max_tokens\":-1}"), "a", "max_tokens is -1, expected an integer of at"},
        {LINE("{" P ",\"max_tokens\":2147483648}"), "a", "max_tokens is 2147483648, expected"},
        {LINE("{" P ",\"max_tokens\":\"5\"}"), "a", "body.max_tokens is \"5\", expected an"},
        {LINE("{" P ",\"max_tokens\":5.0}"), "a", "body.max_tokens is 5, expected an integer"},
        {LINE("{" P ",\"temperature\":-0.1}"), "a", "temperature is -0.1, expected a number in 0"},
        {LINE("{" P ",\"temperature\":1e999}"), "a", "not JSON: real number overflow"},
        {LINE("{" P ",\"top_p\":0}"), "a", "body.top_p is 0, expected more"},
        {LINE("{" P ",\"top_p\":1.01}"), "a", "body.top_p is 1.01, expected a number in 0 to 1"},
        {LINE("{" P ",\"top_k\":-2}"), "a", "body.top_k is -2"},
        {LINE("{" P ",\"seed\":1.5}"), "a", "body.seed is 1.5, expected an integer"},
        {LINE("{" P ",\"logprobs\":-1}"), "a", "body.logprobs is -1, expected true, false or a"},
        {LINE("{" P ",\"ignore_eos\":1}"), "a", "body.ignore_eos is 1, expected true or false"},
        {LINE("{" P ",\"stop_token_ids\":5}"), "a", "stop_token_ids is 5, expected a list of at"},
        {LINE("{" P ",\"stop_token_ids\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}"), "a",
         "stop_token_ids is a list, expected a list of at most 16 token ids"},
        {LINE("{" P ",\"stop_token_ids\":[100]}"), "a", "stop_token_ids[0] is 100, expected 0 to"},
        {LINE("{" P ",\"stop_token_ids\":[\"x\"]}"), "a", "stop_token_ids is \"x\""},
        {LINE("{" P ",\"max_tokens\":39}"), "a",
         "prompt and max_tokens need 41 tokens of KV, a rank's pool holds 40: lower max_tokens or "
         "raise kv.pages_per_rank"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct token_file *tf = open_bytes(cases[i].line, strlen(cases[i].line));
        struct request r = {0};
        get(tf, 0, &r);
        if (!strstr(r.error, cases[i].message)) {
            print_error("%s\nmessage:  %s\nexpected: %s\n", cases[i].line, r.error,
                        cases[i].message);
            fail();
        }
        assert_string_equal(r.custom_id, cases[i].id);
        request_free(&r);
        token_file_close(tf);
    }
}

/* A line whose prompt holds n tokens; *len its length. The caller frees it. */
static char *long_line(int64_t n, size_t *len)
{
    char *text = malloc((size_t)n * 2 + 100), *s = text;
    s += sprintf(s, "{\"custom_id\":\"long\",\"body\":{\"max_tokens\":1,\"prompt\":[");
    for (int64_t i = 0; i < n; i++) s = (char *)memcpy(s, "7,", 2) + 2;
    s += sprintf(s - 1, "]}}\n") - 1;
    *len = (size_t)(s - text);
    return text;
}

static void test_long_prompts(void **state)
{
    (void)state;
    static const struct {
        int64_t n;
        const char *message;
    } cases[] = {
        {40, ""},
        {41, "line 1: the prompt has 41 tokens, a rank's KV pool holds 40: raise"},
        {50, "the prompt has 50 tokens, a rank's KV pool holds 40"},
        {51, "line 1: the prompt has 51 tokens, the model's context 50: shorten it"},
        {50 << 20, "the prompt has 52428800 tokens, the model's context 50"}, /* 100 MB */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t len;
        char *text = long_line(cases[i].n, &len);
        struct token_file *tf = open_bytes(text, len);
        struct request r = {0};
        get(tf, 0, &r);
        assert_true(*cases[i].message ? strstr(r.error, cases[i].message) != NULL : !*r.error);
        assert_int_equal(r.n_tokens, cases[i].n);
        assert_true(r.cap_tokens <= 51); /* the context bounds the memory, not the line */
        request_free(&r);
        token_file_close(tf);
        free(text);
    }
}

static void test_cut_to_context(void **state)
{
    (void)state;
    const struct request_limits open_pool = {.vocab = 100, .context = 50};
    const char *text = "{\"custom_id\":\"a\",\"body\":{" P ",\"max_tokens\":2147483647}}\n";
    char path[] = "/tmp/moebatch-test-XXXXXX.jsonl";
    int fd = mkstemps(path, 6);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
    struct token_file *tf;
    struct request r = {0};
    assert_int_equal(token_file_open(path, &defaults, &open_pool, &tf), OK);
    get(tf, 0, &r);
    assert_string_equal(r.error, "");
    assert_int_equal(r.max_tokens, 47);
    assert_int_equal(truncate(path, 20), 0); /* the file changes under the job */
    error_clear();
    assert_int_equal(token_file_get(tf, 0, &r), ERR_INPUT);
    assert_non_null(strstr(error_text(), "became shorter than"));
    request_free(&r);
    token_file_close(tf);
    unlink(path);
}

/* Duplicates however they are spelt, and names at the limit of 256 bytes. */
static void test_ids(void **state)
{
    (void)state;
#define BODY "\"body\":{" P ",\"max_tokens\":1}"
    char text[4096], id256[257] = "", id300[301] = "x";
    memset(id256, 'x', 256);
    for (int i = 1; i < 299; i += 2) memcpy(id300 + i, "\xc3\xa9", 3); /* odd: 256 cuts a letter */
    snprintf(text, sizeof text,
             "{\"custom_id\":\"a\"," BODY "}\n{\"custom_id\":\"b\"," BODY "}\n\n"
             "{" BODY ", \"custom_id\":\"\\u0061\"}\n{\"custom_id\":\"%s\"," BODY "}\n"
             "{\"custom_id\":\"%s\"," BODY "}\n{\"custom_id\":\"a\"," BODY "}",
             id256, id300);
    static const char *errors[] = {
        "",
        "",
        "line 4: custom_id was given before: make it unique",
        "",
        "line 6: custom_id has 299 bytes, at most 256 are kept: shorten it",
        "line 7: custom_id was given before: make it unique",
    };
    struct token_file *tf = open_bytes(text, strlen(text));
    struct request r = {0};
    assert_int_equal(token_file_count(tf), 6);
    for (int i = 0; i < 6; i++) {
        get(tf, i, &r);
        assert_string_equal(r.error, errors[i]);
    }
    get(tf, 3, &r);
    assert_string_equal(r.custom_id, id256);
    get(tf, 4, &r);
    assert_int_equal(strlen(r.custom_id), 255); /* whole characters */
    request_free(&r);
    token_file_close(tf);
}

static void test_awkward_files(void **state)
{
    (void)state;
    static const char good[] = "{\"custom_id\":\"a\",\"body\":{" P ",\"max_tokens\":1}}\n";
    char text[1024];
    struct request r = {0};
    struct token_file *tf = open_bytes("", 0);
    assert_int_equal(token_file_count(tf), 0);
    token_file_close(tf);
    tf = open_bytes("\n\r\n \n", 5);
    assert_int_equal(token_file_count(tf), 0);
    token_file_close(tf);

    size_t n = (size_t)snprintf(text, sizeof text, "\xef\xbb\xbf%s", good); /* byte order mark */
    memcpy(text + n, "\0\0\n", 3);                                          /* NUL bytes */
    memcpy(text + n + 3, "\xff\xfe\x80\n", 4);                              /* no UTF-8 */
    tf = open_bytes(text, n + 7);
    assert_int_equal(token_file_count(tf), 3);
    get(tf, 0, &r);
    assert_string_equal(r.error, "");
    for (int i = 1; i < 3; i++) {
        get(tf, i, &r);
        assert_non_null(strstr(r.error, "not JSON"));
        for (const char *s = r.error; *s; s++) assert_true((unsigned char)*s >= 0x20);
    }
    token_file_close(tf);
    request_free(&r);

    error_clear();
    assert_int_equal(token_file_open("/nowhere/a.jsonl", &defaults, &limits, &tf), ERR_INPUT);
    assert_string_equal(error_text(),
                        "cannot open token file /nowhere/a.jsonl: No such file or directory");
    error_clear();
    assert_int_equal(token_file_open("a.txt", &defaults, &limits, &tf), ERR_INPUT);
    assert_non_null(strstr(error_text(), "a.txt: unknown kind, expected a name that ends in"));
    char dir[] = "/tmp/moebatch-test-XXXXXX.jsonl";
    close(mkstemps(dir, 6));
    unlink(dir);
    assert_int_equal(mkdir(dir, 0700), 0);
    error_clear();
    assert_int_equal(token_file_open(dir, &defaults, &limits, &tf), ERR_INPUT);
    assert_non_null(strstr(error_text(), "is no regular file"));
    rmdir(dir);
}

/* 200,000 lines: the index stays within its bytes a request, random access works, and the one
 * duplicate is found. */
static void test_many(void **state)
{
    (void)state;
    const int n = 200000;
    char path[] = "/tmp/moebatch-test-XXXXXX.jsonl";
    FILE *f = fdopen(mkstemps(path, 6), "w");
    for (int i = 0; i < n; i++)
        fprintf(f, "{\"custom_id\":\"request %d\",\"body\":{\"prompt\":[%d,2],\"max_tokens\":3}}\n",
                i == 150000 ? 77 : i, i % 100);
    fclose(f);
    struct token_file *tf;
    struct request r = {0};
    assert_int_equal(token_file_open(path, &defaults, &limits, &tf), OK);
    assert_int_equal(token_file_count(tf), n);
    print_message("# index: %.1f bytes a request, %.1f at most while opening (limits 24, 36)\n",
                  (double)token_file_bytes(tf) / n, (double)token_file_peak_bytes(tf) / n);
    assert_true(token_file_bytes(tf) <= 24u * n);
    assert_true(token_file_peak_bytes(tf) <= 36u * n);
    for (int k = 0; k < 2000; k++) {
        int i = (int)(rng_u64(1, (uint64_t)k) % n);
        get(tf, i, &r);
        assert_true(r.tokens[0] == i % 100 && (i == 150000) == (*r.error != 0));
    }
    get(tf, 150000, &r);
    assert_string_equal(r.error, "line 150001: custom_id was given before: make it unique");
    get(tf, 77, &r);
    assert_string_equal(r.error, "");
    request_free(&r);
    token_file_close(tf);
    unlink(path);
}

/* An unknown field is said once however many lines have it, and fails nothing. */
static void test_unknown_fields(void **state)
{
    (void)state;
    const char *text = "{\"custom_id\":\"a\",\"body\":{" P ",\"max_tokens\":1,\"foo\":1}}\n"
                       "{\"custom_id\":\"b\",\"body\":{" P ",\"max_tokens\":1,\"foo\":1}}\n"
                       "{\"custom_id\":\"c\",\"bar\":0,\"body\":{" P ",\"max_tokens\":1}}\n";
    struct token_file *tf = open_bytes(text, strlen(text));
    struct request r = {0};
    char said[1024] = "";
    FILE *capture = tmpfile();
    int keep = dup(2);
    dup2(fileno(capture), 2);
    for (int i = 0; i < 6; i++) {
        get(tf, i % 3, &r);
        assert_string_equal(r.error, "");
    }
    dup2(keep, 2);
    close(keep);
    rewind(capture);
    said[fread(said, 1, sizeof said - 1, capture)] = 0;
    fclose(capture);
    const char *foo = strstr(said, ":1: unknown field body.foo is ignored");
    assert_non_null(foo);
    assert_null(strstr(strstr(foo, "body.foo") + 1, "body.foo"));
    assert_non_null(strstr(said, ":3: unknown field bar is ignored"));
    request_free(&r);
    token_file_close(tf);
}

static json_t *response_json(const struct response *r)
{
    char *text = NULL;
    size_t n = 0;
    FILE *m = open_memstream(&text, &n);
    assert_int_equal(response_write(m, r), OK);
    fclose(m);
    assert_int_equal(text[n - 1], '\n');
    assert_ptr_equal(strchr(text, '\n'), text + n - 1);
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(root);
    free(text);
    return root;
}

static void test_responses(void **state)
{
    (void)state;
    int32_t tokens[] = {5, 0, 99};
    float logprobs[] = {-0.5f, -1e-7f, -INFINITY}, prompt[] = {NAN, -2.25f};
    struct response r = {.index = 3,
                         .custom_id = "q\"\\\n\x01é",
                         .model = "m",
                         .tokens = tokens,
                         .finish_reason = "stop",
                         .logprobs = logprobs,
                         .prompt_logprobs = prompt,
                         .n_tokens = 3,
                         .prompt_tokens = 2,
                         .cached_tokens = 1};
    json_t *root = response_json(&r), *body, *usage, *reply;
    const char *id, *finish, *object;
    int total, cached, t2;
    double lp0, pp1;
    assert_int_equal(json_unpack(root, "{s:s, s:n, s:{s:i, s:o}}", "custom_id", &id, "error",
                                 "response", "status_code", &total, "body", &body),
                     0);
    assert_string_equal(id, r.custom_id);
    assert_int_equal(total, 200);
    assert_int_equal(json_unpack(body, "{s:s, s:[o], s:o}", "object", &object, "choices", &reply,
                                 "usage", &usage),
                     0);
    assert_string_equal(object, "text_completion");
    assert_int_equal(json_unpack(reply, "{s:n, s:s, s:[i,i,i], s:{s:[f,F,n]}, s:[n,f]}", "text",
                                 "finish_reason", &finish, "token_ids", &total, &cached, &t2,
                                 "logprobs", "token_logprobs", &lp0, &pp1, "prompt_logprobs", &pp1),
                     0);
    assert_string_equal(finish, "stop");
    assert_true(t2 == 99 && lp0 == -0.5 && pp1 == -2.25);
    assert_int_equal(json_unpack(usage, "{s:i, s:{s:i}}", "total_tokens", &total,
                                 "prompt_tokens_details", "cached_tokens", &cached),
                     0);
    assert_true(total == 5 && cached == 1);
    json_decref(root);

    struct response bad = {.custom_id = "b", .error = "line 1: \"x\""};
    root = response_json(&bad);
    const char *message;
    assert_int_equal(json_unpack(root, "{s:n, s:{s:s}}", "response", "error", "message", &message),
                     0);
    assert_string_equal(message, "line 1: \"x\"");
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_long_prompts),
        cmocka_unit_test(test_cut_to_context),
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_awkward_files),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_responses),
        cmocka_unit_test(test_unknown_fields),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}
