/* disk.c - fetches, and pages on their way to the writer. */
#include "engine/disk.h"

#include "engine/rank.h"

#include <stdlib.h>
#include <string.h>

/* A fetch that takes longer than computing would is not waited for. */
static const double FETCH_PATIENCE_S = 10;

/* The pages of one request: those that memory had, then those that come from disk. */
struct fetch {
    struct fetch *next;
    struct sequence *s; /* NULL: nobody waits any more */
    uint32_t memory, n; /* pages from memory; pages in all */
    uint32_t left;      /* still under way */
    double begun;
    bool *ok;             /* [n] */
    struct hash128 first; /* the first page that comes from disk */
    int32_t pages[];      /* [n] */
};

struct rank_disk {
    struct disk_store *store;
    struct disk_stats last; /* once the store is closed */
    struct fetch *fetches;  /* under way, or waiting for admission */
    uint32_t pinned;        /* pages of fetches */
    int n_new;              /* requests in the queue whose fetch was not begun */
    bool changed;           /* something happened since the queue was last looked at */
    uint64_t missed_pages;  /* looked for and not there */
};

/* ---- open, close ---------------------------------------------------------------------------- */

/* Where byte `at` of a page (all layers one after another) lies, and how many bytes follow it in
 * one piece. */
static char *page_part(const struct rank *r, int32_t page, size_t at, size_t *left)
{
    size_t layer = at / r->page_layer_bytes, within = at % r->page_layer_bytes;
    *left = r->page_layer_bytes - within;
    return model_cache_layer(&r->model, (int)layer) + (size_t)page * r->page_layer_bytes + within;
}

static void gather(void *rank, int32_t page, size_t at, size_t bytes, char *out)
{
    for (size_t n; bytes > 0; at += n, out += n, bytes -= n) {
        const char *part = page_part(rank, page, at, &n);
        if (n > bytes) n = bytes;
        memcpy(out, part, n);
    }
}

static void scatter(void *rank, int32_t page, size_t at, size_t bytes, const char *in)
{
    for (size_t n; bytes > 0; at += n, in += n, bytes -= n) {
        char *part = page_part(rank, page, at, &n);
        if (n > bytes) n = bytes;
        memcpy(part, in, n);
    }
}

enum status rank_disk_open(struct rank *r, struct hash128 fingerprint)
{
    const struct job *job = r->job;
    struct disk_store_config c = {
        .dir = job->kv.disk.dir,
        .bytes = (uint64_t)job->kv.disk.bytes,
        .shape = {fingerprint, (uint32_t)job->kv.page_tokens,
                  r->page_layer_bytes * (size_t)r->model.cfg->layers},
        .rank = r->world_rank,
        .gather = gather,
        .scatter = scatter,
        .arg = r,
    };
    struct rank_disk *d = calloc(1, sizeof *d);
    if (!d) return error_set(ERR_RESOURCE, "no memory for the disk tier");
    enum status st = disk_store_open(&c, &d->store);
    if (st != OK) {
        free(d);
        return st;
    }
    r->disk = d;
    return OK;
}

void rank_disk_close(struct rank *r)
{
    struct rank_disk *d = r->disk;
    if (!d || !d->store) return;
    disk_store_close(d->store, &d->last);
    d->store = NULL;
}

void rank_disk_free(struct rank *r)
{
    struct rank_disk *d = r->disk;
    if (!d) return;
    rank_disk_close(r);
    for (struct fetch *f = d->fetches, *next; f; f = next) {
        next = f->next;
        free(f->ok);
        free(f);
    }
    free(d);
    r->disk = NULL;
}

uint64_t rank_disk_missed(const struct rank_disk *d)
{
    return d->missed_pages;
}

void rank_disk_stats(const struct rank_disk *d, struct disk_stats *out)
{
    if (d->store)
        disk_store_stats(d->store, out);
    else
        *out = d->last;
}

/* ---- fetches -------------------------------------------------------------------------------- */

/* Hashes of the prompt's full pages. */
static bool make_chain(const struct rank *r, struct sequence *s)
{
    uint32_t pt = (uint32_t)r->job->kv.page_tokens, n = (uint32_t)s->p.n_prompt / pt;
    struct hash128 hash = PAGE_HASH_ROOT;
    if (s->chain) return true;
    s->chain = malloc((n + 1) * sizeof *s->chain);
    if (!s->chain) return false;
    for (uint32_t i = 0; i < n; i++)
        s->chain[i] = hash = page_hash(s->prompt + (size_t)i * pt, pt, hash);
    s->n_chain = n;
    return true;
}

static void drop_fetch(struct rank *r, struct fetch *f)
{
    struct rank_disk *d = r->disk;
    for (struct fetch **at = &d->fetches; *at; at = &(*at)->next) {
        if (*at != f) continue;
        *at = f->next;
        break;
    }
    page_pool_unref_all(&r->pool, f->pages, f->n);
    d->pinned -= f->n;
    d->changed = true;
    if (f->s) f->s->fetch = NULL;
    free(f->ok);
    free(f);
}

/* Somebody else's fetch is about to bring the page. */
static bool on_its_way(const struct rank *r, struct hash128 hash)
{
    for (const struct fetch *f = r->disk->fetches; f; f = f->next)
        if (f->left > 0 && f->s && rank_now(r) - f->begun < FETCH_PATIENCE_S &&
            f->first.lo == hash.lo && f->first.hi == hash.hi)
            return true;
    return false;
}

static struct disk_key key_of(const struct sequence *s, uint32_t page)
{
    return (struct disk_key){s->chain[page], page ? s->chain[page - 1] : PAGE_HASH_ROOT, page};
}

/* Pages [from, from + n) of s into pages of the pool, behind those that memory has. */
static bool begin_fetch(struct rank *r, struct sequence *s, uint32_t from, uint32_t n)
{
    struct rank_disk *d = r->disk;
    uint32_t pt = (uint32_t)r->job->kv.page_tokens;
    struct fetch *f = calloc(1, sizeof *f + (from + n) * sizeof f->pages[0]);
    if (f) f->ok = calloc(from + n, sizeof *f->ok);
    if (!f || !f->ok) {
        free(f);
        return false;
    }
    uint32_t memory = prefix_index_lookup(&r->prefix, s->prompt, from * pt + 1, f->pages);
    if (memory < from || !rank_alloc_pages(r, (int)n, f->pages + from)) {
        page_pool_unref_all(&r->pool, f->pages, memory);
        free(f->ok);
        free(f);
        return false;
    }
    f->s = s;
    f->memory = from;
    f->n = from + n;
    f->first = s->chain[from];
    f->begun = rank_now(r);
    f->next = d->fetches;
    d->fetches = f;
    d->pinned += f->n;
    s->fetch = f;
    for (uint32_t i = from; i < f->n; i++) {
        struct disk_page page = {key_of(s, i), s->prompt + (size_t)i * pt, f->pages[i],
                                 (uint64_t)(uintptr_t)f};
        if (disk_store_read(d->store, &page)) f->left++;
    }
    if (f->left == 0) drop_fetch(r, f);
    return s->fetch != NULL;
}

enum attempt { FETCH_NOT, FETCH_BEGUN, FETCH_LATER };

/* FETCH_NOT: nothing to fetch, or no room for it. FETCH_LATER: another request brings it. */
static enum attempt try_fetch(struct rank *r, struct sequence *s)
{
    struct rank_disk *d = r->disk;
    uint32_t pt = (uint32_t)r->job->kv.page_tokens;
    uint32_t most = (uint32_t)(s->p.n_prompt - 1) / pt;
    if (s->p.prompt_logprobs || most == 0 || !make_chain(r, s)) return FETCH_NOT;
    uint32_t memory = prefix_index_peek(&r->prefix, s->prompt, (uint32_t)s->p.n_prompt);
    if (memory < most && on_its_way(r, s->chain[memory])) return FETCH_LATER;
    uint32_t found = disk_store_match(d->store, s->chain, memory, most);
    d->missed_pages += most - memory - found;
    return found > 0 && begin_fetch(r, s, memory, found) ? FETCH_BEGUN : FETCH_NOT;
}

static void look_up(struct rank *r, struct sequence *s)
{
    if (s->disk_looked || try_fetch(r, s) == FETCH_LATER) return;
    s->disk_looked = true;
    r->disk->n_new--;
}

void rank_disk_arrived(struct rank *r, struct sequence *s)
{
    (void)s;
    r->disk->n_new++;
    r->disk->changed = true;
}

bool rank_disk_ready(struct rank *r, struct sequence *s)
{
    if (s->admitted) return true;
    look_up(r, s);
    struct fetch *f = s->fetch;
    if (!f) return s->disk_looked;
    if (f->left == 0) return true;
    if (rank_now(r) - f->begun < FETCH_PATIENCE_S) return false;
    f->s = NULL; /* its pages stay with it until the last one has come */
    s->fetch = NULL;
    return true;
}

/* All that will come has come: what is whole from the start on goes into the memory index. */
static void complete_fetch(struct rank *r, struct fetch *f)
{
    uint32_t good = f->memory;
    while (good < f->n && f->ok[good]) good++;
    r->disk->changed = true;
    if (!f->s) {
        drop_fetch(r, f);
        return;
    }
    f->s->disk_first = f->memory;
    f->s->disk_pages = good - f->memory;
    prefix_index_insert(&r->prefix, f->s->prompt, good * (uint32_t)r->job->kv.page_tokens,
                        f->pages);
}

static void take_event(struct rank *r, const struct disk_event *e)
{
    if (e->kind == DISK_EVENT_TAKEN) {
        page_pool_unref(&r->pool, e->page);
        return;
    }
    struct fetch *f = (struct fetch *)(uintptr_t)e->user;
    for (uint32_t i = f->memory; i < f->n && e->kind == DISK_EVENT_READ; i++)
        if (f->pages[i] == e->page) f->ok[i] = true;
    if (--f->left == 0) complete_fetch(r, f);
}

void rank_disk_poll(struct rank *r)
{
    enum { EVENTS = 64 };
    struct rank_disk *d = r->disk;
    struct disk_event event[EVENTS];
    if (!d || !d->store) return;
    for (uint32_t n; (n = disk_store_poll(d->store, event, EVENTS)) > 0;)
        for (uint32_t i = 0; i < n; i++) take_event(r, &event[i]);
    if (!d->changed || d->n_new == 0) return;
    d->changed = false;
    /* Half of the pool at most waits for requests that are not yet admitted. */
    for (struct sequence *s = r->queue.head; s && d->pinned < r->pool.pages / 2; s = s->next)
        if (!s->admitted) look_up(r, s);
}

uint32_t rank_disk_admitted(struct rank *r, struct sequence *s, uint32_t cached)
{
    struct fetch *f = s->fetch;
    uint32_t end = s->disk_first + s->disk_pages, from_disk = 0;
    if (end > cached) end = cached;
    if (end > s->disk_first) from_disk = end - s->disk_first;
    if (f) drop_fetch(r, f);
    return from_disk;
}

bool rank_disk_make_room(struct rank *r)
{
    bool any = false;
    for (struct fetch *f = r->disk->fetches, *next; f; f = next) {
        next = f->next;
        if (f->left > 0) continue;
        drop_fetch(r, f);
        any = true;
    }
    return any;
}

/* ---- writing -------------------------------------------------------------------------------- */

void rank_disk_offer(struct rank *r, struct sequence *s)
{
    struct rank_disk *d = r->disk;
    uint32_t pt = (uint32_t)r->job->kv.page_tokens, n = (uint32_t)s->computed / pt;
    int mode = r->job->kv.disk.write;
    if (s->p.prompt_logprobs || !make_chain(r, s)) return;
    bool whole = s->computed == s->p.n_prompt;
    if (mode == JOB_DISK_REUSED && n > (uint32_t)s->f.cached_tokens / pt)
        n = (uint32_t)s->f.cached_tokens / pt;
    uint32_t at = mode == JOB_DISK_NONE ? n : disk_store_match(d->store, s->chain, 0, n);
    /* A page without those before it would never be found: the first that is dropped ends it. */
    for (; at < n; at++) {
        struct disk_page page = {key_of(s, at), s->prompt + (size_t)at * pt, s->pages[at], 0};
        page_pool_ref(&r->pool, s->pages[at]);
        if (disk_store_write(d->store, &page)) continue;
        page_pool_unref(&r->pool, s->pages[at]);
        if (!disk_store_has(d->store, s->chain[at])) break;
    }
    if (whole) disk_store_touch(d->store, s->chain, (uint32_t)s->f.cached_tokens / pt, s->n_chain);
}
