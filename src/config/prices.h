/* prices.h - reads a price table (inputs/prices/NAME.yaml): what a GPU hour costs and what a
 * million tokens earn. Same table machinery and same errors as the job file. */
#ifndef CONFIG_PRICES_H
#define CONFIG_PRICES_H

#include "account/account.h"
#include "core/status.h"

/* Every price must be given. ERR_INPUT with file, line and key. */
enum status prices_read(const char *path, struct account_prices *out);

#endif
