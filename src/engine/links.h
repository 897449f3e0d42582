/* links.h - whom this rank waited for, and how far the hosts' clocks are apart. */
#ifndef ENGINE_LINKS_H
#define ENGINE_LINKS_H

#include "engine/start.h"

/* Collective: tells the all-to-all how far each host's clock is from this one's. Measured once, by
 * the quickest of some round trips between the first ranks of the hosts, so good to half of that
 * trip; disciplined clocks then part by about a microsecond a second at most. */
enum status links_clocks(struct engine *e);
/* This rank's column of /links to rank 0 (CTL_LINKS). */
enum status links_send(struct engine *e);

#endif
