/* rng.c */
#include "core/rng.h"

#include <math.h>

double rng_normal(uint64_t key, uint64_t counter)
{
    double u = 1.0 - rng_uniform(key, 2 * counter);
    double v = rng_uniform(key, 2 * counter + 1);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}
