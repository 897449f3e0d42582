/* calibrate_gemm.c - products: a table over rows for each weight type, cached and from memory,
 * what lies between, and what waking the threads costs. */
#include "cmd/calibrate.h"
#include "core/clock.h"
#include "gemm/gemm.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { WIDE_N = 256, DEEP_K = 1024, BLOCK_K = 128, SHALLOW_K = 32, MOST_ROWS = 192 };

static const double footprint_mb[SPEED_FOOTPRINTS] = {0.5, 1, 2, 4, 8, 16, 24, 32, 64, 128};

/* Weights of one shape, many copies, and rows for it: of one thread. */
struct product {
    struct lane lane;
    const struct kernels *k;
    struct wmat w;
    struct amat a;
    char *pool;   /* [count] packed matrices */
    size_t bytes; /* of one */
    void *rows;   /* behind a */
    float *scale;
    int count, next, stride, m, n;
    float *c;
};

static void product_run(void *arg)
{
    struct product *p = arg;
    struct wmat w = p->w;
    w.data = p->pool + (size_t)p->next * p->bytes;
    p->next = (p->next + p->stride) % p->count;
    p->k->gemm(&p->lane, p->m, &p->a, &w, p->c, p->n);
}

/* Once through the pool, so that every sample meets it as the one before left it. */
static void pool_run(void *arg)
{
    struct product *p = arg;
    for (int i = 0; i < p->count; i++) product_run(p);
}

static void product_free(struct product *p)
{
    free(p->pool);
    free(p->rows);
    free(p->scale);
    free(p->c);
    memset(p, 0, sizeof *p);
}

static enum status fill_rows(struct product *p, enum dtype type, int k)
{
    float *x = cal_numbers((size_t)MOST_ROWS * (size_t)k);
    p->rows = malloc((size_t)MOST_ROWS * (size_t)k * 4);
    p->scale = malloc((size_t)MOST_ROWS * (size_t)fp8_blocks(k) * sizeof *p->scale);
    p->a = (struct amat){type, k, p->rows, k, p->scale, fp8_blocks(k)};
    bool ok = x && p->rows && p->scale;
    if (ok) p->k->act_convert(&p->lane, MOST_ROWS, x, k, &p->a, false);
    free(x);
    return ok ? OK : error_set(ERR_RESOURCE, "calibrate: out of memory");
}

/* pool_bytes 0: one matrix. */
static enum status product_make(const struct calibration *c, enum dtype type, int n, int k,
                                size_t pool_bytes, struct product *p)
{
    *p = (struct product){.k = &c->k, .n = n, .m = 1, .stride = 1};
    cal_lane(&p->lane, 1);
    p->bytes = (c->k.gemm_packed_bytes(type, &n, 1, k) + 63) / 64 * 64;
    p->count = pool_bytes > p->bytes ? (int)(pool_bytes / p->bytes) : 1;
    p->pool = aligned_alloc(64, p->bytes * (size_t)p->count);
    p->c = malloc((size_t)MOST_ROWS * (size_t)n * sizeof *p->c);
    float *x = cal_numbers((size_t)n * (size_t)k);
    enum status st =
        p->pool && p->c && x ? OK : error_set(ERR_RESOURCE, "calibrate: out of memory");
    struct weight_src src = {.type = DT_F32, .n = n, .k = k, .data = x, .ldk = k};
    uint8_t *q = NULL;
    float *scale = NULL;
    if (st == OK && type == DT_E4M3) {
        int blocks = fp8_blocks(k), rows = fp8_blocks(n);
        q = malloc((size_t)n * (size_t)k);
        scale = malloc((size_t)rows * (size_t)blocks * sizeof *scale);
        if (!q || !scale) st = error_set(ERR_RESOURCE, "calibrate: out of memory");
        for (size_t i = 0; st == OK && i < (size_t)n * (size_t)k; i++)
            q[i] = (uint8_t)(i * 37 & 0x77);
        for (int i = 0; st == OK && i < rows * blocks; i++) scale[i] = 0.01f;
        src = (struct weight_src){DT_E4M3, n, k, q, k, scale, blocks};
    }
    if (st == OK) st = c->k.gemm_pack(type, &src, 1, p->pool, &p->w);
    for (int i = 1; st == OK && i < p->count; i++)
        memcpy(p->pool + (size_t)i * p->bytes, p->pool, p->bytes);
    if (st == OK) st = fill_rows(p, type, k);
    free(x);
    free(q);
    free(scale);
    return st;
}

/* The same product on every thread. */
struct team {
    int n;
    struct product p[CAL_THREADS_MAX];
    struct cal_call call;
};

static void team_free(struct team *t)
{
    for (int i = 0; i < t->n; i++) product_free(&t->p[i]);
}

static enum status team_make(const struct calibration *c, enum dtype type, int n, int k,
                             double pool_mb, int threads, struct team *t)
{
    *t = (struct team){.n = threads, .call.fn = product_run};
    for (int i = 0; i < threads; i++) {
        t->call.arg[i] = &t->p[i];
        TRY(product_make(c, type, n, k, (size_t)(pool_mb * 1e6 / threads), &t->p[i]));
    }
    return OK;
}

static double team_time(struct calibration *c, struct team *t, int m, int threads)
{
    for (int i = 0; i < threads; i++) t->p[i].m = m;
    return cal_time(c, &t->call, threads);
}

/* ---- tables over rows ------------------------------------------------------------------------ */

/* us[shape][row] for the shapes that tell blocks, panels and packing apart. */
enum { SHAPES = 5 };
static const struct {
    int panels, k;
} shapes[SHAPES] = {{4, DEEP_K}, {4, BLOCK_K}, {1, DEEP_K}, {1, BLOCK_K}, {2, DEEP_K / 2}};

static enum status measure_hot(struct calibration *c, enum dtype type, int threads,
                               double us[SHAPES][SPEED_ROWS])
{
    int panel = c->speed.panel[type];
    struct team *t = malloc(sizeof *t);
    if (!t) return error_set(ERR_RESOURCE, "calibrate: out of memory");
    enum status st = OK;
    for (int s = 0; s < SHAPES && st == OK; s++) {
        st = team_make(c, type, shapes[s].panels * panel, shapes[s].k, 0, threads, t);
        for (int r = 0; r < SPEED_ROWS && st == OK; r++)
            us[s][r] = team_time(c, t, (int)host_speed_rows[r], threads);
        team_free(t);
    }
    free(t);
    return st;
}

/* Block, panel, pack and call from the times of the shapes. */
static void fit_hot(double us[SHAPES][SPEED_ROWS], struct speed_gemm *g, double *block)
{
    double x[SHAPES][SPEED_COEFS], coef[SPEED_COEFS], y[SHAPES], call = INFINITY;
    for (int s = 0; s < SHAPES; s++) {
        double deep = shapes[s].k / (double)BLOCK_K, p = shapes[s].panels;
        double all[SPEED_COEFS] = {deep * p, p, deep, 1};
        memcpy(x[s], all, sizeof all);
    }
    for (int r = 0; r < 3; r++) { /* few rows show it best */
        for (int s = 0; s < SHAPES; s++) y[s] = us[s][r];
        host_fit(SHAPES, 4, (const double(*)[SPEED_COEFS])x, y, NULL, coef);
        call = fmin(call, coef[3]);
    }
    for (int r = 0; r < SPEED_ROWS; r++) {
        for (int s = 0; s < SHAPES; s++) y[s] = fmax(us[s][r] - call, 1e-4);
        host_fit(SHAPES, 3, (const double(*)[SPEED_COEFS])x, y, NULL, coef);
        block[r] = coef[0];
        g->panel[r] = coef[1];
        g->pack[r] = coef[2];
    }
    g->call = call;
}

static double fit_block(const struct speed_gemm *g, double us, int row, double deep, double panels)
{
    double rest = us - g->call - panels * g->panel[row] - deep * g->pack[row];
    return fmax(rest / (deep * panels), 1e-4);
}

static enum status measure_type(struct calibration *c, enum dtype type)
{
    struct speed_gemm *g = &c->speed.gemm[type];
    int panel = c->speed.panel[type], all = cal_threads(c, SPEED_ALL);
    double us[SHAPES][SPEED_ROWS];
    struct team *t = malloc(sizeof *t);
    if (!t) return error_set(ERR_RESOURCE, "calibrate: out of memory");
    TRY(measure_hot(c, type, all, us));
    fit_hot(us, g, g->block[SPEED_ALL]);
    enum status st = team_make(c, type, 4 * panel, DEEP_K, 0, 1, t);
    for (int r = 0; r < SPEED_ROWS && st == OK; r++)
        g->block[SPEED_ONE][r] = fit_block(g, team_time(c, t, (int)host_speed_rows[r], 1), r, 8, 4);
    team_free(t);
    if (st == OK) st = team_make(c, type, 4 * panel, SHALLOW_K, 0, all, t);
    for (int r = 0; r < SPEED_ROWS && st == OK; r++) {
        double sum = team_time(c, t, (int)host_speed_rows[r], all);
        g->shallow[r] = fit_block(g, sum, r, 1, 4);
    }
    team_free(t);
    for (int cores = 0; cores < SPEED_CORES && st == OK; cores++) {
        int threads = cal_threads(c, (enum speed_cores)cores);
        st = team_make(c, type, 4 * panel, DEEP_K, footprint_mb[SPEED_FOOTPRINTS - 1], threads, t);
        for (int r = 0; r < SPEED_ROWS && st == OK; r++)
            g->cold[cores][r] =
                fit_block(g, team_time(c, t, (int)host_speed_rows[r], threads), r, 8, 4);
        team_free(t);
    }
    free(t);
    return st;
}

/* The first lines of a matrix that is nowhere near: small matrices here and there in memory. */
static enum status measure_cold_call(struct calibration *c, enum dtype type)
{
    struct speed_gemm *g = &c->speed.gemm[type];
    int threads = cal_threads(c, SPEED_ALL);
    struct team *t = malloc(sizeof *t);
    if (!t) return error_set(ERR_RESOURCE, "calibrate: out of memory");
    enum status st = team_make(c, type, c->speed.panel[type], BLOCK_K,
                               footprint_mb[SPEED_FOOTPRINTS - 1], threads, t);
    for (int i = 0; i < threads && st == OK; i++) t->p[i].stride = t->p[i].count / 8 * 5 + 1;
    if (st == OK) {
        double us = team_time(c, t, 1, threads);
        g->cold_call = fmax(0, us - g->call - g->cold[SPEED_ALL][0] - g->panel[0] - g->pack[0]);
    }
    team_free(t);
    free(t);
    return st;
}

/* ---- between cache and memory ---------------------------------------------------------------- */

static enum status measure_footprints(struct calibration *c)
{
    int panel = c->speed.panel[DT_BF16];
    struct team *t = malloc(sizeof *t);
    if (!t) return error_set(ERR_RESOURCE, "calibrate: out of memory");
    memcpy(c->speed.footprint.mb, footprint_mb, sizeof footprint_mb);
    enum status st = OK;
    for (int cores = 0; cores < SPEED_CORES && st == OK; cores++) {
        int threads = cal_threads(c, (enum speed_cores)cores);
        double us[SPEED_FOOTPRINTS];
        for (int i = 0; i < SPEED_FOOTPRINTS && st == OK; i++) {
            st = team_make(c, DT_BF16, 2 * panel, DEEP_K / 2, footprint_mb[i], threads, t);
            t->call.fn = pool_run;
            if (st == OK) us[i] = team_time(c, t, 1, threads) / t->p[0].count;
            team_free(t);
        }
        double hot = us[0], far = us[SPEED_FOOTPRINTS - 1], before = 0;
        for (int i = 0; i < SPEED_FOOTPRINTS && st == OK; i++) {
            double share = far > hot ? (us[i] - hot) / (far - hot) : 0;
            before = fmin(1, fmax(before, share)); /* more bytes are never nearer */
            c->speed.footprint.share[cores][i] = before;
        }
    }
    free(t);
    return st;
}

/* ---- waking the threads ---------------------------------------------------------------------- */

static double fork_us(struct calibration *c, int threads)
{
    enum { SAMPLES = 200 };
    double us[SAMPLES];
    for (int i = 0; i < SAMPLES; i++) {
        double until = clock_now_s() + 20e-6; /* alone for a while, as between two products */
        while (clock_now_s() < until) {}
        double t0 = clock_now_s();
#pragma omp parallel num_threads(threads)
        __asm__ volatile("" ::: "memory");
        us[i] = (clock_now_s() - t0) * 1e6;
    }
    (void)cal_quartile(c, us, SAMPLES);
    return us[SAMPLES / 10]; /* where nobody else wanted the core */
}

enum status cal_products(struct calibration *c)
{
    for (int t = 0; t < SPEED_TYPES; t++)
        c->speed.panel[t] = gemm_panel_rows(c->k.isa, (enum dtype)t);
    if (c->cores > 1) c->speed.fork[SPEED_ONE] = fork_us(c, 2);
    c->speed.fork[SPEED_ALL] = c->cores > 2 ? fork_us(c, c->cores) : c->speed.fork[SPEED_ONE];
    for (int t = 0; t < SPEED_TYPES; t++) {
        TRY(measure_type(c, (enum dtype)t));
        TRY(measure_cold_call(c, (enum dtype)t));
    }
    return measure_footprints(c);
}
