/* options_value.c - parsing, describing and printing the value of one option. Knows types and
 * ranges; knows nothing of files or keys. */
#include "config/options_value.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static bool is_null(const char *text)
{
    return !*text || !strcmp(text, "null") || !strcmp(text, "Null") || !strcmp(text, "NULL") ||
           !strcmp(text, "~");
}

/* Decimal digits with an optional minus sign: strtoll alone would take blanks, "+" and more. */
static bool is_integer(const char *text)
{
    if (*text == '-') text++;
    return *text && strspn(text, "0123456789") == strlen(text);
}

static bool parse_int(const struct option *o, const char *text, int *out)
{
    if (o->may_auto && !strcmp(text, "auto")) {
        *out = OPTION_AUTO;
        return true;
    }
    if (!is_integer(text)) return false;
    errno = 0;
    long long v = strtoll(text, NULL, 10);
    if (errno || (double)v < o->min || (double)v > o->max) return false;
    *out = (int)v;
    return true;
}

static bool parse_uint64(const char *text, uint64_t *out)
{
    if (!is_integer(text) || *text == '-') return false;
    errno = 0;
    unsigned long long v = strtoull(text, NULL, 10);
    if (errno) return false;
    *out = v;
    return true;
}

static bool parse_double(const struct option *o, const char *text, double *out)
{
    if (!*text || strspn(text, "0123456789+-.eE") != strlen(text)) return false;
    char *end;
    double v = strtod(text, &end);
    if (*end || !isfinite(v) || v < o->min || v > o->max) return false;
    *out = v;
    return true;
}

static bool parse_bool(const char *text, bool *out)
{
    bool t = !strcmp(text, "true") || !strcmp(text, "True") || !strcmp(text, "TRUE");
    bool f = !strcmp(text, "false") || !strcmp(text, "False") || !strcmp(text, "FALSE");
    if (t || f) *out = t;
    return t || f;
}

static bool parse_choice(const struct option *o, const char *text, int *out)
{
    if (o->may_auto && !strcmp(text, "auto")) {
        *out = OPTION_AUTO;
        return true;
    }
    for (int i = 0; o->choices[i]; i++)
        if (!strcmp(text, o->choices[i])) {
            *out = i;
            return true;
        }
    return false;
}

bool option_parse(const struct option *o, const char *text, bool quoted, void *object)
{
    void *field = (char *)object + o->offset;
    if (o->type == OPTION_STRING) {
        bool none = !quoted && is_null(text);
        size_t n = none ? 0 : strlen(text);
        if (n >= o->bytes) return false;
        memset(field, 0, o->bytes); /* no stale bytes behind the NUL: structs are compared */
        memcpy(field, text, n);
        return true;
    }
    if (o->type == OPTION_CHOICE) return parse_choice(o, text, field);
    bool word = o->type == OPTION_INT && o->may_auto && !strcmp(text, "auto");
    if (quoted && !word) return false; /* "auto" is auto, "1" is no number */
    switch (o->type) {
    case OPTION_SECTION: /* only null may stand for a section */
        if (!is_null(text)) return false;
        *(bool *)field = false;
        return true;
    case OPTION_INT: return parse_int(o, text, field);
    case OPTION_UINT64: return parse_uint64(text, field);
    case OPTION_DOUBLE: return parse_double(o, text, field);
    default: return parse_bool(text, field);
    }
}

static void append(char buf[OPTION_TEXT_BYTES], const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static void append(char buf[OPTION_TEXT_BYTES], const char *fmt, ...)
{
    size_t used = strlen(buf);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(buf + used, OPTION_TEXT_BYTES - used, fmt, ap);
    va_end(ap);
}

static void append_range(const struct option *o, char buf[OPTION_TEXT_BYTES])
{
    if (o->max >= 1e9)
        append(buf, " of at least %.10g", o->min);
    else
        append(buf, " in %.10g..%.10g", o->min, o->max);
}

void option_expected(const struct option *o, char buf[OPTION_TEXT_BYTES])
{
    buf[0] = '\0';
    switch (o->type) {
    case OPTION_SECTION: append(buf, "a mapping {key: value, ...} or null"); break;
    case OPTION_INT:
        append(buf, "an integer");
        append_range(o, buf);
        if (o->may_auto) append(buf, " or auto");
        break;
    case OPTION_UINT64: append(buf, "an integer in 0..2^64-1"); break;
    case OPTION_DOUBLE:
        append(buf, "a number");
        append_range(o, buf);
        break;
    case OPTION_BOOL: append(buf, "true or false"); break;
    case OPTION_CHOICE:
        append(buf, "one of%s", o->may_auto ? " auto," : "");
        for (int i = 0; o->choices[i]; i++) append(buf, "%s %s", i ? "," : "", o->choices[i]);
        break;
    case OPTION_STRING: append(buf, "text of at most %zu bytes", o->bytes - 1); break;
    }
}

/* A string may stand without quotes when YAML can read nothing else into it. */
static bool is_plain(const char *s)
{
    if (!isalpha((unsigned char)*s) && *s != '/' && *s != '_' && strncmp(s, "./", 2) &&
        strncmp(s, "../", 3))
        return false;
    if (!strcasecmp(s, "null") || !strcasecmp(s, "true") || !strcasecmp(s, "false")) return false;
    for (; *s; s++)
        if (!isalnum((unsigned char)*s) && !strchr("_-./+=@", *s)) return false;
    return true;
}

static void print_string(const char *s, FILE *out)
{
    if (!*s) {
        fputs("null", out);
    } else if (is_plain(s)) {
        fputs(s, out);
    } else {
        fputc('"', out);
        for (; *s; s++) {
            unsigned char c = (unsigned char)*s;
            if (c == '"' || c == '\\')
                fprintf(out, "\\%c", c);
            else if (c < 0x20 || c == 0x7f)
                fprintf(out, "\\x%02x", c);
            else
                fputc(c, out); /* bytes of UTF-8 stay as they are */
        }
        fputc('"', out);
    }
}

/* The shortest decimal form that reads back to the same double. */
static void print_double(double v, FILE *out)
{
    char text[32];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    fputs(text, out);
}

void option_print(const struct option *o, const void *object, FILE *out)
{
    const void *field = (const char *)object + o->offset;
    int i;
    switch (o->type) {
    case OPTION_SECTION: break;
    case OPTION_INT:
        i = *(const int *)field;
        if (o->may_auto && i == OPTION_AUTO)
            fputs("auto", out);
        else
            fprintf(out, "%d", i);
        break;
    case OPTION_UINT64: fprintf(out, "%" PRIu64, *(const uint64_t *)field); break;
    case OPTION_DOUBLE: print_double(*(const double *)field, out); break;
    case OPTION_BOOL: fputs(*(const bool *)field ? "true" : "false", out); break;
    case OPTION_CHOICE:
        i = *(const int *)field;
        fputs(i == OPTION_AUTO ? "auto" : o->choices[i], out);
        break;
    case OPTION_STRING: print_string(field, out); break;
    }
}
