/* results_read.c - reads single parts of an earlier results file: the expert load. */
#include <stdlib.h>
#include <string.h>

#include "account/results.h"
#include "account/results_schema.h"
#include "account/table.h"

/* Opens /experts/load of path; *rows = how many. */
static enum status open_load(const char *path, hid_t *file, hid_t *set, hid_t *type, hsize_t *rows)
{
    *file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    if (*file < 0)
        return error_set(ERR_INPUT,
                         "experts.load: cannot open %s as an HDF5 file: it must be the results "
                         "file of an earlier run",
                         path);
    *set = H5Dopen2(*file, "/experts/load", H5P_DEFAULT);
    if (*set < 0)
        return error_set(ERR_INPUT,
                         "experts.load: %s has no dataset /experts/load: give the results file of "
                         "an earlier run",
                         path);
    *type = H5Dget_type(*set);
    if (H5Tget_class(*type) != H5T_COMPOUND || H5Tget_member_index(*type, "layer") < 0 ||
        H5Tget_member_index(*type, "expert") < 0 || H5Tget_member_index(*type, "rows") < 0)
        return error_set(ERR_INPUT,
                         "experts.load: /experts/load of %s must be a table with the columns "
                         "layer, expert, rows",
                         path);
    hid_t space = H5Dget_space(*set);
    int dims = H5Sget_simple_extent_ndims(space);
    if (dims == 1) H5Sget_simple_extent_dims(space, rows, NULL);
    H5Sclose(space);
    if (dims != 1)
        return error_set(ERR_INPUT, "experts.load: /experts/load of %s has %d dimensions, not 1",
                         path, dims);
    return OK;
}

static enum status read_load(const char *path, hid_t set, hsize_t n, struct expert_load_row *rows)
{
    const struct table_schema *s = &results_tables[TABLE_EXPERT_LOAD];
    hid_t memory = table_row_type(s->columns, s->n, s->row_bytes);
    herr_t rc = n ? H5Dread(set, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, rows) : 0;
    H5Tclose(memory);
    return rc < 0 ? error_set(ERR_INPUT,
                              "experts.load: cannot read /experts/load of %s: the file "
                              "is damaged",
                              path)
                  : OK;
}

/* Adds the rows into load[layers][experts]. */
static enum status sum_load(const char *path, const struct expert_load_row *rows, hsize_t n,
                            int layers, int experts, double *load)
{
    memset(load, 0, sizeof *load * (size_t)layers * (size_t)experts);
    for (hsize_t i = 0; i < n; i++) {
        const struct expert_load_row *r = &rows[i];
        if (r->layer < 0 || r->layer >= layers || r->expert < 0 || r->expert >= experts)
            return error_set(ERR_INPUT,
                             "experts.load: %s has layer %d, expert %d, but the model has %d "
                             "layers of %d experts: the file comes from another model",
                             path, r->layer, r->expert, layers, experts);
        if (r->rows < 0)
            return error_set(ERR_INPUT, "experts.load: %s, layer %d, expert %d: load %lld < 0",
                             path, r->layer, r->expert, (long long)r->rows);
        load[(size_t)r->layer * (size_t)experts + (size_t)r->expert] += (double)r->rows;
    }
    return OK;
}

enum status results_read_expert_load(const char *path, int layers, int experts, double *load)
{
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    hid_t file = -1, set = -1, type = -1;
    hsize_t n = 0;
    struct expert_load_row *rows = NULL;
    enum status st = open_load(path, &file, &set, &type, &n);
    const hsize_t limit = (hsize_t)layers * (hsize_t)experts;
    if (st == OK && (n == 0 || n > limit))
        st = error_set(ERR_INPUT,
                       "experts.load: /experts/load of %s has %llu rows, expected 1 to %llu (%d "
                       "layers x %d experts)",
                       path, (unsigned long long)n, (unsigned long long)limit, layers, experts);
    if (st == OK && !(rows = calloc(n, sizeof *rows)))
        st = error_set(ERR_RESOURCE, "experts.load: out of memory for %llu rows",
                       (unsigned long long)n);
    if (st == OK) st = read_load(path, set, n, rows);
    if (st == OK) st = sum_load(path, rows, n, layers, experts, load);
    free(rows);
    if (type >= 0) H5Tclose(type);
    if (set >= 0) H5Dclose(set);
    if (file >= 0) H5Fclose(file);
    return st;
}
