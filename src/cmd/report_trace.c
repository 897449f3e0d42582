/* report_trace.c - see report_trace.h. The form of the file is schedule/trace.c's: one record a
 * line, rank after rank, each rank's events in the order in which they began.
 */
#include "cmd/report_trace.h"

#include "cmd/report_html.h"
#include "cmd/report_svg.h"
#include "schedule/schedule.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { STEP_KINDS = 2, NAME_MAX_BYTES = 64 };

struct span {
    double t0, t1; /* us */
    int layer, mb;
    enum stage stage;
};

struct spans {
    struct span *v; /* [cap] owned */
    size_t n, cap;
};

/* A step that was chosen for a picture. */
struct picture {
    struct span *v; /* [n] owned; NULL = none found yet */
    size_t n;
    int rank;
    char unit[NAME_MAX_BYTES];
};

struct reader {
    const char *path;
    long line;
    int wanted, rank; /* rank: whose events are in `spans`, -1 = none yet */
    char unit[NAME_MAX_BYTES];
    struct spans spans;
    struct picture found[STEP_KINDS]; /* prefill, decode */
};

static const char *const stage_colour[STAGE_COUNT] = {
    [STAGE_EMBED] = "#8a93a3", [STAGE_ATTN] = SVG_BLUE,       [STAGE_ATTN_0] = SVG_BLUE,
    [STAGE_ATTN_1] = SVG_SKY,  [STAGE_DISPATCH] = SVG_ORANGE, [STAGE_MLP] = SVG_GREEN,
    [STAGE_SHARED] = SVG_PINK, [STAGE_COMBINE] = SVG_RED,     [STAGE_DENSE_MLP] = "#4c7a34",
    [STAGE_HEAD] = "#5b4a8a",
};

static enum status bad_line(const struct reader *r, const char *why)
{
    return error_set(ERR_INPUT, "%s, line %ld: %s: expected a file that moebatch run --trace wrote",
                     r->path, r->line, why);
}

static enum status add_span(struct spans *s, const struct span *span)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 4096;
        struct span *more = realloc(s->v, cap * sizeof *more);
        if (!more) return error_set(ERR_RESOURCE, "trace: out of memory at %zu events", cap);
        s->v = more;
        s->cap = cap;
    }
    s->v[s->n++] = *span;
    return OK;
}

static int by_begin(const void *a, const void *b)
{
    const struct span *x = a, *y = b;
    return (x->t0 > y->t0) - (x->t0 < y->t0);
}

/* The end of the step that begins at spans[from]: where a micro-batch is embedded again. */
static size_t step_end(const struct spans *s, size_t from)
{
    bool embedded[SCHEDULE_MAX_MB] = {false};
    size_t i = from;
    for (; i < s->n; i++) {
        const struct span *e = &s->v[i];
        if (e->stage != STAGE_EMBED) continue;
        if (embedded[e->mb]) break;
        embedded[e->mb] = true;
    }
    return i;
}

struct step_span {
    size_t from, to;
    double length;
};

static int by_length(const void *a, const void *b)
{
    const struct step_span *x = a, *y = b;
    return (x->length > y->length) - (x->length < y->length);
}

/* Kind of a step: decode has split attention. -1 when it was cut off before its head. */
static int step_kind(const struct spans *s, const struct step_span *step)
{
    int kind = 0;
    bool head = false;
    for (size_t i = step->from; i < step->to; i++) {
        if (s->v[i].stage == STAGE_ATTN_0) kind = 1;
        head = head || s->v[i].stage == STAGE_HEAD;
    }
    return head ? kind : -1;
}

static double step_length(const struct spans *s, size_t from, size_t to)
{
    double end = s->v[from].t1;
    for (size_t i = from; i < to; i++) end = fmax(end, s->v[i].t1);
    return end - s->v[from].t0;
}

/* Of the steps with the most operations (both micro-batches at work) the one of median length. */
static enum status choose(struct reader *r, struct step_span *steps, size_t n, struct picture *out)
{
    size_t most = 0, kept = 0;
    for (size_t i = 0; i < n; i++)
        if (steps[i].to - steps[i].from > most) most = steps[i].to - steps[i].from;
    for (size_t i = 0; i < n; i++)
        if (steps[i].to - steps[i].from == most) steps[kept++] = steps[i];
    if (!kept) return OK;
    qsort(steps, kept, sizeof *steps, by_length);
    const struct step_span *pick = &steps[kept / 2];
    out->v = malloc(most * sizeof *out->v);
    if (!out->v) return error_set(ERR_RESOURCE, "trace: out of memory");
    memcpy(out->v, r->spans.v + pick->from, most * sizeof *out->v);
    out->n = most;
    out->rank = r->rank;
    memcpy(out->unit, r->unit, sizeof out->unit);
    return OK;
}

/* All events of a rank are here: takes a picture of each kind that is still missing. */
static enum status rank_ends(struct reader *r)
{
    struct spans *s = &r->spans;
    if (!s->n) return OK;
    qsort(s->v, s->n, sizeof *s->v, by_begin);
    struct step_span *steps = malloc(s->n * sizeof *steps);
    if (!steps) return error_set(ERR_RESOURCE, "trace: out of memory");
    enum status st = OK;
    for (int kind = 0; kind < STEP_KINDS && st == OK; kind++) {
        size_t n = 0;
        for (size_t i = 0; i < s->n;) {
            size_t to = step_end(s, i);
            struct step_span step = {i, to, step_length(s, i, to)};
            if (step_kind(s, &step) == kind) steps[n++] = step;
            i = to;
        }
        if (!r->found[kind].v) st = choose(r, steps, n, &r->found[kind]);
    }
    free(steps);
    s->n = 0;
    return st;
}

/* "ATTN_0(1)": stage and micro-batch. */
static bool parse_name(const char *name, struct span *out)
{
    size_t n = strcspn(name, "(");
    for (int s = 0; s < STAGE_COUNT; s++) {
        const char *known = stage_name((enum stage)s);
        if (strlen(known) != n || memcmp(known, name, n) != 0) continue;
        out->stage = (enum stage)s;
        out->mb = name[n] ? atoi(name + n + 1) : -1;
        return out->mb >= 0 && out->mb < SCHEDULE_MAX_MB;
    }
    return false;
}

static enum status take_record(struct reader *r, json_t *o)
{
    const char *ph = json_string_value(json_object_get(o, "ph"));
    const char *name = json_string_value(json_object_get(o, "name"));
    const json_t *pid = json_object_get(o, "pid"), *args = json_object_get(o, "args");
    if (!ph || !name || !json_is_integer(pid) || !json_is_object(args))
        return bad_line(r, "not a record of a trace");
    int rank = (int)json_integer_value(pid);
    if (rank != r->rank) TRY(rank_ends(r));
    r->rank = rank;
    if (*ph == 'M') {
        const char *unit = json_string_value(json_object_get(args, "name"));
        if (unit && !strcmp(name, "process_name")) snprintf(r->unit, sizeof r->unit, "%s", unit);
        return OK;
    }
    struct span span = {.t0 = json_number_value(json_object_get(o, "ts")),
                        .layer = (int)json_integer_value(json_object_get(args, "layer"))};
    span.t1 = span.t0 + json_number_value(json_object_get(o, "dur"));
    if (!parse_name(name, &span)) return bad_line(r, "unknown stage");
    return r->wanted < 0 || r->wanted == rank ? add_span(&r->spans, &span) : OK;
}

static enum status take_line(struct reader *r, char *line, size_t n)
{
    while (n && strchr(" ,\r\n", line[n - 1])) line[--n] = '\0';
    if (!n || !strcmp(line, "[") || !strcmp(line, "]")) return OK;
    json_error_t why;
    json_t *o = json_loadb(line, n, 0, &why);
    if (!o) return bad_line(r, why.text);
    enum status st = take_record(r, o);
    json_decref(o);
    return st;
}

static enum status read_trace(struct reader *r)
{
    FILE *f = fopen(r->path, "r");
    if (!f) return error_set(ERR_INPUT, "%s: cannot read the trace: %s", r->path, strerror(errno));
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    enum status st = OK;
    while (st == OK && (n = getline(&line, &room, f)) > 0) {
        r->line++;
        st = take_line(r, line, (size_t)n);
        if (r->found[0].v && r->found[1].v) break;
    }
    if (st == OK) st = rank_ends(r);
    free(line);
    fclose(f);
    if (st == OK && !r->found[0].v && !r->found[1].v && r->wanted >= 0)
        st = error_set(ERR_INPUT,
                       "%s has no whole step of rank %d: leave --rank out, or name a "
                       "rank of the run",
                       r->path, r->wanted);
    else if (st == OK && !r->found[0].v && !r->found[1].v)
        st = error_set(ERR_INPUT, "%s has no whole step of any rank", r->path);
    return st;
}

/* Rows from the top: compute of micro-batch 0, 1, a gap, communication of 0, 1. */
static double row_of(const struct span *s)
{
    return stage_is_comm(s->stage) ? 1.3 - s->mb : 3.6 - s->mb;
}

static void draw_span(const struct svg_chart *c, const struct span *s, double origin)
{
    double t0 = (s->t0 - origin) / 1e3, t1 = (s->t1 - origin) / 1e3, row = row_of(s);
    if (t1 < c->x.lo || t0 > c->x.hi) return;
    char text[128], name[32];
    snprintf(text, sizeof text, "%s, layer %d, micro-batch %d: %.3f ms, from %.3f ms",
             stage_name(s->stage), s->layer, s->mb, t1 - t0, t0);
    svg_rect(c, t0, t1, row - 0.42, row + 0.42, stage_colour[s->stage], text);
    double wide = svg_x(c, fmin(t1, c->x.hi)) - svg_x(c, fmax(t0, c->x.lo));
    snprintf(name, sizeof name, "%s %d", stage_name(s->stage), s->layer);
    if (s->layer < 0 || s->stage == STAGE_HEAD)
        snprintf(name, sizeof name, "%s", stage_name(s->stage));
    if (wide < 7.0 * (double)strlen(name)) return;
    bool light = s->stage == STAGE_DISPATCH || s->stage == STAGE_ATTN_1 || s->stage == STAGE_SHARED;
    fprintf(c->out, "<text class=\"%s\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n",
            light ? "in dark" : "in", svg_x(c, (fmax(t0, c->x.lo) + fmin(t1, c->x.hi)) / 2),
            svg_y(c, row) + 4, name);
}

static void draw_steps(const struct picture *p, double lo, double hi, const char *title, FILE *out)
{
    struct svg_legend legend[STAGE_COUNT];
    int n = 0;
    for (int s = 0; s < STAGE_COUNT; s++)
        for (size_t i = 0; i < p->n; i++)
            if (p->v[i].stage == (enum stage)s) {
                legend[n++] = (struct svg_legend){stage_name((enum stage)s), stage_colour[s]};
                break;
            }
    struct svg_chart c = {
        .out = out,
        .title = title,
        .note = "the number in a box is its layer",
        .width = SVG_FULL,
        .height = 220,
        .left = 152,
        .x = {.lo = lo, .hi = hi, .label = "time since the step began, ms"},
        .y = {.lo = -0.3, .hi = 4.2, .bare = true},
        .legend = legend,
        .n_legend = n,
    };
    svg_begin(&c);
    svg_row_name(&c, 3.6, "compute, mb 0");
    svg_row_name(&c, 2.6, "compute, mb 1");
    svg_row_name(&c, 1.3, "communication, mb 0");
    svg_row_name(&c, 0.3, "communication, mb 1");
    for (size_t i = 0; i < p->n; i++) draw_span(&c, &p->v[i], p->v[0].t0);
    svg_end(&c);
}

/* From the first to the last operation of three layers in the middle. */
static bool middle_layers(const struct picture *p, int *first, double *lo, double *hi)
{
    int layers = 0;
    for (size_t i = 0; i < p->n; i++)
        if (p->v[i].stage == STAGE_HEAD && p->v[i].layer > layers) layers = p->v[i].layer;
    if (layers < 6) return false;
    *first = layers / 2 - 1;
    *lo = (double)INFINITY;
    *hi = 0;
    for (size_t i = 0; i < p->n; i++) {
        const struct span *s = &p->v[i];
        if (s->layer < *first || s->layer > *first + 2 || s->stage == STAGE_HEAD) continue;
        *lo = fmin(*lo, (s->t0 - p->v[0].t0) / 1e3);
        *hi = fmax(*hi, (s->t1 - p->v[0].t0) / 1e3);
    }
    return *hi > *lo;
}

static void draw_picture(const struct picture *p, int kind, FILE *out)
{
    char title[192];
    double lo = 0, hi = 0;
    int first;
    for (size_t i = 0; i < p->n; i++) hi = fmax(hi, (p->v[i].t1 - p->v[0].t0) / 1e3);
    snprintf(title, sizeof title, "One %s step of %s", kind ? "decode" : "prefill",
             p->unit[0] ? p->unit : "a rank");
    draw_steps(p, 0, hi, title, out);
    if (!middle_layers(p, &first, &lo, &hi)) return;
    snprintf(title, sizeof title, "Layers %d to %d of it", first, first + 2);
    draw_steps(p, lo, hi, title, out);
}

enum status report_trace_html(const char *path, int rank, FILE *out)
{
    struct reader r = {.path = path, .wanted = rank, .rank = -1};
    enum status st = read_trace(&r);
    if (st == OK) {
        html_section(out, "Schedule of a step",
                     "What one rank did when: of the steps in which both micro-batches were at "
                     "work, the one of median length. Communication of one micro-batch is hidden "
                     "where computation stands above it.");
        for (int kind = 0; kind < STEP_KINDS; kind++)
            if (r.found[kind].v) draw_picture(&r.found[kind], kind, out);
    }
    for (int kind = 0; kind < STEP_KINDS; kind++) free(r.found[kind].v);
    free(r.spans.v);
    return st;
}
