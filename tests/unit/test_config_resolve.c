/* links: core config */
/* test_config_resolve.c - units against ranks and experts: autos, legality, the arithmetic in
 * every refusal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "config/expert_slots.h"
#include "config/job.h"

#include <stdio.h>
#include <string.h>

/* A job from overrides alone, resolved for `ranks` ranks and `experts` experts. */
static enum status resolve(const char *sets, int ranks, int experts, struct job *job)
{
    char copy[512];
    const char *set[16] = {"model=m", "tokens=t", "results=r"};
    int n = 3;
    snprintf(copy, sizeof copy, "%s", sets);
    for (char *s = strtok(copy, " "); s; s = strtok(NULL, " ")) set[n++] = s;
    error_clear();
    assert_int_equal(job_read(NULL, n, set, job), OK);
    struct job_facts facts = {.ranks = ranks,
                              .ranks_on_node = ranks,
                              .cores_per_node = 8,
                              .experts = experts,
                              .n_group = 8};
    return job_resolve(job, &facts);
}

static void test_production(void **state)
{
    (void)state;
    struct job j;
    assert_int_equal(resolve("prefill.ep=32 decode.ep=144", 176, 256, &j), OK);
    assert_int_equal(j.prefill.redundant_experts, 32);
    assert_int_equal(j.decode.redundant_experts, 32);
    assert_int_equal(j.threads_per_rank, 1);
    assert_int_equal(j.ep.max_tokens_per_rank, 128);
    assert_int_equal(j.mixed.units, 0);
    assert_int_equal(job_ranks(&j), 176);
}

static void test_lists(void **state)
{
    (void)state;
    char text[64], tiny[16];
    int below, above;
    expert_slots_list(16, 0, text, sizeof text);
    assert_string_equal(text, "1 2 4 8 16");
    expert_slots_list(256, 32, tiny, sizeof tiny);
    assert_string_equal(tiny, "2 3 4 6 8 9 ...");
    expert_slots_redundant(256, 144, text, sizeof text);
    assert_string_equal(text, "32 176 320 464 608 752 ...");
    expert_slots_redundant(4, 2, text, sizeof text);
    assert_string_equal(text, "0 2 4");
    expert_slots_redundant(256, 1, text, sizeof text);
    assert_string_equal(text, "0");
    expert_slots_nearest(288, 10, &below, &above);
    assert_true(below == 9 && above == 12);
    expert_slots_nearest(288, 300, &below, &above);
    assert_true(below == 288 && above == 0);
}

static void test_autos(void **state)
{
    (void)state;
    struct job j;
    assert_int_equal(resolve("", 1, 256, &j), OK);
    assert_true(j.mixed.present && j.mixed.ep == 1 && j.mixed.redundant_experts == 0);
    assert_int_equal(j.threads_per_rank, 8);
    assert_int_equal(resolve("mixed.max_batch=4", 8, 256, &j), OK);
    assert_int_equal(j.mixed.ep, 8);
    assert_int_equal(j.mixed.redundant_experts, 32);
    assert_int_equal(j.ep.max_tokens_per_rank, 4);
    assert_int_equal(resolve("mixed.units=2", 8, 16, &j), OK);
    assert_int_equal(j.mixed.ep, 4);
    assert_int_equal(j.mixed.redundant_experts, 4);
    assert_int_equal(resolve("prefill.ep=2 decode.units=3", 8, 256, &j), OK);
    assert_int_equal(j.decode.ep, 2);
    assert_int_equal(resolve("prefill.units=1 decode.units=1", 8, 256, &j), OK);
    assert_true(j.prefill.ep == 4 && j.decode.ep == 4);
    assert_int_equal(resolve("prefill.units=1 decode.redundant_experts=32", 7, 256, &j), OK);
    assert_true(j.prefill.ep == 3 && j.decode.ep == 4);
    assert_int_equal(resolve("", 4, 0, &j), OK); /* dense */
    assert_int_equal(j.mixed.redundant_experts, 0);
}

/* 256 experts + 32: exactly the sizes that divide 288, one replica a rank at most. */
static void test_288_slots(void **state)
{
    (void)state;
    static const int legal[] = {2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 36, 48, 72, 96, 144, 288};
    size_t k = 0;
    for (int ep = 1; ep <= 300; ep++) {
        bool expected = k < sizeof legal / sizeof *legal && legal[k] == ep;
        k += expected;
        assert_int_equal(expert_slots_legal(256, 32, ep), expected);
    }
    assert_true(expert_slots_legal(256, 0, 1));
    assert_false(expert_slots_legal(4, 13, 1));
    for (int experts = 1; experts <= 300; experts++) /* auto is legal, and the smallest */
        for (int ep = 1; ep <= 200; ep++) {
            int r = expert_slots_auto(experts, ep);
            int least = ep == 1 ? 0 : experts / 8 < 32 ? experts / 8 : 32;
            assert_true(r >= least && expert_slots_legal(experts, r, ep));
            for (int less = least; less < r; less++)
                assert_false(expert_slots_legal(experts, less, ep));
        }
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *sets;
        int ranks, experts;
        enum status st;
        const char *message;
    } cases[] = {
        {"prefill.ep=32 decode.ep=144", 100, 256, ERR_RESOURCE,
         "prefill 1 x 32 + decode 1 x 144 = 176 ranks, but mpirun started 100: use mpirun -np 176, "
         "or set decode.ep to 68"},
        {"prefill.ep=32 decode.ep=144 decode.redundant_experts=32", 164, 256, ERR_RESOURCE,
         "mpirun started 164: use mpirun -np 176, or set prefill.ep to 20"},
        {"prefill.ep=32 decode.ep=144", 1, 256, ERR_RESOURCE, "started 1: use mpirun -np 176"},
        {"prefill.ep=4 decode.ep=10 decode.redundant_experts=32", 14, 256, ERR_INPUT,
         "decode.ep 10: 256 experts + 32 redundant = 288 slots do not divide by 10: legal sizes "
         "are 2 3 4 6 8 9 12 16 18 24 32 36 48 72 96 144 288; or "
         "set decode.redundant_experts to 34"},
        {"mixed.ep=1 mixed.redundant_experts=32", 1, 256, ERR_INPUT,
         "mixed.redundant_experts 32: 256 experts on 1 rank have room for 0, as no rank holds an "
         "expert twice: lower it, or set it to auto (0)"},
        {"mixed.ep=3 mixed.redundant_experts=0", 3, 256, ERR_INPUT,
         "256 experts + 0 redundant = 256 slots do not divide by 3: legal sizes are 1 2 4 8 16 32 "
         "64 128 256; or set mixed.redundant_experts to 32"},
        {"mixed.ep=2 mixed.redundant_experts=2", 2, 0, ERR_INPUT, "the model has no routed"},
        {"prefill.ep=2 decode.units=4", 8, 256, ERR_RESOURCE,
         "decode.ep is auto, but 6 of the 8 ranks that mpirun started are left for decode, which "
         "do not divide by 4 units: use mpirun -np 6 or 10"},
        {"prefill.ep=8 decode.units=1", 8, 256, ERR_RESOURCE, "use mpirun -np 9"},
        {"prefill.units=1 decode.units=1", 1, 256, ERR_RESOURCE,
         "1 ranks do not split into prefill 1 x ep and decode 1 x ep"},
        {"mixed.units=3", 8, 256, ERR_RESOURCE, "use mpirun -np 6 or 9"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct job j;
        assert_int_equal(resolve(cases[i].sets, cases[i].ranks, cases[i].experts, &j), cases[i].st);
        if (!strstr(error_text(), cases[i].message)) {
            print_error("message: %s\nexpected: %s\n", error_text(), cases[i].message);
            fail();
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_production), cmocka_unit_test(test_lists),
        cmocka_unit_test(test_autos),      cmocka_unit_test(test_288_slots),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}
