/* hardware.c - see hardware.h. One option table for the YAML, one row format for the CSV:
 * op,a,b,c,d,unit,value,source. */
#include "cluster/hardware.h"

#include "config/options.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NUM(k, f, d, lo, hi, u, text)                                                      \
    {                                                                                      \
        .key = k, .type = OPTION_DOUBLE, .offset = offsetof(struct hardware, f), .def = d, \
        .min = lo, .max = hi, .unit = u, .doc = text                                       \
    }
#define INT(k, f, d, lo, hi, text)                                                                 \
    {                                                                                              \
        .key = k, .type = OPTION_INT, .offset = offsetof(struct hardware, f), .def = d, .min = lo, \
        .max = hi, .unit = "", .doc = text                                                         \
    }
#define TEXT(k, f, text)                                                             \
    {                                                                                \
        .key = k, .type = OPTION_STRING, .offset = offsetof(struct hardware, f),     \
        .bytes = sizeof((struct hardware *)0)->f, .def = "", .unit = "", .doc = text \
    }
#define FACTOR(k, text) NUM("calibrated." #k, calibrated.k, "1", 0.1, 10, "", text)
#define EXTRA(k, u, text) NUM("calibrated." #k, calibrated.k, "0", 0, 1e6, u, text)

static const struct option rows[] = {
    TEXT("name", name, "what the tables call it"),
    TEXT("source", source, "where the figures come from"),
    TEXT("tables", tables, "CSV of measured points, beside this file"),
    INT("gpus_per_node", gpus_per_node, "8", 1, 1024, "GPUs behind one network box"),
    INT("nvlink_domain", nvlink_domain, "8", 1, 4096, "GPUs that need no network between them"),
    INT("sms", sms, "132", 1, 4096, "multiprocessors"),
    NUM("memory_bytes", memory_bytes, "0", 0, 1e15, "bytes", "of a GPU"),
    NUM("reserve_bytes", reserve_bytes, "4e9", 0, 1e15, "bytes", "runtime, fragmentation"),
    NUM("hbm_gb_s", hbm_gb_s, "0", 0, 1e6, "GB/s", "memory bandwidth, peak"),
    NUM("fp8_tflops", fp8_tflops, "0", 0, 1e6, "TFLOP/s", "dense peak"),
    NUM("bf16_tflops", bf16_tflops, "0", 0, 1e6, "TFLOP/s", "dense peak"),
    NUM("nvlink_gb_s", nvlink_gb_s, "0", 0, 1e6, "GB/s", "usable, one direction, a GPU"),
    NUM("rdma_gb_s", rdma_gb_s, "0", 0, 1e6, "GB/s", "usable, one direction, a GPU"),
    NUM("share.gemm_fp8", share.gemm_fp8, "0.65", 0.01, 1, "", "of the peak, large FP8 GEMM"),
    NUM("share.gemm_bf16", share.gemm_bf16, "0.7", 0.01, 1, "", "of the peak, large BF16 GEMM"),
    NUM("share.grouped", share.grouped, "0.6", 0.01, 1, "", "of the peak, grouped FP8 GEMM"),
    NUM("share.hbm", share.hbm, "0.85", 0.01, 1, "", "of the peak, streaming kernels"),
    NUM("share.core_prefill", share.core_prefill, "0.6", 0.01, 1, "", "of the BF16 peak"),
    NUM("share.core_decode", share.core_decode, "0.6", 0.01, 1, "", "of the BF16 peak"),
    NUM("share.launch_us", share.launch_us, "2", 0, 1e6, "us", "shortest kernel"),
    {.key = "expert_rows_whole",
     .type = OPTION_BOOL,
     .offset = offsetof(struct hardware, expert_rows_whole),
     .def = "false",
     .unit = "",
     .doc = "the table's expert rows hold activation, quantisation and permutation too"},
    NUM("attention.decode_gb_s", attention.decode_gb_s, "0", 0, 1e6, "GB/s", "KV read"),
    NUM("attention.decode_tflops", attention.decode_tflops, "0", 0, 1e6, "TFLOP/s", "absorbed"),
    NUM("attention.prefill_tflops", attention.prefill_tflops, "0", 0, 1e6, "TFLOP/s", "causal"),
    INT("comm.comm_sms_prefill", comm.comm_sms_prefill, "24", 0, 4096,
        "SMs that normal-mode all-to-all takes from computation"),
    NUM("comm.ll_fixed_us", comm.ll_fixed_us, "20", 0, 1e6, "us",
        "low latency without rows beyond the NVLink domain, where no point speaks"),
    FACTOR(gemm_prefill, "dense GEMM of attention beside communication"),
    FACTOR(grouped_prefill, "grouped GEMM beside communication"),
    FACTOR(shared_prefill, "shared expert beside communication"),
    FACTOR(core_prefill, "core attention beside communication"),
    EXTRA(elementwise_attn_us_per_token, "us", "small kernels of attention at hidden 7168"),
    EXTRA(elementwise_mlp_us_per_row, "us", "small kernels of the experts, a received row"),
    FACTOR(gemm_decode, "dense GEMM of a decode step"),
    FACTOR(masked_decode, "masked grouped GEMM of a decode step"),
    FACTOR(core_decode, "core attention of a decode step"),
    EXTRA(elementwise_attn_decode_us, "us", "small kernels of attention, a micro-batch"),
    EXTRA(elementwise_gate_decode_us, "us", "gate and top-k, a micro-batch"),
    EXTRA(silu_decode_us, "us", "activation and quantisation, a micro-batch"),
    FACTOR(ll_dispatch, "low-latency dispatch under overlap"),
    FACTOR(ll_combine, "low-latency combine under overlap"),
    FACTOR(normal_dispatch, "normal dispatch under overlap"),
    FACTOR(normal_combine, "normal combine under overlap"),
    EXTRA(gap_decode_us, "us", "between the kernels of a micro-batch and layer"),
    EXTRA(gap_prefill_us, "us", "the same, prefill"),
    EXTRA(step_decode_ms, "ms", "host, sampling, synchronisation of a step"),
    EXTRA(step_prefill_ms, "ms", "the same, prefill"),
};

static const struct option_table table = {
    .what = "hardware file", .options = rows, .n = sizeof rows / sizeof *rows};

static const char *const op_names[HW_OP_COUNT] = {
    "gemm_fp8",   "gemm_bf16",   "grouped",    "masked",          "mla_prefill",
    "mla_decode", "ll_dispatch", "ll_combine", "normal_dispatch", "normal_combine"};

const char *hw_op_name(enum hw_op op)
{
    return op_names[op];
}

static int compare_points(const void *x, const void *y)
{
    const struct hw_point *p = x, *q = y;
    const double a[] = {p->op, p->a, p->b, p->d, p->c}, b[] = {q->op, q->a, q->b, q->d, q->c};
    for (int i = 0; i < 5; i++)
        if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
    return 0;
}

static int op_of(const char *name)
{
    for (int i = 0; i < HW_OP_COUNT; i++)
        if (!strcmp(name, op_names[i])) return i;
    return -1;
}

/* Points are kept in us, or GB/s for the normal mode. */
static enum status convert(const char *path, int line, const char *unit, struct hw_point *p)
{
    bool normal = p->op == HW_NORMAL_DISPATCH || p->op == HW_NORMAL_COMBINE;
    if (!strcmp(unit, normal ? "gb_s" : "us")) return OK;
    if (!strcmp(unit, "tflops") && p->op <= HW_MASKED) {
        double groups = p->op >= HW_GROUPED ? p->d : 1;
        p->value = 2 * p->a * p->b * p->c * groups / (p->value * 1e6);
        return OK;
    }
    return error_set(ERR_INPUT, "%s:%d: unit %s, expected %s for %s", path, line, unit,
                     normal               ? "gb_s"
                     : p->op <= HW_MASKED ? "us or tflops"
                                          : "us",
                     op_names[p->op]);
}

static enum status parse_point(const char *path, int line, char *text, struct hw_point *p)
{
    char *field[8], *at = text;
    int n = 0;
    for (; n < 8 && at; n++) field[n] = strsep(&at, ",");
    if (n < 7)
        return error_set(ERR_INPUT, "%s:%d: %d columns, expected op,a,b,c,d,unit,value,source",
                         path, line, n);
    int op = op_of(field[0]);
    if (op < 0) return error_set(ERR_INPUT, "%s:%d: unknown op %s", path, line, field[0]);
    double v[5];
    for (int i = 0; i < 5; i++) {
        const char *s = field[i < 4 ? 1 + i : 6];
        char *end;
        v[i] = *s ? strtod(s, &end) : 0;
        if (*s && (*end || !isfinite(v[i]) || v[i] < 0 || (i == 4 && v[i] == 0)))
            return error_set(ERR_INPUT, "%s:%d: found %s, expected a number > 0", path, line, s);
    }
    *p = (struct hw_point){(enum hw_op)op, v[0], v[1], v[2], v[3], v[4]};
    return convert(path, line, field[5], p);
}

static enum status read_points(const char *path, struct hardware *hw)
{
    FILE *f = fopen(path, "r");
    if (!f) return error_set(ERR_INPUT, "cannot open table %s: %s", path, strerror(errno));
    char line[1024];
    int cap = 0;
    enum status st = OK;
    for (int n = 1; st == OK && fgets(line, sizeof line, f); n++) {
        line[strcspn(line, "\r\n")] = 0;
        if (!*line || *line == '#' || !strncmp(line, "op,", 3)) continue;
        if (hw->n_points == cap) {
            cap = cap ? 2 * cap : 256;
            void *grown = realloc(hw->points, (size_t)cap * sizeof *hw->points);
            if (!grown) st = error_set(ERR_RESOURCE, "out of memory");
            if (!grown) break;
            hw->points = grown;
        }
        st = parse_point(path, n, line, &hw->points[hw->n_points]);
        hw->n_points += st == OK;
    }
    fclose(f);
    if (st == OK && hw->n_points)
        qsort(hw->points, (size_t)hw->n_points, sizeof *hw->points, compare_points);
    return st;
}

/* Without these no time can be given. */
static enum status check_given(const char *path, const struct hardware *hw)
{
    const struct {
        const char *key;
        double v;
    } must[] = {{"memory_bytes", hw->memory_bytes}, {"hbm_gb_s", hw->hbm_gb_s},
                {"fp8_tflops", hw->fp8_tflops},     {"bf16_tflops", hw->bf16_tflops},
                {"nvlink_gb_s", hw->nvlink_gb_s},   {"rdma_gb_s", hw->rdma_gb_s}};
    for (size_t i = 0; i < sizeof must / sizeof *must; i++)
        if (must[i].v <= 0)
            return error_set(ERR_INPUT, "%s: %s is missing, expected a number > 0", path,
                             must[i].key);
    if (hw->comm.comm_sms_prefill >= hw->sms)
        return error_set(ERR_INPUT, "%s: comm.comm_sms_prefill is %d of %d sms: none would compute",
                         path, hw->comm.comm_sms_prefill, hw->sms);
    return OK;
}

enum status hardware_read(const char *path, struct hardware *out)
{
    struct hardware hw;
    options_defaults(&table, &hw, sizeof hw);
    TRY(options_read(&table, path, &hw));
    TRY(check_given(path, &hw));
    if (!*hw.name) snprintf(hw.name, sizeof hw.name, "%.60s", path);
    if (*hw.tables) {
        char csv[2 * HW_TEXT_BYTES];
        const char *slash = strrchr(path, '/');
        snprintf(csv, sizeof csv, "%.*s%s", slash ? (int)(slash - path + 1) : 0, path, hw.tables);
        enum status st = read_points(csv, &hw);
        if (st != OK) {
            hardware_free(&hw);
            return st;
        }
    }
    *out = hw;
    return OK;
}

static void list_names(const char *dir, char *buf, size_t bytes)
{
    DIR *d = opendir(dir);
    buf[0] = 0;
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        size_t n = strlen(e->d_name), used = strlen(buf);
        if (n > 5 && !strcmp(e->d_name + n - 5, ".yaml") && used + n + 3 < bytes)
            snprintf(buf + used, bytes - used, "%s%.*s", used ? ", " : "", (int)n - 5, e->d_name);
    }
    closedir(d);
}

enum status hardware_find(const char *dir, const char *name, struct hardware *hw)
{
    if (strchr(name, '/') || strstr(name, ".yaml")) return hardware_read(name, hw);
    char path[2 * HW_TEXT_BYTES], names[HW_TEXT_BYTES];
    snprintf(path, sizeof path, "%s/%s.yaml", dir, name);
    FILE *f = fopen(path, "r");
    if (f) {
        fclose(f);
        return hardware_read(path, hw);
    }
    list_names(dir, names, sizeof names);
    return error_set(ERR_INPUT, "unknown hardware %s: %s has %s; or give the path of a YAML file",
                     name, dir, *names ? names : "no hardware files");
}

void hardware_free(struct hardware *hw)
{
    free(hw->points);
    hw->points = NULL;
    hw->n_points = 0;
}

const struct hw_point *hardware_points(const struct hardware *hw, enum hw_op op, int *n)
{
    int first = 0;
    while (first < hw->n_points && hw->points[first].op < op) first++;
    int last = first;
    while (last < hw->n_points && hw->points[last].op == op) last++;
    *n = last - first;
    return hw->points + first;
}
