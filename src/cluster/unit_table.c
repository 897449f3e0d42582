/* unit_table.c - step times as a grid; the declarations are in unit_model.h. */
#include "cluster/unit_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Fine enough for the kinks where computation begins to hide communication. */
enum { TABLE_X = 72, TABLE_Y = 64 };

static void fill_axis(double *at, int n, double first, double last)
{
    for (int i = 0; i < n; i++) at[i] = first * pow(last / first, (double)i / (n - 1));
}

enum status unit_table_build(struct unit_speed *u, double max_x, double max_y, struct unit_table *t)
{
    memset(t, 0, sizeof *t);
    if (!(max_x > 1) || !(max_y > 1))
        return error_set(ERR_BUG, "a step table up to (%g, %g), expected more than 1", max_x,
                         max_y);
    t->nx = TABLE_X;
    t->ny = TABLE_Y;
    t->x = malloc(sizeof(double) * (TABLE_X + TABLE_Y + TABLE_X * TABLE_Y));
    if (!t->x) return error_set(ERR_RESOURCE, "out of memory");
    t->y = t->x + TABLE_X;
    t->s = t->y + TABLE_Y;
    bool decode = unit_is_decode(u);
    fill_axis(t->x, TABLE_X, 1, max_x);
    fill_axis(t->y, TABLE_Y, fmin(64, max_y / 2), max_y);
    for (int i = 0; i < TABLE_X; i++)
        for (int j = 0; j < TABLE_Y; j++)
            t->s[i * TABLE_Y + j] = decode ? unit_decode_step_s(u, t->x[i], t->y[j])
                                           : unit_prefill_step_s(u, t->x[i], t->x[i] * t->y[j]);
    return OK;
}

/* Interval and weight; the last interval goes on, below the first point is the first point. */
static int locate(const double *at, int n, double v, double *w)
{
    int lo = 0, hi = n - 1;
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        *(at[mid] <= v ? &lo : &hi) = mid;
    }
    *w = fmax(0, (v - at[lo]) / (at[lo + 1] - at[lo]));
    return lo;
}

double unit_table_at(const struct unit_table *t, double x, double y)
{
    double wx, wy;
    int i = locate(t->x, t->nx, x, &wx), j = locate(t->y, t->ny, y, &wy);
    const double *a = t->s + i * t->ny + j, *b = a + t->ny;
    return (a[0] + wy * (a[1] - a[0])) * (1 - wx) + (b[0] + wy * (b[1] - b[0])) * wx;
}

void unit_table_free(struct unit_table *t)
{
    free(t->x);
    memset(t, 0, sizeof *t);
}
