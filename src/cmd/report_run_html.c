/* report_run_html.c - a run's page: headline figures, throughput, latency, account; the charts
 * follow from report_run_time.c and report_run_load.c. */
#include "cmd/report_html.h"
#include "cmd/report_run.h"
#include "cmd/report_svg.h"

#include <math.h>
#include <string.h>

/* "12.3k tok/s", "$0.0123"; "-" where nothing was measured. */
static void tile(FILE *out, double value, const char *unit, const char *name)
{
    char number[32], text[64];
    svg_number(number, value);
    if (isnan(value))
        snprintf(text, sizeof text, "-");
    else if (*unit == '$')
        snprintf(text, sizeof text, "$%s", number);
    else
        snprintf(text, sizeof text, "%s %s", number, unit);
    html_tile(out, text, name);
}

static void headline(const struct summary *s, FILE *out)
{
    const struct throughput_row *t = &s->throughput;
    char text[64];
    html_tiles_begin(out);
    snprintf(text, sizeof text, "%lld of %lld", (long long)s->ok,
             (long long)(s->ok + s->failed + s->pending));
    html_tile(out, text, "requests answered");
    tile(out, s->wall_s, "s", "wall time, all attempts");
    tile(out, t->prefill_tokens_per_s, "tok/s", "prefill");
    tile(out, t->decode_tokens_per_s, "tok/s", "decode");
    tile(out, t->ttft_p50_s, "s", "TTFT, median");
    tile(out, t->tpot_p50_s * 1e3, "ms", "TPOT, median");
    tile(out, s->account.cost_usd, "$", "cost");
    tile(out, s->account.revenue_usd, "$", "theoretical revenue");
    tile(out, s->account.margin_on_cost * 100, "%", "profit / cost");
    html_tiles_end(out);
}

static const char *cell(char buf[32], double v)
{
    return isnan(v) ? "-" : svg_number(buf, v);
}

static void throughput_table(const struct throughput_row *t, FILE *out)
{
    static const char *const name[2] = {"prefill", "decode"};
    const int32_t ranks[2] = {t->prefill_ranks, t->decode_ranks};
    const int32_t nodes[2] = {t->prefill_nodes, t->decode_nodes};
    const int64_t tokens[2] = {t->prefill_tokens, t->decode_tokens};
    const double span[2] = {t->prefill_span_s, t->decode_span_s};
    const double rate[2][3] = {
        {t->prefill_tokens_per_s, t->prefill_tokens_per_s_rank, t->prefill_tokens_per_s_node},
        {t->decode_tokens_per_s, t->decode_tokens_per_s_rank, t->decode_tokens_per_s_node}};
    html_table_begin(out, "phase\tranks\tnodes\ttokens computed\tspan, s\ttokens/s\ttokens/s/rank\t"
                          "tokens/s/node");
    for (int k = 0; k < 2; k++) {
        char line[256], a[32], b[32], c[32];
        snprintf(line, sizeof line, "%s\t%d\t%d\t%lld\t%.2f\t%s\t%s\t%s", name[k], ranks[k],
                 nodes[k], (long long)tokens[k], span[k], cell(a, rate[k][0]), cell(b, rate[k][1]),
                 cell(c, rate[k][2]));
        html_row(out, line);
    }
    html_table_end(out);
}

static void latency_table(const struct throughput_row *t, FILE *out)
{
    char line[256], a[32], b[32], c[32], d[32];
    html_table_begin(out, "latency\tmean\tp50\tp90\tp99");
    snprintf(line, sizeof line, "TTFT, time to the first token, s\t%s\t%s\t%s\t%s",
             cell(a, t->ttft_mean_s), cell(b, t->ttft_p50_s), cell(c, t->ttft_p90_s),
             cell(d, t->ttft_p99_s));
    html_row(out, line);
    snprintf(line, sizeof line, "TPOT, time per later token, ms\t%s\t%s\t%s\t%s",
             cell(a, t->tpot_mean_s * 1e3), cell(b, t->tpot_p50_s * 1e3),
             cell(c, t->tpot_p90_s * 1e3), cell(d, t->tpot_p99_s * 1e3));
    html_row(out, line);
    html_table_end(out);
}

static void account_table(const struct summary *s, FILE *out)
{
    const struct account *a = &s->account;
    const struct account_prices *p = &s->prices;
    const struct {
        const char *name, *unit;
        double quantity, per, price, usd;
    } rows[] = {
        {"GPU time", "GPU-hours", a->gpu_seconds / 3600, 1, p->usd_per_gpu_hour, -a->cost_usd},
        {"input, cache hit", "tokens", a->hit_tokens, 1e6, p->usd_per_m_hit, a->revenue_hit_usd},
        {"input, cache miss", "tokens", a->miss_tokens, 1e6, p->usd_per_m_miss,
         a->revenue_miss_usd},
        {"output", "tokens", a->output_tokens, 1e6, p->usd_per_m_output, a->revenue_output_usd},
    };
    char line[256], x[32], y[32];
    html_table_begin(out, "account\tquantity\tprice, $\tamount, $");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        snprintf(line, sizeof line, "%s\t%s %s\t%g per %s\t%.6g", rows[i].name,
                 svg_number(x, rows[i].quantity), rows[i].unit, rows[i].price,
                 rows[i].per > 1 ? "million" : "GPU-hour", rows[i].usd);
        html_row(out, line);
    }
    snprintf(line, sizeof line, "profit\t%s %% of cost\t\t%.6g", cell(x, a->margin_on_cost * 100),
             a->profit_usd);
    html_row(out, line);
    snprintf(line, sizeof line, "cost per million output tokens\t\t\t%s",
             cell(y, a->usd_cost_per_m_output));
    html_row(out, line);
    html_table_end(out);
}

static void attempts_table(const struct report_run *run, FILE *out)
{
    html_table_begin(out, "attempt\toutcome\tstart, UTC\twall, s\tranks\tnodes\trequests finished\t"
                          "tokens computed\tof these lost");
    for (size_t i = 0; i < run->n_attempts; i++) {
        const struct attempt_row *a = &run->attempts[i];
        char line[320];
        snprintf(line, sizeof line, "%d\t%.16s\t%.24s\t%.2f\t%d\t%d\t%lld\t%lld\t%lld", a->attempt,
                 a->outcome, a->start_utc, a->wall_s, a->ranks, a->nodes,
                 (long long)a->requests_finished, (long long)(a->prefill_tokens + a->decode_tokens),
                 (long long)(a->prefill_tokens_lost + a->decode_tokens_lost));
        html_row(out, line);
    }
    html_table_end(out);
}

/* The range of filled buckets, in groups so that about 40 bars remain. */
static void histogram_chart(const struct histogram *h, double scale, const char *title,
                            const char *label, FILE *out)
{
    if (!h->count) return;
    int first = 0, last = HISTOGRAM_BUCKETS - 1;
    while (!h->bucket[first]) first++;
    while (!h->bucket[last]) last--;
    int group = (last - first + 40) / 40, highest = 0;
    for (int i = first; i <= last; i += group) {
        int64_t n = 0;
        for (int k = i; k < i + group && k <= last; k++) n += h->bucket[k];
        if (n > highest) highest = (int)n;
    }
    double lo = histogram_edge(first) * scale, hi = histogram_edge(last + 1) * scale;
    char note[160], a[32], b[32];
    snprintf(note, sizeof note, "%lld requests, median %s, p99 %s", (long long)h->count,
             svg_number(a, histogram_quantile(h, 0.5) * scale),
             svg_number(b, histogram_quantile(h, 0.99) * scale));
    bool wide = hi > 20 * lo;
    double margin = wide ? 1 : (hi - lo) * 0.05;
    struct svg_chart c = {
        .out = out,
        .title = title,
        .note = note,
        .width = SVG_HALF,
        .height = 230,
        .x = {.lo = wide ? lo : lo - margin,
              .hi = wide ? hi : hi + margin,
              .label = label,
              .log = wide},
        .y = svg_from_zero(highest, "requests"),
    };
    svg_begin(&c);
    for (int i = first; i <= last; i += group) {
        int64_t n = 0;
        for (int k = i; k < i + group && k <= last; k++) n += h->bucket[k];
        char tip[96];
        double x0 = histogram_edge(i) * scale, x1 = histogram_edge(i + group) * scale;
        snprintf(tip, sizeof tip, "%.4g to %.4g: %lld requests", x0, x1, (long long)n);
        if (n) svg_rect(&c, x0, x1, 0, (double)n, SVG_BLUE, tip);
    }
    svg_end(&c);
}

enum status report_run_html(const struct report_run *run, FILE *out)
{
    const struct summary *s = &run->summary;
    headline(s, out);
    html_section(out, "Throughput and account",
                 "A rank is billed as one GPU, also where it ran on a CPU. Prefill and decode are "
                 "counted apart; a rate is tokens over the time from the phase's first step to the "
                 "end of its last.");
    throughput_table(&s->throughput, out);
    account_table(s, out);
    attempts_table(run, out);
    html_section(out, "Latency", "Of answered requests.");
    latency_table(&s->throughput, out);
    fputs("<div class=\"row\">", out);
    histogram_chart(&s->ttft, 1, "Time to first token", "TTFT, s", out);
    histogram_chart(&s->tpot, 1e3, "Time per output token", "TPOT, ms", out);
    fputs("</div>\n", out);
    TRY(report_run_time_html(run, out));
    return report_run_load_html(run, out);
}
