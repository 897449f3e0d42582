/* json_field.h - reading fields of a JSON object with messages that name file, field, found value
 * and what was expected. Internal to checkpoint/.
 *
 * A getter with a missing or null field leaves *out as it is and returns OK (with *found false if
 * asked), unless the field is required. Nested objects carry their path ("rope_scaling.factor").
 */
#ifndef CHECKPOINT_JSON_FIELD_H
#define CHECKPOINT_JSON_FIELD_H

#include "core/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json_source {
    const char *file;   /* as it is printed */
    const char *prefix; /* "" or "rope_scaling." */
    json_t *object;     /* borrowed */
};

/* Parses text that must be an object; the caller json_decref()s *root. */
enum status json_parse_object(const char *file, const char *text, size_t bytes, json_t **root);

/* Reads a whole file of at most `limit` bytes; the caller frees *text (NUL-terminated). */
enum status json_read_file(const char *file, size_t limit, char **text, size_t *bytes);

/* A present, non-null field, or NULL. */
json_t *json_field(const struct json_source *src, const char *name);

/* Records "FILE: FIELD is FOUND, expected EXPECTED". */
enum status json_field_error(const struct json_source *src, const char *name, const char *expected,
                             ...) __attribute__((format(printf, 3, 4)));

enum status json_field_int(const struct json_source *src, const char *name, int64_t min,
                           int64_t max, bool required, int *out);
/* min < value <= max */
enum status json_field_real(const struct json_source *src, const char *name, double min, double max,
                            bool *found, double *out);
enum status json_field_bool(const struct json_source *src, const char *name, bool *out);
/* *out is borrowed from the object. */
enum status json_field_string(const struct json_source *src, const char *name, const char **out);
enum status json_field_object(const struct json_source *src, const char *name, json_t **out);

#endif
