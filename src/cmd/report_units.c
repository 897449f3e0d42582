/* report_units.c - of a simulated day: how busy each unit was in each hour, and the figures that
 * were published beside the predicted ones. */
#include "cmd/report_html.h"
#include "cmd/report_study.h"
#include "cmd/report_svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char units_table[] = "/account/units", published_table[] = "/published";
typedef char cell[REPORT_CELL_BYTES];

struct unit_hours {
    size_t n;
    cell *unit; /* [n] owned */
    double *hour, *busy, *tokens;
};

/* From white to dark blue; legible in grey too. */
static void shade(double part, char out[16])
{
    part = part < 0 ? 0 : part > 1 ? 1 : part;
    snprintf(out, 16, "#%02x%02x%02x", (int)lround(240 - 238 * part), (int)lround(244 - 178 * part),
             (int)lround(250 - 130 * part));
}

/* Rows of the map in the order of first appearance: the number of units up to row i. */
static size_t unit_rows(const struct unit_hours *u, size_t *row)
{
    size_t units = 0;
    for (size_t i = 0; i < u->n; i++) {
        size_t k = i;
        while (k > 0 && strcmp(u->unit[k - 1], u->unit[i]) != 0) k--;
        row[i] = k ? row[k - 1] : units++;
    }
    return units;
}

/* clock: time of day at hour 0; NaN = not known. */
static void units_chart(const struct unit_hours *u, const size_t *row, size_t units, double clock,
                        FILE *out)
{
    double last = 0;
    for (size_t i = 0; i < u->n; i++) last = fmax(last, u->hour[i]);
    struct svg_legend legend[3] = {{"0 %", "#f0f4fa"}, {"50 %", "#799bb9"}, {"100 %", "#024278"}};
    struct svg_chart c = {
        .out = out,
        .title = "How busy each unit was in each hour",
        .note = "share of the hour inside steps",
        .width = SVG_FULL,
        .height = 96 + (double)units * (units > 24 ? 15 : 22),
        .left = 92,
        .x = {.lo = 0,
              .hi = last + 1,
              .label = isfinite(clock) ? "time of day" : "hours since the start",
              .clock = isfinite(clock),
              .clock_start = isfinite(clock) ? clock : 0},
        .y = {.lo = -0.5, .hi = (double)units - 0.5, .bare = true},
        .legend = legend,
        .n_legend = 3,
    };
    svg_begin(&c);
    size_t named = 0;
    for (size_t i = 0; i < u->n; i++) {
        double y = (double)(units - 1 - row[i]), part = u->busy[i] / 3600;
        char tip[160], colour[16], number[32];
        snprintf(tip, sizeof tip, "%.24s, hour %.0f: %.1f %% busy, %s tokens", u->unit[i],
                 u->hour[i], part * 100, svg_number(number, u->tokens[i]));
        shade(part, colour);
        svg_rect(&c, u->hour[i], u->hour[i] + 1, y - 0.44, y + 0.44, colour, tip);
        if (row[i] == named) {
            svg_row_name(&c, y, u->unit[i]);
            named++;
        }
    }
    svg_end(&c);
}

enum status report_units_html(const struct report_file *f, FILE *out)
{
    struct unit_hours u = {.n = 0};
    if (!report_has(f, units_table)) return OK;
    enum status st = report_cells(f, units_table, "unit", &u.unit, &u.n);
    if (st == OK) st = report_column(f, units_table, "hour", &u.hour, &u.n);
    if (st == OK) st = report_column(f, units_table, "busy_s", &u.busy, &u.n);
    if (st == OK) st = report_column(f, units_table, "tokens", &u.tokens, &u.n);
    double *clock = NULL;
    size_t hours = 0;
    if (st == OK && report_has_column(f, "/account/hourly", "hour_of_day"))
        st = report_column(f, "/account/hourly", "hour_of_day", &clock, &hours);
    size_t *row = calloc(u.n + 1, sizeof *row);
    if (st == OK && !row) st = error_set(ERR_RESOURCE, "report: out of memory");
    if (st == OK && u.n)
        units_chart(&u, row, unit_rows(&u, row), hours ? *clock : (double)NAN, out);
    free(row);
    free(clock);
    free(u.unit);
    free(u.hour);
    free(u.busy);
    free(u.tokens);
    return st;
}

struct figures {
    size_t n;
    cell *name, *units;
    double *published, *high, *predicted, *error, *tolerance;
};

static void figures_free(struct figures *g)
{
    free(g->name);
    free(g->units);
    double *all[] = {g->published, g->high, g->predicted, g->error, g->tolerance};
    for (int i = 0; i < 5; i++) free(all[i]);
}

static enum status figures_read(const struct report_file *f, struct figures *g)
{
    memset(g, 0, sizeof *g);
    if (!report_has(f, published_table)) return OK;
    TRY(report_cells(f, published_table, "figure", &g->name, &g->n));
    TRY(report_cells(f, published_table, "units", &g->units, &g->n));
    TRY(report_column(f, published_table, "published", &g->published, &g->n));
    TRY(report_column(f, published_table, "published_high", &g->high, &g->n));
    TRY(report_column(f, published_table, "predicted", &g->predicted, &g->n));
    TRY(report_column(f, published_table, "error", &g->error, &g->n));
    return report_column(f, published_table, "tolerance", &g->tolerance, &g->n);
}

struct figure_text {
    char published[48], predicted[32], error[32], tolerance[32];
};

static struct figure_text text_of(const struct figures *g, size_t i)
{
    struct figure_text t = {.tolerance = "-"};
    if (isfinite(g->high[i]) && g->high[i] != g->published[i])
        snprintf(t.published, sizeof t.published, "%.6g to %.6g", g->published[i], g->high[i]);
    else
        snprintf(t.published, sizeof t.published, "%.6g", g->published[i]);
    snprintf(t.predicted, sizeof t.predicted, "%.6g", g->predicted[i]);
    snprintf(t.error, sizeof t.error, "%+.2f", g->error[i] * 100);
    if (isfinite(g->tolerance[i]))
        snprintf(t.tolerance, sizeof t.tolerance, "%.2f", g->tolerance[i] * 100);
    return t;
}

/* "missed" where the error is beyond the tolerance, if there is one. */
static const char *verdict(const struct figures *g, size_t i)
{
    if (!isfinite(g->tolerance[i])) return "";
    return fabs(g->error[i]) <= g->tolerance[i] ? "met" : "missed";
}

enum status report_published_print(const struct report_file *f, FILE *out)
{
    struct figures g;
    enum status st = figures_read(f, &g);
    if (st == OK && g.n)
        fprintf(out, "# %-42s %-14s %20s %12s %9s %9s\n", "figure", "units", "published",
                "predicted", "error %", "asked %");
    for (size_t i = 0; i < g.n && st == OK; i++) {
        struct figure_text t = text_of(&g, i);
        fprintf(out, "  %-42s %-14s %20s %12s %9s %9s %s\n", g.name[i], g.units[i], t.published,
                t.predicted, t.error, t.tolerance, verdict(&g, i));
    }
    figures_free(&g);
    return st;
}

enum status report_published_html(const struct report_file *f, FILE *out)
{
    struct figures g;
    enum status st = figures_read(f, &g);
    if (st == OK && g.n) {
        html_section(out, "Published and predicted",
                     "Errors are relative to what was published; none where the prediction lies in "
                     "a published range.");
        html_table_begin(out, "figure\tunits\tpublished\tpredicted\terror, %\tasked, %\t");
        for (size_t i = 0; i < g.n; i++) {
            struct figure_text t = text_of(&g, i);
            char line[1024];
            snprintf(line, sizeof line, "%s\t%s\t%s\t%s\t%s\t%s\t%s", g.name[i], g.units[i],
                     t.published, t.predicted, t.error, t.tolerance, verdict(&g, i));
            html_row(out, line);
        }
        html_table_end(out);
    }
    figures_free(&g);
    return st;
}
