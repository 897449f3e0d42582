/* bench_ep.c - `mpirun -np N moebatch bench ep`: DISPATCH and COMBINE, both modes, against
 * MPI_Alltoallv of the same bytes and a memcpy of them, in one run.
 *
 * Every configuration is verified before it is timed: experts return their input, so each
 * token's output must be bit for bit what the COMBINE kernel makes of its own row. Times are
 * the slowest rank's, of each rank's median over iterations. The Alltoallv baseline moves rows
 * that lie ready for it; grouping by expert, which DISPATCH does, is not counted for it. Slots
 * are random, so rates include no cache reuse beyond what a decode step has.
 */
#include "cmd/bench.h"

#include "core/clock.h"
#include "core/numfmt.h"
#include "core/rng.h"
#include "ep/ep.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { MAX_LIST = 16, MAX_ITERATIONS = 200 };

struct options {
    int hidden[MAX_LIST], tokens[MAX_LIST], hiddens, token_counts;
    int experts, topk, ranks_per_node;
    double budget_s; /* per line and quantity */
};

/* One configuration's buffers on this rank. */
struct bench {
    const struct options *o;
    struct ep_group *g;
    struct waiter *waiter;
    const struct kernels *kernels;
    struct lane *lane;
    int rank, ranks, hidden, m, rows;
    enum ep_mode mode;
    struct amat x;
    uint8_t *data;
    float *scale, *weights, *y, *out;
    int32_t *ids;
    int *send, *recv; /* rows to and from each rank */
    double dispatch_s, combine_s, alltoall_s[2], memcpy_s[2];
    double cpu_s, switches; /* of one DISPATCH and COMBINE on the busiest rank */
};

/* A control plane with nothing to say makes wait_until poll MPI however ranks are grouped. */
static enum status keep_polling(void *arg)
{
    (void)arg;
    return OK;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static unsigned request_missing(void *request)
{
    int done = 0;
    MPI_Test(request, &done, MPI_STATUS_IGNORE);
    return !done;
}

/* The maximum over ranks. Not blocking: this rank may be a gateway of others meanwhile. */
static double slowest(const struct bench *b, double s)
{
    double all = s;
    MPI_Request request;
    struct waiter w = {.transport = b->waiter->transport, .poll = keep_polling};
    MPI_Iallreduce(&s, &all, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD, &request);
    if (wait_until(&w, request_missing, &request) != OK) return 0;
    return all;
}

static enum status options_read(struct options *o, int argc, char **argv)
{
    *o = (struct options){.hidden = {7168, 256},
                          .hiddens = 2,
                          .tokens = {1, 8, 32, 128},
                          .token_counts = 4,
                          .experts = 256,
                          .topk = 8,
                          .budget_s = 0.3};
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        int n = 1;
        if (!strcmp(name, "--hidden"))
            TRY(bench_parse_list(name, value, o->hidden, MAX_LIST, &o->hiddens));
        else if (!strcmp(name, "--tokens"))
            TRY(bench_parse_list(name, value, o->tokens, MAX_LIST, &o->token_counts));
        else if (!strcmp(name, "--experts"))
            TRY(bench_parse_list(name, value, &o->experts, 1, &n));
        else if (!strcmp(name, "--topk"))
            TRY(bench_parse_list(name, value, &o->topk, 1, &n));
        else if (!strcmp(name, "--ranks-per-node"))
            TRY(bench_parse_list(name, value, &o->ranks_per_node, 1, &n));
        else if (!strcmp(name, "--seconds"))
            o->budget_s = atof(value);
        else
            return error_set(ERR_USAGE,
                             "bench ep: unknown option %s; there are --hidden, "
                             "--tokens, --experts, --topk, --ranks-per-node, --seconds",
                             name);
    }
    if (argc % 2 == 0) return error_set(ERR_USAGE, "bench ep: %s needs a value", argv[argc - 1]);
    return OK;
}

/* ---- data ---- */

static void free_buffers(struct bench *b)
{
    free(b->data);
    free(b->scale);
    free(b->weights);
    free(b->y);
    free(b->out);
    free(b->ids);
    free(b->send);
    free(b->recv);
}

static enum status make_tokens(struct bench *b)
{
    size_t H = (size_t)b->hidden, K = (size_t)b->o->topk, m = (size_t)b->m;
    size_t blocks = (size_t)fp8_blocks(b->hidden);
    b->data = malloc(m * H);
    b->scale = malloc(m * blocks * sizeof *b->scale);
    b->weights = malloc(m * K * sizeof *b->weights);
    b->ids = malloc(m * K * sizeof *b->ids);
    b->out = malloc(m * H * sizeof *b->out);
    b->send = calloc((size_t)b->ranks, sizeof *b->send);
    b->recv = calloc((size_t)b->ranks, sizeof *b->recv);
    if (!b->data || !b->scale || !b->weights || !b->ids || !b->out || !b->send || !b->recv)
        return error_set(ERR_RESOURCE, "bench ep: out of memory");
    for (size_t i = 0; i < m * H; i++) b->data[i] = (uint8_t)(rng_u64(1, i) & 0xf7);
    for (size_t i = 0; i < m * blocks; i++) b->scale[i] = 0.01f + (float)(i % 13);
    for (size_t t = 0; t < m; t++)
        for (size_t k = 0; k < K; k++) {
            uint64_t r = rng_u64(2 + (uint64_t)b->rank, t * K + k);
            int span = b->o->experts / b->o->topk; /* one of each span: distinct */
            b->ids[t * K + k] = (int)k * span + (int)(r % (uint64_t)span);
            b->weights[t * K + k] = (float)(r >> 40) * 0x1p-24f;
            b->send[b->ids[t * K + k] / (b->o->experts / b->ranks)]++;
        }
    MPI_Alltoall(b->send, 1, MPI_INT, b->recv, 1, MPI_INT, MPI_COMM_WORLD);
    b->x = (struct amat){DT_E4M3, b->hidden, b->data, b->hidden, b->scale, (int)blocks};
    return OK;
}

static void dequantise(const struct amat *x, int row, float *to)
{
    const uint8_t *from = (const uint8_t *)x->data + (size_t)row * (size_t)x->ld;
    const float *scale = x->scale + (size_t)row * (size_t)x->lds;
    for (int i = 0; i < x->k; i++) to[i] = e4m3_to_f32(from[i]) * scale[i / FP8_BLOCK];
}

/* ---- verification: also leaves y filled for the timing ---- */

static enum status operate_once(struct bench *b)
{
    struct ep_recv r;
    TRY(ep_dispatch_begin(b->g, 0, 0, b->mode, b->m, &b->x, b->ids, b->weights));
    TRY(ep_dispatch_finish(b->g, 0, &r));
    free(b->y);
    b->rows = r.total;
    b->y = malloc(((size_t)r.total + 1) * (size_t)b->hidden * sizeof *b->y);
    if (!b->y) return error_set(ERR_RESOURCE, "bench ep: out of memory");
    if (r.more) return error_set(ERR_BUG, "bench ep: the receive buffer overflowed");
    for (int i = 0; i < r.total; i++) dequantise(&r.x, i, b->y + (size_t)i * (size_t)b->hidden);
    TRY(ep_combine_begin(b->g, 0, DT_F32, b->y, b->hidden));
    return ep_combine_finish(b->g, 0, b->out, b->hidden);
}

static enum status verify(struct bench *b)
{
    size_t H = (size_t)b->hidden, K = (size_t)b->o->topk;
    uint16_t *rows = malloc(K * H * sizeof *rows);
    float *x = malloc(H * sizeof *x), *want = malloc(H * sizeof *want);
    enum status st =
        rows && x && want ? operate_once(b) : error_set(ERR_RESOURCE, "bench ep: out of memory");
    for (int t = 0; t < b->m && st == OK; t++) {
        dequantise(&b->x, t, x);
        for (size_t k = 0; k < K; k++)
            for (size_t i = 0; i < H; i++) rows[k * H + i] = bf16_from_f32(x[i]);
        b->kernels->combine(b->lane, DT_BF16, 1, b->hidden, b->o->topk, rows,
                            b->ids + (size_t)t * K, b->weights + (size_t)t * K, b->o->experts, 1,
                            want, b->hidden);
        if (memcmp(want, b->out + (size_t)t * H, H * sizeof *want) != 0)
            st = error_set(ERR_BUG, "bench ep: token %d of rank %d is wrong", t, b->rank);
    }
    free(rows);
    free(x);
    free(want);
    return st;
}

/* ---- timing ---- */

/* Iterations that fit the budget, the same on all ranks (first_s is the slowest rank's). */
static int iterations_for(const struct bench *b, double first_s)
{
    int n = first_s > 0 ? (int)(b->o->budget_s / first_s) : MAX_ITERATIONS;
    return n < 5 ? 5 : n > MAX_ITERATIONS ? MAX_ITERATIONS : n;
}

/* DISPATCH and COMBINE back to back, as the layers of a model do: what another rank is late for is
 * waited for here, but not how late ranks come out of an MPI collective (a sleep of up to 20 ms
 * where 20 ranks share a core), as it would be if each were started together. */
static enum status operate(struct bench *b, double *dispatch_s, double *combine_s)
{
    struct ep_recv r;
    double t0 = clock_now_s();
    TRY(ep_dispatch_begin(b->g, 0, 0, b->mode, b->m, &b->x, b->ids, b->weights));
    TRY(ep_dispatch_finish(b->g, 0, &r));
    double t1 = clock_now_s();
    TRY(ep_combine_begin(b->g, 0, DT_F32, b->y, b->hidden));
    TRY(ep_combine_finish(b->g, 0, b->out, b->hidden));
    *dispatch_s = t1 - t0;
    *combine_s = clock_now_s() - t1;
    return OK;
}

static double cpu_seconds(long *switches)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    *switches = u.ru_nvcsw + u.ru_nivcsw;
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static enum status time_ep(struct bench *b)
{
    double dispatch[MAX_ITERATIONS], combine[MAX_ITERATIONS];
    long switches[2];
    slowest(b, 0);
    for (int i = 0; i < 2; i++) TRY(operate(b, &dispatch[0], &combine[0]));
    int n = iterations_for(b, slowest(b, dispatch[0] + combine[0]));
    TRY(operate(b, &dispatch[0], &combine[0])); /* all are out of the collective */
    double cpu = cpu_seconds(&switches[0]);
    for (int i = 0; i < n; i++) TRY(operate(b, &dispatch[i], &combine[i]));
    b->cpu_s = slowest(b, (cpu_seconds(&switches[1]) - cpu) / n);
    b->switches = slowest(b, (double)(switches[1] - switches[0]) / n);
    qsort(dispatch, (size_t)n, sizeof *dispatch, compare);
    qsort(combine, (size_t)n, sizeof *combine, compare);
    b->dispatch_s = slowest(b, dispatch[n / 2]);
    b->combine_s = slowest(b, combine[n / 2]);
    return OK;
}

/* MPI_Alltoallv of rows of `bytes`, and a memcpy of what one rank sends. */
static enum status time_baselines(struct bench *b, size_t bytes, const int *send, const int *recv,
                                  int which)
{
    double times[MAX_ITERATIONS], copies[MAX_ITERATIONS];
    int n = 5, R = b->ranks, rows[2] = {0, 0};
    int at[2][R];
    for (int r = 0; r < R; r++) {
        at[0][r] = rows[0];
        at[1][r] = rows[1];
        rows[0] += send[r];
        rows[1] += recv[r];
    }
    char *from = malloc((size_t)rows[0] * bytes + 1), *to = malloc((size_t)rows[1] * bytes + 1);
    char *copy = malloc((size_t)rows[0] * bytes + 1);
    if (!from || !to || !copy) return error_set(ERR_RESOURCE, "bench ep: out of memory");
    memset(from, 1, (size_t)rows[0] * bytes);
    MPI_Datatype row;
    MPI_Type_contiguous((int)bytes, MPI_BYTE, &row);
    MPI_Type_commit(&row);
    for (int i = 0; i < n; i++) {
        slowest(b, 0); /* all start together */
        double t0 = clock_now_s();
        MPI_Alltoallv(from, send, at[0], row, to, recv, at[1], row, MPI_COMM_WORLD);
        times[i] = slowest(b, clock_now_s() - t0);
        t0 = clock_now_s();
        memcpy(copy, from, (size_t)rows[0] * bytes);
        copies[i] = clock_now_s() - t0;
        if (i == 1) n = iterations_for(b, times[1]);
    }
    MPI_Type_free(&row);
    free(from);
    free(to);
    free(copy);
    qsort(times, (size_t)n, sizeof *times, compare);
    qsort(copies, (size_t)n, sizeof *copies, compare);
    b->alltoall_s[which] = times[n / 2];
    b->memcpy_s[which] = copies[n / 2];
    return OK;
}

static void print_line(const struct bench *b)
{
    size_t dispatch = (size_t)b->hidden + (size_t)fp8_blocks(b->hidden) * 4;
    double rows = (double)b->m * b->o->topk, in = rows * (double)dispatch;
    double back = rows * b->hidden * 2;
    if (b->rank != 0) return;
    printf("%-11s %6d %6d %11.1f %7.2f %7.2f %9.2f %11.1f %7.2f %7.2f %9.2f %8.1f %8.1f\n",
           b->mode == EP_NORMAL ? "normal" : "low-latency", b->hidden, b->m, b->dispatch_s * 1e6,
           in / b->dispatch_s / 1e9, b->alltoall_s[0] / b->dispatch_s,
           b->memcpy_s[0] / b->dispatch_s, b->combine_s * 1e6, back / b->combine_s / 1e9,
           b->alltoall_s[1] / b->combine_s, b->memcpy_s[1] / b->combine_s, b->cpu_s * 1e6,
           b->switches);
    fflush(stdout);
}

/* ---- one configuration ---- */

static enum status bench_run(struct bench *b)
{
    size_t bytes = (size_t)b->hidden + (size_t)fp8_blocks(b->hidden) * 4;
    enum status st = make_tokens(b);
    if (st == OK) st = verify(b);
    if (st == OK) st = time_baselines(b, bytes, b->send, b->recv, 0);
    if (st == OK) st = time_baselines(b, (size_t)b->hidden * 2, b->recv, b->send, 1);
    if (st == OK) st = time_ep(b);
    if (st == OK) print_line(b);
    free_buffers(b);
    return st;
}

static enum status bench_hidden(const struct options *o, int hidden, struct waiter *waiter,
                                const struct kernels *kernels, struct lane *lane)
{
    const struct topology *tp = transport_topology(waiter->transport);
    int most = 1;
    for (int i = 0; i < o->token_counts; i++) most = o->tokens[i] > most ? o->tokens[i] : most;
    struct ep_params p = {.experts = o->experts,
                          .topk = o->topk,
                          .hidden = hidden,
                          .n_group = 1,
                          .max_tokens = most,
                          .chunk_tokens = most,
                          .recv_rows_factor = 1e9,
                          .dispatch_type = DT_E4M3,
                          .combine_type = DT_BF16};
    int32_t *identity = calloc((size_t)o->experts, sizeof *identity);
    if (!identity) return error_set(ERR_RESOURCE, "bench ep: out of memory");
    for (int e = 0; e < o->experts; e++) identity[e] = e;
    struct ep_placement placement = {o->experts, 1, identity};
    struct ep_group *g = NULL;
    enum status st = ep_create(&p, &placement, waiter, kernels, lane, &g);
    for (int mode = EP_NORMAL; mode <= EP_LOW_LATENCY && st == OK; mode++)
        for (int i = 0; i < o->token_counts && st == OK; i++) {
            struct bench b = {.o = o,
                              .g = g,
                              .waiter = waiter,
                              .kernels = kernels,
                              .lane = lane,
                              .hidden = hidden,
                              .rank = tp->rank,
                              .ranks = tp->ranks,
                              .m = o->tokens[i],
                              .mode = (enum ep_mode)mode};
            st = bench_run(&b);
        }
    if (st == OK) ep_destroy(g);
    free(identity);
    return st;
}

enum status cmd_bench_ep(int argc, char **argv)
{
    struct options o;
    struct kernels kernels = {0};
    struct lane lane __attribute__((cleanup(lane_free)));
    struct transport *t = NULL;
    int initialised = 0;
    TRY(options_read(&o, argc, argv));
    MPI_Initialized(&initialised);
    if (!initialised) return error_set(ERR_BUG, "bench ep: MPI is not initialised");
    TRY(gemm_kernels_fill(&kernels, bench_best_isa()));
    TRY(moe_kernels_fill(&kernels, bench_best_isa()));
    lane_init(&lane, device_cpu(), 1);
    TRY(transport_create(MPI_COMM_WORLD, o.ranks_per_node, &t));
    const struct topology *tp = transport_topology(t);
    if (tp->rank == 0)
        printf("# ep: %d ranks on %d nodes (%s), %d experts, top-%d, FP8 there, BF16 back; every "
               "configuration verified\n# us: slowest rank, median; GB/s: of the rows a rank "
               "sends; x: time of MPI_Alltoallv, of memcpy of the same bytes / ours;\n"
               "# cpu_us, switches: processor time and context switches of both, busiest rank\n"
               "# %-9s %6s %6s %11s %7s %7s %9s %11s %7s %7s %9s %8s %8s\n",
               tp->ranks, tp->nodes, transport_name(t), o.experts, o.topk, "mode", "hidden",
               "tokens", "dispatch_us", "GB/s", "x_a2av", "x_memcpy", "combine_us", "GB/s",
               "x_a2av", "x_memcpy", "cpu_us", "switches");
    struct waiter waiter = {.transport = t};
    for (int i = 0; i < o.hiddens; i++)
        TRY(bench_hidden(&o, o.hidden[i], &waiter, &kernels, &lane));
    transport_destroy(t);
    return OK;
}
