/* disk_format.h - what a segment file of the disk tier looks like, as bytes in memory; no I/O.
 *
 *   block 0           header: whose pages these are (fingerprint, sizes), padded to DISK_BLOCK
 *   records           slot s at DISK_BLOCK + s * stride: head, token ids, page, padding; stride is
 *                     a multiple of DISK_BLOCK, so that direct I/O reads a page in one piece
 *   table, tail       only in a sealed segment: a table row per page, then a tail in the last bytes
 *                     of the last block, which says where the table is
 *
 * Every part has a checksum of its own (core/hash.h). A segment without a readable tail is read
 * record by record; a record whose checksum is wrong is not there. Everything is little-endian, as
 * the machines that share the folder are.
 */
#ifndef KVCACHE_DISK_FORMAT_H
#define KVCACHE_DISK_FORMAT_H

#include "core/hash.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { DISK_BLOCK = 4096, DISK_FORMAT = 1 };

/* What makes pages comparable. */
struct disk_shape {
    struct hash128 fingerprint; /* of model, numerics, kernels: all that decides a page's bits */
    uint32_t page_tokens;
    uint64_t page_bytes; /* of all layers */
};

/* Identity of a page: its own hash, that of the page before it, its number in the prompt. */
struct disk_key {
    struct hash128 hash, parent;
    uint32_t depth;
};

/* A row of a sealed segment's table. */
struct disk_row {
    struct disk_key key;
    uint32_t slot;
    uint32_t uses; /* times its writer's job used it, at least 1 */
};

size_t disk_stride(const struct disk_shape *shape);
/* Where in a record the page itself begins; a multiple of 64. */
size_t disk_page_at(const struct disk_shape *shape);
uint64_t disk_record_at(const struct disk_shape *shape, uint32_t slot);

/* block: DISK_BLOCK bytes. */
void disk_header_put(const struct disk_shape *shape, void *block);
/* False when it is not a header of exactly this shape. */
bool disk_header_check(const struct disk_shape *shape, const void *block);
/* The shape that a header states, of whichever model; false when it is no header. */
bool disk_header_get(const void *block, struct disk_shape *shape);

/* The checksum of a record goes on piece by piece, so that a page is copied and checked while the
 * piece is in the cache: DISK_PIECE bytes each from the page's beginning, the last one shorter. */
enum { DISK_PIECE = 32768 };
/* Fills a record of stride bytes but for the page and the checksum, and says what the checksum
 * begins with. */
uint64_t disk_record_begin(const struct disk_shape *shape, const struct disk_key *key,
                           const int32_t *tokens, void *record);
uint64_t disk_check_piece(uint64_t check, const void *piece, size_t bytes);
void disk_record_end(uint64_t check, void *record);
/* The head of a record that was read; *check: what the checksum begins with. False when there is no
 * head. */
bool disk_record_open(const struct disk_shape *shape, const void *record, struct disk_key *key,
                      const int32_t **tokens, uint64_t *check);
bool disk_record_right(uint64_t check, const void *record);

/* All of it at once. The page of stride bytes' record is already in place. */
void disk_record_put(const struct disk_shape *shape, const struct disk_key *key,
                     const int32_t *tokens, void *record);
/* True when the checksum is right; the key goes to *key, *tokens points into the record. */
bool disk_record_get(const struct disk_shape *shape, const void *record, struct disk_key *key,
                     const int32_t **tokens);

/* Bytes of table and tail for n rows, a multiple of DISK_BLOCK. */
size_t disk_table_bytes(uint32_t n);
/* file_at: where in the file the table will begin. */
void disk_table_put(const struct disk_row *rows, uint32_t n, uint64_t file_at, void *out);
/* last: the file's last block. Where the table begins and how many rows it has. */
bool disk_tail_get(const void *last, uint64_t file_bytes, uint64_t *table_at, uint32_t *n);
/* table: disk_table_bytes(n) bytes from table_at. NULL when the checksum is wrong. */
const struct disk_row *disk_table_get(const void *table, uint32_t n);

#endif
