/* links: core checkpoint */
/* The commands `model make` and `model show` as a user calls them: options, text, JSON, refusals.
 * Rerun alone: make unit-checkpoint_cmd
 */
#include "unit/checkpoint_fixtures.h"

#include <setjmp.h>

#include <cmocka.h>

/* The command's file itself: its folder would bring MPI and the whole engine. */
#include "cmd/model.c"

static char output[1 << 16];

/* Runs "model ARGS" (split at blanks) with stdout caught in `output`. */
static enum status run(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static enum status run(const char *fmt, ...)
{
    char line[2048], *argv[64] = {(char[]){"model"}}, *save = NULL;
    int argc = 1;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    for (char *s = strtok_r(line, " ", &save); s; s = strtok_r(NULL, " ", &save)) argv[argc++] = s;
    error_clear();
    fflush(stdout);
    FILE *caught = tmpfile();
    int old = dup(1);
    dup2(fileno(caught), 1);
    enum status st = cmd_model(argc, argv);
    fflush(stdout);
    dup2(old, 1);
    close(old);
    rewind(caught);
    output[fread(output, 1, sizeof output - 1, caught)] = '\0';
    fclose(caught);
    return st;
}

static void expect_text(const char *text)
{
    if (!strstr(output, text)) fail_msg("expected \"%s\" in:\n%s", text, output);
}

static const char tiny[] = "--hidden 32 --heads 2 --q-lora 16 --kv-lora 16 --dim-nope 8 "
                           "--dim-rope 8 --dim-v 8 --intermediate 48 --moe-intermediate 16 "
                           "--vocab 100 --layers 3 --experts 16 --topk 2 --threads 1";

static void test_make_show(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    if (run("make --like deepseek-v3 %s --dtype fp8 --shards 2 --out %s/m", tiny, dir) != OK)
        fail_msg("%s", error_text());
    if (run("show %s/m --ep 1,3,16", dir) != OK) fail_msg("%s", error_text());
    expect_text("in 2 files, checked, fingerprint ");
    expect_text("layers      3: 2 dense (width 48), 1 with experts");
    expect_text("FP8 in 128x128 blocks");
    expect_text("     1     16          0");
    expect_text("     3      6          2");
    expect_text("    16      1          0");
    assert_int_equal(run("make --like deepseek-v3 %s --out %s/m", tiny, dir), ERR_INPUT);
    assert_non_null(strstr(error_text(), "exists: choose another --out, or --force"));
    assert_int_equal(run("make --like deepseek-v3 %s --out %s/m --force", tiny, dir), OK);
    assert_int_equal(run("show %s/m", dir), OK);
    expect_text("in 1 file, checked");
    fixture_remove(dir);
}

static void test_show_json(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    fixture_write(dir, "config.json", config_v3, strlen(config_v3));
    assert_int_equal(run("show %s --ep 144", dir), OK);
    expect_text("from config.json (no weights here)");
    expect_text("# 671 B parameters, 37.55 B active a token");
    assert_int_equal(run("show %s --json --ep 32,144", dir), OK);
    json_t *o = json_loads(output, 0, NULL);
    assert_non_null(o);
    assert_string_equal(json_string_value(json_object_get(o, "from")), "config.json");
    assert_int_equal(json_integer_value(json_object_get(o, "parameters")), 671026419200);
    json_t *rank = json_array_get(json_object_get(o, "ranks"), 1);
    assert_int_equal(json_integer_value(json_object_get(rank, "slots")), 2);
    assert_int_equal(json_integer_value(json_object_get(rank, "redundant")), 32);
    json_t *config = json_object_get(o, "config");
    assert_int_equal(json_integer_value(json_object_get(config, "moe_intermediate")), 2048);
    assert_null(json_object_get(o, "fingerprint"));
    json_decref(o);
    fixture_remove(dir);
}

static void test_usage(void **state)
{
    static const struct {
        const char *args;
        enum status st;
        const char *message;
    } cases[] = {
        {"", ERR_USAGE, "model: found \"\", expected make or show"},
        {"grow", ERR_USAGE, "model: found \"grow\", expected make or show"},
        {"make --out /tmp/x", ERR_USAGE, "model make: --like is missing"},
        {"make --like deepseek-v3", ERR_USAGE, "model make: --out is missing"},
        {"make --like gpt-2 --out /tmp/x", ERR_USAGE, "--like is \"gpt-2\", expected deepseek-v3"},
        {"make --like moonlight --hiden 3 --out x", ERR_USAGE, "unknown option --hiden"},
        {"make --like moonlight --hidden", ERR_USAGE, "--hidden is without a value, expected an"},
        {"make --like moonlight --hidden 3x", ERR_USAGE, "--hidden is 3x, expected an integer"},
        {"make --like moonlight --layers 0", ERR_USAGE, "--layers is 0, expected an integer from"},
        {"make --like moonlight --dtype int4", ERR_USAGE, "--dtype is int4, expected bf16, fp8"},
        {"make --like deepseek-v3 --experts 20 --out /nonexistent/x", ERR_INPUT,
         "n_group is 8, expected a divisor of n_routed_experts (20)"},
        {"make --like deepseek-v3 --out /nonexistent/x/y", ERR_RESOURCE,
         "/nonexistent/x/y: cannot create the directory: No such file"},
        {"show", ERR_USAGE, "model show: DIR is missing"},
        {"show /nonexistent", ERR_INPUT, "/nonexistent/config.json: cannot open"},
        {"show d --ep 1,x", ERR_USAGE, "--ep is x, expected an integer from 1"},
        {"show d --ep", ERR_USAGE, "--ep is without a value"},
        {"show d e", ERR_USAGE, "model show: unexpected e"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum status st = run("%s", cases[i].args);
        if (st != cases[i].st || !strstr(error_text(), cases[i].message))
            fail_msg("model %s: status %d, message: %s\nexpected: %s", cases[i].args, (int)st,
                     error_text(), cases[i].message);
    }
    assert_int_equal(run("make --help"), OK);
    expect_text("--moe-intermediate");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_make_show),
        cmocka_unit_test(test_show_json),
        cmocka_unit_test(test_usage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
