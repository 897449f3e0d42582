/* study_unit.h - `moebatch study --unit`: tables of one prefill and one decode unit. */
#ifndef CMD_STUDY_UNIT_H
#define CMD_STUDY_UNIT_H

#include "core/status.h"

#include <stdio.h>

/* argv: [FILE.yaml] [--set KEY=VALUE]... [--hardware NAME] [--model DIR] [--level NAME]; argv[0]
 * is skipped. Rank 0 prints. */
enum status cmd_study_unit(int argc, char **argv);
void cmd_study_unit_help(FILE *out);

#endif
