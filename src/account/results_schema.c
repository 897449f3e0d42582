/* results_schema.c - the columns of every table of the results file, with units: the one list that
 * the writer and the reader go by. */
#include "account/results_schema.h"

#define I32(row, field, units) COLUMN(row, field, #field, units, COLUMN_I32)
#define I64(row, field, units) COLUMN(row, field, #field, units, COLUMN_I64)
#define F32(row, field, units) COLUMN(row, field, #field, units, COLUMN_F32)
#define F64(row, field, units) COLUMN(row, field, #field, units, COLUMN_F64)
#define TEXT(row, field) COLUMN(row, field, #field, "text", COLUMN_TEXT)
#define SCHEMA(name, row, columns)                                      \
    {                                                                   \
        name, columns, sizeof(columns) / sizeof *(columns), sizeof(row) \
    }

static const struct column step_columns[] = {
    TEXT(struct step_row, unit),
    I32(struct step_row, attempt, "id"),
    I64(struct step_row, step, "id"),
    F64(struct step_row, t_start, "s"),
    F64(struct step_row, duration, "s"),
    I32(struct step_row, tokens, "tokens"),
    I32(struct step_row, requests, "requests"),
    I32(struct step_row, microbatches, "micro-batches"),
    I32(struct step_row, rounds, "rounds"),
    F32(struct step_row, attn_ms, "ms"),
    F32(struct step_row, dispatch_ms, "ms"),
    F32(struct step_row, mlp_ms, "ms"),
    F32(struct step_row, shared_ms, "ms"),
    F32(struct step_row, combine_ms, "ms"),
    F32(struct step_row, head_ms, "ms"),
    F32(struct step_row, exposed_comm_ms, "ms"),
    F32(struct step_row, idle_ms, "ms"),
    F32(struct step_row, attn_mean, "pairs"),
    F32(struct step_row, attn_max, "pairs"),
    F32(struct step_row, kv_mean, "pages"),
    F32(struct step_row, kv_max, "pages"),
    F32(struct step_row, tokens_mean, "tokens"),
    F32(struct step_row, tokens_max, "tokens"),
    F32(struct step_row, expert_mean, "rows"),
    F32(struct step_row, expert_max, "rows"),
};

static const struct column rank_columns[] = {
    I32(struct rank_row, attempt, "id"),
    I32(struct rank_row, rank, "id"),
    TEXT(struct rank_row, host),
    I32(struct rank_row, node, "id"),
    TEXT(struct rank_row, unit),
    TEXT(struct rank_row, role),
    I32(struct rank_row, local, "id"),
    F64(struct rank_row, compute_s, "s"),
    F64(struct rank_row, exposed_comm_s, "s"),
    F64(struct rank_row, idle_s, "s"),
    I64(struct rank_row, prefill_tokens, "tokens"),
    I64(struct rank_row, decode_tokens, "tokens"),
    I64(struct rank_row, prefill_requests, "requests"),
    I64(struct rank_row, decode_requests, "requests"),
    F64(struct rank_row, attn_work, "pairs"),
    I64(struct rank_row, kv_pages, "pages"),
    I64(struct rank_row, kv_pages_peak, "pages"),
    I64(struct rank_row, moved_out, "requests"),
    I64(struct rank_row, expert_rows, "rows"),
    I64(struct rank_row, memory_bytes, "bytes"),
    I64(struct rank_row, experts_bytes, "bytes"),
    I64(struct rank_row, kv_bytes, "bytes"),
    I64(struct rank_row, activation_bytes, "bytes"),
    I64(struct rank_row, alltoall_bytes, "bytes"),
    I64(struct rank_row, planned_bytes, "bytes"),
    I64(struct rank_row, resident_bytes, "bytes"),
    I64(struct rank_row, disk_hit_pages, "pages"),
    I64(struct rank_row, disk_miss_pages, "pages"),
    I64(struct rank_row, disk_bad_pages, "pages"),
    I64(struct rank_row, disk_written_pages, "pages"),
    I64(struct rank_row, disk_dropped_pages, "pages"),
    I64(struct rank_row, disk_read_bytes, "bytes"),
    I64(struct rank_row, disk_written_bytes, "bytes"),
};

static const struct column link_columns[] = {
    I32(struct link_row, attempt, "id"),
    TEXT(struct link_row, unit),
    I32(struct link_row, src, "id"),
    I32(struct link_row, dst, "id"),
    I32(struct link_row, waits, "waits"),
    I32(struct link_row, last, "waits"),
    F32(struct link_row, late_s, "s"),
    F32(struct link_row, late_error_s, "s"),
    F32(struct link_row, transfer_s, "s"),
    I32(struct link_row, latencies, "messages"),
    F32(struct link_row, latency_mean_ms, "ms"),
    F32(struct link_row, latency_max_ms, "ms"),
};

static const struct column attempt_columns[] = {
    I32(struct attempt_row, attempt, "id"),
    TEXT(struct attempt_row, start_utc),
    TEXT(struct attempt_row, end_utc),
    TEXT(struct attempt_row, outcome),
    F64(struct attempt_row, t_start, "s"),
    F64(struct attempt_row, wall_s, "s"),
    I32(struct attempt_row, ranks, "ranks"),
    I32(struct attempt_row, nodes, "nodes"),
    F64(struct attempt_row, gpu_s, "s"),
    TEXT(struct attempt_row, hosts),
    TEXT(struct attempt_row, isa),
    TEXT(struct attempt_row, transport),
    I64(struct attempt_row, requests_finished, "requests"),
    I64(struct attempt_row, prefill_tokens, "tokens"),
    I64(struct attempt_row, decode_tokens, "tokens"),
    I64(struct attempt_row, prefill_tokens_lost, "tokens"),
    I64(struct attempt_row, decode_tokens_lost, "tokens"),
};

static const struct column load_columns[] = {
    I32(struct expert_load_row, layer, "id"),
    I32(struct expert_load_row, expert, "id"),
    I64(struct expert_load_row, rows, "rows"),
};

static const struct column placement_columns[] = {
    TEXT(struct placement_row, unit),      I32(struct placement_row, layer, "id"),
    I32(struct placement_row, slot, "id"), I32(struct placement_row, expert, "id"),
    I32(struct placement_row, rank, "id"),
};

static const struct column throughput_columns[] = {
    I64(struct throughput_row, prefill_tokens, "tokens"),
    I64(struct throughput_row, cached_tokens, "tokens"),
    I64(struct throughput_row, decode_tokens, "tokens"),
    I32(struct throughput_row, prefill_ranks, "ranks"),
    I32(struct throughput_row, decode_ranks, "ranks"),
    I32(struct throughput_row, prefill_nodes, "nodes"),
    I32(struct throughput_row, decode_nodes, "nodes"),
    F64(struct throughput_row, prefill_span_s, "s"),
    F64(struct throughput_row, decode_span_s, "s"),
    F64(struct throughput_row, prefill_step_s, "s"),
    F64(struct throughput_row, decode_step_s, "s"),
    F64(struct throughput_row, prefill_tokens_per_s, "tokens/s"),
    F64(struct throughput_row, prefill_tokens_per_s_rank, "tokens/s/rank"),
    F64(struct throughput_row, prefill_tokens_per_s_node, "tokens/s/node"),
    F64(struct throughput_row, input_tokens_per_s_node, "tokens/s/node"),
    F64(struct throughput_row, decode_tokens_per_s, "tokens/s"),
    F64(struct throughput_row, decode_tokens_per_s_rank, "tokens/s/rank"),
    F64(struct throughput_row, decode_tokens_per_s_node, "tokens/s/node"),
    F64(struct throughput_row, ttft_mean_s, "s"),
    F64(struct throughput_row, ttft_p50_s, "s"),
    F64(struct throughput_row, ttft_p90_s, "s"),
    F64(struct throughput_row, ttft_p99_s, "s"),
    F64(struct throughput_row, tpot_mean_s, "s"),
    F64(struct throughput_row, tpot_p50_s, "s"),
    F64(struct throughput_row, tpot_p90_s, "s"),
    F64(struct throughput_row, tpot_p99_s, "s"),
};

#define ACCOUNT(field, units) \
    COLUMN(struct account_file_row, account.field, #field, units, COLUMN_F64)
#define PRICE(field, units) COLUMN(struct account_file_row, prices.field, #field, units, COLUMN_F64)
static const struct column account_columns[] = {
    ACCOUNT(gpu_seconds, "s"),
    PRICE(usd_per_gpu_hour, "USD/h"),
    ACCOUNT(cost_usd, "USD"),
    ACCOUNT(hit_tokens, "tokens"),
    ACCOUNT(miss_tokens, "tokens"),
    ACCOUNT(output_tokens, "tokens"),
    PRICE(usd_per_m_hit, "USD/Mtoken"),
    PRICE(usd_per_m_miss, "USD/Mtoken"),
    PRICE(usd_per_m_output, "USD/Mtoken"),
    ACCOUNT(revenue_hit_usd, "USD"),
    ACCOUNT(revenue_miss_usd, "USD"),
    ACCOUNT(revenue_output_usd, "USD"),
    ACCOUNT(revenue_usd, "USD"),
    ACCOUNT(profit_usd, "USD"),
    ACCOUNT(margin_on_cost, "1"),
    ACCOUNT(gross_margin, "1"),
    ACCOUNT(input_tokens_per_s_rank, "tokens/s/rank"),
    ACCOUNT(input_tokens_per_s_node, "tokens/s/node"),
    ACCOUNT(output_tokens_per_s_rank, "tokens/s/rank"),
    ACCOUNT(output_tokens_per_s_node, "tokens/s/node"),
    ACCOUNT(usd_cost_per_m_output, "USD/Mtoken"),
};

const struct table_schema results_tables[TABLE_COUNT] = {
    [TABLE_STEPS_PREFILL] = SCHEMA("/steps/prefill", struct step_row, step_columns),
    [TABLE_STEPS_DECODE] = SCHEMA("/steps/decode", struct step_row, step_columns),
    [TABLE_RANKS] = SCHEMA("/ranks", struct rank_row, rank_columns),
    [TABLE_LINKS] = SCHEMA("/links", struct link_row, link_columns),
    [TABLE_ATTEMPTS] = SCHEMA("/attempts", struct attempt_row, attempt_columns),
    [TABLE_EXPERT_LOAD] = SCHEMA("/experts/load", struct expert_load_row, load_columns),
    [TABLE_PLACEMENT] = SCHEMA("/experts/placement", struct placement_row, placement_columns),
    [TABLE_THROUGHPUT] = SCHEMA("/throughput", struct throughput_row, throughput_columns),
    [TABLE_ACCOUNT] = SCHEMA("/account", struct account_file_row, account_columns),
};

static const struct column request_template[REQUEST_COLUMNS] = {
    {"custom_id", "text", COLUMN_TEXT, 0, 0},
    {"status", "text", COLUMN_TEXT, 0, 8},
    {"error", "text", COLUMN_TEXT, 0, 0},
    {"finish_reason", "text", COLUMN_TEXT, 0, 8},
    {"prompt_tokens", "tokens", COLUMN_I32, 0, 4},
    {"cached_tokens", "tokens", COLUMN_I32, 0, 4},
    {"cached_tokens_memory", "tokens", COLUMN_I32, 0, 4},
    {"cached_tokens_disk", "tokens", COLUMN_I32, 0, 4},
    {"output_tokens", "tokens", COLUMN_I32, 0, 4},
    {"output_offset", "tokens", COLUMN_I64, 0, 8},
    {"prefill_rank", "id", COLUMN_I32, 0, 4},
    {"decode_rank", "id", COLUMN_I32, 0, 4},
    {"t_arrival", "s", COLUMN_F64, 0, 8},
    {"t_prefill_start", "s", COLUMN_F64, 0, 8},
    {"t_first_token", "s", COLUMN_F64, 0, 8},
    {"t_finish", "s", COLUMN_F64, 0, 8},
};

size_t request_columns(int id_bytes, int error_bytes, struct column out[REQUEST_COLUMNS])
{
    size_t at = 0;
    for (int i = 0; i < REQUEST_COLUMNS; i++) {
        out[i] = request_template[i];
        if (i == REQUEST_ID) out[i].bytes = id_bytes > 0 ? (size_t)id_bytes : 1;
        if (i == REQUEST_ERROR) out[i].bytes = error_bytes > 0 ? (size_t)error_bytes : 1;
        out[i].offset = at;
        at += out[i].bytes;
    }
    return at;
}
