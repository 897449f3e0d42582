/* forecast_lstm.h - a small LSTM that says the largest load within the next `lead` intervals.
 * Private to forecast.c. 16 cells; inputs: the load, its change, the time of day, the weekday;
 * trained with Adam on truncated sequences. Deterministic from its seed.
 */
#ifndef CLUSTER_FORECAST_LSTM_H
#define CLUSTER_FORECAST_LSTM_H

#include "core/status.h"

#include <stdint.h>

struct lstm;

enum status lstm_create(int per_day, int lead, uint64_t seed, struct lstm **out);
void lstm_free(struct lstm *l); /* NULL is fine */
enum status lstm_train(struct lstm *l, const double *value, int n, int first_slot,
                       int first_weekday);
/* One value with its slot of the day; moves the state on. */
void lstm_add(struct lstm *l, double value, int slot, int weekday);
double lstm_peak(const struct lstm *l);

#endif
