/* straggler.h - from /ranks and /links to the rank or link that costs a job most, if it costs much.
 *
 * A rank is compute-slow when the others of its unit wait for it to send; a link is slow when they
 * wait on after that for its messages to arrive. Shares are of the unit's mean time in steps. A
 * rank's cost is counted beyond the median rank's (somebody always comes last), and twice its
 * standard error must be less (a few accidents make no slow rank); a node's link is
 * compared by the time that a message takes with the unit's other links, if there are any.
 * Rows of the last attempt only.
 */
#ifndef ACCOUNT_STRAGGLER_H
#define ACCOUNT_STRAGGLER_H

#include "account/results.h"

#include <stddef.h>

enum { STRAGGLER_TEXT = 320 };

struct straggler {
    int32_t attempt;
    struct rank_row *ranks; /* owned */
    struct link_row *links; /* owned */
    size_t n_ranks, n_links, cap_ranks, cap_links;
};

/* Zeroed before the first call. */
enum status straggler_add_ranks(struct straggler *s, const struct rank_row *rows, size_t n);
enum status straggler_add_links(struct straggler *s, const struct link_row *rows, size_t n);
/* The slowest rank and the slowest link as text; "" where none costs STRAGGLER_SHARE of the step
 * time. */
enum status straggler_find(const struct straggler *s, char rank[STRAGGLER_TEXT],
                           char link[STRAGGLER_TEXT]);
void straggler_free(struct straggler *s);

#define STRAGGLER_SHARE 0.03

#endif
