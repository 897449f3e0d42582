/* report_run_time.c - what happened when: a row of steps for each unit, tokens/s, step times, and
 * the stages of a mean step. */
#include "cmd/report_html.h"
#include "cmd/report_run.h"
#include "cmd/report_svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BINS = 140, MAX_UNITS = 48, MAX_BOXES = 4000, LANE_BINS = 900 };

static const char *const kind_name[2] = {"prefill", "decode"};
static const char *const kind_colour[2] = {SVG_ORANGE, SVG_BLUE};
static const struct svg_legend kinds[2] = {{"prefill", SVG_ORANGE}, {"decode", SVG_BLUE}};

struct units {
    char name[MAX_UNITS][RESULTS_UNIT_MAX + 1];
    int n;
    bool more; /* some were left out */
};

/* The units of both kinds of steps, in order of appearance. */
static int unit_of(struct units *u, const struct step_row *s)
{
    for (int i = 0; i < u->n; i++)
        if (!strncmp(u->name[i], s->unit, RESULTS_UNIT_MAX)) return i;
    if (u->n == MAX_UNITS) {
        u->more = true;
        return -1;
    }
    memcpy(u->name[u->n], s->unit, RESULTS_UNIT_MAX);
    u->name[u->n][RESULTS_UNIT_MAX] = '\0';
    return u->n++;
}

static void draw_boxes(const struct svg_chart *c, const struct report_run *run, struct units *u)
{
    for (int kind = 0; kind < 2; kind++)
        for (size_t i = 0; i < run->n_steps[kind]; i++) {
            const struct step_row *s = &run->steps[kind][i];
            int row = unit_of(u, s);
            if (row < 0) continue;
            char tip[192];
            snprintf(tip, sizeof tip,
                     "%.16s, %s step %lld: %.2f ms from %.3f s, %d tokens of %d requests", s->unit,
                     kind_name[kind], (long long)s->step, s->duration * 1e3, s->t_start, s->tokens,
                     s->requests);
            double y = u->n - 1 - row;
            svg_rect(c, s->t_start, s->t_start + s->duration, y - 0.36, y + 0.36, kind_colour[kind],
                     tip);
        }
}

/* Too many steps for a box each: the share of every bin that each kind of step takes, as height. */
static enum status draw_shares(const struct svg_chart *c, const struct report_run *run,
                               struct units *u)
{
    double *share = calloc((size_t)2 * MAX_UNITS * LANE_BINS, sizeof *share);
    if (!share) return error_set(ERR_RESOURCE, "report: out of memory");
    double width = run->end_s / LANE_BINS;
    for (int kind = 0; kind < 2; kind++)
        for (size_t i = 0; i < run->n_steps[kind]; i++) {
            const struct step_row *s = &run->steps[kind][i];
            int row = unit_of(u, s);
            if (row < 0) continue;
            double from = s->t_start, to = s->t_start + s->duration;
            for (int b = (int)fmax(from / width, 0); b < LANE_BINS && b * width < to; b++) {
                double part = fmin(to, (b + 1) * width) - fmax(from, b * width);
                share[(kind * MAX_UNITS + row) * LANE_BINS + b] += part / width;
            }
        }
    for (int row = 0; row < u->n; row++)
        for (int b = 0; b < LANE_BINS; b++) {
            double low = u->n - 1 - row - 0.36;
            for (int kind = 0; kind < 2; kind++) {
                double part = fmin(share[(kind * MAX_UNITS + row) * LANE_BINS + b], 1) * 0.72;
                if (part > 0.004)
                    svg_rect(c, b * width, (b + 1) * width, low, low + part, kind_colour[kind],
                             NULL);
                low += part;
            }
        }
    free(share);
    return OK;
}

static enum status timeline(const struct report_run *run, FILE *out)
{
    struct units u = {.n = 0};
    for (int kind = 0; kind < 2; kind++)
        for (size_t i = 0; i < run->n_steps[kind]; i++) unit_of(&u, &run->steps[kind][i]);
    bool boxes = run->n_steps[0] + run->n_steps[1] <= MAX_BOXES;
    char note[128];
    snprintf(note, sizeof note, "%zu prefill and %zu decode steps%s%s", run->n_steps[0],
             run->n_steps[1], boxes ? "" : "; height = share of the time",
             u.more ? "; first 48 units" : "");
    struct svg_chart c = {
        .out = out,
        .title = "Steps of each unit",
        .note = note,
        .width = SVG_FULL,
        .height = 96 + u.n * (u.n > 12 ? 20 : 34),
        .left = 92,
        .x = {.lo = 0, .hi = run->end_s, .label = "time since the job's start, s"},
        .y = {.lo = -0.6, .hi = u.n - 0.4, .bare = true},
        .legend = kinds,
        .n_legend = 2,
    };
    svg_begin(&c);
    for (int i = 0; i < u.n; i++) svg_row_name(&c, u.n - 1 - i, u.name[i]);
    if (boxes) draw_boxes(&c, run, &u);
    enum status st = boxes ? OK : draw_shares(&c, run, &u);
    svg_end(&c);
    return st;
}

/* Tokens of each bin of time, spread evenly over the steps' durations, as tokens/s. */
static void rates(const struct report_run *run, int kind, double width, double rate[BINS])
{
    memset(rate, 0, sizeof *rate * BINS);
    for (size_t i = 0; i < run->n_steps[kind]; i++) {
        const struct step_row *s = &run->steps[kind][i];
        double from = s->t_start, to = s->t_start + s->duration;
        if (!(s->duration > 0)) continue;
        for (int b = (int)fmax(from / width, 0); b < BINS && b * width < to; b++) {
            double part = fmin(to, (b + 1) * width) - fmax(from, b * width);
            rate[b] += s->tokens * part / s->duration / width;
        }
    }
}

static void rate_chart(const struct report_run *run, int kind, FILE *out)
{
    double rate[BINS], edge[BINS + 1], width = run->end_s / BINS, most = 0;
    if (!run->n_steps[kind]) return;
    rates(run, kind, width, rate);
    for (int i = 0; i <= BINS; i++) edge[i] = i * width;
    for (int i = 0; i < BINS; i++) most = fmax(most, rate[i]);
    const struct throughput_row *t = &run->summary.throughput;
    double mean = kind ? t->decode_tokens_per_s : t->prefill_tokens_per_s;
    char title[64], level[64], number[32];
    snprintf(title, sizeof title, "Tokens per second, %s", kind_name[kind]);
    snprintf(level, sizeof level, "mean %s", svg_number(number, mean));
    struct svg_chart c = {
        .out = out,
        .title = title,
        .width = SVG_HALF,
        .height = 230,
        .x = {.lo = 0, .hi = run->end_s, .label = "time since the job's start, s"},
        .y = svg_from_zero(most, "tokens/s, all units"),
    };
    svg_begin(&c);
    svg_steps(&c, edge, rate, BINS, kind_colour[kind], true);
    svg_level(&c, mean, level);
    svg_end(&c);
}

/* Mean and longest step of each bin of time. */
static void duration_chart(const struct report_run *run, int kind, FILE *out)
{
    double x[BINS], mean[BINS], most[BINS], highest = 0;
    int64_t n[BINS];
    if (!run->n_steps[kind]) return;
    for (int i = 0; i < BINS; i++) {
        x[i] = (i + 0.5) * run->end_s / BINS;
        mean[i] = most[i] = 0;
        n[i] = 0;
    }
    for (size_t i = 0; i < run->n_steps[kind]; i++) {
        const struct step_row *s = &run->steps[kind][i];
        int b = (int)(s->t_start / run->end_s * BINS);
        b = b < 0 ? 0 : b >= BINS ? BINS - 1 : b;
        n[b]++;
        mean[b] += s->duration * 1e3;
        most[b] = fmax(most[b], s->duration * 1e3);
        highest = fmax(highest, s->duration * 1e3);
    }
    char title[64];
    snprintf(title, sizeof title, "Step time, %s", kind_name[kind]);
    const struct svg_legend legend[2] = {{"mean", kind_colour[kind]}, {"longest", "#8a93a3"}};
    struct svg_chart c = {
        .out = out,
        .title = title,
        .width = SVG_HALF,
        .height = 240,
        .x = {.lo = 0, .hi = run->end_s, .label = "time since the job's start, s"},
        .y = svg_from_zero(highest, "step time, ms"),
        .legend = legend,
        .n_legend = 2,
    };
    svg_begin(&c);
    for (int i = 0; i < BINS; i++) {
        if (!n[i]) continue;
        char tip[96];
        snprintf(tip, sizeof tip, "%.3f s: %lld steps, mean %.2f ms, longest %.2f ms", x[i],
                 (long long)n[i], mean[i] / (double)n[i], most[i]);
        svg_dot(&c, x[i], most[i], 2.2, "#8a93a3", tip);
        svg_dot(&c, x[i], mean[i] / (double)n[i], 2.6, kind_colour[kind], tip);
    }
    svg_end(&c);
}

/* Bars of a mean step's parts. Communication runs beside computation: the bars do not add up. */
static void stage_chart(const struct report_run *run, FILE *out)
{
    static const char *const name[] = {"attention",
                                       "routed experts, dense MLP",
                                       "shared experts",
                                       "embedding and head",
                                       "dispatch",
                                       "combine",
                                       "waited for communication",
                                       "idle"};
    enum { PARTS = sizeof name / sizeof *name };
    double mean[2][PARTS] = {{0}}, most = 0;
    for (int kind = 0; kind < 2; kind++)
        for (size_t i = 0; i < run->n_steps[kind]; i++) {
            const struct step_row *s = &run->steps[kind][i];
            const float part[PARTS] = {s->attn_ms,         s->mlp_ms,      s->shared_ms,
                                       s->head_ms,         s->dispatch_ms, s->combine_ms,
                                       s->exposed_comm_ms, s->idle_ms};
            for (int p = 0; p < PARTS; p++) mean[kind][p] += part[p] / (double)run->n_steps[kind];
        }
    for (int kind = 0; kind < 2; kind++)
        for (int p = 0; p < PARTS; p++) most = fmax(most, mean[kind][p]);
    struct svg_chart c = {
        .out = out,
        .title = "Where the time of a mean step goes",
        .note = "mean over ranks; dispatch and combine run beside computation",
        .width = SVG_FULL,
        .height = 330,
        .left = 190,
        .x = svg_from_zero(most, "time, ms"),
        .y = {.lo = -0.6, .hi = PARTS - 0.4, .bare = true},
        .legend = kinds,
        .n_legend = 2,
    };
    svg_begin(&c);
    for (int p = 0; p < PARTS; p++) {
        double y = PARTS - 1 - p;
        svg_row_name(&c, y, name[p]);
        for (int kind = 0; kind < 2; kind++) {
            if (!run->n_steps[kind]) continue;
            char text[64], number[32];
            double low = kind ? y - 0.4 : y;
            snprintf(text, sizeof text, "%s ms", svg_number(number, mean[kind][p]));
            svg_rect(&c, 0, mean[kind][p], low + 0.03, low + 0.37, kind_colour[kind], text);
            svg_text(&c, mean[kind][p] + c.x.hi * 0.005, low + 0.2, "start", text);
        }
    }
    svg_end(&c);
}

enum status report_run_time_html(const struct report_run *run, FILE *out)
{
    html_section(out, "Timeline",
                 "A step is one pass of a unit through all layers. Hold the pointer over a mark to "
                 "read its figures.");
    if (!run->n_steps[0] && !run->n_steps[1]) {
        fputs("<p>No step was finished.</p>\n", out);
        return OK;
    }
    TRY(timeline(run, out));
    fputs("<div class=\"row\">", out);
    for (int kind = 0; kind < 2; kind++) rate_chart(run, kind, out);
    for (int kind = 0; kind < 2; kind++) duration_chart(run, kind, out);
    fputs("</div>\n", out);
    stage_chart(run, out);
    return OK;
}
