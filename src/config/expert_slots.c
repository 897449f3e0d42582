/* expert_slots.c - see expert_slots.h. */
#include "config/expert_slots.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

bool expert_slots_legal(int experts, int redundant, int ep)
{
    return ep >= 1 && redundant >= 0 &&
           ((int64_t)experts + redundant) % ep == 0 &&  /* the same slots on every rank */
           redundant <= (int64_t)experts * (ep - 1);    /* at most one replica a rank */
}

int expert_slots_auto(int experts, int ep)
{
    if (ep <= 1 || experts == 0) return 0;
    int wanted = experts / 8 < 32 ? experts / 8 : 32;
    return wanted + (ep - (experts + wanted) % ep) % ep;
}

void expert_slots_list(int experts, int redundant, char *text, size_t bytes)
{
    size_t used = 0;
    if (bytes > 0) text[0] = '\0';
    for (int ep = 1; ep <= experts + redundant; ep++) {
        if (!expert_slots_legal(experts, redundant, ep)) continue;
        char one[16];
        int n = snprintf(one, sizeof one, "%s%d", used ? " " : "", ep);
        if (used + (size_t)n + sizeof " ..." > bytes) {
            if (used + sizeof " ..." <= bytes) memcpy(text + used, " ...", sizeof " ...");
            return;
        }
        memcpy(text + used, one, (size_t)n + 1);
        used += (size_t)n;
    }
}

void expert_slots_nearest(int slots, int ep, int *below, int *above)
{
    *below = *above = 0;
    for (int e = ep < slots ? ep : slots; e >= 1 && !*below; e--)
        if (slots % e == 0) *below = e;
    for (int e = ep > 1 ? ep : 1; e <= slots && !*above; e++)
        if (slots % e == 0) *above = e;
}
