/* json_scan.c - a scanner that knows strings and nesting, no more. */
#include "requests/json_scan.h"

#include <string.h>

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static size_t skip_blanks(struct json_slice s, size_t i)
{
    while (i < s.n && is_blank(s.at[i])) i++;
    return i;
}

/* i stands on a quote; returns the place after its closing one, or s.n + 1. */
static size_t skip_string(struct json_slice s, size_t i)
{
    for (i++; i < s.n; i++) {
        if (s.at[i] == '"') return i + 1;
        if (s.at[i] == '\\') i++;
    }
    return s.n + 1;
}

/* The place after the value at i, or s.n + 1 when it does not end. */
static size_t skip_value(struct json_slice s, size_t i)
{
    if (i < s.n && s.at[i] == '"') return skip_string(s, i);
    size_t depth = 0;
    while (i < s.n) {
        char c = s.at[i];
        if (c == '"') {
            i = skip_string(s, i);
            continue;
        }
        if (c == '[' || c == '{') depth++;
        if (c == ']' || c == '}' || c == ',') {
            if (depth == 0) return i; /* the end of a plain word; it belongs to the outer level */
            if (c != ',' && --depth == 0) return i + 1;
        }
        i++;
    }
    return s.n + 1;
}

bool json_member(struct json_slice object, const char *key, struct json_slice *value)
{
    struct json_slice s = object;
    size_t key_len = strlen(key), i = skip_blanks(s, 0);
    if (i >= s.n || s.at[i] != '{') return false;
    for (;;) {
        i = skip_blanks(s, i + 1);
        if (i >= s.n || s.at[i] != '"') return false;
        size_t name = i + 1, end = skip_string(s, i);
        if (end > s.n) return false;
        i = skip_blanks(s, end);
        if (i >= s.n || s.at[i] != ':') return false;
        i = skip_blanks(s, i + 1);
        size_t after = skip_value(s, i);
        if (after > s.n) return false;
        if (end - 1 - name == key_len && !memcmp(s.at + name, key, key_len)) {
            *value = (struct json_slice){s.at + i, after - i};
            return true;
        }
        i = skip_blanks(s, after);
        if (i >= s.n || s.at[i] != ',') return false;
    }
}

/* One JSON integer of at most 18 digits at *i. */
static bool read_int(struct json_slice s, size_t *i, int64_t *out)
{
    bool negative = *i < s.n && s.at[*i] == '-';
    size_t first = *i += negative;
    int64_t v = 0;
    while (*i < s.n && s.at[*i] >= '0' && s.at[*i] <= '9') {
        if (*i - first >= 18) return false;
        v = 10 * v + (s.at[(*i)++] - '0');
    }
    if (*i == first || (s.at[first] == '0' && *i - first > 1)) return false;
    *out = negative ? -v : v;
    return true;
}

static void add(struct json_ints *out, int64_t v)
{
    if (v != (int32_t)v && out->bad_at < 0) {
        out->bad = v;
        out->bad_at = out->n;
    }
    if (out->n < out->cap) out->values[out->n] = (int32_t)v;
    out->n++;
}

bool json_ints(struct json_slice s, struct json_ints *out)
{
    out->n = 0;
    out->bad_at = -1;
    size_t i = skip_blanks(s, 0);
    if (i >= s.n || s.at[i] != '[') return false;
    i = skip_blanks(s, i + 1);
    bool nested = i < s.n && s.at[i] == '[';
    if (nested) i = skip_blanks(s, i + 1);
    bool more = i < s.n && s.at[i] != ']';
    while (more) {
        int64_t v;
        if (!read_int(s, &i, &v)) return false;
        add(out, v);
        i = skip_blanks(s, i);
        more = i < s.n && s.at[i] == ',';
        if (more) i = skip_blanks(s, i + 1);
    }
    for (int open = nested ? 2 : 1; open > 0; open--) {
        if (i >= s.n || s.at[i] != ']') return false;
        i = skip_blanks(s, i + 1);
    }
    return i == s.n;
}
