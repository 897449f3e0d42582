/* report_trace.h - a picture of single steps from the trace that `run --trace` wrote: computation
 * and communication of both micro-batches, one prefill and one decode step where there are any.
 *
 * Reads the file line by line, a rank at a time, and stops when both pictures are found: memory is
 * that of one rank's events.
 */
#ifndef CMD_REPORT_TRACE_H
#define CMD_REPORT_TRACE_H

#include "core/status.h"

#include <stdio.h>

/* rank: -1 = the first rank that has a whole step of the kind. */
enum status report_trace_html(const char *path, int rank, FILE *out);

#endif
