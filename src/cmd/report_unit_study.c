/* report_unit_study.c - what study --unit found: speed by batch, the stages of a step, memory. */
#include "cmd/report_html.h"
#include "cmd/report_study.h"
#include "cmd/report_svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BATCHES "/unit/batches"
#define STAGES "/unit/stages"
#define MEMORY "/unit/memory"

enum { MOST_COLUMNS = 9 };
typedef char cell[REPORT_CELL_BYTES];

/* One of the three tables: its rows' role, level and (stages) name, and some columns of numbers. */
struct part {
    size_t n;
    cell *role, *level, *name;    /* [n] owned; name may be NULL */
    double *column[MOST_COLUMNS]; /* [n] owned */
};

static void part_free(struct part *p)
{
    free(p->role);
    free(p->level);
    free(p->name);
    for (int c = 0; c < MOST_COLUMNS; c++) free(p->column[c]);
}

static enum status part_read(const struct report_file *f, const char *table, const char *name,
                             const char *const *columns, int n, struct part *p)
{
    memset(p, 0, sizeof *p);
    TRY(report_cells(f, table, "role", &p->role, &p->n));
    TRY(report_cells(f, table, "level", &p->level, &p->n));
    if (name) TRY(report_cells(f, table, name, &p->name, &p->n));
    for (int c = 0; c < n; c++) TRY(report_column(f, table, columns[c], &p->column[c], &p->n));
    return OK;
}

static bool is(const struct part *p, size_t i, const char *role, const char *level)
{
    return !strcmp(p->role[i], role) && !strcmp(p->level[i], level);
}

enum { LOAD, TPOT, PER_GPU };
static const char *const batch_columns[] = {"load", "tpot_s", "tokens_per_s_gpu"};
static const char *const levels[2] = {"tables", "calibrated"};

struct curve {
    const char *role, *title, *x, *y;
    int column;
    double scale;
};

static enum status level_line(const struct svg_chart *c, const struct part *p,
                              const struct curve *k, int level)
{
    double *x = calloc(2 * p->n + 1, sizeof *x);
    if (!x) return error_set(ERR_RESOURCE, "report: out of memory");
    double *y = x + p->n;
    const char *colour = level ? SVG_BLUE : SVG_ORANGE;
    size_t n = 0;
    for (size_t i = 0; i < p->n; i++) {
        if (!is(p, i, k->role, levels[level])) continue;
        x[n] = p->column[LOAD][i];
        y[n] = p->column[k->column][i] * k->scale;
        char tip[128], a[32], b[32];
        snprintf(tip, sizeof tip, "%s, %s %s: %s %s", levels[level], svg_number(a, x[n]), k->x,
                 svg_number(b, y[n]), k->y);
        svg_dot(c, x[n], y[n], 3, colour, tip);
        n++;
    }
    svg_line(c, x, y, n, colour, level ? NULL : "5 3");
    free(x);
    return OK;
}

static enum status curve_chart(const struct part *p, const struct curve *k, FILE *out)
{
    static const struct svg_legend legend[2] = {{"calibrated: tables + trace constants", SVG_BLUE},
                                                {"tables alone", SVG_ORANGE}};
    double right = 0, top = 0;
    for (size_t i = 0; i < p->n; i++) {
        if (strcmp(p->role[i], k->role) != 0) continue;
        right = fmax(right, p->column[LOAD][i]);
        top = fmax(top, p->column[k->column][i] * k->scale);
    }
    if (!(right > 0)) return OK;
    struct svg_chart c = {.out = out,
                          .title = k->title,
                          .width = SVG_HALF,
                          .height = 270,
                          .x = svg_from_zero(right, k->x),
                          .y = svg_from_zero(top, k->y),
                          .legend = legend,
                          .n_legend = 2};
    svg_begin(&c);
    enum status st = OK;
    for (int l = 0; l < 2 && st == OK; l++) st = level_line(&c, p, k, l);
    svg_end(&c);
    return st;
}

static const char *const stage_columns[] = {"compute_us", "memory_us",  "launch_us",
                                            "network_us", "latency_us", "kernels_us"};
static const struct svg_legend stage_legend[] = {
    {"compute", SVG_BLUE},         {"memory", SVG_SKY},
    {"launch", SVG_GREY},          {"network bandwidth", SVG_RED},
    {"network latency", SVG_PINK}, {"small kernels, gaps", SVG_GREEN}};
enum { BOUNDS = sizeof stage_legend / sizeof *stage_legend };

/* The stages of a role at the level that knows most, as bars cut by what bounds them. */
static void stages_chart(const struct part *p, const char *role, const char *title, FILE *out)
{
    const char *level = "tables";
    for (size_t i = 0; i < p->n; i++)
        if (is(p, i, role, "calibrated")) level = "calibrated";
    size_t rows = 0, row = 0;
    double most = 0;
    for (size_t i = 0; i < p->n; i++) {
        if (!is(p, i, role, level)) continue;
        double sum = 0;
        for (int b = 0; b < BOUNDS; b++) sum += p->column[b][i];
        most = fmax(most, sum);
        rows++;
    }
    if (!rows) return;
    struct svg_chart c = {.out = out,
                          .title = title,
                          .note = level,
                          .width = SVG_FULL,
                          .height = 96 + (double)rows * 24,
                          .left = 110,
                          .x = svg_from_zero(most, "time of one micro-batch, us"),
                          .y = {.lo = -0.5, .hi = (double)rows - 0.5, .bare = true},
                          .legend = stage_legend,
                          .n_legend = BOUNDS};
    svg_begin(&c);
    for (size_t i = 0; i < p->n; i++) {
        if (!is(p, i, role, level)) continue;
        double y = (double)(rows - 1 - row++), x = 0;
        svg_row_name(&c, y, p->name[i]);
        for (int b = 0; b < BOUNDS; b++) {
            double us = p->column[b][i];
            char tip[96], number[32];
            if (!(us > 0)) continue;
            snprintf(tip, sizeof tip, "%.20s, %s: %s us", p->name[i], stage_legend[b].name,
                     svg_number(number, us));
            svg_rect(&c, x, x + us, y - 0.36, y + 0.36, stage_legend[b].colour, tip);
            x += us;
        }
    }
    svg_end(&c);
}

static const char *const memory_columns[] = {"capacity", "replicated", "experts",
                                             "absorbed", "buffers",    "workspace",
                                             "reserve",  "kv_cache",   "kv_tokens"};

static void memory_table(const struct part *p, FILE *out)
{
    html_table_begin(out, "memory of a GPU, GB\tcapacity\treplicated weights\texperts\tabsorbed\t"
                          "buffers\tworkspace\treserve\tKV cache\tKV tokens");
    for (size_t i = 0; i < p->n; i++) {
        if (i && !strcmp(p->role[i], p->role[0])) break; /* the same at either level */
        char text[512];
        size_t at = (size_t)snprintf(text, sizeof text, "%s", p->role[i]);
        for (int c = 0; c < MOST_COLUMNS && at < sizeof text; c++)
            at += (size_t)snprintf(text + at, sizeof text - at, "\t%.*f", c < MOST_COLUMNS - 1,
                                   p->column[c][i] * (c < MOST_COLUMNS - 1 ? 1e-9 : 1));
        html_row(out, text);
    }
    html_table_end(out);
}

static enum status curves(const struct report_file *f, FILE *out)
{
    static const struct curve k[] = {
        {"decode", "Decode: throughput of a GPU", "requests/GPU", "tokens/s/GPU", PER_GPU, 1},
        {"decode", "Decode: time per output token", "requests/GPU", "TPOT, ms", TPOT, 1e3},
        {"prefill", "Prefill: throughput of a GPU", "tokens/GPU and step", "tokens/s/GPU", PER_GPU,
         1},
    };
    struct part p;
    enum status st = part_read(f, BATCHES, NULL, batch_columns, 3, &p);
    fputs("<div class=\"row\">", out);
    for (size_t i = 0; i < sizeof k / sizeof *k && st == OK; i++) st = curve_chart(&p, &k[i], out);
    fputs("</div>\n", out);
    part_free(&p);
    return st;
}

enum status report_unit_study_html(const struct report_file *f, FILE *out)
{
    if (!report_has(f, BATCHES)) return OK;
    html_section(out, "Units",
                 "One prefill and one decode unit by the load of a step. The stages are those of "
                 "the largest load; dispatch and combine run beside computation.");
    TRY(curves(f, out));
    struct part p;
    enum status st = part_read(f, STAGES, "stage", stage_columns, BOUNDS, &p);
    if (st == OK) stages_chart(&p, "prefill", "Stages of a prefill step", out);
    if (st == OK) stages_chart(&p, "decode", "Stages of a decode step", out);
    part_free(&p);
    if (st == OK) {
        st = part_read(f, MEMORY, NULL, memory_columns, MOST_COLUMNS, &p);
        if (st == OK) memory_table(&p, out);
        part_free(&p);
    }
    return st;
}

enum status report_unit_study_print(const struct report_file *f, FILE *out)
{
    if (!report_has(f, BATCHES)) return OK;
    struct part p;
    enum status st = part_read(f, BATCHES, NULL, batch_columns, 3, &p);
    if (st == OK)
        fprintf(out, "# %-8s %-10s %14s %10s %14s\n", "unit", "level", "load of a GPU", "TPOT ms",
                "tokens/s/GPU");
    for (size_t i = 0; st == OK && i < p.n; i++) {
        char tpot[32] = "-";
        if (isfinite(p.column[TPOT][i]))
            snprintf(tpot, sizeof tpot, "%.2f", 1e3 * p.column[TPOT][i]);
        fprintf(out, "  %-8s %-10s %14.0f %10s %14.0f\n", p.role[i], p.level[i], p.column[LOAD][i],
                tpot, p.column[PER_GPU][i]);
    }
    part_free(&p);
    return st;
}
