/* report_read.h - reads a results file for `moebatch report`: attributes, whole tables row by row,
 * and single columns of tables that this version may not know.
 *
 * A table is read by column names, so that columns may have been added or stand in another order;
 * a missing dataset or column is an error that names it. Rows pass in batches: memory does not
 * grow with a table unless report_load() or report_column() is asked to keep it.
 *
 * All errors are ERR_INPUT and name the file, except lack of memory.
 */
#ifndef CMD_REPORT_READ_H
#define CMD_REPORT_READ_H

#include "account/results_schema.h"
#include "account/table.h"
#include "core/status.h"

#include <hdf5.h>
#include <stdbool.h>
#include <stddef.h>

struct report_file {
    hid_t file;
    const char *path; /* borrowed from the caller of report_open */
    bool partial;     /* the job was not complete when the file was written */
};

/* Opens a results file of this schema version. On failure *out needs no closing. */
enum status report_open(const char *path, struct report_file *out);
void report_close(struct report_file *f);

/* Whether the file has this dataset (or group); path as "/steps/prefill". */
bool report_has(const struct report_file *f, const char *name);

/* A text or whole-number attribute of the root, to be freed; NULL when absent. */
char *report_attr(const struct report_file *f, const char *key);

/* Calls fn with batches of rows, each row laid out as `columns` say. fn's first failure ends it. */
typedef enum status report_rows_fn(void *ctx, const void *rows, size_t n);
enum status report_scan(const struct report_file *f, const char *name, const struct column *columns,
                        size_t n_columns, size_t row_bytes, report_rows_fn *fn, void *ctx);

/* A whole table; *rows is to be freed, NULL when there are none. */
enum status report_load(const struct report_file *f, const struct table_schema *schema, void **rows,
                        size_t *n);

/* Whether a table has this column. */
bool report_has_column(const struct report_file *f, const char *name, const char *column);

/* One column of numbers as doubles; *values is to be freed, NULL when there are no rows. */
enum status report_column(const struct report_file *f, const char *name, const char *column,
                          double **values, size_t *n);

/* A column of text, cut to fit; *cells is to be freed. */
enum { REPORT_CELL_BYTES = 512 };
enum status report_cells(const struct report_file *f, const char *name, const char *column,
                         char (**cells)[REPORT_CELL_BYTES], size_t *n);

#endif
