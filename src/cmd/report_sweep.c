/* report_sweep.c - the points of a sweep: the front and the best as a table, all as pictures. */
#include "cmd/report_html.h"
#include "cmd/report_study.h"
#include "cmd/report_svg.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static const char sweep_table[] = "/sweep";
enum { MAX_ROWS = 40, LINE_BYTES = 1024, MANY = 1000, CELLS = 120 };

enum sweep_column {
    BATCH,
    TPOT,
    TTFT,
    RATE_REQUEST,
    RATE_GPU,
    USD,
    MARGIN,
    MEETS,
    SHOWN, /* columns of the table end here */
    PARETO = SHOWN,
    BEST,
    FEASIBLE,
    SWEEP_COLUMNS
};

static const struct {
    const char *name, *head;
    double scale;
} columns[SWEEP_COLUMNS] = {
    [BATCH] = {"batch", "batch/GPU", 1},
    [TPOT] = {"tpot_s", "TPOT ms", 1e3},
    [TTFT] = {"ttft_s", "TTFT s", 1},
    [RATE_REQUEST] = {"tokens_per_s_request", "tok/s/req", 1},
    [RATE_GPU] = {"tokens_per_s_gpu", "tok/s/GPU", 1},
    [USD] = {"usd_per_m_output", "$/M output", 1},
    [MARGIN] = {"margin_on_cost", "margin %", 100},
    [MEETS] = {"meets_slo", "meets SLO", 1},
    [PARETO] = {"pareto", "", 1},
    [BEST] = {"best", "", 1},
    [FEASIBLE] = {"feasible", "", 1},
};

struct sweep {
    size_t n, feasible;
    double *column[SWEEP_COLUMNS];     /* [n] owned; NULL = the file has none */
    char (*values)[REPORT_CELL_BYTES]; /* [n] owned: "decode.ep=144 ..."; NULL = none */
};

static void sweep_free(struct sweep *s)
{
    for (int c = 0; c < SWEEP_COLUMNS; c++) free(s->column[c]);
    free(s->values);
}

static enum status sweep_read(const struct report_file *f, struct sweep *s)
{
    memset(s, 0, sizeof *s);
    if (!report_has(f, sweep_table)) return OK;
    for (int c = 0; c < SWEEP_COLUMNS; c++)
        if (report_has_column(f, sweep_table, columns[c].name))
            TRY(report_column(f, sweep_table, columns[c].name, &s->column[c], &s->n));
    TRY(report_cells(f, sweep_table, "values", &s->values, &s->n));
    for (size_t i = 0; i < s->n; i++)
        s->feasible += !s->column[FEASIBLE] || s->column[FEASIBLE][i] > 0;
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

/* The rows on the front and the best, by rising speed of a request; NULL without memory. */
static struct order *front(const struct sweep *s, size_t *n)
{
    struct order *rows = calloc(s->n + 1, sizeof *rows);
    *n = 0;
    for (size_t i = 0; i < s->n && rows; i++) {
        if (!marked(s, PARETO, i) && !marked(s, BEST, i)) continue;
        double key = s->column[RATE_REQUEST] ? s->column[RATE_REQUEST][i] : (double)i;
        rows[(*n)++] = (struct order){key, i};
    }
    if (rows) qsort(rows, *n, sizeof *rows, by_key);
    return rows;
}

/* A number of the table; "yes" and "no" for flags. */
static const char *cell(const struct sweep *s, enum sweep_column c, size_t i, char buf[32])
{
    if (!s->column[c]) return "-";
    double v = s->column[c][i] * columns[c].scale;
    if (c == MEETS) return v > 0 ? "yes" : "no";
    return isfinite(v) ? svg_number(buf, v) : "-";
}

enum status report_sweep_print(const struct report_file *f, FILE *out)
{
    struct sweep s;
    size_t n = 0;
    char buf[32];
    enum status st = sweep_read(f, &s);
    struct order *rows = st == OK && s.n ? front(&s, &n) : NULL;
    if (st == OK && s.n) {
        fprintf(out, "# sweep: %zu points, %zu of them feasible; the Pareto front and the best (*)",
                s.n, s.feasible);
        fprintf(out, "%s\n# ", n > MAX_ROWS ? ", the first 40" : "");
        for (int c = 0; c < SHOWN; c++) fprintf(out, " %10s", columns[c].head);
        fputs("  point\n", out);
    }
    for (size_t i = 0; i < n && i < MAX_ROWS; i++) {
        fputs(marked(&s, BEST, rows[i].row) ? " *" : "  ", out);
        for (int c = 0; c < SHOWN; c++)
            fprintf(out, " %10s", cell(&s, (enum sweep_column)c, rows[i].row, buf));
        fprintf(out, "  %s\n", s.values[rows[i].row]);
    }
    free(rows);
    sweep_free(&s);
    return st;
}

/* What the point is, with its figures: shown under the pointer. */
static void describe(const struct sweep *s, size_t i, char *out, size_t room)
{
    size_t at = (size_t)snprintf(out, room, "%s", s->values[i]);
    for (int c = 0; c < SHOWN && at < room; c++) {
        char buf[32];
        at += (size_t)snprintf(out + at, room - at, "; %s %s", columns[c].head,
                               cell(s, (enum sweep_column)c, i, buf));
    }
}

/* Of the values above 0; 1 when there is none. */
static double smallest(const struct sweep *s, enum sweep_column c)
{
    double least = INFINITY;
    for (size_t i = 0; i < s->n; i++)
        if (s->column[c][i] > 0) least = fmin(least, s->column[c][i]);
    return isfinite(least) ? least : 1;
}

static double largest(const struct sweep *s, enum sweep_column c)
{
    double most = 0;
    for (size_t i = 0; i < s->n; i++)
        if (isfinite(s->column[c][i])) most = fmax(most, s->column[c][i]);
    return most;
}

/* Whether a dot of this class was drawn so near that another one would hide it: a page of many
 * thousand points stays small. seen: [CELLS * CELLS] of the plot. */
static bool crowded(const struct svg_chart *c, double x, double y, int class, uint8_t *seen)
{
    double right = (svg_x(c, x) - c->x0) / (c->x1 - c->x0);
    double up = (c->y0 - svg_y(c, y)) / (c->y0 - c->y1);
    int i = (int)(right * (CELLS - 1)), k = (int)(up * (CELLS - 1));
    if (i < 0 || i >= CELLS || k < 0 || k >= CELLS) return true;
    uint8_t bit = (uint8_t)(1 << class), *at = &seen[i * CELLS + k];
    bool had = (*at & bit) != 0;
    *at |= bit;
    return had;
}

static enum status points(const struct svg_chart *c, const struct sweep *s, enum sweep_column y)
{
    static const char *const colour[] = {"#9aa3b0", SVG_BLUE, SVG_GREEN, SVG_RED};
    uint8_t *seen = calloc((size_t)CELLS * CELLS, sizeof *seen);
    if (!seen) return error_set(ERR_RESOURCE, "report: out of memory");
    /* the marked ones last, so that they lie on top */
    for (int pass = 0; pass < 4; pass++)
        for (size_t i = 0; i < s->n; i++) {
            if (s->column[FEASIBLE] && !marked(s, FEASIBLE, i)) continue;
            bool meets = !s->column[MEETS] || s->column[MEETS][i] > 0;
            int class = marked(s, BEST, i) ? 3 : marked(s, PARETO, i) ? 2 : meets ? 1 : 0;
            double right = s->column[RATE_REQUEST][i], up = s->column[y][i];
            if (class != pass || (s->n > MANY && crowded(c, right, up, class, seen))) continue;
            char tip[LINE_BYTES];
            describe(s, i, tip, sizeof tip);
            svg_dot(c, right, up,
                    class == 3                   ? 7
                    : class == 2 || s->n <= MANY ? 4
                                                 : 2.5,
                    colour[class], tip);
        }
    free(seen);
    return OK;
}

/* The line through the points of the front. */
static void draw_front(const struct svg_chart *c, const struct sweep *s, enum sweep_column y)
{
    size_t n = 0, kept = 0;
    struct order *rows = front(s, &n);
    double *line = calloc(2 * n + 1, sizeof *line);
    for (size_t i = 0; i < n && line; i++) {
        if (!marked(s, PARETO, rows[i].row)) continue;
        line[kept] = rows[i].key;
        line[n + kept++] = s->column[y][rows[i].row];
    }
    if (kept) svg_line(c, line, line + n, kept, SVG_INK, "5 3");
    free(line);
    free(rows);
}

static enum status scatter(const struct sweep *s, enum sweep_column y, const char *title,
                           const char *label, FILE *out)
{
    if (!s->column[RATE_REQUEST] || !s->column[y]) return OK;
    static const struct svg_legend legend[4] = {{"misses the SLO", "#9aa3b0"},
                                                {"meets it", SVG_BLUE},
                                                {"Pareto front", SVG_GREEN},
                                                {"best", SVG_RED}};
    struct svg_chart c = {
        .out = out,
        .title = title,
        .width = SVG_HALF,
        .height = 360,
        .x = svg_from_zero(largest(s, RATE_REQUEST), "tokens/s of a request"),
        .y = y == USD ? (struct svg_axis){.lo = smallest(s, y) / 1.3,
                                          .hi = largest(s, y) * 1.3,
                                          .label = label,
                                          .log = true}
                      : svg_from_zero(largest(s, y), label),
        .legend = legend,
        .n_legend = 4,
    };
    svg_begin(&c);
    if (y == RATE_GPU) draw_front(&c, s, y);
    enum status st = points(&c, s, y);
    svg_end(&c);
    return st;
}

/* Whether every one of the rows has this word, "decode.mtp=true". */
static bool common(const struct sweep *s, const struct order *rows, size_t n, const char *word,
                   size_t len)
{
    for (size_t i = 0; i < n; i++) {
        const char *at = s->values[rows[i].row];
        while ((at = strstr(at, word)) && !(at == s->values[rows[i].row] || at[-1] == ' ')) at++;
        if (!at || (at[len] && at[len] != ' ')) return false;
    }
    return n > 1;
}

/* The words of the first row that are (same) or are not common to all rows. */
static void words(const struct sweep *s, const struct order *rows, size_t n, size_t row, bool same,
                  char *out, size_t room)
{
    size_t at = 0;
    *out = '\0';
    for (const char *w = s->values[row]; *w;) {
        size_t len = strcspn(w, " ");
        char word[REPORT_CELL_BYTES];
        snprintf(word, sizeof word, "%.*s", (int)len, w);
        if (common(s, rows, n, word, len) == same && at < room)
            at += (size_t)snprintf(out + at, room - at, "%s%s", at ? " " : "", word);
        w += len + strspn(w + len, " ");
    }
}

static void front_table(const struct sweep *s, FILE *out)
{
    char text[LINE_BYTES], buf[32], what[REPORT_CELL_BYTES];
    size_t n = 0, at;
    struct order *rows = front(s, &n);
    size_t shown = n < MAX_ROWS ? n : MAX_ROWS;
    if (shown) words(s, rows, shown, rows[0].row, true, what, sizeof what);
    if (shown && *what) {
        fputs("<p>All of these: ", out);
        svg_escape(out, what);
        fputs("</p>\n", out);
    }
    at = (size_t)snprintf(text, sizeof text, "point");
    for (int c = 0; c < SHOWN && at < sizeof text; c++)
        at += (size_t)snprintf(text + at, sizeof text - at, "\t%s", columns[c].head);
    html_table_begin(out, text);
    for (size_t i = 0; i < shown; i++) {
        size_t row = rows[i].row;
        words(s, rows, shown, row, false, what, sizeof what);
        at = (size_t)snprintf(text, sizeof text, "%s%s", *what ? what : s->values[row],
                              marked(s, BEST, row) ? " (best)" : "");
        for (int c = 0; c < SHOWN && at < sizeof text; c++)
            at += (size_t)snprintf(text + at, sizeof text - at, "\t%s",
                                   cell(s, (enum sweep_column)c, row, buf));
        html_row(out, text);
    }
    html_table_end(out);
    free(rows);
}

enum status report_sweep_html(const struct report_file *f, FILE *out)
{
    struct sweep s;
    enum status st = sweep_read(f, &s);
    if (st == OK && s.n) {
        html_section(
            out, "Sweep",
            "Each point is a deployment. On the front no other point gives a request more "
            "tokens/s without giving a GPU fewer; the table lists the front and the best, "
            "the cheapest under the SLO. Hold the pointer over a point to read what it is.");
        fputs("<div class=\"row\">", out);
        st = scatter(&s, RATE_GPU, "Speed of a request against throughput of a GPU", "tokens/s/GPU",
                     out);
        if (st == OK)
            st = scatter(&s, USD, "Speed of a request against cost", "$ per million output tokens",
                         out);
        fputs("</div>\n", out);
        front_table(&s, out);
    }
    sweep_free(&s);
    return st;
}
