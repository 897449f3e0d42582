/* tick.h - how the ranks of a unit agree on the next step.
 *
 * After every step each rank reports to the unit's leader (local rank 0): whether it has prefill
 * or decode work, and what the step cost. When all reports are in and somebody has work, the
 * leader says which kind of step comes next; everybody joins it, ranks without work with zero
 * tokens. A rank that gets work while the unit waits wakes the leader. All over the unit's
 * transport, so a waiting rank sleeps until its word comes.
 */
#ifndef ENGINE_TICK_H
#define ENGINE_TICK_H

#include "account/results.h"
#include "core/status.h"
#include "transport/transport.h"
#include "transport/wait.h"

#include <stdbool.h>
#include <stdint.h>

enum tick_kind { TICK_NONE, TICK_PREFILL, TICK_DECODE, TICK_STOP };
enum { WORK_PREFILL = 1, WORK_DECODE = 2 };

/* What a rank says after a step. */
struct tick_report {
    uint32_t work; /* WORK_* */
    int32_t requests, tokens, rounds, kv_pages;
    float attn_work, expert_rows;
    float wall_s, compute_s, exposed_s;
    float stage_s[8]; /* attn, dispatch, mlp, shared, combine, head, unused */
    uint32_t round;   /* set by tick_next: which report of this rank it is */
};

struct tick;

/* Collective over the transport's ranks. */
enum status tick_create(struct waiter *waiter, struct tick **out);
void tick_destroy(struct tick *t); /* collective */

/* Reports and waits for the next step. work(arg) returns the WORK_* bits now (asked again while
 * waiting); stop(arg) (leader only) says that no more work will ever come. On the leader, done
 * (may be NULL) sees all reports of the step that just ended before the next one starts. */
enum status tick_next(struct tick *t, const struct tick_report *report, uint32_t (*work)(void *arg),
                      bool (*stop)(void *arg),
                      void (*done)(void *arg, const struct tick_report *reports, int ranks),
                      void *arg, enum tick_kind *next);

/* While tick_next waits: marks[r] = 1 for the ranks of the unit whose report (on the leader) or
 * word (elsewhere: the leader) has still to come. */
void tick_awaited(const struct tick *t, uint8_t *marks);

#endif
