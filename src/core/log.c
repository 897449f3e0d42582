/* log.c - listed global: who speaks. */
#include "core/log.h"

#include "core/clock.h"

#include <stdarg.h>
#include <stdio.h>

static struct {
    int rank;
    bool speak;
    double start_s;
} log_state = {0, true, 0};

void log_init(int rank, bool speak)
{
    log_state.rank = rank;
    log_state.speak = speak;
    log_state.start_s = clock_now_s();
}

static void log_line(const char *mark, const char *fmt, va_list ap)
{
    char text[2048];
    vsnprintf(text, sizeof text, fmt, ap);
    if (log_state.start_s == 0) log_state.start_s = clock_now_s();
    fprintf(stderr, "moebatch [%7.1f s] %s%s\n", clock_now_s() - log_state.start_s, mark, text);
}

void log_info(const char *fmt, ...)
{
    if (!log_state.speak) return;
    va_list ap;
    va_start(ap, fmt);
    log_line("", fmt, ap);
    va_end(ap);
}

void log_warn(const char *fmt, ...)
{
    char mark[48];
    snprintf(mark, sizeof mark, "warning (rank %d): ", log_state.rank);
    va_list ap;
    va_start(ap, fmt);
    log_line(mark, fmt, ap);
    va_end(ap);
}
