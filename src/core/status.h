/* status.h - results of functions and the one error message of a process.
 *
 * Every function that can fail returns enum status. The function that decides an error
 * records one message with error_set() (what: file, field, found, expected, remedy); callers
 * pass the status on and unwind. main.c prints the message and exits with the status, so the
 * values are the documented exit codes.
 */
#ifndef CORE_STATUS_H
#define CORE_STATUS_H

enum status {
    OK = 0,
    ERR_INVALID = 1,   /* the job ran but its result is INVALID */
    ERR_USAGE = 2,     /* command line */
    ERR_INPUT = 3,     /* config, checkpoint, token file, price table */
    ERR_RESOURCE = 4,  /* memory, disk, ranks, missing instruction set */
    ERR_COMM = 5,      /* a rank or a link is gone */
    ERR_INTERRUPT = 6, /* stopped by a signal, resumable */
    ERR_BUG = 70       /* a broken promise inside the program */
};

/* Records the message (first one wins until error_clear) and returns st, so that
 * `return error_set(ERR_INPUT, "...")` reads as one step. */
enum status error_set(enum status st, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The recorded message, "" if none. Valid until error_clear. */
const char *error_text(void);
void error_clear(void);

/* Passes a failure up: TRY(f(x)); */
#define TRY(call)                          \
    do {                                   \
        enum status try_st_ = (call);      \
        if (try_st_ != OK) return try_st_; \
    } while (0)

#endif
