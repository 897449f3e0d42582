/* summary_print.c - the closing table. Reads struct summary, decides nothing. */
#include <math.h>
#include <string.h>

#include "account/summary.h"

/* "1234.5", or "-" where there was nothing to measure. */
static const char *num(char buf[24], const char *fmt, double v)
{
    if (isnan(v)) return "-";
    snprintf(buf, 24, fmt, v); // NOLINT(clang-diagnostic-format-nonliteral)
    return buf;
}

static void print_phases(const struct throughput_row *t, FILE *out)
{
    char a[24], b[24], c[24];
    fprintf(out, "# %-10s %6s %6s %12s %10s %12s %14s %14s\n", "phase", "ranks", "nodes", "tokens",
            "span s", "tokens/s", "tokens/s/rank", "tokens/s/node");
    fprintf(out, "  %-10s %6d %6d %12lld %10.2f %12s %14s %14s\n", "prefill", t->prefill_ranks,
            t->prefill_nodes, (long long)t->prefill_tokens, t->prefill_span_s,
            num(a, "%.1f", t->prefill_tokens_per_s), num(b, "%.2f", t->prefill_tokens_per_s_rank),
            num(c, "%.1f", t->prefill_tokens_per_s_node));
    fprintf(out, "  %-10s %6d %6d %12lld %10.2f %12s %14s %14s\n", "decode", t->decode_ranks,
            t->decode_nodes, (long long)t->decode_tokens, t->decode_span_s,
            num(a, "%.1f", t->decode_tokens_per_s), num(b, "%.2f", t->decode_tokens_per_s_rank),
            num(c, "%.1f", t->decode_tokens_per_s_node));
    fprintf(out, "  prompt tokens found in the prefix cache: %lld; with them %s tokens/s/node\n",
            (long long)t->cached_tokens, num(a, "%.1f", t->input_tokens_per_s_node));
}

/* Both figures are the model's, so that their difference is the order's alone. */
static void print_order(const struct summary *s, FILE *out)
{
    if (!s->by_prefix) return;
    fprintf(out,
            "  order by prefix: a modelled cache of that size finds %lld, in file order %lld: %lld "
            "prompt tokens less to compute\n",
            (long long)s->hit_as_sent, (long long)s->hit_in_file,
            (long long)(s->hit_as_sent - s->hit_in_file));
}

static void print_latency(const struct throughput_row *t, FILE *out)
{
    char a[24], b[24], c[24], d[24];
    fprintf(out, "# %-28s %10s %10s %10s %10s\n", "latency", "mean", "p50", "p90", "p99");
    fprintf(out, "  %-28s %10s %10s %10s %10s\n", "TTFT, time to 1st token, s",
            num(a, "%.3f", t->ttft_mean_s), num(b, "%.3f", t->ttft_p50_s),
            num(c, "%.3f", t->ttft_p90_s), num(d, "%.3f", t->ttft_p99_s));
    fprintf(out, "  %-28s %10s %10s %10s %10s\n", "TPOT, time per next token, ms",
            num(a, "%.2f", t->tpot_mean_s * 1e3), num(b, "%.2f", t->tpot_p50_s * 1e3),
            num(c, "%.2f", t->tpot_p90_s * 1e3), num(d, "%.2f", t->tpot_p99_s * 1e3));
}

static void share(const struct spread *s, char buf[32])
{
    if (!s->n)
        snprintf(buf, 32, "-");
    else
        snprintf(buf, 32, "%.1f / %.1f / %.1f", s->min * 100, s->sum / (double)s->n * 100,
                 s->max * 100);
}

static void print_shares(const struct summary *s, FILE *out)
{
    static const char *const role[ROLES] = {"prefill", "decode", "mixed"};
    char a[32], b[32], c[32];
    fprintf(out, "# %-10s %22s %22s %22s\n", "ranks' time", "busy %", "exposed comm %", "idle %");
    for (int r = 0; r < ROLES; r++) {
        if (!s->ranks[r]) continue;
        share(&s->busy[r], a);
        share(&s->exposed[r], b);
        share(&s->idle[r], c);
        fprintf(out, "  %-11s %22s %22s %22s\n", role[r], a, b, c);
    }
    fprintf(out, "  (min / mean / max over ranks)\n");
}

static void print_loads(const struct summary *s, FILE *out)
{
    char a[24], b[24], c[24];
    fprintf(out, "# %-28s %10s %10s %10s\n", "load deviation, max / mean", "attention", "KV",
            "experts");
    static const char *const phase[2] = {"prefill", "decode"};
    for (int k = 0; k < 2; k++)
        fprintf(out, "  %-28s %10s %10s %10s\n", phase[k],
                num(a, "%.3f", summary_deviation(s, (enum step_kind)k, LOAD_ATTENTION)),
                num(b, "%.3f", summary_deviation(s, (enum step_kind)k, LOAD_KV)),
                num(c, "%.3f", summary_deviation(s, (enum step_kind)k, LOAD_EXPERTS)));
}

static void print_account(const struct summary *s, FILE *out)
{
    const struct account *a = &s->account;
    const struct account_prices *p = &s->prices;
    char m[24], g[24], u[24];
    fprintf(out, "# account (a rank is billed as one GPU)\n");
    fprintf(out, "  cost      $ %-14.6g = %.1f GPU-seconds x $ %g per GPU-hour\n", a->cost_usd,
            a->gpu_seconds, p->usd_per_gpu_hour);
    fprintf(out,
            "  revenue   $ %-14.6g = %.0f hit x $ %g + %.0f miss x $ %g + %.0f output x $ %g"
            " per million\n",
            a->revenue_usd, a->hit_tokens, p->usd_per_m_hit, a->miss_tokens, p->usd_per_m_miss,
            a->output_tokens, p->usd_per_m_output);
    fprintf(out, "  profit    $ %-14.6g margin on cost %s, gross margin %s\n", a->profit_usd,
            isnan(a->margin_on_cost) ? "-" : num(m, "%.1f %%", a->margin_on_cost * 100),
            isnan(a->gross_margin) ? "-" : num(g, "%.1f %%", a->gross_margin * 100));
    fprintf(out, "  cost per million output tokens $ %s\n",
            num(u, "%.6g", a->usd_cost_per_m_output));
}

void summary_print(const struct summary *s, const char *results_path, FILE *out)
{
    fprintf(out, "# requests: %lld ok, %lld failed, %lld pending; output tokens: %lld\n",
            (long long)s->ok, (long long)s->failed, (long long)s->pending,
            (long long)s->output_tokens);
    fprintf(out, "# measured in %.2f s over %lld attempt%s, isa %.16s, transport %.32s\n",
            s->wall_s, (long long)s->attempts, s->attempts == 1 ? "" : "s", s->isa, s->transport);
    print_phases(&s->throughput, out);
    if (s->hit_tokens_disk > 0)
        fprintf(out, "  of these read from disk: %lld\n", (long long)s->hit_tokens_disk);
    print_order(s, out);
    print_latency(&s->throughput, out);
    print_shares(s, out);
    print_loads(s, out);
    if (s->slow_rank[0]) fprintf(out, "# slowest: %s\n", s->slow_rank);
    if (s->slow_link[0]) fprintf(out, "# slowest: %s\n", s->slow_link);
    print_account(s, out);
    if (results_path) fprintf(out, "# results: %s\n", results_path);
    fprintf(out, "%s: %s\n", s->valid ? "VALID" : "INVALID", s->reason);
}
