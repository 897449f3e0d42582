/* checkpoint_internal.h - what the checkpoint_*.c files share; not for other folders. */
#ifndef CHECKPOINT_CHECKPOINT_INTERNAL_H
#define CHECKPOINT_CHECKPOINT_INTERNAL_H

#include "checkpoint/checkpoint.h"

struct checkpoint {
    char *dir;
    struct model_config config;
    int files;
    struct safetensors *file; /* [files], ascending by name; their tensors have moved to: */
    int tensors;
    struct tensor_view *tensor; /* [tensors], file after file */
    const uint32_t *slot;       /* hash table over names: 1 + index into tensor, 0 empty */
    size_t slot_mask;
    bool packed; /* slot and the tensors' names are borrowed from a blob */
};

#endif
