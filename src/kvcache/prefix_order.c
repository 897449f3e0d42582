/* prefix_order.c - the tree of pages, requests queued at their last page, lanes standing on nodes.
 *
 * A node stays while requests below it wait (pending) or lanes stand on it or below (serving).
 * Children are listed in the order of their creation, requests of a node in file order. Of a
 * node's children at most one for each lane has nothing pending or is served, so choosing one
 * looks at lanes + 2 of them at most.
 */
#include "kvcache/prefix_order.h"

#include <stdlib.h>
#include <string.h>

enum { NONE = -1, ROOT = 0, FIRST_NODES = 256, FIRST_REQUESTS = 64 };

struct order_node {
    uint64_t key;           /* of the page and all before it */
    int64_t born;           /* place in the file of the request it was made for */
    int32_t parent, next;   /* next in the bucket, or of the free nodes */
    int32_t oldest, newest; /* children */
    int32_t older, newer;   /* siblings */
    int32_t first, last;    /* requests that end here */
    int32_t pending;        /* requests that wait here and below */
    int32_t serving;        /* lanes here and below */
};

struct order_request {
    int64_t index, place; /* as pushed; pushes before it */
    int32_t node, pages;
    int32_t next;         /* at the same node, or of the free requests */
    int32_t older, newer; /* of all that wait */
};

struct prefix_order {
    struct prefix_order_limits limits;
    int64_t pushed, taken;
    int32_t waiting, pages;
    struct order_node *node;
    int32_t nodes, free_node, used_nodes;
    int32_t *bucket;    /* [n_buckets] */
    uint32_t n_buckets; /* a power of two, at least `nodes` */
    struct order_request *request;
    int32_t requests, free_request;
    int32_t oldest, newest; /* that wait */
    int32_t *stands;        /* [lanes + 1] node of each lane, then of the last request */
};

/* ---- memory --------------------------------------------------------------------------------- */

static enum status no_memory(void)
{
    return error_set(ERR_RESOURCE, "no memory to order requests: lower order_window");
}

static int32_t *bucket_of(struct prefix_order *o, uint64_t key)
{
    return &o->bucket[key & (o->n_buckets - 1)];
}

static enum status grow_nodes(struct prefix_order *o)
{
    int32_t n = o->nodes ? 2 * o->nodes : FIRST_NODES;
    struct order_node *node = realloc(o->node, (size_t)n * sizeof *node);
    if (node) o->node = node;
    int32_t *bucket = realloc(o->bucket, (size_t)n * sizeof *bucket);
    if (bucket) o->bucket = bucket;
    if (!node || !bucket) return no_memory();
    o->n_buckets = (uint32_t)n;
    memset(bucket, 0xff, (size_t)n * sizeof *bucket);
    /* Free nodes are none here, or this would not be called: all old ones are in a bucket. */
    for (int32_t i = ROOT + 1; i < o->nodes; i++) {
        node[i].next = *bucket_of(o, node[i].key);
        *bucket_of(o, node[i].key) = i;
    }
    for (int32_t i = n - 1; i >= o->nodes; i--) {
        node[i].next = o->free_node;
        o->free_node = i;
    }
    o->nodes = n;
    return OK;
}

static enum status grow_requests(struct prefix_order *o)
{
    int32_t n = o->requests ? 2 * o->requests : FIRST_REQUESTS;
    if (n > o->limits.window) n = o->limits.window;
    struct order_request *request = realloc(o->request, (size_t)n * sizeof *request);
    if (!request) return no_memory();
    o->request = request;
    for (int32_t i = n - 1; i >= o->requests; i--) {
        request[i].next = o->free_request;
        o->free_request = i;
    }
    o->requests = n;
    return OK;
}

enum status prefix_order_create(const struct prefix_order_limits *limits, struct prefix_order **out)
{
    if (limits->window < 1 || limits->max_pages < 1 || limits->lanes < 1 ||
        limits->delay < limits->window || limits->window > 1 << 28)
        return error_set(ERR_BUG, "prefix order: window %d, %d pages, delay %lld, %d lanes",
                         limits->window, limits->max_pages, (long long)limits->delay,
                         limits->lanes);
    struct prefix_order *o = calloc(1, sizeof *o);
    if (!o) return no_memory();
    o->limits = *limits;
    o->free_node = o->free_request = o->oldest = o->newest = NONE;
    o->stands = calloc((size_t)limits->lanes + 1, sizeof *o->stands); /* all on the root */
    enum status st = o->stands ? grow_nodes(o) : no_memory();
    if (st != OK) {
        prefix_order_free(o);
        return st;
    }
    o->free_node = o->node[ROOT].next;
    o->used_nodes = 1;
    o->node[ROOT] = (struct order_node){.parent = NONE,
                                        .next = NONE,
                                        .oldest = NONE,
                                        .newest = NONE,
                                        .older = NONE,
                                        .newer = NONE,
                                        .first = NONE,
                                        .last = NONE,
                                        .serving = limits->lanes + 1};
    *out = o;
    return OK;
}

void prefix_order_free(struct prefix_order *o)
{
    if (!o) return;
    free(o->node);
    free(o->bucket);
    free(o->request);
    free(o->stands);
    free(o);
}

/* ---- the tree ------------------------------------------------------------------------------- */

static int32_t find_child(struct prefix_order *o, int32_t parent, uint64_t key)
{
    for (int32_t i = *bucket_of(o, key); i != NONE; i = o->node[i].next)
        if (o->node[i].key == key && o->node[i].parent == parent) return i;
    return NONE;
}

static enum status add_child(struct prefix_order *o, int32_t parent, uint64_t key, int32_t *out)
{
    if (o->free_node == NONE) TRY(grow_nodes(o));
    int32_t i = o->free_node;
    struct order_node *n = &o->node[i], *p = &o->node[parent];
    o->free_node = n->next;
    o->used_nodes++;
    *n = (struct order_node){.key = key,
                             .born = o->pushed,
                             .parent = parent,
                             .oldest = NONE,
                             .newest = NONE,
                             .older = p->newest,
                             .newer = NONE,
                             .first = NONE,
                             .last = NONE};
    *(p->newest == NONE ? &p->oldest : &o->node[p->newest].newer) = i;
    p->newest = i;
    n->next = *bucket_of(o, key);
    *bucket_of(o, key) = i;
    *out = i;
    return OK;
}

static void remove_node(struct prefix_order *o, int32_t i)
{
    struct order_node *n = &o->node[i], *p = &o->node[n->parent];
    *(n->older == NONE ? &p->oldest : &o->node[n->older].newer) = n->newer;
    *(n->newer == NONE ? &p->newest : &o->node[n->newer].older) = n->older;
    int32_t *at = bucket_of(o, n->key);
    while (*at != i) at = &o->node[*at].next;
    *at = n->next;
    n->next = o->free_node;
    o->free_node = i;
    o->used_nodes--;
}

/* Nodes from here up that nobody waits at and no lane stands on. */
static void prune(struct prefix_order *o, int32_t i)
{
    while (i != ROOT && o->node[i].pending == 0 && o->node[i].serving == 0) {
        int32_t parent = o->node[i].parent;
        remove_node(o, i);
        i = parent;
    }
}

static void stand_on(struct prefix_order *o, int lane, int32_t node)
{
    int32_t before = o->stands[lane];
    o->stands[lane] = node;
    for (int32_t i = node; i != NONE; i = o->node[i].parent) o->node[i].serving++;
    for (int32_t i = before; i != NONE; i = o->node[i].parent) o->node[i].serving--;
    prune(o, before);
}

/* ---- requests in ---------------------------------------------------------------------------- */

bool prefix_order_wants(const struct prefix_order *o)
{
    return o->waiting < o->limits.window && (o->pages < o->limits.max_pages || o->waiting == 0);
}

static void queue_request(struct prefix_order *o, int32_t i, int32_t node)
{
    struct order_request *q = &o->request[i];
    struct order_node *n = &o->node[node];
    *(n->first == NONE ? &n->first : &o->request[n->last].next) = i;
    n->last = i;
    q->older = o->newest;
    q->newer = NONE;
    *(o->newest == NONE ? &o->oldest : &o->request[o->newest].newer) = i;
    o->newest = i;
    for (int32_t at = node; at != NONE; at = o->node[at].parent) o->node[at].pending++;
    o->waiting++;
    o->pages += q->pages;
}

enum status prefix_order_push(struct prefix_order *o, int64_t index, const struct hash128 *chain,
                              int32_t pages)
{
    if (!prefix_order_wants(o) || pages < 0)
        return error_set(ERR_BUG, "prefix order: request %lld pushed into a full window",
                         (long long)index);
    if (o->free_request == NONE) TRY(grow_requests(o));
    int32_t node = ROOT;
    for (int32_t p = 0; p < pages; p++) {
        int32_t child = find_child(o, node, chain[p].lo);
        enum status st = child == NONE ? add_child(o, node, chain[p].lo, &child) : OK;
        if (st != OK) {
            prune(o, node);
            return st;
        }
        node = child;
    }
    int32_t i = o->free_request;
    o->free_request = o->request[i].next;
    o->request[i] = (struct order_request){
        .index = index, .place = o->pushed++, .node = node, .pages = pages, .next = NONE};
    queue_request(o, i, node);
    return OK;
}

/* ---- requests out --------------------------------------------------------------------------- */

/* The branch to go into: the oldest that no lane is in, else the one with the fewest. */
static int32_t choose_child(const struct prefix_order *o, const struct order_node *n)
{
    int32_t best = NONE;
    for (int32_t c = n->oldest; c != NONE; c = o->node[c].newer) {
        if (o->node[c].pending == 0) continue;
        if (best == NONE || o->node[c].serving < o->node[best].serving) best = c;
        if (o->node[best].serving == 0) break;
    }
    return best;
}

static int32_t choose(const struct prefix_order *o, int lane)
{
    if (o->taken - o->request[o->oldest].place >= o->limits.delay) return o->oldest;
    int32_t at = o->stands[lane];
    while (o->node[at].pending == 0) at = o->node[at].parent;
    for (;;) {
        const struct order_node *n = &o->node[at];
        int32_t child = choose_child(o, n);
        if (n->first != NONE && (child == NONE || o->node[child].serving > 0 ||
                                 o->request[n->first].place < o->node[child].born))
            return n->first;
        at = child;
    }
}

/* Only the first of its node is ever taken: it is the oldest there. */
static void unqueue_request(struct prefix_order *o, int32_t i)
{
    struct order_request *q = &o->request[i];
    struct order_node *n = &o->node[q->node];
    n->first = q->next;
    if (n->first == NONE) n->last = NONE;
    *(q->older == NONE ? &o->oldest : &o->request[q->older].newer) = q->newer;
    *(q->newer == NONE ? &o->newest : &o->request[q->newer].older) = q->older;
    for (int32_t at = q->node; at != NONE; at = o->node[at].parent) o->node[at].pending--;
    o->waiting--;
    o->pages -= q->pages;
    q->next = o->free_request;
    o->free_request = i;
}

int64_t prefix_order_take(struct prefix_order *o, int lane)
{
    if (o->waiting == 0) return -1;
    int32_t i = choose(o, lane);
    stand_on(o, o->limits.lanes, o->request[i].node);
    unqueue_request(o, i);
    o->taken++;
    return o->request[i].index;
}

void prefix_order_went(struct prefix_order *o, int lane)
{
    stand_on(o, lane, o->stands[o->limits.lanes]);
}

int32_t prefix_order_waiting(const struct prefix_order *o)
{
    return o->waiting;
}

size_t prefix_order_bytes(const struct prefix_order *o)
{
    return sizeof *o + (size_t)o->nodes * (sizeof *o->node + sizeof *o->bucket) +
           (size_t)o->requests * sizeof *o->request +
           ((size_t)o->limits.lanes + 1) * sizeof *o->stands;
}
