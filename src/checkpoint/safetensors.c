/* safetensors.c - header checks and the mapping of one file.
 *
 * Layout: 8 bytes little-endian header length, that many bytes of JSON
 * {"name": {"dtype": "BF16", "shape": [n, k], "data_offsets": [begin, end]}, ...}, then data.
 * Good headers in the usual form are read by safetensors_scan.c; the JSON parser here takes all
 * others and decides every error.
 */
#include "checkpoint/safetensors.h"

#include "checkpoint/json_field.h"
#include "checkpoint/safetensors_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* The format's own ceiling; a longer header is a damaged or hostile file. */
enum { HEADER_BYTES_MAX = 100000000 };

static const struct {
    const char *name;
    uint8_t bytes;
} dtypes[TENSOR_DTYPES] = {
    [TENSOR_F32] = {"F32", 4},      [TENSOR_F16] = {"F16", 2},      [TENSOR_BF16] = {"BF16", 2},
    [TENSOR_E4M3] = {"F8_E4M3", 1}, [TENSOR_E8M0] = {"F8_E8M0", 1}, [TENSOR_E5M2] = {"F8_E5M2", 1},
    [TENSOR_F64] = {"F64", 8},      [TENSOR_U8] = {"U8", 1},        [TENSOR_I8] = {"I8", 1},
    [TENSOR_BOOL] = {"BOOL", 1},    [TENSOR_U16] = {"U16", 2},      [TENSOR_I16] = {"I16", 2},
    [TENSOR_U32] = {"U32", 4},      [TENSOR_I32] = {"I32", 4},      [TENSOR_U64] = {"U64", 8},
    [TENSOR_I64] = {"I64", 8},
};

const char *tensor_dtype_name(enum tensor_dtype t)
{
    return (unsigned)t < TENSOR_DTYPES ? dtypes[t].name : "?";
}

size_t tensor_dtype_bytes(enum tensor_dtype t)
{
    return dtypes[t].bytes;
}

int tensor_dtype_parse(const char *name)
{
    for (int i = 0; i < TENSOR_DTYPES; i++)
        if (strcmp(name, dtypes[i].name) == 0) return i;
    return -1;
}

const char *tensor_shape_text(int rank, const int64_t *shape, char *buf)
{
    size_t at = 0;
    at += (size_t)snprintf(buf + at, 96 - at, "[");
    for (int i = 0; i < rank && at < 90; i++)
        at += (size_t)snprintf(buf + at, 96 - at, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (at < 95) snprintf(buf + at, 96 - at, "]");
    return buf;
}

static enum status tensor_error(const struct safetensors *st, const char *name, const char *what)
{
    return error_set(ERR_INPUT, "%s: tensor %s: %s", st->path, name, what);
}

/* dtype and shape into *t; *bytes is what they amount to. */
static enum status parse_shape(const struct safetensors *st, const char *name, json_t *entry,
                               struct tensor_view *t, uint64_t *bytes)
{
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (!dtype) return tensor_error(st, name, "dtype is missing or not a string");
    int type = tensor_dtype_parse(dtype);
    if (type < 0)
        return error_set(ERR_INPUT,
                         "%s: tensor %s: dtype is \"%.32s\", expected a known type "
                         "(BF16, F16, F32, F8_E4M3, ...)",
                         st->path, name, dtype);
    json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape)) return tensor_error(st, name, "shape is missing or not a list");
    if (json_array_size(shape) > TENSOR_MAX_RANK)
        return error_set(ERR_INPUT, "%s: tensor %s: %zu dimensions, expected at most %d", st->path,
                         name, json_array_size(shape), TENSOR_MAX_RANK);
    t->dtype = (enum tensor_dtype)type;
    t->rank = (int)json_array_size(shape);
    *bytes = tensor_dtype_bytes(t->dtype);
    for (int i = 0; i < TENSOR_MAX_RANK; i++) t->shape[i] = 1;
    for (int i = 0; i < t->rank; i++) {
        json_t *d = json_array_get(shape, (size_t)i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return tensor_error(st, name, "shape holds something else than sizes >= 0");
        t->shape[i] = json_integer_value(d);
        if (__builtin_mul_overflow(*bytes, (uint64_t)t->shape[i], bytes))
            return tensor_error(st, name, "shape times element size overflows 64 bits");
    }
    return OK;
}

static enum status parse_offsets(const struct safetensors *st, const char *name, json_t *entry,
                                 struct tensor_view *t, uint64_t bytes)
{
    json_t *o = json_object_get(entry, "data_offsets");
    json_t *b = json_array_get(o, 0), *e = json_array_get(o, 1);
    if (json_array_size(o) != 2 || !json_is_integer(b) || !json_is_integer(e))
        return tensor_error(st, name, "data_offsets is not a pair of integers");
    int64_t begin = json_integer_value(b), end = json_integer_value(e);
    uint64_t data = st->map_bytes - st->header_bytes;
    if (begin < 0 || end < begin || (uint64_t)end > data)
        return error_set(ERR_INPUT,
                         "%s: tensor %s: data_offsets are [%lld, %lld], expected an ascending pair "
                         "within the file's %llu bytes of data (is the file truncated?)",
                         st->path, name, (long long)begin, (long long)end,
                         (unsigned long long)data);
    char text[96];
    if ((uint64_t)(end - begin) != bytes)
        return error_set(ERR_INPUT,
                         "%s: tensor %s: data_offsets span %lld bytes, expected %llu (%s %s)",
                         st->path, name, (long long)(end - begin), (unsigned long long)bytes,
                         tensor_dtype_name(t->dtype), tensor_shape_text(t->rank, t->shape, text));
    t->data = st->map + st->header_bytes + begin;
    t->bytes = (size_t)bytes;
    return OK;
}

static int by_offset(const void *a, const void *b)
{
    const struct tensor_view *x = a, *y = b;
    if (x->data != y->data) return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static enum status check_overlap(const struct safetensors *st)
{
    const struct tensor_view *last = NULL;
    for (int i = 0; i < st->count; i++) {
        const struct tensor_view *t = &st->tensor[i];
        if (t->bytes == 0) continue;
        if (last && (const char *)t->data < (const char *)last->data + last->bytes)
            return error_set(ERR_INPUT, "%s: tensor %s overlaps tensor %s", st->path, t->name,
                             last->name);
        last = t;
    }
    return OK;
}

/* All entries but __metadata__; names are copied into one pool. */
static enum status parse_tensors(struct safetensors *st, json_t *root)
{
    size_t pool = 0;
    const char *name;
    json_t *entry;
    json_object_foreach(root, name, entry) pool += strlen(name) + 1;
    st->names = malloc(pool + 1);
    st->tensor = calloc(json_object_size(root) + 1, sizeof *st->tensor);
    if (!st->names || !st->tensor)
        return error_set(ERR_RESOURCE, "%s: no memory for the names of %zu tensors", st->path,
                         json_object_size(root));
    char *at = st->names;
    json_object_foreach(root, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0) continue;
        struct tensor_view *t = &st->tensor[st->count];
        uint64_t bytes = 0;
        if (!json_is_object(entry)) return tensor_error(st, name, "entry is not an object");
        TRY(parse_shape(st, name, entry, t, &bytes));
        TRY(parse_offsets(st, name, entry, t, bytes));
        t->name = strcpy(at, name);
        t->file = st->path;
        at += strlen(name) + 1;
        st->count++;
    }
    return OK;
}

/* Ascending by offset, without overlap. Writers mostly list tensors in the order of their data. */
static enum status order_tensors(struct safetensors *st)
{
    int i = 1;
    while (i < st->count && by_offset(&st->tensor[i - 1], &st->tensor[i]) <= 0) i++;
    if (i < st->count) qsort(st->tensor, (size_t)st->count, sizeof *st->tensor, by_offset);
    return check_overlap(st);
}

static enum status check_length(struct safetensors *st)
{
    uint64_t len = 0;
    if (st->map_bytes < 8)
        return error_set(ERR_INPUT, "%s: %zu bytes, expected at least 8 (a safetensors header)",
                         st->path, st->map_bytes);
    for (int i = 0; i < 8; i++) len |= (uint64_t)st->map[i] << (8 * i);
    if (len > HEADER_BYTES_MAX)
        return error_set(ERR_INPUT,
                         "%s: header length is %llu, expected at most %d: not a safetensors file?",
                         st->path, (unsigned long long)len, HEADER_BYTES_MAX);
    if (len > st->map_bytes - 8)
        return error_set(ERR_INPUT,
                         "%s: header length is %llu, expected at most %zu (the file is truncated)",
                         st->path, (unsigned long long)len, st->map_bytes - 8);
    st->header_bytes = 8 + (size_t)len;
    return OK;
}

static enum status parse_json(struct safetensors *st)
{
    json_t *root = NULL;
    TRY(json_parse_object(st->path, (const char *)st->map + 8, st->header_bytes - 8, &root));
    enum status s = parse_tensors(st, root);
    json_decref(root);
    return s;
}

/* On failure *st is closed. */
static enum status parse_mapped(struct safetensors *st, bool scan)
{
    enum status status = check_length(st);
    if (status == OK && !(scan && safetensors_scan(st))) status = parse_json(st);
    if (status == OK) status = order_tensors(st);
    if (status != OK) safetensors_close(st);
    return status;
}

static enum status parse_memory(const char *path, const void *map, size_t bytes, bool scan,
                                struct safetensors *st)
{
    struct safetensors s = {.map = map, .map_bytes = bytes};
    s.path = strdup(path);
    if (!s.path) return error_set(ERR_RESOURCE, "%s: no memory", path);
    TRY(parse_mapped(&s, scan));
    *st = s;
    return OK;
}

enum status safetensors_parse(const char *path, const void *map, size_t bytes,
                              struct safetensors *st)
{
    return parse_memory(path, map, bytes, true, st);
}

enum status safetensors_parse_json(const char *path, const void *map, size_t bytes,
                                   struct safetensors *st)
{
    return parse_memory(path, map, bytes, false, st);
}

enum status safetensors_open(const char *path, struct safetensors *st)
{
    struct safetensors s;
    TRY(safetensors_map(path, &s));
    TRY(parse_mapped(&s, true));
    *st = s;
    return OK;
}

enum status safetensors_map(const char *path, struct safetensors *st)
{
    enum status status = OK;
    struct stat sb;
    struct safetensors s = {.mapped = true};
    void *map = MAP_FAILED;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return error_set(ERR_INPUT, "%s: cannot open: %s", path, strerror(errno));
    if (fstat(fd, &sb) != 0 || !S_ISREG(sb.st_mode)) {
        status = error_set(ERR_INPUT, "%s: not a regular file", path);
        goto done;
    }
    if (sb.st_size < 8) {
        status = error_set(ERR_INPUT, "%s: %lld bytes, expected at least 8 (a safetensors header)",
                           path, (long long)sb.st_size);
        goto done;
    }
    map = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    if (map == MAP_FAILED) {
        status = error_set(ERR_RESOURCE, "%s: cannot map %lld bytes: %s", path,
                           (long long)sb.st_size, strerror(errno));
        goto done;
    }
    s.map = map;
    s.map_bytes = (size_t)sb.st_size;
    s.path = strdup(path);
    if (s.path) {
        *st = s;
    } else {
        munmap(map, s.map_bytes);
        status = error_set(ERR_RESOURCE, "%s: no memory", path);
    }
done:
    close(fd);
    return status;
}

void safetensors_close(struct safetensors *st)
{
    if (st->mapped) munmap((void *)(uintptr_t)st->map, st->map_bytes);
    free(st->tensor);
    free(st->names);
    free(st->path);
    memset(st, 0, sizeof *st);
}
