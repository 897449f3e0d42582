/* workload.c - tables of lognormal quantiles, what a session amounts to, the arrival curve. */
#include "cluster/workload.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Inverse of the standard normal distribution: Halley's steps on erfc from a logistic start, exact
 * to the last few bits for the p of a table. */
static double normal_quantile(double p)
{
    double x = 0.5513 * log(p / (1 - p));
    for (int i = 0; i < 6; i++) {
        double e = (0.5 * erfc(-x * M_SQRT1_2) - p) * sqrt(2 * M_PI) * exp(0.5 * x * x);
        x -= e / (1 + 0.5 * x * e);
    }
    return x;
}

void workload_quantiles(double z[DRAW_ENTRIES])
{
    for (int i = 0; i < DRAW_ENTRIES; i++) z[i] = normal_quantile((i + 0.5) / DRAW_ENTRIES);
}

static double within(double v, double least, double most)
{
    return v < least ? least : v > most ? most : v;
}

/* Quantiles of a lognormal, scaled so that the table's own mean is `mean` before rounding; the
 * rounding carries its remainder from entry to entry, so the sum keeps it. */
static void fill_table(const double z[DRAW_ENTRIES], double mean, double sigma, uint32_t least,
                       uint32_t most, struct draw_table *t)
{
    static const int n = DRAW_ENTRIES;
    double x[DRAW_ENTRIES], scale = 1;
    for (int i = 0; i < n; i++) x[i] = exp(sigma * z[i]);
    for (int round = 0; round < 40; round++) { /* limits take mass away: scale again */
        double sum = 0, before = scale;
        for (int i = 0; i < n; i++) sum += within(x[i] * scale, least, most);
        scale *= mean * n / sum;
        if (fabs(scale - before) < 1e-14 * scale) break;
    }
    double carry = 0;
    for (int i = 0; i < n; i++) {
        double v = within(x[i] * scale, least, most);
        double whole = floor(v + carry + 0.5);
        if (whole < least) whole = least;
        carry += v - whole;
        t->v[i] = (uint32_t)whole;
    }
}

void workload_output_table(const struct session_params *s, const double z[DRAW_ENTRIES],
                           struct draw_table *out)
{
    fill_table(z, s->output_tokens, s->output_sigma, 1, 65535, out);
}

static enum status check(const struct session_params *s)
{
    const struct {
        const char *name;
        double value, least, most;
    } rule[] = {
        {"session.turns", s->turns, 1, 1000},
        {"session.first_tokens", s->first_tokens, 1, 1e6},
        {"session.first_sigma", s->first_sigma, 0, 4},
        {"session.followup_tokens", s->followup_tokens, 1, 1e6},
        {"session.followup_sigma", s->followup_sigma, 0, 4},
        {"session.output_tokens", s->output_tokens, 1, 60000},
        {"session.output_sigma", s->output_sigma, 0, 4},
        {"session.returned", s->returned, 0, 1},
        {"session.think_s", s->think_s, 1, 7200},
        {"session.think_sigma", s->think_sigma, 0, 4},
        {"session.max_prompt", s->max_prompt, 1, 4e6},
    };
    for (size_t i = 0; i < sizeof rule / sizeof *rule; i++)
        if (!(rule[i].value >= rule[i].least && rule[i].value <= rule[i].most))
            return error_set(ERR_INPUT, "%s: found %g, expected %g to %g", rule[i].name,
                             rule[i].value, rule[i].least, rule[i].most);
    return OK;
}

static double table_mean(const struct draw_table *t)
{
    double sum = 0;
    for (int i = 0; i < DRAW_ENTRIES; i++) sum += t->v[i];
    return sum / DRAW_ENTRIES;
}

enum status workload_build(const struct session_params *s, struct workload *w)
{
    double z[DRAW_ENTRIES];
    TRY(check(s));
    w->session = *s;
    workload_quantiles(z);
    fill_table(z, s->first_tokens, s->first_sigma, 1, (uint32_t)s->max_prompt, &w->first);
    fill_table(z, s->followup_tokens, s->followup_sigma, 1, (uint32_t)s->max_prompt, &w->followup);
    workload_output_table(s, z, &w->output);
    fill_table(z, s->think_s * SIM_TICKS_PER_S, s->think_sigma, (uint32_t)SIM_TICKS_PER_S,
               (uint32_t)(6000 * SIM_TICKS_PER_S), &w->think);
    w->go_on = (uint32_t)lrint((1 - 1 / s->turns) * 65536);
    w->mean_output = table_mean(&w->output);
    return OK;
}

void workload_measure(const struct workload *w, uint64_t seed, int n_sessions,
                      struct workload_means *out)
{
    double turns = 0, prompts = 0, hits = 0, output = 0, square = 0, kv = 0;
    for (int i = 0; i < n_sessions; i++) {
        struct sim_request r = {.key = 0};
        uint32_t think;
        workload_first(w, rng_u64(seed, (uint64_t)i), &r);
        do {
            uint32_t cached = (uint32_t)r.cached_pages * WORKLOAD_PAGE_TOKENS;
            turns++;
            prompts += r.prompt;
            hits += cached < r.prompt ? cached : r.prompt - 1;
        } while (workload_next(w, &r, &think));
    }
    for (int i = 0; i < DRAW_ENTRIES; i++) {
        output += w->output.v[i];
        square += (double)w->output.v[i] * w->output.v[i];
    }
    /* An answer's length is independent of its prompt, so the answers' part is exact. */
    kv = prompts / turns + 0.5 * (square / output - 1);
    *out = (struct workload_means){prompts / turns, output / DRAW_ENTRIES, hits / prompts, kv,
                                   turns / n_sessions};
}

/* An hour's integral of a line through knots a, b, c half an hour off its ends is (a + 6b + c) / 8:
 * solved for the knots by repeated substitution, which converges by 1/3 a round. */
enum status arrival_curve_build(const double bar[CURVE_HOURS], const char *name,
                                struct arrival_curve *c)
{
    double sum = 0;
    for (int h = 0; h < CURVE_HOURS; h++) {
        if (!(bar[h] >= 0))
            return error_set(ERR_INPUT, "%s: hour %d: found %g, expected a number >= 0", name, h,
                             bar[h]);
        sum += bar[h];
    }
    if (!(sum > 0)) return error_set(ERR_INPUT, "%s: every hour is 0", name);
    memcpy(c->bar, bar, sizeof c->bar);
    c->bar_sum = sum;
    for (int h = 0; h < CURVE_HOURS; h++) c->knot[h] = bar[h];
    for (int round = 0; round < 60; round++)
        for (int h = 0; h < CURVE_HOURS; h++) {
            double around = c->knot[(h + 23) % 24] + c->knot[(h + 1) % 24];
            c->knot[h] = (8 * bar[h] - around) / 6;
        }
    for (int h = 0; h < CURVE_HOURS; h++) {
        if (c->knot[h] < 0) c->knot[h] = 0;
        c->knot[h] *= CURVE_HOURS / sum;
    }
    return OK;
}

double arrival_curve_at(const struct arrival_curve *c, double hour)
{
    double x = fmod(hour - 0.5, CURVE_HOURS);
    if (x < 0) x += CURVE_HOURS;
    int i = (int)x % CURVE_HOURS;
    double f = x - floor(x);
    return c->knot[i] * (1 - f) + c->knot[(i + 1) % CURVE_HOURS] * f;
}

double arrival_curve_mean(const struct arrival_curve *c, double hour, double hours)
{
    int n = (int)(hours * 60 + 0.5) > 0 ? (int)(hours * 60 + 0.5) : 1;
    double sum = 0;
    for (int i = 0; i < n; i++) sum += arrival_curve_at(c, hour + hours * (i + 0.5) / n);
    return sum / n;
}

enum status arrival_curve_read(const char *path, struct arrival_curve *out)
{
    FILE *f = fopen(path, "r");
    if (!f) return error_set(ERR_INPUT, "workload.curve: %s: %s", path, strerror(errno));
    double bar[CURVE_HOURS] = {0};
    bool seen[CURVE_HOURS] = {false};
    char line[512];
    int line_no = 0, rows = 0;
    enum status st = OK;
    while (st == OK && fgets(line, sizeof line, f)) {
        int hour;
        double value;
        line_no++;
        if (line[0] == '#' || line[0] == '\n') continue;
        if (sscanf(line, "%d,%lf", &hour, &value) != 2) {
            if (rows == 0 && strstr(line, "hour")) continue; /* the heading */
            st = error_set(ERR_INPUT, "%s:%d: expected hour_of_day,value", path, line_no);
        } else if (hour < 0 || hour >= CURVE_HOURS || seen[hour]) {
            st = error_set(ERR_INPUT, "%s:%d: hour %d is %s, expected each of 0 to 23 once", path,
                           line_no, hour, hour < 0 || hour >= 24 ? "out of range" : "repeated");
        } else {
            seen[hour] = true;
            bar[hour] = value;
            rows++;
        }
    }
    fclose(f);
    if (st == OK && rows != CURVE_HOURS)
        st = error_set(ERR_INPUT, "%s: found %d hours, expected 24", path, rows);
    return st == OK ? arrival_curve_build(bar, path, out) : st;
}
