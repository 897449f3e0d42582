/* token_jsonl.c - an index of the lines of a JSONL file, and reading one line by its number.
 *
 * The index pass reads the file once from front to end through one buffer that is as long as the
 * longest line; it looks at nothing but line ends and custom_ids. */
#include "requests/token_source.h"

#include "core/hash.h"
#include "requests/request_check.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FIRST_BUFFER (1u << 20)
#define LINE_MAX_BYTES (1u << 30) /* a longer line fails its request unread */
#define KEEP_BUFFER (16u << 20)   /* a larger line buffer is freed after use */

enum { LINE_DUPLICATE = 1, LINE_TOO_LONG = 2 };

struct line {
    uint32_t offset_low;
    uint16_t offset_high;
    uint16_t flags;
    uint32_t bytes;
    uint32_t number; /* in the file, from 1, blank ones counted */
};

struct source {
    struct token_source base;
    int fd;
    struct line *lines; /* [cap] */
    size_t cap;
    char *buffer; /* the line being parsed */
    size_t buffer_bytes;
};

static enum status no_memory(void)
{
    return error_set(ERR_RESOURCE, "out of memory while reading the token file");
}

static uint64_t offset_of(const struct line *l)
{
    return (uint64_t)l->offset_high << 32 | l->offset_low;
}

/* Reads exactly n bytes at an offset. */
static enum status read_at(struct source *s, const char *path, char *out, size_t n, uint64_t at)
{
    while (n) {
        ssize_t got = pread(s->fd, out, n, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return error_set(ERR_INPUT, "cannot read token file %s: %s", path, strerror(errno));
        if (got == 0)
            return error_set(ERR_INPUT,
                             "token file %s became shorter than %" PRIu64 " bytes while the job "
                             "runs: leave it alone until the job ends",
                             path, at + n);
        out += got;
        n -= (size_t)got;
        at += (uint64_t)got;
    }
    return OK;
}

/* The index pass. */
struct pass {
    struct source *s;
    const char *path;
    struct id_set ids;
    char *earlier; /* the custom_id that was last fetched to compare */
    size_t earlier_bytes;
    uint32_t earlier_index;
    const char *id; /* that of the line being added */
    size_t id_bytes;
    enum status st; /* of reading inside a comparison */
    bool seen;
    uint64_t file_bytes; /* of the file so far, and their checksum */
    uint32_t file_crc;
};

static void keep_earlier(void *arg, const char *text, size_t n)
{
    struct pass *p = arg;
    char *copy = realloc(p->earlier, n + 1);
    if (!copy) {
        p->st = no_memory();
        return;
    }
    memcpy(copy, text, n);
    p->earlier = copy;
    p->earlier_bytes = n;
}

static bool same_id(void *arg, uint32_t earlier, uint32_t now)
{
    struct pass *p = arg;
    (void)now;
    if (p->earlier_index != earlier) {
        const struct line *l = &p->s->lines[earlier];
        char *text = malloc((size_t)l->bytes + 1);
        p->st = text ? read_at(p->s, p->path, text, l->bytes, offset_of(l)) : no_memory();
        p->earlier_bytes = 0;
        if (p->st == OK) request_peek_id(text, l->bytes, keep_earlier, p);
        free(text);
        p->earlier_index = p->st == OK ? earlier : UINT32_MAX;
    }
    return p->earlier_bytes == p->id_bytes && !memcmp(p->earlier, p->id, p->id_bytes);
}

static void add_id(void *arg, const char *text, size_t n)
{
    struct pass *p = arg;
    if (n == 0) return; /* an empty name fails by itself */
    p->id = text;
    p->id_bytes = n;
    if (!id_set_add(&p->ids, (uint32_t)p->s->base.count, text, n, same_id, p, &p->seen))
        p->st = no_memory();
}

static bool is_blank(const char *line, size_t n)
{
    while (n && (*line == ' ' || *line == '\t' || *line == '\r')) {
        line++;
        n--;
    }
    return n == 0;
}

static enum status add_line(struct pass *p, const char *text, size_t n, uint64_t offset,
                            uint64_t number, bool too_long)
{
    struct source *s = p->s;
    if (!too_long && is_blank(text, n)) return OK;
    if (number >= UINT32_MAX || offset >> 48)
        return error_set(ERR_INPUT, "token file %s has more than 4e9 lines: split it", p->path);
    if ((size_t)s->base.count == s->cap) {
        size_t cap = s->cap + s->cap / 4 + 1024;
        struct line *lines = realloc(s->lines, cap * sizeof *lines);
        if (!lines) return no_memory();
        s->lines = lines;
        s->cap = cap;
    }
    p->seen = false;
    p->st = OK;
    if (!too_long) request_peek_id(text, n, add_id, p);
    if (p->st != OK) return p->st;
    s->lines[s->base.count++] = (struct line){
        .offset_low = (uint32_t)offset,
        .offset_high = (uint16_t)(offset >> 32),
        .flags = (uint16_t)((p->seen ? LINE_DUPLICATE : 0) | (too_long ? LINE_TOO_LONG : 0)),
        .bytes = too_long ? 0 : (uint32_t)n,
        .number = (uint32_t)number,
    };
    return OK;
}

/* The window of the file that the index pass holds: buf[begin..end), begin at a line's start. */
struct window {
    char *buf;
    size_t cap, begin, end;
    size_t searched; /* bytes from begin known to hold no line end */
    uint64_t offset; /* of begin in the file */
    uint64_t number; /* of the line at begin */
    bool too_long, at_end;
};

/* Makes room behind the window and reads on. A line beyond the limit is thrown away as it comes. */
static enum status read_on(struct pass *p, struct window *w)
{
    if (w->end - w->begin > LINE_MAX_BYTES || w->too_long) {
        w->too_long = true;
        w->offset += w->end - w->begin;
        w->begin = w->end = w->searched = 0;
    }
    memmove(w->buf, w->buf + w->begin, w->end - w->begin);
    w->end -= w->begin;
    w->begin = 0;
    if (w->end == w->cap) {
        char *bigger = realloc(w->buf, 2 * w->cap);
        if (!bigger) return no_memory();
        w->buf = bigger;
        w->cap *= 2;
    }
    ssize_t got;
    do got = read(p->s->fd, w->buf + w->end, w->cap - w->end);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return error_set(ERR_INPUT, "cannot read token file %s: %s", p->path, strerror(errno));
    w->at_end = got == 0;
    p->file_crc = crc32c(p->file_crc, w->buf + w->end, (size_t)got);
    p->file_bytes += (uint64_t)got;
    w->end += (size_t)got;
    return OK;
}

static enum status take_line(struct pass *p, struct window *w, size_t bytes, size_t line_end)
{
    const char *text = w->buf + w->begin;
    uint64_t offset = w->offset;
    size_t n = bytes;
    if (w->number == 1 && n >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) { /* byte order mark */
        text += 3;
        offset += 3;
        n -= 3;
    }
    enum status st = add_line(p, text, n, offset, w->number, w->too_long);
    w->too_long = false;
    w->begin += bytes + line_end;
    w->offset += bytes + line_end;
    w->searched = 0;
    w->number++;
    return st;
}

static enum status index_lines(struct pass *p)
{
    struct window w = {.buf = malloc(FIRST_BUFFER), .cap = FIRST_BUFFER, .number = 1};
    enum status st = w.buf ? OK : no_memory();
    while (st == OK) {
        size_t held = w.end - w.begin;
        char *nl = memchr(w.buf + w.begin + w.searched, '\n', held - w.searched);
        if (nl) {
            st = take_line(p, &w, (size_t)(nl - w.buf) - w.begin, 1);
        } else if (w.at_end) {
            if (held || w.too_long) st = take_line(p, &w, held, 0);
            break;
        } else {
            w.searched = held;
            st = read_on(p, &w);
        }
    }
    free(w.buf);
    return st;
}

static void close_source(struct token_source *base)
{
    struct source *s = (struct source *)base;
    if (s->fd >= 0) close(s->fd);
    free(s->lines);
    free(s->buffer);
    free(s);
}

static enum status open_regular(const char *path, int *fd)
{
    struct stat info;
    *fd = open(path, O_RDONLY | O_CLOEXEC);
    if (*fd < 0 || fstat(*fd, &info) != 0)
        return error_set(ERR_INPUT, "cannot open token file %s: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return error_set(ERR_INPUT,
                         "token file %s is no regular file: requests are read in any order, so "
                         "store it in a file first",
                         path);
    return OK;
}

static enum status open_source(const char *path, struct parse_context *c, struct token_source **out)
{
    (void)c;
    struct source *s = calloc(1, sizeof *s);
    if (!s) return no_memory();
    struct pass p = {.s = s, .path = path, .earlier_index = UINT32_MAX};
    s->base.ops = &token_jsonl;
    enum status st = open_regular(path, &s->fd);
    if (st == OK) st = index_lines(&p);
    s->base.peak_bytes = s->cap * sizeof *s->lines + p.ids.peak_bytes;
    id_set_free(&p.ids);
    free(p.earlier);
    if (st != OK) {
        close_source(&s->base);
        return st;
    }
    size_t n = (size_t)s->base.count;
    struct line *fit = realloc(s->lines, (n ? n : 1) * sizeof *fit);
    if (fit) s->lines = fit;
    s->base.bytes = n * sizeof *fit;
    s->base.hash = (uint64_t)p.file_crc << 32 ^ p.file_bytes;
    *out = &s->base;
    return OK;
}

static enum status get_request(struct token_source *base, struct parse_context *c, int64_t i,
                               struct request *r)
{
    struct source *s = (struct source *)base;
    const struct line *l = &s->lines[i];
    if (l->flags & LINE_TOO_LONG) {
        request_reset(r, i, &c->defaults);
        request_fail(r, "line %u: longer than %u MiB", l->number, LINE_MAX_BYTES >> 20);
        return OK;
    }
    if (l->bytes > s->buffer_bytes) {
        free(s->buffer);
        s->buffer_bytes = 0;
        s->buffer = malloc(l->bytes);
        if (!s->buffer) return no_memory();
        s->buffer_bytes = l->bytes;
    }
    TRY(read_at(s, c->path, s->buffer, l->bytes, offset_of(l)));
    bool fits = request_parse(c, s->buffer, l->bytes, l->number, i, r);
    if (s->buffer_bytes > KEEP_BUFFER) {
        free(s->buffer);
        s->buffer = NULL;
        s->buffer_bytes = 0;
    }
    if (!fits) return no_memory();
    if (l->flags & LINE_DUPLICATE)
        request_fail(r, "line %u: custom_id was given before: make it unique", l->number);
    return OK;
}

const struct token_source_ops token_jsonl = {open_source, get_request, close_source};
