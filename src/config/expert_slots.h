/* expert_slots.h - how many ranks may share a layer's experts: slots = experts + redundant experts,
 * the same number on every rank, no expert twice on one rank. Arithmetic only; used by whatever
 * checks, places or simulates expert-parallel units.
 */
#ifndef CONFIG_EXPERT_SLOTS_H
#define CONFIG_EXPERT_SLOTS_H

#include <stdbool.h>
#include <stddef.h>

/* (experts + redundant) mod ep = 0 and redundant <= experts * (ep - 1). */
bool expert_slots_legal(int experts, int redundant, int ep);

/* redundant_experts: auto: 0 at ep 1 or without experts, else the smallest legal number of at least
 * min(32, experts / 8). */
int expert_slots_auto(int experts, int ep);

/* "1 2 3 4 6 8": the sizes that are legal with that many redundant experts, cut with " ..." where
 * text is full. */
void expert_slots_list(int experts, int redundant, char *text, size_t bytes);

/* "0 32 64 ...": the smallest numbers of redundant experts that are legal at that size. */
void expert_slots_redundant(int experts, int ep, char *text, size_t bytes);

/* The largest divisor of slots at or below ep and the smallest at or above it, 0 where there is
 * none. */
void expert_slots_nearest(int slots, int ep, int *below, int *above);

#endif
