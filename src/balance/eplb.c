/* eplb.c - placement of experts with redundant replicas, layer by layer:
 *   1. groups onto nodes (hierarchical only), 2. extra replicas for the most loaded experts of a
 *   node, 3. replicas onto the node's ranks; then the repair of ranks that got an expert twice.
 * Each step is greedy, the heaviest first. Loads are FP32 and compared in FP32, ties go to the
 * lower index: that is what the published algorithm does, and its results are the test.
 */
#include "balance/eplb.h"

#include "balance/eplb_repair.h"
#include "config/expert_slots.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Scratch of one eplb_place call: one node's view of one layer. */
struct eplb_work {
    int groups, nodes; /* 1, 1 when global */
    int node_experts, node_slots, node_ranks;
    float *group_load; /* [groups] */
    int *group_node;   /* [groups] */
    int *group_at;     /* [groups] place among the node's groups */
    int *member;       /* [experts] the node's expert i is this one; node by node */
    int *node_count;   /* [node_experts] replicas */
    int *item_expert;  /* [node_slots] which of the node's experts the item is */
    int *item_replica; /* [node_slots] which of its replicas */
    float *item_load;  /* [node_slots] */
    int *item_rank;    /* [node_slots] rank inside the node */
    int *item_at;      /* [node_slots] place on the rank */
    int *order;        /* [max(groups, node_slots)] sort scratch */
    float *pack_load;  /* [max(nodes, node_ranks)] */
    int *pack_items;   /* [max(nodes, node_ranks)] */
};

static int imax(int a, int b)
{
    return a > b ? a : b;
}

/* Indices 0..n-1 by falling load, equal loads by rising index (merge sort: stable). */
static void order_by_load(const float *load, int n, int *order, int *scratch)
{
    for (int i = 0; i < n; i++) order[i] = i;
    for (int width = 1; width < n; width *= 2) {
        for (int lo = 0; lo < n; lo += 2 * width) {
            int mid = lo + width < n ? lo + width : n, hi = mid + width < n ? mid + width : n;
            int a = lo, b = mid;
            for (int i = lo; i < hi; i++)
                scratch[i] = a < mid && (b >= hi || load[order[a]] >= load[order[b]]) ? order[a++]
                                                                                      : order[b++];
        }
        memcpy(order, scratch, (size_t)n * sizeof *order);
    }
}

/* n items into equal packs: the heaviest item left goes to the lightest pack with room. */
static void pack_balanced(struct eplb_work *w, const float *load, int n, int packs, int *pack_of,
                          int *at)
{
    int room = n / packs;
    if (room == 1) { /* as published: item i is pack i, whatever the loads */
        for (int i = 0; i < n; i++) {
            pack_of[i] = i;
            at[i] = 0;
        }
        return;
    }
    order_by_load(load, n, w->order, at);
    for (int p = 0; p < packs; p++) {
        w->pack_load[p] = 0;
        w->pack_items[p] = 0;
    }
    for (int i = 0; i < n; i++) {
        int item = w->order[i], best = -1;
        for (int p = 0; p < packs; p++)
            if (w->pack_items[p] < room && (best < 0 || w->pack_load[p] < w->pack_load[best]))
                best = p;
        pack_of[item] = best;
        w->pack_load[best] += load[item];
        w->pack_items[best]++;
    }
    /* `at` served as the sort's scratch; places in the order of packing. */
    for (int p = 0; p < packs; p++) w->pack_items[p] = 0;
    for (int i = 0; i < n; i++) at[w->order[i]] = w->pack_items[pack_of[w->order[i]]]++;
}

static void groups_to_nodes(struct eplb_work *w, const float *load, int experts)
{
    int size = experts / w->groups, per_node = w->groups / w->nodes;
    for (int g = 0; g < w->groups; g++) {
        float sum = 0;
        for (int i = 0; i < size; i++) sum += load[g * size + i];
        w->group_load[g] = sum;
    }
    pack_balanced(w, w->group_load, w->groups, w->nodes, w->group_node, w->group_at);
    for (int g = 0; g < w->groups; g++)
        for (int i = 0; i < size; i++)
            w->member[(w->group_node[g] * per_node + w->group_at[g]) * size + i] = g * size + i;
}

/* One replica each, then one more for the expert with the highest load per replica, until the
 * slots are used. An expert that every rank could hold already gets no more. */
static void replicate(struct eplb_work *w, const float *load, const int *member)
{
    for (int e = 0; e < w->node_experts; e++) {
        w->item_expert[e] = e;
        w->item_replica[e] = 0;
        w->node_count[e] = 1;
    }
    for (int i = w->node_experts; i < w->node_slots; i++) {
        int best = -1;
        float best_load = 0;
        for (int e = 0; e < w->node_experts; e++) {
            float each = load[member[e]] / (float)w->node_count[e];
            if (w->node_count[e] < w->node_ranks && (best < 0 || each > best_load)) {
                best = e;
                best_load = each;
            }
        }
        w->item_expert[i] = best;
        w->item_replica[i] = w->node_count[best]++;
    }
    for (int i = 0; i < w->node_slots; i++) {
        int e = w->item_expert[i];
        w->item_load[i] = load[member[e]] / (float)w->node_count[e];
    }
}

/* slot_expert and slot_replica: [slots] of the layer. */
static enum status place_layer(struct eplb_work *w, const float *load, int experts,
                               int32_t *slot_expert, int32_t *slot_replica)
{
    groups_to_nodes(w, load, experts);
    int per_rank = w->node_slots / w->node_ranks;
    for (int node = 0; node < w->nodes; node++) {
        const int *member = w->member + node * w->node_experts;
        replicate(w, load, member);
        pack_balanced(w, w->item_load, w->node_slots, w->node_ranks, w->item_rank, w->item_at);
        int base = node * w->node_slots;
        for (int i = 0; i < w->node_slots; i++)
            w->order[w->item_rank[i] * per_rank + w->item_at[i]] = i;
        TRY(eplb_repair(w->order, w->item_expert, w->item_load, w->node_ranks, per_rank,
                        w->node_experts));
        for (int s = 0; s < w->node_slots; s++) {
            slot_expert[base + s] = member[w->item_expert[w->order[s]]];
            slot_replica[base + s] = w->item_replica[w->order[s]];
        }
    }
    return OK;
}

static void work_free(struct eplb_work *w)
{
    void *all[] = {w->group_load,  w->group_node,   w->group_at,  w->member,    w->node_count,
                   w->item_expert, w->item_replica, w->item_load, w->item_rank, w->item_at,
                   w->order,       w->pack_load,    w->pack_items};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static bool work_alloc(struct eplb_work *w, const struct eplb_shape *shape)
{
    w->node_experts = shape->experts / w->nodes;
    w->node_slots = shape->slots / w->nodes;
    w->node_ranks = shape->ranks / w->nodes;
    size_t groups = (size_t)w->groups, slots = (size_t)w->node_slots;
    size_t packs = (size_t)imax(w->nodes, w->node_ranks);
    w->group_load = calloc(groups, sizeof(float));
    w->group_node = calloc(groups, sizeof(int));
    w->group_at = calloc(groups, sizeof(int));
    w->member = calloc((size_t)shape->experts, sizeof(int));
    w->node_count = calloc((size_t)w->node_experts, sizeof(int));
    w->item_expert = calloc(slots, sizeof(int));
    w->item_replica = calloc(slots, sizeof(int));
    w->item_load = calloc(slots, sizeof(float));
    w->item_rank = calloc(slots, sizeof(int));
    w->item_at = calloc(slots, sizeof(int));
    w->order = calloc((size_t)imax(w->groups, w->node_slots), sizeof(int));
    w->pack_load = calloc(packs, sizeof(float));
    w->pack_items = calloc(packs, sizeof(int));
    return w->group_load && w->group_node && w->group_at && w->member && w->node_count &&
           w->item_expert && w->item_replica && w->item_load && w->item_rank && w->item_at &&
           w->order && w->pack_load && w->pack_items;
}

static enum status check_shape(const struct eplb_shape *s)
{
    if (s->layers < 0 || s->experts < 1 || s->ranks < 1 || s->nodes < 1 || s->groups < 1)
        return error_set(ERR_BUG, "eplb: %d layers, %d experts, %d groups, %d ranks, %d nodes",
                         s->layers, s->experts, s->groups, s->ranks, s->nodes);
    int redundant = s->slots - s->experts;
    if (redundant < 0)
        return error_set(ERR_INPUT, "expert placement: %d slots are fewer than %d experts",
                         s->slots, s->experts);
    if (s->slots % s->ranks != 0) {
        int more = redundant + (s->ranks - s->slots % s->ranks);
        int less = redundant - s->slots % s->ranks;
        char fewer[32] = "";
        if (less >= 0) snprintf(fewer, sizeof fewer, " or %d", less);
        return error_set(ERR_INPUT,
                         "expert placement: %d experts + %d redundant = %d slots, not "
                         "a multiple of ep %d: set redundant_experts to %d%s",
                         s->experts, redundant, s->slots, s->ranks, more, fewer);
    }
    if (!expert_slots_legal(s->experts, redundant, s->ranks))
        return error_set(ERR_INPUT,
                         "expert placement: %d redundant experts on %d ranks would put "
                         "an expert twice on one rank: at most %d can be redundant",
                         redundant, s->ranks, s->experts * (s->ranks - 1));
    return OK;
}

static enum status check_load(const struct eplb_shape *s, const float *load)
{
    for (int64_t i = 0; load && i < (int64_t)s->layers * s->experts; i++)
        if (!(load[i] >= 0) || !isfinite(load[i]))
            return error_set(ERR_INPUT,
                             "expert load of layer %d, expert %d is %g: expected a "
                             "finite number >= 0",
                             (int)(i / s->experts), (int)(i % s->experts), (double)load[i]);
    return OK;
}

/* count, max_replicas and expert_slot from the layers' slots. slot_replica: [layers, slots]. */
static enum status index_replicas(struct placement *p, const int32_t *slot_replica)
{
    int64_t layers = p->shape.layers, slots = p->shape.slots, experts = p->shape.experts;
    p->max_replicas = 1;
    for (int64_t i = 0; i < layers * slots; i++) {
        int32_t *count = &p->count[i / slots * experts + p->slot_expert[i]];
        if (++*count > p->max_replicas) p->max_replicas = *count;
    }
    size_t n = (size_t)(layers * experts) * (size_t)p->max_replicas;
    p->expert_slot = malloc((n ? n : 1) * sizeof *p->expert_slot);
    if (!p->expert_slot) return error_set(ERR_RESOURCE, "no memory for the expert placement");
    memset(p->expert_slot, 0xff, n * sizeof *p->expert_slot);
    for (int64_t i = 0; i < layers * slots; i++) {
        int64_t at = i / slots * experts + p->slot_expert[i];
        p->expert_slot[at * p->max_replicas + slot_replica[i]] = (int32_t)(i % slots);
    }
    return OK;
}

/* Whole groups on nodes, if the shape divides so and no node has more slots than replicas that
 * its ranks can hold apart. */
static bool shape_is_hierarchical(const struct eplb_shape *s)
{
    return s->groups % s->nodes == 0 && s->ranks % s->nodes == 0 && s->experts % s->groups == 0 &&
           expert_slots_legal(s->experts / s->nodes, (s->slots - s->experts) / s->nodes,
                              s->ranks / s->nodes);
}

enum status eplb_place(const struct eplb_shape *shape, const float *load, struct placement *out)
{
    TRY(check_shape(shape));
    TRY(check_load(shape, load));
    struct placement p = {.shape = *shape, .slots_per_rank = shape->slots / shape->ranks};
    p.hierarchical = shape_is_hierarchical(shape);
    struct eplb_work w = {.groups = p.hierarchical ? shape->groups : 1,
                          .nodes = p.hierarchical ? shape->nodes : 1};
    size_t layers = (size_t)imax(shape->layers, 1), slots = (size_t)shape->slots;
    size_t experts = (size_t)shape->experts;
    int32_t *slot_replica = calloc(layers * slots, sizeof *slot_replica);
    float *uniform = malloc(experts * sizeof *uniform);
    p.slot_expert = calloc(layers * slots, sizeof *p.slot_expert);
    p.count = calloc(layers * experts, sizeof *p.count);
    enum status st = OK;
    if (!work_alloc(&w, shape) || !slot_replica || !uniform || !p.slot_expert || !p.count)
        st = error_set(ERR_RESOURCE, "no memory for the expert placement");
    for (size_t e = 0; e < experts && uniform; e++) uniform[e] = 1;
    for (size_t l = 0; l < (size_t)shape->layers && st == OK; l++)
        st = place_layer(&w, load ? load + l * experts : uniform, shape->experts,
                         p.slot_expert + l * slots, slot_replica + l * slots);
    if (st == OK) st = index_replicas(&p, slot_replica);
    work_free(&w);
    free(slot_replica);
    free(uniform);
    if (st == OK)
        *out = p;
    else
        placement_free(&p);
    return st;
}

void placement_free(struct placement *p)
{
    free(p->slot_expert);
    free(p->count);
    free(p->expert_slot);
    memset(p, 0, sizeof *p);
}

double placement_imbalance(const struct placement *p, int layer, const float *load)
{
    const int32_t *slots = placement_slots(p, layer);
    const int32_t *count = p->count + (int64_t)layer * p->shape.experts;
    double total = 0, worst = 0;
    for (int rank = 0; rank < p->shape.ranks; rank++) {
        double sum = 0;
        for (int s = rank * p->slots_per_rank; s < (rank + 1) * p->slots_per_rank; s++)
            sum += (load ? (double)load[slots[s]] : 1.0) / count[slots[s]];
        total += sum;
        if (sum > worst) worst = sum;
    }
    return total > 0 ? worst * p->shape.ranks / total : 1.0;
}
