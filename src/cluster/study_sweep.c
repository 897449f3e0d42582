/* study_sweep.c - points, their spread over ranks, resuming, the front. */
#include "cluster/study_sweep.h"

#include "cluster/study_plant.h"
#include "config/prices.h"
#include "core/hash.h"
#include "core/log.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { POINTS_MAX = 1000000 };

/* A finished point in PATH.points.RANK. */
struct saved {
    uint64_t study;
    struct study_sweep_row row;
    uint32_t crc, zero;
};

static uint32_t saved_crc(const struct saved *s)
{
    return crc32c(0, s, offsetof(struct saved, crc));
}

void study_sweep_point(struct study_plant *p, struct study_sweep_row *r)
{
    const struct study *s = &p->study;
    const struct workload_targets *t = &s->targets;
    double tps = unit_tokens_per_step(p->decode);
    r->batch = fmin(s->decode.per_gpu, floor(unit_max_batch(p->decode, t->kv_per_output)));
    double step = unit_decode_step_s(p->decode, r->batch, t->kv_per_output);
    double chunk = s->prefill.per_gpu;
    double prefill = unit_prefill_step_s(p->prefill, chunk, chunk * t->prompt);
    r->tpot_s = step / tps;
    r->ttft_s = 1.5 * prefill;
    r->tokens_per_s_request = tps / step;
    r->decode_tokens_per_s_gpu = r->batch * tps / step;
    r->prefill_tokens_per_s_gpu = chunk / prefill;
    /* Prefill GPUs that one decode GPU keeps busy. */
    double miss = t->prompt * (1 - t->hit_ratio) / t->output;
    double asked = r->decode_tokens_per_s_gpu * miss / r->prefill_tokens_per_s_gpu, busy = 1;
    r->prefill_gpus_per_decode_gpu = asked;
    if (r->prefill_units > 0 && r->decode_units > 0) { /* a given deployment: one side may wait */
        double given = (double)r->prefill_units * unit_gpus(p->prefill) /
                       ((double)r->decode_units * unit_gpus(p->decode));
        if (given < asked) busy = given / asked;
        r->prefill_gpus_per_decode_gpu = given;
    }
    r->tokens_per_s_gpu = r->decode_tokens_per_s_gpu * busy / (1 + r->prefill_gpus_per_decode_gpu);
    struct account_usage u = {
        .gpu_seconds = 1,
        .wall_s = 1,
        .ranks = 1,
        .nodes = 1.0 / p->hw.gpus_per_node,
        .hit_tokens = r->tokens_per_s_gpu * t->prompt * t->hit_ratio / t->output,
        .miss_tokens = r->tokens_per_s_gpu * miss,
        .output_tokens = r->tokens_per_s_gpu,
    };
    struct account a = account_compute(&u, &p->prices);
    r->usd_per_m_output = a.usd_cost_per_m_output;
    r->margin_on_cost = a.margin_on_cost;
    r->meets_slo = r->ttft_s <= s->slo.ttft_s && r->tpot_s * 1e3 <= s->slo.tpot_ms;
    r->extrapolated = unit_extrapolated(p->prefill) || unit_extrapolated(p->decode);
    r->feasible = 1;
}

/* The study of a point: digits of `point` in the axes' mixed radix, the last axis fastest. */
static enum status point_study(const struct study *base, const struct sweep_axes *axes, int point,
                               struct study *s, struct study_sweep_row *r)
{
    *s = *base;
    memset(r, 0, sizeof *r);
    r->point = point;
    bool units = false;
    int rest = point, digit[SWEEP_AXES] = {0};
    for (int a = axes->n - 1; a >= 0; a--) {
        digit[a] = rest % axes->axis[a].n;
        rest /= axes->axis[a].n;
    }
    size_t at = 0;
    for (int a = 0; a < axes->n; a++) {
        char set[2 * SWEEP_TEXT + 2];
        snprintf(set, sizeof set, "%s=%s", axes->axis[a].key, axes->axis[a].value[digit[a]]);
        TRY(study_set(s, set));
        if (at < sizeof r->values - 1)
            at +=
                (size_t)snprintf(r->values + at, sizeof r->values - at, "%s%s", a ? " " : "", set);
        units |= !strcmp(axes->axis[a].key, "prefill.units") ||
                 !strcmp(axes->axis[a].key, "decode.units");
    }
    r->prefill_ep = s->prefill.ep;
    r->decode_ep = s->decode.ep;
    if (units) { /* the P:D ratio is swept; else it follows from the workload */
        r->prefill_units = s->prefill.units;
        r->decode_units = s->decode.units;
    }
    return OK;
}

static void run_point(const struct study *s, struct study_files *files, struct study_sweep_row *r)
{
    struct study_plant *p = malloc(sizeof *p);
    enum status st = p ? study_plant_build_from(s, files, p) : error_set(ERR_RESOURCE, "no memory");
    if (st == OK) {
        study_sweep_point(p, r);
        study_plant_free(p);
    } else {
        snprintf(r->reason, sizeof r->reason, "%.*s", (int)sizeof r->reason - 1, error_text());
        error_clear();
    }
    free(p);
}

/* No worse in all three, better in one. */
static bool beats(const struct study_sweep_row *o, const struct study_sweep_row *r)
{
    return o->tokens_per_s_request >= r->tokens_per_s_request &&
           o->tokens_per_s_gpu >= r->tokens_per_s_gpu &&
           o->usd_per_m_output <= r->usd_per_m_output &&
           (o->tokens_per_s_request > r->tokens_per_s_request ||
            o->tokens_per_s_gpu > r->tokens_per_s_gpu || o->usd_per_m_output < r->usd_per_m_output);
}

/* Fast requests first, of these the busier GPU, of these the cheaper: no later row beats an
 * earlier one. */
static int by_speed(const void *x, const void *y)
{
    const struct study_sweep_row *a = *(struct study_sweep_row *const *)x;
    const struct study_sweep_row *b = *(struct study_sweep_row *const *)y;
    if (a->tokens_per_s_request != b->tokens_per_s_request)
        return a->tokens_per_s_request > b->tokens_per_s_request ? -1 : 1;
    if (a->tokens_per_s_gpu != b->tokens_per_s_gpu)
        return a->tokens_per_s_gpu > b->tokens_per_s_gpu ? -1 : 1;
    if (a->usd_per_m_output != b->usd_per_m_output)
        return a->usd_per_m_output < b->usd_per_m_output ? -1 : 1;
    return a->point < b->point ? -1 : 1;
}

enum status study_sweep_mark(struct study_sweep_row *row, int n)
{
    struct study_sweep_row **order = malloc(((size_t)n + 1) * sizeof(struct study_sweep_row *));
    if (!order) return error_set(ERR_RESOURCE, "no memory for the sweep");
    int feasible = 0, front = 0, best = -1;
    for (int i = 0; i < n; i++) {
        row[i].best = row[i].pareto = 0;
        if (!row[i].feasible) continue;
        order[feasible++] = &row[i];
        if (row[i].meets_slo && (best < 0 || row[i].usd_per_m_output < row[best].usd_per_m_output))
            best = i;
    }
    qsort(order, (size_t)feasible, sizeof *order, by_speed);
    for (int i = 0; i < feasible; i++) { /* the front so far is kept at the array's beginning */
        struct study_sweep_row *r = order[i];
        int k = 0;
        while (k < front && !beats(order[k], r)) k++;
        if (k < front) continue;
        r->pareto = 1;
        order[front++] = r;
    }
    if (best >= 0) row[best].best = 1;
    free(order);
    return OK;
}

static uint64_t study_hash(const struct study *s, const struct sweep_axes *axes)
{
    return hash64(s, sizeof *s, hash64(axes, sizeof *axes, 1));
}

static void points_path(const struct study *s, int rank, char path[STUDY_PATH_BYTES + 32])
{
    snprintf(path, STUDY_PATH_BYTES + 32, "%s.points.%d", s->results, rank);
}

/* Rows of an earlier start, whatever its number of ranks. */
static int take_over(const struct study *s, uint64_t hash, struct study_sweep_row *row, int n,
                     bool *done)
{
    int taken = 0;
    for (int rank = 0; rank < 4096; rank++) {
        char path[STUDY_PATH_BYTES + 32];
        struct saved one;
        points_path(s, rank, path);
        FILE *f = fopen(path, "rb");
        if (!f && rank > 0) break;
        while (f && fread(&one, sizeof one, 1, f) == 1) {
            if (one.study != hash || one.crc != saved_crc(&one)) break;
            if (one.row.point < 0 || one.row.point >= n || done[one.row.point]) continue;
            row[one.row.point] = one.row;
            done[one.row.point] = true;
            taken++;
        }
        if (f) fclose(f);
    }
    return taken;
}

static enum status save(FILE *f, uint64_t hash, const struct study_sweep_row *r)
{
    struct saved one;
    memset(&one, 0, sizeof one);
    one.study = hash;
    one.row = *r;
    one.crc = saved_crc(&one);
    if (fwrite(&one, sizeof one, 1, f) != 1 || fflush(f) != 0)
        return error_set(ERR_RESOURCE, "sweep: a finished point cannot be written");
    return OK;
}

/* Rank 0 gets every row that another rank computed. */
static enum status gather(const struct exchange *ex, struct study_sweep_row *mine, int n_mine,
                          struct study_sweep_row *row)
{
    if (ex->size == 1) return OK;
    struct exchange_part *part = calloc(2 * (size_t)ex->size, sizeof *part);
    if (!part) return error_set(ERR_RESOURCE, "no memory for the sweep");
    part[0] = (struct exchange_part){mine, (size_t)n_mine * sizeof *mine};
    if (ex->rank == 0) part[0].bytes = 0;
    enum status st = ex->swap(ex->ctx, part, part + ex->size);
    for (int q = 1; st == OK && ex->rank == 0 && q < ex->size; q++) {
        const struct study_sweep_row *r = part[ex->size + q].data;
        for (size_t i = 0; i < part[ex->size + q].bytes / sizeof *r; i++) row[r[i].point] = r[i];
    }
    free(part);
    return st;
}

/* A hardware, model or price table that cannot be read is a mistake, not a point that cannot be. */
static enum status check_name(const struct study *s)
{
    struct hardware hw;
    struct model_config model;
    struct account_prices prices;
    TRY(hardware_find("inputs/hardware", s->hardware, &hw));
    hardware_free(&hw);
    TRY(model_config_read(s->model, &model));
    return prices_read(s->prices, &prices);
}

static enum status check_names(const struct study *s, const struct sweep_axes *axes)
{
    static const char *const named[] = {"hardware", "model", "prices"};
    for (int a = 0; a < axes->n; a++)
        for (int k = 0; k < 3; k++)
            for (int v = 0; !strcmp(axes->axis[a].key, named[k]) && v < axes->axis[a].n; v++) {
                struct study one = *s;
                char set[2 * SWEEP_TEXT + 2];
                snprintf(set, sizeof set, "%s=%s", named[k], axes->axis[a].value[v]);
                TRY(study_set(&one, set));
                TRY(check_name(&one));
            }
    return check_name(s);
}

struct sweep_work {
    const struct study *s;
    const struct sweep_axes *axes;
    const struct exchange *ex;
    uint64_t hash;
    bool *done;
    struct study_sweep_row *mine;
    int n, n_mine;
};

static enum status all_points(struct sweep_work *w, struct study_sweep_row *row)
{
    char path[STUDY_PATH_BYTES + 32];
    FILE *f = NULL;
    if (*w->s->results) {
        points_path(w->s, w->ex->rank, path);
        f = fopen(path, "ab");
        if (!f) return error_set(ERR_INPUT, "sweep: cannot write %s", path);
    }
    struct study_files files = {.model_name = ""};
    enum status st = OK;
    for (int i = w->ex->rank; i < w->n && st == OK; i += w->ex->size) {
        struct study s;
        if (w->done[i]) continue;
        st = point_study(w->s, w->axes, i, &s, &row[i]);
        if (st != OK) break;
        run_point(&s, &files, &row[i]);
        w->mine[w->n_mine++] = row[i];
        if (f) st = save(f, w->hash, &row[i]);
    }
    study_files_free(&files);
    if (f && fclose(f) != 0 && st == OK)
        st = error_set(ERR_RESOURCE, "sweep: %s cannot be written", path);
    return st;
}

/* All ranks fail together: a collective must not wait for one that gave up. */
static enum status together(const struct exchange *ex, enum status st)
{
    int64_t failed = st != OK;
    TRY(ex->sum(ex->ctx, &failed, 1));
    if (failed && st == OK) return error_set(ERR_RESOURCE, "sweep: another rank failed");
    return st;
}

enum status study_sweep_run(const struct study *s, const struct sweep_axes *axes,
                            const struct exchange *ex, struct study_sweep *out)
{
    memset(out, 0, sizeof *out);
    double points = 1;
    for (int a = 0; a < axes->n; a++) points *= axes->axis[a].n;
    if (points > POINTS_MAX)
        return error_set(ERR_INPUT, "sweep: %.0f points, expected at most %d", points, POINTS_MAX);
    if (!s->has_targets)
        return error_set(ERR_INPUT, "sweep: targets is missing: mean prompt, output, hit ratio and "
                                    "KV per output token of the workload");
    TRY(check_names(s, axes));
    struct sweep_work w = {.s = s, .axes = axes, .ex = ex, .n = (int)points};
    w.hash = study_hash(s, axes);
    out->n = w.n;
    out->row = calloc((size_t)w.n, sizeof *out->row);
    w.mine = calloc((size_t)w.n, sizeof *w.mine);
    w.done = calloc((size_t)w.n, sizeof *w.done);
    enum status st =
        out->row && w.mine && w.done ? OK : error_set(ERR_RESOURCE, "no memory for %d points", w.n);
    if (st == OK && *s->results) out->resumed = take_over(s, w.hash, out->row, w.n, w.done);
    st = together(ex, st); /* nobody writes before all have read */
    if (st == OK) st = together(ex, all_points(&w, out->row));
    if (st == OK) st = gather(ex, w.mine, w.n_mine, out->row);
    if (st == OK && ex->rank == 0) st = study_sweep_mark(out->row, w.n);
    free(w.mine);
    free(w.done);
    if (st != OK) study_sweep_free(out);
    return st;
}

void study_sweep_free(struct study_sweep *s)
{
    free(s->row);
    memset(s, 0, sizeof *s);
}
