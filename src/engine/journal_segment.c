/* journal_segment.c - see journal_segment.h. */
#include "engine/journal_segment.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/hash.h"

enum { MAGIC = 0x324a424d /* "MBJ2" */, BUFFER_BYTES = 1 << 20 };
enum { SEQUENTIAL = 1 << 20, RANDOM = 1 << 14 }; /* bytes of one read */

struct record_head {
    uint32_t magic, type, bytes, crc;
};

/* ---- payloads ---- */

void payload_put(struct payload *p, const void *data, size_t bytes)
{
    if (p->failed || !bytes) return;
    if (p->bytes + bytes > p->room) {
        size_t room = p->room ? p->room : 256;
        while (room < p->bytes + bytes) room *= 2;
        char *more = realloc(p->data, room);
        if (!more) {
            p->failed = true;
            return;
        }
        p->data = more;
        p->room = room;
    }
    memcpy(p->data + p->bytes, data, bytes);
    p->bytes += bytes;
}

void payload_put_text(struct payload *p, const char *text)
{
    if (!text) text = "";
    payload_put(p, text, strlen(text) + 1);
}

const void *cursor_array(struct cursor *c, size_t n, size_t element)
{
    if (c->bad || n > (size_t)(c->end - c->at) / element) {
        c->bad = true;
        return NULL;
    }
    const void *at = c->at;
    c->at += n * element;
    return at;
}

void cursor_get(struct cursor *c, void *out, size_t bytes)
{
    const void *from = cursor_array(c, bytes, 1);
    if (from)
        memcpy(out, from, bytes);
    else
        memset(out, 0, bytes);
}

const char *cursor_text(struct cursor *c)
{
    const char *nul = c->bad ? NULL : memchr(c->at, 0, (size_t)(c->end - c->at));
    if (!nul) {
        c->bad = true;
        return "";
    }
    const char *text = c->at;
    c->at = nul + 1;
    return text;
}

/* ---- files ---- */

static void segment_path(char *buf, size_t room, const char *dir, int number)
{
    snprintf(buf, room, "%s/%06d.seg", dir, number);
}

static enum status io_error(const char *dir, int number, const char *what)
{
    int err = errno;
    return error_set(ERR_RESOURCE, "journal: %s %s/%06d.seg: %s", what, dir, number, strerror(err));
}

static uint32_t record_crc(uint32_t id, uint32_t type, uint32_t bytes, const void *payload)
{
    uint32_t head[2] = {type, bytes};
    return crc32c(crc32c(id, head, sizeof head), payload, bytes);
}

/* ---- writing ---- */

enum status segment_writer_init(struct segment_writer *w, const char *dir, int first_number)
{
    *w = (struct segment_writer){.dir = dir, .fd = -1, .number = first_number};
    w->buffer = malloc(BUFFER_BYTES);
    return w->buffer ? OK : error_set(ERR_RESOURCE, "journal: out of memory");
}

bool segment_writer_fresh(const struct segment_writer *w)
{
    return w->fd < 0 || w->offset >= SEGMENT_LIMIT;
}

static enum status write_all(struct segment_writer *w, const char *data, size_t bytes)
{
    while (bytes) {
        ssize_t n = write(w->fd, data, bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            w->failed = true;
            return io_error(w->dir, w->number, "cannot write");
        }
        data += n;
        bytes -= (size_t)n;
    }
    w->dirty = true;
    return OK;
}

enum status segment_flush(struct segment_writer *w)
{
    if (w->failed) return error_set(ERR_RESOURCE, "journal: %s: an earlier write failed", w->dir);
    if (!w->used) return OK;
    size_t used = w->used;
    w->used = 0;
    return write_all(w, w->buffer, used);
}

enum status segment_sync(struct segment_writer *w)
{
    TRY(segment_flush(w));
    if (!w->dirty) return OK;
    if (fdatasync(w->fd) != 0 && errno != EINVAL && errno != EROFS) {
        w->failed = true;
        return io_error(w->dir, w->number, "cannot sync");
    }
    w->dirty = false;
    return OK;
}

static enum status close_segment(struct segment_writer *w)
{
    if (w->fd < 0) return OK;
    enum status st = segment_sync(w);
    close(w->fd);
    w->fd = -1;
    w->number++;
    return st;
}

/* Opens the next segment and makes its name durable. */
static enum status open_segment(struct segment_writer *w)
{
    TRY(close_segment(w));
    if (w->number >= SEGMENTS_MAX)
        return error_set(ERR_RESOURCE, "journal: %s is full (%d segments)", w->dir, SEGMENTS_MAX);
    char path[4096];
    segment_path(path, sizeof path, w->dir, w->number);
    w->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (w->fd < 0) return io_error(w->dir, w->number, "cannot create");
    w->offset = 0;
    int dir = open(w->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir >= 0) {
        fsync(dir); /* some file systems cannot; then the name survives a crash by chance only */
        close(dir);
    }
    return OK;
}

enum status segment_append(struct segment_writer *w, uint32_t type, bool anyone,
                           const struct payload *p, segment_place *place)
{
    if (p->failed) return error_set(ERR_RESOURCE, "journal: out of memory for a record");
    if (p->bytes > RECORD_MAX)
        return error_set(ERR_BUG, "journal: a record of %zu bytes", p->bytes);
    if (w->failed) return error_set(ERR_RESOURCE, "journal: %s: an earlier write failed", w->dir);
    if (segment_writer_fresh(w)) TRY(open_segment(w));
    struct record_head head = {MAGIC, type, (uint32_t)p->bytes,
                               record_crc(anyone ? 0 : w->id, type, (uint32_t)p->bytes, p->data)};
    if (place) *place = (uint64_t)w->number << 40 | (uint64_t)w->offset;
    if (w->used + sizeof head + p->bytes > BUFFER_BYTES) TRY(segment_flush(w));
    memcpy(w->buffer + w->used, &head, sizeof head);
    w->used += sizeof head;
    w->offset += (int64_t)(sizeof head + p->bytes);
    if (w->used + p->bytes <= BUFFER_BYTES) {
        if (p->bytes) memcpy(w->buffer + w->used, p->data, p->bytes);
        w->used += p->bytes;
        return OK;
    }
    TRY(segment_flush(w));
    return write_all(w, p->data, p->bytes);
}

enum status segment_writer_close(struct segment_writer *w)
{
    enum status st = w->failed ? OK : close_segment(w);
    if (w->fd >= 0) close(w->fd);
    free(w->buffer);
    *w = (struct segment_writer){.fd = -1};
    return st;
}

/* ---- reading ---- */

void segment_reader_init(struct segment_reader *r, const char *dir)
{
    *r = (struct segment_reader){.dir = dir, .fd = -1, .number = -1};
}

void segment_reader_close(struct segment_reader *r)
{
    if (r->fd >= 0) close(r->fd);
    free(r->window.data);
    free(r->record.data);
    *r = (struct segment_reader){.fd = -1, .number = -1};
}

enum status segment_open(struct segment_reader *r, int number, bool *exists)
{
    if (r->fd >= 0) close(r->fd);
    char path[4096];
    segment_path(path, sizeof path, r->dir, number);
    r->fd = open(path, O_RDONLY | O_CLOEXEC);
    r->number = number;
    r->offset = r->bad = r->window_at = 0;
    r->window.bytes = 0;
    *exists = r->fd >= 0;
    if (r->fd < 0) return errno == ENOENT ? OK : io_error(r->dir, number, "cannot open");
    struct stat info;
    if (fstat(r->fd, &info) != 0) return io_error(r->dir, number, "cannot stat");
    r->size = info.st_size;
    return OK;
}

static enum status reserve(struct payload *p, size_t bytes)
{
    if (bytes <= p->room) return OK;
    char *more = realloc(p->data, bytes);
    if (!more) return error_set(ERR_RESOURCE, "journal: out of memory for a record");
    p->data = more;
    p->room = bytes;
    return OK;
}

/* Reads the file from `offset` on into the window. */
static enum status fill(struct segment_reader *r, int64_t offset, size_t bytes)
{
    TRY(reserve(&r->window, bytes));
    r->window_at = offset;
    r->window.bytes = 0;
    while (r->window.bytes < bytes) {
        ssize_t n = pread(r->fd, r->window.data + r->window.bytes, bytes - r->window.bytes,
                          offset + (int64_t)r->window.bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return io_error(r->dir, r->number, "cannot read");
        if (n == 0) break;
        r->window.bytes += (size_t)n;
    }
    return OK;
}

/* *at = `bytes` bytes at `offset`, in the window; NULL when the file ends before. A read takes at
 * least `ahead` bytes. */
static enum status look(struct segment_reader *r, int64_t offset, size_t bytes, size_t ahead,
                        const char **at)
{
    int64_t in = offset - r->window_at;
    if (in < 0 || in + (int64_t)bytes > (int64_t)r->window.bytes) {
        TRY(fill(r, offset, bytes > ahead ? bytes : ahead));
        in = 0;
    }
    *at = in + (int64_t)bytes <= (int64_t)r->window.bytes ? r->window.data + in : NULL;
    return OK;
}

/* Whether the head at `offset` can be one; nothing is said about its checksum yet. */
static bool head_plausible(const struct record_head *h, int64_t offset, int64_t size)
{
    return h->magic == MAGIC && h->bytes <= RECORD_MAX &&
           (int64_t)h->bytes <= size - offset - (int64_t)sizeof *h;
}

/* Reads the record at r->offset; *good = false when it is torn or damaged. */
static enum status read_record(struct segment_reader *r, bool (*want)(uint32_t type), size_t ahead,
                               struct record *out, bool *good)
{
    struct record_head head;
    const char *at;
    *good = false;
    TRY(look(r, r->offset, sizeof head, ahead, &at));
    if (!at) return OK;
    memcpy(&head, at, sizeof head);
    if (!head_plausible(&head, r->offset, r->size)) return OK;
    *out = (struct record){head.type, head.bytes, NULL,
                           (uint64_t)r->number << 40 | (uint64_t)r->offset};
    if (want && !want(head.type)) {
        *good = true;
        return OK;
    }
    TRY(look(r, r->offset, sizeof head + head.bytes, ahead, &at));
    if (!at) return OK;
    at += sizeof head;
    *good = record_crc(r->id, head.type, head.bytes, at) == head.crc ||
            (r->id && record_crc(0, head.type, head.bytes, at) == head.crc);
    if (!*good) return OK;
    TRY(reserve(&r->record, head.bytes ? head.bytes : 1));
    memcpy(r->record.data, at, head.bytes);
    out->payload = r->record.data;
    return OK;
}

/* Moves r->offset to the next place behind it where a record may begin, or to the end. */
static enum status seek_magic(struct segment_reader *r)
{
    const uint32_t magic = MAGIC;
    for (int64_t from = r->offset + 1; from < r->size;) {
        size_t left = (size_t)(r->size - from), n = left < SEQUENTIAL ? left : SEQUENTIAL;
        const char *at, *found = NULL;
        TRY(look(r, from, n, n, &at));
        if (!at) break;
        found = memmem(at, n, &magic, sizeof magic);
        if (found) {
            r->offset = from + (found - at);
            return OK;
        }
        from += n == left ? (int64_t)n : (int64_t)(n - sizeof magic + 1);
    }
    r->offset = r->size;
    return OK;
}

enum status segment_next(struct segment_reader *r, bool (*want)(uint32_t type), struct record *out,
                         bool *more)
{
    int64_t begin = r->offset;
    for (;;) {
        TRY(read_record(r, want, SEQUENTIAL, out, more));
        if (*more || r->offset >= r->size) break;
        TRY(seek_magic(r));
    }
    r->bad += r->offset - begin;
    if (*more) r->offset += (int64_t)(sizeof(struct record_head) + out->bytes);
    return OK;
}

enum status segment_read(struct segment_reader *r, segment_place place, struct record *out)
{
    int number = (int)(place >> 40);
    bool good = true;
    if (r->fd < 0 || r->number != number) {
        TRY(segment_open(r, number, &good));
        if (!good) return error_set(ERR_INPUT, "journal: %s/%06d.seg is missing", r->dir, number);
    }
    /* The writer may have appended since the open; a record that starts inside the known size was
     * complete then. */
    struct stat info;
    r->offset = (int64_t)(place & ((UINT64_C(1) << 40) - 1));
    if (r->offset >= r->size && fstat(r->fd, &info) == 0) r->size = info.st_size;
    TRY(read_record(r, NULL, RANDOM, out, &good));
    if (!good)
        return error_set(ERR_INPUT, "journal: %s/%06d.seg: the record at byte %lld is damaged",
                         r->dir, number, (long long)r->offset);
    return OK;
}

static int by_number(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

/* Number of a name like "000012.seg", -1 for others. */
static int segment_number(const char *name)
{
    char *end;
    long n = strtol(name, &end, 10);
    return end != name && !strcmp(end, ".seg") && n >= 0 && n < SEGMENTS_MAX ? (int)n : -1;
}

enum status segment_list(const char *dir, int **numbers, int *n)
{
    *numbers = NULL;
    *n = 0;
    DIR *d = opendir(dir);
    if (!d) return error_set(ERR_INPUT, "journal: cannot open %s: %s", dir, strerror(errno));
    int room = 0, *list = NULL;
    for (struct dirent *e; (e = readdir(d));) {
        int number = segment_number(e->d_name);
        if (number < 0) continue;
        if (*n == room) {
            room = room ? 2 * room : 16;
            int *more = realloc(list, sizeof *list * (size_t)room);
            if (!more) {
                free(list);
                closedir(d);
                return error_set(ERR_RESOURCE, "journal: out of memory");
            }
            list = more;
        }
        list[(*n)++] = number;
    }
    closedir(d);
    if (*n) qsort(list, (size_t)*n, sizeof *list, by_number);
    *numbers = list;
    return OK;
}
