/* rng.h - counter-based random numbers: the value at (key, counter) depends on nothing else, so
 * sampling and synthetic weights come out the same in any order and on any number of ranks.
 */
#ifndef CORE_RNG_H
#define CORE_RNG_H

#include <stdint.h>

/* A strong 64-bit mix of (key, counter): two rounds of a 64-bit finaliser over a Weyl sequence. */
static inline uint64_t rng_u64(uint64_t key, uint64_t counter)
{
    uint64_t z = key ^ (counter * 0x9e3779b97f4a7c15u + 0xd1b54a32d192ed03u);
    for (int round = 0; round < 2; round++) {
        z += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
    }
    return z;
}

/* Uniform in [0, 1), 53 bits. */
static inline double rng_uniform(uint64_t key, uint64_t counter)
{
    return (double)(rng_u64(key, counter) >> 11) * 0x1p-53;
}

/* Standard normal (Box-Muller); uses counters 2*counter and 2*counter+1. */
double rng_normal(uint64_t key, uint64_t counter);

#endif
