/* unit_load.h - how often each expert was chosen, for placement: from /experts/load of a run's
 * results file, or from a text file of one number an expert.
 *
 * The caller owns the array and frees it. Errors: ERR_INPUT naming the file and what it lacks.
 */
#ifndef CLUSTER_UNIT_LOAD_H
#define CLUSTER_UNIT_LOAD_H

#include "checkpoint/model_config.h"
#include "core/status.h"

/* load: [layers, experts], layers without a single token left out. PATH ends in .h5: a results
 * file; its model must have as many experts, and at most as many layers. Else text: numbers
 * separated by blanks, commas or lines, # starts a comment; layers is 1. */
enum status unit_load_read(const char *path, const struct model_config *model, float **load,
                           int *layers);

#endif
