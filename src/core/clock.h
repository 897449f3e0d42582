/* clock.h - the wall clock of the engine. Policies never read it: they get times as numbers. */
#ifndef CORE_CLOCK_H
#define CORE_CLOCK_H

#include <stdint.h>

/* Monotonic time in seconds; only differences mean something. */
double clock_now_s(void);
int64_t clock_now_ns(void);

/* Sleeps about `us` microseconds. */
void clock_sleep_us(long us);

/* Current UTC time as "2026-01-31T12:00:00Z"; buf holds at least 21 bytes. */
void clock_utc(char *buf);

#endif
