/* eplb_repair.h - private to balance/: no expert twice on one rank of a node. */
#ifndef BALANCE_EPLB_REPAIR_H
#define BALANCE_EPLB_REPAIR_H

#include "core/status.h"

/* slot_item: [ranks * per_rank] the item in each slot, changed in place; items: expert and load
 * of each. Needs at most `ranks` items of any expert (ERR_BUG otherwise). Lists that already obey
 * are left as they are. */
enum status eplb_repair(int *slot_item, const int *item_expert, const float *item_load, int ranks,
                        int per_rank, int experts);

#endif
