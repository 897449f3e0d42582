/* driver.c - blocking, grouping and threads of the products; the same for every micro-kernel.
 *
 * Work is cut into (group, block of rows, panel). A thread copies a block of rows to its
 * scratch once ([block of k][row][128], zero padded, in the compute type) and walks a run of
 * panels: per 128-deep block the panel's weights (widened once if many rows use them, so that
 * they stay in L1) meet all rows, tile by tile, and the output panel collects in the scratch
 * until k is done. An element's operations follow k only, whatever the cut.
 */
#include "core/log.h"
#include "gemm/ukernel.h"

#include <pthread.h>
#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    A_BUDGET = 3 << 20, /* bytes of packed activations per thread: they stream from L3 */
    M_BLOCK_MAX = 192,  /* rows: the output panel (48 KiB) stays in L2 */
    M_BLOCK_MIN = 48,   /* fewer would stream the weights too often */
    PIECES_PER_THREAD = 4,
    PANEL_COST = 4, /* rows that reading a panel's weights weighs */
};

/* ---- scratch of a thread ---- */

struct scratch {
    char *a;        /* packed rows */
    float *a_scale; /* [blocks][rows] */
    float *c;       /* [rows][nr] */
    void *wide;     /* one widened block */
    size_t a_bytes, scale_bytes, c_bytes, wide_bytes;
    /* What `a` holds, to skip copying it again: rows of the call of that number. */
    uint64_t held_call;
    const void *held;
    int held_row, held_rows;
};

static _Thread_local struct scratch thread_scratch;
static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void scratch_free(void *p)
{
    struct scratch *s = p;
    free(s->a);
    free(s->a_scale);
    free(s->c);
    free(s->wide);
}

static void scratch_key_make(void)
{
    if (pthread_key_create(&scratch_key, scratch_free) != 0) abort();
}

/* The calling thread's scratch, holding nothing of another call; freed when the thread ends. */
static struct scratch *scratch_get(uint64_t call)
{
    struct scratch *s = &thread_scratch;
    if (!s->c) {
        pthread_once(&scratch_once, scratch_key_make);
        if (pthread_setspecific(scratch_key, s) != 0) abort();
    }
    if (s->held_call != call) s->held = NULL;
    s->held_call = call;
    return s;
}

static void *grow(void *p, size_t *have, size_t need)
{
    if (*have >= need) return p;
    free(p);
    need = (need + 4095) / 4096 * 4096;
    if (posix_memalign(&p, 4096, need) != 0) {
        log_warn("gemm: cannot allocate %zu bytes of scratch for a thread", need);
        abort();
    }
    *have = need;
    return p;
}

/* ---- one product of a call ---- */

struct product {
    int m;
    const char *a;
    const float *a_scale;
    const struct wmat *w;
    float *c;
};

static struct product product_get(const struct gemm_call *call, int g)
{
    int64_t begin = call->begin ? call->begin[g] : 0;
    int64_t offset = begin * call->a->ld + g * call->a_stride;
    struct product p = {
        .m = call->rows ? call->rows[g] : call->m,
        .a = (const char *)call->a->data + offset * (int64_t)dtype_bytes(call->a->type),
        .w = &call->w[g],
        .c = call->c + begin * call->ldc + g * call->c_stride,
    };
    assert(call->a->type != DT_E4M3 || call->a_stride % FP8_BLOCK == 0);
    if (call->a->type == DT_E4M3)
        p.a_scale = call->a->scale + begin * call->a->lds + g * call->a_stride / FP8_BLOCK;
    return p;
}

static enum dtype compute_type(const struct gemm_call *call, const struct product *p)
{
    return p->w->type == DT_F32 ? DT_F32 : call->uk->wide;
}

/* ---- the cut into blocks of rows, panels, and pieces for threads ---- */

struct cut {
    int threads, pieces;
    int64_t work; /* sum over panels of rows + PANEL_COST */
    int m_block;  /* rows, a multiple of mr */
};

static int rows_per_block(const struct gemm_call *call, int m, const struct cut *cut)
{
    int mr = call->uk->mr;
    int blocks = (m + cut->m_block - 1) / cut->m_block;
    int rows = (m + blocks - 1) / blocks;
    return (rows + mr - 1) / mr * mr;
}

/* Whether a product is worth waking the other threads, a few microseconds. */
static bool worth_threads(double madds, double bytes)
{
    return madds > 1e6 || bytes > 256e3;
}

static struct cut cut_make(const struct lane *lane, const struct gemm_call *call)
{
    struct cut cut = {.threads = lane->threads, .pieces = 1};
    size_t row_bytes = 1;
    int64_t panels = 0, rows = 0;
    double madds = 0, bytes = 0;
    for (int g = 0; g < call->groups; g++) {
        struct product p = product_get(call, g);
        if (p.m <= 0) continue;
        struct gemm_layout l =
            gemm_layout(call->uk, p.w->type, p.w->source_n, p.w->sources, p.w->k);
        size_t rb = (size_t)l.blocks * GEMM_KC * dtype_bytes(compute_type(call, &p));
        if (rb > row_bytes) row_bytes = rb;
        panels += l.panels;
        if (p.m > rows) rows = p.m;
        madds += (double)p.m * p.w->n * p.w->k;
        bytes += (double)l.bytes;
    }
    int64_t fit = (int64_t)(A_BUDGET / row_bytes);
    cut.m_block = (int)(fit < M_BLOCK_MIN ? M_BLOCK_MIN : fit > M_BLOCK_MAX ? M_BLOCK_MAX : fit);
    if (!worth_threads(madds, bytes)) cut.threads = 1;
    /* Few panels: cut the rows finer, so that every thread has some. */
    int64_t want = (int64_t)cut.threads * PIECES_PER_THREAD;
    while (cut.threads > 1 && cut.m_block > 2 * call->uk->mr &&
           panels * ((rows + cut.m_block - 1) / cut.m_block) < want)
        cut.m_block /= 2;
    cut.m_block = (cut.m_block + call->uk->mr - 1) / call->uk->mr * call->uk->mr;
    for (int g = 0; g < call->groups; g++) {
        struct product p = product_get(call, g);
        if (p.m <= 0) continue;
        struct gemm_layout l =
            gemm_layout(call->uk, p.w->type, p.w->source_n, p.w->sources, p.w->k);
        int step = rows_per_block(call, p.m, &cut);
        int64_t row_blocks = (p.m + step - 1) / step;
        cut.work += l.panels * (p.m + row_blocks * PANEL_COST);
    }
    if (cut.threads > 1) cut.pieces = cut.threads * PIECES_PER_THREAD;
    return cut;
}

/* ---- rows of a product times a run of its panels ---- */

struct run {
    const struct gemm_call *call;
    struct lane *lane; /* NULL: this thread does not poll */
    struct scratch *s;
    struct product p;
    struct gemm_layout l;
    int row0, rows;
    double since_poll;
};

static void poll_after(struct run *run, double madds)
{
    if (!run->lane) return;
    run->since_poll += madds;
    if (run->since_poll < run->call->uk->poll_work) return;
    run->since_poll = 0;
    lane_poll(run->lane);
}

/* Copies the run's rows to the scratch, block by block of k. */
static void rows_pack(struct run *run)
{
    const struct ukernel *uk = run->call->uk;
    const struct amat *a = run->call->a;
    struct scratch *s = run->s;
    if (s->held == run->p.a && s->held_row == run->row0 && s->held_rows == run->rows) return;
    s->held = run->p.a, s->held_row = run->row0, s->held_rows = run->rows;

    enum dtype to = compute_type(run->call, &run->p);
    size_t from_size = dtype_bytes(a->type), to_size = dtype_bytes(to);
    size_t padded = (size_t)run->l.blocks * (size_t)run->rows;
    s->a = grow(s->a, &s->a_bytes, padded * GEMM_KC * to_size);
    s->a_scale = grow(s->a_scale, &s->scale_bytes, padded * sizeof(float));
    char *out = s->a;
    for (int b = 0; b < run->l.blocks; b++) {
        int k0 = b * GEMM_KC, depth = gemm_depth(run->p.w->k, b);
        int n = run->p.w->k - k0 < GEMM_KC ? run->p.w->k - k0 : GEMM_KC;
        for (int r = 0; r < run->rows; r++, out += GEMM_KC * to_size) {
            size_t row = (size_t)(run->row0 + r);
            const char *in = run->p.a + (row * (size_t)a->ld + (size_t)k0) * from_size;
            if (a->type == to)
                memcpy(out, in, (size_t)n * to_size);
            else
                uk->widen_row(a->type, in, n, out);
            if (n < depth) memset(out + (size_t)n * to_size, 0, (size_t)(depth - n) * to_size);
            s->a_scale[(size_t)b * (size_t)run->rows + (size_t)r] =
                run->p.a_scale ? run->p.a_scale[row * (size_t)a->lds + (size_t)b] : 1.0f;
        }
        poll_after(run, run->rows * 2e3);
    }
}

/* Fetches a slice of the block that follows while this one is being multiplied. */
static inline void prefetch_slice(const char *next, size_t bytes, int tile, int tiles)
{
    size_t lines = bytes / 64, lo = lines * (size_t)tile / (size_t)tiles;
    size_t hi = lines * ((size_t)tile + 1) / (size_t)tiles;
    for (size_t i = lo; i < hi; i++) __builtin_prefetch(next + i * 64, 0, 2);
}

/* One 128-deep block of a panel times all rows of the run, into s->c. */
static void block_run(struct run *run, int panel, int b)
{
    const struct ukernel *uk = run->call->uk;
    struct scratch *s = run->s;
    const struct wmat *w = run->p.w;
    const char *data = w->data;
    const char *block = data + (size_t)panel * run->l.panel_bytes + (size_t)b * run->l.block_bytes;
    const float *scales = (const float *)(const void *)(data + run->l.scales);
    enum dtype type = w->type;
    struct gemm_tile t = {.b = block,
                          .depth = gemm_depth(w->k, b),
                          .first = b == 0,
                          .scaled = type == DT_E4M3,
                          .stream = run->rows <= uk->mr};
    if (t.scaled) t.w_scale = scales[(size_t)panel * (size_t)run->l.blocks + (size_t)b];
    enum dtype compute = compute_type(run->call, &run->p);
    bool fused = type == DT_E4M3 && run->rows <= uk->fused_rows;
    if (type != compute && !fused) {
        uk->widen_block(type, block, t.depth, s->wide);
        t.b = s->wide;
        type = compute;
    }
    size_t row_bytes = GEMM_KC * dtype_bytes(compute);
    const char *a = s->a + (size_t)b * (size_t)run->rows * row_bytes;
    /* Tiles of equal height: 8 rows are 4 + 4, not 6 + 2. */
    int tallest = fused ? uk->fused_mr : uk->mr;
    int tiles = (run->rows + tallest - 1) / tallest;
    for (int i = 0, r = 0, rows; i < tiles; i++, r += rows) {
        rows = (run->rows - r + tiles - i - 1) / (tiles - i);
        t.a = a + (size_t)r * row_bytes;
        t.a_scale = s->a_scale + (size_t)b * (size_t)run->rows + r;
        t.c = s->c + (size_t)r * (size_t)uk->nr;
        uk->tile(type, rows, &t);
        if (!t.stream) prefetch_slice(block + run->l.block_bytes, run->l.block_bytes, i, tiles);
    }
}

static void panels_run(struct run *run, int panel0, int panel1)
{
    const struct ukernel *uk = run->call->uk;
    size_t c_bytes = (size_t)run->rows * (size_t)uk->nr * sizeof(float);
    rows_pack(run);
    struct scratch *s = run->s;
    s->c = grow(s->c, &s->c_bytes, c_bytes);
    s->wide = grow(s->wide, &s->wide_bytes, sizeof(float) * GEMM_NR_MAX * GEMM_KC);
    for (int panel = panel0; panel < panel1; panel++) {
        for (int b = 0; b < run->l.blocks; b++) {
            block_run(run, panel, b);
            poll_after(run, (run->rows + PANEL_COST) * (double)uk->nr * GEMM_KC);
        }
        int first;
        int columns = gemm_panel_columns(uk, &run->l, run->p.w, panel, &first);
        float *c = run->p.c + (int64_t)run->row0 * run->call->ldc + first;
        for (int r = 0; r < run->rows; r++)
            memcpy(c + (int64_t)r * run->call->ldc, s->c + (size_t)r * (size_t)uk->nr,
                   sizeof(float) * (size_t)columns);
    }
}

static int64_t clamp(int64_t v, int64_t lo, int64_t hi)
{
    return v < lo ? lo : v > hi ? hi : v;
}

/* The panels whose work begins in [lo, hi) of the call's work. */
static void piece_run(struct run *run, const struct cut *cut, int64_t lo, int64_t hi)
{
    const struct gemm_call *call = run->call;
    int64_t at = 0;
    for (int g = 0; g < call->groups && at < hi; g++) {
        run->p = product_get(call, g);
        if (run->p.m <= 0) continue;
        const struct wmat *w = run->p.w;
        run->l = gemm_layout(call->uk, w->type, w->source_n, w->sources, w->k);
        int step = rows_per_block(call, run->p.m, cut);
        for (run->row0 = 0; run->row0 < run->p.m && at < hi; run->row0 += step) {
            run->rows = run->p.m - run->row0 < step ? run->p.m - run->row0 : step;
            int64_t cost = run->rows + PANEL_COST;
            int64_t p0 = clamp((lo - at + cost - 1) / cost, 0, run->l.panels);
            int64_t p1 = clamp((hi - at + cost - 1) / cost, 0, run->l.panels);
            if (p0 < p1) panels_run(run, (int)p0, (int)p1);
            at += cost * run->l.panels;
        }
    }
}

struct pieces {
    const struct gemm_call *call;
    struct cut cut;
    uint64_t number;
};

static void one_piece(void *arg, int i, struct lane *poll)
{
    const struct pieces *p = arg;
    const struct cut *cut = &p->cut;
    struct run run = {.call = p->call, .lane = poll, .s = scratch_get(p->number)};
    piece_run(&run, cut, cut->work * i / cut->pieces, cut->work * (i + 1) / cut->pieces);
    if (p->call->uk->leave) p->call->uk->leave();
}

void gemm_drive(struct lane *lane, const struct gemm_call *call)
{
    static _Atomic uint64_t calls; /* of the process: no number twice on any thread */
    struct pieces pieces = {call, cut_make(lane, call), atomic_fetch_add(&calls, 1) + 1};
    if (pieces.cut.work == 0) return;
    lane_poll(lane); /* a row of small products must not keep communication waiting */
    lane_run(lane, pieces.cut.pieces, one_piece, &pieces);
}
