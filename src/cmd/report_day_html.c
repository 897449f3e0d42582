/* report_day_html.c - the charts of a simulated day. */
#include "cmd/report_day.h"
#include "cmd/report_html.h"
#include "cmd/report_svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LENT "#e4e8ee"

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
    double v = day_at(d, s->column, i, s->scale);
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
        snprintf(tip, sizeof tip, "%s from %s: %s", s->name, day_clock(d, i, clock),
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
    double lent = day_at(d, LENT_NODES, i, 1), used = decode + prefill;
    size_t to = i + 1;
    while (to < d->n && d->column[DECODE_NODES][to] == decode &&
           d->column[PREFILL_NODES][to] == prefill)
        to++;
    char tip[128], clock[32];
    snprintf(tip, sizeof tip, "from %s: %.4g prefill, %.4g decode", day_clock(d, i, clock), prefill,
             decode);
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
        double lent = day_at(d, LENT_NODES, i, 1);
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
    snprintf(note, sizeof note, "mean %.2f nodes",
             day_mean(d, PREFILL_NODES) + day_mean(d, DECODE_NODES));
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
    snprintf(note, sizeof note, "sums: cost %s, income %s", dollars(a, day_sum(d, COST)),
             dollars(b, day_sum(d, REVENUE)));
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
            snprintf(tip, sizeof tip, "%s from %s: $%.0f", legend[k].name, day_clock(d, i, clock),
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
        {"requests", "", day_sum(d, REQUESTS)},
        {"input tokens", "", day_sum(d, HIT) + day_sum(d, MISS)},
        {"found in the cache", " %", day_sum(d, HIT) / (day_sum(d, HIT) + day_sum(d, MISS)) * 100},
        {"output tokens", "", day_sum(d, OUTPUT)},
        {"nodes, mean", "", day_mean(d, PREFILL_NODES) + day_mean(d, DECODE_NODES)},
        {"cost", "$", day_sum(d, COST)},
        {"theoretical income", "$", day_sum(d, REVENUE)},
        {"profit / cost", " %", (day_sum(d, REVENUE) - day_sum(d, COST)) / day_sum(d, COST) * 100},
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

enum status report_day_html(const struct day *hour, const struct day *minute, FILE *out)
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
