/* engine_time.c - sets a job up for engine_sim.c and turns what happened into figures. */
#include "cluster/engine_time.h"

#include "cluster/engine_sim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MANY_PAGES = 1 << 30 };

/* ---- setup ----------------------------------------------------------------------------------- */

/* Mean share of each expert over the layers. */
static double *popularity_of(const struct engine_time_setup *s)
{
    const struct model_config *c = s->model;
    double *p = calloc((size_t)c->experts + 1, sizeof *p), sum = 0;
    for (int l = 0; p && l < c->layers; l++)
        for (int e = 0; e < c->experts; e++)
            p[e] += s->expert_load[(size_t)l * (size_t)c->experts + (size_t)e];
    for (int e = 0; p && e < c->experts; e++) sum += p[e];
    for (int e = 0; p && e < c->experts; e++) p[e] /= sum > 0 ? sum : 1;
    return p;
}

static int ranks_of(const struct job_role *r)
{
    return r->present ? r->units * r->ep : 0;
}

static struct engine_unit unit_facts(const struct engine_sim *m, const struct job_role *role,
                                     bool decode, const double *popularity)
{
    const struct engine_time_setup *s = m->s;
    int ranks = ranks_of(&s->job->prefill) + ranks_of(&s->job->decode) + ranks_of(&s->job->mixed);
    int node = s->job->ranks_per_node > 0 ? s->job->ranks_per_node : ranks;
    return (struct engine_unit){.host = s->host,
                                .model = s->model,
                                .decode = decode,
                                .fp8 = s->fp8_experts,
                                .numerics = s->job->numerics,
                                .ep = role->ep,
                                .redundant = role->redundant_experts,
                                .threads = s->job->threads_per_rank,
                                .node_ranks = role->ep < node ? role->ep : node,
                                .busy = (double)node * s->job->threads_per_rank,
                                .popularity = popularity};
}

static enum status add_units(struct engine_sim *m, const struct job_role *role, bool prefills,
                             bool decodes, const double *popularity)
{
    for (int i = 0; role->present && i < role->units; i++) {
        struct engine_unit_state *u = &m->unit[m->units++];
        *u = (struct engine_unit_state){.prefills = prefills,
                                        .decodes = decodes,
                                        .ranks = role->ep,
                                        .role = role,
                                        .running = KIND_NONE,
                                        .last = KIND_NONE,
                                        .first_prefill = i * role->ep,
                                        .first_decode = i * role->ep};
        for (int k = 0; k < 2; k++) {
            if (!(k ? decodes : prefills)) continue;
            struct engine_unit facts = unit_facts(m, role, k, popularity);
            TRY(engine_step_create(&facts, role->microbatches, role->overlap, &u->step[k]));
        }
    }
    return OK;
}

static enum status make_ranks(int n, int max_batch, struct engine_rank **out)
{
    *out = calloc((size_t)n, sizeof **out);
    if (!*out) return error_set(ERR_RESOURCE, "out of memory");
    for (int i = 0; i < n; i++) {
        (*out)[i].active = calloc((size_t)max_batch + 1, sizeof *(*out)[i].active);
        if (!(*out)[i].active) return error_set(ERR_RESOURCE, "out of memory");
    }
    return OK;
}

static enum status setup_sim(struct engine_sim *m, const double *popularity)
{
    const struct job *job = m->s->job;
    m->mixed = job->mixed.present;
    const struct job_role *p = m->mixed ? &job->mixed : &job->prefill;
    const struct job_role *d = m->mixed ? &job->mixed : &job->decode;
    m->n_prefill = ranks_of(p);
    m->n_decode = ranks_of(d);
    m->unit = calloc((size_t)(p->units + d->units), sizeof *m->unit);
    m->f = calloc((size_t)m->s->n_requests + 1, sizeof *m->f);
    m->may = calloc((size_t)m->n_prefill, sizeof *m->may);
    if (!m->unit || !m->f || !m->may) return error_set(ERR_RESOURCE, "out of memory");
    if (m->mixed) {
        TRY(add_units(m, p, true, true, popularity));
    } else {
        TRY(add_units(m, p, true, false, popularity));
        TRY(add_units(m, d, false, true, popularity));
    }
    TRY(make_ranks(m->n_prefill, m->mixed ? d->max_batch : 1, &m->prefill));
    if (m->mixed)
        m->decode = m->prefill;
    else
        TRY(make_ranks(m->n_decode, d->max_batch, &m->decode));
    struct prefill_weights w = prefill_weights_default();
    TRY(prefill_balance_init(&m->pb, p->units, p->ep, &w));
    int pages = m->s->pages[m->mixed ? 0 : 1];
    struct decode_limits limits = {.units = d->units,
                                   .ranks_per_unit = d->ep,
                                   .pages = pages > 0 ? (uint32_t)pages : MANY_PAGES,
                                   .page_tokens = (uint32_t)job->kv.page_tokens,
                                   .max_batch = (uint32_t)(d->max_batch + d->max_batch / 4 + 1),
                                   .high_water = 0.95};
    TRY(decode_balance_init(&m->db, &limits));
    for (int k = 0; k < 2; k++) {
        m->first_start[k] = INFINITY;
        m->last_end[k] = -INFINITY;
    }
    return OK;
}

static void free_sim(struct engine_sim *m)
{
    for (int i = 0; i < m->n_prefill && m->prefill; i++) free(m->prefill[i].active);
    for (int i = 0; i < m->n_decode && m->decode && !m->mixed; i++) free(m->decode[i].active);
    if (!m->mixed) free(m->decode);
    free(m->prefill);
    for (int i = 0; i < m->units; i++)
        for (int k = 0; k < 2; k++) engine_step_free(&m->unit[i].step[k]);
    free(m->unit);
    free(m->f);
    free(m->may);
    prefill_balance_free(&m->pb);
    decode_balance_free(&m->db);
}

/* ---- figures --------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct engine_quantiles quantiles(double *v, int64_t n)
{
    struct engine_quantiles q = {NAN, NAN, NAN, NAN};
    if (n == 0) return q;
    qsort(v, (size_t)n, sizeof *v, by_value);
    double sum = 0, at[] = {0.5, 0.9, 0.99};
    for (int64_t i = 0; i < n; i++) sum += v[i];
    double *to[] = {&q.p50, &q.p90, &q.p99};
    for (int k = 0; k < 3; k++) {
        int64_t i = (int64_t)ceil(at[k] * (double)n) - 1;
        *to[k] = v[i < 0 ? 0 : i];
    }
    q.mean = sum / (double)n;
    return q;
}

static enum status latencies(const struct engine_sim *m, struct engine_time *out)
{
    int64_t n = m->s->n_requests, ttft = 0, tpot = 0;
    double *a = malloc((size_t)(n + 1) * sizeof *a), *b = malloc((size_t)(n + 1) * sizeof *b);
    for (int64_t i = 0; a && b && i < n; i++) {
        const struct engine_flight *f = &m->f[i];
        const struct engine_request *q = engine_request_of(m, i);
        out->cached_tokens += q->cached;
        out->output_tokens += q->output;
        if (q->output > 0) a[ttft++] = f->first - f->arrival;
        if (q->output > 1) b[tpot++] = (f->finish - f->first) / (q->output - 1);
    }
    enum status st = a && b ? OK : error_set(ERR_RESOURCE, "out of memory");
    if (st == OK) {
        out->ttft_s = quantiles(a, ttft);
        out->tpot_s = quantiles(b, tpot);
    }
    free(a);
    free(b);
    return st;
}

static enum status figures(const struct engine_sim *m, struct engine_time *out)
{
    double span[2], per_unit[2];
    memset(out, 0, sizeof *out);
    for (int k = 0; k < 2; k++) {
        const struct job_role *r = m->mixed ? &m->s->job->mixed
                                   : k      ? &m->s->job->decode
                                            : &m->s->job->prefill;
        span[k] = m->steps[k] ? m->last_end[k] - m->first_start[k] : 0;
        per_unit[k] = m->step_s[k] / r->units;
        for (int i = 0; i < ENGINE_STAGES; i++)
            out->stage_ms[k][i] = m->steps[k] ? 1e3 * m->stage_s[k][i] / (double)m->steps[k] : 0;
        out->busy[k] = m->step_s[k] > 0 ? m->busy_s[k] / m->step_s[k] : 0;
        out->exposed[k] = m->step_s[k] > 0 ? m->exposed_s[k] / m->step_s[k] : 0;
    }
    out->total_s = m->now;
    out->prefill_tokens = m->tokens[KIND_PREFILL];
    out->decode_tokens = m->tokens[KIND_DECODE];
    out->prefill_steps = m->steps[KIND_PREFILL];
    out->decode_steps = m->steps[KIND_DECODE];
    out->prefill_span_s = span[KIND_PREFILL];
    out->decode_span_s = span[KIND_DECODE];
    out->prefill_step_s = per_unit[KIND_PREFILL];
    out->decode_step_s = per_unit[KIND_DECODE];
    out->prefill_tokens_per_s =
        span[KIND_PREFILL] > 0 ? (double)out->prefill_tokens / span[KIND_PREFILL] : (double)NAN;
    out->decode_tokens_per_s =
        span[KIND_DECODE] > 0 ? (double)out->decode_tokens / span[KIND_DECODE] : (double)NAN;
    out->mean_batch = m->batch_steps ? (double)m->batch_rows / (double)m->batch_steps : 0;
    return latencies(m, out);
}

static void notes(const struct engine_sim *m, struct engine_time *out)
{
    const struct engine_unit *u = &m->unit[0].step[m->unit[0].prefills ? 0 : 1].unit;
    out->oversubscribed = u->busy > m->s->host->cores;
    if (out->oversubscribed)
        snprintf(out->note, sizeof out->note,
                 "%.0f threads on a node of %d cores: times are those "
                 "of enough cores, the run will take longer",
                 u->busy, m->s->host->cores);
}

enum status engine_time_predict(const struct engine_time_setup *setup, struct engine_time *out)
{
    struct engine_sim *m = calloc(1, sizeof *m);
    double *popularity = setup->expert_load && setup->model->experts ? popularity_of(setup) : NULL;
    if (!m) {
        free(popularity);
        return error_set(ERR_RESOURCE, "out of memory");
    }
    m->s = setup;
    enum status st = setup_sim(m, popularity);
    if (st == OK) st = engine_simulate(m);
    if (st == OK) st = figures(m, out);
    if (st == OK) notes(m, out);
    free_sim(m);
    free(m);
    free(popularity);
    return st;
}
