/* host_cost.c - see host_cost.h. */
#include "cluster/host_cost.h"

#include <math.h>
#include <string.h>

enum {
    DEPTH = 128,
    SHALLOW = 32,
    BLOCK_ROWS = 192,
    TILE_ROWS = 6,
    PIECES = 4,
    TILE = 64,
    PART_KEYS = 512
};

const double host_speed_rows[SPEED_ROWS] = {1,  2,  3,  4,  5,  6,  8,   10, 12,
                                            16, 24, 32, 48, 64, 96, 128, 192};

double host_dot(const double *coef, const double *f)
{
    double sum = 0;
    for (int i = 0; i < SPEED_COEFS; i++) sum += coef[i] * f[i];
    return sum;
}

static double mix(double a, double b, double share)
{
    return a + (b - a) * share;
}

/* y at x, linear between the points, the last slope beyond them, the first value before. */
static double curve(int n, const double *xs, const double *ys, double x)
{
    if (x <= xs[0]) return ys[0];
    int i = 0;
    while (i + 2 < n && xs[i + 1] < x) i++;
    return mix(ys[i], ys[i + 1], (x - xs[i]) / (xs[i + 1] - xs[i]));
}

/* ---- the host's state ------------------------------------------------------------------------ */

struct host_view host_view_make(const struct host_speed *s, int threads, double busy,
                                double footprint_mb)
{
    struct host_view v = {
        .s = s, .threads = threads < 1 ? 1 : threads, .busy = busy, .mb = footprint_mb};
    v.all = s->cores > 1 ? (busy - 1) / (s->cores - 1) : 1;
    v.all = v.all < 0 ? 0 : v.all > 1 ? 1 : v.all;
    double last = s->footprint.mb[SPEED_FOOTPRINTS - 1];
    double mb = footprint_mb < last ? footprint_mb : last;
    double one = curve(SPEED_FOOTPRINTS, s->footprint.mb, s->footprint.share[SPEED_ONE], mb);
    double all = curve(SPEED_FOOTPRINTS, s->footprint.mb, s->footprint.share[SPEED_ALL], mb);
    v.cold = mix(one, all, v.all);
    return v;
}

static double fork_us(const struct host_view *v)
{
    if (v->threads <= 1) return 0;
    if (v->s->cores <= 2) return v->s->fork[SPEED_ALL];
    double share = (v->threads - 2) / (v->s->cores - 2);
    return mix(v->s->fork[SPEED_ONE], v->s->fork[SPEED_ALL], share > 1 ? 1 : share);
}

/* ---- rows of groups -------------------------------------------------------------------------- */

struct host_spread host_spread_equal(double groups, double rows)
{
    struct host_spread s = {.n = 0};
    if (rows > 0) {
        s.n = 1;
        s.rows[0] = rows;
        s.groups[0] = groups;
    }
    return s;
}

static void spread_add(struct host_spread *s, double rows, double groups)
{
    for (int i = 0; i < s->n; i++)
        if (s->rows[i] == rows) {
            s->groups[i] += groups;
            return;
        }
    if (s->n < HOST_SPREAD_MAX) {
        s->rows[s->n] = rows;
        s->groups[s->n++] = groups;
        return;
    }
    int near = 0; /* full: to the nearest */
    for (int i = 1; i < s->n; i++)
        if (fabs(s->rows[i] - rows) < fabs(s->rows[near] - rows)) near = i;
    s->groups[near] += groups;
}

void host_spread_binomial(struct host_spread *s, double groups, double draws, double p)
{
    draws = floor(draws + 0.5);
    if (!(draws > 0) || !(p > 0) || !(groups > 0)) return;
    if (p >= 1) {
        spread_add(s, draws, groups);
        return;
    }
    double mean = draws * p, deviation = sqrt(mean * (1 - p));
    int lo = (int)fmax(0, floor(mean - 5 * deviation - 1));
    int hi = (int)fmin(draws, ceil(mean + 5 * deviation + 3));
    int step = (hi - lo + 64) / 64; /* rows taken together */
    for (int r = lo; r <= hi; r += step) {
        double weight = 0, sum = 0;
        for (int i = r; i < r + step && i <= hi; i++) {
            double log_p = lgamma(draws + 1) - lgamma(i + 1.0) - lgamma(draws - i + 1) +
                           i * log(p) + (draws - i) * log1p(-p);
            weight += exp(log_p);
            sum += i * exp(log_p);
        }
        if (weight >= 1e-12 && sum > 0)
            spread_add(s, step == 1 ? r : fmax(1, sum / weight), groups * weight);
    }
}

double host_spread_busy(const struct host_spread *s)
{
    double n = 0;
    for (int i = 0; i < s->n; i++)
        if (s->rows[i] > 0) n += s->groups[i];
    return n;
}

double host_spread_rows(const struct host_spread *s)
{
    double n = 0;
    for (int i = 0; i < s->n; i++) n += s->rows[i] * s->groups[i];
    return n;
}

/* ---- products -------------------------------------------------------------------------------- */

static double panels_of(const struct host_speed *s, const struct host_weights *w)
{
    int columns = s->panel[w->type];
    return ceil((double)w->n0 / columns) + ceil((double)w->n1 / columns);
}

double host_weights_bytes(const struct host_speed *s, const struct host_weights *w)
{
    static const double element[SPEED_TYPES] = {4, 2, 1};
    return panels_of(s, w) * s->panel[w->type] * w->k * element[w->type];
}

static double at_rows(const double *table, double rows)
{
    return curve(SPEED_ROWS, host_speed_rows, table, rows);
}

/* All blocks of k of one panel, `rows` rows. */
static double panel_us(const struct host_view *v, const struct host_weights *w, double rows,
                       double cold)
{
    const struct speed_gemm *g = &v->s->gemm[w->type];
    double hot =
        mix(at_rows(g->block[SPEED_ONE], rows), at_rows(g->block[SPEED_ALL], rows), v->all);
    double far = mix(at_rows(g->cold[SPEED_ONE], rows), at_rows(g->cold[SPEED_ALL], rows), v->all);
    double block = mix(hot, fmax(far, hot), cold), shallow = at_rows(g->shallow, rows);
    double full = floor((double)w->k / DEPTH), rest = w->k - full * DEPTH;
    double us = full * block + at_rows(g->panel, rows);
    if (rest > 0) {
        double part = fmin(hot, shallow + (hot - shallow) * (rest - SHALLOW) / (DEPTH - SHALLOW));
        us += fmax(part, 0.25 * shallow) + (block - hot) * rest / DEPTH;
    }
    return us;
}

struct work {
    double us;    /* of one thread */
    double each;  /* what every thread does for itself: its copy of the rows */
    double units; /* (block of rows, panel) pairs that threads can share out */
};

static void add_group(const struct host_view *v, const struct host_weights *w, double m,
                      double groups, double block_rows, struct work *out)
{
    const struct speed_gemm *g = &v->s->gemm[w->type];
    double panels = panels_of(v->s, w), blocks = ceil(m / block_rows), rows = m / blocks;
    double depth = ceil((double)w->k / DEPTH);
    /* The first rows bring the weights in; the other blocks of rows find them in a cache. */
    double us = panels * panel_us(v, w, rows, v->cold) + v->cold * g->cold_call;
    if (blocks > 1) us += (blocks - 1) * panels * panel_us(v, w, rows, 0);
    out->each += groups * blocks * depth * at_rows(g->pack, rows);
    out->us += groups * us;
    out->units += groups * panels * blocks;
}

double host_product_us(const struct host_view *v, const struct host_weights *w,
                       const struct host_spread *spread)
{
    const struct speed_gemm *g = &v->s->gemm[w->type];
    double multiplies = 0, groups = 0, longest = 0, panels = panels_of(v->s, w);
    for (int i = 0; i < spread->n; i++) {
        if (!(spread->rows[i] > 0)) continue;
        groups += spread->groups[i];
        multiplies += spread->groups[i] * spread->rows[i] * (w->n0 + w->n1) * w->k;
        if (spread->groups[i] > 0.05) longest = fmax(longest, spread->rows[i]);
    }
    if (!(groups > 0) || w->n0 + w->n1 == 0) return 0;
    double bytes = groups * host_weights_bytes(v->s, w);
    double threads = multiplies > 1e6 || bytes > 256e3 ? v->threads : 1, block_rows = BLOCK_ROWS;
    while (threads > 1 && block_rows > 2 * TILE_ROWS &&
           panels * groups * ceil(longest / block_rows) < threads * PIECES)
        block_rows = ceil(block_rows / 2);
    struct work work = {0, 0, 0};
    for (int i = 0; i < spread->n; i++)
        if (spread->rows[i] > 0)
            add_group(v, w, spread->rows[i], spread->groups[i], block_rows, &work);
    if (threads <= 1) return g->call + work.us + work.each;
    /* Pieces: four a thread, of whole (rows, panel) units. */
    double units = fmax(1, work.units), in_piece = ceil(units / (threads * PIECES));
    double rounds = ceil(ceil(units / in_piece) / threads);
    double share = units <= threads * PIECES * 4 ? rounds * in_piece / units : 1 / threads;
    share = fmin(1, fmax(share, 1 / threads));
    double copies = groups < threads * PIECES ? fmin(threads, 1 / share) * share : share;
    return g->call + fork_us(v) + work.us * share + work.each * copies;
}

double host_dense_us(const struct host_view *v, const struct host_weights *w, double m)
{
    struct host_spread s = host_spread_equal(1, m);
    return host_product_us(v, w, &s);
}

/* ---- rows ------------------------------------------------------------------------------------ */

void host_rows_features(double m, double n, double f[SPEED_COEFS])
{
    double elements = m * n, beyond = elements - HOST_NEAR_ELEMENTS;
    double all[SPEED_COEFS] = {1, m, elements, beyond > 0 ? beyond : 0};
    memcpy(f, all, sizeof all);
}

/* Whether the kernel wakes its threads for so many rows. */
static bool rows_parallel(enum speed_rows op, double m, double n)
{
    switch (op) {
    case SPEED_RMSNORM:
    case SPEED_SILU:
    case SPEED_ADD:
    case SPEED_ROPE:
    case SPEED_KV_WRITE: return m > 1 && m * n > (1 << 14);
    case SPEED_CONVERT_BF16:
    case SPEED_CONVERT_FP8: return m * n >= (1 << 17);
    case SPEED_GATE: return m > 8;
    default: return false;
    }
}

double host_rows_us(const struct host_view *v, enum speed_rows op, double m, double n)
{
    double f[SPEED_COEFS];
    if (!(m > 0) || !(n > 0)) return 0;
    host_rows_features(m, n, f);
    const double *coef = v->s->rows[op];
    double us = host_dot(coef, f);
    if (v->threads <= 1 || !rows_parallel(op, m, n)) return us;
    double share = ceil(m / v->threads) / m;
    return coef[0] + fork_us(v) + (us - coef[0]) * share;
}

/* ---- attention ------------------------------------------------------------------------------- */

static double padded(int dim)
{
    return ceil(dim / 16.0) * 16;
}

void host_prefill_features(const struct host_heads *h, double m, double pos0, double f[SPEED_COEFS])
{
    double dim_k = h->dim_nope + h->dim_rope, dim_v = padded(h->dim_v), tiles = ceil(m / TILE);
    double keys = 0, pairs = 0;
    for (int i = 0; i < (int)tiles; i++) {
        double before = pos0 + (double)i * TILE, rows = fmin(TILE, m - (double)i * TILE);
        keys += before + rows;
        /* The products take whole blocks of keys for a group of rows. */
        pairs += rows * (before + 0.5 * (rows + 8));
    }
    double n = h->heads;
    double all[SPEED_COEFS] = {1,
                               n * tiles,
                               n * keys * (dim_k + dim_v),
                               n * pairs * dim_k,
                               n * pairs,
                               n * pairs * dim_v,
                               n * m * dim_v,
                               n * m * dim_k};
    memcpy(f, all, sizeof all);
}

/* Units of equal work over threads. */
static double shared_us(const struct host_view *v, double us, double call, double units,
                        double multiplies)
{
    if (v->threads <= 1 || units <= 1 || multiplies <= 1e6) return us;
    double share = units < 8 * v->threads ? ceil(units / v->threads) / units : 1 / v->threads;
    return call + fork_us(v) + (us - call) * share;
}

double host_prefill_us(const struct host_view *v, const struct host_heads *h, double m, double pos0)
{
    double f[SPEED_COEFS];
    if (!(m > 0)) return 0;
    host_prefill_features(h, m, pos0, f);
    double pairs = m * (pos0 + 0.5 * (m + 1)) * h->heads;
    double multiplies = pairs * (h->dim_nope + h->dim_rope + h->dim_v);
    const double *coef = v->s->prefill_attention;
    return shared_us(v, host_dot(coef, f), coef[0], f[1], multiplies);
}

void host_decode_features(const struct host_heads *h, double m, double keys, double parts,
                          double f[SPEED_COEFS])
{
    double dim_k = h->kv_lora + h->dim_rope, dim_v = padded(h->kv_lora), n = h->heads;
    double tiles = ceil(n / TILE);
    double all[SPEED_COEFS] = {1,
                               m * tiles,
                               tiles * keys * (dim_k + dim_v),
                               n * keys * dim_k,
                               n * keys,
                               n * keys * dim_v,
                               n * parts * dim_v,
                               n * m * dim_k};
    memcpy(f, all, sizeof all);
}

double host_decode_us(const struct host_view *v, const struct host_heads *h, double m, double keys,
                      double parts)
{
    double f[SPEED_COEFS];
    if (!(m > 0) || !(keys > 0)) return 0;
    host_decode_features(h, m, keys, parts, f);
    const double *coef = v->s->decode_attention;
    double us = host_dot(coef, f), units = f[1];
    /* Keys from memory: as weights of the same bytes. */
    const struct speed_gemm *g = &v->s->gemm[SPEED_BF16];
    double far = mix(g->cold[SPEED_ONE][0], g->cold[SPEED_ALL][0], v->all) -
                 mix(g->block[SPEED_ONE][0], g->block[SPEED_ALL][0], v->all);
    double bytes = keys * (h->kv_lora + h->dim_rope) * 2;
    us += v->cold * fmax(0, far) * bytes / (2.0 * DEPTH * v->s->panel[SPEED_BF16]);
    if (units < v->threads && parts > m) {
        double share = fmin(v->threads, parts / m);
        return coef[0] + fork_us(v) + (us - coef[0]) / share;
    }
    double multiplies = keys * h->heads * (2 * h->kv_lora + h->dim_rope);
    return shared_us(v, us, coef[0], units, multiplies);
}

/* ---- the all-to-all -------------------------------------------------------------------------- */

void host_ep_features(double tokens, double topk, double bytes, double hidden, double slots,
                      double f[SPEED_COEFS])
{
    double rows = tokens * topk;
    double all[SPEED_COEFS] = {1, tokens, rows, rows * bytes, slots, tokens * hidden};
    memcpy(f, all, sizeof all);
}

int host_ranks_find(const double *list, int n, int ranks)
{
    for (int i = 0; i < n; i++)
        if ((int)list[i] == ranks) return i;
    return -1;
}

double host_ep_us(const struct host_speed *s, int ranks, int low_latency, enum speed_ep_part part,
                  const double f[SPEED_COEFS])
{
    int i = host_ranks_find(s->ep.ranks, s->ep.n, ranks);
    return i < 0 ? 0 : host_dot(s->ep.part[i][low_latency][part], f);
}

/* ---- fitting --------------------------------------------------------------------------------- */

/* Coordinate descent on the normal equations: few features, convex, no negative coefficients. */
void host_fit(int points, int n_features, const double (*x)[SPEED_COEFS], const double *y,
              const double *scale, double coef[SPEED_COEFS])
{
    enum { ROUNDS = 20000 };
    double a[SPEED_COEFS][SPEED_COEFS] = {{0}}, b[SPEED_COEFS] = {0}, unit[SPEED_COEFS] = {0};
    double c[SPEED_COEFS] = {0};
    if (!scale) scale = y;
    for (int p = 0; p < points; p++)
        for (int i = 0; i < n_features; i++) unit[i] = fmax(unit[i], fabs(x[p][i] / scale[p]));
    for (int p = 0; p < points; p++)
        for (int i = 0; i < n_features; i++) {
            double xi = unit[i] > 0 ? x[p][i] / scale[p] / unit[i] : 0;
            b[i] += xi * y[p] / scale[p];
            for (int j = 0; j < n_features; j++)
                a[i][j] += unit[j] > 0 ? xi * x[p][j] / scale[p] / unit[j] : 0;
        }
    for (int round = 0; round < ROUNDS; round++) {
        double moved = 0;
        for (int i = 0; i < n_features; i++) {
            if (!(a[i][i] > 0)) continue;
            double rest = b[i];
            for (int j = 0; j < n_features; j++)
                if (j != i) rest -= a[i][j] * c[j];
            double next = fmax(0, rest / a[i][i]);
            moved = fmax(moved, fabs(next - c[i]));
            c[i] = next;
        }
        if (moved < 1e-12) break;
    }
    memset(coef, 0, SPEED_COEFS * sizeof *coef);
    for (int i = 0; i < n_features; i++) coef[i] = unit[i] > 0 ? c[i] / unit[i] : 0;
}
