/* disk_format.c - the segment's parts and their checksums. */
#include "kvcache/disk_format.h"

#include <string.h>

static const char header_magic[8] = "MBKVSEG", tail_magic[8] = "MBKVEND";
enum { RECORD_MAGIC = 0x4b56ab01 };

struct header {
    char magic[8];
    uint32_t format, page_tokens;
    uint64_t page_bytes, stride;
    struct hash128 fingerprint;
    uint64_t check; /* of the fields before */
};

struct record_head {
    uint32_t magic, depth;
    struct hash128 hash, parent;
    uint64_t check; /* of everything else of the record: depth to parent, tokens, page */
};

struct tail {
    char magic[8];
    uint64_t table_at, table_check;
    uint32_t n, format;
    uint64_t check; /* of the fields before */
};

static size_t round_up(size_t bytes, size_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

size_t disk_page_at(const struct disk_shape *shape)
{
    return round_up(sizeof(struct record_head) + shape->page_tokens * sizeof(int32_t), 64);
}

size_t disk_stride(const struct disk_shape *shape)
{
    return round_up(disk_page_at(shape) + shape->page_bytes, DISK_BLOCK);
}

uint64_t disk_record_at(const struct disk_shape *shape, uint32_t slot)
{
    return DISK_BLOCK + (uint64_t)slot * disk_stride(shape);
}

static uint64_t check_until(const void *part, size_t bytes)
{
    return hash64(part, bytes, 0x6b7664736b000001u);
}

static struct header make_header(const struct disk_shape *shape)
{
    struct header h;
    memset(&h, 0, sizeof h);
    memcpy(h.magic, header_magic, sizeof h.magic);
    h.format = DISK_FORMAT;
    h.page_tokens = shape->page_tokens;
    h.page_bytes = shape->page_bytes;
    h.stride = disk_stride(shape);
    h.fingerprint = shape->fingerprint;
    h.check = check_until(&h, offsetof(struct header, check));
    return h;
}

void disk_header_put(const struct disk_shape *shape, void *block)
{
    struct header h = make_header(shape);
    memset(block, 0, DISK_BLOCK);
    memcpy(block, &h, sizeof h);
}

bool disk_header_check(const struct disk_shape *shape, const void *block)
{
    struct header h = make_header(shape);
    return memcmp(block, &h, sizeof h) == 0;
}

bool disk_header_get(const void *block, struct disk_shape *shape)
{
    struct header h;
    memcpy(&h, block, sizeof h);
    *shape = (struct disk_shape){h.fingerprint, h.page_tokens, h.page_bytes};
    return memcmp(h.magic, header_magic, sizeof h.magic) == 0 && h.page_tokens <= 1u << 20 &&
           h.page_bytes <= (uint64_t)1 << 40 && disk_header_check(shape, block);
}

/* Of everything before the page but the checksum itself. */
static uint64_t check_head(const struct disk_shape *shape, const void *record)
{
    uint64_t h = hash64(record, offsetof(struct record_head, check), DISK_FORMAT);
    return hash64((const char *)record + sizeof(struct record_head),
                  disk_page_at(shape) - sizeof(struct record_head), h);
}

uint64_t disk_check_piece(uint64_t check, const void *piece, size_t bytes)
{
    return hash64_bulk(piece, bytes, check);
}

static uint64_t check_page(const struct disk_shape *shape, uint64_t check, const void *record)
{
    const char *page = (const char *)record + disk_page_at(shape);
    for (uint64_t at = 0; at < shape->page_bytes; at += DISK_PIECE) {
        uint64_t left = shape->page_bytes - at;
        check = disk_check_piece(check, page + at, left < DISK_PIECE ? left : DISK_PIECE);
    }
    return check;
}

uint64_t disk_record_begin(const struct disk_shape *shape, const struct disk_key *key,
                           const int32_t *tokens, void *record)
{
    struct record_head h;
    memset(&h, 0, sizeof h);
    h.magic = RECORD_MAGIC;
    h.depth = key->depth;
    h.hash = key->hash;
    h.parent = key->parent;
    size_t at = disk_page_at(shape), end = at + shape->page_bytes;
    char *r = record;
    memset(r, 0, at);
    memcpy(r, &h, sizeof h);
    memcpy(r + sizeof h, tokens, shape->page_tokens * sizeof *tokens);
    memset(r + end, 0, disk_stride(shape) - end);
    return check_head(shape, record);
}

void disk_record_end(uint64_t check, void *record)
{
    memcpy((char *)record + offsetof(struct record_head, check), &check, sizeof check);
}

bool disk_record_open(const struct disk_shape *shape, const void *record, struct disk_key *key,
                      const int32_t **tokens, uint64_t *check)
{
    struct record_head h;
    memcpy(&h, record, sizeof h);
    if (h.magic != RECORD_MAGIC) return false;
    *key = (struct disk_key){h.hash, h.parent, h.depth};
    *tokens = (const int32_t *)(const void *)((const char *)record + sizeof h);
    *check = check_head(shape, record);
    return true;
}

bool disk_record_right(uint64_t check, const void *record)
{
    return memcmp((const char *)record + offsetof(struct record_head, check), &check,
                  sizeof check) == 0;
}

void disk_record_put(const struct disk_shape *shape, const struct disk_key *key,
                     const int32_t *tokens, void *record)
{
    uint64_t check = disk_record_begin(shape, key, tokens, record);
    disk_record_end(check_page(shape, check, record), record);
}

bool disk_record_get(const struct disk_shape *shape, const void *record, struct disk_key *key,
                     const int32_t **tokens)
{
    uint64_t check;
    return disk_record_open(shape, record, key, tokens, &check) &&
           disk_record_right(check_page(shape, check, record), record);
}

size_t disk_table_bytes(uint32_t n)
{
    return round_up(n * sizeof(struct disk_row) + sizeof(struct tail), DISK_BLOCK);
}

void disk_table_put(const struct disk_row *rows, uint32_t n, uint64_t file_at, void *out)
{
    size_t bytes = disk_table_bytes(n);
    struct tail t;
    memset(&t, 0, sizeof t);
    memset(out, 0, bytes);
    memcpy(out, rows, n * sizeof *rows);
    memcpy(t.magic, tail_magic, sizeof t.magic);
    t.format = DISK_FORMAT;
    t.table_at = file_at;
    t.table_check = check_until(out, n * sizeof *rows);
    t.n = n;
    t.check = check_until(&t, offsetof(struct tail, check));
    memcpy((char *)out + bytes - sizeof t, &t, sizeof t);
}

bool disk_tail_get(const void *last, uint64_t file_bytes, uint64_t *table_at, uint32_t *n)
{
    struct tail t;
    memcpy(&t, (const char *)last + DISK_BLOCK - sizeof t, sizeof t);
    if (memcmp(t.magic, tail_magic, sizeof t.magic) != 0 || t.format != DISK_FORMAT ||
        t.check != check_until(&t, offsetof(struct tail, check)) ||
        t.table_at + disk_table_bytes(t.n) != file_bytes)
        return false;
    *table_at = t.table_at;
    *n = t.n;
    return true;
}

const struct disk_row *disk_table_get(const void *table, uint32_t n)
{
    struct tail t;
    memcpy(&t, (const char *)table + disk_table_bytes(n) - sizeof t, sizeof t);
    if (t.n != n || t.table_check != check_until(table, n * sizeof(struct disk_row))) return NULL;
    return table;
}
