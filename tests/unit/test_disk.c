/* links: core kvcache */
/* test_disk.c - the disk tier without an engine: index and order of eviction, segment format, both
 * I/O back-ends, the store alone, torn and flipped, bounded, leased, with two writers and models.
 * Alone: make unit-disk CASE=...
 */
#include "kvcache/disk_dir.h"
#include "kvcache/disk_format.h"
#include "kvcache/disk_index.h"
#include "kvcache/disk_io.h"
#include "kvcache/disk_store.h"
#include "kvcache/prefix_index.h"

#include "core/clock.h"
#include "core/rng.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- pages of a made-up model --------------------------------------------------------------- */

enum { TOKENS = 16, PAGE = 40000, CHAIN = 24, POOL = 64 };
enum { REC = 40960 }; /* bytes of a record */

struct world {
    char dir[64];
    char *pool; /* [POOL][PAGE] what gather reads and scatter fills */
};

static void page_tokens(int prompt, int page, int32_t out[TOKENS])
{
    for (int i = 0; i < TOKENS; i++)
        out[i] = (int32_t)(rng_u64((uint64_t)prompt, (uint64_t)(page * TOKENS + i)) % 1000);
}

/* Pages of a prompt: its first `shared` pages are those of prompt 0. */
static void make_chain(int prompt, int shared, int n, struct hash128 *chain)
{
    struct hash128 h = PAGE_HASH_ROOT;
    for (int i = 0; i < n; i++) {
        int32_t tokens[TOKENS];
        page_tokens(i < shared ? 0 : prompt, i, tokens);
        chain[i] = h = page_hash(tokens, TOKENS, h);
    }
}

static void fill_page(struct hash128 hash, char *out)
{
    for (int i = 0; i < PAGE; i++) out[i] = (char)rng_u64(hash.lo, (uint64_t)i);
}

static void gather(void *world, int32_t page, size_t at, size_t bytes, char *out)
{
    memcpy(out, ((struct world *)world)->pool + (size_t)page * PAGE + at, bytes);
}

static void scatter(void *world, int32_t page, size_t at, size_t bytes, const char *in)
{
    memcpy(((struct world *)world)->pool + (size_t)page * PAGE + at, in, bytes);
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    snprintf(w->dir, sizeof w->dir, "/tmp/moebatch-disk-XXXXXX");
    if (!mkdtemp(w->dir)) return -1;
    w->pool = calloc(POOL, PAGE);
    *state = w;
    return 0;
}

static void each_file(const struct world *w,
                      void (*fn)(const char *path, const char *name, void *arg), void *arg)
{
    char path[512];
    DIR *d = opendir(w->dir);
    assert_non_null(d);
    for (struct dirent *e = readdir(d); e; e = readdir(d)) {
        if (e->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", w->dir, e->d_name);
        fn(path, e->d_name, arg);
    }
    closedir(d);
}

static void remove_file(const char *path, const char *name, void *arg)
{
    (void)name;
    (void)arg;
    unlink(path);
}

static int teardown(void **state)
{
    struct world *w = *state;
    each_file(w, remove_file, NULL);
    rmdir(w->dir);
    free(w->pool);
    free(w);
    error_clear();
    return 0;
}

struct files {
    int sealed, open, other;
    uint64_t bytes; /* of sealed ones */
    char last[512]; /* path of a sealed one */
};

static void count_file(const char *path, const char *name, void *arg)
{
    struct files *f = arg;
    struct stat st;
    enum disk_file kind = disk_name_parse(name, NULL, NULL);
    if (stat(path, &st) != 0) return;
    if (kind == DISK_FILE_SEALED) {
        f->sealed++;
        f->bytes += (uint64_t)st.st_size;
        snprintf(f->last, sizeof f->last, "%s", path);
    } else if (kind == DISK_FILE_OPEN) {
        f->open++;
    } else {
        f->other++;
    }
}

static struct files files_of(const struct world *w)
{
    struct files f = {0};
    each_file(w, count_file, &f);
    return f;
}

static struct disk_store *open_store(struct world *w, uint64_t bytes, uint64_t segment,
                                     uint64_t model, const char *io)
{
    struct disk_store_config c = {
        .dir = w->dir,
        .bytes = bytes,
        .segment_bytes = segment,
        .shape = {{model, 7}, TOKENS, PAGE},
        .io = io,
        .lease_s = 1.0,
        .scan_s = 0.2,
        .gather = gather,
        .scatter = scatter,
        .arg = w,
    };
    struct disk_store *s = NULL;
    assert_int_equal(disk_store_open(&c, &s), OK);
    return s;
}

/* Waits for n events; how many of them were `kind`; their page numbers to *pages (may be NULL). */
static int wait_pages(struct disk_store *s, int n, enum disk_event_kind kind, int32_t *pages)
{
    int found = 0, ms = 0;
    for (; n > 0; ms++) {
        struct disk_event e[8];
        uint32_t got = disk_store_poll(s, e, n < 8 ? (uint32_t)n : 8);
        for (uint32_t i = 0; i < got; i++) {
            if (e[i].kind != kind) continue;
            if (pages) pages[found] = e[i].page;
            found++;
        }
        n -= (int)got;
        if (!got) clock_sleep_us(1000);
        assert_true(ms < 20000);
    }
    return found;
}

static int wait_events(struct disk_store *s, int n, enum disk_event_kind kind)
{
    return wait_pages(s, n, kind, NULL);
}

static struct disk_page page_of(const struct hash128 *chain, int prompt, int shared, int i,
                                int32_t tokens[TOKENS])
{
    page_tokens(i < shared ? 0 : prompt, i, tokens);
    return (struct disk_page){
        {chain[i], i ? chain[i - 1] : PAGE_HASH_ROOT, (uint32_t)i}, tokens, i % POOL, (uint64_t)i};
}

/* Writes the prompt's pages that are not there; how many were taken. */
static int put_prompt(struct world *w, struct disk_store *s, int prompt, int shared, int n)
{
    struct hash128 chain[CHAIN];
    make_chain(prompt, shared, n, chain);
    int taken = 0;
    for (int i = 0; i < n; i++) {
        int32_t tokens[TOKENS];
        fill_page(chain[i], w->pool + (size_t)(i % POOL) * PAGE);
        struct disk_page p = page_of(chain, prompt, shared, i, tokens);
        taken += disk_store_write(s, &p);
    }
    assert_int_equal(wait_events(s, taken, DISK_EVENT_TAKEN), taken);
    disk_store_touch(s, chain, (uint32_t)n, (uint32_t)n);
    return taken;
}

/* Reads what a look-up finds; how many pages came, all with the right contents. */
static int get_prompt(struct world *w, struct disk_store *s, int prompt, int shared, int n)
{
    struct hash128 chain[CHAIN];
    make_chain(prompt, shared, n, chain);
    int found = (int)disk_store_match(s, chain, 0, (uint32_t)n), right = 0;
    int32_t came_page[CHAIN];
    memset(w->pool, 0, (size_t)POOL * PAGE);
    for (int i = 0; i < found; i++) {
        int32_t tokens[TOKENS];
        struct disk_page p = page_of(chain, prompt, shared, i, tokens);
        assert_true(disk_store_read(s, &p));
    }
    int came = wait_pages(s, found, DISK_EVENT_READ, came_page);
    for (int i = 0; i < came; i++) {
        char expected[PAGE];
        fill_page(chain[came_page[i]], expected);
        right += memcmp(w->pool + (size_t)came_page[i] * PAGE, expected, PAGE) == 0;
    }
    assert_int_equal(right, came); /* nothing wrong is ever delivered */
    disk_store_touch(s, chain, (uint32_t)n, (uint32_t)n);
    return came;
}

/* ---- index ---------------------------------------------------------------------------------- */

static void put_chain(struct disk_index *ix, const struct hash128 *chain, int n, double now)
{
    for (int i = 0; i < n; i++)
        disk_index_insert(ix, chain[i], i ? chain[i - 1] : PAGE_HASH_ROOT, 0, (uint32_t)i, now);
    disk_index_touch(ix, chain, (uint32_t)n, (uint32_t)n, now);
}

static void test_index_order(void **state)
{
    (void)state;
    for (int policy = DISK_POLICY_LRU; policy <= DISK_POLICY_BEST; policy++) {
        struct disk_index *ix = NULL;
        struct hash128 chain[3][CHAIN];
        assert_int_equal(disk_index_create((enum disk_policy)policy, &ix), OK);
        for (int p = 0; p < 3; p++) {
            make_chain(p, 4, 10, chain[p]); /* four pages shared */
            put_chain(ix, chain[p], 10, p);
        }
        assert_int_equal(disk_index_count(ix), 4 + 3 * 6);
        assert_int_equal(disk_index_insert(ix, chain[0][0], PAGE_HASH_ROOT, 0, 0, 5), -1);
        disk_index_touch(ix, chain[0], 10, 10, 10); /* now prompt 1 is the oldest */
        assert_int_equal(disk_index_match(ix, chain[1], 10), 10);
        for (int i = 9; i >= 4; i--) { /* its own pages go, the last first */
            int32_t victim = disk_index_victim(ix, 2000);
            assert_true(disk_index_hash(ix, victim).lo == chain[1][i].lo);
            disk_index_remove(ix, victim);
        }
        assert_int_equal(disk_index_match(ix, chain[1], 10), 4);
        /* A parent never goes before its children, to the last page. */
        while (disk_index_count(ix) > 0) {
            int32_t victim = disk_index_victim(ix, 2000);
            assert_true(victim >= 0);
            struct hash128 h = disk_index_hash(ix, victim);
            for (int p = 0; p < 3; p++)
                for (int i = 0; i + 1 < 10; i++)
                    if (chain[p][i].lo == h.lo)
                        assert_int_equal(disk_index_find(ix, chain[p][i + 1]), -1);
            disk_index_remove(ix, victim);
        }
        assert_int_equal(disk_index_victim(ix, 2000), -1);
        disk_index_free(ix);
    }
}

/* Pages may come in any order and go out of the middle: counts stay right. */
static void test_index_any_order(void **state)
{
    (void)state;
    struct disk_index *ix = NULL;
    struct hash128 chain[CHAIN];
    make_chain(1, 0, CHAIN, chain);
    assert_int_equal(disk_index_create(DISK_POLICY_BEST, &ix), OK);
    for (int round = 0; round < 200; round++) {
        int i = (int)(rng_u64(3, (uint64_t)round) % CHAIN);
        int32_t at = disk_index_find(ix, chain[i]);
        if (at >= 0) {
            assert_int_equal(disk_index_place(ix, at), i);
            disk_index_remove(ix, at);
        } else {
            assert_true(disk_index_insert(ix, chain[i], i ? chain[i - 1] : PAGE_HASH_ROOT,
                                          (uint32_t)i, 0, round) >= 0);
        }
        if (round % 7 == 0) disk_index_touch(ix, chain, CHAIN, CHAIN, round);
    }
    for (int i = 0; i < CHAIN; i++)
        disk_index_insert(ix, chain[i], i ? chain[i - 1] : PAGE_HASH_ROOT, (uint32_t)i, 0, 1000);
    disk_index_touch(ix, chain, CHAIN, CHAIN, 1001);
    for (int i = CHAIN - 1; i >= 0; i--) {
        int32_t victim = disk_index_victim(ix, 2000);
        assert_true(disk_index_hash(ix, victim).lo == chain[i].lo);
        disk_index_remove(ix, victim);
    }
    disk_index_free(ix);
}

/* ---- format --------------------------------------------------------------------------------- */

static void test_format(void **state)
{
    (void)state;
    struct disk_shape shape = {{1, 2}, TOKENS, PAGE}, other = {{1, 3}, TOKENS, PAGE}, found;
    size_t stride = disk_stride(&shape);
    assert_int_equal(stride % DISK_BLOCK, 0);
    char *record = calloc(1, stride), block[DISK_BLOCK];
    struct disk_key key = {{5, 6}, {7, 8}, 3}, got;
    int32_t tokens[TOKENS];
    const int32_t *back;
    page_tokens(1, 0, tokens);
    fill_page(key.hash, record + disk_page_at(&shape));
    disk_record_put(&shape, &key, tokens, record);
    assert_true(disk_record_get(&shape, record, &got, &back));
    assert_memory_equal(&got, &key, sizeof key.hash);
    assert_memory_equal(back, tokens, sizeof tokens);
    /* Every single bit that matters is noticed. */
    size_t end = disk_page_at(&shape) + PAGE;
    for (size_t at = 0; at < end; at += at < 160 ? 1 : 37) {
        record[at] ^= (char)(1 << at % 8);
        assert_false(disk_record_get(&shape, record, &got, &back));
        record[at] ^= (char)(1 << at % 8);
    }
    disk_header_put(&shape, block);
    assert_true(disk_header_check(&shape, block));
    assert_false(disk_header_check(&other, block));
    assert_true(disk_header_get(block, &found));
    assert_true(found.page_bytes == PAGE && found.fingerprint.hi == 2);
    block[9] ^= 1;
    assert_false(disk_header_check(&shape, block) || disk_header_get(block, &found));
    free(record);
}

static void test_table(void **state)
{
    (void)state;
    enum { N = 300 };
    struct disk_row *rows = calloc(N, sizeof *rows);
    for (uint32_t i = 0; i < N; i++) rows[i] = (struct disk_row){{{i, 1}, {i, 2}, i}, i, 1};
    size_t bytes = disk_table_bytes(N);
    char *table = malloc(bytes), *last = table + bytes - DISK_BLOCK;
    uint64_t at, file = 10 * DISK_BLOCK + bytes;
    uint32_t n;
    disk_table_put(rows, N, 10 * DISK_BLOCK, table);
    assert_true(disk_tail_get(last, file, &at, &n));
    assert_true(at == 10 * DISK_BLOCK && n == N);
    assert_memory_equal(disk_table_get(table, n), rows, N * sizeof *rows);
    assert_false(disk_tail_get(last, file + DISK_BLOCK, &at, &n)); /* the file is longer */
    table[77] ^= 4;
    assert_null(disk_table_get(table, n));
    table[bytes - 9] ^= 4;
    assert_false(disk_tail_get(last, file, &at, &n));
    free(rows);
    free(table);
}

/* ---- I/O back-ends -------------------------------------------------------------------------- */

static void use_backend(const struct world *w, const char *name)
{
    enum { N = 64, DEPTH = 16 };
    const struct disk_io_backend *b;
    struct disk_io *io = disk_io_open(name, DEPTH, &b);
    if (!io && !strcmp(name, "io_uring")) {
        print_message("# io_uring does not work here: not tested\n");
        return;
    }
    assert_non_null(io);
    assert_string_equal(b->name, name);
    char path[128];
    snprintf(path, sizeof path, "%s/io", w->dir);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0);
    char *buffer = NULL;
    assert_int_equal(posix_memalign((void **)&buffer, DISK_BLOCK, (size_t)N * DISK_BLOCK), 0);
    struct disk_io_request r[N];
    for (int pass = 0; pass < 2; pass++) {
        int under_way = 0, done = 0;
        if (pass) memset(buffer, 0, (size_t)N * DISK_BLOCK);
        for (int i = 0; i < N || under_way; i++) {
            if (i < N) {
                char *mine = buffer + (size_t)i * DISK_BLOCK;
                if (!pass) memset(mine, i + 1, DISK_BLOCK);
                r[i] = (struct disk_io_request){.fd = fd,
                                                .write = !pass,
                                                .buffer = mine,
                                                .bytes = DISK_BLOCK,
                                                .offset = (uint64_t)(N - 1 - i) * DISK_BLOCK,
                                                .result = 1};
                b->submit(io, &r[i]);
                under_way++;
            }
            while (under_way == DEPTH || (i >= N && under_way)) {
                struct disk_io_request *q = b->wait(io, 1000000);
                assert_non_null(q);
                assert_int_equal(q->result, 0);
                under_way--;
                done++;
            }
        }
        assert_int_equal(done, N);
    }
    for (int i = 0; i < N; i++) assert_int_equal(buffer[(size_t)i * DISK_BLOCK + 99], i + 1);
    assert_null(b->wait(io, 100)); /* nothing is under way */
    r[0] = (struct disk_io_request){.fd = fd,
                                    .buffer = buffer,
                                    .bytes = 2 * DISK_BLOCK,
                                    .offset = (uint64_t)(N - 1) * DISK_BLOCK};
    b->submit(io, &r[0]); /* beyond the end */
    assert_ptr_equal(b->wait(io, 1000000), &r[0]);
    assert_int_equal(r[0].result, -EIO);
    r[0] = (struct disk_io_request){.fd = -1, .buffer = buffer, .bytes = DISK_BLOCK};
    b->submit(io, &r[0]);
    assert_ptr_equal(b->wait(io, 1000000), &r[0]);
    assert_int_equal(r[0].result, -EBADF);
    b->close(io);
    close(fd);
    free(buffer);
}

static void test_io(void **state)
{
    use_backend(*state, "threads");
    use_backend(*state, "io_uring");
    const struct disk_io_backend *b;
    assert_null(disk_io_open("carrier_pigeon", 4, &b));
}

/* ---- the store ------------------------------------------------------------------------------ */

static void round_trip(struct world *w, const char *io)
{
    struct disk_store *s = open_store(w, 1 << 24, 10 * REC, 42, io);
    struct disk_stats st;
    assert_int_equal(put_prompt(w, s, 1, 0, 20), 20);
    assert_int_equal(put_prompt(w, s, 1, 0, 20), 0); /* there already */
    assert_int_equal(put_prompt(w, s, 2, 0, 12), 12);
    disk_store_seal(s);
    assert_int_equal(get_prompt(w, s, 1, 0, 20), 20);
    assert_int_equal(get_prompt(w, s, 2, 0, 24), 12);
    assert_int_equal(get_prompt(w, s, 3, 0, 24), 0);
    disk_store_close(s, &st);
    assert_int_equal(st.written_pages, 32);
    assert_int_equal(st.read_pages, 32);
    assert_int_equal(st.bad_pages + st.missed_pages + st.dropped_pages, 0);
    struct files f = files_of(w);
    assert_true(f.sealed > 3 && f.open == 0 && f.other == 0);
    s = open_store(w, 1 << 24, 30 * REC, 42, io); /* from the segments' tables */
    disk_store_stats(s, &st);
    assert_int_equal(st.found_at_start, 32);
    assert_int_equal(get_prompt(w, s, 1, 0, 20), 20);
    assert_int_equal(get_prompt(w, s, 2, 0, 12), 12);
    disk_store_close(s, NULL);
}

static void test_round_trip_threads(void **state)
{
    round_trip(*state, "threads");
}

static void test_round_trip_auto(void **state)
{
    round_trip(*state, NULL);
}

static void test_flipped_bits(void **state)
{
    struct world *w = *state;
    struct disk_store *s = open_store(w, 1 << 24, 30 * REC, 42, NULL);
    struct disk_stats st;
    put_prompt(w, s, 1, 0, 20);
    disk_store_close(s, NULL);
    struct files f = files_of(w);
    struct disk_shape shape = {{42, 7}, TOKENS, PAGE};
    int fd = open(f.last, O_RDWR);
    char c;
    off_t at = (off_t)disk_record_at(&shape, 7) + 36000; /* slot 7 = page 7 */
    assert_int_equal(pread(fd, &c, 1, at), 1);
    c ^= 0x10;
    assert_int_equal(pwrite(fd, &c, 1, at), 1);
    close(fd);
    s = open_store(w, 1 << 24, 30 * REC, 42, NULL);
    assert_int_equal(get_prompt(w, s, 1, 0, 20), 19);
    assert_int_equal(get_prompt(w, s, 1, 0, 20), 7); /* the bad page is forgotten */
    assert_int_equal(put_prompt(w, s, 1, 0, 20), 1); /* and may be written again */
    disk_store_close(s, &st);
    assert_int_equal(st.bad_pages, 1);
    assert_int_equal(st.missed_pages, 1);
    s = open_store(w, 1 << 24, 30 * REC, 42, NULL);
    assert_int_equal(get_prompt(w, s, 1, 0, 20), 20); /* the newer copy counts */
    disk_store_close(s, NULL);
}

/* A hash that collides, or a caller that asks for other tokens, gets nothing. */
static void test_other_tokens(void **state)
{
    struct world *w = *state;
    struct disk_store *s = open_store(w, 1 << 24, 30 * REC, 42, NULL);
    struct hash128 chain[CHAIN];
    int32_t tokens[TOKENS];
    put_prompt(w, s, 1, 0, 4);
    make_chain(1, 0, 4, chain);
    struct disk_page p = page_of(chain, 1, 0, 2, tokens);
    tokens[5]++;
    assert_true(disk_store_read(s, &p));
    assert_int_equal(wait_events(s, 1, DISK_EVENT_MISS), 1);
    disk_store_close(s, NULL);
}

static void test_torn(void **state)
{
    struct world *w = *state;
    struct disk_shape shape = {{42, 7}, TOKENS, PAGE};
    /* Cut in the tail, in the table, in a record, in the header, to nothing. */
    static const int keep[] = {20, 20, 19, 0, 0};
    for (int i = 0; i < 5; i++) {
        struct disk_store *s = open_store(w, 1 << 24, 30 * REC, 42, NULL);
        put_prompt(w, s, 1, 0, 20);
        disk_store_close(s, NULL);
        struct files f = files_of(w);
        assert_int_equal(f.sealed, 1);
        off_t end = (off_t)disk_record_at(&shape, 20);
        off_t cut[] = {end + 4000, end + 5, (off_t)disk_record_at(&shape, 19) + 8000, 100, 0};
        assert_int_equal(truncate(f.last, cut[i]), 0);
        s = open_store(w, 1 << 24, 30 * REC, 42, NULL);
        assert_int_equal(get_prompt(w, s, 1, 0, 20), keep[i]);
        disk_store_close(s, NULL);
        each_file(w, remove_file, NULL);
    }
}

static void test_bound(void **state)
{
    struct world *w = *state;
    enum { BYTES = 60 * REC };
    struct disk_store *s = open_store(w, BYTES, 12 * REC, 42, NULL);
    struct disk_stats st;
    for (int p = 1; p < 20; p++) {
        put_prompt(w, s, p, 0, 10);
        disk_store_seal(s);
        assert_true(files_of(w).bytes <= BYTES);
        assert_int_equal(get_prompt(w, s, 1, 0, 10), 10); /* used all the time: it stays */
    }
    disk_store_close(s, &st);
    assert_true(st.evicted_segments > 10);
    assert_true(files_of(w).bytes <= BYTES && files_of(w).sealed > 2);
}

/* Each segment has pages that nobody wants and pages that are used all the time: these move when
 * it goes. */
static void test_young_pages_move(void **state)
{
    struct world *w = *state;
    enum { BYTES = 60 * REC, ROUNDS = 10 };
    struct disk_store *s = open_store(w, BYTES, 14 * REC, 42, NULL);
    struct disk_stats st;
    for (int p = 1; p <= ROUNDS; p++) {
        put_prompt(w, s, p, 0, 6);
        put_prompt(w, s, p + 100, 0, 2);
        disk_store_seal(s);
        assert_true(files_of(w).bytes <= BYTES);
        clock_sleep_us(5000); /* ages are times */
        for (int q = 1; q <= p; q++) get_prompt(w, s, q + 100, 0, 2);
    }
    int kept = 0; /* of those that would be gone with their segments; a busy machine loses some */
    for (int q = 1; q <= ROUNDS / 2; q++) kept += get_prompt(w, s, q + 100, 0, 2) == 2;
    disk_store_close(s, &st);
    assert_true(st.evicted_segments >= 4 && st.moved_pages > 0 && st.bad_pages == 0);
    assert_true(kept > 0);
}

static void test_two_models(void **state)
{
    struct world *w = *state;
    enum { BYTES = 40 * REC };
    struct disk_store *a = open_store(w, BYTES, 8 * REC, 1, NULL);
    struct disk_store *b = open_store(w, BYTES, 8 * REC, 2, NULL);
    put_prompt(w, a, 1, 0, 12);
    disk_store_seal(a);
    disk_store_rescan(b);
    assert_int_equal(get_prompt(w, b, 1, 0, 12), 0);
    put_prompt(w, b, 1, 0, 12);
    disk_store_seal(b);
    assert_int_equal(get_prompt(w, b, 1, 0, 12), 12);
    assert_int_equal(get_prompt(w, a, 1, 0, 12), 12);
    for (int p = 2; p < 9; p++) { /* the bound is on both together */
        put_prompt(w, b, p, 0, 12);
        disk_store_seal(b);
        assert_true(files_of(w).bytes <= BYTES);
    }
    disk_store_close(a, NULL);
    disk_store_close(b, NULL);
}

/* Two writers at once, the same and other prompts: each finds what the other sealed. */
static void test_two_writers(void **state)
{
    struct world *w = *state;
    struct world other = *w;
    other.pool = calloc(POOL, PAGE);
    struct disk_store *a = open_store(w, 1 << 24, 6 * REC, 42, NULL);
    struct disk_store *b = open_store(&other, 1 << 24, 6 * REC, 42, "threads");
    for (int p = 1; p < 6; p++) {
        put_prompt(w, a, p, 3, 12);
        put_prompt(&other, b, p % 2 ? p : p + 100, 3, 12);
    }
    disk_store_seal(a);
    disk_store_seal(b);
    disk_store_rescan(a);
    disk_store_rescan(b);
    for (int p = 1; p < 6; p++) {
        assert_int_equal(get_prompt(&other, b, p, 3, 12), 12);
        assert_int_equal(get_prompt(w, a, p % 2 ? p : p + 100, 3, 12), 12);
    }
    disk_store_close(a, NULL);
    disk_store_close(b, NULL);
    free(other.pool);
}

/* What another process reads is not evicted; when its lease is over, it is. */
static void test_leases(void **state)
{
    struct world *w = *state;
    enum { BYTES = 30 * REC };
    struct disk_store *s = open_store(w, BYTES, 14 * REC, 42, NULL);
    struct disk_dir reader;
    put_prompt(w, s, 1, 0, 10);
    disk_store_seal(s);
    struct files f = files_of(w);
    char name[1][DISK_NAME_MAX];
    snprintf(name[0], sizeof name[0], "%s", strrchr(f.last, '/') + 1);
    assert_int_equal(disk_dir_open(w->dir, 99, 1.0, &reader), OK);
    assert_true(disk_lease_write(&reader, (const char(*)[DISK_NAME_MAX])name, 1));
    assert_true(disk_segment_leased(&reader, name[0]) == false); /* one's own does not count */
    for (int p = 2; p < 8; p++) {
        put_prompt(w, s, p, 0, 10);
        disk_store_seal(s);
        assert_int_equal(access(f.last, F_OK), 0);
        assert_true(disk_lease_renew(&reader));
        assert_true(files_of(w).bytes <= BYTES);
    }
    clock_sleep_us(1200000); /* not renewed: expired */
    for (int p = 12; p < 18; p++) {
        put_prompt(w, s, p, 0, 10);
        disk_store_seal(s);
    }
    assert_int_not_equal(access(f.last, F_OK), 0);
    disk_dir_close(&reader);
    disk_store_close(s, NULL);
}

static void test_lock(void **state)
{
    struct world *w = *state;
    struct disk_dir a, b;
    assert_int_equal(disk_dir_open(w->dir, 0, 0.3, &a), OK);
    assert_int_equal(disk_dir_open(w->dir, 1, 0.3, &b), OK);
    assert_true(disk_lock_take(&a));
    assert_false(disk_lock_take(&b));
    disk_lock_drop(&a);
    assert_true(disk_lock_take(&b));
    clock_sleep_us(400000); /* b has died with it */
    assert_true(disk_lock_take(&a));
    assert_false(disk_lock_take(&b));
    disk_lock_drop(&a);
    disk_dir_close(&a);
    disk_dir_close(&b);
}

/* A process that ends without a word leaves an open segment: the next one finds its pages. */
static void test_orphan(void **state)
{
    struct world *w = *state;
    pid_t child = fork();
    if (child == 0) {
        struct disk_store *s = open_store(w, 1 << 24, 30 * REC, 42, "threads");
        struct disk_stats st;
        put_prompt(w, s, 1, 0, 16);
        do {
            clock_sleep_us(1000);
            disk_store_stats(s, &st);
        } while (st.written_pages < 16);
        _exit(0);
    }
    int status = 0;
    assert_true(waitpid(child, &status, 0) == child && status == 0);
    assert_int_equal(files_of(w).open, 1);
    struct disk_store *s = open_store(w, 1 << 24, 30 * REC, 42, NULL);
    struct disk_stats st;
    disk_store_stats(s, &st);
    assert_int_equal(st.adopted_segments, 1);
    assert_int_equal(st.found_at_start, 16);
    assert_int_equal(get_prompt(w, s, 1, 0, 16), 16);
    struct files f = files_of(w);
    assert_true(f.open == 0 && f.sealed == 1);
    disk_store_close(s, NULL);
}

/* Somebody takes the files away under a running store: misses. */
static void test_files_vanish(void **state)
{
    struct world *w = *state;
    struct disk_store *s = open_store(w, 1 << 24, 30 * REC, 42, NULL);
    struct disk_stats st;
    put_prompt(w, s, 1, 0, 12);
    disk_store_seal(s);
    unlink(files_of(w).last);
    assert_int_equal(get_prompt(w, s, 1, 0, 12), 0);
    disk_store_rescan(s);
    assert_int_equal(put_prompt(w, s, 1, 0, 12), 12);
    disk_store_close(s, &st);
    assert_int_equal(st.missed_pages, 12);
    assert_int_equal(st.bad_pages, 0);
}

/* The disk is full (here: files may not grow beyond five records): writing ends, reading goes on,
 * nothing half-written is left. */
static void test_disk_full(void **state)
{
    struct world *w = *state;
    static const char *const io[] = {"threads", NULL};
    for (int i = 0; i < 2; i++) {
        struct disk_stats st;
        struct rlimit all, few;
        struct disk_store *s = open_store(w, 1 << 24, 30 * REC, 42, io[i]);
        put_prompt(w, s, 1, 0, 4);
        disk_store_seal(s);
        getrlimit(RLIMIT_FSIZE, &all);
        few = all;
        few.rlim_cur = 5 * REC;
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &few);
        put_prompt(w, s, 2 + i, 0, 20);
        disk_store_seal(s);
        assert_int_equal(put_prompt(w, s, 5, 0, 3), 0); /* no more is taken */
        assert_int_equal(get_prompt(w, s, 1, 0, 4), 4);
        disk_store_close(s, &st);
        setrlimit(RLIMIT_FSIZE, &all);
        assert_true(st.dropped_pages >= 16);
        struct files f = files_of(w);
        assert_true(f.open == 0 && f.other == 0 && f.bytes <= 12 * REC);
    }
}

static void test_errors(void **state)
{
    struct world *w = *state;
    struct disk_store *s = NULL;
    struct disk_store_config c = {.dir = "/no/such/folder",
                                  .bytes = 1 << 20,
                                  .shape = {{1, 2}, TOKENS, PAGE},
                                  .gather = gather,
                                  .scatter = scatter,
                                  .arg = w};
    assert_int_equal(disk_store_open(&c, &s), ERR_INPUT);
    assert_non_null(strstr(error_text(), "/no/such/folder"));
    error_clear();
    c.dir = w->dir;
    c.bytes = 10000;
    assert_int_equal(disk_store_open(&c, &s), ERR_INPUT);
    assert_non_null(strstr(error_text(), "kv.disk.bytes"));
    error_clear();
    c.bytes = 1 << 20;
    c.io = "carrier_pigeon";
    assert_int_equal(disk_store_open(&c, &s), ERR_RESOURCE);
    error_clear();
}

#define DISK_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_index_order),
        cmocka_unit_test(test_index_any_order),
        cmocka_unit_test(test_format),
        cmocka_unit_test(test_table),
        DISK_TEST(test_io),
        DISK_TEST(test_round_trip_threads),
        DISK_TEST(test_round_trip_auto),
        DISK_TEST(test_flipped_bits),
        DISK_TEST(test_other_tokens),
        DISK_TEST(test_torn),
        DISK_TEST(test_bound),
        DISK_TEST(test_young_pages_move),
        DISK_TEST(test_two_models),
        DISK_TEST(test_two_writers),
        DISK_TEST(test_leases),
        DISK_TEST(test_lock),
        DISK_TEST(test_orphan),
        DISK_TEST(test_files_vanish),
        DISK_TEST(test_disk_full),
        DISK_TEST(test_errors),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
