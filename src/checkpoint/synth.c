/* synth.c - random weights, cheap and independent of order and threads.
 *
 * An element is the sum of four random bytes: 1021 possible values close to a normal curve. What
 * such a sum becomes in the tensor's type is a table made once per tensor, so an element costs
 * half a 64-bit random number and one look-up.
 */
#include "checkpoint/synth.h"

#include "checkpoint/names.h"
#include "checkpoint/writer.h"
#include "core/hash.h"
#include "core/numfmt.h"
#include "core/rng.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SUMS = 4 * 255 + 1,       /* 0 .. 1020 */
    CHUNK_ELEMENTS = 1 << 19, /* one unit of work; even, since a random number makes two elements */
    BLOCK = 128
};
#define SUM_DEVIATION 147.8012 /* of the sum of four uniform bytes: sqrt(4 (256^2 - 1) / 12) */

/* How a tensor's elements are made. */
enum fill { FILL_VALUES, FILL_SCALES };

struct fill_job {
    int id; /* writer's number */
    enum fill fill;
    enum tensor_dtype dtype;
    uint64_t key; /* of the random numbers */
    size_t elements;
    double mean, deviation; /* FILL_VALUES; FILL_SCALES: deviation of the weight it belongs to */
};

struct plan {
    const struct synth_options *opt;
    struct writer *writer;
    struct fill_job *job; /* [jobs], capacity a power of two */
    int jobs;
};

static enum status add_job(struct plan *p, const char *name, int rank, const int64_t *shape,
                           struct fill_job job)
{
    if ((p->jobs & (p->jobs - 1)) == 0) {
        size_t room = p->jobs ? 2 * (size_t)p->jobs : 1;
        struct fill_job *grown = realloc(p->job, room * sizeof *grown);
        if (!grown) return error_set(ERR_RESOURCE, "no memory for the list of tensors");
        p->job = grown;
    }
    TRY(writer_declare(p->writer, name, job.dtype, rank, shape, &job.id));
    job.key = hash64(name, strlen(name), p->opt->seed);
    job.elements = (size_t)shape[0] * (rank == 2 ? (size_t)shape[1] : 1);
    p->job[p->jobs++] = job;
    return OK;
}

static enum status plan_tensor(void *ctx, const struct tensor_spec *s)
{
    struct plan *p = ctx;
    struct fill_job job = {.fill = FILL_VALUES, .dtype = p->opt->dtype};
    bool fp8 = p->opt->dtype == TENSOR_E4M3;
    if (fp8 && !s->fp8_allowed) job.dtype = TENSOR_BF16;
    job.deviation = 1.0 / sqrt((double)s->shape[1]);
    if (s->role == ROLE_GATE_BIAS) {
        job.dtype = TENSOR_F32; /* as published; its steps are finer than BF16's */
        job.deviation = 0.02;
    } else if (s->part == PART_NORM) {
        job.mean = 1.0;
        job.deviation = 0.1;
    }
    TRY(add_job(p, s->name, s->rank, s->shape, job));
    if (!fp8 || !s->fp8_allowed) return OK;

    char name[TENSOR_NAME_MAX];
    int64_t blocks[2] = {(s->shape[0] + BLOCK - 1) / BLOCK, (s->shape[1] + BLOCK - 1) / BLOCK};
    tensor_scale_name(s->name, name);
    job.fill = FILL_SCALES;
    job.dtype = TENSOR_F32;
    return add_job(p, name, 2, blocks, job);
}

/* The bits of each possible sum. FP8 codes use the whole range: 448 times the block's scale is the
 * largest value. */
static void make_table(const struct fill_job *j, uint32_t table[SUMS])
{
    for (int s = 0; s < SUMS; s++) {
        double z = (s - (SUMS - 1) / 2) / SUM_DEVIATION;
        float v = (float)(j->mean + j->deviation * z);
        if (j->dtype == TENSOR_E4M3)
            table[s] = e4m3_from_f32((float)(s - (SUMS - 1) / 2) * (448.0f / ((SUMS - 1) / 2)));
        else if (j->dtype == TENSOR_BF16)
            table[s] = bf16_from_f32(v);
        else if (j->dtype == TENSOR_F16)
            table[s] = f16_from_f32(v);
        else
            table[s] = num_bits(v);
    }
}

/* Elements first .. first + n, first even. */
#define FILL_LOOP(type)                                                                    \
    do {                                                                                   \
        type *out = (type *)buf;                                                           \
        for (size_t i = 0; i < n; i += 2) {                                                \
            uint64_t r = rng_u64(j->key, (first + i) / 2);                                 \
            uint64_t pairs = (r & 0x00ff00ff00ff00ffu) + ((r >> 8) & 0x00ff00ff00ff00ffu); \
            uint32_t lo = (uint32_t)pairs, hi = (uint32_t)(pairs >> 32);                   \
            out[i] = (type)table[(lo & 0xffff) + (lo >> 16)];                              \
            if (i + 1 < n) out[i + 1] = (type)table[(hi & 0xffff) + (hi >> 16)];           \
        }                                                                                  \
    } while (0)

static void fill_values(const struct fill_job *j, const uint32_t *table, size_t first, size_t n,
                        void *buf)
{
    switch (tensor_dtype_bytes(j->dtype)) {
    case 1: FILL_LOOP(uint8_t); break;
    case 2: FILL_LOOP(uint16_t); break;
    default: FILL_LOOP(uint32_t); break;
    }
}

/* The scale that gives a block's codes the weight's deviation, times 0.5 to 1.5 (ue8m0: a power of
 * two near it, halved, kept or doubled). */
static void fill_scales(const struct fill_job *j, bool ue8m0, size_t first, size_t n, float *buf)
{
    double unit = j->deviation * ((SUMS - 1) / 2) / SUM_DEVIATION / 448.0;
    for (size_t i = 0; i < n; i++) {
        double u = rng_uniform(j->key, first + i);
        double s = ue8m0 ? exp2(rint(log2(unit)) + floor(3 * u) - 1) : unit * (0.5 + u);
        buf[i] = (float)s;
    }
}

static enum status fill_chunk(const struct plan *p, const struct fill_job *j, const uint32_t *table,
                              size_t first, void *buf)
{
    size_t n = j->elements - first < CHUNK_ELEMENTS ? j->elements - first : CHUNK_ELEMENTS;
    size_t width = tensor_dtype_bytes(j->dtype);
    if (j->fill == FILL_SCALES)
        fill_scales(j, p->opt->ue8m0, first, n, buf);
    else
        fill_values(j, table, first, n, buf);
    return writer_put(p->writer, j->id, first * width, buf, n * width);
}

/* Threads take tensors in turn; a large tensor's chunks are shared by all. */
static enum status fill_all(const struct plan *p)
{
    enum status st = OK;
    int threads = p->opt->threads > 0 ? p->opt->threads : omp_get_max_threads();
    size_t units = 0;
    size_t *start = malloc(((size_t)p->jobs + 1) * sizeof *start); /* first unit of each job */
    if (!start) return error_set(ERR_RESOURCE, "no memory for the list of tensors");
    for (int i = 0; i < p->jobs; i++) {
        start[i] = units;
        units += (p->job[i].elements + CHUNK_ELEMENTS - 1) / CHUNK_ELEMENTS;
    }
    start[p->jobs] = units;
#pragma omp parallel num_threads(threads)
    {
        void *buf = malloc((size_t)CHUNK_ELEMENTS * 4);
        uint32_t table[SUMS];
        int job = 0, made = -1;
#pragma omp for schedule(dynamic, 1)
        for (size_t u = 0; u < units; u++) {
            enum status now;
#pragma omp atomic read
            now = st;
            if (now != OK) continue;
            if (u < start[job]) job = 0; /* units need not come ascending to a thread */
            while (u >= start[job + 1]) job++;
            if (made != job && p->job[job].fill == FILL_VALUES) make_table(&p->job[job], table);
            made = job;
            size_t first = (u - start[job]) * CHUNK_ELEMENTS;
            enum status mine = ERR_RESOURCE;
            if (buf) mine = fill_chunk(p, &p->job[job], table, first, buf);
            if (mine != OK) {
#pragma omp atomic write
                st = mine;
            }
        }
        free(buf);
    }
    free(start);
    return st == ERR_RESOURCE ? error_set(st, "no memory for random weights") : st;
}

static enum status refuse_overwrite(const char *dir)
{
    static const char *const files[] = {"config.json", "model.safetensors",
                                        "model.safetensors.index.json"};
    for (int i = 0; i < 3; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        if (access(path, F_OK) == 0)
            return error_set(ERR_INPUT,
                             "%s exists: choose another --out, or --force to replace "
                             "that checkpoint",
                             path);
    }
    return OK;
}

enum status synth_write(const char *dir, const struct model_config *cfg,
                        const struct synth_options *opt, size_t *bytes)
{
    struct model_config c = *cfg;
    struct plan p = {.opt = opt};
    bool fp8 = opt->dtype == TENSOR_E4M3;
    const char *dtype = opt->dtype == TENSOR_F16   ? "float16"
                        : opt->dtype == TENSOR_F32 ? "float32"
                                                   : "bfloat16";
    snprintf(c.dtype, sizeof c.dtype, "%s", dtype);
    c.quant = (struct model_quant){.fp8 = fp8, .ue8m0 = fp8 && opt->ue8m0};
    TRY(model_config_validate("model make", &c));
    if (!opt->force) TRY(refuse_overwrite(dir));

    enum status st = writer_create(dir, &p.writer);
    if (st == OK) st = tensor_specs_visit(&c, plan_tensor, &p);
    if (st == OK) st = writer_begin(p.writer, opt->shards);
    if (st == OK) st = fill_all(&p);
    if (st == OK) st = writer_finish(p.writer);
    /* config.json last: a directory with it is complete. */
    if (st == OK) st = model_config_write(dir, &c);
    if (st == OK) *bytes = writer_bytes(p.writer);
    writer_close(p.writer);
    free(p.job);
    return st;
}
