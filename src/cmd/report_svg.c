/* report_svg.c - see report_svg.h. */
#include "cmd/report_svg.h"

#include <math.h>
#include <string.h>

enum { TITLE_PX = 26, LEGEND_PX = 20, MAX_TICKS = 64 };

void svg_escape(FILE *out, const char *text)
{
    for (const char *c = text; *c; c++) {
        if (*c == '&')
            fputs("&amp;", out);
        else if (*c == '<')
            fputs("&lt;", out);
        else if (*c == '>')
            fputs("&gt;", out);
        else if (*c == '"')
            fputs("&quot;", out);
        else
            fputc((unsigned char)*c < 0x20 && *c != '\n' ? ' ' : *c, out);
    }
}

const char *svg_number(char buf[32], double v)
{
    static const struct {
        double unit;
        const char *name;
    } scale[] = {{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e4, "k"}};
    for (size_t i = 0; i < sizeof scale / sizeof *scale; i++)
        if (fabs(v) >= scale[i].unit) {
            double unit = scale[i].unit == 1e4 ? 1e3 : scale[i].unit;
            snprintf(buf, 32, "%.4g%s", v / unit, scale[i].name);
            return buf;
        }
    snprintf(buf, 32, fabs(v) >= 1e3 ? "%.0f" : fabs(v) < 1e-4 && v != 0 ? "%.2e" : "%.4g", v);
    return buf;
}

/* The round step (1, 2 or 5 times a power of ten) that cuts `range` into at most `most` parts. */
static double round_step(double range, int most)
{
    double raw = range / most, power = pow(10, floor(log10(raw)));
    double factor = raw / power;
    return power * (factor <= 1 ? 1 : factor <= 2 ? 2 : factor <= 5 ? 5 : 10);
}

struct svg_axis svg_from_zero(double hi, const char *label)
{
    if (!(hi > 0) || !isfinite(hi)) hi = 1;
    double step = round_step(hi * 1.04, 5);
    return (struct svg_axis){.lo = 0, .hi = ceil(hi * 1.04 / step) * step, .label = label};
}

static double place(const struct svg_axis *a, double v)
{
    if (a->log) return log(fmax(v, a->lo * 1e-3) / a->lo) / log(a->hi / a->lo);
    return (v - a->lo) / (a->hi - a->lo);
}

double svg_x(const struct svg_chart *c, double x)
{
    return c->x0 + place(&c->x, x) * (c->x1 - c->x0);
}

double svg_y(const struct svg_chart *c, double y)
{
    return c->y0 - place(&c->y, y) * (c->y0 - c->y1);
}

/* Ticks of a log axis: powers of ten; 2 and 5 of them too when there are few. */
static int log_ticks(const struct svg_axis *a, double *tick)
{
    int n = 0;
    bool few = log10(a->hi / a->lo) < 3;
    int last = (int)floor(log10(a->hi));
    for (int e = (int)floor(log10(a->lo)); e <= last && n < MAX_TICKS - 3; e++)
        for (int k = 0; k < (few ? 3 : 1); k++) {
            double v = pow(10, e) * (k == 0 ? 1 : k == 1 ? 2 : 5);
            if (v >= a->lo * 0.999 && v <= a->hi * 1.001) tick[n++] = v;
        }
    return n;
}

/* Whole hours that divide the day. */
static double hour_step(double range, int most)
{
    static const int step[] = {1, 2, 3, 4, 6, 12};
    for (size_t i = 0; i < sizeof step / sizeof *step; i++)
        if (range / step[i] <= most) return step[i];
    return 24 * ceil(range / 24 / most);
}

static const char *tick_text(const struct svg_axis *a, double v, char buf[32])
{
    if (!a->clock) return svg_number(buf, v);
    snprintf(buf, 32, "%02d:00", (int)fmod(v + a->clock_start, 24) % 24);
    return buf;
}

static int ticks(const struct svg_axis *a, int most, double *tick)
{
    if (a->bare) return 0;
    if (a->log) return log_ticks(a, tick);
    double step = a->clock ? hour_step(a->hi - a->lo, most) : round_step(a->hi - a->lo, most);
    double first = ceil(a->lo / step - 1e-9), last = floor(a->hi / step + 1e-9);
    int n = (int)fmin(last - first + 1, MAX_TICKS);
    for (int i = 0; i < n; i++) tick[i] = (first + i) * step + 0.0; /* no -0 */
    return n;
}

static void widen(struct svg_axis *a)
{
    if (!isfinite(a->lo)) a->lo = a->log ? 1e-3 : 0;
    if (a->log && !(a->lo > 0)) a->lo = 1e-6;
    if (!isfinite(a->hi) || !(a->hi > a->lo)) a->hi = a->log ? a->lo * 10 : a->lo + 1;
}

static void draw_x_axis(const struct svg_chart *c)
{
    double tick[MAX_TICKS];
    char text[32];
    int n = ticks(&c->x, (int)((c->x1 - c->x0) / 70) + 1, tick);
    for (int i = 0; i < n; i++) {
        double x = svg_x(c, tick[i]);
        fprintf(c->out, "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>", x,
                c->y1, x, c->y0);
        fprintf(c->out,
                "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>", x,
                c->y0 + 16, tick_text(&c->x, tick[i], text));
    }
    if (!c->x.label) return;
    fprintf(c->out, "<text class=\"axis\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">",
            (c->x0 + c->x1) / 2, c->height - 6);
    svg_escape(c->out, c->x.label);
    fputs("</text>\n", c->out);
}

static void draw_y_axis(const struct svg_chart *c)
{
    double tick[MAX_TICKS];
    char text[32];
    int n = ticks(&c->y, (int)((c->y0 - c->y1) / 36) + 1, tick);
    for (int i = 0; i < n; i++) {
        double y = svg_y(c, tick[i]);
        fprintf(c->out, "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>",
                c->x0, y, c->x1, y);
        fprintf(c->out, "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text>",
                c->x0 - 6, y + 4, svg_number(text, tick[i]));
    }
    if (!c->y.label) return;
    fprintf(c->out,
            "<text class=\"axis\" transform=\"translate(13,%.1f) rotate(-90)\" "
            "text-anchor=\"middle\">",
            (c->y0 + c->y1) / 2);
    svg_escape(c->out, c->y.label);
    fputs("</text>\n", c->out);
}

static void draw_legend(const struct svg_chart *c)
{
    double x = c->x0;
    for (int i = 0; i < c->n_legend; i++) {
        fprintf(c->out, "<rect x=\"%.1f\" y=\"%d\" width=\"12\" height=\"12\" fill=\"%s\"/>", x,
                TITLE_PX + 2, c->legend[i].colour);
        fprintf(c->out, "<text class=\"tick\" x=\"%.1f\" y=\"%d\">", x + 17, TITLE_PX + 12);
        svg_escape(c->out, c->legend[i].name);
        fputs("</text>\n", c->out);
        x += 17 + 6.7 * (double)strlen(c->legend[i].name) + 18;
    }
}

/* Where the note stands: beside the title, or below it when both would not fit. */
static double note_line(const struct svg_chart *c)
{
    if (!c->note || !*c->note) return 16;
    double title = 8.0 * (double)strlen(c->title), note = 6.5 * (double)strlen(c->note);
    return title + note + 24 > c->width ? TITLE_PX + 12 : 16;
}

void svg_begin(struct svg_chart *c)
{
    widen(&c->x);
    widen(&c->y);
    double note_y = note_line(c);
    c->x0 = c->left > 0 ? c->left : 62;
    c->x1 = c->width - 16;
    c->y1 = TITLE_PX + (c->n_legend || note_y > TITLE_PX ? LEGEND_PX : 0) + 8;
    c->y0 = c->height - (c->x.label ? 40 : c->x.bare ? 8 : 24);
    fprintf(c->out,
            "<svg width=\"%.0f\" height=\"%.0f\" "
            "viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"",
            c->width, c->height, c->width, c->height);
    svg_escape(c->out, c->title);
    fputs("\">\n<text class=\"title\" x=\"0\" y=\"16\">", c->out);
    svg_escape(c->out, c->title);
    fputs("</text>\n", c->out);
    if (c->note) {
        fprintf(c->out, "<text class=\"note\" x=\"%.1f\" y=\"%.0f\" text-anchor=\"end\">", c->x1,
                note_y);
        svg_escape(c->out, c->note);
        fputs("</text>\n", c->out);
    }
    draw_legend(c);
    draw_x_axis(c);
    draw_y_axis(c);
}

void svg_end(struct svg_chart *c)
{
    fprintf(c->out,
            "<line class=\"base\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n</svg>\n",
            c->x0, c->y0, c->x1, c->y0);
}

static void put_tip(const struct svg_chart *c, const char *tip)
{
    fputs("<title>", c->out);
    svg_escape(c->out, tip);
    fputs("</title>", c->out);
}

static double clamp(double v, double lo, double hi)
{
    return v < lo ? lo : v > hi ? hi : v;
}

void svg_rect(const struct svg_chart *c, double x0, double x1, double y0, double y1,
              const char *colour, const char *tip)
{
    if (!isfinite(x0) || !isfinite(x1) || !isfinite(y0) || !isfinite(y1)) return;
    double left = clamp(svg_x(c, x0), c->x0, c->x1), right = clamp(svg_x(c, x1), c->x0, c->x1);
    double low = clamp(svg_y(c, y0), c->y1, c->y0), high = clamp(svg_y(c, y1), c->y1, c->y0);
    double w = fmax(right - left, 1); /* thinner ones could fall between two pixels */
    fprintf(c->out, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\"", left,
            high, w, low - high, colour);
    if (!tip) {
        fputs("/>\n", c->out);
        return;
    }
    fputs(">", c->out);
    put_tip(c, tip);
    fputs("</rect>\n", c->out);
}

void svg_line(const struct svg_chart *c, const double *x, const double *y, size_t n,
              const char *colour, const char *dash)
{
    fprintf(c->out, "<path fill=\"none\" stroke=\"%s\" stroke-width=\"1.8\"", colour);
    if (dash) fprintf(c->out, " stroke-dasharray=\"%s\"", dash);
    fputs(" d=\"", c->out);
    bool drawing = false;
    for (size_t i = 0; i < n; i++) {
        bool finite = isfinite(x[i]) && isfinite(y[i]);
        if (finite)
            fprintf(c->out, "%s%.1f %.1f", drawing ? "L" : "M", svg_x(c, x[i]), svg_y(c, y[i]));
        drawing = finite;
    }
    fputs("\"/>\n", c->out);
}

void svg_steps(const struct svg_chart *c, const double *edge, const double *y, size_t n,
               const char *colour, bool fill)
{
    if (!n) return;
    fprintf(c->out,
            "<path fill=\"%s\" fill-opacity=\"0.25\" stroke=\"%s\" stroke-width=\"1.5\" d=\"",
            fill ? colour : "none", colour);
    fprintf(c->out, "M%.1f %.1f", svg_x(c, edge[0]), c->y0);
    for (size_t i = 0; i < n; i++) {
        double at = clamp(svg_y(c, isfinite(y[i]) ? y[i] : c->y.lo), c->y1, c->y0);
        fprintf(c->out, "V%.1fH%.1f", at, svg_x(c, edge[i + 1]));
    }
    fprintf(c->out, "V%.1f\"/>\n", c->y0);
}

void svg_dot(const struct svg_chart *c, double x, double y, double radius, const char *colour,
             const char *tip)
{
    if (!isfinite(x) || !isfinite(y)) return;
    fprintf(c->out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" fill=\"%s\"", svg_x(c, x),
            svg_y(c, y), radius, colour);
    if (!tip) {
        fputs("/>\n", c->out);
        return;
    }
    fputs(">", c->out);
    put_tip(c, tip);
    fputs("</circle>\n", c->out);
}

void svg_level(const struct svg_chart *c, double y, const char *text)
{
    if (!isfinite(y)) return;
    double at = svg_y(c, y);
    fprintf(c->out, "<line class=\"level\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>",
            c->x0, at, c->x1, at);
    fprintf(c->out, "<text class=\"tick halo\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">",
            c->x1 - 3, at - 4);
    svg_escape(c->out, text);
    fputs("</text>\n", c->out);
}

void svg_text(const struct svg_chart *c, double x, double y, const char *anchor, const char *text)
{
    fprintf(c->out, "<text class=\"tick halo\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">",
            svg_x(c, x), svg_y(c, y) + 4, anchor);
    svg_escape(c->out, text);
    fputs("</text>\n", c->out);
}

void svg_row_name(const struct svg_chart *c, double y, const char *text)
{
    fprintf(c->out, "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">", c->x0 - 8,
            svg_y(c, y) + 4);
    svg_escape(c->out, text);
    fputs("</text>\n", c->out);
}
