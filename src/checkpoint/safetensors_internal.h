/* safetensors_internal.h - the two ways to read a header; not for other folders. */
#ifndef CHECKPOINT_SAFETENSORS_INTERNAL_H
#define CHECKPOINT_SAFETENSORS_INTERNAL_H

#include "checkpoint/safetensors.h"

/* Lists the tensors of a good header in the usual form (see safetensors_scan.c) into st->tensor,
 * st->names and st->count, in the header's order; needs st->path, map, map_bytes, header_bytes.
 * false: anything unusual or wrong, and nothing is set; then the JSON parser has the word. */
bool safetensors_scan(struct safetensors *st);

/* safetensors_parse without the scan: what it must agree with. */
enum status safetensors_parse_json(const char *path, const void *map, size_t bytes,
                                   struct safetensors *st);

#endif
