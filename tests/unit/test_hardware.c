/* links: core cluster balance schedule kvcache checkpoint config account */
/* test_hardware.c - hardware files: every committed one reads, units convert, errors name file,
 * line, key and numbers. Alone: make unit-hardware.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cluster/hardware.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const names[] = {"h800", "h800-2025-06", "h100",  "h200", "h20",
                                    "b200", "b300",         "gb200", "gb300"};

static void test_all_read(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct hardware hw;
        enum status st = hardware_find("inputs/hardware", names[i], &hw);
        if (st != OK) fail_msg("%s: %s", names[i], error_text());
        assert_true(hw.n_points > 0);
        assert_true(strlen(hw.source) > 10);
        for (int p = 1; p < hw.n_points; p++) assert_true(hw.points[p - 1].op <= hw.points[p].op);
        hardware_free(&hw);
    }
}

/* 2 n k m / TFLOP/s: 7168 x 16384 at 128 rows and 645 TFLOP/s is 46.6 us. */
static void test_tflops_become_us(void **state)
{
    (void)state;
    struct hardware hw;
    assert_int_equal(hardware_find("inputs/hardware", "h800", &hw), OK);
    int n, seen = 0;
    const struct hw_point *p = hardware_points(&hw, HW_GEMM_FP8, &n);
    assert_int_equal(n, 18);
    for (int i = 0; i < n; i++)
        if (p[i].a == 7168 && p[i].b == 16384 && p[i].c == 128) {
            assert_true(p[i].value > 46.60 && p[i].value < 46.62);
            seen++;
        }
    assert_int_equal(seen, 1);
    p = hardware_points(&hw, HW_MASKED, &n); /* two groups count twice */
    assert_int_equal(n, 6);
    for (int i = 0; i < n; i++)
        if (p[i].a == 4096 && p[i].d == 2) assert_true(p[i].value > 57.8 && p[i].value < 57.9);
    hardware_free(&hw);
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

#define WHOLE                                                                  \
    "memory_bytes: 80e9\nhbm_gb_s: 3350\nfp8_tflops: 1979\nbf16_tflops: 989\n" \
    "nvlink_gb_s: 160\nrdma_gb_s: 50\n"

static void test_errors(void **state)
{
    (void)state;
    static const struct {
        const char *yaml, *csv, *says;
    } cases[] = {
        {"hbm_gb: 3\n", "", "unknown key hbm_gb"},
        {"hbm_gb_s: 3350\n", "", "memory_bytes is missing"},
        {WHOLE "sms: 24\n", "", "comm_sms_prefill is 24 of 24"},
        {WHOLE "tables: none.csv\n", "", "cannot open table"},
        {WHOLE "tables: t.csv\n", "gemm_fp9,1,2,3,,us,4,x\n", "t.csv:1: unknown op gemm_fp9"},
        {WHOLE "tables: t.csv\n", "gemm_fp8,1,2,3,,us,-4,x\n", "found -4"},
        {WHOLE "tables: t.csv\n", "gemm_fp8,1,2,3\n", "4 columns"},
        {WHOLE "tables: t.csv\n", "ll_dispatch,8,128,7168,8,tflops,4,x\n", "unit tflops"},
    };
    char dir[] = "/tmp/test_hardware_XXXXXX", yaml[64], csv[64];
    assert_non_null(mkdtemp(dir));
    snprintf(yaml, sizeof yaml, "%s/h.yaml", dir);
    snprintf(csv, sizeof csv, "%s/t.csv", dir);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct hardware hw;
        write_text(yaml, cases[i].yaml);
        write_text(csv, cases[i].csv);
        error_clear();
        assert_int_equal(hardware_read(yaml, &hw), ERR_INPUT);
        if (!strstr(error_text(), cases[i].says))
            fail_msg("case %zu: '%s' lacks '%s'", i, error_text(), cases[i].says);
    }
    struct hardware hw;
    error_clear();
    assert_int_equal(hardware_find("inputs/hardware", "h900", &hw), ERR_INPUT);
    assert_non_null(strstr(error_text(), "h800"));
    unlink(yaml);
    unlink(csv);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_all_read),
                                       cmocka_unit_test(test_tflops_become_us),
                                       cmocka_unit_test(test_errors)};
    return cmocka_run_group_tests_name("hardware", tests, NULL, NULL);
}
