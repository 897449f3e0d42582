/* interrupt.h - SIGUSR1 and SIGTERM: stop a job so that it can be resumed.
 *
 * SIGUSR1: every rank leaves the step at the next layer, what has finished is written (journal and
 * partial results file), exit code 6. SIGTERM: only the journal is brought to disk, since
 * mpirun kills a second later. A signal to any one rank ends the whole job. (Listed global:
 * the flag that the signal handler sets.)
 */
#ifndef ENGINE_INTERRUPT_H
#define ENGINE_INTERRUPT_H

#include "core/status.h"

#include <stdbool.h>

void interrupt_install(void);
/* OK, or ERR_INTERRUPT with a message once a signal has come. */
enum status interrupt_check(void);
/* Whether it was SIGTERM: no time for more than the journal. */
bool interrupt_hurried(void);

#endif
