/* study_sweep.c - points, their spread over ranks, resuming, the front. */
#include "cluster/study_sweep.h"

#include "cluster/study_plant.h"
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
            at += (size_t)snprintf(r->values + at, sizeof r->values - at, "%s%s", a ? " " : "",
                                   set);
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

static void run_point(const struct study *s, struct study_sweep_row *r)
{
    struct study_plant *p = malloc(sizeof *p);
    enum status st = p ? study_plant_build(s, p) : error_set(ERR_RESOURCE, "no memory");
    if (st == OK) {
        study_sweep_point(p, r);
        study_plant_free(p);
    } else {
        snprintf(r->reason, sizeof r->reason, "%.*s", (int)sizeof r->reason - 1, error_text());
        error_clear();
    }
    free(p);
}

void study_sweep_mark(const struct study *s, struct study_sweep_row *row, int n)
{
    int best = -1;
    (void)s;
    for (int i = 0; i < n; i++) {
        struct study_sweep_row *r = &row[i];
        r->best = 0;
        r->pareto = r->feasible;
        if (!r->feasible) continue;
        for (int k = 0; k < n && r->pareto; k++) {
            const struct study_sweep_row *o = &row[k];
            bool no_worse = o->feasible && o->tokens_per_s_request >= r->tokens_per_s_request &&
                            o->tokens_per_s_gpu >= r->tokens_per_s_gpu &&
                            o->usd_per_m_output <= r->usd_per_m_output;
            bool better = o->tokens_per_s_request > r->tokens_per_s_request ||
                          o->tokens_per_s_gpu > r->tokens_per_s_gpu ||
                          o->usd_per_m_output < r->usd_per_m_output;
            if (no_worse && better) r->pareto = 0;
        }
        if (r->meets_slo && (best < 0 || r->usd_per_m_output < row[best].usd_per_m_output))
            best = i;
    }
    if (best >= 0) row[best].best = 1;
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
    enum status st = OK;
    for (int i = w->ex->rank; i < w->n && st == OK; i += w->ex->size) {
        struct study s;
        if (w->done[i]) continue;
        st = point_study(w->s, w->axes, i, &s, &row[i]);
        if (st != OK) break;
        run_point(&s, &row[i]);
        w->mine[w->n_mine++] = row[i];
        if (f) st = save(f, w->hash, &row[i]);
    }
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
    struct sweep_work w = {.s = s, .axes = axes, .ex = ex, .n = (int)points};
    w.hash = study_hash(s, axes);
    out->n = w.n;
    out->row = calloc((size_t)w.n, sizeof *out->row);
    w.mine = calloc((size_t)w.n, sizeof *w.mine);
    w.done = calloc((size_t)w.n, sizeof *w.done);
    enum status st = out->row && w.mine && w.done
                         ? OK : error_set(ERR_RESOURCE, "no memory for %d points", w.n);
    if (st == OK && *s->results) out->resumed = take_over(s, w.hash, out->row, w.n, w.done);
    st = together(ex, st); /* nobody writes before all have read */
    if (st == OK) st = together(ex, all_points(&w, out->row));
    if (st == OK) st = gather(ex, w.mine, w.n_mine, out->row);
    if (st == OK) study_sweep_mark(s, out->row, w.n);
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

void study_sweep_print(const struct study *s, const struct study_sweep *w, FILE *out)
{
    fprintf(out, "# sweep: %d points, %d taken over from before; SLO: TTFT %g s, TPOT %g ms\n"
                 "# *: cheapest within the SLO; P: on the Pareto front of tok/s/request, "
                 "tok/s/GPU, $/Mtok\n"
                 "#        batch   TPOT_ms  TTFT_s  tok/s/req  dec_tok/s/GPU  pre_tok/s/GPU  "
                 "P:D_GPUs  tok/s/GPU  $/Mtok   margin%%  values\n",
            w->n, w->resumed, s->slo.ttft_s, s->slo.tpot_ms);
    for (int i = 0; i < w->n; i++) {
        const struct study_sweep_row *r = &w->row[i];
        if (!r->feasible) {
            fprintf(out, "  %5d cannot be: %s (%s)\n", r->point, r->values, r->reason);
            continue;
        }
        fprintf(out,
                "%c%c%5d %6.0f %9.2f %7.2f %10.2f %14.0f %14.0f %9.3f %10.0f %7.4f %9.1f  %s\n",
                r->best ? '*' : ' ', r->pareto ? 'P' : ' ', r->point, r->batch, 1e3 * r->tpot_s,
                r->ttft_s, r->tokens_per_s_request, r->decode_tokens_per_s_gpu,
                r->prefill_tokens_per_s_gpu, r->prefill_gpus_per_decode_gpu, r->tokens_per_s_gpu,
                r->usd_per_m_output, 100 * r->margin_on_cost, r->values);
    }
}
