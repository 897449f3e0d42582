/* summary.c - adds up the rows of a job; the table is in summary_print.c. */
#include "account/summary.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

/* Bucket i holds values in [LOW * STEP^i, LOW * STEP^(i+1)). */
#define HIST_LOW 1e-6
#define HIST_STEP 1.02

static int histogram_bucket(double value)
{
    if (!(value > HIST_LOW)) return 0;
    double i = floor(log(value / HIST_LOW) / log(HIST_STEP));
    return i < HISTOGRAM_BUCKETS ? (int)i : HISTOGRAM_BUCKETS - 1;
}

double histogram_edge(int bucket)
{
    return HIST_LOW * pow(HIST_STEP, bucket);
}

void histogram_add(struct histogram *h, double value)
{
    if (isnan(value)) return;
    if (!h->count || value < h->min) h->min = value;
    if (!h->count || value > h->max) h->max = value;
    h->count++;
    h->sum += value;
    h->bucket[histogram_bucket(value)]++;
}

double histogram_mean(const struct histogram *h)
{
    return h->count ? h->sum / (double)h->count : (double)NAN;
}

double histogram_quantile(const struct histogram *h, double q)
{
    if (!h->count) return (double)NAN;
    /* nearest rank: the smallest value that at least q of the samples do not exceed */
    int64_t rank = (int64_t)ceil(q * (double)h->count);
    if (rank < 1) rank = 1;
    int64_t seen = 0;
    for (int i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen < rank) continue;
        double mid = HIST_LOW * pow(HIST_STEP, i + 0.5);
        return mid < h->min ? h->min : mid > h->max ? h->max : mid;
    }
    return h->max;
}

static void spread_add(struct spread *s, double v)
{
    if (!s->n || v < s->min) s->min = v;
    if (!s->n || v > s->max) s->max = v;
    s->sum += v;
    s->n++;
}

void summary_init(struct summary *s)
{
    memset(s, 0, sizeof *s);
    s->rank_attempt = -1;
    for (int k = 0; k < 2; k++) {
        s->first_start[k] = (double)INFINITY;
        s->last_end[k] = -(double)INFINITY;
    }
}

void summary_add_request(struct summary *s, const struct request_row *r)
{
    if (r->status == REQUEST_PENDING) s->pending++;
    if (r->status == REQUEST_FAILED) s->failed++;
    if (r->status != REQUEST_OK) return;
    s->ok++;
    s->hit_tokens += r->cached_tokens;
    s->hit_tokens_disk += r->cached_tokens_disk;
    s->miss_tokens += r->prompt_tokens - r->cached_tokens;
    s->output_tokens += r->output_tokens;
    histogram_add(&s->ttft, r->t_first_token - r->t_arrival);
    if (r->output_tokens >= 2)
        histogram_add(&s->tpot, (r->t_finish - r->t_first_token) / (r->output_tokens - 1));
}

static void add_deviation(struct summary *s, enum step_kind kind, enum summary_load load,
                          double mean, double max, double weight)
{
    if (!(mean > 0)) return;
    s->deviation_sum[kind][load] += max / mean * weight;
    s->deviation_s[kind][load] += weight;
}

void summary_add_step(struct summary *s, enum step_kind kind, const struct step_row *r)
{
    s->steps[kind]++;
    s->step_tokens[kind] += r->tokens;
    s->step_s[kind] += r->duration;
    s->first_start[kind] = fmin(s->first_start[kind], r->t_start);
    s->last_end[kind] = fmax(s->last_end[kind], r->t_start + r->duration);
    add_deviation(s, kind, LOAD_ATTENTION, r->attn_mean, r->attn_max, r->duration);
    add_deviation(s, kind, LOAD_KV, r->kv_mean, r->kv_max, r->duration);
    add_deviation(s, kind, LOAD_EXPERTS, r->expert_mean, r->expert_max, r->duration);
}

double summary_deviation(const struct summary *s, enum step_kind kind, enum summary_load load)
{
    double weight = s->deviation_s[kind][load];
    return weight > 0 ? s->deviation_sum[kind][load] / weight : (double)NAN;
}

static void forget_ranks(struct summary *s)
{
    memset(s->busy, 0, sizeof s->busy);
    memset(s->exposed, 0, sizeof s->exposed);
    memset(s->idle, 0, sizeof s->idle);
    memset(s->ranks, 0, sizeof s->ranks);
    memset(s->units, 0, sizeof s->units);
    memset(s->node_seen, 0, sizeof s->node_seen);
}

void summary_add_rank(struct summary *s, const struct rank_row *r)
{
    if (r->attempt != s->rank_attempt) {
        forget_ranks(s);
        s->rank_attempt = r->attempt;
    }
    int role = !strncmp(r->role, "prefill", sizeof r->role)  ? ROLE_PREFILL
               : !strncmp(r->role, "decode", sizeof r->role) ? ROLE_DECODE
                                                             : ROLE_MIXED;
    double total = r->compute_s + r->exposed_comm_s + r->idle_s;
    if (total > 0) {
        spread_add(&s->busy[role], r->compute_s / total);
        spread_add(&s->exposed[role], r->exposed_comm_s / total);
        spread_add(&s->idle[role], r->idle_s / total);
    }
    s->ranks[role]++;
    s->units[role] += r->local == 0;
    if (r->node >= 0 && r->node < 4096)
        s->node_seen[role][r->node / 64] |= UINT64_C(1) << (r->node % 64);
}

void summary_add_attempt(struct summary *s, const struct attempt_row *r)
{
    s->attempts++;
    s->gpu_s += r->gpu_s;
    s->wall_s += r->wall_s;
    s->node_s += r->nodes * r->wall_s;
    memcpy(s->isa, r->isa, sizeof s->isa);
    memcpy(s->transport, r->transport, sizeof s->transport);
}

/* Nodes that hold a rank of `role` or a mixed one. */
static int32_t count_nodes(const struct summary *s, enum summary_role role)
{
    int32_t n = 0;
    for (int i = 0; i < 64; i++)
        n += __builtin_popcountll(s->node_seen[role][i] | s->node_seen[ROLE_MIXED][i]);
    return n;
}

static double per(double a, double b)
{
    return b > 0 ? a / b : (double)NAN;
}

static void finish_throughput(struct summary *s)
{
    struct throughput_row *t = &s->throughput;
    int64_t input = s->hit_tokens + s->miss_tokens;
    double span[2], step[2];
    for (int k = 0; k < 2; k++) {
        int units = s->units[k] + s->units[ROLE_MIXED];
        span[k] = s->steps[k] ? s->last_end[k] - s->first_start[k] : 0;
        step[k] = s->step_s[k] / (units > 0 ? units : 1);
    }
    *t = (struct throughput_row){
        .prefill_tokens = s->step_tokens[STEP_PREFILL],
        .cached_tokens = s->hit_tokens,
        .decode_tokens = s->step_tokens[STEP_DECODE],
        .prefill_ranks = s->ranks[ROLE_PREFILL] + s->ranks[ROLE_MIXED],
        .decode_ranks = s->ranks[ROLE_DECODE] + s->ranks[ROLE_MIXED],
        .prefill_nodes = count_nodes(s, ROLE_PREFILL),
        .decode_nodes = count_nodes(s, ROLE_DECODE),
        .prefill_span_s = span[STEP_PREFILL],
        .decode_span_s = span[STEP_DECODE],
        .prefill_step_s = step[STEP_PREFILL],
        .decode_step_s = step[STEP_DECODE],
        .ttft_mean_s = histogram_mean(&s->ttft),
        .ttft_p50_s = histogram_quantile(&s->ttft, 0.50),
        .ttft_p90_s = histogram_quantile(&s->ttft, 0.90),
        .ttft_p99_s = histogram_quantile(&s->ttft, 0.99),
        .tpot_mean_s = histogram_mean(&s->tpot),
        .tpot_p50_s = histogram_quantile(&s->tpot, 0.50),
        .tpot_p90_s = histogram_quantile(&s->tpot, 0.90),
        .tpot_p99_s = histogram_quantile(&s->tpot, 0.99),
    };
    t->prefill_tokens_per_s = per((double)t->prefill_tokens, t->prefill_span_s);
    t->prefill_tokens_per_s_rank = per(t->prefill_tokens_per_s, t->prefill_ranks);
    t->prefill_tokens_per_s_node = per(t->prefill_tokens_per_s, t->prefill_nodes);
    t->input_tokens_per_s_node = per(per((double)input, t->prefill_span_s), t->prefill_nodes);
    t->decode_tokens_per_s = per((double)t->decode_tokens, t->decode_span_s);
    t->decode_tokens_per_s_rank = per(t->decode_tokens_per_s, t->decode_ranks);
    t->decode_tokens_per_s_node = per(t->decode_tokens_per_s, t->decode_nodes);
}

void summary_finish(struct summary *s, const struct account_prices *prices)
{
    finish_throughput(s);
    struct account_usage usage = {
        .gpu_seconds = s->gpu_s,
        .wall_s = s->wall_s,
        .ranks = s->wall_s > 0 ? s->gpu_s / s->wall_s : 0,
        .nodes = s->wall_s > 0 ? s->node_s / s->wall_s : 0,
        .hit_tokens = (double)s->hit_tokens,
        .miss_tokens = (double)s->miss_tokens,
        .output_tokens = (double)s->output_tokens,
    };
    s->prices = *prices;
    s->account = account_compute(&usage, prices);

    s->valid = true;
    int64_t total = s->ok + s->failed + s->pending;
    snprintf(s->reason, sizeof s->reason, "all %lld requests ended: %lld ok, %lld failed",
             (long long)total, (long long)s->ok, (long long)s->failed);
    if (s->pending)
        summary_invalid(s, "%lld of %lld requests are pending", (long long)s->pending,
                        (long long)total);
}

void summary_invalid(struct summary *s, const char *fmt, ...)
{
    if (!s->valid) return;
    s->valid = false;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(s->reason, sizeof s->reason, fmt, ap);
    va_end(ap);
}
