/* bench_gemm.c - `moebatch bench gemm`: every product is checked against the definition on
 * sampled cells, then timed beside the machine's ceilings and oneDNN's BF16. */
#include "cmd/bench.h"
#include "cmd/bench_onednn.h"
#include "core/clock.h"
#include "core/rng.h"
#include "gemm/gemm.h"

#include <getopt.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LIST = 32, MAX_GROUPS = 64 };

struct shape {
    int n, k;
};

struct options {
    int threads, groups;
    enum isa isa;
    int m[MAX_LIST], m_count;
    struct shape shape[MAX_LIST];
    int shape_count;
    bool type[3]; /* by enum dtype of the weights */
    double budget_s;
};

struct bench {
    struct options opt;
    struct bench_machine machine;
    struct kernels kern;
    struct lane lane;
    bool baseline;
    double baseline_s[MAX_LIST][MAX_LIST]; /* [shape][m], 0: not measured yet */
};

/* ---- command line ---- */

static void usage(FILE *out)
{
    fputs("usage: moebatch bench gemm [options]\n"
          "  --threads T     threads (default: all cores)\n"
          "  --isa NAME      portable | avx2 | avx512 | avx512_bf16 | amx (default: the best)\n"
          "  --m LIST        rows, like 1,8,512\n"
          "  --shape NxK     weights; repeatable (default: a few of DeepSeek-V3's and small ones)\n"
          "  --dtype T       fp8 | bf16 | f32; repeatable (default: fp8 and bf16)\n"
          "  --groups G      also the same weights as G experts with uneven rows (0: not)\n"
          "  --quick         fewer shapes, shorter samples\n"
          "Columns: microseconds per call, rates, share of the bound that applies (operations /\n"
          "peak or bytes / DRAM bandwidth, both measured in this run), and oneDNN's BF16 time for\n"
          "the same shape divided by ours. Weights that stay in a cache between calls can exceed\n"
          "100 % of the bound, which is DRAM's.\n",
          out);
}

static enum status parse_shape(const char *text, struct options *opt)
{
    struct shape s;
    char rest;
    if (sscanf(text, "%dx%d%c", &s.n, &s.k, &rest) != 2 || s.n < 1 || s.k < 1)
        return error_set(ERR_USAGE, "--shape: expected NxK like 4096x7168, found '%s'", text);
    if (opt->shape_count == MAX_LIST)
        return error_set(ERR_USAGE, "--shape: at most %d shapes", MAX_LIST);
    opt->shape[opt->shape_count++] = s;
    return OK;
}

static enum status parse_type(const char *text, struct options *opt)
{
    static const char *const names[] = {"f32", "bf16", "fp8"};
    for (int i = 0; i < 3; i++)
        if (strcmp(text, names[i]) == 0) {
            opt->type[i] = true;
            return OK;
        }
    return error_set(ERR_USAGE, "--dtype: expected fp8, bf16 or f32, found '%s'", text);
}

static enum status parse_one(int option, const char *value, struct options *opt, bool *quick)
{
    int isa, count;
    switch (option) {
    case 't':
        TRY(bench_parse_list("--threads", value, &opt->threads, 1, &count));
        return opt->threads > 0 ? OK : error_set(ERR_USAGE, "--threads: at least 1");
    case 'i':
        isa = isa_parse(value);
        if (isa < 0) return error_set(ERR_USAGE, "--isa: unknown instruction set '%s'", value);
        opt->isa = (enum isa)isa;
        return OK;
    case 'm': return bench_parse_list("--m", value, opt->m, MAX_LIST, &opt->m_count);
    case 's': return parse_shape(value, opt);
    case 'd': return parse_type(value, opt);
    case 'g':
        TRY(bench_parse_list("--groups", value, &opt->groups, 1, &count));
        return opt->groups <= MAX_GROUPS ? OK
                                         : error_set(ERR_USAGE, "--groups: at most %d", MAX_GROUPS);
    case 'q': *quick = true; return OK;
    default: return error_set(ERR_USAGE, "bench gemm: unknown option; see bench gemm --help");
    }
}

static void defaults(struct options *opt, bool quick)
{
    static const struct shape full[] = {{2112, 7168},  {4096, 7168}, {7168, 2048},
                                        {24576, 1536}, {512, 256},   {256, 128}};
    static const int rows[] = {1, 2, 4, 8, 16, 64, 512}, quick_rows[] = {1, 8, 512};
    if (opt->shape_count == 0) {
        const struct shape *s = quick ? full + 2 : full; /* from 7168 x 2048 on */
        opt->shape_count = quick ? 1 : (int)(sizeof full / sizeof *full);
        memcpy(opt->shape, s, sizeof *s * (size_t)opt->shape_count);
    }
    if (opt->m_count == 0) {
        opt->m_count = quick ? 3 : (int)(sizeof rows / sizeof *rows);
        memcpy(opt->m, quick ? quick_rows : rows, sizeof *rows * (size_t)opt->m_count);
    }
    if (!opt->type[0] && !opt->type[1] && !opt->type[2])
        opt->type[DT_E4M3] = opt->type[DT_BF16] = true;
    opt->budget_s = quick ? 0.05 : 0.15;
}

static enum status parse(int argc, char **argv, struct options *opt, bool *help)
{
    static const struct option table[] = {
        {"threads", 1, 0, 't'}, {"isa", 1, 0, 'i'},   {"m", 1, 0, 'm'},
        {"shape", 1, 0, 's'},   {"dtype", 1, 0, 'd'}, {"groups", 1, 0, 'g'},
        {"quick", 0, 0, 'q'},   {"help", 0, 0, 'h'},  {0, 0, 0, 0}};
    bool quick = false;
    *opt = (struct options){.threads = cpu_count(), .isa = bench_best_isa(), .groups = 8};
    optind = 0;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "h", table, NULL)) != -1;) {
        if (c == 'h') {
            *help = true;
            return OK;
        }
        TRY(parse_one(c, optarg, opt, &quick));
    }
    if (optind < argc)
        return error_set(ERR_USAGE, "bench gemm: unexpected argument '%s'", argv[optind]);
    defaults(opt, quick);
    return OK;
}

/* ---- operands ---- */

/* Values around one, made from random bits eight bytes at a time. */
static void fill(enum dtype type, void *data, size_t bytes, uint64_t key)
{
    const uint64_t keep[] = {0x807fffff807fffffu, 0x807f807f807f807fu, 0xbfbfbfbfbfbfbfbfu};
    const uint64_t exponent[] = {0x3f0000003f000000u, 0x3f003f003f003f00u, 0};
    char *out = data;
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t r = (rng_u64(key, i) & keep[type]) | exponent[type];
        memcpy(out + i, &r, bytes - i < 8 ? bytes - i : 8);
    }
}

/* One product: weights in both forms, activations, output. */
struct operands {
    enum dtype type;
    int m, n, k;
    struct weight_src src;
    struct wmat w;
    struct amat a;
    void *src_data, *packed, *rows;
    float *w_scale, *a_scale, *c;
};

static void operands_free(struct operands *o)
{
    free(o->src_data);
    free(o->packed);
    free(o->rows);
    free(o->w_scale);
    free(o->a_scale);
    free(o->c);
}

static void *memory(size_t bytes)
{
    return aligned_alloc(64, (bytes + 64) / 64 * 64);
}

static enum status operands_make(struct bench *b, enum dtype type, int m, struct shape s,
                                 struct operands *o)
{
    int none[2] = {s.n, 0}, blocks = fp8_blocks(s.k);
    size_t cells = (size_t)s.n * (size_t)s.k, scales = (size_t)fp8_blocks(s.n) * (size_t)blocks;
    size_t row_cells = (size_t)m * (size_t)s.k, row_scales = (size_t)m * (size_t)blocks;
    *o = (struct operands){.type = type, .m = m, .n = s.n, .k = s.k};
    o->src_data = memory(cells * dtype_bytes(type));
    o->packed = memory(b->kern.gemm_packed_bytes(type, none, 1, s.k));
    o->rows = memory(row_cells * dtype_bytes(type));
    o->w_scale = memory(scales * sizeof(float));
    o->a_scale = memory(row_scales * sizeof(float));
    o->c = memory((size_t)m * (size_t)s.n * sizeof(float));
    if (!o->src_data || !o->packed || !o->rows || !o->w_scale || !o->a_scale || !o->c)
        return error_set(ERR_RESOURCE, "bench gemm: not enough memory for %dx%d", s.n, s.k);
    fill(type, o->src_data, cells * dtype_bytes(type), 1);
    fill(type, o->rows, row_cells * dtype_bytes(type), 2);
    for (size_t i = 0; i < scales; i++) o->w_scale[i] = 0.001f * (float)(1 + i % 7);
    for (size_t i = 0; i < row_scales; i++) o->a_scale[i] = 0.01f * (float)(1 + i % 5);
    o->src = (struct weight_src){.type = type,
                                 .n = s.n,
                                 .k = s.k,
                                 .data = o->src_data,
                                 .ldk = s.k,
                                 .scale = o->w_scale,
                                 .lds = blocks};
    o->a = (struct amat){
        .type = type, .k = s.k, .data = o->rows, .ld = s.k, .scale = o->a_scale, .lds = blocks};
    double t0 = clock_now_s();
    TRY(b->kern.gemm_pack(type, &o->src, 1, o->packed, &o->w));
    double seconds = clock_now_s() - t0;
    if (m == b->opt.m[0])
        printf("# packed %dx%d in %.1f ms, one thread: %.2f GB/s of weights\n", s.n, s.k,
               seconds * 1e3, (double)cells * (double)dtype_bytes(type) / seconds / 1e9);
    return OK;
}

/* ---- verified, then timed ---- */

/* A product to time. groups 0: dense; else expert g has rows begin[g] .. and n / groups of the
 * weights' rows. */
struct call {
    struct bench *b;
    struct operands *o;
    int groups;
    int32_t begin[MAX_GROUPS], rows[MAX_GROUPS];
    struct wmat w[MAX_GROUPS];
};

/* Cell (i, j) of the output against the definition. */
static enum status verify_cell(const struct call *call, int i, int j)
{
    const struct operands *o = call->o;
    int ldc = o->n, weight_row = j;
    for (int g = 0; g < call->groups; g++) {
        ldc = o->n / call->groups;
        if (i >= call->begin[g]) weight_row = g * ldc + j;
    }
    struct weight_src row = o->src;
    struct amat a = o->a;
    row.n = 1;
    row.data = (const char *)o->src_data + (size_t)weight_row * (size_t)o->k * dtype_bytes(o->type);
    int scale_row = weight_row / FP8_BLOCK;
    if (call->groups) scale_row = (weight_row % ldc) / FP8_BLOCK; /* each expert's own grid */
    row.scale = o->w_scale + (size_t)scale_row * (size_t)row.lds;
    a.data = (const char *)o->rows + (size_t)i * (size_t)o->k * dtype_bytes(o->type);
    a.scale = o->a_scale + (size_t)i * (size_t)a.lds;
    double want, mag, got = (double)o->c[(size_t)i * (size_t)ldc + (size_t)j];
    gemm_ref(1, &a, &row, 1, &want, &mag);
    double tolerance = (4 + 4 * sqrt(o->k)) * 0x1p-24 * mag;
    if (fabs(got - want) <= tolerance) return OK;
    return error_set(ERR_BUG,
                     "bench gemm: m %d n %d k %d groups %d is wrong at (%d, %d): %g, "
                     "expected %g +- %g: not timed",
                     o->m, o->n, o->k, call->groups, i, j, got, want, tolerance);
}

/* Runs the product once and checks its corners and some random cells. */
static enum status verify(struct call *call, void (*run)(void *))
{
    enum { SAMPLES = 40 };
    int m = call->o->m, n = call->o->n / (call->groups ? call->groups : 1);
    memset(call->o->c, 0xff, (size_t)m * (size_t)n * sizeof(float));
    run(call);
    TRY(verify_cell(call, 0, 0));
    TRY(verify_cell(call, m - 1, n - 1));
    for (uint64_t s = 0; s < SAMPLES; s++)
        TRY(verify_cell(call, (int)(rng_u64(3, s) % (unsigned)m),
                        (int)(rng_u64(4, s) % (unsigned)n)));
    return OK;
}

static void call_dense(void *arg)
{
    struct call *c = arg;
    c->b->kern.gemm(&c->b->lane, c->o->m, &c->o->a, &c->o->w, c->o->c, c->o->n);
}

static void call_grouped(void *arg)
{
    struct call *c = arg;
    c->b->kern.gemm_grouped(&c->b->lane, c->groups, c->begin, c->rows, &c->o->a, c->w, c->o->c,
                            c->o->n / c->groups);
}

static struct bench_line line_of(const struct bench *b, const struct operands *o)
{
    bool bf16 = o->type != DT_F32;
    return (struct bench_line){
        .flops = 2.0 * o->m * o->n * o->k,
        .bytes = ((double)o->n + o->m) * o->k * (double)dtype_bytes(o->type) + 4.0 * o->m * o->n,
        .peak_flops = bf16 ? b->machine.bf16_flops : b->machine.f32_flops,
    };
}

static const char *type_label(enum dtype type)
{
    return type == DT_F32 ? "f32" : type == DT_BF16 ? "bf16" : "fp8";
}

static double baseline(struct bench *b, int shape, int mi)
{
    double *s = &b->baseline_s[shape][mi];
    struct shape sh = b->opt.shape[shape];
    if (b->baseline && *s == 0)
        *s = onednn_bf16_seconds(b->opt.threads, b->opt.m[mi], sh.n, sh.k, b->opt.budget_s);
    return *s;
}

static enum status dense(struct bench *b, enum dtype type, int shape, int mi)
{
    struct operands o;
    char label[64];
    int m = b->opt.m[mi];
    if (m < 1) return OK;
    enum status st = operands_make(b, type, m, b->opt.shape[shape], &o);
    struct call call = {.b = b, .o = &o};
    if (st == OK) st = verify(&call, call_dense);
    if (st == OK) {
        struct bench_line line = line_of(b, &o);
        snprintf(label, sizeof label, "gemm %-4s m %4d n %5d k %5d", type_label(type), m, o.n, o.k);
        line.label = label;
        line.seconds = bench_seconds(call_dense, &call, b->opt.budget_s);
        if (type != DT_F32) line.baseline_s = baseline(b, shape, mi);
        bench_print_line(&b->machine, &line);
    }
    operands_free(&o);
    return st;
}

/* m * G rows over G experts of [n / G, k], spread 1 : 2 : 3 ...: the operations and the weights'
 * bytes of one dense call of m rows. */
static enum status grouped(struct bench *b, enum dtype type, struct shape s, int m)
{
    struct operands o;
    int groups = b->opt.groups;
    struct shape expert = {s.n / groups, s.k};
    if (expert.n < 1) return OK;
    enum status st = operands_make(b, type, m * groups, (struct shape){expert.n * groups, s.k}, &o);
    struct call call = {.b = b, .o = &o, .groups = groups};
    int none[2] = {expert.n, 0}, row = 0;
    size_t bytes = b->kern.gemm_packed_bytes(type, none, 1, s.k);
    void *packed = memory(bytes * (size_t)groups);
    if (!packed && st == OK) st = error_set(ERR_RESOURCE, "bench gemm: not enough memory");
    for (int g = 0; g < groups && st == OK; g++) {
        struct weight_src src = o.src;
        src.n = expert.n;
        src.data =
            (char *)o.src_data + (size_t)g * (size_t)expert.n * (size_t)s.k * dtype_bytes(type);
        st = b->kern.gemm_pack(type, &src, 1, (char *)packed + (size_t)g * bytes, &call.w[g]);
        int share = 2 * m * groups * (g + 1) / (groups * (groups + 1));
        call.begin[g] = row;
        call.rows[g] = g == groups - 1 ? m * groups - row : share;
        row += call.rows[g];
    }
    if (st == OK) st = verify(&call, call_grouped);
    if (st == OK) {
        char label[64];
        struct bench_line line = line_of(b, &o);
        line.flops /= groups;
        line.bytes = ((double)o.n + o.m) * o.k * (double)dtype_bytes(type) + 4.0 * o.m * expert.n;
        snprintf(label, sizeof label, "grouped %-4s %2d x n %4d k %4d rows %4d", type_label(type),
                 groups, expert.n, s.k, o.m);
        line.label = label;
        line.seconds = bench_seconds(call_grouped, &call, b->opt.budget_s);
        bench_print_line(&b->machine, &line);
    }
    free(packed);
    operands_free(&o);
    return st;
}

enum status cmd_bench_gemm(int argc, char **argv)
{
    static struct bench b;
    const char *why = "";
    bool help = false;
    memset(&b, 0, sizeof b);
    TRY(parse(argc, argv, &b.opt, &help));
    if (help) {
        usage(stdout);
        return OK;
    }
    b.kern = (struct kernels){.isa = b.opt.isa, .name = isa_name(b.opt.isa)};
    TRY(gemm_kernels_fill(&b.kern, b.opt.isa));
    TRY(bench_machine_measure(b.opt.threads, b.opt.isa, &b.machine));
    b.baseline = onednn_open(&why);
    printf("# baseline: %s %s\n", b.baseline ? "oneDNN BF16" : "none,",
           b.baseline ? onednn_version() : why);
    lane_init(&b.lane, device_cpu(), b.opt.threads);
    bench_print_header(b.baseline ? "oneDNN bf16" : NULL);
    for (int t = DT_E4M3; t >= DT_F32; t--) {
        if (!b.opt.type[t]) continue;
        for (int s = 0; s < b.opt.shape_count; s++)
            for (int i = 0; i < b.opt.m_count; i++) TRY(dense(&b, (enum dtype)t, s, i));
        for (int i = 0; i < b.opt.m_count && b.opt.groups; i++)
            TRY(grouped(&b, (enum dtype)t, b.opt.shape[b.opt.shape_count > 2 ? 2 : 0], b.opt.m[i]));
    }
    lane_free(&b.lane);
    return OK;
}
