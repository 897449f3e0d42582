/* study_published.c - published figures of a day beside the predicted ones. */
#include "cluster/study_day.h"

#include "config/options.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum status study_published(const struct study_plant *p, struct study_day *d);

enum { STEPS_MAX = 1024 };

struct published {
    char nodes_file[STUDY_PATH_BYTES];
    double input_tokens, hit_tokens, output_tokens, kv_per_output, speed_low, speed_high;
    double input_rate, output_rate, nodes_mean, nodes_peak, cost, revenue, margin;
};

#define FIGURE(k, f, u, text)                                                                 \
    {                                                                                         \
        .key = k, .type = OPTION_DOUBLE, .offset = offsetof(struct published, f), .def = "0", \
        .min = 0, .max = 1e18, .unit = u, .doc = text                                         \
    }

static const struct option published_options[] = {
    {.key = "nodes_file",
     .type = OPTION_STRING,
     .offset = offsetof(struct published, nodes_file),
     .bytes = STUDY_PATH_BYTES,
     .def = "null",
     .unit = "",
     .doc = "nodes in service: start_hours,clock,nodes, CSV"},
    FIGURE("input_tokens", input_tokens, "tokens", "all input"),
    FIGURE("input_tokens_cache_hit", hit_tokens, "tokens", "of these found in the cache"),
    FIGURE("output_tokens", output_tokens, "tokens", "all output"),
    FIGURE("mean_kv_tokens_per_output_token", kv_per_output, "tokens", "mean context"),
    FIGURE("output_speed_low", speed_low, "tokens/s", "of one request, from"),
    FIGURE("output_speed_high", speed_high, "tokens/s", "of one request, to"),
    FIGURE("prefill_input_tokens_per_s_per_node", input_rate, "tokens/s/node", "hits included"),
    FIGURE("decode_output_tokens_per_s_per_node", output_rate, "tokens/s/node", "decode nodes"),
    FIGURE("nodes_mean", nodes_mean, "nodes", "in service"),
    FIGURE("nodes_peak", nodes_peak, "nodes", "in service"),
    FIGURE("cost_usd", cost, "$", "of all GPU hours"),
    FIGURE("theoretical_revenue_usd", revenue, "$", "at list prices"),
    FIGURE("cost_profit_margin_percent", margin, "%", "profit over cost"),
};

static const struct option_table table = {
    .what = "file of published figures",
    .options = published_options,
    .n = sizeof published_options / sizeof *published_options,
};

/* A step function of time, h: value[i] from start[i] on. */
struct steps {
    int n;
    double start[STEPS_MAX], value[STEPS_MAX];
};

static enum status steps_read(const char *path, struct steps *s)
{
    FILE *f = fopen(path, "r");
    if (!f) return error_set(ERR_INPUT, "published nodes_file: %s: %s", path, strerror(errno));
    char line[512];
    enum status st = OK;
    s->n = 0;
    for (int no = 1; st == OK && fgets(line, sizeof line, f); no++) {
        double from, nodes;
        if (*line == '#' || *line == '\n' || (!s->n && strstr(line, "nodes"))) continue;
        if (sscanf(line, "%lf,%*[^,],%lf", &from, &nodes) != 2)
            st = error_set(ERR_INPUT, "%s:%d: expected start_hours,clock,nodes", path, no);
        else if (s->n == STEPS_MAX || from < 0 || (s->n && from <= s->start[s->n - 1]))
            st = error_set(ERR_INPUT, "%s:%d: %g h: steps ascend from 0 and are at most %d", path,
                           no, from, STEPS_MAX);
        else
            s->start[s->n] = from, s->value[s->n++] = nodes;
    }
    fclose(f);
    if (st == OK && !s->n) st = error_set(ERR_INPUT, "%s: no steps", path);
    return st;
}

/* Mean of the steps from a to b; NaN when they begin later than a. */
static double steps_mean(const struct steps *s, double a, double b)
{
    if (s->start[0] > a) return NAN;
    double sum = 0;
    for (int i = 0; i < s->n; i++) {
        double to = i + 1 < s->n ? s->start[i + 1] : INFINITY;
        sum += s->value[i] * fmax(0, fmin(b, to) - fmax(a, s->start[i]));
    }
    return sum / (b - a);
}

static enum status fill_nodes(const char *path, struct study_day *d)
{
    struct steps *s = malloc(sizeof *s);
    enum status st = s ? steps_read(path, s) : error_set(ERR_RESOURCE, "out of memory");
    for (int m = 0; st == OK && m < d->sim.minutes; m++)
        d->minute[m].published_nodes = steps_mean(s, m / 60.0, (m + 1) / 60.0);
    for (int h = 0; st == OK && h < d->sim.hours; h++)
        d->hour[h].published_nodes = steps_mean(s, h, fmin(h + 1, d->sim.minutes / 60.0));
    free(s);
    return st;
}

static void add(struct study_day *d, const char *name, const char *units, double low, double high,
                double predicted, double tolerance)
{
    if (!(low > 0) || d->n_figures == STUDY_FIGURES) return; /* not published */
    struct study_figure_row *f = &d->figure[d->n_figures++];
    snprintf(f->figure, sizeof f->figure, "%s", name);
    snprintf(f->units, sizeof f->units, "%s", units);
    f->published = low;
    f->published_high = high;
    f->predicted = predicted;
    f->tolerance = tolerance;
    f->error = predicted < low ? predicted / low - 1 : predicted > high ? predicted / high - 1 : 0;
}

enum status study_published(const struct study_plant *p, struct study_day *d)
{
    if (!*p->study.published) return OK;
    struct published f;
    options_defaults(&table, &f, sizeof f);
    TRY(options_read(&table, p->study.published, &f));
    if (*f.nodes_file) TRY(fill_nodes(f.nodes_file, d));
    const struct account *a = &d->account;
    double input = a->hit_tokens + a->miss_tokens, seconds = 60.0 * d->sim.minutes;
    double nodes = (d->prefill_node_s + d->decode_node_s) / seconds;
    double kv = (double)d->sim.total[SIM_KV_READ_Q10] / (double)d->sim.total[SIM_OUTPUT_Q10];
    double none = NAN;
    /* Another deployment than the published one is compared, not judged. */
    bool same = p->study.nodes.mode != PLAN_AUTO;
    double exact = same ? 0 : none, percent = same ? 0.01 : none;
#define SAME(name, units, field, value, tol) add(d, name, units, f.field, f.field, value, tol)
    SAME("nodes, mean", "nodes", nodes_mean, nodes, exact);
    SAME("nodes, peak", "nodes", nodes_peak, d->peak_nodes, exact);
    SAME("cost", "$", cost, a->cost_usd, exact);
    SAME("input tokens", "G", input_tokens / 1e9, input / 1e9, 0.005);
    SAME("output tokens", "G", output_tokens / 1e9, a->output_tokens / 1e9, 0.005);
    if (f.input_tokens > 0) {
        double ratio = 100 * f.hit_tokens / f.input_tokens;
        add(d, "cache hits", "%", ratio, ratio, 100 * a->hit_tokens / input, 0.005);
    }
    SAME("KV per output token", "tokens", kv_per_output, kv, 0.01);
    SAME("revenue", "$", revenue, a->revenue_usd, 0.005);
    SAME("margin on cost", "%", margin, 100 * a->margin_on_cost, percent);
    SAME("input / prefill node", "tokens/s", input_rate, input / d->prefill_node_s, percent);
    SAME("output / decode node", "tokens/s", output_rate, a->output_tokens / d->decode_node_s,
         percent);
    add(d, "output speed", "tokens/s", f.speed_low, f.speed_high, d->output_speed, none);
#undef SAME
    return OK;
}
