/* links: core account */
/* test_results.c - the results writer's promises that do not need a job: refusals, clipping, nothing
 * left behind on failure, and the reader of the expert load. Rerun alone: make unit-results */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <hdf5.h>

#include "account/results.h"

static char folder[64], path[128];

static int setup(void **state)
{
    (void)state;
    error_clear();
    snprintf(folder, sizeof folder, "/tmp/moebatch_results_XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/r.h5", folder);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

#define ASSERT_ERROR(call, status, text)             \
    do {                                             \
        assert_int_equal(call, status);              \
        printf("# %s\n", error_text());              \
        assert_non_null(strstr(error_text(), text)); \
        error_clear();                               \
    } while (0)

static struct results_file *create(int64_t requests)
{
    struct results_file *f = NULL;
    struct results_shape shape = {.requests = requests, .id_bytes = 4, .error_bytes = 0};
    assert_int_equal(results_create(path, &shape, &f), OK);
    return f;
}

static struct request_row row_of(int64_t index, const char *id)
{
    return (struct request_row){.index = index, .custom_id = id, .status = REQUEST_OK};
}

static void test_clip(void **state)
{
    (void)state;
    assert_int_equal(results_clip(NULL, 3), 0);
    assert_int_equal(results_clip("abc", 3), 3);
    assert_int_equal(results_clip("abcd", 3), 3);
    assert_int_equal(results_clip("ab\xc3\xa9", 3), 2); /* would cut an e acute in two */
    assert_int_equal(results_clip("ab\xc3\xa9", 4), 4);
    assert_int_equal(results_clip("\xf0\x9f\x98\x80", 3), 0);
}

static void test_check_path(void **state)
{
    (void)state;
    assert_int_equal(results_check_path(path, false), OK);
    results_abort(NULL);
    struct results_file *f = create(0);
    assert_int_equal(results_commit(f), OK);
    ASSERT_ERROR(results_check_path(path, false), ERR_INPUT, "pass --force");
    assert_int_equal(results_check_path(path, true), OK);
    ASSERT_ERROR(results_check_path("/no/such/folder/r.h5", false), ERR_INPUT,
                 "folder /no/such/folder/: No such file or directory");
}

/* A file appears under its name only when it is whole. */
static void test_all_or_nothing(void **state)
{
    (void)state;
    struct results_file *f = create(2);
    struct request_row row = row_of(0, "a");
    assert_int_equal(results_put_request(f, &row), OK);
    assert_int_not_equal(access(path, F_OK), 0);
    ASSERT_ERROR(results_commit(f), ERR_BUG, "1 of 2 requests were written");
    assert_int_not_equal(access(path, F_OK), 0);
    char tmp[256];
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    assert_int_not_equal(access(tmp, F_OK), 0);

    f = create(2);
    row = row_of(1, "b");
    ASSERT_ERROR(results_put_request(f, &row), ERR_BUG, "request 1 came where 0 was due");
    results_abort(f);
    assert_int_not_equal(access(tmp, F_OK), 0);
}

static void test_unwritable(void **state)
{
    (void)state;
    struct results_file *f = NULL;
    struct results_shape shape = {0};
    ASSERT_ERROR(results_create("/no/such/folder/r.h5", &shape, &f), ERR_RESOURCE,
                 "/no/such/folder/r.h5.tmp: unable to open file");
    assert_null(f);
}

/* More rows than one chunk, and strings at their limit. */
static void test_many_requests(void **state)
{
    (void)state;
    enum { N = 20000 };
    struct results_file *f = create(N);
    for (int i = 0; i < N; i++) {
        int32_t tokens[3] = {i, i + 1, i + 2};
        char id[16];
        snprintf(id, sizeof id, "%04d", i);
        struct request_row row = row_of(i, id);
        row.output_tokens = i % 4;
        row.tokens = tokens;
        assert_int_equal(results_put_request(f, &row), OK);
    }
    assert_int_equal(results_put_attr(f, "status", "complete"), OK);
    assert_int_equal(results_commit(f), OK);

    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    hid_t set = H5Dopen2(file, "/requests", H5P_DEFAULT), type = H5Dget_type(set);
    hid_t id = H5Tget_member_type(type, (unsigned)H5Tget_member_index(type, "custom_id"));
    assert_int_equal(H5Tget_size(id), 4);
    assert_int_equal(H5Tget_strpad(id), H5T_STR_NULLPAD);
    assert_int_equal(H5Tget_cset(id), H5T_CSET_UTF8);
    H5Tclose(id);
    hid_t offset_only = H5Tcreate(H5T_COMPOUND, 8);
    H5Tinsert(offset_only, "output_offset", 0, H5T_NATIVE_INT64);
    int64_t *offset = calloc(N, sizeof *offset);
    int32_t *tokens = calloc((size_t)N * 3, sizeof *tokens);
    assert_true(H5Dread(set, offset_only, H5S_ALL, H5S_ALL, H5P_DEFAULT, offset) >= 0);
    H5Dclose(set);
    set = H5Dopen2(file, "/outputs/tokens", H5P_DEFAULT);
    assert_true(H5Dread(set, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, tokens) >= 0);
    H5Dclose(set);
    int64_t at = 0;
    for (int i = 0; i < N; i++) {
        assert_int_equal(offset[i], at);
        for (int k = 0; k < i % 4; k++, at++) assert_int_equal(tokens[at], i + k);
    }
    free(offset);
    free(tokens);
    H5Tclose(offset_only);
    H5Tclose(type);
    assert_true(H5Lexists(file, "/outputs/logprobs", H5P_DEFAULT) == 0);
    H5Fclose(file);
}

static void write_load(const struct expert_load_row *rows, size_t n)
{
    struct results_file *f = create(0);
    assert_int_equal(results_put_expert_load(f, rows, n), OK);
    assert_int_equal(results_commit(f), OK);
}

static void test_expert_load(void **state)
{
    (void)state;
    double load[2 * 3];
    const struct expert_load_row rows[] = {{1, 0, 5}, {1, 1, 6}, {1, 2, 7}};
    write_load(rows, 3);
    assert_int_equal(results_read_expert_load(path, 2, 3, load), OK);
    const double expected[] = {0, 0, 0, 5, 6, 7};
    assert_memory_equal(load, expected, sizeof load);

    ASSERT_ERROR(results_read_expert_load(path, 2, 2, load), ERR_INPUT,
                 "layer 1, expert 2, but the model has 2 layers of 2 experts");
    ASSERT_ERROR(results_read_expert_load(path, 1, 2, load), ERR_INPUT, "3 rows, expected 1 to 2");
    ASSERT_ERROR(results_read_expert_load("/no/such.h5", 2, 3, load), ERR_INPUT,
                 "cannot open /no/such.h5 as an HDF5 file");
    const struct expert_load_row negative[] = {{0, 0, -1}};
    write_load(negative, 1);
    ASSERT_ERROR(results_read_expert_load(path, 2, 3, load), ERR_INPUT, "load -1 < 0");
    write_load(NULL, 0);
    ASSERT_ERROR(results_read_expert_load(path, 2, 3, load), ERR_INPUT, "0 rows");
}

static void test_expert_load_of_other_files(void **state)
{
    (void)state;
    double load[6];
    FILE *text = fopen(path, "w");
    fputs("not HDF5", text);
    fclose(text);
    ASSERT_ERROR(results_read_expert_load(path, 2, 3, load), ERR_INPUT, "as an HDF5 file");

    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    H5Fclose(file);
    ASSERT_ERROR(results_read_expert_load(path, 2, 3, load), ERR_INPUT, "no dataset");

    file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hsize_t n = 6;
    hid_t space = H5Screate_simple(1, &n, NULL);
    hid_t group = H5Gcreate2(file, "/experts", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    hid_t set =
        H5Dcreate2(group, "load", H5T_NATIVE_DOUBLE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    H5Dclose(set);
    H5Gclose(group);
    H5Sclose(space);
    H5Fclose(file);
    ASSERT_ERROR(results_read_expert_load(path, 2, 3, load), ERR_INPUT,
                 "columns layer, expert, rows");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clip),
        cmocka_unit_test_setup_teardown(test_check_path, setup, teardown),
        cmocka_unit_test_setup_teardown(test_all_or_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unwritable, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_requests, setup, teardown),
        cmocka_unit_test_setup_teardown(test_expert_load, setup, teardown),
        cmocka_unit_test_setup_teardown(test_expert_load_of_other_files, setup, teardown),
    };
    return cmocka_run_group_tests_name("results", tests, NULL, NULL);
}
