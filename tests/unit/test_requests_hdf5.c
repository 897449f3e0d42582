/* links: core config requests */
/* test_requests_hdf5.c - HDF5 token files: rows, columns of every type, damage, duplicates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/rng.h"
#include "requests/token_file.h"

#include <hdf5.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct job_sampling defaults = {.max_tokens = 8, .top_p = 1, .seed = 5};
static const struct request_limits limits = {.vocab = 100, .context = 50};

static void put(hid_t file, const char *name, hid_t stored, hid_t given, hsize_t n,
                const void *data)
{
    hid_t space = H5Screate_simple(1, &n, NULL);
    hid_t set = H5Dcreate2(file, name, stored, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(set >= 0 && H5Dwrite(set, given, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    H5Dclose(set);
    H5Sclose(space);
}

static char *new_path(void)
{
    char *path = strdup("/tmp/moebatch-test-XXXXXX.h5");
    close(mkstemps(path, 3));
    return path;
}

static void finish(char *path)
{
    unlink(path);
    free(path);
}

static const int32_t tokens[] = {1, 2, 3, 4, 5, 6, 100, 7};

static void put_basics(hid_t file, const int64_t *offsets, hsize_t n)
{
    put(file, "tokens", H5T_STD_I32LE, H5T_NATIVE_INT32, 8, tokens);
    put(file, "offsets", H5T_STD_I64LE, H5T_NATIVE_INT64, n + 1, offsets);
}

static void test_plain(void **state)
{
    (void)state;
    static const int64_t offsets[] = {0, 3, 3, 7, 6, 99};
    char *path = new_path();
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    put_basics(file, offsets, 5);
    H5Fclose(file);
    struct token_file *tf;
    struct request r = {0};
    error_clear();
    assert_int_equal(token_file_open(path, &defaults, &limits, &tf), OK);
    assert_int_equal(token_file_count(tf), 5);
    static const char *errors[] = {"", "the prompt is empty: give it at least one token",
                                   ("prompt token 3 is 100, expected 0 to 99: tokenise with this "
                                    "model's tokenizer (scripts/tokenize.py)"),
                                   "offsets 7 to 6 are not inside the 8 tokens",
                                   "offsets 6 to 99 are not inside the 8 tokens"};
    for (int i = 4; i >= 0; i--) {
        assert_int_equal(token_file_get(tf, i, &r), OK);
        assert_string_equal(r.error, errors[i]);
    }
    assert_string_equal(r.custom_id, "request-0");
    assert_true(r.n_tokens == 3 && r.tokens[2] == 3 && r.max_tokens == 8);
    assert_true(r.seed == rng_u64(5, 0));
    request_free(&r);
    token_file_close(tf);
    finish(path);
}

static void test_columns(void **state)
{
    (void)state;
    static const int64_t offsets[] = {0, 2, 4, 6, 6};
    static const char ids[4][3] = {"a", "bc", "a", "d"}; /* fixed strings; row 2 repeats row 0 */
    static const int32_t max_tokens[] = {1, -1, 3, 4};
    static const float temperature[] = {0.5f, 0, NAN, 0};
    static const uint64_t seeds[] = {UINT64_MAX, 1, 2, 3};
    static const uint8_t logprobs[] = {1, 0, 0, 0};
    char *path = new_path();
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hid_t text = H5Tcopy(H5T_C_S1);
    H5Tset_size(text, 3);
    H5Tset_cset(text, H5T_CSET_UTF8);
    put_basics(file, offsets, 4);
    put(file, "custom_id", text, text, 4, ids);
    put(file, "max_tokens", H5T_STD_I32BE, H5T_NATIVE_INT32, 4, max_tokens);
    put(file, "temperature", H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, 4, temperature);
    put(file, "seed", H5T_STD_U64LE, H5T_NATIVE_UINT64, 4, seeds);
    put(file, "logprobs", H5T_STD_U8LE, H5T_NATIVE_UINT8, 4, logprobs);
    H5Tclose(text);
    H5Fclose(file);
    struct token_file *tf;
    struct request r = {0};
    error_clear();
    assert_int_equal(token_file_open(path, &defaults, &limits, &tf), OK);
    assert_int_equal(token_file_get(tf, 1, &r), OK);
    assert_string_equal(r.error, "max_tokens is -1, expected 0 to 2.14748e+09");
    assert_string_equal(r.custom_id, "bc");
    assert_int_equal(token_file_get(tf, 2, &r), OK);
    assert_string_equal(r.error, "custom_id was given before: make it unique");
    assert_int_equal(token_file_get(tf, 0, &r), OK);
    assert_string_equal(r.error, "");
    assert_string_equal(r.custom_id, "a");
    assert_true(r.max_tokens == 1 && r.temperature == 0.5f && r.seed == UINT64_MAX && r.logprobs);
    request_free(&r);
    token_file_close(tf);
    finish(path);
}

/* Variable-length names as h5py writes them, over several blocks of rows. */
static void test_variable_ids(void **state)
{
    (void)state;
    enum { N = 3000 };
    int64_t *offsets = calloc(N + 1, sizeof *offsets);
    char(*names)[300] = calloc(N, sizeof *names), **pointers = calloc(N, sizeof *pointers);
    for (int i = 0; i < N; i++) {
        offsets[i + 1] = i < 3 ? i + 1 : 3;
        snprintf(names[i], 300, "row %d é", i == 2500 ? 10 : i);
        pointers[i] = names[i];
    }
    memset(names[1], 'x', 299);
    char *path = new_path();
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hid_t text = H5Tcopy(H5T_C_S1);
    H5Tset_size(text, H5T_VARIABLE);
    H5Tset_cset(text, H5T_CSET_UTF8);
    put_basics(file, offsets, N);
    put(file, "custom_id", text, text, N, pointers);
    H5Tclose(text);
    H5Fclose(file);
    struct token_file *tf;
    struct request r = {0};
    error_clear();
    assert_int_equal(token_file_open(path, &defaults, &limits, &tf), OK);
    assert_int_equal(token_file_get(tf, 2500, &r), OK);
    assert_string_equal(r.error, "custom_id was given before: make it unique");
    assert_int_equal(token_file_get(tf, 2, &r), OK);
    assert_string_equal(r.error, "");
    assert_string_equal(r.custom_id, "row 2 é");
    assert_int_equal(token_file_get(tf, 1, &r), OK);
    assert_non_null(strstr(r.error, "at most 256 are kept"));
    assert_int_equal(strlen(r.custom_id), 256);
    assert_true(token_file_bytes(tf) <= 24u * N && token_file_peak_bytes(tf) <= 36u * N);
    request_free(&r);
    token_file_close(tf);
    finish(path);
    free(offsets);
    free(names);
    free(pointers);
}

static void write_nothing(hid_t file)
{
    (void)file;
}

static void write_float_tokens(hid_t file)
{
    float f[] = {1, 2};
    int64_t offsets[] = {0, 2};
    put(file, "tokens", H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, 2, f);
    put(file, "offsets", H5T_STD_I64LE, H5T_NATIVE_INT64, 2, offsets);
}

static void write_short_column(hid_t file)
{
    int64_t offsets[] = {0, 2, 4};
    int32_t one = 1;
    put_basics(file, offsets, 2);
    put(file, "top_k", H5T_STD_I32LE, H5T_NATIVE_INT32, 1, &one);
}

static void write_number_ids(hid_t file)
{
    int64_t offsets[] = {0, 2, 4};
    put_basics(file, offsets, 2);
    put(file, "custom_id", H5T_STD_I64LE, H5T_NATIVE_INT64, 2, offsets);
}

static void write_no_offsets(hid_t file)
{
    int64_t offsets[1];
    hsize_t none = 0;
    put(file, "tokens", H5T_STD_I32LE, H5T_NATIVE_INT32, 8, tokens);
    put(file, "offsets", H5T_STD_I64LE, H5T_NATIVE_INT64, none, offsets);
}

static void test_bad_files(void **state)
{
    (void)state;
    static const struct {
        void (*write)(hid_t file);
        const char *message;
    } cases[] = {
        {write_nothing, "expected the datasets /tokens (int32) and /offsets (int64)"},
        {write_float_tokens, "/tokens is no flat list of integers"},
        {write_no_offsets, "/offsets is no flat list of integers with requests + 1 entries"},
        {write_short_column, "/top_k: expected 2 integers, one for each request"},
        {write_number_ids, "/custom_id: expected 2 strings, one for each request"},
    };
    struct token_file *tf;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *path = new_path();
        hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
        cases[i].write(file);
        H5Fclose(file);
        error_clear();
        assert_int_equal(token_file_open(path, &defaults, &limits, &tf), ERR_INPUT);
        assert_non_null(strstr(error_text(), cases[i].message));
        finish(path);
    }
    char *path = new_path();
    FILE *f = fopen(path, "w");
    fputs("no HDF5 at all", f);
    fclose(f);
    error_clear();
    assert_int_equal(token_file_open(path, &defaults, &limits, &tf), ERR_INPUT);
    assert_non_null(strstr(error_text(), "cannot be opened, or is no HDF5 file"));
    finish(path);
}

/* Many rows read ahead, back, in small steps and at random: each is the row asked for. */
static void test_any_order(void **state)
{
    (void)state;
    enum { ROWS = 5000 };
    static int64_t offsets[ROWS + 1], max_tokens[ROWS];
    static char ids[ROWS][16];
    char *path = new_path();
    for (int i = 0; i < ROWS; i++) {
        max_tokens[i] = 1 + i % 9;
        snprintf(ids[i], sizeof ids[i], "r%d", i);
    }
    static int32_t flat[ROWS];
    for (int i = 0; i <= ROWS; i++) offsets[i] = i;
    for (int i = 0; i < ROWS; i++) flat[i] = 1 + i % 97;
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hid_t text = H5Tcopy(H5T_C_S1);
    H5Tset_size(text, sizeof ids[0]);
    put(file, "tokens", H5T_STD_I32LE, H5T_NATIVE_INT32, ROWS, flat);
    put(file, "offsets", H5T_STD_I64LE, H5T_NATIVE_INT64, ROWS + 1, offsets);
    put(file, "max_tokens", H5T_STD_I64LE, H5T_NATIVE_INT64, ROWS, max_tokens);
    put(file, "custom_id", text, text, ROWS, ids);
    H5Tclose(text);
    H5Fclose(file);
    struct token_file *tf;
    struct request r = {0};
    assert_int_equal(token_file_open(path, &defaults, &limits, &tf), OK);
    for (uint64_t k = 0; k < 4000; k++) {
        /* Four habits in turn: ahead, at random, up in steps of 20, back. */
        int64_t i = k % 4 == 0   ? (int64_t)k
                    : k % 4 == 1 ? (int64_t)(rng_u64(9, k) % ROWS)
                    : k % 4 == 2 ? (int64_t)(k / 4 * 20 % ROWS)
                                 : (int64_t)(ROWS - 1 - k);
        assert_int_equal(token_file_get(tf, i, &r), OK);
        assert_string_equal(r.error, "");
        assert_string_equal(r.custom_id, ids[i]);
        assert_true(r.n_tokens == 1 && r.tokens[0] == flat[i] && r.max_tokens == max_tokens[i]);
    }
    for (int64_t i = 0; i < 3000; i += 7) { /* small steps behind the front: whole blocks */
        assert_int_equal(token_file_get(tf, i, &r), OK);
        assert_string_equal(r.custom_id, ids[i]);
    }
    request_free(&r);
    token_file_close(tf);
    finish(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),        cmocka_unit_test(test_columns),
        cmocka_unit_test(test_variable_ids), cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_any_order),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}
