/* forecast_lstm.c - forward and backward of a 16-cell LSTM with a linear head, and Adam.
 *
 * Values are divided by the history's largest. The head gives the difference between the peak to
 * come and the present value, so an untrained network already is the reactive forecast. */
#include "cluster/forecast_lstm.h"

#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CELLS = 16, INPUTS = 6, COLUMNS = INPUTS + CELLS + 1, GATES = 4 * CELLS };
enum { WEIGHTS = GATES * COLUMNS + CELLS + 1, WINDOW = 48, EPOCHS = 12 };

struct state {
    double h[CELLS], c[CELLS];
};

/* What backward needs of one time step. */
struct tape {
    double in[COLUMNS], gate[GATES], c_before[CELLS], c[CELLS], h[CELLS], out;
};

struct lstm {
    int per_day, lead;
    uint64_t seed;
    double scale, before, last;
    struct state now;
    double out; /* head's value after the last step */
    double w[WEIGHTS], m[WEIGHTS], v[WEIGHTS], grad[WEIGHTS];
    int updates;
    struct tape tape[WINDOW];
};

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

enum status lstm_create(int per_day, int lead, uint64_t seed, struct lstm **out)
{
    struct lstm *l = calloc(1, sizeof *l);
    if (!l) return error_set(ERR_RESOURCE, "no memory for an LSTM");
    l->per_day = per_day;
    l->lead = lead;
    l->seed = seed;
    l->scale = 1;
    for (int i = 0; i < GATES * COLUMNS; i++)
        l->w[i] = rng_normal(seed, (uint64_t)i) / sqrt(COLUMNS);
    for (int c = 0; c < CELLS; c++) l->w[(CELLS + c) * COLUMNS + COLUMNS - 1] = 1; /* keep */
    *out = l;
    return OK;
}

void lstm_free(struct lstm *l)
{
    free(l);
}

/* Gates in the order input, keep, candidate, output; the head's weights come last. */
static double step(const double *w, const double x[INPUTS], struct state *s, struct tape *t)
{
    memcpy(t->in, x, INPUTS * sizeof *x);
    memcpy(t->in + INPUTS, s->h, sizeof s->h);
    t->in[COLUMNS - 1] = 1;
    memcpy(t->c_before, s->c, sizeof s->c);
    for (int g = 0; g < GATES; g++) {
        double sum = 0;
        for (int k = 0; k < COLUMNS; k++) sum += w[g * COLUMNS + k] * t->in[k];
        t->gate[g] = g / CELLS == 2 ? tanh(sum) : sigmoid(sum);
    }
    const double *head = w + GATES * COLUMNS;
    t->out = head[CELLS];
    for (int c = 0; c < CELLS; c++) {
        s->c[c] = t->gate[CELLS + c] * s->c[c] + t->gate[c] * t->gate[2 * CELLS + c];
        s->h[c] = t->gate[3 * CELLS + c] * tanh(s->c[c]);
        t->out += head[c] * s->h[c];
    }
    memcpy(t->c, s->c, sizeof s->c);
    memcpy(t->h, s->h, sizeof s->h);
    return t->out;
}

/* Adds the gradients of one window to l->grad. error[i]: d loss / d out of step i. */
static void backward(struct lstm *l, const double *error, int n)
{
    double dh[CELLS] = {0}, dc[CELLS] = {0};
    double *head = l->grad + GATES * COLUMNS;
    const double *w = l->w;
    for (int i = n - 1; i >= 0; i--) {
        const struct tape *t = &l->tape[i];
        double dg[GATES], before[CELLS] = {0};
        head[CELLS] += error[i];
        for (int c = 0; c < CELLS; c++) {
            head[c] += error[i] * t->h[c];
            dh[c] += error[i] * w[GATES * COLUMNS + c];
            double in = t->gate[c], keep = t->gate[CELLS + c], cand = t->gate[2 * CELLS + c];
            double out = t->gate[3 * CELLS + c], tc = tanh(t->c[c]);
            dc[c] += dh[c] * out * (1 - tc * tc);
            dg[c] = dc[c] * cand * in * (1 - in);
            dg[CELLS + c] = dc[c] * t->c_before[c] * keep * (1 - keep);
            dg[2 * CELLS + c] = dc[c] * in * (1 - cand * cand);
            dg[3 * CELLS + c] = dh[c] * tc * out * (1 - out);
            dc[c] *= keep;
        }
        for (int g = 0; g < GATES; g++)
            for (int k = 0; k < COLUMNS; k++) {
                l->grad[g * COLUMNS + k] += dg[g] * t->in[k];
                if (k >= INPUTS && k < INPUTS + CELLS)
                    before[k - INPUTS] += dg[g] * w[g * COLUMNS + k];
            }
        memcpy(dh, before, sizeof dh);
    }
}

static void adam(struct lstm *l, double rate)
{
    double norm = 0;
    for (int i = 0; i < WEIGHTS; i++) norm += l->grad[i] * l->grad[i];
    double clip = norm > 1 ? 1 / sqrt(norm) : 1;
    l->updates++;
    double fix1 = 1 - pow(0.9, l->updates), fix2 = 1 - pow(0.999, l->updates);
    for (int i = 0; i < WEIGHTS; i++) {
        double g = l->grad[i] * clip;
        l->m[i] = 0.9 * l->m[i] + 0.1 * g;
        l->v[i] = 0.999 * l->v[i] + 0.001 * g * g;
        l->w[i] -= rate * (l->m[i] / fix1) / (sqrt(l->v[i] / fix2) + 1e-8);
        l->grad[i] = 0;
    }
}

static void inputs(const struct lstm *l, double value, double before, int slot, int weekday,
                   double x[INPUTS])
{
    double angle = 2 * M_PI * slot / l->per_day;
    x[0] = value / l->scale;
    x[1] = (value - before) / l->scale * 10;
    x[2] = sin(angle);
    x[3] = cos(angle);
    x[4] = weekday >= 5;
    x[5] = sin(2 * angle);
}

static double peak_ahead(const double *value, int i, int n, int lead)
{
    double peak = 0;
    for (int k = 1; k <= lead && i + k < n; k++)
        if (value[i + k] > peak) peak = value[i + k];
    return peak;
}

enum status lstm_train(struct lstm *l, const double *value, int n, int first_slot,
                       int first_weekday)
{
    l->scale = 1e-9;
    for (int i = 0; i < n; i++) l->scale = fmax(l->scale, value[i]);
    for (int epoch = 0; epoch < EPOCHS; epoch++) {
        struct state s = {{0}, {0}};
        double rate = 0.01 * pow(0.75, epoch);
        for (int at = 1; at + l->lead < n;) {
            double error[WINDOW];
            int k = 0;
            for (; k < WINDOW && at + l->lead < n; k++, at++) {
                double x[INPUTS];
                int slots = first_slot + at;
                inputs(l, value[at], value[at - 1], slots % l->per_day,
                       (first_weekday + slots / l->per_day) % 7, x);
                double want = (peak_ahead(value, at, n, l->lead) - value[at]) / l->scale * 10;
                error[k] = (step(l->w, x, &s, &l->tape[k]) - want) / WINDOW;
            }
            backward(l, error, k);
            adam(l, rate);
        }
    }
    memset(&l->now, 0, sizeof l->now);
    l->last = value[0];
    for (int i = 1; i < n; i++) {
        int slots = first_slot + i;
        lstm_add(l, value[i], slots % l->per_day, (first_weekday + slots / l->per_day) % 7);
    }
    return OK;
}

void lstm_add(struct lstm *l, double value, int slot, int weekday)
{
    double x[INPUTS];
    inputs(l, value, l->last, slot, weekday, x);
    l->out = step(l->w, x, &l->now, &l->tape[0]);
    l->before = l->last;
    l->last = value;
}

double lstm_peak(const struct lstm *l)
{
    return l->last + l->out * l->scale / 10;
}
