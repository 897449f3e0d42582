/* expert_slots.c - see expert_slots.h. */
#include "config/expert_slots.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

bool expert_slots_legal(int experts, int redundant, int ep)
{
    return ep >= 1 && redundant >= 0 &&
           ((int64_t)experts + redundant) % ep == 0 && /* the same slots on every rank */
           redundant <= (int64_t)experts * (ep - 1);   /* at most one replica a rank */
}

int expert_slots_auto(int experts, int ep)
{
    if (ep <= 1 || experts == 0) return 0;
    int wanted = experts / 8 < 32 ? experts / 8 : 32;
    return wanted + (ep - (experts + wanted) % ep) % ep;
}

/* Adds a number to a list; false, and " ..." instead, when it is full. */
static bool add(char *text, size_t bytes, int number)
{
    size_t used = strlen(text);
    char one[16];
    int n = snprintf(one, sizeof one, "%s%d", used ? " " : "", number);
    bool fits = used + (size_t)n + sizeof " ..." <= bytes;
    if (fits)
        memcpy(text + used, one, (size_t)n + 1);
    else if (used + sizeof " ..." <= bytes)
        memcpy(text + used, " ...", sizeof " ...");
    return fits;
}

void expert_slots_list(int experts, int redundant, char *text, size_t bytes)
{
    text[0] = '\0';
    for (int ep = 1; ep <= experts + redundant; ep++)
        if (expert_slots_legal(experts, redundant, ep) && !add(text, bytes, ep)) return;
}

void expert_slots_redundant(int experts, int ep, char *text, size_t bytes)
{
    enum { MOST = 6 };
    text[0] = '\0';
    for (int r = 0, n = 0; r <= (int64_t)experts * (ep - 1); r++) {
        if (!expert_slots_legal(experts, r, ep)) continue;
        if (n++ == MOST) {
            snprintf(text + strlen(text), bytes - strlen(text), " ...");
            return;
        }
        if (!add(text, bytes, r)) return;
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
