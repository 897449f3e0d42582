/* bench_kv_trace.c - `moebatch bench kv --trace`: the disk tier's index and eviction on a trace of
 * prompts given as block hashes, at several capacities, beside LRU (from the leaves) and beside a
 * cache that forgets nothing. A hit is a prompt's token whose block, and all before it, is there.
 * Only full blocks count and are kept, as the engine keeps only full pages.
 */
#include "cluster/workload_trace.h"
#include "cmd/bench.h"
#include "core/clock.h"
#include "kvcache/disk_index.h"
#include "kvcache/prefix_index.h"

#include <stdio.h>
#include <stdlib.h>

enum { BLOCK_TOKENS = 512 };

struct replay {
    double hit_ratio, lookups_per_s;
    uint64_t evicted;
};

/* The id of a block names its whole prefix in such traces. */
static struct hash128 name_of(uint32_t block)
{
    return hash128(&block, sizeof block, PAGE_HASH_ROOT);
}

static enum status replay(const struct workload_trace *t, enum disk_policy policy,
                          uint32_t capacity, struct replay *out)
{
    struct disk_index *ix = NULL;
    TRY(disk_index_create(policy, &ix));
    struct hash128 *chain = malloc((t->n_blocks + 1) * sizeof *chain);
    if (!chain) {
        disk_index_free(ix);
        return error_set(ERR_RESOURCE, "no memory for %zu blocks", t->n_blocks);
    }
    for (size_t i = 0; i < t->n_blocks; i++) chain[i] = name_of(t->blocks[i]);
    double hit = 0, begin = clock_now_s();
    uint64_t lookups = 0;
    out->evicted = 0;
    for (size_t r = 0; r < t->n; r++) {
        const struct trace_row *row = &t->row[r];
        const struct hash128 *own = chain + row->first_block;
        uint32_t full = row->prompt / BLOCK_TOKENS;
        uint32_t n = full < row->n_blocks ? full : row->n_blocks;
        uint32_t before = disk_index_count(ix);
        uint32_t hits = disk_index_replay(ix, own, n, capacity, row->t_s);
        hit += (double)hits * BLOCK_TOKENS;
        lookups += hits + (hits < n);
        out->evicted += before + (n - hits) - disk_index_count(ix);
    }
    out->lookups_per_s = (double)lookups / (clock_now_s() - begin);
    out->hit_ratio = hit / (double)t->prompt_tokens;
    free(chain);
    disk_index_free(ix);
    return OK;
}

enum status bench_kv_trace(const char *path)
{
    static const uint32_t capacity[] = {1000, 3000, 10000, 20000, 50000, 100000, 0};
    struct workload_trace t;
    TRY(workload_trace_read(path, &t));
    enum status st = OK;
    printf("# %s: %zu prompts, %.1f million tokens, %zu blocks of %d tokens\n", path, t.n,
           1e-6 * (double)t.prompt_tokens, t.n_blocks, BLOCK_TOKENS);
    printf("# %16s %12s %12s %14s %14s\n", "capacity, tokens", "hit, %", "LRU's, %",
           "evicted blocks", "look-ups/s");
    for (size_t i = 0; st == OK && i < sizeof capacity / sizeof *capacity; i++) {
        struct replay best, lru;
        st = replay(&t, DISK_POLICY_BEST, capacity[i], &best);
        if (st == OK) st = replay(&t, DISK_POLICY_LRU, capacity[i], &lru);
        if (st != OK) break;
        char name[32] = "unbounded";
        if (capacity[i]) snprintf(name, sizeof name, "%u", capacity[i] * BLOCK_TOKENS);
        printf("  %16s %12.2f %12.2f %14llu %14.0f\n", name, 100 * best.hit_ratio,
               100 * lru.hit_ratio, (unsigned long long)best.evicted, best.lookups_per_s);
    }
    workload_trace_free(&t);
    return st;
}
