/* table.c - see table.h. */
#include "account/table.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES = 64 << 10, ARRAY_CHUNK_BYTES = 256 << 10, DEFLATE_LEVEL = 1 };

/* The first frame of the error stack is the deepest: the real cause ("No space left on device"). */
static herr_t deepest_reason(unsigned n, const H5E_error2_t *frame, void *text)
{
    if (n == 0) *(const char **)text = frame->desc;
    return 0;
}

enum status table_hdf5_error(const char *what)
{
    const char *reason = "no reason given";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, deepest_reason, &reason);
    return error_set(ERR_RESOURCE, "%s: %s", what, reason);
}

static hid_t scalar_type(enum column_type type)
{
    switch (type) {
    case COLUMN_I32: return H5T_NATIVE_INT32;
    case COLUMN_I64: return H5T_NATIVE_INT64;
    case COLUMN_F32: return H5T_NATIVE_FLOAT;
    default: return H5T_NATIVE_DOUBLE;
    }
}

static hid_t text_type(size_t bytes)
{
    hid_t t = H5Tcopy(H5T_C_S1);
    H5Tset_size(t, bytes);
    H5Tset_strpad(t, H5T_STR_NULLPAD);
    H5Tset_cset(t, H5T_CSET_UTF8);
    return t;
}

hid_t table_row_type(const struct column *c, size_t n, size_t row_bytes)
{
    hid_t row = H5Tcreate(H5T_COMPOUND, row_bytes);
    for (size_t i = 0; i < n; i++) {
        if (c[i].type != COLUMN_TEXT) {
            H5Tinsert(row, c[i].name, c[i].offset, scalar_type(c[i].type));
            continue;
        }
        hid_t text = text_type(c[i].bytes);
        H5Tinsert(row, c[i].name, c[i].offset, text);
        H5Tclose(text);
    }
    return row;
}

enum status table_put_attr(hid_t object, const char *key, const char *value)
{
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, H5T_VARIABLE);
    H5Tset_cset(type, H5T_CSET_UTF8);
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t attr = H5Acreate2(object, key, type, space, H5P_DEFAULT, H5P_DEFAULT);
    herr_t rc = attr < 0 ? -1 : H5Awrite(attr, type, &value);
    enum status st = rc < 0 ? table_hdf5_error(key) : OK;
    if (attr >= 0) H5Aclose(attr);
    H5Sclose(space);
    H5Tclose(type);
    return st;
}

enum status table_put_int_attr(hid_t object, const char *key, int64_t value)
{
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t attr = H5Acreate2(object, key, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
    herr_t rc = attr < 0 ? -1 : H5Awrite(attr, H5T_NATIVE_INT64, &value);
    enum status st = rc < 0 ? table_hdf5_error(key) : OK;
    if (attr >= 0) H5Aclose(attr);
    H5Sclose(space);
    return st;
}

/* units = {"column":"unit",...}; names and units are our own, nothing in them needs escaping. */
static enum status put_units(hid_t set, const struct column *c, size_t n)
{
    char json[4096];
    size_t at = 0;
    for (size_t i = 0; i < n && at < sizeof json; i++)
        at += (size_t)snprintf(json + at, sizeof json - at, "%s\"%s\": \"%s\"", i ? ", " : "{",
                               c[i].name, c[i].units);
    if (at + 2 > sizeof json) return error_set(ERR_BUG, "units of a table exceed %zu bytes", at);
    memcpy(json + at, "}", 2);
    return table_put_attr(set, "units", json);
}

/* Makes the dataset with file type `stored`; t->memory_type and row_bytes are set. */
static enum status create_set(hid_t file, const char *name, hid_t stored, size_t chunk_bytes,
                              struct table *t)
{
    t->chunk = chunk_bytes / t->row_bytes;
    if (t->chunk < 16) t->chunk = 16;
    t->buffer = malloc(t->chunk * t->row_bytes);
    if (!t->buffer) return error_set(ERR_RESOURCE, "%s: out of memory", name);

    hsize_t none = 0, any = H5S_UNLIMITED, chunk = t->chunk;
    hid_t space = H5Screate_simple(1, &none, &any);
    hid_t layout = H5Pcreate(H5P_DATASET_CREATE);
    hid_t links = H5Pcreate(H5P_LINK_CREATE);
    H5Pset_chunk(layout, 1, &chunk);
    H5Pset_shuffle(layout);
    H5Pset_deflate(layout, DEFLATE_LEVEL);
    H5Pset_create_intermediate_group(links, 1);
    t->set = H5Dcreate2(file, name, stored, space, links, layout, H5P_DEFAULT);
    enum status st = t->set < 0 ? table_hdf5_error(name) : OK;
    H5Pclose(links);
    H5Pclose(layout);
    H5Sclose(space);
    return st;
}

enum status table_create(hid_t file, const char *name, const struct column *columns, size_t n,
                         size_t row_bytes, struct table *out)
{
    struct table t = {.row_bytes = row_bytes, .set = -1};
    t.memory_type = table_row_type(columns, n, row_bytes);
    hid_t stored = H5Tcopy(t.memory_type);
    H5Tpack(stored);
    enum status st = create_set(file, name, stored, CHUNK_BYTES, &t);
    H5Tclose(stored);
    if (st == OK) st = put_units(t.set, columns, n);
    if (st != OK)
        table_close(&t);
    else
        *out = t;
    return st;
}

enum status table_create_array(hid_t file, const char *name, enum column_type type,
                               const char *units, struct table *out)
{
    struct table t = {.set = -1};
    t.memory_type = H5Tcopy(scalar_type(type));
    t.row_bytes = H5Tget_size(t.memory_type);
    enum status st = create_set(file, name, t.memory_type, ARRAY_CHUNK_BYTES, &t);
    if (st == OK) st = table_put_attr(t.set, "units", units);
    if (st != OK)
        table_close(&t);
    else
        *out = t;
    return st;
}

enum status table_flush(struct table *t)
{
    if (!t->buffered) return OK;
    hsize_t from = t->written, count = t->buffered, total = from + count;
    if (H5Dset_extent(t->set, &total) < 0) return table_hdf5_error("writing the results file");
    hid_t memory = H5Screate_simple(1, &count, NULL);
    hid_t space = H5Dget_space(t->set);
    H5Sselect_hyperslab(space, H5S_SELECT_SET, &from, NULL, &count, NULL);
    herr_t rc = H5Dwrite(t->set, t->memory_type, memory, space, H5P_DEFAULT, t->buffer);
    enum status st = rc < 0 ? table_hdf5_error("writing the results file") : OK;
    H5Sclose(space);
    H5Sclose(memory);
    if (st != OK) return st;
    t->written = total;
    t->buffered = 0;
    return OK;
}

enum status table_append(struct table *t, const void *rows, size_t n)
{
    const char *from = rows;
    while (n) {
        size_t k = t->chunk - t->buffered;
        if (k > n) k = n;
        memcpy(t->buffer + t->buffered * t->row_bytes, from, k * t->row_bytes);
        t->buffered += k;
        from += k * t->row_bytes;
        n -= k;
        if (t->buffered == t->chunk) TRY(table_flush(t));
    }
    return OK;
}

void table_close(struct table *t)
{
    if (t->set > 0) H5Dclose(t->set);
    if (t->memory_type > 0) H5Tclose(t->memory_type);
    free(t->buffer);
    memset(t, 0, sizeof *t);
}
