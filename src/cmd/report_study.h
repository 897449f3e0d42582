/* report_study.h - the results file of a study: a day by the hour and by the minute, and a sweep.
 *
 * What is read, all by column name; a chart whose columns are missing is left out, so that a study
 * without a day, or a day without published figures, is as good. Numbers only, NaN = not known.
 *
 * /account/hourly, one row an hour (also found as /hourly):
 *   t_start s since the study's start; hour_of_day; prefill_nodes, decode_nodes (means);
 *   published_nodes; requests (arrived); hit_tokens, miss_tokens, output_tokens; cost_usd,
 *   revenue_usd, profit_usd; published_revenue_usd; ttft_p50_s, ttft_p90_s, ttft_p99_s,
 *   tpot_p50_s, tpot_p90_s, tpot_p99_s; prefill_utilisation, decode_utilisation (share of
 *   the units' time inside steps, 0..1), kv_occupancy (share of pages, 0..1)
 * /minutes (or /account/minutes), one row a minute: the same columns, as far as they exist, and
 *   queued_requests (waiting for prefill or decode at the minute's end)
 * /sweep, one row a point:
 *   tokens_per_s_request, tokens_per_s_gpu, usd_per_m_output, ttft_s, tpot_s; meets_slo, pareto
 *   (tokens/s/request against tokens/s/GPU), best: 0 or 1; any other number column is an axis
 *   of the sweep (prefill_ep, decode_ep, max_batch, ...)
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
/* report_sweep.c: those of the sweep; nothing when there is none. */
enum status report_sweep_print(const struct report_file *f, FILE *out);
enum status report_sweep_html(const struct report_file *f, FILE *out);

#endif
