/* report_study.h - the results file of a study: a day by the hour and by the minute, and a sweep.
 *
 * Tables and columns are account/study_results.h's. All are read by column name, and a chart whose
 * columns are missing is left out: a study without a day, or a day without published figures, is
 * as good. NaN = not known.
 */
#ifndef CMD_REPORT_STUDY_H
#define CMD_REPORT_STUDY_H

#include "cmd/report_read.h"

#include <stdio.h>

/* Whether the file is one of `moebatch study`. */
bool report_study_found(const struct report_file *f);

/* Totals, the hours, the best points of the sweep. */
enum status report_study_print(const struct report_file *f, FILE *out);

/* The sections of the page. */
enum status report_study_html(const struct report_file *f, FILE *out);
/* report_units.c: each unit's hours as a map, and predicted beside published figures; nothing where
 * the file has none. */
enum status report_units_html(const struct report_file *f, FILE *out);
enum status report_published_print(const struct report_file *f, FILE *out);
enum status report_published_html(const struct report_file *f, FILE *out);
/* report_unit_study.c: the tables of study --unit; nothing when there are none. */
enum status report_unit_study_print(const struct report_file *f, FILE *out);
enum status report_unit_study_html(const struct report_file *f, FILE *out);
/* report_sweep.c: the sweep; nothing when there is none. */
enum status report_sweep_print(const struct report_file *f, FILE *out);
enum status report_sweep_html(const struct report_file *f, FILE *out);

#endif
