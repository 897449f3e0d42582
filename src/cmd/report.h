/* report.h - `moebatch report FILE.h5 [--html OUT.html] [--trace FILE.json]`: a results file as a
 * table on the terminal and as a page with charts. Reads only; needs no MPI.
 */
#ifndef CMD_REPORT_H
#define CMD_REPORT_H

#include "core/status.h"

enum status cmd_report(int argc, char **argv);

#endif
