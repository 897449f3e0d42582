/* links: core */
/* test_core.c - number formats against their definitions, hashes against known values, RNG. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/hash.h"
#include "core/numfmt.h"
#include "core/rng.h"

#include <math.h>

/* Every e4m3 code and the midpoints between neighbours: ties go to the even code. */
static void test_e4m3(void **state)
{
    (void)state;
    for (int b = 0; b < 0x7e; b++) {
        float lo = e4m3_to_f32((uint8_t)b), hi = e4m3_to_f32((uint8_t)(b + 1));
        assert_true(hi > lo);
        assert_int_equal(e4m3_from_f32(lo), b);
        assert_int_equal(e4m3_from_f32(-hi), 0x80 | (b + 1));
        float mid = 0.5f * (lo + hi);
        assert_int_equal(e4m3_from_f32(mid), b + (b & 1));
        assert_int_equal(e4m3_from_f32(nextafterf(mid, 1e9f)), b + 1);
    }
    assert_int_equal(e4m3_from_f32(1e9f), 0x7e);
    assert_float_equal(e4m3_to_f32(0x7e), 448.0f, 0);
    assert_true(isnan(e4m3_to_f32(0x7f)));
    assert_int_equal(e4m3_from_f32(NAN) & 0x7f, 0x7f);
}

static void test_f16_bf16(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = f16_to_f32((uint16_t)h);
        if (!isnan(f)) assert_int_equal(f16_from_f32(f), h);
        float g = bf16_to_f32((uint16_t)h);
        if (!isnan(g)) assert_int_equal(bf16_from_f32(g), h);
    }
    assert_int_equal(f16_from_f32(65519.0f), 0x7bff);
    assert_int_equal(f16_from_f32(65520.0f), 0x7c00);
    assert_int_equal(bf16_from_f32(1.00390625f), 0x3f80); /* 1 + 2^-8: tie to even */
    assert_true(isnan(bf16_to_f32(bf16_from_f32(num_from_bits(0x7f800001u)))));
}

static void test_crc_and_hash(void **state)
{
    (void)state;
    assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283u); /* the published check value */
    struct hash128 a = hash128("abc", 3, (struct hash128){0, 0});
    struct hash128 b = hash128("abd", 3, (struct hash128){0, 0});
    struct hash128 c = hash128("abc", 3, (struct hash128){1, 0});
    assert_true(a.lo != b.lo && a.hi != b.hi && a.lo != c.lo && a.hi != c.hi);
}

/* Bit by bit from the polynomial, beside whatever instructions the program uses. */
static void test_crc_any_length(void **state)
{
    (void)state;
    uint8_t data[67];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 37 + 11);
    uint32_t want = ~0u;
    for (size_t n = 1; n <= sizeof data; n++) {
        want ^= data[n - 1];
        for (int bit = 0; bit < 8; bit++) want = want >> 1 ^ (want & 1 ? 0x82f63b78u : 0);
        assert_int_equal(crc32c(0, data, n), ~want);
        for (size_t cut = 0; cut <= n; cut++)
            assert_int_equal(crc32c(crc32c(0, data, cut), data + cut, n - cut), ~want);
    }
}

static void test_rng_moments(void **state)
{
    (void)state;
    double sum = 0, sq = 0;
    int n = 100000;
    for (int i = 0; i < n; i++) {
        double x = rng_normal(7, (uint64_t)i);
        sum += x;
        sq += x * x;
    }
    assert_true(fabs(sum / n) < 0.015);
    assert_true(fabs(sq / n - 1) < 0.02);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_e4m3),         cmocka_unit_test(test_f16_bf16),
        cmocka_unit_test(test_crc_and_hash), cmocka_unit_test(test_crc_any_length),
        cmocka_unit_test(test_rng_moments),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}
