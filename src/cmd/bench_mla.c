/* bench_mla.c - `moebatch bench mla`: prefill and paged decode attention at the published shapes,
 * verified before timed, beside the portable path.
 *
 * Operations counted: two per multiply-add of both products, causal pairs only. Bytes: each
 * operand and result once (decode: each request's cache rows once), which is the least that
 * any kernel must move.
 */
#include "attention/attention.h"
#include "cmd/bench.h"
#include "core/numfmt.h"
#include "core/rng.h"
#include "device/kernels.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LIST = 16, NOPE = 128, ROPE = 64, DIM_V = 128, LATENT = 512, PAGE = 64 };

struct options {
    int threads;
    enum isa isa;
    enum dtype type;
    bool baseline; /* time the portable path too */
    double budget_s;
    int heads[MAX_LIST], n_heads;
    int tokens[MAX_LIST], n_tokens; /* prefill */
    int batch[MAX_LIST], n_batch;   /* decode */
    int context[MAX_LIST], n_context;
};

static const char usage[] =
    "moebatch bench mla [--heads 16,128] [--tokens 1024] [--batch 1,8] [--context 1024,4096]\n"
    "                   [--type bf16|f32] [--isa NAME] [--threads N] [--budget SECONDS]\n"
    "                   [--no-baseline]\n"
    "Attention of DeepSeek-V3's dimensions: prefill over --tokens tokens of one prompt, decode\n"
    "of --batch requests with --context cached tokens each.\n";

static enum status parse_one(int option, const char *text, struct options *o)
{
    switch (option) {
    case 'h': return bench_parse_list("--heads", text, o->heads, MAX_LIST, &o->n_heads);
    case 't': return bench_parse_list("--tokens", text, o->tokens, MAX_LIST, &o->n_tokens);
    case 'b': return bench_parse_list("--batch", text, o->batch, MAX_LIST, &o->n_batch);
    case 'c': return bench_parse_list("--context", text, o->context, MAX_LIST, &o->n_context);
    case 'B': o->baseline = false; return OK;
    case 's': o->budget_s = atof(text); return OK;
    case 'j': o->threads = atoi(text); break;
    case 'y':
        if (strcmp(text, "bf16") && strcmp(text, "f32"))
            return error_set(ERR_USAGE, "--type: expected bf16 or f32, found '%s'", text);
        o->type = strcmp(text, "bf16") ? DT_F32 : DT_BF16;
        return OK;
    case 'i': {
        int isa = isa_parse(text);
        if (isa < 0) return error_set(ERR_USAGE, "--isa: unknown instruction set '%s'", text);
        o->isa = (enum isa)isa;
        return OK;
    }
    default: return error_set(ERR_USAGE, "bench mla: unknown option\n%s", usage);
    }
    if (o->threads < 1) return error_set(ERR_USAGE, "--threads: expected a positive number");
    return OK;
}

static enum status parse(int argc, char **argv, struct options *o, bool *help)
{
    static const struct option names[] = {
        {"heads", 1, 0, 'h'},   {"tokens", 1, 0, 't'}, {"batch", 1, 0, 'b'},
        {"context", 1, 0, 'c'}, {"type", 1, 0, 'y'},   {"isa", 1, 0, 'i'},
        {"threads", 1, 0, 'j'}, {"budget", 1, 0, 's'}, {"no-baseline", 0, 0, 'B'},
        {"help", 0, 0, 'H'},    {0, 0, 0, 0}};
    *help = false;
    optind = 0;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "", names, 0)) != -1;) {
        if (c == 'H') {
            *help = true;
            return OK;
        }
        TRY(parse_one(c, optarg, o));
    }
    if (optind < argc)
        return error_set(ERR_USAGE, "bench mla: unexpected '%s'\n%s", argv[optind], usage);
    return OK;
}

/* ---- data ---- */

static float *random_floats(size_t n, uint64_t key)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; x && i < n; i++) x[i] = 2 * (float)rng_uniform(key, i) - 1;
    return x;
}

static void *random_typed(enum dtype type, size_t n, uint64_t key)
{
    float *x = random_floats(n, key);
    if (type == DT_F32 || !x) return x;
    uint16_t *h = malloc(n * sizeof *h);
    for (size_t i = 0; h && i < n; i++) h[i] = bf16_from_f32(x[i]);
    free(x);
    return h;
}

static double number(enum dtype type, const void *x, size_t i)
{
    return type == DT_F32 ? ((const float *)x)[i] : bf16_to_f32(((const uint16_t *)x)[i]);
}

static double as_query(enum dtype type, float x)
{
    return type == DT_F32 ? x : bf16_to_f32(bf16_from_f32(x));
}

/* One benchmark case: a call and what it reads and writes. */
struct attention_case {
    struct lane lane;
    const struct kernels *k;
    struct mla_prefill_args prefill;
    struct mla_decode_args decode;
};

static void call_prefill(void *arg)
{
    struct attention_case *c = arg;
    c->k->mla_prefill(&c->lane, &c->prefill);
}

static void call_decode(void *arg)
{
    struct attention_case *c = arg;
    c->k->mla_decode(&c->lane, &c->decode);
}

/* ---- verification against double arithmetic, on a few (query, head) pairs ---- */

/* Largest |out - exact| / sum of p |v|; score [n] holds the scores, value row j is at
 * v + row[j] elements. */
static double row_error(enum dtype type, int n, double *score, const void *v, const size_t *row,
                        int dim_v, const float *out)
{
    double top = -INFINITY, sum = 0, worst = 0;
    for (int j = 0; j < n; j++) top = fmax(top, score[j]);
    for (int j = 0; j < n; j++) sum += score[j] = exp(score[j] - top);
    for (int d = 0; d < dim_v; d += 17) {
        double exact = 0, size = 0;
        for (int j = 0; j < n; j++) {
            double x = number(type, v, row[j] + (size_t)d);
            exact += score[j] / sum * x;
            size += score[j] / sum * fabs(x);
        }
        double e = fabs(out[d] - exact) / size;
        if (!(e <= worst)) worst = e;
    }
    return worst;
}

static double prefill_error(const struct mla_prefill_args *a, int i, int h, double *score,
                            size_t *row)
{
    int dk = a->dim_nope + a->dim_rope, n = a->pos0 + i + 1;
    const float *q = a->q + (size_t)i * (size_t)a->ldq + (size_t)(h * dk);
    for (int j = 0; j < n; j++) {
        size_t k = (size_t)j * (size_t)a->ldk + (size_t)(h * a->dim_nope);
        size_t r = (size_t)j * (size_t)a->ldr;
        double s = 0;
        for (int d = 0; d < a->dim_nope; d++)
            s += as_query(a->kv_type, q[d]) * number(a->kv_type, a->k_nope, k + (size_t)d);
        for (int d = 0; d < a->dim_rope; d++)
            s += as_query(a->kv_type, q[a->dim_nope + d]) *
                 number(a->kv_type, a->k_rope, r + (size_t)d);
        score[j] = s * a->softmax_scale;
        row[j] = (size_t)j * (size_t)a->ldv + (size_t)(h * a->dim_v);
    }
    return row_error(a->kv_type, n, score, a->v, row, a->dim_v,
                     a->out + (size_t)i * (size_t)a->ldo + (size_t)(h * a->dim_v));
}

static double decode_error(const struct mla_decode_args *a, int i, int h, double *score,
                           size_t *row)
{
    int dk = a->dim_latent + a->dim_rope;
    const float *q = a->q + (size_t)i * (size_t)a->ldq + (size_t)(h * dk);
    for (int j = 0; j < a->len[i]; j++) {
        size_t page = (size_t)a->pages[i][j / a->page_tokens];
        row[j] = (page * (size_t)a->page_tokens + (size_t)(j % a->page_tokens)) * (size_t)dk;
        double s = 0;
        for (int d = 0; d < dk; d++)
            s += as_query(a->kv_type, q[d]) * number(a->kv_type, a->cache, row[j] + (size_t)d);
        score[j] = s * a->softmax_scale;
    }
    return row_error(a->kv_type, a->len[i], score, a->cache, row, a->dim_latent,
                     a->out + (size_t)i * (size_t)a->ldo + (size_t)(h * a->dim_latent));
}

/* The first, middle and last (row, head) of the call just made. */
static enum status verify(const char *label, enum dtype type, int rows, int heads, int keys,
                          const struct attention_case *c, bool prefill)
{
    double *score = malloc((size_t)keys * sizeof *score), worst = 0;
    size_t *row = malloc((size_t)keys * sizeof *row);
    enum status st = OK;
    if (!score || !row) {
        st = error_set(ERR_RESOURCE, "bench mla: no memory for the reference");
        goto done;
    }
    for (int i = 0; i < 3; i++) {
        int r = (rows - 1) * i / 2, h = (heads - 1) * (2 - i) / 2;
        double e = prefill ? prefill_error(&c->prefill, r, h, score, row)
                           : decode_error(&c->decode, r, h, score, row);
        if (!(e <= worst)) worst = e;
    }
    double tolerance = type == DT_F32 ? 1e-5 : 0x1p-8;
    if (!(worst <= tolerance))
        st = error_set(ERR_INVALID, "%s on %s is wrong: error %.2e, tolerance %.2e; not timed",
                       label, c->k->name, worst, tolerance);
done:
    free(score);
    free(row);
    return st;
}

/* Verifies, times the path and its baseline, prints the line. */
static enum status measure(const struct options *o, const struct bench_machine *machine,
                           struct attention_case *c, const struct kernels *fast,
                           const struct kernels *portable, bool prefill, int rows, int heads,
                           int keys, struct bench_line *line)
{
    void (*call)(void *) = prefill ? call_prefill : call_decode;
    const struct kernels *paths[2] = {fast, o->baseline ? portable : 0};
    double seconds[2] = {0, 0};
    for (int i = 0; i < 2 && paths[i]; i++) {
        c->k = paths[i];
        call(c);
        TRY(verify(line->label, o->type, rows, heads, keys, c, prefill));
        seconds[i] = bench_seconds(call, c, o->budget_s);
    }
    line->seconds = seconds[0];
    line->baseline_s = seconds[1];
    line->peak_flops = o->type == DT_F32 ? machine->f32_flops : machine->bf16_flops;
    bench_print_line(machine, line);
    return OK;
}

static enum status bench_prefill(const struct options *o, const struct bench_machine *machine,
                                 const struct kernels *fast, const struct kernels *portable,
                                 int heads, int tokens)
{
    size_t n = (size_t)tokens, h = (size_t)heads, unit = dtype_bytes(o->type);
    struct attention_case c = {.prefill = {.kv_type = o->type,
                                           .heads = heads,
                                           .dim_nope = NOPE,
                                           .dim_rope = ROPE,
                                           .dim_v = DIM_V,
                                           .softmax_scale = 0.1f,
                                           .m = tokens,
                                           .q = random_floats(n * h * (NOPE + ROPE), 1),
                                           .ldq = heads * (NOPE + ROPE),
                                           .k_nope = random_typed(o->type, n * h * NOPE, 2),
                                           .v = random_typed(o->type, n * h * DIM_V, 3),
                                           .ldk = heads * NOPE,
                                           .ldv = heads * DIM_V,
                                           .k_rope = random_typed(o->type, n * ROPE, 4),
                                           .ldr = ROPE,
                                           .out = malloc(n * h * DIM_V * sizeof(float)),
                                           .ldo = heads * DIM_V}};
    struct mla_prefill_args *a = &c.prefill;
    enum status st = OK;
    lane_init(&c.lane, device_cpu(), o->threads);
    if (a->q && a->k_nope && a->v && a->k_rope && a->out) {
        char label[48];
        snprintf(label, sizeof label, "prefill %s heads %d tokens %d",
                 o->type == DT_F32 ? "f32" : "bf16", heads, tokens);
        double pairs = 0.5 * tokens * (tokens + 1.0) * heads;
        struct bench_line line = {.label = label,
                                  .flops = 2 * pairs * (NOPE + ROPE + DIM_V),
                                  .bytes = (double)(n * h * (NOPE + ROPE + DIM_V) * sizeof(float)) +
                                           (double)(n * (h * (NOPE + DIM_V) + ROPE) * unit)};
        st = measure(o, machine, &c, fast, portable, true, tokens, heads, tokens, &line);
    } else {
        st = error_set(ERR_RESOURCE, "bench mla: no memory for %d tokens, %d heads", tokens, heads);
    }
    lane_free(&c.lane);
    free((void *)a->q);
    free((void *)a->k_nope);
    free((void *)a->v);
    free((void *)a->k_rope);
    free(a->out);
    return st;
}

/* Page tables of `batch` requests of `pages` pages, dealt out in turn as a real pool does. */
static int32_t **page_tables(int batch, int pages)
{
    int32_t **tables = calloc((size_t)batch, sizeof *tables);
    for (int i = 0; tables && i < batch; i++) {
        tables[i] = malloc((size_t)pages * sizeof **tables);
        for (int p = 0; tables[i] && p < pages; p++) tables[i][p] = p * batch + i;
    }
    return tables;
}

static enum status bench_decode(const struct options *o, const struct bench_machine *machine,
                                const struct kernels *fast, const struct kernels *portable,
                                int heads, int batch, int context)
{
    enum { ROW = LATENT + ROPE };
    int pages = (context + PAGE - 1) / PAGE;
    size_t b = (size_t)batch, h = (size_t)heads;
    int32_t **tables = page_tables(batch, pages);
    int32_t *len = malloc(b * sizeof *len);
    for (int i = 0; len && i < batch; i++) len[i] = context;
    struct attention_case c = {
        .decode = {.kv_type = o->type,
                   .heads = heads,
                   .dim_latent = LATENT,
                   .dim_rope = ROPE,
                   .page_tokens = PAGE,
                   .softmax_scale = 0.1f,
                   .m = batch,
                   .q = random_floats(b * h * ROW, 1),
                   .ldq = heads * ROW,
                   .cache = random_typed(o->type, b * (size_t)pages * PAGE * ROW, 2),
                   .pages = (const int32_t *const *)tables,
                   .len = len,
                   .out = malloc(b * h * LATENT * sizeof(float)),
                   .ldo = heads * LATENT}};
    struct mla_decode_args *a = &c.decode;
    enum status st = OK;
    lane_init(&c.lane, device_cpu(), o->threads);
    if (tables && len && a->q && a->cache && a->out) {
        char label[48];
        snprintf(label, sizeof label, "decode %s heads %d batch %d context %d",
                 o->type == DT_F32 ? "f32" : "bf16", heads, batch, context);
        double pairs = (double)batch * heads * context;
        struct bench_line line = {.label = label,
                                  .flops = 2 * pairs * (ROW + LATENT),
                                  .bytes =
                                      (double)(b * h * (ROW + LATENT) * sizeof(float)) +
                                      (double)(b * (size_t)context * ROW * dtype_bytes(o->type))};
        st = measure(o, machine, &c, fast, portable, false, batch, heads, context, &line);
    } else {
        st = error_set(ERR_RESOURCE, "bench mla: no memory for %d requests of %d tokens", batch,
                       context);
    }
    for (int i = 0; tables && i < batch; i++) free(tables[i]);
    free(tables);
    free(len);
    lane_free(&c.lane);
    free((void *)a->q);
    free((void *)a->cache);
    free(a->out);
    return st;
}

static enum status run_all(const struct options *o, const struct bench_machine *machine,
                           const struct kernels *fast, const struct kernels *portable)
{
    for (int i = 0; i < o->n_heads; i++)
        for (int j = 0; j < o->n_tokens; j++)
            TRY(bench_prefill(o, machine, fast, portable, o->heads[i], o->tokens[j]));
    for (int i = 0; i < o->n_heads; i++)
        for (int j = 0; j < o->n_batch; j++)
            for (int l = 0; l < o->n_context; l++)
                TRY(bench_decode(o, machine, fast, portable, o->heads[i], o->batch[j],
                                 o->context[l]));
    return OK;
}

enum status cmd_bench_mla(int argc, char **argv)
{
    struct options o = {.threads = cpu_count(),
                        .isa = bench_best_isa(),
                        .type = DT_BF16,
                        .baseline = true,
                        .budget_s = 0.5,
                        .heads = {16, 128},
                        .n_heads = 2,
                        .tokens = {1024},
                        .n_tokens = 1,
                        .batch = {1, 8},
                        .n_batch = 2,
                        .context = {1024, 4096},
                        .n_context = 2};
    bool help;
    TRY(parse(argc, argv, &o, &help));
    if (help) {
        fputs(usage, stdout);
        return OK;
    }
    struct kernels fast = {.isa = o.isa, .name = isa_name(o.isa)};
    struct kernels portable = {.isa = ISA_PORTABLE, .name = isa_name(ISA_PORTABLE)};
    TRY(attention_kernels_fill(&fast, o.isa));
    TRY(attention_kernels_fill(&portable, ISA_PORTABLE));
    struct bench_machine machine;
    TRY(bench_machine_measure(o.threads, o.isa, &machine));
    bench_print_header(o.baseline ? "portable" : 0);
    return run_all(&o, &machine, &fast, &portable);
}
