/* calibrate_ep.c - DISPATCH and COMBINE of one rank alone, or of all ranks of mpirun: the time of
 * each half operation, fitted over tokens, rows, bytes and slots. */
#include "cmd/calibrate.h"
#include "core/clock.h"
#include "core/rng.h"
#include "ep/ep.h"

#include <stdlib.h>
#include <string.h>

enum { TOPK_MAX = 8, TOKENS_MAX = 256, ITERATIONS = 400, CASES_MAX = 24 };

struct exchange_size {
    int hidden, experts, topk, tokens;
    enum dtype type;
};

static const struct exchange_size sizes[] = {
    {256, 256, 8, 1, DT_E4M3},   {256, 256, 8, 8, DT_E4M3}, {256, 256, 8, 32, DT_E4M3},
    {256, 256, 8, 128, DT_E4M3}, {512, 16, 2, 1, DT_BF16},  {512, 16, 2, 16, DT_BF16},
    {512, 16, 2, 128, DT_BF16},  {2048, 64, 6, 1, DT_E4M3}, {2048, 64, 6, 8, DT_E4M3},
    {2048, 64, 6, 32, DT_E4M3},  {1024, 64, 4, 4, DT_BF16}, {1024, 64, 4, 64, DT_BF16},
    {1024, 32, 4, 256, DT_BF16},
};
enum { SIZES = sizeof sizes / sizeof *sizes };

struct exchange_case {
    struct ep_group *g;
    const struct exchange_size *size;
    enum ep_mode mode;
    int m;
    struct amat x;
    void *data;
    float *scale, *weights, *y, *out;
    int32_t *ids;
};

static void case_free(struct exchange_case *e)
{
    free(e->data);
    free(e->scale);
    free(e->weights);
    free(e->y);
    free(e->out);
    free(e->ids);
}

static enum status case_make(struct exchange_case *e, int rank)
{
    size_t H = (size_t)e->size->hidden, m = (size_t)e->m, K = (size_t)e->size->topk;
    int blocks = fp8_blocks(e->size->hidden), span = e->size->experts / e->size->topk;
    e->data = calloc(m * H, dtype_bytes(e->size->type));
    e->scale = calloc(m * (size_t)blocks, sizeof *e->scale);
    e->weights = calloc(m * K, sizeof *e->weights);
    e->ids = calloc(m * K, sizeof *e->ids);
    e->y = calloc(m * K * H * 4, sizeof *e->y); /* a rank may get more than its share */
    e->out = calloc(m * H, sizeof *e->out);
    if (!e->data || !e->scale || !e->weights || !e->ids || !e->y || !e->out)
        return error_set(ERR_RESOURCE, "calibrate: out of memory");
    for (size_t t = 0; t < m; t++)
        for (size_t k = 0; k < K; k++) {
            uint64_t r = rng_u64(7 + (uint64_t)rank, t * K + k);
            e->ids[t * K + k] = (int)k * span + (int)(r % (uint64_t)span);
            e->weights[t * K + k] = 0.1f;
        }
    e->x =
        (struct amat){e->size->type, e->size->hidden, e->data, e->size->hidden, e->scale, blocks};
    return OK;
}

/* One layer's exchange; us of its four halves. */
static enum status exchange_once(struct exchange_case *e, double us[SPEED_EP_PARTS])
{
    struct ep_recv r;
    double t0 = clock_now_s();
    TRY(ep_dispatch_begin(e->g, 0, 0, e->mode, e->m, &e->x, e->ids, e->weights));
    double t1 = clock_now_s();
    TRY(ep_dispatch_finish(e->g, 0, &r));
    double t2 = clock_now_s();
    if (r.more) return error_set(ERR_BUG, "calibrate: the receive buffer overflowed");
    TRY(ep_combine_begin(e->g, 0, DT_F32, e->y, e->size->hidden));
    double t3 = clock_now_s();
    TRY(ep_combine_finish(e->g, 0, e->out, e->size->hidden));
    double t4 = clock_now_s(), t[] = {t1 - t0, t2 - t1, t3 - t2, t4 - t3};
    for (int i = 0; i < SPEED_EP_PARTS; i++) us[i] = t[i] * 1e6;
    return OK;
}

static enum status time_case(struct calibration *c, struct exchange_case *e,
                             double us[SPEED_EP_PARTS])
{
    int n = c->quick ? 60 : ITERATIONS;
    double(*all)[ITERATIONS] = calloc(SPEED_EP_PARTS, sizeof *all);
    enum status st = all ? OK : error_set(ERR_RESOURCE, "calibrate: out of memory");
    for (int i = -5; i < n && st == OK; i++) {
        double one[SPEED_EP_PARTS];
        st = exchange_once(e, one);
        for (int p = 0; p < SPEED_EP_PARTS && i >= 0; p++) all[p][i] = one[p];
    }
    for (int p = 0; p < SPEED_EP_PARTS && st == OK; p++) us[p] = cal_quartile(c, all[p], n);
    free(all);
    return st;
}

static enum status measure_size(struct calibration *c, const struct exchange_size *s,
                                struct waiter *w, struct lane *lane, int ranks, int rank,
                                double us[2][SPEED_EP_PARTS])
{
    struct ep_params p = {.experts = s->experts,
                          .slots = s->experts,
                          .topk = s->topk,
                          .hidden = s->hidden,
                          .n_group = 1,
                          .max_tokens = s->tokens,
                          .chunk_tokens = s->tokens,
                          .recv_rows_factor = ranks * 2.0,
                          .dispatch_type = s->type,
                          .combine_type = DT_BF16};
    int32_t *identity = calloc((size_t)s->experts, sizeof *identity);
    if (!identity) return error_set(ERR_RESOURCE, "calibrate: out of memory");
    for (int i = 0; i < s->experts; i++) identity[i] = i;
    struct ep_placement place = {s->experts, 1, identity};
    struct ep_group *g = NULL;
    enum status st = ep_create(&p, &place, w, &c->k, lane, &g);
    for (int mode = 0; mode < 2 && st == OK; mode++) {
        struct exchange_case e = {
            .g = g, .size = s, .mode = mode ? EP_LOW_LATENCY : EP_NORMAL, .m = s->tokens};
        st = case_make(&e, rank);
        if (st == OK) st = time_case(c, &e, us[mode]);
        case_free(&e);
    }
    if (g) ep_destroy(g);
    free(identity);
    return st;
}

static double row_bytes(const struct exchange_size *s, bool back)
{
    if (back || s->type == DT_BF16) return 2.0 * s->hidden;
    return s->hidden + 4.0 * fp8_blocks(s->hidden);
}

static void keep(struct calibration *c, int ranks, double us[SIZES][2][SPEED_EP_PARTS])
{
    struct host_speed *sp = &c->speed;
    int at = host_ranks_find(sp->ep.ranks, sp->ep.n, ranks);
    if (at < 0) at = sp->ep.n < SPEED_RANKS ? sp->ep.n++ : SPEED_RANKS - 1;
    sp->ep.ranks[at] = ranks;
    for (int mode = 0; mode < 2; mode++)
        for (int p = 0; p < SPEED_EP_PARTS; p++) {
            double x[SIZES][SPEED_COEFS], y[SIZES];
            for (int i = 0; i < SIZES; i++) {
                const struct exchange_size *s = &sizes[i];
                host_ep_features(s->tokens, s->topk, row_bytes(s, p >= SPEED_COMBINE_BEGIN),
                                 s->hidden, s->experts, x[i]);
                y[i] = us[i][mode][p] > 0.01 ? us[i][mode][p] : 0.01;
            }
            host_fit(SIZES, 6, (const double(*)[SPEED_COEFS])x, y, NULL, sp->ep.part[at][mode][p]);
        }
}

enum status cal_all_to_all(struct calibration *c, MPI_Comm comm)
{
    struct transport *t = NULL;
    struct lane lane;
    int ranks, rank;
    double us[SIZES][2][SPEED_EP_PARTS];
    MPI_Comm_size(comm, &ranks);
    MPI_Comm_rank(comm, &rank);
    cal_lane(&lane, 1);
    TRY(transport_create(comm, 0, &t));
    struct waiter w = {.transport = t};
    enum status st = OK;
    for (int i = 0; i < SIZES && st == OK; i++)
        if (sizes[i].experts % ranks == 0)
            st = measure_size(c, &sizes[i], &w, &lane, ranks, rank, us[i]);
        else
            st = error_set(ERR_USAGE,
                           "calibrate: %d ranks: the all-to-all is measured with 16 to "
                           "256 experts; use a number of ranks that divides 16",
                           ranks);
    if (st == OK) keep(c, ranks, us);
    transport_destroy(t);
    return st;
}
