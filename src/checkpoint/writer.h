/* writer.h - writes tensors as one .safetensors file or as shards with an index.
 *
 * Declare every tensor, begin (headers are laid out and files created under temporary names), put
 * bytes in any order and from any thread, finish (files and index get their names, one rename
 * each). Until finish an existing checkpoint in the directory stays as it is. Shards hold
 * consecutive tensors of about equal bytes; inside a shard wider element types come first, so
 * that all data is aligned without gaps; bytes never put are zero.
 *
 * The writer owns its temporary files: writer_close removes what finish did not name.
 */
#ifndef CHECKPOINT_WRITER_H
#define CHECKPOINT_WRITER_H

#include "checkpoint/safetensors.h"
#include "core/status.h"

struct writer;

/* Creates the directory if need be (its parent must exist). */
enum status writer_create(const char *dir, struct writer **w);

/* Returns the tensor's number in *id. The name is copied. rank 1 or 2. */
enum status writer_declare(struct writer *w, const char *name, enum tensor_dtype dtype, int rank,
                           const int64_t *shape, int *id);

/* 1 <= shards <= declared tensors. */
enum status writer_begin(struct writer *w, int shards);

/* Bytes of a tensor from `offset` on. Thread-safe; writes of different ranges may overlap in
 * time. */
enum status writer_put(struct writer *w, int id, size_t offset, const void *data, size_t bytes);

/* Removes model*.safetensors and index of an earlier checkpoint and names the new files. */
enum status writer_finish(struct writer *w);
void writer_close(struct writer *w); /* NULL is fine */

size_t writer_bytes(const struct writer *w); /* data declared so far */

/* DIR/NAME with these bytes, by a temporary file and a rename. */
enum status writer_text_file(const char *dir, const char *name, const char *text);

#endif
