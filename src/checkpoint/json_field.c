/* json_field.c - see json_field.h. */
#include "checkpoint/json_field.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum status json_parse_object(const char *file, const char *text, size_t bytes, json_t **root)
{
    json_error_t err;
    json_t *r = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &err);
    if (!r)
        return error_set(ERR_INPUT, "%s: line %d column %d: not JSON: %s", file, err.line,
                         err.column, err.text);
    if (!json_is_object(r)) {
        json_decref(r);
        return error_set(ERR_INPUT, "%s: the top level is not a JSON object", file);
    }
    *root = r;
    return OK;
}

enum status json_read_file(const char *file, size_t limit, char **text, size_t *bytes)
{
    enum status st = OK;
    char *buf = NULL;
    FILE *f = fopen(file, "rb");
    if (!f) return error_set(ERR_INPUT, "%s: cannot open: %s", file, strerror(errno));
    long size = -1;
    if (fseek(f, 0, SEEK_END) == 0) size = ftell(f);
    if (size < 0 || fseek(f, 0, SEEK_SET) != 0) {
        st = error_set(ERR_INPUT, "%s: not a regular file", file);
        goto done;
    }
    if ((unsigned long)size > limit) {
        st = error_set(ERR_INPUT, "%s: %ld bytes, expected at most %zu", file, size, limit);
        goto done;
    }
    buf = malloc((size_t)size + 1);
    if (!buf) {
        st = error_set(ERR_RESOURCE, "%s: no memory for %ld bytes", file, size);
        goto done;
    }
    if (fread(buf, 1, (size_t)size, f) != (size_t)size) {
        st = error_set(ERR_INPUT, "%s: read error: %s", file, strerror(errno));
        goto done;
    }
    buf[size] = '\0';
    *text = buf;
    *bytes = (size_t)size;
    buf = NULL;
done:
    free(buf);
    fclose(f);
    return st;
}

json_t *json_field(const struct json_source *src, const char *name)
{
    json_t *v = json_object_get(src->object, name);
    return v && !json_is_null(v) ? v : NULL;
}

enum status json_field_error(const struct json_source *src, const char *name, const char *expected,
                             ...)
{
    char want[256];
    va_list ap;
    va_start(ap, expected);
    vsnprintf(want, sizeof want, expected, ap);
    va_end(ap);

    json_t *v = json_object_get(src->object, name);
    char *found = v ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    enum status st;
    if (!v)
        st = error_set(ERR_INPUT, "%s: %s%s is missing, expected %s", src->file, src->prefix, name,
                       want);
    else
        st = error_set(ERR_INPUT, "%s: %s%s is %.80s%s, expected %s", src->file, src->prefix, name,
                       found ? found : "?", found && strlen(found) > 80 ? "..." : "", want);
    free(found);
    return st;
}

enum status json_field_int(const struct json_source *src, const char *name, int64_t min,
                           int64_t max, bool required, int *out)
{
    json_t *v = json_field(src, name);
    if (!v && !required) return OK;
    if (!v || !json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max)
        return json_field_error(src, name, "an integer from %lld to %lld", (long long)min,
                                (long long)max);
    *out = (int)json_integer_value(v);
    return OK;
}

enum status json_field_real(const struct json_source *src, const char *name, double min, double max,
                            bool *found, double *out)
{
    json_t *v = json_field(src, name);
    if (found) *found = v != NULL;
    if (!v) return OK;
    double x = json_number_value(v);
    if (!json_is_number(v) || !isfinite(x) || x <= min || x > max)
        return json_field_error(src, name, "a number above %g, at most %g", min, max);
    *out = x;
    return OK;
}

enum status json_field_bool(const struct json_source *src, const char *name, bool *out)
{
    json_t *v = json_field(src, name);
    if (!v) return OK;
    if (!json_is_boolean(v)) return json_field_error(src, name, "true or false");
    *out = json_is_true(v);
    return OK;
}

enum status json_field_string(const struct json_source *src, const char *name, const char **out)
{
    json_t *v = json_field(src, name);
    if (!v) return OK;
    if (!json_is_string(v)) return json_field_error(src, name, "a string");
    *out = json_string_value(v);
    return OK;
}

enum status json_field_object(const struct json_source *src, const char *name, json_t **out)
{
    json_t *v = json_field(src, name);
    if (!v) return OK;
    if (!json_is_object(v)) return json_field_error(src, name, "an object");
    *out = v;
    return OK;
}
