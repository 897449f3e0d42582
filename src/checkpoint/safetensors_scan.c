/* safetensors_scan.c - the quick way through a header in the form that every common writer gives
 * it: "__metadata__" first if at all, plain ASCII names, dtype, shape and data_offsets in this
 * order. Blanks may stand anywhere.
 *
 * It accepts only what the JSON parser would accept with the same result, and decides no error:
 * whatever it does not expect goes to the parser. Without it, opening a model of 90 thousand
 * tensors spends its time in small allocations (some twenty for each tensor).
 */
#include "checkpoint/safetensors_internal.h"
#include "core/hash.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* No entry is shorter: "":{"dtype":"U8","shape":[],"data_offsets":[0,0]} */
enum { ENTRY_BYTES_MIN = 48 };

struct scan {
    const char *at, *end;
};

static void skip_blanks(struct scan *s)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\n' || *s->at == '\t' || *s->at == '\r'))
        s->at++;
}

static bool eat(struct scan *s, char c)
{
    skip_blanks(s);
    if (s->at == s->end || *s->at != c) return false;
    s->at++;
    return true;
}

/* A string without escapes or bytes beyond ASCII; *text is not terminated. */
static bool eat_string(struct scan *s, const char **text, size_t *n)
{
    if (!eat(s, '"')) return false;
    *text = s->at;
    while (s->at < s->end && *s->at >= 0x20 && *s->at < 0x7f && *s->at != '"' && *s->at != '\\')
        s->at++;
    *n = (size_t)(s->at - *text);
    return s->at < s->end && *s->at++ == '"';
}

static bool same(const char *text, size_t n, const char *want)
{
    return n == strlen(want) && memcmp(text, want, n) == 0;
}

static bool eat_key(struct scan *s, const char *want)
{
    const char *text;
    size_t n;
    return eat_string(s, &text, &n) && same(text, n, want) && eat(s, ':');
}

/* At most 18 digits, so that nothing overflows; a sign, fraction or exponent ends it early and
 * what follows does not fit. */
static bool eat_size(struct scan *s, int64_t *value)
{
    skip_blanks(s);
    const char *first = s->at;
    int64_t v = 0;
    while (s->at < s->end && *s->at >= '0' && *s->at <= '9' && s->at - first < 18)
        v = 10 * v + (*s->at++ - '0');
    *value = v;
    return s->at > first && (*first != '0' || s->at == first + 1);
}

static bool eat_shape(struct scan *s, struct tensor_view *t)
{
    for (int i = 0; i < TENSOR_MAX_RANK; i++) t->shape[i] = 1;
    t->rank = 0;
    if (!eat(s, '[')) return false;
    if (eat(s, ']')) return true;
    do {
        if (t->rank == TENSOR_MAX_RANK || !eat_size(s, &t->shape[t->rank++])) return false;
    } while (eat(s, ','));
    return eat(s, ']');
}

/* {"dtype":"BF16","shape":[n,k],"data_offsets":[begin,end]}, all of it right. */
static bool eat_entry(struct scan *s, const struct safetensors *st, struct tensor_view *t)
{
    const char *dtype;
    char name[16];
    size_t n;
    int64_t begin, end;
    if (!eat(s, '{') || !eat_key(s, "dtype") || !eat_string(s, &dtype, &n) || n >= sizeof name)
        return false;
    memcpy(name, dtype, n);
    name[n] = '\0';
    int type = tensor_dtype_parse(name);
    if (type < 0 || !eat(s, ',') || !eat_key(s, "shape") || !eat_shape(s, t) || !eat(s, ',') ||
        !eat_key(s, "data_offsets") || !eat(s, '[') || !eat_size(s, &begin) || !eat(s, ',') ||
        !eat_size(s, &end) || !eat(s, ']') || !eat(s, '}'))
        return false;
    uint64_t bytes = tensor_dtype_bytes((enum tensor_dtype)type);
    for (int i = 0; i < t->rank; i++)
        if (__builtin_mul_overflow(bytes, (uint64_t)t->shape[i], &bytes)) return false;
    if (end < begin || (uint64_t)end > st->map_bytes - st->header_bytes ||
        (uint64_t)(end - begin) != bytes)
        return false;
    t->dtype = (enum tensor_dtype)type;
    t->data = st->map + st->header_bytes + begin;
    t->bytes = bytes;
    return true;
}

/* The parser reads the metadata, which may hold anything, and says where it ends. */
static bool skip_metadata(struct scan *s)
{
    json_error_t err;
    json_t *o = json_loadb(s->at, (size_t)(s->end - s->at),
                           JSON_REJECT_DUPLICATES | JSON_DISABLE_EOF_CHECK, &err);
    if (!o) return false;
    json_decref(o);
    s->at += err.position;
    return true;
}

static bool scan_tensors(struct scan *s, struct safetensors *st)
{
    const char *name;
    char *pool = st->names;
    size_t n;
    if (!eat(s, '{')) return false;
    if (eat(s, '}')) return true;
    for (bool first = true;; first = false) {
        if (!eat_string(s, &name, &n) || !eat(s, ':')) return false;
        if (same(name, n, "__metadata__")) {
            if (!first || !skip_metadata(s)) return false;
        } else {
            struct tensor_view *t = &st->tensor[st->count];
            if (!eat_entry(s, st, t)) return false;
            t->name = memcpy(pool, name, n);
            t->file = st->path;
            pool[n] = '\0';
            pool += n + 1;
            st->count++;
        }
        if (eat(s, '}')) return true;
        if (!eat(s, ',')) return false;
    }
}

static bool names_differ(const struct safetensors *st)
{
    size_t slots = 16;
    bool differ = true;
    while (slots < 2 * (size_t)st->count) slots *= 2;
    uint32_t *slot = calloc(slots, sizeof *slot);
    if (!slot) return false;
    for (int i = 0; i < st->count && differ; i++) {
        const char *name = st->tensor[i].name;
        size_t h = hash64(name, strlen(name), 0) & (slots - 1);
        for (; slot[h] && differ; h = (h + 1) & (slots - 1))
            differ = strcmp(st->tensor[slot[h] - 1].name, name) != 0;
        slot[h] = (uint32_t)i + 1;
    }
    free(slot);
    return differ;
}

bool safetensors_scan(struct safetensors *st)
{
    size_t bytes = st->header_bytes - 8;
    struct scan s = {(const char *)st->map + 8, (const char *)st->map + 8 + bytes};
    /* Room for the most there can be; what is not used is never touched. */
    st->names = malloc(bytes + 1);
    st->tensor = malloc((bytes / ENTRY_BYTES_MIN + 1) * sizeof *st->tensor);
    bool good = st->names && st->tensor && scan_tensors(&s, st);
    if (good) {
        skip_blanks(&s);
        good = s.at == s.end && names_differ(st);
    }
    if (!good) {
        free(st->names);
        free(st->tensor);
        st->names = NULL;
        st->tensor = NULL;
        st->count = 0;
        return false;
    }
    struct tensor_view *fit = realloc(st->tensor, ((size_t)st->count + 1) * sizeof *fit);
    if (fit) st->tensor = fit;
    return true;
}
