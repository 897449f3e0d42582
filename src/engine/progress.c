/* progress.c */
#include "engine/progress.h"

#include "core/log.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void progress_init(struct progress *p, int64_t count, double every_s)
{
    memset(p, 0, sizeof *p);
    p->count = count;
    p->terminal = isatty(STDERR_FILENO);
    p->every_s = p->terminal ? 0.5 : every_s > 0 ? every_s : 5;
    p->next_s = p->every_s;
}

void progress_prefilled(struct progress *p, int64_t tokens)
{
    p->prefilled++;
    p->prefill_tokens += tokens;
}

void progress_generated(struct progress *p, int64_t tokens)
{
    p->decode_tokens += tokens;
}

void progress_finished(struct progress *p, bool failed)
{
    p->finished++;
    if (failed) p->failed++;
}

static void bar(struct progress *p, const char *text, double share)
{
    enum { WIDTH = 24 };
    char full[WIDTH + 1];
    int n = (int)(share * WIDTH);
    for (int i = 0; i < WIDTH; i++) full[i] = i < n ? '#' : '.';
    full[WIDTH] = '\0';
    int columns = fprintf(stderr, "\r[%s] %s", full, text);
    for (int i = columns; i < p->shown; i++) fputc(' ', stderr);
    p->shown = columns;
    if (p->finished == p->count) fputc('\n', stderr);
    fflush(stderr);
}

void progress_show(struct progress *p, double now_s, int in_flight)
{
    if (now_s < p->next_s) return;
    p->next_s = now_s + p->every_s;
    double share = p->count ? (double)p->finished / (double)p->count : 1;
    char eta[32] = "ETA ?";
    if (share > 0) snprintf(eta, sizeof eta, "ETA %.0f s", now_s * (1 - share) / share);
    char text[256];
    snprintf(text, sizeof text,
             "%lld/%lld done (%lld failed), %d under way | prefill %lld prompts, %lld tok | "
             "decode %lld tok | %s",
             (long long)p->finished, (long long)p->count, (long long)p->failed, in_flight,
             (long long)p->prefilled, (long long)p->prefill_tokens, (long long)p->decode_tokens,
             eta);
    if (p->terminal)
        bar(p, text, share);
    else
        log_info("%s", text);
}

void progress_end(struct progress *p, double now_s)
{
    p->next_s = now_s;
    progress_show(p, now_s, 0);
    p->next_s = INFINITY;
}
