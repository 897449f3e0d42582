/* writer.c - see writer.h. */
#include "checkpoint/writer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct item {
    char *name;
    enum tensor_dtype dtype;
    int rank;
    int64_t shape[2];
    size_t bytes;
    int shard;
    size_t offset; /* within the shard's data */
};

struct shard {
    char *temp; /* path until finish */
    char *name; /* file name after finish */
    int fd;
    size_t header_bytes, data_bytes;
};

struct writer {
    char *dir;
    struct item *item; /* [items], capacity a power of two */
    int items;
    size_t bytes;
    struct shard *shard; /* [shards] */
    int shards;
};

static enum status no_memory(const struct writer *w)
{
    return error_set(ERR_RESOURCE, "%s: no memory to write a checkpoint", w->dir);
}

/* Threads may fail together; the process has one message. */
static enum status io_error(const char *what, const char *path)
{
    enum status st;
#pragma omp critical(writer_error)
    st = error_set(ERR_RESOURCE, "%s: cannot %s: %s", path, what, strerror(errno));
    return st;
}

enum status writer_create(const char *dir, struct writer **out)
{
    if (mkdir(dir, 0777) != 0 && errno != EEXIST) return io_error("create the directory", dir);
    struct writer *w = calloc(1, sizeof *w);
    if (w) w->dir = strdup(dir);
    if (!w || !w->dir) {
        free(w);
        return error_set(ERR_RESOURCE, "%s: no memory to write a checkpoint", dir);
    }
    *out = w;
    return OK;
}

enum status writer_declare(struct writer *w, const char *name, enum tensor_dtype dtype, int rank,
                           const int64_t *shape, int *id)
{
    if ((w->items & (w->items - 1)) == 0) {
        size_t room = w->items ? 2 * (size_t)w->items : 1;
        struct item *grown = realloc(w->item, room * sizeof *grown);
        if (!grown) return no_memory(w);
        w->item = grown;
    }
    struct item *t = &w->item[w->items];
    *t = (struct item){.name = strdup(name), .dtype = dtype, .rank = rank, .shape = {1, 1}};
    if (!t->name) return no_memory(w);
    t->bytes = tensor_dtype_bytes(dtype);
    for (int i = 0; i < rank; i++) {
        t->shape[i] = shape[i];
        t->bytes *= (size_t)shape[i];
    }
    w->bytes += t->bytes;
    *id = w->items++;
    return OK;
}

size_t writer_bytes(const struct writer *w)
{
    return w->bytes;
}

/* A shard closes when it holds its share of what is left, or when every tensor left is needed for
 * a shard of its own. */
static void assign_shards(struct writer *w, int shards)
{
    size_t left = w->bytes, held = 0;
    int shard = 0, in_shard = 0;
    for (int i = 0; i < w->items; i++) {
        int after = shards - 1 - shard;
        bool full = held >= left / (size_t)(after + 1) || w->items - i <= after;
        if (in_shard && after > 0 && full) {
            left -= held;
            held = 0;
            in_shard = 0;
            shard++;
        }
        w->item[i].shard = shard;
        held += w->item[i].bytes;
        in_shard++;
    }
}

/* Offsets: wider elements first, declaration order among equals. */
static void assign_offsets(struct writer *w, int shard)
{
    size_t at = 0;
    for (size_t width = 8; width; width /= 2)
        for (int i = 0; i < w->items; i++) {
            struct item *t = &w->item[i];
            if (t->shard != shard || tensor_dtype_bytes(t->dtype) != width) continue;
            t->offset = at;
            at += t->bytes;
        }
    w->shard[shard].data_bytes = at;
}

static char *header_text(const struct writer *w, int shard)
{
    json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    for (int i = 0; i < w->items && root; i++) {
        const struct item *t = &w->item[i];
        if (t->shard != shard) continue;
        json_t *shape = json_array();
        for (int d = 0; d < t->rank; d++) json_array_append_new(shape, json_integer(t->shape[d]));
        json_t *entry =
            json_pack("{s:s, s:o, s:[I, I]}", "dtype", tensor_dtype_name(t->dtype), "shape", shape,
                      "data_offsets", (json_int_t)t->offset, (json_int_t)(t->offset + t->bytes));
        json_object_set_new(root, t->name, entry);
    }
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return text;
}

static enum status write_all(int fd, const char *path, const void *data, size_t bytes, off_t at)
{
    const char *p = data;
    while (bytes) {
        ssize_t n = pwrite(fd, p, bytes, at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return io_error("write", path);
        p += n;
        at += n;
        bytes -= (size_t)n;
    }
    return OK;
}

/* 8 bytes of length, JSON, blanks up to a multiple of 8. */
static enum status create_shard(struct writer *w, int number)
{
    struct shard *s = &w->shard[number];
    int named = w->shards == 1
                    ? asprintf(&s->name, "model.safetensors")
                    : asprintf(&s->name, "model-%05d-of-%05d.safetensors", number + 1, w->shards);
    if (named < 0 || asprintf(&s->temp, "%s/.%s.%ld", w->dir, s->name, (long)getpid()) < 0)
        return no_memory(w);
    s->fd = open(s->temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (s->fd < 0) return io_error("create", s->temp);
    char *json = header_text(w, number);
    if (!json) return no_memory(w);
    size_t len = strlen(json), padded = (len + 7) / 8 * 8;
    char *header = malloc(8 + padded);
    enum status st = header ? OK : no_memory(w);
    if (st == OK) {
        for (int i = 0; i < 8; i++) header[i] = (char)((uint64_t)padded >> (8 * i));
        memcpy(header + 8, json, len);
        memset(header + 8 + len, ' ', padded - len);
        s->header_bytes = 8 + padded;
        st = write_all(s->fd, s->temp, header, 8 + padded, 0);
        /* The full size at once: bytes never put read as zero. */
        if (st == OK && ftruncate(s->fd, (off_t)(s->header_bytes + s->data_bytes)) != 0)
            st = io_error("extend", s->temp);
    }
    free(header);
    free(json);
    return st;
}

enum status writer_begin(struct writer *w, int shards)
{
    if (shards < 1 || shards > w->items)
        return error_set(ERR_USAGE, "%s: %d shards asked for, expected 1 to %d (the tensors)",
                         w->dir, shards, w->items);
    w->shard = calloc((size_t)shards, sizeof *w->shard);
    if (!w->shard) return no_memory(w);
    w->shards = shards;
    for (int i = 0; i < shards; i++) w->shard[i].fd = -1;
    assign_shards(w, shards);
    for (int i = 0; i < shards; i++) {
        assign_offsets(w, i);
        TRY(create_shard(w, i));
    }
    return OK;
}

enum status writer_put(struct writer *w, int id, size_t offset, const void *data, size_t bytes)
{
    const struct item *t = &w->item[id];
    const struct shard *s = &w->shard[t->shard];
    if (offset > t->bytes || bytes > t->bytes - offset)
        return error_set(ERR_BUG, "%s: write beyond tensor %s", w->dir, t->name);
    return write_all(s->fd, s->temp, data, bytes, (off_t)(s->header_bytes + t->offset + offset));
}

static enum status remove_old(const struct writer *w)
{
    DIR *d = opendir(w->dir);
    if (!d) return io_error("list", w->dir);
    for (struct dirent *e; (e = readdir(d));) {
        size_t n = strlen(e->d_name), suffix = strlen(".safetensors");
        bool weights = strncmp(e->d_name, "model", 5) == 0 && n >= suffix &&
                       strcmp(e->d_name + n - suffix, ".safetensors") == 0;
        if (weights || strcmp(e->d_name, "model.safetensors.index.json") == 0)
            unlinkat(dirfd(d), e->d_name, 0);
    }
    closedir(d);
    return OK;
}

static enum status write_index(struct writer *w)
{
    json_t *map = json_object();
    for (int i = 0; i < w->items; i++)
        json_object_set_new(map, w->item[i].name, json_string(w->shard[w->item[i].shard].name));
    json_t *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)w->bytes,
                             "weight_map", map);
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (!text) return no_memory(w);
    enum status st = writer_text_file(w->dir, "model.safetensors.index.json", text);
    free(text);
    return st;
}

enum status writer_finish(struct writer *w)
{
    for (int i = 0; i < w->shards; i++) {
        struct shard *s = &w->shard[i];
        int bad = fsync(s->fd) != 0;
        bad |= close(s->fd) != 0;
        s->fd = -1;
        if (bad) return io_error("write", s->temp);
    }
    TRY(remove_old(w));
    for (int i = 0; i < w->shards; i++) {
        struct shard *s = &w->shard[i];
        char *path = NULL;
        if (asprintf(&path, "%s/%s", w->dir, s->name) < 0) return no_memory(w);
        enum status st = rename(s->temp, path) == 0 ? OK : io_error("rename to", path);
        free(path);
        if (st != OK) return st;
        free(s->temp);
        s->temp = NULL;
    }
    return w->shards > 1 ? write_index(w) : OK;
}

void writer_close(struct writer *w)
{
    if (!w) return;
    for (int i = 0; i < w->shards; i++) {
        if (w->shard[i].fd >= 0) close(w->shard[i].fd);
        if (w->shard[i].temp) unlink(w->shard[i].temp);
        free(w->shard[i].temp);
        free(w->shard[i].name);
    }
    for (int i = 0; i < w->items; i++) free(w->item[i].name);
    free(w->item);
    free(w->shard);
    free(w->dir);
    free(w);
}

enum status writer_text_file(const char *dir, const char *name, const char *text)
{
    char *temp = NULL, *path = NULL;
    enum status st = OK;
    if (asprintf(&temp, "%s/.%s.%ld", dir, name, (long)getpid()) < 0) temp = NULL;
    if (asprintf(&path, "%s/%s", dir, name) < 0) path = NULL;
    FILE *f = temp && path ? fopen(temp, "w") : NULL;
    if (!temp || !path) {
        st = error_set(ERR_RESOURCE, "%s: no memory to write %s", dir, name);
    } else if (!f) {
        st = io_error("create", temp);
    } else {
        int bad = fputs(text, f) < 0;
        bad |= fputc('\n', f) < 0;
        bad |= fclose(f) != 0;
        if (bad || rename(temp, path) != 0) {
            st = io_error("write", path);
            unlink(temp);
        }
    }
    free(path);
    free(temp);
    return st;
}
