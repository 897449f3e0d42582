/* prices.c - the keys of a price table. A price that is not given is an error, not a zero: a
 * free token would silently turn a profit into a loss. */
#include "config/prices.h"

#include "config/options.h"

#include <stddef.h>

#define NOT_GIVEN (-1.0) /* outside the legal range, so no file can say it */

#define PRICE(k, f, u, text)                                                                     \
    {                                                                                            \
        .key = k, .type = OPTION_DOUBLE, .offset = offsetof(struct account_prices, f), .min = 0, \
        .max = 1e8, .unit = u, .doc = text                                                       \
    }

static const struct option price_options[] = {
    PRICE("usd_per_gpu_hour", usd_per_gpu_hour, "$/h", "cost of one rank for an hour"),
    PRICE("usd_per_million.input_cache_hit", usd_per_m_hit, "$/1e6 tokens",
          "input found in the KV cache"),
    PRICE("usd_per_million.input_cache_miss", usd_per_m_miss, "$/1e6 tokens", "input computed"),
    PRICE("usd_per_million.output", usd_per_m_output, "$/1e6 tokens", "output"),
};

static const struct option_table table = {
    .what = "price table",
    .options = price_options,
    .n = sizeof price_options / sizeof *price_options,
};

enum status prices_read(const char *path, struct account_prices *out)
{
    struct account_prices p = {NOT_GIVEN, NOT_GIVEN, NOT_GIVEN, NOT_GIVEN};
    TRY(options_read(&table, path, &p));
    for (int i = 0; i < table.n; i++) {
        const void *price = (const char *)&p + table.options[i].offset;
        if (*(const double *)price < 0)
            return error_set(ERR_INPUT, "%s: %s is missing, expected a price in %s", path,
                             table.options[i].key, table.options[i].unit);
    }
    *out = p;
    return OK;
}
