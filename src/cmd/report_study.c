/* report_study.c - the results file of a study: a day, its units, published figures, a sweep. */
#include "cmd/report_study.h"

#include "cmd/report_day.h"

#include <math.h>

bool report_study_found(const struct report_file *f)
{
    return report_has(f, DAY_HOURS) || report_has(f, DAY_MINUTES) || report_has(f, "/sweep") ||
           report_has(f, "/unit/batches");
}

enum status report_study_print(const struct report_file *f, FILE *out)
{
    struct day d;
    enum status st = day_read(f, DAY_HOURS, &d);
    if (st == OK) report_day_print(&d, out);
    day_free(&d);
    if (st == OK) st = report_unit_study_print(f, out);
    if (st == OK) st = report_published_print(f, out);
    return st == OK ? report_sweep_print(f, out) : st;
}

enum status report_study_html(const struct report_file *f, FILE *out)
{
    struct day hour, minute = {.n = 0};
    enum status st = day_read(f, DAY_HOURS, &hour);
    if (st == OK) st = day_read(f, DAY_MINUTES, &minute);
    if (st == OK && isnan(minute.clock)) minute.clock = hour.clock;
    if (st == OK) st = report_day_html(&hour, &minute, out);
    day_free(&hour);
    day_free(&minute);
    if (st == OK) st = report_unit_study_html(f, out);
    if (st == OK) st = report_units_html(f, out);
    if (st == OK) st = report_published_html(f, out);
    return st == OK ? report_sweep_html(f, out) : st;
}
