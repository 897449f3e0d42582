/* account.c - the arithmetic of account.h. A ratio with nothing below the line is NaN, not zero, so
 * that a reader of the results file cannot take it for a measurement. */
#include "account/account.h"

#include <math.h>

static double ratio(double a, double b)
{
    return b > 0 ? a / b : (double)NAN;
}

struct account account_compute(const struct account_usage *u, const struct account_prices *p)
{
    struct account a = {
        .gpu_seconds = u->gpu_seconds,
        .hit_tokens = u->hit_tokens,
        .miss_tokens = u->miss_tokens,
        .output_tokens = u->output_tokens,
        .cost_usd = u->gpu_seconds / 3600 * p->usd_per_gpu_hour,
        .revenue_hit_usd = u->hit_tokens / 1e6 * p->usd_per_m_hit,
        .revenue_miss_usd = u->miss_tokens / 1e6 * p->usd_per_m_miss,
        .revenue_output_usd = u->output_tokens / 1e6 * p->usd_per_m_output,
    };
    a.revenue_usd = a.revenue_hit_usd + a.revenue_miss_usd + a.revenue_output_usd;
    a.profit_usd = a.revenue_usd - a.cost_usd;
    a.margin_on_cost = ratio(a.profit_usd, a.cost_usd);
    a.gross_margin = ratio(a.profit_usd, a.revenue_usd);

    double input = u->hit_tokens + u->miss_tokens;
    a.input_tokens_per_s_rank = ratio(input, u->wall_s * u->ranks);
    a.input_tokens_per_s_node = ratio(input, u->wall_s * u->nodes);
    a.output_tokens_per_s_rank = ratio(u->output_tokens, u->wall_s * u->ranks);
    a.output_tokens_per_s_node = ratio(u->output_tokens, u->wall_s * u->nodes);
    a.usd_cost_per_m_output = ratio(a.cost_usd, u->output_tokens / 1e6);
    return a;
}
