/* sim_time.h - a step's seconds by load as a table that costs a few nanoseconds to read.
 *
 * Built from any function, once; regular grid, linear in both directions; beyond the last points
 * it goes on linearly in x. Units of x and y are the function's (decode: requests of a GPU, mean
 * context; prefill: tokens of a GPU, mean context of a token).
 */
#ifndef CLUSTER_SIM_TIME_H
#define CLUSTER_SIM_TIME_H

#include "core/status.h"

enum { SIM_TIME_X = 65, SIM_TIME_Y = 33 };

struct sim_time {
    double max_x, max_y;
    double per_x, per_y; /* grid steps of one unit */
    float s[SIM_TIME_Y][SIM_TIME_X];
};

/* seconds(ctx, x, y) must be positive. */
enum status sim_time_build(double (*seconds)(void *ctx, double x, double y), void *ctx,
                           double max_x, double max_y, struct sim_time *out);

static inline double sim_time_at(const struct sim_time *t, double x, double y)
{
    double gx = x * t->per_x, gy = y * t->per_y;
    int i = (int)gx, j = (int)gy;
    if (i > SIM_TIME_X - 2) i = SIM_TIME_X - 2;
    if (j > SIM_TIME_Y - 2) j = SIM_TIME_Y - 2;
    double fx = gx - i, fy = gy - j;
    const float *a = &t->s[j][i], *b = &t->s[j + 1][i];
    return (a[0] + (a[1] - a[0]) * fx) * (1 - fy) + (b[0] + (b[1] - b[0]) * fx) * fy;
}

/* A step of even ranks of load x and context y, in which one rank has (rank_x, rank_y) instead and
 * the others wait for it: its core attention is all its own, of the other costs of its tokens
 * own_share; the rest (routed experts, all-to-all) goes by the mean. Never below the even step. */
static inline double sim_time_uneven(const struct sim_time *t, double x, double y, double rank_x,
                                     double rank_y, double own_share)
{
    double even = sim_time_at(t, x, y), spread = rank_x * rank_y / x; /* its pairs over x tokens */
    double attention = sim_time_at(t, x, spread);
    double seconds = attention + own_share * (sim_time_at(t, rank_x, rank_y) - attention);
    return seconds > even ? seconds : even;
}

#endif
