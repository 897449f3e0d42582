/* links: plan engine cluster account model ep moe attention gemm transport schedule balance kvcache device checkpoint requests config core */
/* test_plan.c - the arithmetic under `moebatch plan` and the start of `run`: which rank is what,
 * nodes of a unit, pages that fit, sums over a host, and refusals with their numbers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/memory.h"
#include "kvcache/page_pool.h"
#include "kvcache/prefix_index.h"
#include "plan/plan_tokens.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB ((double)(1 << 20))

static void make_job(struct job *job, int n, const char *const *sets, int ranks)
{
    const char *set[16] = {"model=m", "tokens=t", "results=r"};
    for (int i = 0; i < n; i++) set[3 + i] = sets[i];
    error_clear();
    assert_int_equal(job_read(NULL, 3 + n, set, job), OK);
    struct job_facts facts = {
        .ranks = ranks, .ranks_on_node = ranks, .cores_per_node = 8, .experts = 256, .n_group = 8};
    assert_int_equal(job_resolve(job, &facts), OK);
}

/* The shape of the demonstration model, as far as sizes go. */
static struct model_config shape(void)
{
    struct model_config c;
    memset(&c, 0, sizeof c);
    c.vocab = 3072, c.hidden = 256, c.layers = 4, c.heads = 8, c.max_positions = 2048;
    c.kv_lora = 128, c.dim_rope = 16, c.dim_nope = 32, c.dim_v = 32, c.q_lora = 128;
    c.intermediate = 768, c.moe_intermediate = 32, c.experts = 256, c.topk = 8;
    c.n_group = 8, c.shared_experts = 1, c.first_dense = 1, c.moe_layer_freq = 1;
    return c;
}

static void test_rank_map(void **state)
{
    (void)state;
    struct job job;
    make_job(&job, 2, (const char *[]){"prefill.ep=32", "decode.ep=144"}, 176);
    struct rank_place p = rank_map_place(&job, 31), d = rank_map_place(&job, 32),
                      last = rank_map_place(&job, 175);
    assert_true(p.role == RANK_PREFILL && p.unit == 0 && p.local == 31);
    assert_true(d.role == RANK_DECODE && d.unit == 0 && d.local == 0);
    assert_true(last.role == RANK_DECODE && last.local == 143);
    assert_int_equal(rank_map_nodes(&job, RANK_PREFILL, 0, 8), 4);
    assert_int_equal(rank_map_nodes(&job, RANK_DECODE, 0, 8), 18);
    assert_int_equal(rank_map_nodes(&job, RANK_DECODE, 0, 176), 1);
    /* Hosts of 40: 32 prefill + 8 decode ranks, 40 decode ranks thrice, 16. */
    assert_int_equal(rank_map_nodes(&job, RANK_DECODE, 0, 40), 5);
    assert_int_equal(rank_map_on_host(&job, RANK_PREFILL, 0, 40), 32);
    assert_int_equal(rank_map_on_host(&job, RANK_DECODE, 0, 40), 8);
    assert_int_equal(rank_map_on_host(&job, RANK_DECODE, 3, 40), 40);
    assert_int_equal(rank_map_on_host(&job, RANK_DECODE, 4, 40), 16);
    assert_int_equal(rank_map_on_host(&job, RANK_MIXED, 0, 40), 0);

    make_job(&job, 5,
             (const char *[]){"prefill.units=2", "prefill.ep=2", "decode.units=3", "decode.ep=4",
                              "ranks_per_node=3"},
             16);
    assert_int_equal(rank_map_first(&job, RANK_DECODE, 1), 8);
    p = rank_map_place(&job, 3);
    d = rank_map_place(&job, 15);
    assert_true(p.role == RANK_PREFILL && p.unit == 1 && p.local == 1);
    assert_true(d.role == RANK_DECODE && d.unit == 2 && d.local == 3);
    assert_int_equal(rank_map_nodes(&job, RANK_DECODE, 2, 16), 2); /* 3 + 1 virtual */

    make_job(&job, 1, (const char *[]){"mixed.units=4"}, 8);
    p = rank_map_place(&job, 5);
    assert_true(p.role == RANK_MIXED && p.unit == 2 && p.local == 1);
    assert_string_equal(rank_role_name(p.role), "mixed");
}

static void test_pages(void **state)
{
    (void)state;
    struct job job;
    struct model_config c = shape();
    struct rank_memory rank = {.experts = 10 * MIB, .shared = 5 * MIB}, host = {0};
    make_job(&job, 2, (const char *[]){"prefill.ep=2", "decode.ep=4"}, 6);
    double page = (double)memory_page_bytes(&job, &c);
    assert_true(page == 4.0 * 64 * (128 + 16) * 2);
    assert_true(memory_useful_pages(&job, &c, RANK_DECODE) == 32.0 * 128);
    /* All useful ones; half of the share; a given number; never none. */
    assert_int_equal(memory_choose_pages(&job, &c, RANK_DECODE, 1e12), 32 * 128);
    assert_int_equal(memory_choose_pages(&job, &c, RANK_DECODE, 0), 32 * 128);
    assert_int_equal(memory_choose_pages(&job, &c, RANK_DECODE, 200 * page), 100);
    assert_int_equal(memory_choose_pages(&job, &c, RANK_DECODE, 1), 1);
    memory_set_pages(&job, &c, RANK_DECODE, 100, &rank);
    assert_true(rank.kv == 100 * page && rank.index == (double)page_pool_bytes(100));
    memory_set_pages(&job, &c, RANK_PREFILL, 100, &rank);
    assert_true(rank.index == (double)(page_pool_bytes(100) + prefix_index_bytes(100, 64)));

    /* What does not fit beside the rest is taken from the pages. */
    memory_add(&host, &rank, 4);
    assert_true(host.shared == 5 * MIB && host.experts == 40 * MIB && host.kv == 400 * page);
    assert_true(memory_pages_share(&job, &host, 1e12) == 1);
    double have = memory_sum(&host) - 100 * page;
    double share = memory_pages_share(&job, &host, have);
    assert_true(share > 0.7 && share < 0.75);
    assert_true(memory_pages_share(&job, &host, 40 * MIB) == 0);
    job.kv.pages_per_rank = 100;
    assert_int_equal(memory_choose_pages(&job, &c, RANK_DECODE, 200 * page), 100);
    assert_true(memory_pages_share(&job, &host, have) == 1); /* asked for: refused, not cut */
}

static void test_refusal(void **state)
{
    (void)state;
    struct rank_memory m = {.shared = 1024 * MIB,
                            .experts = 2048 * MIB,
                            .kv = 3072 * MIB,
                            .activations = 512 * MIB,
                            .growth = 512 * MIB,
                            .ep = 256 * MIB};
    assert_int_equal(memory_check(&m, "one host", 4, 77, 8e9), OK);
    assert_int_equal(memory_check(&m, "one host", 4, 77, 0), OK); /* not known */
    error_clear();
    assert_int_equal(memory_check(&m, "n1", 4, 77, 7168 * MIB), ERR_RESOURCE);
    assert_non_null(strstr(error_text(), "4 ranks on n1 need 7.25 GiB, 7.00 GiB are free: shared "
                                         "weights 1.00, experts 2.00, KV pages 3.00 "
                                         "(kv.pages_per_rank 77), activations 1.00, all-to-all "
                                         "0.25"));
    error_clear();
}

/* Every component is there, follows its key, and is in the sum once. */
static void test_components(void **state)
{
    (void)state;
    struct job job;
    struct model_config c = shape();
    struct weights w = {.shared_bytes = 1000, .private_bytes = 2000, .experts_fp8 = true};
    struct memory_facts f = {RANK_PREFILL, 1, 100, &w};
    struct rank_memory small, large;
    struct ep_memory ep;
    make_job(&job, 4,
             (const char *[]){"prefill.ep=8", "decode.ep=8", "prefill.chunk_tokens=256",
                              "decode.max_batch=16"},
             16);
    assert_int_equal(memory_max_rows(&job, RANK_PREFILL), 256);
    assert_int_equal(memory_max_rows(&job, RANK_DECODE), 8);
    assert_int_equal(memory_of_rank(&job, &c, &f, &small), OK);
    assert_int_equal(memory_ep(&job, &c, &f, &ep), OK);
    assert_true(small.shared == 1000 && small.experts == 2000 && small.kv == 0);
    assert_true(small.ep == (double)(ep.window + ep.heap));
    assert_true(ep.window == ep.receive + ep.fixed + ep.combine + ep.rings + ep.control);
    assert_true(ep.fixed == 0 && ep.receive > 0 && ep.rings == 0);
    assert_true(memory_sum(&small) == small.shared + small.experts + small.activations +
                                          small.growth + small.ep + small.requests + small.program);
    f.longest = 1000;
    assert_int_equal(memory_of_rank(&job, &c, &f, &large), OK);
    assert_true(large.requests > small.requests);
    assert_true(large.growth > small.growth && large.activations == small.activations);
    job.prefill.chunk_tokens = 512;
    assert_int_equal(memory_of_rank(&job, &c, &f, &large), OK);
    assert_true(large.activations > 1.5 * small.activations && large.ep > 1.5 * small.ep);
    f.nodes = 4; /* rows cross nodes through gateways */
    assert_int_equal(memory_ep(&job, &c, &f, &ep), OK);
    assert_true(ep.rings > 0);
    f.role = RANK_DECODE;
    assert_int_equal(memory_ep(&job, &c, &f, &ep), OK);
    assert_true(ep.fixed > 0 && ep.receive == 0 && ep.fixed_rows == 8 * 8 * 8);
}

static void test_too_long(void **state)
{
    (void)state;
    struct engine_request list[] = {{.prompt = 64, .output = 0},
                                    {.prompt = 64, .output = 1},
                                    {.prompt = 63, .output = 2},
                                    {.prompt = 64, .output = 2},
                                    {.prompt = 65, .output = 0}};
    struct plan_tokens t = {.list = list, .n = 5, .step = 1};
    assert_int_equal(plan_tokens_beyond(&t, 64), 2); /* the last answer token needs no place */
    t.step = 10;
    assert_int_equal(plan_tokens_beyond(&t, 64), 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rank_map), cmocka_unit_test(test_pages),
        cmocka_unit_test(test_refusal),  cmocka_unit_test(test_components),
        cmocka_unit_test(test_too_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
