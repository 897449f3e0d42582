/* log.h - plain lines to stderr, from rank 0 unless the caller is a fault path.
 *
 * Data and tables go to stdout by the commands themselves; this is for the lines that tell what
 * the program does: `moebatch [  12.3 s] text`. log_init() says whether this process speaks.
 */
#ifndef CORE_LOG_H
#define CORE_LOG_H

#include <stdbool.h>

/* rank: shown in warnings; speak: info lines are printed by this process. */
void log_init(int rank, bool speak);
void log_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Always printed, whichever rank. */
void log_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
