/* study_job.h - `moebatch study JOB.yaml`: predicts the run of a job file on the calibrated host.
 */
#ifndef CMD_STUDY_JOB_H
#define CMD_STUDY_JOB_H

#include "core/status.h"

#include <stdbool.h>

/* Whether the YAML file has a job's key `tokens` at its top level. */
bool study_is_job(const char *path);

/* argv[0] is "study"; rank 0 alone does the work. */
enum status cmd_study_job(int argc, char **argv);

#endif
