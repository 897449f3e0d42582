/* prefix_order.h - in which order requests go out, so that those that begin alike go together and
 * what they share is computed once and used while it is still in memory.
 *
 * Requests enter in file order and wait in a window, in a tree whose nodes are prompt pages: a
 * path from the root is a prefix. Each taker (a lane; a prefill rank) walks the tree depth first:
 * it goes on where it stands, then in the nearest ancestor that has requests left, and there takes
 * what came first, but branches that no other lane is in before those that one is in, so that
 * lanes work on different prefixes and each prefix is computed in one place.
 *
 * Nobody starves: a request is taken at most `window` - 1 places before its place in the file and
 * at most `delay` places after it; the oldest that would be later goes first, whatever it shares.
 * The order depends on nothing but the calls made: no clock, no I/O.
 *
 * Memory: 40 bytes for each request in the window and 60 for each different page of their prompts
 * and of the prompts the lanes stand on, in tables that grow by doubling. prefix_order_wants says
 * no at `window` requests or at `max_pages` pages (one prompt may exceed them). Requests that have
 * been taken leave nothing behind.
 *
 * A page is known by its chained hash (prefix_index.h: page_hash); should two ever collide,
 * requests go out in a worse order and nothing else happens. The module owns all its memory.
 */
#ifndef KVCACHE_PREFIX_ORDER_H
#define KVCACHE_PREFIX_ORDER_H

#include "core/hash.h"
#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct prefix_order;

struct prefix_order_limits {
    int32_t window;    /* requests, >= 1 */
    int32_t max_pages; /* of all prompts in the window together, counted per request */
    int64_t delay;     /* places, >= window */
    int32_t lanes;     /* >= 1 */
};

enum status prefix_order_create(const struct prefix_order_limits *limits,
                                struct prefix_order **out);
void prefix_order_free(struct prefix_order *o);

/* Whether the window has room for one more. */
bool prefix_order_wants(const struct prefix_order *o);
/* The next request of the file. chain: [pages] the chained hashes of its full pages, the first
 * page first; none for a request that shares nothing. */
enum status prefix_order_push(struct prefix_order *o, int64_t index, const struct hash128 *chain,
                              int32_t pages);

/* Takes the request that `lane` should have next out of the window: its index as pushed, -1 when
 * the window is empty. */
int64_t prefix_order_take(struct prefix_order *o, int lane);
/* Where the request taken last really went: that lane stands on its prompt from now on. */
void prefix_order_went(struct prefix_order *o, int lane);

/* Requests in the window. */
int32_t prefix_order_waiting(const struct prefix_order *o);
/* Bytes held. */
size_t prefix_order_bytes(const struct prefix_order *o);

#endif
