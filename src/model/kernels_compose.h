/* kernels_compose.h - the table of kernels of an instruction set, from the parts that gemm/,
 * attention/ and moe/ fill. */
#ifndef MODEL_KERNELS_COMPOSE_H
#define MODEL_KERNELS_COMPOSE_H

#include "core/status.h"
#include "device/kernels.h"

/* Of a job file's isa, or when that is negative (auto) the best, what this host is to run.
 * ERR_RESOURCE when it cannot. */
enum status kernels_choose_isa(int wanted, int *isa);

/* ERR_RESOURCE when this host lacks the instructions. */
enum status kernels_compose(enum isa isa, struct kernels *k);

#endif
