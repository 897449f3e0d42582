/* checkpoint.h - a Hugging Face directory: configuration, shards, tensors by name or by role.
 *
 * checkpoint_open() reads config.json, generation_config.json, model.safetensors.index.json or
 * model.safetensors, and every shard's header; weights stay on disk until somebody reads a
 * view. checkpoint_validate() then checks that every tensor the configuration asks for is there
 * with the right shape and type, so that no rank allocates weights for a broken model.
 *
 * A struct checkpoint owns its mappings and names; views borrow from it until checkpoint_close.
 * After opening it is read-only: threads may share it. Errors are ERR_INPUT (the files) or
 * ERR_RESOURCE (cannot map).
 */
#ifndef CHECKPOINT_CHECKPOINT_H
#define CHECKPOINT_CHECKPOINT_H

#include "checkpoint/model_config.h"
#include "checkpoint/names.h"
#include "checkpoint/safetensors.h"
#include "core/hash.h"
#include "core/status.h"

struct checkpoint;

/* Whether the directory holds model.safetensors or its index (else it can only be sized). */
bool checkpoint_has_weights(const char *dir);

/* *ck is set only on OK. */
enum status checkpoint_open(const char *dir, struct checkpoint **ck);
void checkpoint_close(struct checkpoint *ck); /* NULL is fine */

/* A relocatable copy of what checkpoint_open found, so that one process of a host reads the headers
 * and the others only look at its copy: no pointers inside, any process of this same program may
 * map it anywhere. malloc'ed; the caller frees *blob. */
enum status checkpoint_pack(const struct checkpoint *ck, void **blob, size_t *bytes);

/* A working checkpoint from such a copy; reads no header, maps the files itself. Borrows the blob
 * (8-byte aligned, e.g. in shared memory): it must stay, unchanged, until checkpoint_close. Files
 * that are gone or have another size than when they were opened: ERR_INPUT. A blob that is cut,
 * overwritten or another version's: ERR_BUG. */
enum status checkpoint_unpack(const void *blob, size_t bytes, struct checkpoint **ck);

/* Every required tensor: there, shape, type, FP8 scales. Tensors of layers beyond
 * num_hidden_layers and unknown extras are ignored. */
enum status checkpoint_validate(const struct checkpoint *ck);

const struct model_config *checkpoint_config(const struct checkpoint *ck);
const char *checkpoint_dir(const struct checkpoint *ck);

/* All tensors (unsorted order of the files), for listings. */
int checkpoint_tensor_count(const struct checkpoint *ck);
const struct tensor_view *checkpoint_tensor_at(const struct checkpoint *ck, int i);
int checkpoint_file_count(const struct checkpoint *ck);

/* NULL when there is no such tensor; no error is recorded. */
const struct tensor_view *checkpoint_find(const struct checkpoint *ck, const char *name);

/* Copies the view; a missing tensor is ERR_INPUT with a message. */
enum status checkpoint_tensor(const struct checkpoint *ck, const char *name,
                              struct tensor_view *view);

/* A tensor by its place in the model, with its FP8 scales if it has them. */
struct checkpoint_weight {
    struct tensor_view data; /* [n, k] or [n]: F32, F16, BF16, or E4M3 */
    bool fp8;
    struct tensor_view scale; /* fp8: [ceil(n/128), ceil(k/128)], F32 or E8M0 (U8: the same bits) */
};

/* layer, expert: -1 where the role has none. ROLE_HEAD of a tied model is the embedding. */
enum status checkpoint_weight(const struct checkpoint *ck, enum tensor_role role, int layer,
                              int expert, struct checkpoint_weight *w);

/* Elements first .. first + count of a view as FP32 (F32, F16, BF16; E8M0 and U8 as 2^(b-127);
 * E4M3 without its scales). Handles unaligned data. Other types: ERR_BUG. */
enum status tensor_read_f32(const struct tensor_view *view, size_t first, size_t count, float *out);

/* Rows first .. first + rows of a weight [n, k] as FP32 [rows, k], FP8 times its scales. */
enum status checkpoint_weight_rows_f32(const struct checkpoint_weight *w, int64_t first,
                                       int64_t rows, float *out);

/* Identity of the weights: config.json, all safetensors headers (files in name order), and a
 * 4 KiB sample from the middle of every tensor, in name order. Does not depend on the directory's
 * path. Reads about 4 KiB a tensor. */
enum status checkpoint_fingerprint(const struct checkpoint *ck, struct hash128 *fp);

#endif
