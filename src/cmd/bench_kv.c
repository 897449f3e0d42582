/* bench_kv.c - `moebatch bench kv`: the disk tier on a folder beside fio on the same folder,
 * look-ups, and the time from a look-up to usable pages; or, with --trace, index and eviction alone
 * on a trace (bench_kv_trace.c).
 *
 * Every page read is compared with what was written before anything is timed. Write throughput
 * counts from the first page queued to the last segment sealed, fsync included, as fio's does with
 * end_fsync.
 */
#include "cmd/bench.h"
#include "cmd/cmd.h"
#include "core/clock.h"
#include "core/rng.h"
#include "kvcache/disk_store.h"
#include "kvcache/prefix_index.h"

#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TOKENS = 64, SLOTS = 64, DEPTH = 32 };

struct options {
    const char *dir, *io, *trace;
    double page_bytes, bytes;
    bool fio;
};

static const char usage[] =
    "moebatch bench kv --dir DIR [--bytes 2e9] [--page-bytes 4497408] [--io io_uring|threads]\n"
    "                  [--no-fio]\n"
    "moebatch bench kv --trace FILE.jsonl\n"
    "The disk tier of the KV cache in a new folder under DIR, removed afterwards: write and read\n"
    "throughput beside fio's, look-ups/s, time from look-up to usable pages. A page of\n"
    "DeepSeek-V3 has 4,497,408 bytes (61 layers x 64 tokens x 576 x 2). --trace replays the\n"
    "hash_ids of a trace through index and eviction alone, at several capacities.\n";

static enum status parse(int argc, char **argv, struct options *o)
{
    static const struct option longs[] = {{"dir", required_argument, 0, 'd'},
                                          {"io", required_argument, 0, 'i'},
                                          {"bytes", required_argument, 0, 'b'},
                                          {"page-bytes", required_argument, 0, 'p'},
                                          {"trace", required_argument, 0, 't'},
                                          {"no-fio", no_argument, 0, 'F'},
                                          {0, 0, 0, 0}};
    optind = 1;
    for (int c; (c = getopt_long(argc, argv, "", longs, 0)) != -1;) {
        switch (c) {
        case 'd': o->dir = optarg; break;
        case 'i': o->io = optarg; break;
        case 't': o->trace = optarg; break;
        case 'b': o->bytes = atof(optarg); break;
        case 'p': o->page_bytes = atof(optarg); break;
        case 'F': o->fio = false; break;
        default: return error_set(ERR_USAGE, "bench kv: see moebatch bench kv --help");
        }
    }
    if (!o->dir && !o->trace)
        return error_set(ERR_USAGE, "bench kv: --dir or --trace is needed; see --help");
    if (o->page_bytes < 64 || o->page_bytes > 1e9 || o->bytes < 4 * o->page_bytes)
        return error_set(ERR_USAGE, "bench kv: --bytes must hold 4 pages of 64 bytes to 1e9 bytes");
    return OK;
}

/* ---- a made-up cache ------------------------------------------------------------------------ */

struct bench {
    const struct options *o;
    struct disk_store *store;
    char folder[4096];
    size_t page_bytes;
    uint32_t pages;        /* in all */
    char *pool;            /* [SLOTS][page_bytes]: page i lives in slot i % SLOTS */
    struct hash128 *chain; /* [pages] one long prompt */
    uint64_t wrong;
};

static char *slot_of(const struct bench *b, int32_t page)
{
    return b->pool + (size_t)(page % SLOTS) * b->page_bytes;
}

static void gather(void *bench, int32_t page, size_t at, size_t bytes, char *out)
{
    const struct bench *b = bench;
    memcpy(out, slot_of(b, page) + at, bytes);
    if (at == 0) memcpy(out, &page, sizeof page); /* so that no two pages are alike */
}

static void scatter(void *bench, int32_t page, size_t at, size_t bytes, const char *in)
{
    const struct bench *b = bench;
    memcpy(slot_of(b, page) + at, in, bytes);
}

static void page_tokens(uint32_t page, int32_t tokens[TOKENS])
{
    for (int i = 0; i < TOKENS; i++)
        tokens[i] = (int32_t)(rng_u64(7, (uint64_t)page * TOKENS + (uint64_t)i) & 0xffff);
}

static struct disk_page page_at(const struct bench *b, uint32_t i, int32_t tokens[TOKENS])
{
    page_tokens(i, tokens);
    return (struct disk_page){
        {b->chain[i], i ? b->chain[i - 1] : PAGE_HASH_ROOT, i}, tokens, (int32_t)i, i};
}

static void fill_pool(struct bench *b)
{
    for (size_t i = 0; i + 8 <= SLOTS * b->page_bytes; i += 8) {
        uint64_t v = rng_u64(1, i % b->page_bytes); /* every slot alike */
        memcpy(b->pool + i, &v, 8);
    }
}

static enum status make(const struct options *o, struct bench *b)
{
    memset(b, 0, sizeof *b);
    b->o = o;
    b->page_bytes = (size_t)o->page_bytes / 8 * 8;
    b->pages = (uint32_t)(o->bytes / o->page_bytes);
    snprintf(b->folder, sizeof b->folder, "%s/moebatch-bench-XXXXXX", o->dir);
    b->pool = malloc(SLOTS * b->page_bytes);
    b->chain = malloc(b->pages * sizeof *b->chain);
    if (!b->pool || !b->chain) return error_set(ERR_RESOURCE, "no memory for the benchmark");
    if (!mkdtemp(b->folder))
        return error_set(ERR_INPUT, "--dir: cannot make a folder in %s: %s", o->dir,
                         strerror(errno));
    fill_pool(b);
    struct hash128 hash = PAGE_HASH_ROOT;
    for (uint32_t i = 0; i < b->pages; i++) {
        int32_t tokens[TOKENS];
        page_tokens(i, tokens);
        b->chain[i] = hash = page_hash(tokens, TOKENS, hash);
    }
    return OK;
}

static enum status open_store(struct bench *b)
{
    struct disk_store_config c = {
        .dir = b->folder,
        .bytes = (uint64_t)(4 * b->o->bytes) + (2048ull << 20),
        .segment_bytes = 512u << 20,
        .shape = {{1, 2}, TOKENS, b->page_bytes},
        .io = b->o->io,
        .gather = gather,
        .scatter = scatter,
        .arg = b,
    };
    return disk_store_open(&c, &b->store);
}

static void empty_folder(const char *path)
{
    char name[8192];
    DIR *d = opendir(path);
    if (!d) return;
    for (struct dirent *e = readdir(d); e; e = readdir(d)) {
        snprintf(name, sizeof name, "%s/%s", path, e->d_name);
        if (e->d_name[0] != '.') unlink(name);
    }
    closedir(d);
}

static void destroy(struct bench *b)
{
    disk_store_close(b->store, NULL);
    empty_folder(b->folder);
    rmdir(b->folder);
    free(b->pool);
    free(b->chain);
}

/* ---- write and read ------------------------------------------------------------------------- */

static double write_pages(struct bench *b)
{
    struct disk_event e[DEPTH];
    double begin = clock_now_s();
    for (uint32_t i = 0, taken = 0; taken < b->pages;) {
        int32_t tokens[TOKENS];
        while (i < b->pages && i - taken < DEPTH) {
            struct disk_page p = page_at(b, i, tokens);
            if (!disk_store_write(b->store, &p)) break;
            i++;
        }
        uint32_t n = disk_store_poll(b->store, e, DEPTH);
        taken += n;
        if (!n) clock_sleep_us(50);
    }
    disk_store_seal(b->store);
    return clock_now_s() - begin;
}

static bool page_is_right(const struct bench *b, int32_t page)
{
    const char *p = slot_of(b, page);
    if (memcmp(p, &page, sizeof page) != 0) return false;
    for (size_t i = 8; i + 8 <= b->page_bytes; i += 8) {
        uint64_t v = rng_u64(1, i);
        if (memcmp(p + i, &v, 8) != 0) return false;
    }
    return true;
}

/* Pages [first, first + n) into the pool, at most DEPTH under way; seconds. */
static double read_pages(struct bench *b, uint32_t first, uint32_t n, bool verify)
{
    struct disk_event e[DEPTH];
    double begin = clock_now_s();
    uint32_t found = disk_store_match(b->store, b->chain + first, 0, n);
    b->wrong += n - found;
    for (uint32_t i = 0, done = 0; done < found;) {
        int32_t tokens[TOKENS];
        while (i < found && i - done < DEPTH) {
            struct disk_page p = page_at(b, first + i, tokens);
            if (!disk_store_read(b->store, &p)) break;
            i++;
        }
        uint32_t got = disk_store_poll(b->store, e, DEPTH);
        for (uint32_t k = 0; k < got; k++)
            if (e[k].kind != DISK_EVENT_READ || (verify && !page_is_right(b, e[k].page)))
                b->wrong++;
        done += got;
        if (!got) clock_sleep_us(20);
    }
    return clock_now_s() - begin;
}

/* fio's MB/s for the same folder, block size, depth and direct I/O; 0 without fio. */
static double fio_rate(const struct bench *b, bool write, const struct disk_stats *st)
{
    enum { READ_FIELD = 6, WRITE_FIELD = 47 }; /* of the terse format, version 3: KiB/s */
    struct disk_shape shape = {{1, 2}, TOKENS, b->page_bytes};
    char command[8192], line[8192] = "";
    snprintf(command, sizeof command,
             "fio --name=kv --directory='%s' --filename=fio.tmp --rw=%s --bs=%zu --size=%zu "
             "--direct=%d --ioengine=%s --iodepth=%u --end_fsync=%d --minimal 2>/dev/null",
             b->folder, write ? "write" : "read", disk_stride(&shape),
             (size_t)b->pages * disk_stride(&shape), st->direct ? 1 : 0,
             b->o->io && !strcmp(b->o->io, "threads") ? "posixaio" : "io_uring", st->depth, write);
    FILE *f = popen(command, "r"); /* NOLINT(cert-env33-c): a benchmark's own baseline */
    if (!f) return 0;
    bool ok = fgets(line, sizeof line, f) != NULL;
    if (pclose(f) != 0 || !ok) return 0;
    char *at = line;
    for (int i = 0; at && i < (write ? WRITE_FIELD : READ_FIELD); i++) {
        at = strchr(at, ';');
        if (at) at++;
    }
    return at ? atof(at) * 1024 * 1e-6 : 0;
}

static void print_rate(const char *what, double mb, double s, double fio)
{
    char beside[64] = "fio is not installed";
    if (fio > 0)
        snprintf(beside, sizeof beside, "fio %8.1f MB/s: %5.1f %%", fio, 100 * mb / s / fio);
    printf("%-8s %10.1f MB in %7.3f s %10.1f MB/s   %s\n", what, mb, s, mb / s, beside);
}

static enum status throughput(struct bench *b)
{
    struct disk_stats st;
    double mb = 1e-6 * (double)b->pages * (double)b->page_bytes;
    double wrote = write_pages(b);
    read_pages(b, 0, b->pages, true);
    disk_store_stats(b->store, &st);
    if (b->wrong || st.dropped_pages || st.written_pages != b->pages)
        return error_set(ERR_INVALID, "bench kv: %llu of %u pages were read wrong, %llu dropped",
                         (unsigned long long)b->wrong, b->pages,
                         (unsigned long long)st.dropped_pages);
    printf("# %u pages of %zu bytes verified; %s, %u at once, %s I/O; fio with the same\n",
           b->pages, b->page_bytes, st.io, st.depth,
           st.direct ? "direct" : "buffered (page cache)");
    double read = read_pages(b, 0, b->pages, false);
    print_rate("write", mb, wrote, b->o->fio ? fio_rate(b, true, &st) : 0);
    print_rate("read", mb, read, b->o->fio ? fio_rate(b, false, &st) : 0);
    return OK;
}

/* ---- look-ups ------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* From the look-up of a prompt to all its pages in the pool, median of a few. */
static void latency(struct bench *b, uint32_t pages)
{
    enum { TIMES = 15 };
    double t[TIMES];
    if (pages > b->pages || pages > SLOTS) return;
    for (int i = 0; i < TIMES; i++)
        t[i] = read_pages(b, (uint32_t)(rng_u64(5, (uint64_t)i) % (b->pages - pages + 1)), pages,
                          false);
    qsort(t, TIMES, sizeof *t, by_value);
    printf("usable   %3u pages (%5u tokens) %9.3f ms after the look-up (median of %d; most %.3f)\n",
           pages, pages * TOKENS, 1e3 * t[TIMES / 2], TIMES, 1e3 * t[TIMES - 1]);
}

static void lookups(struct bench *b)
{
    double begin = clock_now_s(), s = 0;
    uint64_t n = 0, found = 0;
    while (s < 0.5) {
        for (int i = 0; i < 1000; i++, n++)
            found += disk_store_match(b->store, b->chain + n % b->pages, 0, 1);
        s = clock_now_s() - begin;
    }
    printf("look-ups %10.0f /s (one page each, %u in the index, %.0f %% found)\n", (double)n / s,
           b->pages, 100.0 * (double)found / (double)n);
}

enum status cmd_bench_kv(int argc, char **argv)
{
    struct options o = {.page_bytes = 61.0 * 64 * 576 * 2, .bytes = 2e9, .fio = true};
    if (cmd_wants_help(argc, argv)) {
        fputs(usage, stdout);
        return OK;
    }
    TRY(parse(argc, argv, &o));
    if (o.trace) return bench_kv_trace(o.trace);
    struct bench *b = malloc(sizeof *b);
    if (!b) return error_set(ERR_RESOURCE, "no memory for the benchmark");
    enum status st = make(&o, b);
    if (st == OK) st = open_store(b);
    if (st == OK) st = throughput(b);
    if (st == OK) {
        lookups(b);
        for (uint32_t pages = 1; pages <= SLOTS; pages *= 4) latency(b, pages);
    }
    destroy(b);
    free(b);
    return st;
}
