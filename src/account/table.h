/* table.h - append-only HDF5 datasets: a table of rows (compound type) or a plain array, chunked,
 * shuffled, deflated, extensible, one-dimensional. Private to account/
 * and to cmd/report_read.c (columns and row types only).
 *
 * A table buffers one chunk of rows and writes whole chunks, so each chunk is compressed once.
 * It owns its HDF5 identifiers until table_close().
 */
#ifndef ACCOUNT_TABLE_H
#define ACCOUNT_TABLE_H

#include <hdf5.h>
#include <stddef.h>

#include "core/status.h"

enum column_type { COLUMN_I32, COLUMN_I64, COLUMN_F32, COLUMN_F64, COLUMN_TEXT };

struct column {
    const char *name, *units; /* units: "s", "tokens", "id", "text", "1" = a pure number */
    enum column_type type;
    size_t offset; /* in the row in memory */
    size_t bytes;  /* COLUMN_TEXT only */
};

/* Entry of a column array: COLUMN(struct row, field, "field", "units", COLUMN_I32). */
#define COLUMN(row, field, name, units, type)                              \
    {                                                                      \
        name, units, type, offsetof(row, field), sizeof(((row *)0)->field) \
    }

struct table {
    hid_t set, memory_type; /* memory_type: rows as they lie in memory */
    size_t row_bytes, chunk, buffered;
    hsize_t written;
    char *buffer; /* [chunk * row_bytes] */
};

/* Creates dataset `name` (its groups too) with the columns' units in an attribute. */
enum status table_create(hid_t file, const char *name, const struct column *columns, size_t n,
                         size_t row_bytes, struct table *out);
/* A plain array of one of the number types. */
enum status table_create_array(hid_t file, const char *name, enum column_type type,
                               const char *units, struct table *out);
enum status table_append(struct table *t, const void *rows, size_t n);
/* Writes what is buffered. */
enum status table_flush(struct table *t);
/* Frees without writing. A zeroed struct is fine. */
void table_close(struct table *t);

/* The HDF5 type of rows as they lie in memory; the caller closes it. */
hid_t table_row_type(const struct column *columns, size_t n, size_t row_bytes);
/* A text attribute of a file or dataset. */
enum status table_put_attr(hid_t object, const char *key, const char *value);
enum status table_put_int_attr(hid_t object, const char *key, int64_t value);

/* Records "what: the HDF5 library's own reason" as a resource error. Call it before any other HDF5
 * function: each of those forgets the reason. */
enum status table_hdf5_error(const char *what);

#endif
