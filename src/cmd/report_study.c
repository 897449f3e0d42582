/* report_study.c - a simulated day: totals and hours on the terminal, charts on the page. */
#include "cmd/report_study.h"

#include "cmd/report_html.h"
#include "cmd/report_svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The columns by index; their names are in `column_name`. */
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

#define LENT "#e4e8ee"

/* One table of the day. */
struct day {
    size_t n;                    /* rows */
    double *column[DAY_COLUMNS]; /* [n] owned; NULL = the file has none */
    double *edge;                /* [n + 1] owned: hours since the start */
    double clock;                /* time of day at 0, h; NaN = unknown */
};

static const char hourly[] = "/account/hourly", minutes[] = "/minutes";

bool report_study_found(const struct report_file *f)
{
    return report_has(f, hourly) || report_has(f, minutes) || report_has(f, "/sweep");
}

static void day_free(struct day *d)
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

/* Nothing when the file has no such table: d->n stays 0. */
static enum status day_read(const struct report_file *f, const char *name, struct day *d)
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

static double sum(const struct day *d, enum day_column c)
{
    if (!d->column[c]) return (double)NAN;
    double s = 0;
    for (size_t i = 0; i < d->n; i++) s += d->column[c][i];
    return s;
}

static double hours(const struct day *d)
{
    return d->n ? d->edge[d->n] - d->edge[0] : 0;
}

/* Mean over time, weighted by the rows' lengths. */
static double mean(const struct day *d, enum day_column c)
{
    if (!d->column[c]) return (double)NAN;
    double s = 0;
    for (size_t i = 0; i < d->n; i++) s += d->column[c][i] * (d->edge[i + 1] - d->edge[i]);
    return s / hours(d);
}

static double at(const struct day *d, enum day_column c, size_t i, double scale)
{
    return d->column[c] ? d->column[c][i] * scale : (double)NAN;
}

/* A number of a table's cell, "-" when unknown. */
static const char *num(char buf[32], const char *fmt, double v)
{
    if (!isfinite(v)) return "-";
    snprintf(buf, 32, fmt, v); // NOLINT(clang-diagnostic-format-nonliteral)
    return buf;
}

static const char *clock_text(const struct day *d, size_t i, char buf[32])
{
    double h = d->edge[i] + (isfinite(d->clock) ? d->clock : 0);
    int minutes = (int)lround(h * 60);
    snprintf(buf, 32, "%02d:%02d", minutes / 60 % 24, minutes % 60);
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
        fprintf(out, "  %-5s", clock_text(d, i, buf));
        for (int k = 0; k < CELLS; k++)
            if (d->column[cells[k].column])
                fprintf(out, " %9s",
                        num(buf, cells[k].fmt, at(d, cells[k].column, i, cells[k].scale)));
        fputc('\n', out);
    }
}

static void print_totals(const struct day *d, FILE *out)
{
    char a[32], b[32], c[32];
    double hit = sum(d, HIT), miss = sum(d, MISS), cost = sum(d, COST), revenue = sum(d, REVENUE);
    fprintf(out, "# totals of %.4g hours\n", hours(d));
    fprintf(out, "  requests %s; nodes, mean: prefill %s, decode %s\n",
            num(a, "%.0f", sum(d, REQUESTS)), num(b, "%.2f", mean(d, PREFILL_NODES)),
            num(c, "%.2f", mean(d, DECODE_NODES)));
    fprintf(out, "  input tokens %s (%s %% found in the cache), output tokens %s\n",
            num(a, "%.5g", hit + miss), num(b, "%.1f", hit / (hit + miss) * 100),
            num(c, "%.5g", sum(d, OUTPUT)));
    fprintf(out, "  cost $ %s, theoretical revenue $ %s, margin on cost %s %%\n",
            num(a, "%.0f", cost), num(b, "%.0f", revenue),
            num(c, "%.1f", (revenue - cost) / cost * 100));
}

enum status report_study_print(const struct report_file *f, FILE *out)
{
    struct day d;
    enum status st = day_read(f, hourly, &d);
    if (st == OK && d.n) {
        print_hours(&d, out);
        print_totals(&d, out);
    }
    day_free(&d);
    if (st == OK) st = report_published_print(f, out);
    return st == OK ? report_sweep_print(f, out) : st;
}

/* A line of a chart over the day. */
struct series {
    enum day_column column;
    const char *name, *colour;
    double scale;
    bool per_second; /* the column counts a row's events: divide by its length */
    const char *dash;
};

struct day_chart {
    const char *title, *label;
    double width;
    int n;
    struct series series[3];
    double top; /* of the y axis, 0 = from the values */
};

static const struct day_chart lines[] = {
    {"Tokens per second, all units",
     "tokens/s",
     SVG_HALF,
     3,
     {{HIT, "input, cache hit", SVG_SKY, 1, true, NULL},
      {MISS, "input, computed", SVG_ORANGE, 1, true, NULL},
      {OUTPUT, "output", SVG_BLUE, 1, true, NULL}},
     0},
    {"Requests", "requests/s", SVG_HALF, 1, {{REQUESTS, "arriving", SVG_GREEN, 1, true, NULL}}, 0},
    {"Time per output token",
     "TPOT, ms",
     SVG_HALF,
     3,
     {{TPOT_P50, "p50", SVG_BLUE, 1e3, false, NULL},
      {TPOT_P90, "p90", SVG_ORANGE, 1e3, false, NULL},
      {TPOT_P99, "p99", SVG_RED, 1e3, false, NULL}},
     0},
    {"Time to first token",
     "TTFT, s",
     SVG_HALF,
     3,
     {{TTFT_P50, "p50", SVG_BLUE, 1, false, NULL},
      {TTFT_P90, "p90", SVG_ORANGE, 1, false, NULL},
      {TTFT_P99, "p99", SVG_RED, 1, false, NULL}},
     0},
    {"Utilisation",
     "share, %",
     SVG_HALF,
     3,
     {{PREFILL_BUSY, "prefill units in steps", SVG_ORANGE, 100, false, NULL},
      {DECODE_BUSY, "decode units in steps", SVG_BLUE, 100, false, NULL},
      {KV, "KV pages in use", SVG_PINK, 100, false, "5 3"}},
     100},
    {"Requests that wait for prefill or decode",
     "requests",
     SVG_HALF,
     1,
     {{QUEUED, "waiting", SVG_RED, 1, false, NULL}},
     0},
};

static double series_value(const struct day *d, const struct series *s, size_t i)
{
    double v = at(d, s->column, i, s->scale);
    return s->per_second ? v / ((d->edge[i + 1] - d->edge[i]) * 3600) : v;
}

static struct svg_axis time_axis(const struct day *d)
{
    bool known = isfinite(d->clock);
    return (struct svg_axis){.lo = d->edge[0],
                             .hi = d->edge[d->n],
                             .label = known ? "time of day" : "hours since the start",
                             .clock = known,
                             .clock_start = known ? d->clock : 0};
}

static enum status draw_series(const struct svg_chart *c, const struct day *d,
                               const struct series *s)
{
    double *x = calloc(2 * d->n, sizeof *x);
    if (!x) return error_set(ERR_RESOURCE, "report: out of memory");
    double *y = x + d->n;
    for (size_t i = 0; i < d->n; i++) {
        x[i] = (d->edge[i] + d->edge[i + 1]) / 2;
        y[i] = series_value(d, s, i);
    }
    svg_line(c, x, y, d->n, s->colour, s->dash);
    for (size_t i = 0; i < d->n && d->n <= 200; i++) {
        char tip[96], clock[32], number[32];
        snprintf(tip, sizeof tip, "%s from %s: %s", s->name, clock_text(d, i, clock),
                 svg_number(number, y[i]));
        svg_dot(c, x[i], y[i], 2.4, s->colour, tip);
    }
    free(x);
    return OK;
}

/* Draws the series that the table has; nothing when it has none. */
static enum status line_chart(const struct day_chart *k, const struct day *d, FILE *out)
{
    struct svg_legend legend[3];
    int n = 0;
    double most = k->top;
    for (int s = 0; s < k->n; s++) {
        if (!d->column[k->series[s].column]) continue;
        legend[n++] = (struct svg_legend){k->series[s].name, k->series[s].colour};
        for (size_t i = 0; i < d->n; i++) {
            double v = series_value(d, &k->series[s], i);
            if (isfinite(v)) most = fmax(most, v);
        }
    }
    if (!n) return OK;
    struct svg_chart c = {
        .out = out,
        .title = k->title,
        .width = k->width,
        .height = 270,
        .x = time_axis(d),
        .y = k->top > 0 ? (struct svg_axis){.hi = most, .label = k->label}
                        : svg_from_zero(most, k->label),
        .legend = legend,
        .n_legend = n,
    };
    svg_begin(&c);
    enum status st = OK;
    for (int s = 0; s < k->n && st == OK; s++)
        if (d->column[k->series[s].column]) st = draw_series(&c, d, &k->series[s]);
    svg_end(&c);
    return st;
}

/* A stack of decode's, prefill's and lent nodes from row `i` as long as they stay the same; returns
 * the row after. */
static size_t draw_nodes(const struct svg_chart *c, const struct day *d, size_t i)
{
    double decode = d->column[DECODE_NODES][i], prefill = d->column[PREFILL_NODES][i];
    double lent = at(d, LENT_NODES, i, 1), used = decode + prefill;
    size_t to = i + 1;
    while (to < d->n && d->column[DECODE_NODES][to] == decode &&
           d->column[PREFILL_NODES][to] == prefill)
        to++;
    char tip[128], clock[32];
    snprintf(tip, sizeof tip, "from %s: %.4g prefill, %.4g decode", clock_text(d, i, clock),
             prefill, decode);
    svg_rect(c, d->edge[i], d->edge[to], 0, decode, SVG_BLUE, tip);
    svg_rect(c, d->edge[i], d->edge[to], decode, used, SVG_ORANGE, tip);
    if (lent > 0) svg_rect(c, d->edge[i], d->edge[to], used, used + lent, LENT, tip);
    return to;
}

/* The published nodes as a line of steps. */
static enum status draw_published(const struct svg_chart *c, const struct day *d)
{
    double *x = calloc(4 * d->n, sizeof *x);
    if (!x) return error_set(ERR_RESOURCE, "report: out of memory");
    double *y = x + 2 * d->n;
    for (size_t i = 0; i < d->n; i++) {
        x[2 * i] = d->edge[i];
        x[2 * i + 1] = d->edge[i + 1];
        y[2 * i] = y[2 * i + 1] = d->column[PUBLISHED_NODES][i];
    }
    svg_line(c, x, y, 2 * d->n, SVG_INK, NULL);
    free(x);
    return OK;
}

/* Prefill's nodes on top of decode's; published: the table with published nodes, or NULL. */
static enum status nodes_chart(const struct day *d, const struct day *published, FILE *out)
{
    if (!d->column[PREFILL_NODES] || !d->column[DECODE_NODES]) return OK;
    double most = 0;
    for (size_t i = 0; i < d->n; i++) {
        double lent = at(d, LENT_NODES, i, 1);
        most = fmax(most, d->column[PREFILL_NODES][i] + d->column[DECODE_NODES][i] +
                              (lent > 0 ? lent : 0));
    }
    for (size_t i = 0; published && i < published->n; i++)
        most = fmax(most, published->column[PUBLISHED_NODES][i]); /* fmax skips NaN */
    struct svg_legend legend[4] = {{"decode", SVG_BLUE}, {"prefill", SVG_ORANGE}};
    int n = 2;
    if (d->column[LENT_NODES]) legend[n++] = (struct svg_legend){"free for other work", LENT};
    if (published) legend[n++] = (struct svg_legend){"published, all", SVG_INK};
    char note[96];
    snprintf(note, sizeof note, "mean %.2f nodes", mean(d, PREFILL_NODES) + mean(d, DECODE_NODES));
    struct svg_chart c = {
        .out = out,
        .title = "Nodes in service",
        .note = note,
        .width = SVG_FULL,
        .height = 300,
        .x = time_axis(d),
        .y = svg_from_zero(most, "nodes"),
        .legend = legend,
        .n_legend = n,
    };
    svg_begin(&c);
    for (size_t i = 0; i < d->n;) i = draw_nodes(&c, d, i);
    enum status st = published ? draw_published(&c, published) : OK;
    svg_end(&c);
    return st;
}

/* "$87,072" */
static const char *dollars(char buf[32], double v)
{
    char digits[32];
    snprintf(digits, sizeof digits, "%.0f", fabs(v));
    size_t n = strlen(digits), at = 0;
    if (!isfinite(v) || n > 20) return svg_number(buf, v);
    if (v < 0) buf[at++] = '-';
    buf[at++] = '$';
    for (size_t i = 0; i < n; i++) {
        if (i && (n - i) % 3 == 0) buf[at++] = ',';
        buf[at++] = digits[i];
    }
    buf[at] = '\0';
    return buf;
}

/* Bars side by side: cost, income and the published income of each hour. */
static void money_chart(const struct day *d, FILE *out)
{
    const struct svg_legend legend[3] = {
        {"cost", SVG_ORANGE}, {"theoretical income", SVG_BLUE}, {"published income", SVG_GREY}};
    const enum day_column column[3] = {COST, REVENUE, PUBLISHED_REVENUE};
    int n = d->column[PUBLISHED_REVENUE] ? 3 : 2;
    if (!d->column[COST] || !d->column[REVENUE]) return;
    double most = 0;
    for (int k = 0; k < n; k++)
        for (size_t i = 0; i < d->n; i++)
            if (isfinite(d->column[column[k]][i])) most = fmax(most, d->column[column[k]][i]);
    char note[96], a[32], b[32];
    snprintf(note, sizeof note, "sums: cost %s, income %s", dollars(a, sum(d, COST)),
             dollars(b, sum(d, REVENUE)));
    struct svg_chart c = {
        .out = out,
        .title = "Cost and theoretical income of each hour",
        .note = note,
        .width = SVG_FULL,
        .height = 320,
        .x = time_axis(d),
        .y = svg_from_zero(most, "$ per hour"),
        .legend = legend,
        .n_legend = n,
    };
    svg_begin(&c);
    for (size_t i = 0; i < d->n; i++)
        for (int k = 0; k < n; k++) {
            double wide = d->edge[i + 1] - d->edge[i], bar = wide * 0.84 / n;
            double x = d->edge[i] + wide * 0.08 + k * bar;
            char tip[96], clock[32];
            snprintf(tip, sizeof tip, "%s from %s: $%.0f", legend[k].name, clock_text(d, i, clock),
                     d->column[column[k]][i]);
            svg_rect(&c, x, x + bar, 0, d->column[column[k]][i], legend[k].colour, tip);
        }
    svg_end(&c);
}

static void day_tiles(const struct day *d, FILE *out)
{
    char a[32], text[64];
    const struct {
        const char *name, *unit; /* "$": money */
        double value;
    } tiles[] = {
        {"requests", "", sum(d, REQUESTS)},
        {"input tokens", "", sum(d, HIT) + sum(d, MISS)},
        {"found in the cache", " %", sum(d, HIT) / (sum(d, HIT) + sum(d, MISS)) * 100},
        {"output tokens", "", sum(d, OUTPUT)},
        {"nodes, mean", "", mean(d, PREFILL_NODES) + mean(d, DECODE_NODES)},
        {"cost", "$", sum(d, COST)},
        {"theoretical income", "$", sum(d, REVENUE)},
        {"profit / cost", " %", (sum(d, REVENUE) - sum(d, COST)) / sum(d, COST) * 100},
    };
    html_tiles_begin(out);
    for (size_t i = 0; i < sizeof tiles / sizeof *tiles; i++) {
        double v = tiles[i].value;
        bool money = *tiles[i].unit == '$';
        if (!isfinite(v)) continue;
        snprintf(text, sizeof text, "%s%s", money ? dollars(a, v) : svg_number(a, v),
                 money ? "" : tiles[i].unit);
        html_tile(out, text, tiles[i].name);
    }
    html_tiles_end(out);
}

/* The minutes where they have the chart's first column, else the hours. */
static const struct day *finer(const struct day *hour, const struct day *minute,
                               enum day_column column)
{
    return minute->n && minute->column[column] ? minute : hour;
}

static enum status day_html(const struct day *hour, const struct day *minute, FILE *out)
{
    const struct day *any = hour->n ? hour : minute;
    if (!any->n) return OK;
    day_tiles(any, out);
    html_section(out, "The simulated day",
                 "Every request was simulated. Hold the pointer over a mark to read its figures.");
    const struct day *published = finer(hour, minute, PUBLISHED_NODES);
    if (!published->n || !published->column[PUBLISHED_NODES]) published = NULL;
    const struct day *nodes = finer(hour, minute, PREFILL_NODES);
    if (nodes->n) TRY(nodes_chart(nodes, published, out));
    if (hour->n) money_chart(hour, out);
    fputs("<div class=\"row\">", out);
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        const struct day *d = finer(hour, minute, lines[i].series[0].column);
        if (d->n) TRY(line_chart(&lines[i], d, out));
    }
    fputs("</div>\n", out);
    return OK;
}

enum status report_study_html(const struct report_file *f, FILE *out)
{
    struct day hour, minute = {.n = 0};
    enum status st = day_read(f, hourly, &hour);
    if (st == OK) st = day_read(f, minutes, &minute);
    if (st == OK && isnan(minute.clock)) minute.clock = hour.clock;
    if (st == OK) st = day_html(&hour, &minute, out);
    day_free(&hour);
    day_free(&minute);
    if (st == OK) st = report_units_html(f, out);
    if (st == OK) st = report_published_html(f, out);
    return st == OK ? report_sweep_html(f, out) : st;
}
