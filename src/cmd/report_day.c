/* report_day.c - see report_day.h. */
#include "cmd/report_day.h"

#include <math.h>
#include <stdlib.h>

static const char *const column_name[DAY_COLUMNS] = {
    "t_start",
    "hour_of_day",
    "prefill_nodes",
    "decode_nodes",
    "lent_nodes",
    "published_nodes",
    "requests",
    "hit_tokens",
    "miss_tokens",
    "output_tokens",
    "cost_usd",
    "revenue_usd",
    "profit_usd",
    "published_revenue_usd",
    "ttft_p50_s",
    "ttft_p90_s",
    "ttft_p99_s",
    "tpot_p50_s",
    "tpot_p90_s",
    "tpot_p99_s",
    "prefill_utilisation",
    "decode_utilisation",
    "kv_occupancy",
    "queued_requests",
};

void day_free(struct day *d)
{
    for (int c = 0; c < DAY_COLUMNS; c++) free(d->column[c]);
    free(d->edge);
}

/* Rows must be in the order of time, or edges would run backwards. */
static enum status set_edges(const struct report_file *f, const char *name, struct day *d)
{
    d->edge = calloc(d->n + 1, sizeof *d->edge);
    if (!d->edge) return error_set(ERR_RESOURCE, "report: out of memory");
    const double *t = d->column[T_START];
    for (size_t i = 0; i < d->n; i++) {
        d->edge[i] = t[i] / 3600;
        if (!isfinite(t[i]) || (i && !(t[i] > t[i - 1])))
            return error_set(ERR_INPUT, "%s: %s, row %zu: t_start is %g s: expected rising times",
                             f->path, name, i, t[i]);
    }
    double last = d->n > 1 ? d->edge[d->n - 1] - d->edge[d->n - 2] : 1;
    if (d->n) d->edge[d->n] = d->edge[d->n - 1] + last;
    return OK;
}

/* A column without a single known value is as good as none. */
static void drop_unknown(struct day *d)
{
    for (int c = 0; c < DAY_COLUMNS; c++) {
        size_t known = 0;
        for (size_t i = 0; i < d->n && d->column[c]; i++) known += isfinite(d->column[c][i]) != 0;
        if (known) continue;
        free(d->column[c]);
        d->column[c] = NULL;
    }
}

enum status day_read(const struct report_file *f, const char *name, struct day *d)
{
    *d = (struct day){.clock = (double)NAN};
    if (!report_has(f, name)) return OK;
    if (!report_has_column(f, name, column_name[T_START]))
        return error_set(ERR_INPUT, "%s: %s has no column t_start", f->path, name);
    for (int c = 0; c < DAY_COLUMNS; c++)
        if (report_has_column(f, name, column_name[c]))
            TRY(report_column(f, name, column_name[c], &d->column[c], &d->n));
    if (d->n && d->column[HOUR_OF_DAY])
        d->clock = d->column[HOUR_OF_DAY][0] - d->column[T_START][0] / 3600;
    TRY(set_edges(f, name, d));
    drop_unknown(d);
    return OK;
}

double day_sum(const struct day *d, enum day_column c)
{
    if (!d->column[c]) return (double)NAN;
    double s = 0;
    for (size_t i = 0; i < d->n; i++) s += d->column[c][i];
    return s;
}

double day_hours(const struct day *d)
{
    return d->n ? d->edge[d->n] - d->edge[0] : 0;
}

double day_mean(const struct day *d, enum day_column c)
{
    if (!d->column[c]) return (double)NAN;
    double s = 0;
    for (size_t i = 0; i < d->n; i++) s += d->column[c][i] * (d->edge[i + 1] - d->edge[i]);
    return s / day_hours(d);
}

double day_at(const struct day *d, enum day_column c, size_t i, double scale)
{
    return d->column[c] ? d->column[c][i] * scale : (double)NAN;
}

const char *day_clock(const struct day *d, size_t i, char buf[32])
{
    double h = d->edge[i] + (isfinite(d->clock) ? d->clock : 0);
    int minutes = (int)lround(h * 60);
    snprintf(buf, 32, "%02d:%02d", minutes / 60 % 24, minutes % 60);
    return buf;
}

/* A number of a table's cell, "-" when unknown. */
static const char *num(char buf[32], const char *fmt, double v)
{
    if (!isfinite(v)) return "-";
    snprintf(buf, 32, fmt, v); // NOLINT(clang-diagnostic-format-nonliteral)
    return buf;
}

static void print_hours(const struct day *d, FILE *out)
{
    static const struct {
        enum day_column column;
        const char *head, *fmt;
        double scale;
    } cells[] = {
        {PREFILL_NODES, "prefill", "%.1f", 1},
        {DECODE_NODES, "decode", "%.1f", 1},
        {REQUESTS, "requests", "%.0f", 1},
        {HIT, "hit Mtok", "%.0f", 1e-6},
        {MISS, "miss Mtok", "%.0f", 1e-6},
        {OUTPUT, "out Mtok", "%.0f", 1e-6},
        {TPOT_P50, "TPOT ms", "%.1f", 1e3},
        {TTFT_P90, "TTFT90 s", "%.2f", 1},
        {COST, "cost $", "%.0f", 1},
        {REVENUE, "income $", "%.0f", 1},
        {PUBLISHED_REVENUE, "publ. $", "%.0f", 1},
    };
    enum { CELLS = sizeof cells / sizeof *cells };
    char buf[32];
    fprintf(out, "# %-5s", "hour");
    for (int k = 0; k < CELLS; k++)
        if (d->column[cells[k].column]) fprintf(out, " %9s", cells[k].head);
    fputc('\n', out);
    for (size_t i = 0; i < d->n; i++) {
        fprintf(out, "  %-5s", day_clock(d, i, buf));
        for (int k = 0; k < CELLS; k++)
            if (d->column[cells[k].column])
                fprintf(out, " %9s",
                        num(buf, cells[k].fmt, day_at(d, cells[k].column, i, cells[k].scale)));
        fputc('\n', out);
    }
}

static void print_totals(const struct day *d, FILE *out)
{
    char a[32], b[32], c[32];
    double hit = day_sum(d, HIT), miss = day_sum(d, MISS), cost = day_sum(d, COST),
           revenue = day_sum(d, REVENUE);
    fprintf(out, "# totals of %.4g hours\n", day_hours(d));
    fprintf(out, "  requests %s; nodes, mean: prefill %s, decode %s\n",
            num(a, "%.0f", day_sum(d, REQUESTS)), num(b, "%.2f", day_mean(d, PREFILL_NODES)),
            num(c, "%.2f", day_mean(d, DECODE_NODES)));
    fprintf(out, "  input tokens %s (%s %% found in the cache), output tokens %s\n",
            num(a, "%.5g", hit + miss), num(b, "%.1f", hit / (hit + miss) * 100),
            num(c, "%.5g", day_sum(d, OUTPUT)));
    fprintf(out, "  cost $ %s, theoretical revenue $ %s, margin on cost %s %%\n",
            num(a, "%.0f", cost), num(b, "%.0f", revenue),
            num(c, "%.1f", (revenue - cost) / cost * 100));
}

void report_day_print(const struct day *hour, FILE *out)
{
    if (!hour->n) return;
    print_hours(hour, out);
    print_totals(hour, out);
}
