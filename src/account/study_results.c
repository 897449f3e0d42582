/* study_results.c - tables of study_results.h. */
#include "account/study_results.h"

#include "account/results_schema.h"
#include "account/table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define I32(row, field, units) COLUMN(struct row, field, #field, units, COLUMN_I32)
#define I64(row, field, units) COLUMN(struct row, field, #field, units, COLUMN_I64)
#define F64(row, field, units) COLUMN(struct row, field, #field, units, COLUMN_F64)
#define TEXT(row, field) COLUMN(struct row, field, #field, "text", COLUMN_TEXT)

static const struct column period_columns[] = {
    F64(study_period_row, t_start, "s"),
    F64(study_period_row, hour_of_day, "h"),
    I32(study_period_row, prefill_units, "units"),
    I32(study_period_row, decode_units, "units"),
    F64(study_period_row, prefill_nodes, "nodes"),
    F64(study_period_row, decode_nodes, "nodes"),
    F64(study_period_row, lent_nodes, "nodes"),
    F64(study_period_row, published_nodes, "nodes"),
    I64(study_period_row, requests, "requests"),
    I64(study_period_row, sessions, "sessions"),
    I64(study_period_row, finished, "requests"),
    I64(study_period_row, hit_tokens, "tokens"),
    I64(study_period_row, miss_tokens, "tokens"),
    I64(study_period_row, output_tokens, "tokens"),
    I64(study_period_row, queued_requests, "requests"),
    I64(study_period_row, prefill_queue, "requests"),
    I64(study_period_row, prefill_queue_tokens, "tokens"),
    I64(study_period_row, decode_waiting, "requests"),
    I64(study_period_row, decode_running, "requests"),
    I64(study_period_row, kv_pages, "pages"),
    I64(study_period_row, cache_pages, "pages"),
    I64(study_period_row, moved_requests, "requests"),
    F64(study_period_row, kv_occupancy, "1"),
    F64(study_period_row, prefill_utilisation, "1"),
    F64(study_period_row, decode_utilisation, "1"),
    F64(study_period_row, kv_per_output, "tokens"),
    F64(study_period_row, ttft_mean_s, "s"),
    F64(study_period_row, ttft_p50_s, "s"),
    F64(study_period_row, ttft_p90_s, "s"),
    F64(study_period_row, ttft_p99_s, "s"),
    F64(study_period_row, tpot_mean_s, "s"),
    F64(study_period_row, tpot_p50_s, "s"),
    F64(study_period_row, tpot_p90_s, "s"),
    F64(study_period_row, tpot_p99_s, "s"),
    I64(study_period_row, preempted_requests, "requests"),
    I64(study_period_row, on_host, "requests"),
    F64(study_period_row, prefill_imbalance, "1"),
    F64(study_period_row, decode_imbalance, "1"),
    F64(study_period_row, prefill_imbalance_unplanned, "1"),
    F64(study_period_row, decode_imbalance_unplanned, "1"),
    F64(study_period_row, input_tokens_per_s_node, "tokens/s/node"),
    F64(study_period_row, output_tokens_per_s_node, "tokens/s/node"),
    F64(study_period_row, cost_usd, "USD"),
    F64(study_period_row, revenue_usd, "USD"),
    F64(study_period_row, profit_usd, "USD"),
    F64(study_period_row, published_revenue_usd, "USD"),
    F64(study_period_row, margin_on_cost, "1"),
};

static const struct column unit_columns[] = {
    TEXT(study_unit_row, unit),
    I32(study_unit_row, hour, "h"),
    I64(study_unit_row, requests, "requests"),
    I64(study_unit_row, tokens, "tokens"),
    I64(study_unit_row, steps, "steps"),
    F64(study_unit_row, busy_s, "s"),
};

static const struct column figure_columns[] = {
    TEXT(study_figure_row, figure),
    TEXT(study_figure_row, units),
    F64(study_figure_row, published, "see units"),
    F64(study_figure_row, published_high, "see units"),
    F64(study_figure_row, predicted, "see units"),
    F64(study_figure_row, error, "1"),
    F64(study_figure_row, tolerance, "1"),
};

static const struct column sweep_columns[] = {
    I32(study_sweep_row, point, "id"),
    TEXT(study_sweep_row, values),
    I32(study_sweep_row, feasible, "1"),
    TEXT(study_sweep_row, reason),
    I32(study_sweep_row, prefill_ep, "GPUs"),
    I32(study_sweep_row, decode_ep, "GPUs"),
    I32(study_sweep_row, prefill_units, "units"),
    I32(study_sweep_row, decode_units, "units"),
    F64(study_sweep_row, batch, "requests/GPU"),
    F64(study_sweep_row, tpot_s, "s"),
    F64(study_sweep_row, ttft_s, "s"),
    F64(study_sweep_row, tokens_per_s_request, "tokens/s"),
    F64(study_sweep_row, decode_tokens_per_s_gpu, "tokens/s/GPU"),
    F64(study_sweep_row, prefill_tokens_per_s_gpu, "tokens/s/GPU"),
    F64(study_sweep_row, tokens_per_s_gpu, "tokens/s/GPU"),
    F64(study_sweep_row, usd_per_m_output, "USD/Mtoken"),
    F64(study_sweep_row, prefill_gpus_per_decode_gpu, "1"),
    F64(study_sweep_row, margin_on_cost, "1"),
    I32(study_sweep_row, meets_slo, "1"),
    I32(study_sweep_row, best, "1"),
    I32(study_sweep_row, pareto, "1"),
    I32(study_sweep_row, extrapolated, "1"),
};

static const struct column batch_columns[] = {
    TEXT(study_batch_row, role),
    TEXT(study_batch_row, level),
    I32(study_batch_row, load, "tokens/GPU or requests/GPU"),
    I32(study_batch_row, fits, "1"),
    F64(study_batch_row, step_s, "s"),
    F64(study_batch_row, exposed_s, "s"),
    F64(study_batch_row, tpot_s, "s"),
    F64(study_batch_row, tokens_per_s_request, "tokens/s"),
    F64(study_batch_row, tokens_per_s_gpu, "tokens/s/GPU"),
    F64(study_batch_row, tokens_per_s_node, "tokens/s/node"),
};

static const struct column stage_columns[] = {
    TEXT(study_stage_row, role),
    TEXT(study_stage_row, level),
    TEXT(study_stage_row, stage),
    TEXT(study_stage_row, bound),
    F64(study_stage_row, us, "us"),
    F64(study_stage_row, launch_us, "us"),
    F64(study_stage_row, memory_us, "us"),
    F64(study_stage_row, compute_us, "us"),
    F64(study_stage_row, network_us, "us"),
    F64(study_stage_row, latency_us, "us"),
    F64(study_stage_row, kernels_us, "us"),
};

static const struct column memory_columns[] = {
    TEXT(study_memory_row, role),
    TEXT(study_memory_row, level),
    F64(study_memory_row, capacity, "bytes"),
    F64(study_memory_row, replicated, "bytes"),
    F64(study_memory_row, experts, "bytes"),
    F64(study_memory_row, absorbed, "bytes"),
    F64(study_memory_row, buffers, "bytes"),
    F64(study_memory_row, workspace, "bytes"),
    F64(study_memory_row, reserve, "bytes"),
    F64(study_memory_row, kv_cache, "bytes"),
    F64(study_memory_row, kv_bytes_per_token, "bytes"),
    F64(study_memory_row, kv_tokens, "tokens"),
};

#define COUNT(a) (sizeof(a) / sizeof *(a))

struct study_file {
    hid_t file;
    char *path, *tmp;
};

enum status study_file_create(const char *path, struct study_file **out)
{
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* we print the reason ourselves */
    struct study_file *f = calloc(1, sizeof *f);
    if (!f) return error_set(ERR_RESOURCE, "results: out of memory");
    f->file = -1;
    f->path = strdup(path);
    f->tmp = malloc(strlen(path) + 5);
    if (!f->path || !f->tmp) {
        study_file_abort(f);
        return error_set(ERR_RESOURCE, "results: out of memory");
    }
    strcat(strcpy(f->tmp, path), ".tmp");
    f->file = H5Fcreate(f->tmp, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    enum status st = f->file < 0 ? table_hdf5_error(path) : OK;
    if (st == OK) st = table_put_attr(f->file, "kind", "study");
    if (st != OK) {
        study_file_abort(f);
        return st;
    }
    *out = f;
    return OK;
}

enum status study_file_attr(struct study_file *f, const char *key, const char *value)
{
    return table_put_attr(f->file, key, value);
}

static enum status put(struct study_file *f, const char *name, const struct column *c,
                       size_t columns, const void *rows, size_t row_bytes, size_t n)
{
    struct table t;
    TRY(table_create(f->file, name, c, columns, row_bytes, &t));
    enum status st = table_put_attr(t.set, "values", "modelled");
    if (st == OK) st = table_append(&t, rows, n);
    if (st == OK) st = table_flush(&t);
    table_close(&t);
    return st;
}

#define PUT(f, name, columns, rows, n) put(f, name, columns, COUNT(columns), rows, sizeof *rows, n)

enum status study_file_minutes(struct study_file *f, const struct study_period_row *r, size_t n)
{
    return PUT(f, "/minutes", period_columns, r, n);
}

enum status study_file_hours(struct study_file *f, const struct study_period_row *r, size_t n)
{
    return PUT(f, "/account/hourly", period_columns, r, n);
}

enum status study_file_units(struct study_file *f, const struct study_unit_row *r, size_t n)
{
    return PUT(f, "/account/units", unit_columns, r, n);
}

enum status study_file_figures(struct study_file *f, const struct study_figure_row *r, size_t n)
{
    return PUT(f, "/published", figure_columns, r, n);
}

enum status study_file_sweep(struct study_file *f, const struct study_sweep_row *r, size_t n)
{
    return PUT(f, "/sweep", sweep_columns, r, n);
}

enum status study_file_batches(struct study_file *f, const struct study_batch_row *r, size_t n)
{
    return PUT(f, "/unit/batches", batch_columns, r, n);
}

enum status study_file_stages(struct study_file *f, const struct study_stage_row *r, size_t n)
{
    return PUT(f, "/unit/stages", stage_columns, r, n);
}

enum status study_file_memory(struct study_file *f, const struct study_memory_row *r, size_t n)
{
    return PUT(f, "/unit/memory", memory_columns, r, n);
}

enum status study_file_account(struct study_file *f, const struct account *a,
                               const struct account_prices *p)
{
    const struct table_schema *s = &results_tables[TABLE_ACCOUNT];
    struct account_file_row row = {*a, *p};
    return put(f, "/account/total", s->columns, s->n, &row, s->row_bytes, 1);
}

enum status study_file_commit(struct study_file *f)
{
    enum status st = table_put_int_attr(f->file, "schema_version", RESULTS_SCHEMA_VERSION);
    if (st == OK) st = table_put_attr(f->file, "status", "complete");
    if (H5Fclose(f->file) < 0 && st == OK) st = table_hdf5_error(f->tmp);
    f->file = -1;
    if (st == OK && rename(f->tmp, f->path) != 0)
        st = error_set(ERR_RESOURCE, "results: %s: %s", f->path, strerror(errno));
    study_file_abort(f);
    return st;
}

void study_file_abort(struct study_file *f)
{
    if (!f) return;
    if (f->file >= 0) H5Fclose(f->file);
    if (f->tmp) unlink(f->tmp);
    free(f->path);
    free(f->tmp);
    free(f);
}
