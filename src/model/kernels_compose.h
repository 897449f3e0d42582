/* kernels_compose.h - the table of kernels of an instruction set, from the parts that gemm/,
 * attention/ and moe/ fill. */
#ifndef MODEL_KERNELS_COMPOSE_H
#define MODEL_KERNELS_COMPOSE_H

#include "core/status.h"
#include "device/kernels.h"

/* ERR_RESOURCE when this host lacks the instructions. */
enum status kernels_compose(enum isa isa, struct kernels *k);

#endif
