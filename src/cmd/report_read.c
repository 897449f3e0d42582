/* report_read.c - see report_read.h. */
#include "cmd/report_read.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { BATCH_BYTES = 256 << 10 };

bool report_has(const struct report_file *f, const char *name)
{
    /* H5Lexists fails where a group on the way is missing: ask for each step of the path. */
    char path[256];
    for (const char *end = name; *end;) {
        end += 1 + strcspn(end + 1, "/");
        if ((size_t)(end - name) >= sizeof path) return false;
        memcpy(path, name, (size_t)(end - name));
        path[end - name] = '\0';
        if (H5Lexists(f->file, path, H5P_DEFAULT) <= 0) return false;
    }
    return true;
}

/* A text attribute, of fixed or variable length, to be freed. */
static char *read_text(hid_t attr, hid_t type)
{
    char *text = NULL;
    if (H5Tis_variable_str(type) > 0) {
        hid_t memory = H5Tcopy(type);
        char *owned = NULL;
        if (H5Aread(attr, memory, &owned) >= 0 && owned) text = strdup(owned);
        H5free_memory(owned);
        H5Tclose(memory);
        return text;
    }
    size_t bytes = H5Tget_size(type);
    text = calloc(1, bytes + 1);
    if (text && H5Aread(attr, type, text) < 0) {
        free(text);
        return NULL;
    }
    return text;
}

char *report_attr(const struct report_file *f, const char *key)
{
    if (H5Aexists(f->file, key) <= 0) return NULL;
    hid_t attr = H5Aopen(f->file, key, H5P_DEFAULT);
    if (attr < 0) return NULL;
    hid_t type = H5Aget_type(attr), space = H5Aget_space(attr);
    char *text = NULL;
    long long number = 0;
    if (H5Sget_simple_extent_npoints(space) != 1)
        text = NULL;
    else if (H5Tget_class(type) == H5T_STRING)
        text = read_text(attr, type);
    else if (H5Tget_class(type) == H5T_INTEGER && H5Aread(attr, H5T_NATIVE_LLONG, &number) >= 0 &&
             asprintf(&text, "%lld", number) < 0)
        text = NULL;
    H5Sclose(space);
    H5Tclose(type);
    H5Aclose(attr);
    return text;
}

/* A file that HDF5 refuses: why, as far as can be told from outside. */
static enum status open_error(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0) return error_set(ERR_INPUT, "%s: %s", path, strerror(errno));
    if (S_ISDIR(st.st_mode))
        return error_set(ERR_INPUT, "%s is a folder: expected a results file, NAME.h5", path);
    if (H5Fis_hdf5(path) > 0)
        return error_set(ERR_INPUT,
                         "%s: HDF5 cannot open it (%lld bytes): it is damaged or still being "
                         "written; take it again when the job has ended",
                         path, (long long)st.st_size);
    return error_set(ERR_INPUT,
                     "%s is not an HDF5 file (%lld bytes): expected the results file of moebatch "
                     "run or study, NAME.h5",
                     path, (long long)st.st_size);
}

static enum status check_schema(struct report_file *f)
{
    char *version = report_attr(f, "schema_version"), *status = report_attr(f, "status");
    enum status st = OK;
    if (!version && H5Aexists(f->file, "schema_version") != 0)
        st =
            error_set(ERR_INPUT, "%s: cannot read attribute schema_version: damaged file", f->path);
    else if (!version)
        st = error_set(ERR_INPUT,
                       "%s has no attribute schema_version: it is an HDF5 file, but not a results "
                       "file of moebatch",
                       f->path);
    else if (atoll(version) != RESULTS_SCHEMA_VERSION)
        st = error_set(ERR_INPUT,
                       "%s has schema_version %s, but this program reads %d: use the moebatch "
                       "that wrote it (attribute git_revision)",
                       f->path, version, RESULTS_SCHEMA_VERSION);
    f->partial = status && strcmp(status, "complete") != 0;
    free(version);
    free(status);
    return st;
}

enum status report_open(const char *path, struct report_file *out)
{
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* we print the reason ourselves */
    struct report_file f = {.path = path};
    hid_t access_list = H5Pcreate(H5P_FILE_ACCESS);
#if H5_VERSION_GE(1, 10, 7)
    /* A file system that refuses locks, or a folder that we may only read, is no obstacle. */
    H5Pset_file_locking(access_list, 0, 1);
#endif
    f.file = H5Fopen(path, H5F_ACC_RDONLY, access_list);
    H5Pclose(access_list);
    if (f.file < 0) return open_error(path);
    enum status st = check_schema(&f);
    if (st != OK)
        report_close(&f);
    else
        *out = f;
    return st;
}

void report_close(struct report_file *f)
{
    if (f->file > 0) H5Fclose(f->file);
    f->file = -1;
}

/* A table that is open: the set, the type of its rows in the file and how many there are. */
struct open_table {
    hid_t set, type;
    hsize_t rows;
};

static void shut_set(struct open_table *t)
{
    if (t->type >= 0) H5Tclose(t->type);
    if (t->set >= 0) H5Dclose(t->set);
}

static enum status open_set(const struct report_file *f, const char *name, struct open_table *t)
{
    *t = (struct open_table){-1, -1, 0};
    if (!report_has(f, name)) return error_set(ERR_INPUT, "%s has no dataset %s", f->path, name);
    t->set = H5Dopen2(f->file, name, H5P_DEFAULT);
    hid_t space = t->set < 0 ? -1 : H5Dget_space(t->set);
    t->type = t->set < 0 ? -1 : H5Dget_type(t->set);
    if (space < 0 || t->type < 0) {
        if (space >= 0) H5Sclose(space);
        return error_set(ERR_INPUT, "%s: cannot open dataset %s: it is damaged", f->path, name);
    }
    int dims = H5Sget_simple_extent_ndims(space);
    if (dims == 1) H5Sget_simple_extent_dims(space, &t->rows, NULL);
    H5Sclose(space);
    if (dims != 1 || H5Tget_class(t->type) != H5T_COMPOUND)
        return error_set(ERR_INPUT, "%s: dataset %s is not a table (a list of rows with columns)",
                         f->path, name);
    return OK;
}

/* The type of rows in memory. Text keeps the file's character set: HDF5 converts between none. */
static hid_t memory_type_of(const struct open_table *t, const struct column *c, size_t n,
                            size_t row_bytes)
{
    hid_t row = H5Tcreate(H5T_COMPOUND, row_bytes), all = table_row_type(c, n, row_bytes);
    for (size_t i = 0; i < n; i++) {
        hid_t type = H5Tget_member_type(all, (unsigned)i);
        if (c[i].type == COLUMN_TEXT) {
            int at = H5Tget_member_index(t->type, c[i].name);
            hid_t stored = H5Tget_member_type(t->type, (unsigned)at);
            H5Tset_cset(type, H5Tget_cset(stored));
            H5Tclose(stored);
        }
        H5Tinsert(row, c[i].name, c[i].offset, type);
        H5Tclose(type);
    }
    H5Tclose(all);
    return row;
}

/* Text of fixed length: the only kind that results files have. */
static bool is_fixed_text(const struct open_table *t, unsigned at)
{
    hid_t type = H5Tget_member_type(t->type, at);
    bool fixed = H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) <= 0;
    H5Tclose(type);
    return fixed;
}

/* The file's column must exist and be text where text is read, a number where a number is. */
static enum status check_columns(const struct report_file *f, const char *name,
                                 const struct open_table *t, const struct column *c, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int at = H5Tget_member_index(t->type, c[i].name);
        if (at < 0)
            return error_set(ERR_INPUT, "%s: %s has no column %s", f->path, name, c[i].name);
        H5T_class_t found = H5Tget_member_class(t->type, (unsigned)at);
        bool text = is_fixed_text(t, (unsigned)at);
        bool number = found == H5T_INTEGER || found == H5T_FLOAT;
        if (c[i].type == COLUMN_TEXT ? !text : !number)
            return error_set(ERR_INPUT, "%s: column %s of %s is not %s", f->path, c[i].name, name,
                             c[i].type == COLUMN_TEXT ? "text" : "a number");
    }
    return OK;
}

static enum status read_batches(const struct report_file *f, const char *name,
                                const struct open_table *t, hid_t memory_type, size_t row_bytes,
                                report_rows_fn *fn, void *ctx)
{
    hsize_t batch = BATCH_BYTES / row_bytes + 1;
    char *rows = calloc(batch, row_bytes);
    if (!rows) return error_set(ERR_RESOURCE, "report: out of memory");
    hid_t space = H5Dget_space(t->set);
    enum status st = OK;
    for (hsize_t from = 0; from < t->rows && st == OK; from += batch) {
        hsize_t count = t->rows - from < batch ? t->rows - from : batch;
        hid_t memory = H5Screate_simple(1, &count, NULL);
        H5Sselect_hyperslab(space, H5S_SELECT_SET, &from, NULL, &count, NULL);
        if (H5Dread(t->set, memory_type, memory, space, H5P_DEFAULT, rows) < 0)
            st = error_set(ERR_INPUT, "%s: cannot read rows %llu to %llu of %s: damaged file",
                           f->path, (unsigned long long)from,
                           (unsigned long long)(from + count - 1), name);
        H5Sclose(memory);
        if (st == OK) st = fn(ctx, rows, (size_t)count);
    }
    H5Sclose(space);
    free(rows);
    return st;
}

enum status report_scan(const struct report_file *f, const char *name, const struct column *columns,
                        size_t n_columns, size_t row_bytes, report_rows_fn *fn, void *ctx)
{
    struct open_table t;
    enum status st = open_set(f, name, &t);
    if (st == OK) st = check_columns(f, name, &t, columns, n_columns);
    if (st == OK) {
        hid_t memory_type = memory_type_of(&t, columns, n_columns, row_bytes);
        st = read_batches(f, name, &t, memory_type, row_bytes, fn, ctx);
        H5Tclose(memory_type);
    }
    shut_set(&t);
    return st;
}

struct gathered {
    char *rows;
    size_t row_bytes, n, cap;
};

static enum status gather(void *ctx, const void *rows, size_t n)
{
    struct gathered *g = ctx;
    if (g->n + n > g->cap) {
        size_t cap = g->cap * 2 > g->n + n ? g->cap * 2 : g->n + n;
        char *more = realloc(g->rows, cap * g->row_bytes);
        if (!more)
            return error_set(ERR_RESOURCE, "report: out of memory at %zu rows of %zu bytes", cap,
                             g->row_bytes);
        g->rows = more;
        g->cap = cap;
    }
    memcpy(g->rows + g->n * g->row_bytes, rows, n * g->row_bytes);
    g->n += n;
    return OK;
}

static enum status load(const struct report_file *f, const char *name, const struct column *columns,
                        size_t n_columns, size_t row_bytes, void **rows, size_t *n)
{
    struct gathered g = {.row_bytes = row_bytes};
    enum status st = report_scan(f, name, columns, n_columns, row_bytes, gather, &g);
    if (st != OK) {
        free(g.rows);
        return st;
    }
    *rows = g.rows;
    *n = g.n;
    return OK;
}

enum status report_load(const struct report_file *f, const struct table_schema *schema, void **rows,
                        size_t *n)
{
    return load(f, schema->name, schema->columns, schema->n, schema->row_bytes, rows, n);
}

bool report_has_column(const struct report_file *f, const char *name, const char *column)
{
    if (!report_has(f, name)) return false;
    hid_t set = H5Dopen2(f->file, name, H5P_DEFAULT);
    if (set < 0) return false;
    hid_t type = H5Dget_type(set);
    bool found = H5Tget_class(type) == H5T_COMPOUND && H5Tget_member_index(type, column) >= 0;
    H5Tclose(type);
    H5Dclose(set);
    return found;
}

enum status report_column(const struct report_file *f, const char *name, const char *column,
                          double **values, size_t *n)
{
    struct column c = {column, "", COLUMN_F64, 0, 0};
    void *rows = NULL;
    TRY(load(f, name, &c, 1, sizeof(double), &rows, n));
    *values = rows;
    return OK;
}

enum status report_cells(const struct report_file *f, const char *name, const char *column,
                         char (**cells)[REPORT_CELL_BYTES], size_t *n)
{
    struct column c = {column, "", COLUMN_TEXT, 0, REPORT_CELL_BYTES};
    void *rows = NULL;
    TRY(load(f, name, &c, 1, REPORT_CELL_BYTES, &rows, n));
    *cells = rows;
    for (size_t i = 0; i < *n; i++) (*cells)[i][REPORT_CELL_BYTES - 1] = '\0';
    return OK;
}
