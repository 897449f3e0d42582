/* workload.h - who asks when and for how much: sessions of several turns with random lengths, and
 * the curve of arrivals over the day. Traces are workload_trace.h, the fit workload_fit.h.
 *
 * A session is a conversation: the first message, then follow-ups; each prompt repeats the prompt
 * before it, the returned share of the answer, and adds the new message. After each answer it goes
 * on with probability 1 - 1/turns. All of a turn's draws come from one 64-bit key (12 bits of it
 * pick an entry of a table of 4,096 quantiles), so a session needs no memory but the key, and the
 * answer's length can be drawn again from it at any time. Means over the tables are exact sums.
 *
 * A struct workload is plain data without pointers; a struct arrival_curve too.
 */
#ifndef CLUSTER_WORKLOAD_H
#define CLUSTER_WORKLOAD_H

#include "core/rng.h"
#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

enum { DRAW_ENTRIES = 4096, WORKLOAD_PAGE_TOKENS = 64 };

/* Time in the simulation: ticks since its start (warm-up included); a day fits 32 bits. */
#define SIM_TICKS_PER_S 32768.0

/* One turn on its way through the cluster; 32 bytes. */
struct sim_request {
    uint64_t key;          /* the turn's random bits; trace: row number */
    uint32_t arrival;      /* ticks */
    uint32_t first_token;  /* ticks, once prefilled; its work until then */
    uint32_t prompt;       /* tokens */
    uint32_t next;         /* due step, destination or tokens done, by where the request is */
    uint32_t touch;        /* second of the conversation's cache entry + 1; 0: it has none */
    uint16_t left;         /* output tokens still to come */
    uint16_t cached_pages; /* prefilled pages of the conversation that may be found */
};

struct session_params {
    double turns;                     /* mean, >= 1; geometric */
    double first_tokens, first_sigma; /* mean and log-sigma of the first message */
    double followup_tokens, followup_sigma;
    double output_tokens, output_sigma;
    double returned;             /* share of an answer that the next prompt repeats */
    double think_s, think_sigma; /* from an answer's end to the next turn */
    double max_prompt;           /* tokens; a session that would pass it ends */
};

struct draw_table {
    uint32_t v[DRAW_ENTRIES];
};

struct workload {
    struct session_params session;
    struct draw_table first, followup, output;
    struct draw_table think; /* ticks */
    uint32_t go_on;          /* of 65,536 */
    double mean_output;      /* tokens, exactly the table's */
};

enum status workload_build(const struct session_params *session, struct workload *out);
/* Its parts, for the fit: the standard normal's quantiles, and the table of answers alone. */
void workload_quantiles(double z[DRAW_ENTRIES]);
void workload_output_table(const struct session_params *s, const double z[DRAW_ENTRIES],
                           struct draw_table *out);

/* Tokens of the answer of a turn. */
static inline uint32_t workload_output(const struct workload *w, uint64_t key)
{
    return w->output.v[key & 4095];
}

/* A session's first turn from a random key; arrival is the caller's. */
static inline void workload_first(const struct workload *w, uint64_t key, struct sim_request *r)
{
    r->key = key;
    r->prompt = w->first.v[key >> 52];
    r->touch = 0;
    r->cached_pages = 0;
}

/* After an answer: the next turn of the same session and its thinking time in ticks, or false. */
static inline bool workload_next(const struct workload *w, struct sim_request *r, uint32_t *think)
{
    uint64_t k = r->key;
    if ((uint32_t)(k >> 36 & 0xffff) >= w->go_on) return false;
    uint32_t back = (uint32_t)(w->session.returned * workload_output(w, k));
    uint32_t prompt = r->prompt + back + w->followup.v[k >> 12 & 4095];
    if (prompt > w->session.max_prompt) return false;
    r->cached_pages = (uint16_t)(r->prompt / WORKLOAD_PAGE_TOKENS);
    r->prompt = prompt;
    *think = w->think.v[k >> 24 & 4095];
    r->key = rng_u64(k, 1);
    return true;
}

/* What a workload amounts to, from its tables and n_sessions sampled sessions. */
struct workload_means {
    double prompt, output, hit_ratio, kv_per_output, turns;
};
void workload_measure(const struct workload *w, uint64_t seed, int n_sessions,
                      struct workload_means *out);

/* Relative arrivals per hour, linear between knots in the middle of the hours, such that each
 * hour's integral is its bar's. Periodic. */
enum { CURVE_HOURS = 24 };
struct arrival_curve {
    double knot[CURVE_HOURS]; /* at hour + 0.5, mean 1 over the day */
    double bar[CURVE_HOURS];  /* as read, in the file's unit */
    double bar_sum;
};

/* From 24 bars by hour of day. ERR_INPUT when they are negative or all zero. */
enum status arrival_curve_build(const double bar[CURVE_HOURS], const char *name,
                                struct arrival_curve *out);
/* CSV with rows `hour_of_day,value`, '#' comments, a heading. */
enum status arrival_curve_read(const char *path, struct arrival_curve *out);
/* Relative rate (mean 1) at an hour of day, any real number. */
double arrival_curve_at(const struct arrival_curve *c, double hour);
/* Its mean over `hours` from an hour of day on; a minute's steps. */
double arrival_curve_mean(const struct arrival_curve *c, double hour, double hours);

#endif
