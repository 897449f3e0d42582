/* results_schema.h - tables and columns of the results file. Private to account/
 * and to cmd/report_read.c, which reads whole files by the same list. */
#ifndef ACCOUNT_RESULTS_SCHEMA_H
#define ACCOUNT_RESULTS_SCHEMA_H

#include "account/account.h"
#include "account/results.h"
#include "account/table.h"

enum table_id {
    TABLE_STEPS_PREFILL, /* TABLE_STEPS_PREFILL + enum step_kind */
    TABLE_STEPS_DECODE,
    TABLE_RANKS,
    TABLE_LINKS,
    TABLE_ATTEMPTS,
    TABLE_EXPERT_LOAD,
    TABLE_PLACEMENT,
    TABLE_THROUGHPUT,
    TABLE_ACCOUNT,
    TABLE_COUNT
};

struct table_schema {
    const char *name;
    const struct column *columns; /* [n] */
    size_t n, row_bytes;
};

/* Rows in memory are the structs of results.h. */
extern const struct table_schema results_tables[TABLE_COUNT];

/* The row of /account. */
struct account_file_row {
    struct account account;
    struct account_prices prices;
};

/* /requests, whose strings are as long as the longest in the job; packed rows. */
enum request_column {
    REQUEST_ID,
    REQUEST_STATUS,
    REQUEST_ERROR,
    REQUEST_FINISH,
    REQUEST_PROMPT,
    REQUEST_CACHED,
    REQUEST_CACHED_MEMORY,
    REQUEST_CACHED_DISK,
    REQUEST_OUTPUT,
    REQUEST_OFFSET,
    REQUEST_PREFILL_RANK,
    REQUEST_DECODE_RANK,
    REQUEST_T_ARRIVAL,
    REQUEST_T_PREFILL_START,
    REQUEST_T_FIRST_TOKEN,
    REQUEST_T_FINISH,
    REQUEST_COLUMNS
};

/* Fills the columns with offsets; returns the bytes of a row. */
size_t request_columns(int id_bytes, int error_bytes, struct column out[REQUEST_COLUMNS]);

#endif
