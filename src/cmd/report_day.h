/* report_day.h - a simulated day as the results file has it: one table by the hour, one by the
 * minute, each read by column name into arrays. Used by the day's terminal table and its charts.
 *
 * struct day owns its arrays; day_free. NaN = not known. Errors: ERR_INPUT naming table and row.
 */
#ifndef CMD_REPORT_DAY_H
#define CMD_REPORT_DAY_H

#include "cmd/report_read.h"

#include <stdio.h>

#define DAY_HOURS "/account/hourly"
#define DAY_MINUTES "/minutes"

/* The columns by index. */
enum day_column {
    T_START,
    HOUR_OF_DAY,
    PREFILL_NODES,
    DECODE_NODES,
    LENT_NODES,
    PUBLISHED_NODES,
    REQUESTS,
    HIT,
    MISS,
    OUTPUT,
    COST,
    REVENUE,
    PROFIT,
    PUBLISHED_REVENUE,
    TTFT_P50,
    TTFT_P90,
    TTFT_P99,
    TPOT_P50,
    TPOT_P90,
    TPOT_P99,
    PREFILL_BUSY,
    DECODE_BUSY,
    KV,
    QUEUED,
    DAY_COLUMNS
};

/* One table of the day. */
struct day {
    size_t n;                    /* rows */
    double *column[DAY_COLUMNS]; /* [n] owned; NULL = the file has none */
    double *edge;                /* [n + 1] owned: hours since the start */
    double clock;                /* time of day at 0, h; NaN = unknown */
};

/* Nothing when the file has no such table: d->n stays 0. day_free also after an error. */
enum status day_read(const struct report_file *f, const char *name, struct day *d);
void day_free(struct day *d);

double day_sum(const struct day *d, enum day_column c);
double day_hours(const struct day *d);                   /* length of the table, h */
double day_mean(const struct day *d, enum day_column c); /* over time, weighted by rows' lengths */
double day_at(const struct day *d, enum day_column c, size_t i, double scale);
const char *day_clock(const struct day *d, size_t i, char buf[32]); /* "07:15", row i's start */

/* Hours and totals on the terminal. */
void report_day_print(const struct day *hour, FILE *out);
/* report_day_html.c: tiles and charts of the page. */
enum status report_day_html(const struct day *hour, const struct day *minute, FILE *out);

#endif
