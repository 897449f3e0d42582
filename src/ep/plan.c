/* plan.c - see plan.h. */
#include "ep/plan.h"

#include "config/expert_slots.h"

#include <stdlib.h>
#include <string.h>

enum { RING_ENTRIES = 256 };

static size_t align_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

static int max_int(int a, int b)
{
    return a > b ? a : b;
}

/* ---- sizes ---- */

static enum status check_size(const char *name, int value, int least)
{
    if (value >= least) return OK;
    return error_set(ERR_INPUT, "ep: %s is %d, must be at least %d", name, value, least);
}

static enum status check_ranks(const struct ep_params *p)
{
    int below, above;
    if (p->slots % p->ep_size == 0) return OK;
    expert_slots_nearest(p->slots, p->ep_size, &below, &above);
    return error_set(ERR_INPUT,
                     "ep size %d does not divide %d slots (%d experts + %d redundant): use %d or "
                     "%d ranks, or other redundant_experts",
                     p->ep_size, p->slots, p->experts, p->slots - p->experts, below,
                     above ? above : p->slots);
}

enum status ep_params_check(struct ep_params *p)
{
    if (p->slots == 0) p->slots = p->experts;
    if (p->n_group == 0) p->n_group = 1;
    if (p->row_align == 0) p->row_align = 1;
    if (p->nodes == 0) p->nodes = 1;
    if (!(p->recv_rows_factor > 0)) p->recv_rows_factor = 2;
    TRY(check_size("ep_size", p->ep_size, 1));
    TRY(check_size("experts", p->experts, 1));
    TRY(check_size("topk", p->topk, 1));
    TRY(check_size("hidden", p->hidden, 1));
    TRY(check_size("slots", p->slots, p->experts));
    TRY(check_size("max_tokens", p->max_tokens, 0));
    TRY(check_size("chunk_tokens", p->chunk_tokens, 0));
    TRY(check_size("tokens of an operation", max_int(p->max_tokens, p->chunk_tokens), 1));
    TRY(check_ranks(p));
    if (p->topk > EP_MAX_TOPK || p->topk > p->experts || p->experts % p->n_group != 0)
        return error_set(ERR_INPUT, "ep: %d experts do not fit topk %d and %d groups", p->experts,
                         p->topk, p->n_group);
    if (p->combine_type == DT_E4M3)
        return error_set(ERR_INPUT, "ep: COMBINE carries bf16 or f32, not e4m3");
    return OK;
}

/* Takes `bytes` of the window and moves its end. */
static size_t take(size_t *end, size_t bytes)
{
    size_t at = *end;
    *end = align_up(at + bytes, 64);
    return at;
}

static void layout_row(const struct ep_params *p, struct ep_layout *o)
{
    o->row_data = (size_t)p->hidden * dtype_bytes(p->dispatch_type);
    o->row_scales = p->dispatch_type == DT_E4M3 ? (size_t)fp8_blocks(p->hidden) * 4 : 0;
    o->row_data_at = align_up(sizeof(struct ep_row_tag), 64);
    o->row_scale_at = align_up(o->row_data_at + o->row_data, 16);
    o->row_bytes = align_up(o->row_scale_at + o->row_scales, 64);
    o->y_bytes = (size_t)p->hidden * dtype_bytes(p->combine_type);
    o->receive_bytes = o->row_bytes;
    if (o->reduce && o->row_data_at + o->y_bytes > o->row_bytes)
        o->receive_bytes = align_up(o->row_data_at + o->y_bytes, 64);
    o->entry_row =
        align_up(sizeof(struct ep_entry) + (size_t)p->topk * sizeof(struct ep_forward), 64);
    o->entry_bytes = o->entry_row + o->row_bytes;
}

/* Rows of a receive buffer: recv_rows_factor times the mean, never more than can come. */
static int layout_cap(const struct ep_params *p, const struct ep_layout *o)
{
    int tokens = o->fixed_slots || p->ep_size > 1 ? p->chunk_tokens : o->tokens;
    double worst = (double)p->ep_size * tokens * min_int(p->topk, o->local);
    if (p->ep_size == 1) worst = (double)tokens * p->topk;
    double cap = p->ep_size == 1 ? worst : (double)tokens * p->topk * p->recv_rows_factor;
    if (cap > worst) cap = worst;
    cap += p->ep_size == 1 || cap == worst ? (double)o->local * (p->row_align - 1) : 0;
    if (cap > 1e9) cap = 1e9;
    return (int)align_up((size_t)max_int((int)cap, 1), (size_t)p->row_align);
}

bool ep_reduce_possible(const struct ep_params *p)
{
    /* EPLB keeps groups whole when the nodes divide them. */
    return p->nodes > 1 && p->n_group > 1 && p->n_group % p->nodes == 0 && p->topk > 1 &&
           p->chunk_tokens > 0;
}

void ep_layout_fill(const struct ep_params *p, int clients, bool reduce, struct ep_layout *o)
{
    int R = p->ep_size;
    size_t end = 0, counts = (size_t)R * (size_t)(1 + p->slots) * 4;
    memset(o, 0, sizeof *o);
    o->ranks = R;
    o->local = p->slots / R;
    o->reduce = reduce;
    o->tokens = max_int(p->max_tokens, p->chunk_tokens);
    o->fixed_slots = R > 1 && p->max_tokens > 0;
    bool normal = R == 1 || p->chunk_tokens > 0;
    layout_row(p, o);
    o->cap = normal ? layout_cap(p, o) : 0;
    o->clients = normal ? clients : 0;
    o->ring = min_int(p->chunk_tokens, RING_ENTRIES);
    o->part_rows = p->max_tokens * min_int(p->topk, o->local);
    for (int op = 0; op < EP_OPS; op++) {
        o->y[op] = take(&end, (size_t)o->tokens * (size_t)p->topk * o->y_bytes);
        o->returned[op] = take(&end, (size_t)(R + p->nodes) * 4);
        o->arrived[op] = take(&end, (size_t)R * 4);
        o->times[op] = take(&end, (size_t)EP_TIMES * (size_t)(R + p->nodes) * 8);
        if (normal) o->receive[op] = take(&end, (size_t)o->cap * o->receive_bytes);
        if (o->clients)
            o->rings[op] = take(&end, (size_t)o->clients * (size_t)o->ring * o->entry_bytes);
        if (o->fixed_slots)
            o->fixed[op] = take(&end, (size_t)R * (size_t)o->part_rows * o->row_bytes);
        for (int parity = 0; parity < EP_PARITY; parity++) {
            if (normal) o->counts[op][parity] = take(&end, counts);
            if (o->fixed_slots)
                o->fixed_counts[op][parity] = take(&end, (size_t)R * (size_t)o->local * 8);
        }
    }
    o->window_bytes = end;
    if (o->fixed_slots) o->packed = R * o->part_rows + o->local * (p->row_align - 1);
    if (o->reduce)
        o->record_bytes = sizeof(struct ep_entry) + (size_t)p->topk * sizeof(struct ep_forward);
    o->heap_bytes = EP_OPS * ((size_t)o->packed * o->row_bytes +
                              (size_t)o->clients * (size_t)p->chunk_tokens * o->record_bytes +
                              (size_t)o->tokens * (size_t)p->topk * (5 * 4 + 2) +
                              (size_t)p->slots * 6 * 4 + (size_t)R * 16);
}

/* ---- placement ---- */

void ep_table_free(struct ep_table *t)
{
    free(t->first);
    free(t->slot);
    free(t->home);
    memset(t, 0, sizeof *t);
}

static enum status table_check(const struct ep_table *t, int ep_size)
{
    int local = t->slots / ep_size;
    for (int e = 0; e < t->experts; e++) {
        if (t->first[e] == t->first[e + 1])
            return error_set(ERR_INPUT, "expert placement: expert %d has no slot", e);
        for (int i = t->first[e] + 1; i < t->first[e + 1]; i++)
            if (t->slot[i] / local == t->slot[i - 1] / local)
                return error_set(ERR_INPUT,
                                 "expert placement: rank %d holds expert %d twice (slots %d, %d)",
                                 t->slot[i] / local, e, t->slot[i - 1], t->slot[i]);
    }
    return OK;
}

enum status ep_table_init(struct ep_table *t, int experts, int slots, int ep_size,
                          const int32_t *expert_of_slot)
{
    *t = (struct ep_table){.experts = experts, .slots = slots};
    t->first = calloc((size_t)experts + 2, sizeof *t->first);
    t->slot = calloc((size_t)slots, sizeof *t->slot);
    t->home = malloc((size_t)experts * sizeof *t->home);
    if (!t->first || !t->slot || !t->home) {
        ep_table_free(t);
        return error_set(ERR_RESOURCE, "out of memory for %d expert slots", slots);
    }
    enum status st = OK;
    for (int e = 0; e < experts; e++) t->home[e] = -1;
    for (int s = 0; s < slots && st == OK; s++) {
        int e = expert_of_slot[s];
        if (e < 0 || e >= experts)
            st = error_set(ERR_INPUT, "expert placement: slot %d holds expert %d of %d", s, e,
                           experts);
        else
            t->first[e + 2]++;
    }
    /* first[e + 1] is where expert e's next slot goes, and ends as its end. */
    for (int e = 0; e < experts && st == OK; e++) t->first[e + 2] += t->first[e + 1];
    for (int s = 0; s < slots && st == OK; s++) t->slot[t->first[expert_of_slot[s] + 1]++] = s;
    if (st == OK) st = table_check(t, ep_size);
    if (st != OK) ep_table_free(t);
    return st;
}

bool ep_table_homes(struct ep_table *t, int n_group, int local, const int *node_of)
{
    int size = t->experts / n_group;
    bool any = false;
    for (int e = 0; e < t->experts; e += size) {
        int node = node_of[t->slot[t->first[e]] / local];
        for (int i = t->first[e]; i < t->first[e + size]; i++)
            if (node_of[t->slot[i] / local] != node) node = -1;
        for (int i = 0; i < size; i++) t->home[e + i] = node;
        any |= node >= 0;
    }
    return any;
}

void ep_choose_default(void *tables, int layer, int rank, int m, int topk, const int32_t *ids,
                       int32_t *slots)
{
    const struct ep_table *t = (const struct ep_table *)tables + layer;
    for (int i = 0; i < m; i++)
        for (int k = 0; k < topk; k++) {
            int e = ids[(size_t)i * (size_t)topk + (size_t)k];
            int n = t->first[e + 1] - t->first[e];
            slots[(size_t)i * (size_t)topk + (size_t)k] =
                t->slot[t->first[e] + (n == 1 ? 0 : (rank + i) % n)];
        }
}

/* ---- the source's side ---- */

void ep_route_free(struct ep_route *r)
{
    free(r->ids);
    free(r->slot);
    free(r->weights);
    free(r->order);
    free(r->first);
    free(r->row);
    free(r->place);
    free(r->reduce);
    memset(r, 0, sizeof *r);
}

enum status ep_route_init(struct ep_route *r, int tokens, int topk, int slots)
{
    size_t n = (size_t)tokens * (size_t)topk;
    *r = (struct ep_route){.topk = topk, .slots = slots};
    r->ids = calloc(n, sizeof *r->ids);
    r->slot = calloc(n, sizeof *r->slot);
    r->weights = calloc(n, sizeof *r->weights);
    r->order = calloc(n, sizeof *r->order);
    r->row = calloc(n, sizeof *r->row);
    r->first = calloc((size_t)slots + 2, sizeof *r->first);
    r->place = calloc(n, sizeof *r->place);
    r->reduce = calloc(n, sizeof *r->reduce);
    if (r->ids && r->slot && r->weights && r->order && r->row && r->first && r->place && r->reduce)
        return OK;
    ep_route_free(r);
    return error_set(ERR_RESOURCE, "out of memory for the routing of %d tokens", tokens);
}

void ep_route_sort(struct ep_route *r)
{
    int n = r->m * r->topk;
    memset(r->first, 0, ((size_t)r->slots + 2) * sizeof *r->first);
    for (int i = 0; i < n; i++) r->first[r->slot[i] + 2]++;
    for (int s = 0; s < r->slots; s++) r->first[s + 2] += r->first[s + 1];
    for (int i = 0; i < n; i++) r->order[r->first[r->slot[i] + 1]++] = i;
}

/* One token: rows of a group that share a place are given it by the first of them. */
static bool reduce_token(const int32_t *ids, int topk, const struct ep_table *t, int size,
                         const bool *node_reduces, int8_t *place, int8_t *reduce)
{
    int places = 0;
    bool any = false;
    for (int k = 0; k < topk; k++) {
        int home = t->home[ids[k]], first = k;
        bool alone = true;
        for (int j = 0; j < topk; j++) {
            if (j == k || ids[j] / size != ids[k] / size) continue;
            alone = false;
            if (j < first) first = j;
        }
        reduce[k] = !alone && home >= 0 && node_reduces[home];
        place[k] = reduce[k] && first < k ? place[first] : (int8_t)places++;
        any |= reduce[k];
    }
    return any;
}

void ep_route_reduce(struct ep_route *r, const struct ep_table *t, int n_group,
                     const bool *node_reduces)
{
    r->reduced = false;
    for (int i = 0; i < r->m; i++) {
        size_t at = (size_t)i * (size_t)r->topk;
        r->reduced |= reduce_token(r->ids + at, r->topk, t, t->experts / n_group, node_reduces,
                                   r->place + at, r->reduce + at);
    }
}

/* ---- counts ---- */

void ep_count(struct ep_counted *c)
{
    for (int s = 0; s < c->slots; s++) {
        int32_t total = 0;
        for (int r = 0; r < c->ranks; r++) {
            if (r == c->rank) c->mine[s] = total;
            total += c->counts[(size_t)r * (size_t)c->stride + (size_t)s];
        }
        c->total[s] = total;
        int32_t prev = s % c->local == 0 ? 0 : c->begin[s - 1] + c->total[s - 1];
        c->begin[s] = (prev + c->align - 1) / c->align * c->align;
        c->mine[s] += c->begin[s];
    }
}

static int count_of(const struct ep_counted *c, int rank, int slot)
{
    return c->counts[(size_t)rank * (size_t)c->stride + (size_t)slot];
}

void ep_count_route(const struct ep_counted *c, struct ep_route *r)
{
    for (int s = 0; s < r->slots; s++)
        for (int i = r->first[s]; i < r->first[s + 1]; i++)
            r->row[r->order[i]] = c->mine[s] + i - r->first[s];
}

int ep_rounds(const struct ep_counted *c, int dest)
{
    int last = 0;
    for (int s = dest * c->local; s < (dest + 1) * c->local; s++)
        if (c->total[s] > 0) last = c->begin[s] + c->total[s];
    return last > 0 ? (last - 1) / c->cap + 1 : 1;
}

int ep_rounds_mine(const struct ep_counted *c, int dest)
{
    int last = 0;
    for (int s = dest * c->local; s < (dest + 1) * c->local; s++)
        if (count_of(c, c->rank, s) > 0) last = c->mine[s] + count_of(c, c->rank, s);
    return last > 0 ? (last - 1) / c->cap + 1 : 0;
}

/* Size of the overlap of [begin, begin + n) with round r. */
static int overlap(const struct ep_counted *c, int begin, int n, int round)
{
    int64_t lo = (int64_t)round * c->cap, hi = lo + c->cap;
    if (begin > lo) lo = begin;
    if (begin + n < hi) hi = begin + n;
    return hi > lo ? (int)(hi - lo) : 0;
}

int ep_round_mine(const struct ep_counted *c, int dest, int round)
{
    int n = 0;
    for (int s = dest * c->local; s < (dest + 1) * c->local; s++)
        n += overlap(c, c->mine[s], count_of(c, c->rank, s), round);
    return n;
}

int ep_messages_mine(const struct ep_counted *c)
{
    int messages = 0;
    for (int d = 0; d < c->ranks; d++)
        for (int r = 0, n = ep_rounds_mine(c, d); r < n; r++)
            messages += ep_round_mine(c, d, r) > 0;
    return messages;
}

bool ep_round_source(const struct ep_counted *c, int source, int round)
{
    for (int s = c->rank * c->local; s < (c->rank + 1) * c->local; s++) {
        int n = count_of(c, source, s), begin = c->begin[s];
        if (n == 0) continue;
        for (int r = 0; r < source; r++) begin += count_of(c, r, s);
        if (overlap(c, begin, n, round) > 0) return true;
    }
    return false;
}

int ep_round_groups(const struct ep_counted *c, int round, int32_t *begin, int32_t *rows)
{
    int end = 0;
    for (int l = 0; l < c->local; l++) {
        int s = c->rank * c->local + l;
        int64_t at = (int64_t)c->begin[s] - (int64_t)round * c->cap;
        rows[l] = overlap(c, c->begin[s], c->total[s], round);
        begin[l] = at < 0 ? 0 : at > c->cap ? c->cap : (int32_t)at;
        if (rows[l] > 0) end = begin[l] + rows[l];
    }
    return end;
}
