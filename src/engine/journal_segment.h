/* journal_segment.h - checksummed records in numbered segment files; knows nothing of what
 * the records say. Private to the journal.
 *
 * A record is {magic, type, bytes, crc} and then its payload, in the byte order of the host;
 * the CRC-32C covers type, bytes and payload. Writes go through a buffer; a reader first flushes
 * the writer.
 */
#ifndef ENGINE_JOURNAL_SEGMENT_H
#define ENGINE_JOURNAL_SEGMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

enum { SEGMENT_LIMIT = 1 << 30, SEGMENTS_MAX = 1 << 20, RECORD_MAX = 1 << 30 };

/* Where a record is: segment << 40 | offset. */
typedef uint64_t segment_place;
#define SEGMENT_NOWHERE UINT64_MAX

/* One growing payload; the memory is reused. */
struct payload {
    char *data;
    size_t bytes, room;
    bool failed; /* out of memory; everything after is ignored */
};

void payload_put(struct payload *p, const void *data, size_t bytes);
/* bytes of a string and its NUL; NULL = "". */
void payload_put_text(struct payload *p, const char *text);

/* Takes a payload apart; `bad` is set by the first read beyond its end. */
struct cursor {
    const char *at, *end;
    bool bad;
};

void cursor_get(struct cursor *c, void *out, size_t bytes);
/* Points into the payload; "" when it is bad. */
const char *cursor_text(struct cursor *c);
/* n elements in place (alignment: the caller copies), NULL when they do not fit. */
const void *cursor_array(struct cursor *c, size_t n, size_t element);

struct segment_writer {
    const char *dir; /* borrowed */
    int fd;          /* -1: no segment open */
    int number;      /* of the open segment, or of the next */
    int64_t offset;  /* of the next record, buffer included */
    char *buffer;
    size_t used;
    bool dirty;      /* written but not synced */
    bool failed;     /* a write failed: refuse everything */
};

enum status segment_writer_init(struct segment_writer *w, const char *dir, int first_number);
/* Appends one record, *place = where (may be NULL). Starts a new segment when none is open or this
 * one is full. */
enum status segment_append(struct segment_writer *w, uint32_t type, const struct payload *p,
                           segment_place *place);
/* Whether the next append would start a new segment. */
bool segment_writer_fresh(const struct segment_writer *w);
enum status segment_flush(struct segment_writer *w);
enum status segment_sync(struct segment_writer *w);
enum status segment_writer_close(struct segment_writer *w);

struct record {
    uint32_t type;
    size_t bytes;
    const char *payload; /* borrowed from the reader, until its next call */
    segment_place place;
};

/* Sequential and random reader over the segments of one directory. */
struct segment_reader {
    const char *dir; /* borrowed */
    int fd, number;
    int64_t offset, size;
    struct payload buffer;
};

void segment_reader_init(struct segment_reader *r, const char *dir);
void segment_reader_close(struct segment_reader *r);
/* Opens segment `number`; OK and *exists = false when there is none. */
enum status segment_open(struct segment_reader *r, int number, bool *exists);
/* The next record of the open segment; *more = false at its end or at the first bad record (then
 * r->offset < r->size, and the difference is what is lost). want: NULL reads all payloads, else
 * payloads of types for which it returns false are skipped, unchecked, payload = NULL. */
enum status segment_next(struct segment_reader *r, bool (*want)(uint32_t type), struct record *out,
                         bool *more);
/* The record at a place; ERR_INPUT when it is damaged. */
enum status segment_read(struct segment_reader *r, segment_place place, struct record *out);
/* Numbers of the existing segments, ascending: *numbers malloc'ed, *n of them. */
enum status segment_list(const char *dir, int **numbers, int *n);

#endif
