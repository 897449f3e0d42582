/* study_print.c - a day on the terminal. */
#include "cluster/study_day.h"

#include <math.h>

static void print_hours(const struct study_day *d, FILE *out)
{
    fprintf(out, "# hour  nodes  P   D   Mreq   in_G    hit%%   out_G  prefill%%  decode%%  kv%%  "
                 "batch/unit  in/s/node out/s/node  TTFT_p50_s  p90_s  p99_s  TPOT_p50_ms  p90_ms  "
                 "cost_k$  income_k$\n");
    for (int h = 0; h < d->sim.hours; h++) {
        const struct study_period_row *r = &d->hour[h];
        double in = (double)(r->hit_tokens + r->miss_tokens);
        fprintf(out,
                "  %5.2f %6.2f %3d %3d %6.2f %7.2f %6.2f %7.3f %8.1f %8.1f %5.1f %10.0f %10.0f "
                "%10.0f %11.2f %6.2f %6.2f %12.1f %7.1f %8.2f %9.2f\n",
                r->hour_of_day, r->prefill_nodes + r->decode_nodes, r->prefill_units,
                r->decode_units, (double)r->requests / 1e6, in / 1e9,
                100 * (double)r->hit_tokens / in, (double)r->output_tokens / 1e9,
                100 * r->prefill_utilisation, 100 * r->decode_utilisation, 100 * r->kv_occupancy,
                (double)r->decode_running / fmax(r->decode_units, 1), r->input_tokens_per_s_node,
                r->output_tokens_per_s_node, r->ttft_p50_s, r->ttft_p90_s, r->ttft_p99_s,
                1e3 * r->tpot_p50_s, 1e3 * r->tpot_p90_s, r->cost_usd / 1e3, r->revenue_usd / 1e3);
    }
}

static void print_figures(const struct study_day *d, FILE *out)
{
    if (!d->n_figures) return;
    fprintf(out, "# figure                 unit         published        predicted   error%%  "
                 "tolerance%%\n");
    for (int i = 0; i < d->n_figures; i++) {
        const struct study_figure_row *f = &d->figure[i];
        char range[32], tolerance[48] = "none asked";
        if (f->published_high > f->published)
            snprintf(range, sizeof range, "%.6g-%.6g", f->published, f->published_high);
        else
            snprintf(range, sizeof range, "%.6g", f->published);
        if (!isnan(f->tolerance))
            snprintf(tolerance, sizeof tolerance, "%.1f%s", 100 * f->tolerance,
                     fabs(f->error) > f->tolerance + 1e-9 ? "  MISSED" : "");
        fprintf(out, "  %-22s %-9s %12s %16.6g %8.2f  %s\n", f->figure, f->units, range,
                f->predicted, 100 * f->error, tolerance);
    }
}

/* One mean speed hides what is averaged: tokens, requests or time give different ones. */
static void print_speed(const struct study_day *d, FILE *out)
{
    double requests = 0, finished = 0, minutes = 0, sum = 0, low = INFINITY, high = 0;
    for (int m = 0; m < d->sim.minutes; m++) {
        const struct study_period_row *r = &d->minute[m];
        if (!(r->tpot_mean_s > 0)) continue;
        double speed = 1 / r->tpot_mean_s;
        requests += (double)r->finished * speed;
        finished += (double)r->finished;
        sum += speed, minutes++;
        low = fmin(low, speed), high = fmax(high, speed);
    }
    fprintf(out, "  output speed of a request, tokens/s: mean over output tokens %.2f",
            d->output_speed);
    if (finished > 0 && minutes > 0)
        fprintf(out, ", over requests %.2f, over time %.2f; minutes from %.2f to %.2f",
                requests / finished, sum / minutes, low, high);
    fputc('\n', out);
}

static void print_events(const struct study_plant *p, const struct study_day *d, FILE *out)
{
    const int64_t *n = d->sim.total;
    fprintf(out, "  requests %lld finished of %lld arrived, %lld moved when a unit left service\n",
            (long long)n[SIM_FINISHED], (long long)n[SIM_ARRIVALS], (long long)n[SIM_MOVED]);
    if (p->sim.prefill.ranks > 1 || p->sim.decode.ranks > 1)
        fprintf(out,
                "  requests dealt to ranks: a step takes %.3f (prefill), %.3f (decode) "
                "times that of even ranks\n",
                (double)n[SIM_PREFILL_UNEVEN_Q10] / 1024 / fmax((double)n[SIM_PREFILL_STEPS], 1),
                (double)n[SIM_DECODE_UNEVEN_Q10] / 1024 / fmax((double)n[SIM_DECODE_STEPS], 1));
    fprintf(out,
            "  KV pages ran out for %lld requests: moved to host memory and back; %lld "
            "prompts larger than a rank's pages\n",
            (long long)n[SIM_PREEMPTED], (long long)n[SIM_REFUSED]);
    for (int i = 0; i < 2 && p->drift[i].minutes; i++) {
        const struct expert_drift *e = &p->drift[i];
        double mean = 0, never = 0;
        for (int m = 0; m < d->sim.minutes; m++) {
            const struct study_period_row *r = &d->minute[m];
            mean += i ? r->decode_imbalance : r->prefill_imbalance;
            never += i ? r->decode_imbalance_unplanned : r->prefill_imbalance_unplanned;
        }
        fprintf(out,
                "  expert load, %s: busiest GPU %.3f of the mean over the day (%.3f had the "
                "first plan stayed); %d re-plans, each from %.3f to %.3f\n",
                i ? "decode" : "prefill", mean / d->sim.minutes, never / d->sim.minutes, e->replans,
                e->before, e->after);
    }
}

/* What the autoscaler found to be enough, beside all units in service all the time. */
static void print_enough(const struct study_plant *p, const struct study_day *d, FILE *out)
{
    const struct sim_role *pr = &p->sim.prefill, *dr = &p->sim.decode;
    int all = pr->max_units * pr->nodes + dr->max_units * dr->nodes;
    double paid = d->prefill_node_s + d->decode_node_s, hours = d->sim.minutes / 60.0;
    double full_cost = d->account.cost_usd / (paid / 3600) * all * hours;
    fprintf(out,
            "  enough: %.0f nodes at the peak, %.2f on average; profit $%.0f, with all %d "
            "nodes all the time $%.0f\n",
            d->peak_nodes, paid / 3600 / hours, d->account.profit_usd, all,
            d->account.revenue_usd - full_cost);
}

static void print_totals(const struct study_plant *p, const struct study_day *d, FILE *out)
{
    const struct account *a = &d->account;
    const struct study *s = &p->study;
    static const char *const mode[] = {"fixed", "step function", "autoscaled"};
    double hours = d->sim.minutes / 60.0;
    double node_hours = (d->prefill_node_s + d->decode_node_s) / 3600;
    fprintf(out, "# total, %.2f h, nodes %s%s%s\n", hours, mode[s->nodes.mode],
            s->nodes.mode == PLAN_AUTO ? ", forecast " : "",
            s->nodes.mode == PLAN_AUTO ? forecast_name((enum forecast_kind)s->autoscale.forecast)
                                       : "");
    print_events(p, d, out);
    fprintf(out, "  nodes %.2f mean, %.0f peak; %.0f node-hours, %.0f lent to other work\n",
            node_hours / hours, d->peak_nodes, node_hours, d->lent_node_hours);
    fprintf(out, "  input %.4g tokens, %.2f %% hits; output %.4g tokens\n",
            a->hit_tokens + a->miss_tokens, 100 * a->hit_tokens / (a->hit_tokens + a->miss_tokens),
            a->output_tokens);
    fprintf(out,
            "  cost $%.0f, theoretical income $%.0f, profit $%.0f, margin on cost %.1f %%, "
            "gross margin %.1f %%\n",
            a->cost_usd, a->revenue_usd, a->profit_usd, 100 * a->margin_on_cost,
            100 * a->gross_margin);
    print_speed(d, out);
    if (s->nodes.mode == PLAN_AUTO) print_enough(p, d, out);
    fprintf(out,
            "  minutes that miss the SLO: TTFT p90 > %g s in %.0f, TPOT p90 > %g ms in %.0f "
            "of %d\n",
            s->slo.ttft_s, d->slo_ttft_missed_minutes, s->slo.tpot_ms, d->slo_tpot_missed_minutes,
            d->sim.minutes);
}

void study_day_print(const struct study_plant *p, const struct study_day *d, FILE *out)
{
    const char *note[] = {unit_extrapolated(p->prefill), unit_extrapolated(p->decode)};
    print_hours(d, out);
    print_totals(p, d, out);
    print_figures(d, out);
    for (int i = 0; i < 2; i++)
        if (note[i]) fprintf(out, "# %s unit: %s\n", i ? "decode" : "prefill", note[i]);
    fprintf(out, "# simulated %.1f M requests in %.1f s wall, %.2f s CPU of this rank, %.0f MB\n",
            (double)d->sim.requests_simulated / 1e6, d->sim.wall_s, d->sim.cpu_s,
            (double)d->sim.peak_bytes / 1e6);
}
