/* inquiry.h - rank 0 asks all ranks what they wait for and names the one that holds the job up.
 *
 * An alarm of the watchdog (watch.h) on any rank whose main thread still polls is told to rank 0
 * (CTL_STUCK). Rank 0 asks everybody (CTL_ASK); whoever polls answers (CTL_STATE) with its own
 * state and with what the host's shared memory shows of neighbours that give no sign. When all
 * have answered, or those that can have had time to, the verdict ends the job with ERR_COMM; unless
 * the rank that everybody waits for answers and is computing: then rank 0 warns and goes on.
 */
#ifndef ENGINE_INQUIRY_H
#define ENGINE_INQUIRY_H

#include "core/status.h"
#include "engine/ctl.h"

#include <stdbool.h>
#include <stddef.h>

struct rank;

/* Zeroed at the start. */
struct inquiry {
    bool told; /* the alarm that is on has been passed to rank 0 */
    /* rank 0 */
    bool asking, judged;       /* judged: the job ends with its verdict */
    bool lost_host;            /* no rank of the host that the verdict names has answered */
    double deadline_s, next_s; /* on this host's clock */
    int answers;
    char *reports; /* [world_size] reports while asking */
};

/* Passes alarms on; on rank 0 also ends an inquiry. ERR_COMM: the verdict, in error_text. */
enum status inquiry_poll(struct rank *r);
/* CTL_STUCK, CTL_ASK, CTL_STATE. */
void inquiry_message(struct rank *r, enum ctl_kind kind, const void *data, size_t bytes);

#endif
