/* binding.c - see binding.h. Ranks with the same CPU mask and GPUs form a group; a group has enough cores
 * for its threads or not, two groups overlap or not. */
#include "engine/binding.h"

#include "core/log.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct group {
    hwloc_bitmap_t cpus;
    hwloc_bitmap_t local, world; /* its ranks, by both numbers */
    int ranks, threads;          /* threads of all its ranks */
    int cores;
    bool bound; /* to less than the whole host */
    const char *gpus;
};

static void append(char *text, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void append(char *text, const char *fmt, ...)
{
    size_t used = strlen(text);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text + used, BINDING_TEXT - used, fmt, ap);
    va_end(ap);
}

/* "0-3,8" */
static const char *list(hwloc_const_bitmap_t set, char text[128])
{
    hwloc_bitmap_list_snprintf(text, 128, set);
    return text;
}

static int cores_of(hwloc_topology_t t, hwloc_const_bitmap_t cpus)
{
    int all = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_CORE), n = 0;
    for (int i = 0; i < all; i++)
        n += hwloc_bitmap_intersects(hwloc_get_obj_by_type(t, HWLOC_OBJ_CORE, (unsigned)i)->cpuset,
                                     cpus);
    return all > 0 ? n : hwloc_bitmap_weight(cpus); /* a host that hides its cores */
}

/* Whether some core serves both, be it with different hardware threads. */
static bool share_core(hwloc_topology_t t, const struct group *a, const struct group *b)
{
    int all = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_CORE);
    for (int i = 0; i < all; i++) {
        hwloc_const_bitmap_t core = hwloc_get_obj_by_type(t, HWLOC_OBJ_CORE, (unsigned)i)->cpuset;
        if (hwloc_bitmap_intersects(core, a->cpus) && hwloc_bitmap_intersects(core, b->cpus))
            return true;
    }
    return hwloc_bitmap_intersects(a->cpus, b->cpus);
}

static int make_groups(hwloc_topology_t t, const struct binding_rank *ranks, int n,
                       struct group *group)
{
    int groups = 0;
    for (int i = 0; i < n; i++) {
        hwloc_bitmap_t cpus = hwloc_bitmap_alloc();
        for (int w = 0; w < BINDING_WORDS; w++)
            for (unsigned b = 0; b < 64; b++)
                if (ranks[i].cpus[w] >> b & 1) hwloc_bitmap_set(cpus, (unsigned)w * 64 + b);
        int g = 0;
        while (g < groups && (!hwloc_bitmap_isequal(group[g].cpus, cpus) ||
                              strcmp(group[g].gpus, ranks[i].gpus) != 0))
            g++;
        struct group *at = &group[g];
        if (g == groups) {
            groups++;
            *at = (struct group){.cpus = cpus,
                                 .local = hwloc_bitmap_alloc(),
                                 .world = hwloc_bitmap_alloc(),
                                 .cores = cores_of(t, cpus),
                                 .gpus = ranks[i].gpus};
            at->bound = !hwloc_bitmap_isincluded(hwloc_topology_get_allowed_cpuset(t), cpus);
        } else {
            hwloc_bitmap_free(cpus);
        }
        hwloc_bitmap_set(at->local, (unsigned)i);
        hwloc_bitmap_set(at->world, (unsigned)ranks[i].world_rank);
        at->ranks++;
        at->threads += ranks[i].threads;
    }
    return groups;
}

static bool is_nic(const struct hwloc_obj *d)
{
    return d->attr->osdev.type == HWLOC_OBJ_OSDEV_OPENFABRICS ||
           (d->attr->osdev.type == HWLOC_OBJ_OSDEV_NETWORK && strcmp(d->name, "lo") != 0);
}

/* The NIC that is nearest to these CPUs: an InfiniBand or RoCE device before an Ethernet one, one
 * that hangs on their part of the host before another. NULL: there is none to be seen. */
static const char *nearest_nic(hwloc_topology_t t, hwloc_const_bitmap_t cpus)
{
    const char *best = NULL;
    int most = -1;
    for (hwloc_obj_t d = hwloc_get_next_osdev(t, NULL); d; d = hwloc_get_next_osdev(t, d)) {
        if (!d->name || !is_nic(d)) continue;
        hwloc_obj_t at = hwloc_get_non_io_ancestor_obj(t, d);
        int points = 2 * (d->attr->osdev.type == HWLOC_OBJ_OSDEV_OPENFABRICS) +
                     (at && at->cpuset && hwloc_bitmap_intersects(at->cpuset, cpus));
        if (points <= most) continue;
        most = points;
        best = d->name;
    }
    return best;
}

/* GPUs in a list like "0,1,2". */
static int count_gpus(const char *gpus)
{
    int n = *gpus != '\0';
    for (; *gpus; gpus++) n += *gpus == ',';
    return n;
}

/* More ranks than GPUs among those that were given the same ones. */
static void find_shared_gpus(const struct binding_rank *ranks, int n, struct binding_host *out)
{
    for (int i = 0; i < n; i++) {
        int same = 0, second = i, gpus = count_gpus(ranks[i].gpus);
        bool told = false;
        for (int k = 0; k < n; k++) {
            if (!gpus || strcmp(ranks[i].gpus, ranks[k].gpus) != 0) continue;
            told |= k < i;
            if (same++ == 1) second = k;
        }
        if (told || same <= gpus) continue;
        append(
            out->warnings,
            "%d ranks (%d, %d, ...) have %d GPU%s (CUDA_VISIBLE_DEVICES=%s): start as many ranks "
            "as GPUs, or give each its own (srun --gpus-per-task=1, which may number each "
            "rank's own GPU 0)\n",
            same, ranks[i].world_rank, ranks[second].world_rank, gpus, gpus > 1 ? "s" : "",
            ranks[i].gpus);
    }
}

static void describe_group(const struct group *g, const char *nic, bool first,
                           struct binding_host *out)
{
    char local[128], cpus[128];
    append(out->table, "%s%s: cpus %s", first ? "" : "; ", list(g->local, local),
           list(g->cpus, cpus));
    if (!g->bound && g->ranks > 1)
        append(out->table, ", not bound, %.3g threads a core", (double)g->threads / g->cores);
    if (*g->gpus) append(out->table, ", gpu %s", g->gpus);
    if (nic) append(out->table, ", nic %s", nic);
    out->no_gpu &= !*g->gpus;
    out->no_nic &= !nic;
}

/* More threads than cores. Many single-threaded ranks that nobody bound were meant to share. */
static bool crowded(const struct group *g)
{
    return g->threads > g->cores && (g->bound || g->threads > g->ranks || g->ranks == 1);
}

static void find_crowded(const struct group *group, int groups, struct binding_host *out)
{
    const struct group *g = 0;
    int others = 0;
    for (int i = groups - 1; i >= 0; i--) {
        if (!crowded(&group[i])) continue;
        others += g ? g->ranks : 0;
        g = &group[i];
    }
    if (!g) return;
    char world[128], cpus[128], more[64] = "";
    int each = g->threads / g->ranks, fair = g->cores / g->ranks > 1 ? g->cores / g->ranks : 1;
    if (others) snprintf(more, sizeof more, ", and likewise %d more rank(s)", others);
    append(out->warnings,
           "rank%s %s ha%s %d threads on %d core%s (cpus %s)%s%s: give each rank %d cores (mpirun "
           "--map-by slot:PE=%d --bind-to core, srun --cpus-per-task=%d), or set threads_per_rank "
           "to %d\n",
           g->ranks > 1 ? "s" : "", list(g->world, world), g->ranks > 1 ? "ve together" : "s",
           g->threads, g->cores, g->cores > 1 ? "s" : "", list(g->cpus, cpus),
           g->bound ? "" : ", not bound", more, each, each, each, fair);
}

/* The first pair tells enough; the rest is counted. */
static void find_overlap(hwloc_topology_t t, const struct group *group, int groups,
                         struct binding_host *out)
{
    int pairs = 0, a = 0, b = 0;
    for (int i = 0; i < groups; i++)
        for (int k = i + 1; k < groups; k++) {
            if (!share_core(t, &group[i], &group[k])) continue;
            if (pairs++ == 0) a = i, b = k;
        }
    if (pairs == 0) return;
    char cpus_a[128], cpus_b[128], more[64] = "";
    if (pairs > 1) snprintf(more, sizeof more, ", and %d more pairs", pairs - 1);
    append(out->warnings,
           "ranks %d and %d are bound to overlapping cores, cpus %s and %s%s: bind each rank to "
           "cores of its own\n",
           hwloc_bitmap_first(group[a].world), hwloc_bitmap_first(group[b].world),
           list(group[a].cpus, cpus_a), list(group[b].cpus, cpus_b), more);
}

void binding_describe(hwloc_topology_t topology, const struct binding_rank *ranks, int n,
                      struct binding_host *out)
{
    out->ranks = n;
    out->first = ranks[0].world_rank;
    out->table[0] = out->warnings[0] = '\0';
    out->no_gpu = out->no_nic = 1;
    struct group *group = calloc((size_t)n, sizeof *group);
    if (!group) return;
    int groups = make_groups(topology, ranks, n, group);
    for (int g = 0; g < groups; g++)
        describe_group(&group[g], nearest_nic(topology, group[g].cpus), g == 0, out);
    find_crowded(group, groups, out);
    find_overlap(topology, group, groups, out);
    find_shared_gpus(ranks, n, out);
    for (int g = 0; g < groups; g++) {
        hwloc_bitmap_free(group[g].cpus);
        hwloc_bitmap_free(group[g].local);
        hwloc_bitmap_free(group[g].world);
    }
    free(group);
}

void binding_check_omp(const char *num_threads, const char *limit, int threads, char *text,
                       size_t bytes)
{
    text[0] = '\0';
    if (limit && *limit && atoi(limit) < threads)
        snprintf(text, bytes,
                 "OMP_THREAD_LIMIT=%s keeps ranks below threads_per_rank %d: unset it, or set "
                 "threads_per_rank to %d",
                 limit, threads, atoi(limit) > 0 ? atoi(limit) : 1);
    else if (num_threads && *num_threads && atoi(num_threads) != threads)
        snprintf(text, bytes,
                 "OMP_NUM_THREADS=%s does not count: a rank has %d threads (threads_per_rank); "
                 "unset it, or set threads_per_rank to %d",
                 num_threads, threads, atoi(num_threads) > 0 ? atoi(num_threads) : 1);
}

static void own_mask(uint64_t cpus[BINDING_WORDS])
{
    cpu_set_t set;
    _Static_assert(sizeof set >= BINDING_WORDS * sizeof *cpus, "a mask holds 1024 CPUs");
    CPU_ZERO(&set);
    memset(cpus, 0, BINDING_WORDS * sizeof *cpus);
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        memcpy(cpus, &set, BINDING_WORDS * sizeof *cpus);
}

int binding_host_cpus(const struct node *node)
{
    uint64_t cpus[BINDING_WORDS];
    int n = 0;
    own_mask(cpus);
    MPI_Allreduce(MPI_IN_PLACE, cpus, BINDING_WORDS, MPI_UINT64_T, MPI_BOR, node->comm);
    for (int w = 0; w < BINDING_WORDS; w++) n += __builtin_popcountll(cpus[w]);
    return n > 0 ? n : 1;
}

/* This host, by its first rank. Without a topology there is nothing to say. */
static void describe_host(const struct binding_rank *ranks, int n, struct binding_host *out)
{
    hwloc_topology_t t;
    memset(out, 0, sizeof *out);
    gethostname(out->host, sizeof out->host - 1);
    out->ranks = n;
    out->first = ranks[0].world_rank;
    if (hwloc_topology_init(&t) != 0) return;
    hwloc_topology_set_io_types_filter(t, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
    if (hwloc_topology_load(t) == 0) binding_describe(t, ranks, n, out);
    hwloc_topology_destroy(t);
}

static void print_hosts(const struct binding_host *h, int hosts)
{
    for (int i = 0, n = 0; i < hosts; i += n) {
        for (n = 1; i + n < hosts; n++)
            if (strcmp(h[i].table, h[i + n].table) != 0) break;
        const char *gpu = h[i].no_gpu ? "; no GPU" : "", *nic = h[i].no_nic ? "; no NIC" : "";
        if (n == 1)
            log_info("binding: %s, %d rank(s) from %d on: %s%s%s", h[i].host, h[i].ranks,
                     h[i].first, h[i].table, gpu, nic);
        else
            log_info("binding: %s to %s, %d hosts of %d rank(s), from %d on: on each %s%s%s",
                     h[i].host, h[i + n - 1].host, n, h[i].ranks, h[i].first, h[i].table, gpu, nic);
    }
    for (int i = 0; i < hosts; i++) {
        char lines[BINDING_TEXT], *save = 0;
        memcpy(lines, h[i].warnings, sizeof lines);
        for (char *s = strtok_r(lines, "\n", &save); s; s = strtok_r(0, "\n", &save))
            log_warn("%s: %s", h[i].host, s);
    }
}

enum status binding_report(MPI_Comm world, const struct node *node, int threads)
{
    struct binding_rank mine = {.threads = threads}, *ranks = 0;
    struct binding_host here, *hosts = 0;
    const char *gpus = getenv("CUDA_VISIBLE_DEVICES");
    own_mask(mine.cpus);
    if (gpus) snprintf(mine.gpus, sizeof mine.gpus, "%s", gpus);
    MPI_Comm_rank(world, &mine.world_rank);
    bool first = node->rank == 0;
    if (first) ranks = calloc((size_t)node->size, sizeof *ranks);
    if (mine.world_rank == 0) hosts = calloc((size_t)node->count, sizeof *hosts);
    bool short_of = (first && !ranks) || (mine.world_rank == 0 && !hosts);
    enum status st =
        agree(world, short_of ? error_set(ERR_RESOURCE, "no memory for the binding") : OK);
    if (st == OK) {
        MPI_Comm firsts;
        MPI_Gather(&mine, (int)sizeof mine, MPI_BYTE, ranks, (int)sizeof mine, MPI_BYTE, 0,
                   node->comm);
        MPI_Comm_split(world, first ? 0 : MPI_UNDEFINED, mine.world_rank, &firsts);
        if (first) {
            describe_host(ranks, node->size, &here);
            MPI_Gather(&here, (int)sizeof here, MPI_BYTE, hosts, (int)sizeof here, MPI_BYTE, 0,
                       firsts);
            MPI_Comm_free(&firsts);
        }
    }
    if (st == OK && mine.world_rank == 0) {
        char text[256];
        binding_check_omp(getenv("OMP_NUM_THREADS"), getenv("OMP_THREAD_LIMIT"), threads, text,
                          sizeof text);
        print_hosts(hosts, node->count);
        if (*text) log_warn("%s", text);
    }
    free(ranks);
    free(hosts);
    return st;
}
