/* links: core device attention */
/* test_attention_rope.c - rotary tables and softmax scales against Hugging Face's.
 *
 * The numbers below come from transformers 5.23 in float32 on a CPU: DeepseekV3RotaryEmbedding
 * of a DeepseekV3Config with the rope_parameters of each case (qk_nope_head_dim 128), called at
 * one position; softmax scales from its yarn_apply_mscale. Rerun alone: make unit-attention_rope.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "attention/rope_table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct golden {
    int pos;
    int pair[6];
    double cs[12]; /* cos, sin */
};

struct rope_case {
    const char *name;
    struct rope_params p;
    double attention, softmax;
    struct golden at[2];
};

#define V3                                                                          \
    .theta = 10000, .dim = 64, .max_positions = 163840, .yarn = true, .factor = 40, \
    .original_max = 4096, .beta_fast = 32, .beta_slow = 1, .truncate = true

static const struct rope_case cases[] = {
    {"plain 10000",
     {.theta = 10000, .dim = 64, .max_positions = 163840},
     1,
     0.072168783648703216,
     {{54613,
       {0, 1, 10, 16, 24, 31},
       {0.901881874, -0.431982696, 0.985445023, 0.169994473, 0.206193313, -0.978511274, 0.874148369,
        -0.485658973, -0.356826603, -0.934170663, 0.540659249, 0.841241717}},
      {163839,
       {0, 1, 10, 16, 24, 31},
       {0.228684649, -0.97350055, 0.873443723, 0.486925155, -0.583712399, 0.811960518, 0.0494256541,
        -0.998777807, 0.888749421, 0.458393306, -0.989812195, 0.142379314}}}},
    {"plain 50000",
     {.theta = 50000, .dim = 64, .max_positions = 8192},
     1,
     0.072168783648703216,
     {{2730,
       {0, 1, 10, 16, 24, 31},
       {-0.999031425, 0.0440017581, 0.545248926, -0.838274181, 0.162164062, -0.986763835,
        0.936795712, -0.349876851, 0.684804797, 0.728726506, 0.997070253, 0.0764911175}},
      {8191,
       {0, 1, 10, 16, 24, 31},
       {-0.646390498, -0.763006806, -0.642899394, -0.76595062, -0.499195039, 0.866489649,
        0.48201409, -0.876163483, -0.770027459, 0.638010681, 0.973728895, 0.227710515}}}},
    {"V3: mscale 1, all_dim 1",
     {V3, .has_mscale = true, .mscale = 1, .has_mscale_all_dim = true, .mscale_all_dim = 1},
     1,
     0.13523377886088009,
     {{54613,
       {0, 1, 10, 16, 24, 31},
       {0.901881874, -0.431982696, 0.985445023, 0.169994473, 0.206193313, -0.978511274, 0.342355341,
        -0.939570546, 0.204028621, 0.978964925, 0.983471155, 0.181064785}},
      {163839,
       {0, 1, 10, 16, 24, 31},
       {0.228684649, -0.97350055, 0.873443723, 0.486925155, -0.583712399, 0.811960518, -0.866559982,
        0.499072909, -0.5781129, -0.815956771, 0.854500949, 0.51944989}}}},
    {"mscale 1, all_dim 0.5",
     {V3, .has_mscale = true, .mscale = 1, .has_mscale_all_dim = true, .mscale_all_dim = 0.5},
     1.1557219901962608,
     0.10124612961325218,
     {{54613,
       {0, 1, 10, 16, 24, 31},
       {1.04232478, -0.499251902, 1.13890052, 0.196466357, 0.238302156, -1.13088703, 0.395667613,
        -1.08588243, 0.235800371, 1.13141131, 1.13661933, 0.209260553}},
      {163839,
       {0, 1, 10, 16, 24, 31},
       {0.264295876, -1.12509608, 1.00945818, 0.562750101, -0.674609303, 0.938400626, -1.00150251,
        0.576789558, -0.668137789, -0.943019211, 0.987565577, 0.600339651}}}},
    {"V2-Lite: mscale 0.707, all_dim 0",
     {V3, .has_mscale = true, .mscale = 0.707, .has_mscale_all_dim = true},
     1.3688879454113936,
     0.072168783648703216,
     {{54613,
       {0, 1, 10, 16, 24, 31},
       {1.23457515, -0.591335893, 1.34896374, 0.232703373, 0.28225553, -1.33947229, 0.468646079,
        -1.28616679, 0.279292315, 1.34009326, 1.34626174, 0.247857392}},
      {163839,
       {0, 1, 10, 16, 24, 31},
       {0.313043654, -1.33261311, 1.19564652, 0.666545928, -0.79903686, 1.11148298, -1.18622351,
        0.683174849, -0.791371763, -1.11695337, 1.169716, 0.71106869}}}},
    {"Kimi-K2: beta 1/1",
     {.theta = 50000,
      .dim = 64,
      .max_positions = 131072,
      .yarn = true,
      .factor = 32,
      .original_max = 4096,
      .beta_fast = 1,
      .beta_slow = 1,
      .truncate = true,
      .has_mscale = true,
      .mscale = 1,
      .has_mscale_all_dim = true,
      .mscale_all_dim = 1},
     1,
     0.13086079996295005,
     {{43690,
       {0, 1, 10, 16, 24, 31},
       {-0.991686702, 0.128675714, -0.796160579, -0.605085373, -0.980975688, 0.19413054,
        0.820292234, 0.571944594, 0.917787731, 0.397071391, 0.999266982, 0.0382823609}},
      {131071,
       {0, 1, 10, 16, 24, 31},
       {-0.817983508, -0.575241685, 0.888316751, -0.459231257, -0.851320267, 0.524646342,
        -0.257398009, 0.966305494, 0.338964343, 0.940799236, 0.993408978, 0.114623539}}}},
    {"dim 20, no truncate, factor null",
     {.theta = 10000,
      .dim = 20,
      .max_positions = 4096,
      .yarn = true,
      .original_max = 512,
      .truncate = false},
     1.2079441541679836,
     0.082199493652678646,
     {{1365,
       {0, 1, 3, 5, 7, 9},
       {0.0265822709, 1.20765162, -1.20415103, 0.0956526473, -0.879489481, 0.828026175,
        -0.163120523, 1.19687963, 1.16404521, 0.322688431, 1.20683491, 0.0517555177}},
      {4095,
       {0, 1, 3, 5, 7, 9},
       {-0.0796953142, -1.20531225, -1.17398334, 0.284415483, 0.773556888, 0.927760065, 0.477463365,
        -1.10957551, 0.831766248, 0.875953197, 1.19797301, 0.154886514}}}},
    {"attention_factor 1.25",
     {.theta = 10000,
      .dim = 8,
      .max_positions = 2048,
      .yarn = true,
      .factor = 4,
      .original_max = 512,
      .attention_factor = 1.25,
      .truncate = true,
      .has_mscale_all_dim = true,
      .mscale_all_dim = 1},
     1.25,
     0.11117198496585289,
     {{682,
       {0, 1, 1, 2, 3, 3},
       {-1.20323694, -0.338704765, 0.264851153, -1.22161937, 0.264851153, -1.22161937, -0.167251393,
        1.23876023, 1.23187506, 0.212093905, 1.23187506, 0.212093905}},
      {2047,
       {0, 1, 1, 2, 3, 3},
       {0.312144071, -1.21039915, -0.808134317, 0.95363462, -0.808134317, 0.95363462, 0.492650807,
        -1.14882338, 1.08986104, 0.612129807, 1.08986104, 0.612129807}}}},
};

/* The largest difference of the case's numbers, and of cos^2 + sin^2 from a^2 anywhere. */
static double table_error(const struct rope_case *c, const float *table)
{
    double worst = 0;
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 6; j++)
            for (int part = 0; part < 2; part++) {
                size_t row = (size_t)c->at[i].pos * (size_t)c->p.dim;
                double got = table[row + (size_t)(2 * c->at[i].pair[j] + part)];
                double e = fabs(got - c->at[i].cs[2 * j + part]);
                if (!(e <= worst)) worst = e;
            }
    return worst;
}

static void test_tables(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct rope_case *c = &cases[i];
        float *table = malloc(rope_table_floats(&c->p) * sizeof *table);
        assert_int_equal(rope_table_build(&c->p, table), OK);
        double e = table_error(c, table), tolerance = 1e-6;
        printf("# %-34s error %.1e, %.0f %% of the tolerance\n", c->name, e, 100 * e / tolerance);
        assert_true(e <= tolerance);
        assert_true(fabs(rope_attention_factor(&c->p) - c->attention) < 1e-12);
        double softmax = rope_softmax_scale(&c->p, 128 + c->p.dim);
        assert_true(fabs(softmax - c->softmax) < 1e-7 * c->softmax);
        free(table);
    }
}

/* model.md's three cases for factor 40: cos/sin factor, softmax factor. */
static void test_factors(void **state)
{
    (void)state;
    static const double cases40[][4] = {
        {1, 1, 1.0, 1.874}, {1, 0.5, 1.156, 1.403}, {1, 0, 1.369, 1.0}};
    for (int i = 0; i < 3; i++) {
        struct rope_params p = {V3, .has_mscale = true, .has_mscale_all_dim = true,
                                .mscale = cases40[i][0], .mscale_all_dim = cases40[i][1]};
        assert_true(fabs(rope_attention_factor(&p) - cases40[i][2]) < 6e-4);
        assert_true(fabs(rope_softmax_scale(&p, 192) * sqrt(192) - cases40[i][3]) < 6e-4);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    struct rope_params p = {V3};
    p.dim = 63;
    assert_int_equal(rope_table_build(&p, 0), ERR_INPUT);
    assert_non_null(strstr(error_text(), "qk_rope_head_dim is 63"));
    error_clear();
    p = (struct rope_params){V3};
    p.theta = 1;
    assert_int_equal(rope_table_build(&p, 0), ERR_INPUT);
    assert_non_null(strstr(error_text(), "rope_theta is 1"));
    error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables),
        cmocka_unit_test(test_factors),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}
