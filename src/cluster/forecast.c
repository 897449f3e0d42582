/* forecast.c - the last value and Holt-Winters; forecast_lstm.c has the third. */
#include "cluster/forecast.h"

#include "cluster/forecast_lstm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS_MAX = 1440 };

/* Smoothing of level, slope and season: the best of a small grid on the history. */
struct smoothing {
    double level, slope, season;
};

struct forecast {
    enum forecast_kind kind;
    int per_day, lead, slot, weekday;
    double last;
    /* Holt-Winters: level and slope with an additive season of a day */
    struct smoothing smooth;
    double level, slope, season[SLOTS_MAX];
    struct lstm *lstm;
};

const char *forecast_name(enum forecast_kind kind)
{
    static const char *const name[] = {"reactive", "holt_winters", "lstm"};
    return name[kind];
}

enum status forecast_create(enum forecast_kind kind, int per_day, int lead, uint64_t seed,
                            struct forecast **out)
{
    if (per_day < 1 || per_day > SLOTS_MAX || lead < 1)
        return error_set(ERR_BUG, "forecast: %d intervals a day, %d ahead", per_day, lead);
    struct forecast *f = calloc(1, sizeof *f);
    if (!f) return error_set(ERR_RESOURCE, "no memory for a forecast");
    f->kind = kind;
    f->per_day = per_day;
    f->lead = lead;
    if (kind == FORECAST_LSTM && lstm_create(per_day, lead, seed, &f->lstm) != OK) {
        free(f);
        return ERR_RESOURCE;
    }
    *out = f;
    return OK;
}

void forecast_free(struct forecast *f)
{
    if (f) lstm_free(f->lstm);
    free(f);
}

static void smooth_add(struct forecast *f, double value)
{
    double *season = &f->season[f->slot], before = f->level;
    f->level = f->smooth.level * (value - *season) + (1 - f->smooth.level) * (f->level + f->slope);
    f->slope = f->smooth.slope * (f->level - before) + (1 - f->smooth.slope) * f->slope;
    *season = f->smooth.season * (value - f->level) + (1 - f->smooth.season) * *season;
}

static double smooth_at(const struct forecast *f, int ahead)
{
    /* f->slot is the slot of the next value: 1 ahead. */
    return f->level + ahead * f->slope + f->season[(f->slot + ahead - 1) % f->per_day];
}

void forecast_add(struct forecast *f, double value)
{
    if (f->kind == FORECAST_HOLT_WINTERS) smooth_add(f, value);
    if (f->lstm) lstm_add(f->lstm, value, f->slot, f->weekday);
    f->last = value;
    f->slot = (f->slot + 1) % f->per_day;
    if (f->slot == 0) f->weekday = (f->weekday + 1) % 7;
}

/* The first day gives level and season; the rest is smoothed. Returns the mean square error of the
 * forecasts `lead` ahead. */
static double smooth_history(struct forecast *f, const double *value, int n, int first_slot)
{
    double sum = 0, error = 0;
    int day = f->per_day < n ? f->per_day : n, counted = 0;
    for (int i = 0; i < day; i++) sum += value[i];
    f->level = sum / day;
    f->slope = 0;
    memset(f->season, 0, sizeof f->season);
    for (int i = 0; i < day; i++) f->season[(first_slot + i) % f->per_day] = value[i] - f->level;
    for (int i = day; i < n; i++) {
        f->slot = (first_slot + i) % f->per_day;
        if (i + f->lead - 1 < n) {
            double e = smooth_at(f, f->lead) - value[i + f->lead - 1];
            error += e * e;
            counted++;
        }
        smooth_add(f, value[i]);
    }
    return counted ? error / counted : 0;
}

static void fit_smoothing(struct forecast *f, const double *value, int n, int first_slot)
{
    static const double levels[] = {0.05, 0.1, 0.2, 0.4, 0.7};
    static const double slopes[] = {0, 0.01, 0.05}, seasons[] = {0.05, 0.2, 0.4};
    struct smoothing best = {0.2, 0, 0.2};
    double least = INFINITY;
    for (int a = 0; a < 5; a++)
        for (int b = 0; b < 3; b++)
            for (int c = 0; c < 3; c++) {
                f->smooth = (struct smoothing){levels[a], slopes[b], seasons[c]};
                double e = smooth_history(f, value, n, first_slot);
                if (e < least) {
                    least = e;
                    best = f->smooth;
                }
            }
    f->smooth = best;
    smooth_history(f, value, n, first_slot);
}

enum status forecast_train(struct forecast *f, const double *value, int n, int first_slot,
                           int first_weekday)
{
    if (n < 2 * f->per_day)
        return error_set(ERR_INPUT, "forecast: %d values of history, expected two days, %d", n,
                         2 * f->per_day);
    /* The history ends where the first value to come begins. */
    int begin = ((first_slot - n) % f->per_day + f->per_day) % f->per_day;
    int days = (n - first_slot + f->per_day - 1) / f->per_day;
    int begin_weekday = ((first_weekday - days) % 7 + 7) % 7;
    if (f->kind == FORECAST_HOLT_WINTERS) fit_smoothing(f, value, n, begin);
    if (f->lstm) TRY(lstm_train(f->lstm, value, n, begin, begin_weekday));
    f->slot = first_slot;
    f->weekday = first_weekday;
    f->last = value[n - 1];
    return OK;
}

double forecast_peak(const struct forecast *f)
{
    double peak = f->last;
    if (f->kind == FORECAST_HOLT_WINTERS)
        for (int k = 1; k <= f->lead; k++) {
            double v = smooth_at(f, k);
            if (k == 1 || v > peak) peak = v;
        }
    if (f->lstm) peak = lstm_peak(f->lstm);
    return peak > 0 ? peak : 0;
}
