/* checkpoint_pack.c - the finished index of a checkpoint as one block of bytes without pointers.
 *
 * With hundreds of ranks on a host, reading the headers once and looking at the copy saves each of
 * the others the parsing and the memory of names and lookup table. What a rank still makes for
 * itself are its mappings and the views into them.
 *
 * Layout, every part on 8 bytes: header, files, tensors, lookup slots, text (NUL-terminated).
 * It never leaves the machines of one job, so it holds the host's own struct model_config.
 */
#include "checkpoint/checkpoint.h"

#include "checkpoint/checkpoint_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PACK_MAGIC UINT64_C(0x6b6370786564696d)
enum { PACK_VERSION = 1 };

struct pack_header {
    uint64_t magic;
    uint32_t version;
    uint32_t config_bytes; /* sizeof config: another build's would differ */
    uint64_t bytes;        /* of the whole blob */
    uint64_t files, tensors, slots;
    uint64_t file_at, tensor_at, slot_at, text_at; /* from the blob's start */
    uint64_t dir;                                  /* as all texts: from text_at */
    struct model_config config;
};

struct pack_file {
    uint64_t path, bytes, header_bytes, tensors;
};

struct pack_tensor {
    uint64_t name, offset, bytes; /* offset: from the file's start */
    int64_t shape[TENSOR_MAX_RANK];
    uint32_t file;
    uint16_t dtype, rank;
};

static uint64_t round8(uint64_t n)
{
    return (n + 7) & ~(uint64_t)7;
}

/* ---- packing -------------------------------------------------------------------------------- */

/* Where everything goes. */
static void lay_out(const struct checkpoint *ck, struct pack_header *h)
{
    uint64_t text = strlen(ck->dir) + 1;
    for (int f = 0; f < ck->files; f++) text += strlen(ck->file[f].path) + 1;
    for (int i = 0; i < ck->tensors; i++) text += strlen(ck->tensor[i].name) + 1;
    *h = (struct pack_header){
        .magic = PACK_MAGIC,
        .version = PACK_VERSION,
        .config_bytes = sizeof h->config,
        .files = (uint64_t)ck->files,
        .tensors = (uint64_t)ck->tensors,
        .slots = ck->slot_mask + 1,
        .config = ck->config,
    };
    h->file_at = round8(sizeof *h);
    h->tensor_at = h->file_at + h->files * sizeof(struct pack_file);
    h->slot_at = h->tensor_at + h->tensors * sizeof(struct pack_tensor);
    h->text_at = round8(h->slot_at + h->slots * sizeof(uint32_t));
    h->bytes = h->text_at + text;
}

/* Appends a text and says where it lies. */
static uint64_t put_text(uint8_t *blob, const struct pack_header *h, uint64_t *end, const char *s)
{
    uint64_t at = *end;
    size_t n = strlen(s) + 1;
    memcpy(blob + h->text_at + at, s, n);
    *end = at + n;
    return at;
}

enum status checkpoint_pack(const struct checkpoint *ck, void **blob, size_t *bytes)
{
    struct pack_header h;
    uint64_t text = 0;
    lay_out(ck, &h);
    uint8_t *out = calloc(1, h.bytes);
    if (!out) return error_set(ERR_RESOURCE, "%s: no memory to copy the list of tensors", ck->dir);
    struct pack_file *file = (struct pack_file *)(out + h.file_at);
    struct pack_tensor *tensor = (struct pack_tensor *)(out + h.tensor_at);
    const struct tensor_view *t = ck->tensor;
    h.dir = put_text(out, &h, &text, ck->dir);
    for (int f = 0; f < ck->files; f++) {
        const struct safetensors *st = &ck->file[f];
        file[f] = (struct pack_file){.path = put_text(out, &h, &text, st->path),
                                     .bytes = st->map_bytes,
                                     .header_bytes = st->header_bytes,
                                     .tensors = (uint64_t)st->count};
        for (int i = 0; i < st->count; i++, t++, tensor++) {
            *tensor = (struct pack_tensor){.name = put_text(out, &h, &text, t->name),
                                           .offset = (uint64_t)((const uint8_t *)t->data - st->map),
                                           .bytes = t->bytes,
                                           .file = (uint32_t)f,
                                           .dtype = (uint16_t)t->dtype,
                                           .rank = (uint16_t)t->rank};
            memcpy(tensor->shape, t->shape, sizeof tensor->shape);
        }
    }
    memcpy(out + h.slot_at, ck->slot, h.slots * sizeof *ck->slot);
    memcpy(out, &h, sizeof h);
    *blob = out;
    *bytes = h.bytes;
    return OK;
}

/* ---- unpacking ------------------------------------------------------------------------------ */

static enum status damaged(const char *what)
{
    return error_set(ERR_BUG, "checkpoint: the shared list of tensors is damaged: %s", what);
}

/* Whether `count` items of `size` bytes from `at` end by `end`. */
static bool fits(uint64_t at, uint64_t count, uint64_t size, uint64_t end)
{
    return at % 8 == 0 && at <= end && count <= (end - at) / size;
}

static enum status check_header(const struct pack_header *h, const uint8_t *blob, size_t bytes)
{
    if ((uintptr_t)blob % 8 != 0) return damaged("it is not on an 8-byte boundary");
    if (bytes < sizeof *h || h->magic != PACK_MAGIC) return damaged("no such list begins here");
    if (h->version != PACK_VERSION || h->config_bytes != sizeof h->config)
        return damaged("another version of the program wrote it");
    if (h->bytes != bytes) return damaged("it is cut short");
    if (!fits(h->file_at, h->files, sizeof(struct pack_file), bytes) ||
        !fits(h->tensor_at, h->tensors, sizeof(struct pack_tensor), bytes) ||
        !fits(h->slot_at, h->slots, sizeof(uint32_t), bytes) || h->files >= INT32_MAX ||
        h->tensors >= INT32_MAX || h->text_at >= bytes || h->dir >= bytes - h->text_at ||
        blob[bytes - 1] != 0)
        return damaged("a part lies outside");
    return OK;
}

/* A lookup that finds nothing ends at an empty slot: there must be one. */
static enum status check_slots(const struct pack_header *h, const uint32_t *slot)
{
    uint32_t top = 0;
    uint64_t used = 0;
    if (h->slots == 0 || (h->slots & (h->slots - 1)) != 0) return damaged("lookup table");
    for (uint64_t i = 0; i < h->slots; i++) {
        top = slot[i] > top ? slot[i] : top;
        used += slot[i] != 0;
    }
    return top > h->tensors || used != h->tensors || used == h->slots ? damaged("lookup table")
                                                                      : OK;
}

static enum status map_files(struct checkpoint *ck, const struct pack_header *h,
                             const struct pack_file *file, const char *text, uint64_t text_bytes)
{
    uint64_t tensors = 0;
    ck->file = calloc(h->files + 1, sizeof *ck->file);
    if (!ck->file) return error_set(ERR_RESOURCE, "%s: no memory for the list of files", ck->dir);
    for (uint64_t f = 0; f < h->files; f++) {
        if (file[f].path >= text_bytes || file[f].header_bytes > file[f].bytes ||
            file[f].tensors > h->tensors - tensors)
            return damaged("list of files");
        struct safetensors *st = &ck->file[f];
        TRY(safetensors_map(text + file[f].path, st));
        ck->files++;
        if (st->map_bytes != file[f].bytes)
            return error_set(ERR_INPUT,
                             "%s: %zu bytes, expected the %llu that another rank found: the file "
                             "changed while the job started, or differs between hosts",
                             st->path, st->map_bytes, (unsigned long long)file[f].bytes);
        st->header_bytes = file[f].header_bytes;
        st->count = (int)file[f].tensors;
        tensors += file[f].tensors;
    }
    return tensors == h->tensors ? OK : damaged("list of files");
}

/* What checkpoint_open promises of a view, again. */
static bool tensor_ok(const struct pack_tensor *p, const struct safetensors *st,
                      uint64_t text_bytes)
{
    if (p->dtype >= TENSOR_DTYPES || p->rank > TENSOR_MAX_RANK || p->name >= text_bytes)
        return false;
    uint64_t n = tensor_dtype_bytes((enum tensor_dtype)p->dtype);
    for (int i = 0; i < TENSOR_MAX_RANK; i++)
        if (p->shape[i] < 0 || __builtin_mul_overflow(n, (uint64_t)p->shape[i], &n)) return false;
    return n == p->bytes && p->offset >= st->header_bytes && p->offset <= st->map_bytes &&
           p->bytes <= st->map_bytes - p->offset;
}

static enum status make_views(struct checkpoint *ck, const struct pack_tensor *p, const char *text,
                              uint64_t text_bytes)
{
    /* Not calloc: every byte that anybody reads is written just below. */
    struct tensor_view *v = malloc(((size_t)ck->tensors + 1) * sizeof *v);
    if (!v) return error_set(ERR_RESOURCE, "%s: no memory for the list of tensors", ck->dir);
    ck->tensor = v;
    for (int f = 0; f < ck->files; f++) {
        const struct safetensors *st = &ck->file[f];
        for (int i = 0; i < st->count; i++, p++, v++) {
            if (p->file != (uint32_t)f || !tensor_ok(p, st, text_bytes))
                return damaged("list of tensors");
            *v = (struct tensor_view){.name = text + p->name,
                                      .file = st->path,
                                      .dtype = (enum tensor_dtype)p->dtype,
                                      .rank = p->rank,
                                      .data = st->map + p->offset,
                                      .bytes = p->bytes};
            memcpy(v->shape, p->shape, sizeof v->shape);
        }
    }
    return OK;
}

static enum status unpack_parts(struct checkpoint *ck, const uint8_t *blob)
{
    const struct pack_header *h = (const void *)blob;
    const char *text = (const char *)blob + h->text_at;
    uint64_t text_bytes = h->bytes - h->text_at;
    ck->packed = true;
    ck->config = h->config;
    ck->tensors = (int)h->tensors;
    ck->slot = (const void *)(blob + h->slot_at);
    ck->slot_mask = h->slots - 1;
    ck->dir = strdup(text + h->dir);
    if (!ck->dir) return error_set(ERR_RESOURCE, "checkpoint: no memory for the list of files");
    TRY(check_slots(h, ck->slot));
    TRY(map_files(ck, h, (const void *)(blob + h->file_at), text, text_bytes));
    return make_views(ck, (const void *)(blob + h->tensor_at), text, text_bytes);
}

enum status checkpoint_unpack(const void *blob, size_t bytes, struct checkpoint **out)
{
    TRY(check_header(blob, blob, bytes));
    struct checkpoint *ck = calloc(1, sizeof *ck);
    if (!ck) return error_set(ERR_RESOURCE, "checkpoint: no memory for the list of files");
    enum status st = unpack_parts(ck, blob);
    if (st == OK)
        *out = ck;
    else
        checkpoint_close(ck);
    return st;
}
