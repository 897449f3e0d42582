/* account.h - tokens and GPU-seconds to cost, revenue and profit. Pure arithmetic, used alike by a
 * real run and by a study.
 *
 * A "GPU" is one rank: the device that a rank stands for, also where the rank computes on a CPU.
 * Money is US dollars. Counts are doubles so that a study can pass expected values; integers
 * are exact up to 2^53.
 */
#ifndef ACCOUNT_ACCOUNT_H
#define ACCOUNT_ACCOUNT_H

struct account_prices {
    double usd_per_gpu_hour;
    double usd_per_m_hit;    /* per million input tokens found in the KV cache */
    double usd_per_m_miss;   /* per million input tokens computed */
    double usd_per_m_output; /* per million output tokens */
};

struct account_usage {
    double gpu_seconds; /* ranks x seconds, all attempts of the job together */
    double wall_s;      /* the time that the rates below divide by */
    double ranks;       /* mean number of ranks over wall_s */
    double nodes;       /* mean number of nodes over wall_s */
    double hit_tokens;  /* of answered requests only; a failed request earns nothing */
    double miss_tokens;
    double output_tokens;
};

struct account {
    double gpu_seconds;
    double hit_tokens, miss_tokens, output_tokens;
    double cost_usd;
    double revenue_hit_usd, revenue_miss_usd, revenue_output_usd;
    double revenue_usd;             /* the sum of the three */
    double profit_usd;              /* revenue - cost */
    double margin_on_cost;          /* profit / cost, 1 = 100 %; NaN when cost is 0 */
    double gross_margin;            /* profit / revenue; NaN when revenue is 0 */
    double input_tokens_per_s_rank; /* hits included, over all ranks, NaN without time */
    double input_tokens_per_s_node;
    double output_tokens_per_s_rank;
    double output_tokens_per_s_node;
    double usd_cost_per_m_output; /* whole cost / million output tokens; NaN without output */
};

struct account account_compute(const struct account_usage *usage,
                               const struct account_prices *prices);

#endif
