/* report_sweep.c - the points of a sweep: the best ones as a table, all as a picture with the Pareto
 * front. */
#include "cmd/report_html.h"
#include "cmd/report_study.h"
#include "cmd/report_svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char SWEEP[] = "/sweep";
enum { MAX_COLUMNS = 32, MAX_ROWS = 40, LINE_BYTES = 2048 };

enum sweep_column { RATE_REQUEST, RATE_GPU, USD, MEETS, PARETO, BEST, SWEEP_COLUMNS };
static const char *const column_name[SWEEP_COLUMNS] = {
    "tokens_per_s_request", "tokens_per_s_gpu", "usd_per_m_output", "meets_slo", "pareto", "best",
};

typedef char cell[REPORT_CELL_BYTES];

struct sweep {
    size_t n;
    double *column[SWEEP_COLUMNS]; /* [n] owned; NULL = the file has none */
    int columns;                   /* all of the table's, as text */
    cell head[MAX_COLUMNS];
    cell *cells[MAX_COLUMNS];      /* [n] owned */
};

static void sweep_free(struct sweep *s)
{
    for (int c = 0; c < SWEEP_COLUMNS; c++) free(s->column[c]);
    for (int c = 0; c < s->columns; c++) free(s->cells[c]);
}

static enum status sweep_read(const struct report_file *f, struct sweep *s)
{
    memset(s, 0, sizeof *s);
    if (!report_has(f, SWEEP)) return OK;
    for (int c = 0; c < SWEEP_COLUMNS; c++)
        if (report_has_column(f, SWEEP, column_name[c]))
            TRY(report_column(f, SWEEP, column_name[c], &s->column[c], &s->n));
    for (unsigned i = 0; s->columns < MAX_COLUMNS; i++) {
        if (!report_column_name(f, SWEEP, i, s->head[s->columns])) break;
        TRY(report_cells(f, SWEEP, s->head[s->columns], &s->cells[s->columns], &s->n));
        s->columns++;
    }
    return OK;
}

static bool marked(const struct sweep *s, enum sweep_column c, size_t i)
{
    return s->column[c] && s->column[c][i] > 0;
}

struct order {
    double key;
    size_t row;
};

static int by_key(const void *a, const void *b)
{
    const struct order *x = a, *y = b;
    return (x->key > y->key) - (x->key < y->key);
}

/* The rows on the front and the best, by rising speed of a request; all when none is marked. */
static struct order *front(const struct sweep *s, size_t *n)
{
    struct order *rows = calloc(s->n + 1, sizeof *rows);
    *n = 0;
    for (int all = 0; all < 2 && !*n && rows; all++)
        for (size_t i = 0; i < s->n; i++) {
            if (!all && !marked(s, PARETO, i) && !marked(s, BEST, i)) continue;
            double key = s->column[RATE_REQUEST] ? s->column[RATE_REQUEST][i] : (double)i;
            rows[(*n)++] = (struct order){key, i};
        }
    if (rows) qsort(rows, *n, sizeof *rows, by_key);
    return rows;
}

enum status report_sweep_print(const struct report_file *f, FILE *out)
{
    struct sweep s;
    size_t n = 0;
    enum status st = sweep_read(f, &s);
    struct order *rows = st == OK && s.n ? front(&s, &n) : NULL;
    if (n) {
        fprintf(out, "# sweep: %zu points; the Pareto front and the best (*), %zu rows%s\n#  ", s.n,
                n, n > MAX_ROWS ? ", the first 40" : "");
        for (int c = 0; c < s.columns; c++) fprintf(out, " %*s", 10, s.head[c]);
        fputc('\n', out);
    }
    for (size_t i = 0; i < n && i < MAX_ROWS; i++) {
        fputs(marked(&s, BEST, rows[i].row) ? "  *" : "   ", out);
        for (int c = 0; c < s.columns; c++) {
            int width = (int)strlen(s.head[c]);
            fprintf(out, " %*s", width > 10 ? width : 10, s.cells[c][rows[i].row]);
        }
        fputc('\n', out);
    }
    free(rows);
    sweep_free(&s);
    return st;
}

/* "prefill_ep 32, decode_ep 144, ...": what the point is. */
static void describe(const struct sweep *s, size_t i, char *out, size_t room)
{
    size_t at = 0;
    *out = '\0';
    for (int c = 0; c < s->columns && at < room; c++)
        at += (size_t)snprintf(out + at, room - at, "%s%s %s", c ? ", " : "", s->head[c],
                               s->cells[c][i]);
}

static double largest(const struct sweep *s, enum sweep_column c)
{
    double most = 0;
    for (size_t i = 0; i < s->n; i++)
        if (isfinite(s->column[c][i])) most = fmax(most, s->column[c][i]);
    return most;
}

static void points(const struct svg_chart *c, const struct sweep *s, enum sweep_column y)
{
    /* the marked ones last, so that they lie on top */
    for (int pass = 0; pass < 3; pass++)
        for (size_t i = 0; i < s->n; i++) {
            bool best = marked(s, BEST, i);
            bool meets = !s->column[MEETS] || s->column[MEETS][i] > 0;
            if ((best ? 2 : meets ? 1 : 0) != pass) continue;
            char tip[LINE_BYTES];
            describe(s, i, tip, sizeof tip);
            svg_dot(c, s->column[RATE_REQUEST][i], s->column[y][i], best ? 7 : 4,
                    best ? SVG_RED : meets ? SVG_BLUE : SVG_GREY, tip);
        }
}

static void scatter(const struct sweep *s, enum sweep_column y, const char *title,
                    const char *label, FILE *out)
{
    if (!s->column[RATE_REQUEST] || !s->column[y]) return;
    static const struct svg_legend legend[4] = {{"misses the SLO", SVG_GREY},
                                                {"meets it", SVG_BLUE},
                                                {"best", SVG_RED},
                                                {"Pareto front", SVG_INK}};
    struct svg_chart c = {
        .out = out,
        .title = title,
        .width = SVG_HALF,
        .height = 360,
        .x = svg_from_zero(largest(s, RATE_REQUEST), "tokens/s of a request"),
        .y = svg_from_zero(largest(s, y), label),
        .legend = legend,
        .n_legend = y == RATE_GPU ? 4 : 3,
    };
    svg_begin(&c);
    size_t n = 0, kept = 0;
    struct order *rows = y == RATE_GPU && s->column[PARETO] ? front(s, &n) : NULL;
    double *line = calloc(2 * n + 1, sizeof *line);
    for (size_t i = 0; i < n && line; i++) {
        if (!marked(s, PARETO, rows[i].row)) continue;
        line[kept] = rows[i].key;
        line[n + kept++] = s->column[y][rows[i].row];
    }
    if (kept) svg_line(&c, line, line + n, kept, SVG_INK, "5 3");
    free(line);
    free(rows);
    points(&c, s, y);
    svg_end(&c);
}

static void front_table(const struct sweep *s, FILE *out)
{
    char text[LINE_BYTES];
    size_t n = 0, at = 0;
    struct order *rows = front(s, &n);
    for (int c = 0; c < s->columns && at < sizeof text; c++)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%s", c ? "\t" : "", s->head[c]);
    fputs("<div class=\"wide\">", out);
    html_table_begin(out, text);
    for (size_t i = 0; i < n && i < MAX_ROWS; i++) {
        at = 0;
        for (int c = 0; c < s->columns && at < sizeof text; c++)
            at += (size_t)snprintf(text + at, sizeof text - at, "%s%s", c ? "\t" : "",
                                   s->cells[c][rows[i].row]);
        html_row(out, text);
    }
    html_table_end(out);
    fputs("</div>\n", out);
    free(rows);
}

enum status report_sweep_html(const struct report_file *f, FILE *out)
{
    struct sweep s;
    enum status st = sweep_read(f, &s);
    if (st == OK && s.n) {
        html_section(out, "Sweep",
                     "Each point is a deployment. On the front no other point gives a request more "
                     "tokens/s without giving a GPU fewer; the table lists the front and the best "
                     "under the SLO. Hold the pointer over a point to read what it is.");
        fputs("<div class=\"row\">", out);
        scatter(&s, RATE_GPU, "Speed of a request against throughput of a GPU", "tokens/s/GPU",
                out);
        scatter(&s, USD, "Speed of a request against cost", "$ per million output tokens", out);
        fputs("</div>\n", out);
        front_table(&s, out);
    }
    sweep_free(&s);
    return st;
}
