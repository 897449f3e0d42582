/* links: plan engine cluster account model ep moe attention gemm transport schedule balance kvcache device checkpoint requests config core */
/* The table and the warnings for made-up hosts (hwloc's synthetic topologies).
 *
 * Alone: make unit-binding
 */
#include "engine/binding.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* Describes ranks with these masks (of the first 64 CPUs) on a host of this shape. */
static struct binding_host describe_with(const char *shape, int n, const uint64_t *masks,
                                         int threads, const char *const *gpus)
{
    struct binding_rank ranks[8];
    struct binding_host host;
    hwloc_topology_t t;
    memset(ranks, 0, sizeof ranks);
    memset(&host, 0, sizeof host);
    assert_int_equal(hwloc_topology_init(&t), 0);
    assert_int_equal(hwloc_topology_set_synthetic(t, shape), 0);
    assert_int_equal(hwloc_topology_load(t), 0);
    for (int i = 0; i < n; i++) {
        ranks[i].cpus[0] = masks[i];
        ranks[i].world_rank = 100 + i;
        ranks[i].threads = threads;
        if (gpus) snprintf(ranks[i].gpus, sizeof ranks[i].gpus, "%s", gpus[i]);
    }
    binding_describe(t, ranks, n, &host);
    hwloc_topology_destroy(t);
    return host;
}

static struct binding_host describe(const char *shape, int n, const uint64_t *masks, int threads)
{
    return describe_with(shape, n, masks, threads, NULL);
}

static void has(const char *text, const char *part)
{
    if (!strstr(text, part)) fail_msg("\"%s\" is not in \"%s\"", part, text);
}

static void test_cores_of_their_own(void **state)
{
    (void)state;
    struct binding_host h = describe("core:8 pu:1", 2, (uint64_t[]){0x0f, 0xf0}, 4);
    assert_string_equal(h.table, "0: cpus 0-3; 1: cpus 4-7");
    assert_string_equal(h.warnings, "");
    assert_int_equal(h.first, 100);
}

static void test_shared_but_wide_enough(void **state)
{
    (void)state;
    struct binding_host h = describe("core:8 pu:1", 4, (uint64_t[]){15, 15, 240, 240}, 2);
    assert_string_equal(h.table, "0-1: cpus 0-3; 2-3: cpus 4-7");
    assert_string_equal(h.warnings, "");
}

static void test_overlap(void **state)
{
    (void)state;
    struct binding_host h = describe("core:8 pu:1", 3, (uint64_t[]){0x0f, 0x3c, 0xc0}, 2);
    has(h.warnings, "ranks 100 and 101 are bound to overlapping cores, cpus 0-3 and 2-5:");
    h = describe("core:8 pu:1", 3, (uint64_t[]){0x0f, 0x3c, 0xe0}, 2);
    has(h.warnings, "and 1 more pairs");
}

/* Two hardware threads of one core are one core. */
static void test_hyperthreads(void **state)
{
    (void)state;
    struct binding_host h = describe("core:4 pu:2", 2, (uint64_t[]){0x55, 0xaa}, 1);
    has(h.warnings, "overlapping cores, cpus 0,2,4,6 and 1,3,5,7");
    h = describe("core:4 pu:2", 1, (uint64_t[]){0x0f}, 4);
    has(h.warnings, "rank 100 has 4 threads on 2 cores (cpus 0-3)");
    has(h.warnings, "threads_per_rank to 2");
}

static void test_too_many_threads(void **state)
{
    (void)state;
    struct binding_host h = describe("core:8 pu:1", 2, (uint64_t[]){0x03, 0xf0}, 4);
    has(h.warnings, "rank 100 has 4 threads on 2 cores (cpus 0-1)");
    has(h.warnings, "srun --cpus-per-task=4");
    assert_null(strstr(h.warnings, "more rank"));
    h = describe("core:8 pu:1", 3, (uint64_t[]){0x03, 0x0c, 0xf0}, 4);
    has(h.warnings, "likewise 1 more rank");
    h = describe("core:8 pu:1", 4, (uint64_t[]){15, 15, 15, 15}, 2);
    has(h.warnings, "ranks 100-103 have together 8 threads on 4 cores (cpus 0-3):");
}

static void test_not_bound(void **state)
{
    (void)state;
    struct binding_host h = describe("core:2 pu:1", 4, (uint64_t[]){3, 3, 3, 3}, 1);
    assert_string_equal(h.table, "0-3: cpus 0-1, not bound, 2 threads a core");
    assert_string_equal(h.warnings, "");
    h = describe("core:2 pu:1", 2, (uint64_t[]){3, 3}, 2);
    has(h.warnings, "4 threads on 2 cores (cpus 0-1), not bound");
    has(h.warnings, "threads_per_rank to 1");
    h = describe("core:2 pu:1", 1, (uint64_t[]){3}, 2);
    assert_string_equal(h.warnings, "");
}

static void test_omp(void **state)
{
    (void)state;
    char text[256];
    binding_check_omp(0, 0, 4, text, sizeof text);
    assert_string_equal(text, "");
    binding_check_omp("4", "8", 4, text, sizeof text);
    assert_string_equal(text, "");
    binding_check_omp("1", 0, 4, text, sizeof text);
    has(text, "OMP_NUM_THREADS=1 does not count: a rank has 4 threads (threads_per_rank)");
    binding_check_omp("4", "2", 4, text, sizeof text);
    has(text, "OMP_THREAD_LIMIT=2 keeps ranks below threads_per_rank 4");
}

static void test_gpus(void **state)
{
    (void)state;
    const uint64_t masks[] = {0x03, 0x0c, 0x30, 0xc0}, all[] = {255, 255, 255, 255};
    struct binding_host h = describe("core:8 pu:1", 2, masks, 2);
    assert_true(h.no_gpu && h.no_nic); /* a made-up host shows no devices */
    h = describe_with("core:8 pu:1", 4, masks, 2, (const char *[]){"0", "1", "2", "3"});
    assert_string_equal(h.table, "0: cpus 0-1, gpu 0; 1: cpus 2-3, gpu 1; 2: cpus 4-5, gpu 2; "
                                 "3: cpus 6-7, gpu 3");
    assert_string_equal(h.warnings, "");
    assert_false(h.no_gpu);
    h = describe_with("core:8 pu:1", 4, masks, 2, (const char *[]){"0", "1", "1", "3"});
    has(h.warnings, "2 ranks (101, 102, ...) have 1 GPU (CUDA_VISIBLE_DEVICES=1)");
    /* All see all: each takes its own, as long as there are enough. */
    h = describe_with("core:8 pu:1", 4, all, 2, (const char *[]){"0,1", "0,1", "0,1", "0,1"});
    has(h.table, "0-3: cpus 0-7");
    has(h.warnings, "4 ranks (100, 101, ...) have 2 GPUs (CUDA_VISIBLE_DEVICES=0,1)");
    h = describe_with("core:8 pu:1", 2, all, 2, (const char *[]){"0,1", "0,1"});
    assert_string_equal(h.warnings, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpus),
        cmocka_unit_test(test_cores_of_their_own),
        cmocka_unit_test(test_shared_but_wide_enough),
        cmocka_unit_test(test_overlap),
        cmocka_unit_test(test_hyperthreads),
        cmocka_unit_test(test_too_many_threads),
        cmocka_unit_test(test_not_bound),
        cmocka_unit_test(test_omp),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}
