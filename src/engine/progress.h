/* progress.h - how far the job is: a bar on a terminal, a plain line now and then in a log. */
#ifndef ENGINE_PROGRESS_H
#define ENGINE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    int64_t count, finished, failed;
    int64_t prefill_tokens, decode_tokens, prefilled;
    double every_s, next_s;
    bool terminal;
    int shown; /* columns of the bar now on the screen */
};

/* count: requests in all; every_s: between lines in a log. */
void progress_init(struct progress *p, int64_t count, double every_s);
void progress_prefilled(struct progress *p, int64_t tokens); /* one prompt is computed */
void progress_generated(struct progress *p, int64_t tokens);
void progress_finished(struct progress *p, bool failed); /* one request has ended */
void progress_show(struct progress *p, double now_s, int in_flight);
/* The last state, whenever the one before was shown. */
void progress_end(struct progress *p, double now_s);

#endif
