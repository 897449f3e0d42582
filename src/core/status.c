/* status.c - the error message of this process (listed global: one message per process). */
#include "core/status.h"

#include <stdarg.h>
#include <stdio.h>

static char error_message[2048];

enum status error_set(enum status st, const char *fmt, ...)
{
    if (error_message[0] == '\0') {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(error_message, sizeof error_message, fmt, ap);
        va_end(ap);
    }
    return st;
}

const char *error_text(void)
{
    return error_message;
}

void error_clear(void)
{
    error_message[0] = '\0';
}
