/* sim_time.c - fills the table of sim_time.h. */
#include "cluster/sim_time.h"

enum status sim_time_build(double (*seconds)(void *ctx, double x, double y), void *ctx,
                           double max_x, double max_y, struct sim_time *t)
{
    t->max_x = max_x;
    t->max_y = max_y;
    t->per_x = (SIM_TIME_X - 1) / max_x;
    t->per_y = (SIM_TIME_Y - 1) / max_y;
    for (int j = 0; j < SIM_TIME_Y; j++)
        for (int i = 0; i < SIM_TIME_X; i++) {
            double x = i / t->per_x, y = j / t->per_y;
            double s = seconds(ctx, x, y);
            if (!(s > 0))
                return error_set(ERR_BUG, "step time of load %g, context %g: %g s", x, y, s);
            t->s[j][i] = (float)s;
        }
    return OK;
}
