/* report_svg.h - charts as inline SVG: a frame with title, axes, ticks and legend, and marks in
 * data coordinates.
 *
 * Fill a struct svg_chart, svg_begin(), marks, svg_end(). Everything is written to chart->out at
 * once; nothing is kept. Colours are those of Okabe and Ito, which stay apart for the colour-blind.
 * Values that are not finite are left out.
 */
#ifndef CMD_REPORT_SVG_H
#define CMD_REPORT_SVG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#define SVG_BLUE "#0072b2"
#define SVG_ORANGE "#e69f00"
#define SVG_GREEN "#009e73"
#define SVG_RED "#d55e00"
#define SVG_PINK "#cc79a7"
#define SVG_SKY "#56b4e9"
#define SVG_YELLOW "#e8d820"
#define SVG_GREY "#c9ced6"
#define SVG_INK "#333a45"

enum { SVG_FULL = 1120, SVG_HALF = 550, SVG_THIRD = 360 }; /* widths, px */

struct svg_axis {
    double lo, hi;     /* hi > lo, or the axis is widened; log: lo > 0 */
    const char *label; /* with its unit: "step time, ms"; NULL = none */
    bool log;
    bool bare;  /* no ticks: the caller writes names with svg_row_name() */
    bool clock; /* hours, shown as a time of day that is clock_start o'clock at 0 */
    double clock_start;
};

struct svg_legend {
    const char *name, *colour;
};

struct svg_chart {
    FILE *out;
    const char *title;
    const char *note;     /* at the right of the title; NULL = none */
    double width, height; /* px, all of it */
    double left;          /* px for the y axis; 0 = what numbers need */
    struct svg_axis x, y;
    const struct svg_legend *legend; /* [n_legend], under the title */
    int n_legend;
    double x0, x1, y0, y1; /* the plot area, px; filled by svg_begin, y0 is the lower edge */
};

void svg_begin(struct svg_chart *c);
void svg_end(struct svg_chart *c);

/* Pixels of a value. */
double svg_x(const struct svg_chart *c, double x);
double svg_y(const struct svg_chart *c, double y);

/* A rectangle from (x0, y0) to (x1, y1); tip: shown under the pointer, NULL = none. */
void svg_rect(const struct svg_chart *c, double x0, double x1, double y0, double y1,
              const char *colour, const char *tip);
/* A line through the points, broken where a value is not finite. dash: NULL or "4 3". */
void svg_line(const struct svg_chart *c, const double *x, const double *y, size_t n,
              const char *colour, const char *dash);
/* A line that holds y[i] from edge[i] to edge[i + 1] (n + 1 edges); fill: also the area below. */
void svg_steps(const struct svg_chart *c, const double *edge, const double *y, size_t n,
               const char *colour, bool fill);
void svg_dot(const struct svg_chart *c, double x, double y, double radius, const char *colour,
             const char *tip);
/* A dashed line across the plot at y, with a word at its right end. */
void svg_level(const struct svg_chart *c, double y, const char *text);
/* Text at a point of the plot; anchor: start, middle, end. */
void svg_text(const struct svg_chart *c, double x, double y, const char *anchor, const char *text);
/* The name of a row, left of the plot, centred on y. */
void svg_row_name(const struct svg_chart *c, double y, const char *text);

/* An axis from 0 to a round number above hi. */
struct svg_axis svg_from_zero(double hi, const char *label);

/* "12.3k", "4.56M", "0.012": a number short enough for a tick or a tip. */
const char *svg_number(char buf[32], double v);

/* Text with &, <, > and " as entities, control characters as spaces. */
void svg_escape(FILE *out, const char *text);

#endif
