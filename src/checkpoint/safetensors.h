/* safetensors.h - one .safetensors file, mapped read-only: its header checked, its tensors listed.
 *
 * A file is trusted in nothing: the header's length, JSON, types, shapes and offsets are checked
 * against each other and the file's size before any tensor is handed out. Errors are ERR_INPUT
 * and name the file and the tensor.
 *
 * struct safetensors owns the mapping, the names and the views; views stay valid until
 * safetensors_close. Data may be unaligned for its type: copy with memcpy.
 */
#ifndef CHECKPOINT_SAFETENSORS_H
#define CHECKPOINT_SAFETENSORS_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum tensor_dtype {
    TENSOR_F32,
    TENSOR_F16,
    TENSOR_BF16,
    TENSOR_E4M3,
    TENSOR_E8M0,
    TENSOR_E5M2,
    TENSOR_F64,
    TENSOR_U8,
    TENSOR_I8,
    TENSOR_BOOL,
    TENSOR_U16,
    TENSOR_I16,
    TENSOR_U32,
    TENSOR_I32,
    TENSOR_U64,
    TENSOR_I64,
    TENSOR_DTYPES
};

/* The file format's spelling: "F32", "BF16", "F8_E4M3", "F8_E8M0" ... */
const char *tensor_dtype_name(enum tensor_dtype t);
int tensor_dtype_parse(const char *name); /* -1: unknown */
size_t tensor_dtype_bytes(enum tensor_dtype t);

enum { TENSOR_MAX_RANK = 4 };

struct tensor_view {
    const char *name; /* borrowed */
    const char *file; /* path, borrowed */
    enum tensor_dtype dtype;
    int rank;
    int64_t shape[TENSOR_MAX_RANK]; /* unused entries are 1 */
    const void *data;               /* `bytes` bytes in the mapping; may be unaligned */
    size_t bytes;
};

struct safetensors {
    char *path;
    int count;
    struct tensor_view *tensor; /* [count], ascending by offset */
    const uint8_t *map;         /* [map_bytes], PROT_READ */
    size_t map_bytes;
    size_t header_bytes; /* 8-byte length + JSON: data starts here */
    char *names;         /* pool behind tensor[].name */
    bool mapped;         /* map is ours to unmap */
};

/* Maps a file of at least 8 bytes and looks no further: no tensors, header_bytes 0. */
enum status safetensors_map(const char *path, struct safetensors *st);

/* Maps and checks a file. */
enum status safetensors_open(const char *path, struct safetensors *st);

/* The same over bytes in memory (tests, fuzzing); `map` is borrowed until safetensors_close. */
enum status safetensors_parse(const char *path, const void *map, size_t bytes,
                              struct safetensors *st);
void safetensors_close(struct safetensors *st);

/* "[256, 7168]" into buf (at least 96 bytes); returns buf. */
const char *tensor_shape_text(int rank, const int64_t *shape, char *buf);

#endif
