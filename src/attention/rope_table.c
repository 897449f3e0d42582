/* rope_table.c - rotary angles. Each float cast below is a rounding of the float32 model. */
#include "attention/rope_table.h"

#include <math.h>

static const double PI = 3.14159265358979323846;

static bool present(double x)
{
    return x != 0 && !isnan(x);
}

static double original_max(const struct rope_params *p)
{
    return present(p->original_max) ? p->original_max : p->max_positions;
}

static double yarn_factor(const struct rope_params *p)
{
    return present(p->factor) ? p->factor : p->max_positions / original_max(p);
}

/* m(s, k) of model.md */
static double magnitude(double s, double k)
{
    return s > 1 ? 0.1 * k * log(s) + 1 : 1;
}

double rope_attention_factor(const struct rope_params *p)
{
    if (!p->yarn) return 1;
    if (present(p->attention_factor)) return p->attention_factor;
    double s = yarn_factor(p);
    bool both =
        p->has_mscale && present(p->mscale) && p->has_mscale_all_dim && present(p->mscale_all_dim);
    return both ? magnitude(s, p->mscale) / magnitude(s, p->mscale_all_dim) : magnitude(s, 1);
}

float rope_softmax_scale(const struct rope_params *p, int qk_head_dim)
{
    double scale = 1 / sqrt((double)qk_head_dim);
    if (p->yarn && p->has_mscale_all_dim && present(p->mscale_all_dim)) {
        double m = magnitude(yarn_factor(p), p->mscale_all_dim);
        scale = scale * m * m;
    }
    return (float)scale;
}

/* The channel pair whose angle turns `rotations` times over the original length. */
static double turning_dim(const struct rope_params *p, double rotations)
{
    return p->dim * log(original_max(p) / (rotations * 2 * PI)) / (2 * log(p->theta));
}

/* Where the ramp from the original angles (0) to the stretched ones (1) begins and ends. */
static void ramp_ends(const struct rope_params *p, double *low, double *high)
{
    *low = turning_dim(p, present(p->beta_fast) ? p->beta_fast : 32);
    *high = turning_dim(p, present(p->beta_slow) ? p->beta_slow : 1);
    if (p->truncate) {
        *low = floor(*low);
        *high = ceil(*high);
    }
    if (*low < 0) *low = 0;
    if (*high > p->dim - 1) *high = p->dim - 1;
    if (*low == *high) *high += 0.001;
}

void rope_inv_freq(const struct rope_params *p, float *inv_freq)
{
    double low = 0, high = 1;
    if (p->yarn) ramp_ends(p, &low, &high);
    float factor = (float)yarn_factor(p);
    for (int j = 0; j < p->dim / 2; j++) {
        float exponent = (float)(2 * j) / (float)p->dim;
        float period = (float)pow((float)p->theta, exponent);
        float own = 1.0f / period;
        inv_freq[j] = own;
        if (!p->yarn) continue;
        float stretched = 1.0f / (factor * period);
        float ramp = ((float)j - (float)low) / (float)(high - low);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        float keep = 1.0f - ramp;
        inv_freq[j] = stretched * (1.0f - keep) + own * keep;
    }
}

size_t rope_table_floats(const struct rope_params *p)
{
    return (size_t)p->max_positions * (size_t)p->dim;
}

static enum status check(const struct rope_params *p)
{
    if (p->dim <= 0 || p->dim % 2 || p->dim > 1024)
        return error_set(ERR_INPUT,
                         "qk_rope_head_dim is %d: rope needs an even number from 2 to "
                         "1024",
                         p->dim);
    if (p->max_positions <= 0)
        return error_set(ERR_INPUT, "max_position_embeddings is %d: expected a positive number",
                         p->max_positions);
    if (!(p->theta > 1))
        return error_set(ERR_INPUT, "rope_theta is %g: expected a number above 1", p->theta);
    if (p->yarn && !(yarn_factor(p) > 0 && original_max(p) > 0))
        return error_set(ERR_INPUT,
                         "yarn: factor is %g and original_max_position_embeddings %g: "
                         "both must be positive",
                         yarn_factor(p), original_max(p));
    return OK;
}

enum status rope_table_build(const struct rope_params *p, float *table)
{
    TRY(check(p));
    float inv_freq[512], factor = (float)rope_attention_factor(p);
    int half = p->dim / 2;
    rope_inv_freq(p, inv_freq);
    for (int pos = 0; pos < p->max_positions; pos++)
        for (int j = 0; j < half; j++) {
            float angle = (float)pos * inv_freq[j];
            float *cs = table + ((size_t)pos * (size_t)half + (size_t)j) * 2;
            cs[0] = (float)cos(angle) * factor;
            cs[1] = (float)sin(angle) * factor;
        }
    return OK;
}
