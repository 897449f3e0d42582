/* study_day.c - a simulated day to rows and totals. */
#include "cluster/study_day.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double over(double a, double b)
{
    return b > 0 ? a / b : (double)NAN;
}

/* The money of a period through the one account function. */
static struct account money(const struct study_plant *p, const struct study_period_row *r,
                            double seconds)
{
    double nodes = r->prefill_nodes + r->decode_nodes;
    double gpus = r->prefill_nodes * over(unit_gpus(p->prefill), unit_nodes(p->prefill)) +
                  r->decode_nodes * over(unit_gpus(p->decode), unit_nodes(p->decode));
    struct account_usage u = {
        .gpu_seconds = gpus * seconds,
        .wall_s = seconds,
        .ranks = gpus,
        .nodes = nodes,
        .hit_tokens = (double)r->hit_tokens,
        .miss_tokens = (double)r->miss_tokens,
        .output_tokens = (double)r->output_tokens,
    };
    return account_compute(&u, &p->prices);
}

/* Expert imbalance over minutes [from, to) of the day; the given figure without drift. */
static double mean_imbalance(const struct study_plant *p, int role, bool unplanned, int from,
                             int to)
{
    const struct expert_drift *d = &p->drift[role];
    int warmup = (int)ceil(p->sim.warmup_s / 60);
    double sum = 0;
    if (d->minutes == 0) return unit_imbalance(role ? p->decode : p->prefill);
    for (int m = from; m < to; m++) sum += (unplanned ? d->never : d->imbalance)[warmup + m];
    return sum / (to - from);
}

/* Sums of minutes [from, to) into one row. Latencies are the caller's. */
static struct study_period_row period(const struct study_plant *p, const struct sim_result *s,
                                      int from, int to)
{
    int64_t n[SIM_COUNTERS] = {0}, node_ms[2] = {0, 0};
    for (int m = from; m < to; m++) {
        for (int c = 0; c < SIM_PREFILL_QUEUE; c++) n[c] += s->minute[m].n[c];
        node_ms[0] += s->minute[m].prefill_node_ms;
        node_ms[1] += s->minute[m].decode_node_ms;
    }
    const struct sim_minute *last = &s->minute[to - 1];
    for (int c = SIM_PREFILL_QUEUE; c < SIM_COUNTERS; c++) n[c] = last->n[c];
    double seconds = 60.0 * (to - from), ms = seconds * 1e3;
    const struct sim_role *pr = &p->sim.prefill, *dr = &p->sim.decode;
    struct study_period_row r = {
        .t_start = 60.0 * from,
        .hour_of_day = fmod(p->sim.start_hour + from / 60.0, 24),
        .prefill_units = last->prefill_units,
        .decode_units = last->decode_units,
        .prefill_nodes = (double)node_ms[0] / ms,
        .decode_nodes = (double)node_ms[1] / ms,
        .published_nodes = NAN,
        .published_revenue_usd = NAN,
        .requests = n[SIM_ARRIVALS],
        .sessions = n[SIM_STARTED_SESSIONS],
        .finished = n[SIM_FINISHED],
        .hit_tokens = n[SIM_HIT],
        .miss_tokens = n[SIM_MISS],
        .output_tokens = n[SIM_OUTPUT_Q10] / 1024,
        .queued_requests = n[SIM_PREFILL_QUEUE] + n[SIM_DECODE_WAITING],
        .prefill_queue = n[SIM_PREFILL_QUEUE],
        .prefill_queue_tokens = n[SIM_PREFILL_QUEUE_TOKENS],
        .decode_waiting = n[SIM_DECODE_WAITING],
        .decode_running = n[SIM_DECODE_RUNNING],
        .kv_pages = n[SIM_KV_PAGES],
        .cache_pages = n[SIM_CACHE_PAGES],
        .moved_requests = n[SIM_MOVED],
        .kv_occupancy =
            over((double)n[SIM_KV_PAGES], last->decode_units * p->sim.kv_pages_per_gpu * dr->gpus),
        .prefill_utilisation =
            over((double)n[SIM_PREFILL_BUSY_US] * pr->nodes, (double)node_ms[0] * 1e3),
        .decode_utilisation =
            over((double)n[SIM_DECODE_BUSY_US] * dr->nodes, (double)node_ms[1] * 1e3),
        .preempted_requests = n[SIM_PREEMPTED],
        .on_host = n[SIM_DECODE_ON_HOST],
        .prefill_imbalance = mean_imbalance(p, 0, false, from, to),
        .decode_imbalance = mean_imbalance(p, 1, false, from, to),
        .prefill_imbalance_unplanned = mean_imbalance(p, 0, true, from, to),
        .decode_imbalance_unplanned = mean_imbalance(p, 1, true, from, to),
        .kv_per_output = over((double)n[SIM_KV_READ_Q10], (double)n[SIM_OUTPUT_Q10]),
        .ttft_mean_s = over((double)n[SIM_TTFT_TICKS] / SIM_TICKS_PER_S, (double)n[SIM_TTFT_COUNT]),
        .tpot_mean_s =
            over((double)n[SIM_TPOT_TICKS] / SIM_TICKS_PER_S, (double)n[SIM_TPOT_TOKENS]),
    };
    double input = (double)(r.hit_tokens + r.miss_tokens);
    r.lent_nodes =
        pr->max_units * pr->nodes + dr->max_units * dr->nodes - (r.prefill_nodes + r.decode_nodes);
    r.input_tokens_per_s_node = over(input, (double)node_ms[0] / 1e3);
    r.output_tokens_per_s_node = over((double)r.output_tokens, (double)node_ms[1] / 1e3);
    struct account a = money(p, &r, seconds);
    r.cost_usd = a.cost_usd;
    r.revenue_usd = a.revenue_usd;
    r.profit_usd = a.profit_usd;
    r.margin_on_cost = a.margin_on_cost;
    return r;
}

static void fill_minutes(const struct study_plant *p, struct study_day *d)
{
    const struct study *s = &p->study;
    for (int m = 0; m < d->sim.minutes; m++) {
        const struct sim_minute *from = &d->sim.minute[m];
        struct study_period_row *r = &d->minute[m];
        *r = period(p, &d->sim, m, m + 1);
        r->ttft_p50_s = from->ttft_s[0];
        r->ttft_p90_s = from->ttft_s[1];
        r->ttft_p99_s = from->ttft_s[2];
        r->tpot_p50_s = from->tpot_s[0];
        r->tpot_p90_s = from->tpot_s[1];
        r->tpot_p99_s = from->tpot_s[2];
        d->slo_ttft_missed_minutes += r->ttft_p90_s > s->slo.ttft_s;
        d->slo_tpot_missed_minutes += r->tpot_p90_s > s->slo.tpot_ms / 1e3;
        d->lent_node_hours += r->lent_nodes / 60;
        d->peak_nodes = fmax(d->peak_nodes, r->prefill_nodes + r->decode_nodes);
        d->prefill_node_s += (double)from->prefill_node_ms / 1e3;
        d->decode_node_s += (double)from->decode_node_ms / 1e3;
    }
}

static void fill_hours(const struct study_plant *p, struct study_day *d)
{
    for (int h = 0; h < d->sim.hours; h++) {
        int to = (h + 1) * 60 < d->sim.minutes ? (h + 1) * 60 : d->sim.minutes;
        struct study_period_row *r = &d->hour[h];
        *r = period(p, &d->sim, h * 60, to);
        const int64_t *ttft = d->sim.ttft_hist + h * SIM_HIST;
        const int64_t *tpot = d->sim.tpot_hist + h * SIM_HIST;
        r->ttft_p50_s = sim_hist_quantile(ttft, 0.5) / SIM_TICKS_PER_S;
        r->ttft_p90_s = sim_hist_quantile(ttft, 0.9) / SIM_TICKS_PER_S;
        r->ttft_p99_s = sim_hist_quantile(ttft, 0.99) / SIM_TICKS_PER_S;
        r->tpot_p50_s = sim_hist_quantile(tpot, 0.5) / SIM_TICKS_PER_S;
        r->tpot_p90_s = sim_hist_quantile(tpot, 0.9) / SIM_TICKS_PER_S;
        r->tpot_p99_s = sim_hist_quantile(tpot, 0.99) / SIM_TICKS_PER_S;
        if (*p->study.published && *p->study.workload.curve)
            r->published_revenue_usd = p->curve.bar[(int)r->hour_of_day] * 1e3;
    }
}

static void fill_units(struct study_day *d)
{
    int units = d->sim.units_prefill + d->sim.units_decode;
    for (int h = 0; h < d->sim.hours; h++)
        for (int u = 0; u < units; u++) {
            const struct sim_unit_hour *from = &d->sim.unit[h * units + u];
            struct study_unit_row *r = &d->unit[h * units + u];
            bool prefill = u < d->sim.units_prefill;
            *r = (struct study_unit_row){
                .hour = h,
                .requests = from->requests,
                .tokens = from->tokens_q10 / 1024,
                .steps = from->steps,
                .busy_s = (double)from->busy_us / 1e6,
            };
            snprintf(r->unit, sizeof r->unit, "%s%d", prefill ? "prefill" : "decode",
                     prefill ? u : u - d->sim.units_prefill);
        }
}

/* study_published.c */
enum status study_published(const struct study_plant *p, struct study_day *d);

enum status study_day_run(struct study_plant *p, const struct exchange *ex, double progress_s,
                          struct study_day *d)
{
    memset(d, 0, sizeof *d);
    p->sim.progress_s = progress_s;
    TRY(sim_run(&p->sim, ex, &d->sim));
    size_t units = (size_t)(d->sim.units_prefill + d->sim.units_decode);
    d->minute = calloc((size_t)d->sim.minutes + 1, sizeof *d->minute);
    d->hour = calloc((size_t)d->sim.hours + 1, sizeof *d->hour);
    d->unit = calloc((size_t)d->sim.hours * units + 1, sizeof *d->unit);
    if (!d->minute || !d->hour || !d->unit) {
        study_day_free(d);
        return error_set(ERR_RESOURCE, "no memory for the results of a day");
    }
    fill_minutes(p, d);
    fill_hours(p, d);
    fill_units(d);
    struct study_period_row all = period(p, &d->sim, 0, d->sim.minutes);
    d->account = money(p, &all, 60.0 * d->sim.minutes);
    d->output_speed = over((double)d->sim.total[SIM_TPOT_TOKENS] * SIM_TICKS_PER_S,
                           (double)d->sim.total[SIM_TPOT_TICKS]);
    return study_published(p, d);
}

static void all_hours(const int64_t *hist, int hours, double out_s[3])
{
    static const double q[] = {0.5, 0.9, 0.99};
    int64_t sum[SIM_HIST] = {0};
    for (int h = 0; h < hours; h++)
        for (int b = 0; b < SIM_HIST; b++) sum[b] += hist[h * SIM_HIST + b];
    for (int i = 0; i < 3; i++) out_s[i] = sim_hist_quantile(sum, q[i]) / SIM_TICKS_PER_S;
}

void study_day_total(const struct study_plant *p, const struct study_day *d,
                     struct study_day_totals *t)
{
    const struct account *a = &d->account;
    double seconds = 60.0 * d->sim.minutes, running = 0, units = 0, gpus;
    struct study_period_row all = period(p, &d->sim, 0, d->sim.minutes);
    for (int m = 0; m < d->sim.minutes; m++) {
        running += (double)d->sim.minute[m].n[SIM_DECODE_RUNNING];
        units += d->sim.minute[m].decode_units;
    }
    gpus = d->prefill_node_s * over(unit_gpus(p->prefill), unit_nodes(p->prefill)) +
           d->decode_node_s * over(unit_gpus(p->decode), unit_nodes(p->decode));
    *t = (struct study_day_totals){
        .seconds = seconds,
        .requests = (double)d->sim.total[SIM_ARRIVALS],
        .finished = (double)d->sim.total[SIM_FINISHED],
        .hit_tokens = a->hit_tokens,
        .miss_tokens = a->miss_tokens,
        .output_tokens = a->output_tokens,
        .tokens_per_s_request = d->output_speed,
        .tokens_per_s_gpu = over(a->output_tokens, gpus),
        .batch = over(running, units * unit_gpus(p->decode)),
        .prefill_utilisation = all.prefill_utilisation,
        .decode_utilisation = all.decode_utilisation,
        .nodes_mean = (d->prefill_node_s + d->decode_node_s) / seconds,
        .nodes_peak = d->peak_nodes,
        .node_hours = (d->prefill_node_s + d->decode_node_s) / 3600,
        .cost_usd = a->cost_usd,
        .revenue_usd = a->revenue_usd,
        .profit_usd = a->profit_usd,
        .margin_on_cost = a->margin_on_cost,
        .usd_per_m_output = a->usd_cost_per_m_output,
        .ttft_missed_minutes = d->slo_ttft_missed_minutes,
        .tpot_missed_minutes = d->slo_tpot_missed_minutes,
        .minutes = d->sim.minutes,
    };
    all_hours(d->sim.ttft_hist, d->sim.hours, t->ttft_s);
    all_hours(d->sim.tpot_hist, d->sim.hours, t->tpot_s);
}

enum status study_day_point(struct study_plant *p, struct study_day_totals *t)
{
    struct exchange alone = exchange_serial();
    struct study_day d;
    memset(t, 0, sizeof *t);
    TRY(study_plant_days(p));
    enum status st = study_day_run(p, &alone, 0, &d);
    if (st == OK) study_day_total(p, &d, t);
    study_day_free(&d);
    return st;
}

void study_day_free(struct study_day *d)
{
    sim_result_free(&d->sim);
    free(d->minute);
    free(d->hour);
    free(d->unit);
    memset(d, 0, sizeof *d);
}

enum status study_day_write(const struct study_plant *p, const struct study_day *d,
                            struct study_file *f)
{
    size_t units = (size_t)(d->sim.units_prefill + d->sim.units_decode);
    TRY(study_file_minutes(f, d->minute, (size_t)d->sim.minutes));
    TRY(study_file_hours(f, d->hour, (size_t)d->sim.hours));
    TRY(study_file_units(f, d->unit, (size_t)d->sim.hours * units));
    if (d->n_figures) TRY(study_file_figures(f, d->figure, (size_t)d->n_figures));
    return study_file_account(f, &d->account, &p->prices);
}
