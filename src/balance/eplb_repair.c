/* eplb_repair.c - removes duplicates by swaps: an extra copy of an expert on a rank changes
 * places with an item of a rank that lacks the expert, such that neither rank gains a duplicate;
 * among all such items the one whose load is nearest, then the lowest slot. Every swap removes a
 * duplicate and adds none, so it ends. Should no swap be possible, the node is dealt anew: items
 * sorted by expert go round the ranks, which keeps copies apart because there are at most as
 * many as ranks.
 */
#include "balance/eplb_repair.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct repair {
    int *slot_item; /* [ranks * per_rank] */
    const int *item_expert;
    const float *item_load;
    int ranks, per_rank;
};

static int copies_on(const struct repair *r, int rank, int expert)
{
    int n = 0;
    for (int i = 0; i < r->per_rank; i++)
        n += r->item_expert[r->slot_item[rank * r->per_rank + i]] == expert;
    return n;
}

/* The slot to swap with, -1 if there is none. */
static int find_partner(const struct repair *r, int slot)
{
    int rank = slot / r->per_rank, item = r->slot_item[slot], best = -1;
    int expert = r->item_expert[item];
    float best_gap = 0;
    for (int other = 0; other < r->ranks; other++) {
        if (other == rank || copies_on(r, other, expert)) continue;
        for (int s = other * r->per_rank; s < (other + 1) * r->per_rank; s++) {
            int theirs = r->slot_item[s];
            if (copies_on(r, rank, r->item_expert[theirs])) continue;
            float gap = fabsf(r->item_load[theirs] - r->item_load[item]);
            if (best < 0 || gap < best_gap) {
                best = s;
                best_gap = gap;
            }
        }
    }
    return best;
}

static enum status deal_anew(const struct repair *r, int experts)
{
    int n = r->ranks * r->per_rank, dealt = 0;
    int *fresh = malloc((size_t)n * sizeof *fresh);
    if (!fresh) return error_set(ERR_RESOURCE, "no memory to place %d experts", n);
    for (int e = 0; e < experts; e++)
        for (int item = 0; item < n; item++)
            if (r->item_expert[item] == e) {
                fresh[dealt % r->ranks * r->per_rank + dealt / r->ranks] = item;
                dealt++;
            }
    memcpy(r->slot_item, fresh, (size_t)n * sizeof *fresh);
    free(fresh);
    return OK;
}

enum status eplb_repair(int *slot_item, const int *item_expert, const float *item_load, int ranks,
                        int per_rank, int experts)
{
    struct repair r = {slot_item, item_expert, item_load, ranks, per_rank};
    for (int pass = 0; pass < 2; pass++) {
        bool stuck = false;
        for (int slot = 0; slot < ranks * per_rank && !stuck; slot++) {
            if (copies_on(&r, slot / per_rank, item_expert[slot_item[slot]]) < 2) continue;
            int partner = find_partner(&r, slot);
            stuck = partner < 0;
            if (stuck) break;
            int item = slot_item[slot];
            slot_item[slot] = slot_item[partner];
            slot_item[partner] = item;
        }
        if (!stuck) return OK;
        TRY(deal_anew(&r, experts));
    }
    return error_set(ERR_BUG, "expert placement: an expert has more replicas than ranks");
}
