/* report_run_load.c - who carried how much: ranks (tokens, expert rows, KV pages, time) and the
 * experts of each layer. */
#include "cmd/report_html.h"
#include "cmd/report_run.h"
#include "cmd/report_svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PARTS_MAX = 3, LAYERS_A_ROW = 6 };

/* A bar of each rank, of stacked parts. */
struct rank_chart {
    const char *title, *label;
    int parts;
    struct svg_legend part[PARTS_MAX];
    double (*value)(const struct rank_row *r, int part);
    bool compare; /* print max / mean of each role */
};

static double tokens_of(const struct rank_row *r, int part)
{
    return (double)(part ? r->decode_tokens : r->prefill_tokens);
}

static double expert_rows_of(const struct rank_row *r, int part)
{
    (void)part;
    return (double)r->expert_rows;
}

static double attention_of(const struct rank_row *r, int part)
{
    (void)part;
    return r->attn_work;
}

static double kv_of(const struct rank_row *r, int part)
{
    (void)part;
    return (double)r->kv_pages_peak;
}

static double share_of(const struct rank_row *r, int part)
{
    double total = r->compute_s + r->exposed_comm_s + r->idle_s;
    double time = part == 0 ? r->compute_s : part == 1 ? r->exposed_comm_s : r->idle_s;
    return total > 0 ? time / total * 100 : 0;
}

static const struct rank_chart rank_charts[] = {
    {"Tokens computed by each rank",
     "tokens",
     2,
     {{"prefill", SVG_ORANGE}, {"decode", SVG_BLUE}},
     tokens_of,
     true},
    {"Routed-expert rows of each rank", "rows", 1, {{"rows", SVG_GREEN}}, expert_rows_of, true},
    {"Attention work of each rank",
     "(query, key) pairs",
     1,
     {{"pairs", SVG_SKY}},
     attention_of,
     true},
    {"Most KV pages in use, each rank", "pages", 1, {{"pages", SVG_PINK}}, kv_of, true},
    {"How each rank spent its time",
     "share of its time, %",
     3,
     {{"busy", SVG_BLUE}, {"waited for communication", SVG_ORANGE}, {"idle", SVG_GREY}},
     share_of,
     false},
};

static double total_of(const struct rank_chart *r, const struct rank_row *row)
{
    double total = 0;
    for (int p = 0; p < r->parts; p++) total += r->value(row, p);
    return total;
}

/* "max / mean: prefill 1.03, decode 1.12" */
static void compare_roles(const struct rank_chart *r, const struct report_run *run, char *note,
                          size_t room)
{
    static const char *const role[] = {"prefill", "decode", "mixed"};
    size_t at = (size_t)snprintf(note, room, "max / mean:");
    for (int k = 0; k < 3; k++) {
        double most = 0, sum = 0;
        int n = 0;
        for (size_t i = 0; i < run->n_ranks; i++) {
            if (strncmp(run->ranks[i].role, role[k], RESULTS_UNIT_MAX) != 0) continue;
            double v = total_of(r, &run->ranks[i]);
            most = fmax(most, v);
            sum += v;
            n++;
        }
        if (n && sum > 0 && at < room)
            at += (size_t)snprintf(note + at, room - at, " %s %.3f", role[k], most / (sum / n));
    }
}

static void draw_rank(const struct svg_chart *c, const struct rank_chart *r,
                      const struct rank_row *row)
{
    /* a gap between bars only where it is wide enough to be seen as one */
    double low = 0, half = svg_x(c, 1) - svg_x(c, 0) > 4 ? 0.44 : 0.5;
    for (int p = 0; p < r->parts; p++) {
        double v = r->value(row, p);
        char tip[192], number[32];
        snprintf(tip, sizeof tip, "rank %d, %.16s on %.64s: %s %s", row->rank, row->unit, row->host,
                 r->part[p].name, svg_number(number, v));
        if (v > 0)
            svg_rect(c, row->rank - half, row->rank + half, low, low + v, r->part[p].colour, tip);
        low += v;
    }
}

static void rank_chart(const struct rank_chart *r, const struct report_run *run, double width,
                       FILE *out)
{
    double most = 0, last = 0;
    for (size_t i = 0; i < run->n_ranks; i++) {
        most = fmax(most, total_of(r, &run->ranks[i]));
        last = fmax(last, run->ranks[i].rank);
    }
    char note[128] = "";
    if (r->compare) compare_roles(r, run, note, sizeof note);
    struct svg_chart c = {
        .out = out,
        .title = r->title,
        .note = note,
        .width = width,
        .height = 245,
        .x = {.lo = -0.6, .hi = last + 0.6, .label = "rank"},
        .y = r->compare ? svg_from_zero(most, r->label)
                        : (struct svg_axis){.hi = 100, .label = r->label},
        .legend = r->part,
        .n_legend = r->parts > 1 ? r->parts : 0,
    };
    svg_begin(&c);
    for (size_t i = 0; i < run->n_ranks; i++) draw_rank(&c, r, &run->ranks[i]);
    svg_end(&c);
}

static int by_layer_then_load(const void *a, const void *b)
{
    const struct expert_load_row *x = a, *y = b;
    if (x->layer != y->layer) return (x->layer > y->layer) - (x->layer < y->layer);
    return (x->rows < y->rows) - (x->rows > y->rows);
}

struct layer_load {
    const struct expert_load_row *rows; /* [n] heaviest first */
    size_t n;
    double mean, peak; /* rows of an expert; heaviest / mean */
};

/* The layer that begins at rows[0] of `left` sorted rows. */
static struct layer_load layer_at(const struct expert_load_row *rows, size_t left)
{
    struct layer_load l = {.rows = rows};
    double sum = 0;
    while (l.n < left && rows[l.n].layer == rows[0].layer) sum += (double)rows[l.n++].rows;
    l.mean = sum / (double)l.n;
    l.peak = sum > 0 ? (double)rows[0].rows / l.mean : 0;
    return l;
}

static enum status layer_chart(const struct layer_load *l, double most, FILE *out)
{
    double *edge = calloc(2 * l->n + 1, sizeof *edge);
    if (!edge) return error_set(ERR_RESOURCE, "report: out of memory");
    double *load = edge + l->n + 1;
    for (size_t i = 0; i < l->n; i++) {
        edge[i + 1] = (double)(i + 1);
        load[i] = l->mean > 0 ? (double)l->rows[i].rows / l->mean : 0;
    }
    char title[64], note[64];
    snprintf(title, sizeof title, "layer %d", l->rows[0].layer);
    snprintf(note, sizeof note, "peak %.2f", l->peak);
    struct svg_chart c = {
        .out = out,
        .title = title,
        .note = note,
        .width = (SVG_FULL - (LAYERS_A_ROW - 1) * 14) / (double)LAYERS_A_ROW,
        .height = 132,
        .left = 30,
        .x = {.lo = 0, .hi = (double)l->n},
        .y = {.lo = 0, .hi = most},
    };
    svg_begin(&c);
    svg_steps(&c, edge, load, l->n, SVG_GREEN, true);
    svg_level(&c, 1, "");
    svg_end(&c);
    free(edge);
    return OK;
}

/* The heaviest expert of each layer, and the layers one by one. */
static enum status expert_charts(const struct report_run *run, FILE *out)
{
    struct expert_load_row *rows = malloc(run->n_load * sizeof *rows);
    if (!rows) return error_set(ERR_RESOURCE, "report: out of memory");
    memcpy(rows, run->load, run->n_load * sizeof *rows);
    qsort(rows, run->n_load, sizeof *rows, by_layer_then_load);
    double most = 1;
    for (size_t i = 0; i < run->n_load;) {
        struct layer_load l = layer_at(rows + i, run->n_load - i);
        most = fmax(most, l.peak);
        i += l.n;
    }
    most *= 1.05;
    enum status st = OK;
    fputs("<div class=\"row\" style=\"gap:0 14px\">", out);
    for (size_t i = 0; i < run->n_load && st == OK;) {
        struct layer_load l = layer_at(rows + i, run->n_load - i);
        if (l.mean > 0) st = layer_chart(&l, most, out);
        i += l.n;
    }
    fputs("</div>\n", out);
    free(rows);
    return st;
}

enum status report_run_load_html(const struct report_run *run, FILE *out)
{
    html_section(
        out, "Load of the ranks",
        "Of the last attempt. All ranks of a unit wait for the busiest one in every layer: "
        "max / mean is what the balancers keep near 1.");
    if (!run->n_ranks) fputs("<p>No rank reported.</p>\n", out);
    fputs("<div class=\"row\">", out);
    const size_t n = sizeof rank_charts / sizeof *rank_charts;
    for (size_t i = 0; i < n && run->n_ranks; i++)
        rank_chart(&rank_charts[i], run, i + 1 == n ? SVG_FULL : SVG_HALF, out);
    fputs("</div>\n", out);
    if (!run->n_load) return OK;
    html_section(out, "Load of the experts",
                 "Each layer's routed experts, heaviest first (from left to right), as a multiple "
                 "of the layer's mean (the dashed line): what the gates asked for, before "
                 "replicas. Peak: the heaviest.");
    return expert_charts(run, out);
}
