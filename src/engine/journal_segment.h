/* journal_segment.h - checksummed records in numbered segment files; knows nothing of what
 * the records say. Private to the journal.
 *
 * A record is {magic, type, bytes, crc} and then its payload, in the byte order of the host;
 * the CRC-32C starts from the journal's own number (0 for the record that says this number) and
 * covers type, bytes and payload: what a disk kept of another journal is never taken for one of
 * ours. Writes go through a buffer; a reader first flushes the writer.
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
    uint32_t id; /* the journal's number */
    bool dirty;  /* written but not synced */
    bool failed; /* a write failed: refuse everything */
};

enum status segment_writer_init(struct segment_writer *w, const char *dir, int first_number);
/* Appends one record, *place = where (may be NULL). Starts a new segment when none is open or this
 * one is full. */
/* `anyone`: readable without the journal's number. */
enum status segment_append(struct segment_writer *w, uint32_t type, bool anyone,
                           const struct payload *p, segment_place *place);
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

/* Sequential and random reader over the segments of one directory. It holds a window of the open
 * segment, long for sequential and short for random reading. */
struct segment_reader {
    const char *dir; /* borrowed */
    int fd, number;
    int64_t offset, size;
    int64_t bad;           /* bytes of the open segment that held no good record, so far */
    uint32_t id;           /* the journal's number, as soon as it is known */
    struct payload window; /* bytes from window_at on */
    int64_t window_at;
    struct payload record; /* the last one's payload, aligned for what is in it */
};

void segment_reader_init(struct segment_reader *r, const char *dir);
void segment_reader_close(struct segment_reader *r);
/* Opens segment `number`; OK and *exists = false when there is none. */
enum status segment_open(struct segment_reader *r, int number, bool *exists);
/* The next good record of the open segment; *more = false at its end. Bytes that are no good record
 * are passed over up to the next one, and counted in r->bad. want: NULL checks all payloads, else
 * those of types for which it returns false are skipped, unchecked, payload = NULL. */
enum status segment_next(struct segment_reader *r, bool (*want)(uint32_t type), struct record *out,
                         bool *more);
/* The record at a place; ERR_INPUT when it is damaged. */
enum status segment_read(struct segment_reader *r, segment_place place, struct record *out);
/* Numbers of the existing segments, ascending: *numbers malloc'ed, *n of them. */
enum status segment_list(const char *dir, int **numbers, int *n);

#endif
