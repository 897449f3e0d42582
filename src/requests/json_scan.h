/* json_scan.h - finds members of a JSON object in a line without building a tree, and reads long
 * lists of integers. It never judges a line: on anything unusual it says "not found" and the full
 * parser (jansson) decides. Private to requests/.
 */
#ifndef REQUESTS_JSON_SCAN_H
#define REQUESTS_JSON_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json_slice {
    char *at; /* into the line, borrowed */
    size_t n;
};

/* The value of the first member `key` (written without escapes) of the object that begins the
 * slice, blanks before it allowed. Members behind it are not looked at. */
bool json_member(struct json_slice object, const char *key, struct json_slice *value);

/* What json_ints found. Only the first `cap` numbers are stored; `n` counts all. */
struct json_ints {
    int32_t *values; /* [cap] of the caller */
    int64_t cap, n;
    int64_t bad, bad_at; /* the first number that is no int32 and its index; bad_at -1: none */
};

/* Reads [1, 2, ...] or [[1, 2, ...]] that fills the whole slice. False: it is something else. */
bool json_ints(struct json_slice list, struct json_ints *out);

#endif
