/* forecast.h - what the load will be: the last value, Holt-Winters with a daily season, or a small
 * LSTM; each trained on earlier days and then fed one value an interval.
 *
 * Deterministic from its seed. Values are scaled by the caller's choice of unit; forecasts are
 * never negative. A forecast belongs to whoever created it.
 */
#ifndef CLUSTER_FORECAST_H
#define CLUSTER_FORECAST_H

#include "core/status.h"

#include <stdint.h>

enum forecast_kind { FORECAST_REACTIVE, FORECAST_HOLT_WINTERS, FORECAST_LSTM };

struct forecast;

/* per_day: intervals of a day; lead: intervals ahead that forecasts are for (>= 1). */
enum status forecast_create(enum forecast_kind kind, int per_day, int lead, uint64_t seed,
                            struct forecast **out);
void forecast_free(struct forecast *f);

/* History, oldest first, ending just before the first value to come; the first value has time of
 * day first_slot (0 .. per_day-1) and weekday first_weekday. */
enum status forecast_train(struct forecast *f, const double *value, int n, int first_slot,
                           int first_weekday);
/* The next value. */
void forecast_add(struct forecast *f, double value);
/* The largest value expected within the next `lead` intervals. */
double forecast_peak(const struct forecast *f);
const char *forecast_name(enum forecast_kind kind);

#endif
