/* sampling.h - the next token from logits.
 *
 * Greedy, or temperature, top-k and top-p with a counter-based random number keyed by (request
 * seed, position), so a token depends on nothing but its logits. Ties go to the lower id.
 */
#ifndef MODEL_SAMPLING_H
#define MODEL_SAMPLING_H

#include <stdint.h>

struct sampling_params {
    float temperature; /* 0: greedy */
    float top_p;       /* 1: off */
    int top_k;         /* 0: off */
    uint64_t seed;
};

struct sampler;                            /* scratch for a vocabulary */
struct sampler *sampler_create(int vocab); /* NULL: no memory */
void sampler_free(struct sampler *s);

/* The token at `position` (absolute position that the new token will have). */
int32_t sampler_next(struct sampler *s, const float *logits, const struct sampling_params *p,
                     int64_t position);

/* Natural log of softmax(raw logits)[token], summed in double in ascending id order. */
float sampler_logprob(const float *logits, int vocab, int32_t token);

#endif
