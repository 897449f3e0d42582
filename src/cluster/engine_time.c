/* engine_time.c - the engine's job in simulated time; see engine_time.h.
 *
 * Events are the ends of steps and the arrivals of KV at decode ranks. Between two of them the
 * router sends out what fits and idle units with work begin a step, as rank_loop and tick do.
 */
#include "cluster/engine_time.h"

#include "balance/decode_balance.h"
#include "balance/prefill_balance.h"
#include "cluster/engine_step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PIECES = 1024, MANY_PAGES = 1 << 30 };
enum kind { KIND_PREFILL, KIND_DECODE, KIND_NONE };

struct flight {
    double arrival, first, finish, ready; /* s; ready: its KV is at the decode rank */
    int32_t computed, produced;
    int32_t prefill, decode;              /* ranks of each role */
    uint32_t pages;
    int32_t next;                         /* in a rank's list, -1: last */
};

struct list {
    int32_t head, tail, n;
};

struct rank {
    struct list queue, waiting;
    int32_t *active;                      /* [max_batch] */
    int n_active;
    double resident, resident_peak;       /* KV tokens */
};

struct unit {
    bool prefills, decodes;
    int first_prefill, first_decode, ranks; /* ranks: of the unit, in each role's numbering */
    const struct job_role *role;
    struct engine_step step[2];
    enum kind running, last;
    double end, extra;                    /* s; extra: work of polls, added to the next step */
    double rows_peak;
    bool leads;                           /* world rank 0 is in it */
};

struct sim {
    const struct engine_time_setup *s;
    struct flight *f;
    struct rank *prefill, *decode;        /* the same array where units are mixed */
    struct unit *unit;
    int units, n_prefill, n_decode;
    bool mixed;
    struct prefill_balance pb;
    bool *may; /* [prefill ranks] of a choice */
    struct decode_balance db;
    int64_t next, finished;
    double now;
    /* figures */
    double first_start[2], last_end[2], step_s[2], busy_s[2], exposed_s[2];
    double stage_s[2][ENGINE_STAGES];
    int64_t steps[2], tokens[2], batch_rows, batch_steps;
};

/* ---- lists ----------------------------------------------------------------------------------- */

static void list_push(struct flight *f, struct list *l, int32_t i)
{
    f[i].next = -1;
    if (l->n++ == 0)
        l->head = i;
    else
        f[l->tail].next = i;
    l->tail = i;
}

static int32_t list_pop(const struct flight *f, struct list *l)
{
    int32_t i = l->head;
    l->head = f[i].next;
    l->n--;
    return i;
}

/* ---- router ---------------------------------------------------------------------------------- */

static const struct engine_request *request(const struct sim *m, int64_t i)
{
    return &m->s->requests[i];
}

static bool choose_ranks(struct sim *m, int64_t i)
{
    const struct engine_request *q = request(m, i);
    struct flight *f = &m->f[i];
    uint32_t prompt = (uint32_t)q->prompt;
    const struct job_role *p = m->mixed ? &m->s->job->mixed : &m->s->job->prefill;
    f->pages = decode_expected_pages(prompt, (uint32_t)q->output, 0, m->db.mean_output,
                                     (uint32_t)m->s->job->kv.page_tokens);
    prefill_balance_room(&m->pb, (uint32_t)p->chunk_tokens, m->mixed ? &m->db : NULL, f->pages,
                         prompt, m->may);
    f->prefill = prefill_balance_pick(&m->pb, prompt, NULL, m->may);
    f->decode = -1;
    if (f->prefill < 0) return false;
    if (m->mixed) f->decode = f->prefill;
    else if (q->output > 1) f->decode = decode_balance_pick(&m->db, f->pages, prompt);
    return f->decode >= 0 || q->output <= 1;
}

static void send_out(struct sim *m)
{
    const struct host_speed *h = m->s->host;
    for (; m->next < m->s->n_requests && choose_ranks(m, m->next); m->next++) {
        const struct engine_request *q = request(m, m->next);
        struct flight *f = &m->f[m->next];
        uint32_t cached = (uint32_t)q->cached;
        prefill_balance_add(&m->pb, f->prefill, cached, (uint32_t)q->prompt - cached);
        if (f->decode >= 0) decode_balance_add(&m->db, f->decode, f->pages);
        f->arrival = m->now;
        f->computed = q->cached;
        list_push(m->f, &m->prefill[f->prefill].queue, (int32_t)m->next);
        m->unit[0].extra += (h->engine.request + h->engine.prompt_token * q->prompt) * 1e-6;
    }
}

static void first_token(struct sim *m, int64_t i, double at)
{
    const struct engine_request *q = request(m, i);
    m->f[i].first = at;
    prefill_balance_done(&m->pb, m->f[i].prefill, (uint32_t)q->cached,
                         (uint32_t)(q->prompt - q->cached));
}

static void answer(struct sim *m, int64_t i, double at)
{
    struct flight *f = &m->f[i];
    f->finish = at;
    if (f->decode >= 0) decode_balance_remove(&m->db, f->decode, f->pages);
    decode_balance_finished(&m->db, (uint32_t)request(m, i)->output);
    m->finished++;
}

/* ---- prefill --------------------------------------------------------------------------------- */

/* Rows of one micro-batch of one rank, added to the unit's largest. */
struct share {
    double tokens, core_us, calls;
};

/* KV in memory that was never used before costs page faults. */
static double fault_s(const struct sim *m, struct rank *r, const struct unit *u, double tokens)
{
    r->resident += tokens;
    if (r->resident <= r->resident_peak) return 0;
    double kb = (r->resident - r->resident_peak) * m->s->model->layers *
                engine_kv_row_bytes(&u->step[u->prefills ? 0 : 1].unit) / 1024;
    r->resident_peak = r->resident;
    return kb * m->s->host->engine.fault * 1e-6;
}

static void add_piece(const struct sim *m, const struct unit *u, const struct host_view *v,
                      int32_t i, double pos0, double n, struct share *to)
{
    if (!(n > 0)) return;
    const struct engine_request *q = request(m, i);
    to->tokens += n;
    to->core_us += engine_segment_us(&u->step[KIND_PREFILL].unit, v, n, pos0);
    if (pos0 + n == q->prompt && q->output > 0) to->calls++;
}

/* The chunk of a rank, as prefill.c fills and cuts it. */
static double rank_chunk(struct sim *m, struct unit *u, const struct host_view *v, struct rank *r,
                         struct share share[SCHEDULE_MAX_MB])
{
    struct prefill_piece want[MAX_PIECES], take[MAX_PIECES];
    int32_t seq[MAX_PIECES];
    int n = 0, mbs = u->step[KIND_PREFILL].list.micro_batches;
    uint32_t tokens = 0;
    double extra = 0;
    for (int32_t i = r->queue.n ? r->queue.head : -1; i >= 0 && n < MAX_PIECES; i = m->f[i].next) {
        if (tokens >= (uint32_t)u->role->chunk_tokens) break;
        seq[n] = i;
        want[n] = (struct prefill_piece){(uint32_t)m->f[i].computed,
                                         (uint32_t)(request(m, i)->prompt - m->f[i].computed)};
        tokens += want[n++].n;
    }
    n = prefill_chunk_fill(want, n, (uint32_t)u->role->chunk_tokens, MAX_PIECES, take);
    struct prefill_weights w = prefill_weights_default();
    struct microbatch_cut cut = {n, 0};
    if (mbs > 1) cut = microbatch_cut(&w, take, n);
    for (int i = 0; i < n; i++) {
        double first = i < cut.piece ? take[i].n : i == cut.piece ? cut.tokens : 0;
        add_piece(m, u, v, seq[i], take[i].pos0, first, &share[0]);
        add_piece(m, u, v, seq[i], take[i].pos0 + first, take[i].n - first, &share[1]);
        m->f[seq[i]].computed += (int32_t)take[i].n;
        m->tokens[KIND_PREFILL] += take[i].n;
        extra += fault_s(m, r, u, take[i].n);
        if (m->f[seq[i]].decode >= 0 && !m->mixed)
            extra += take[i].n * engine_kv_row_bytes(&u->step[KIND_PREFILL].unit) / 1024 *
                     m->s->model->layers * m->s->host->engine.transfer * 1e-6;
    }
    return extra;
}

static double queued_tokens(const struct sim *m, const struct unit *u)
{
    double sum = 0;
    for (int k = 0; k < u->ranks; k++) {
        const struct rank *r = &m->prefill[u->first_prefill + k];
        for (int32_t i = r->queue.n ? r->queue.head : -1; i >= 0; i = m->f[i].next) {
            sum += request(m, i)->prompt - m->f[i].computed;
            if (sum > (double)u->ranks * u->role->chunk_tokens) break;
        }
    }
    return fmin(sum, (double)u->ranks * u->role->chunk_tokens) / u->ranks;
}

static double prefill_step(struct sim *m, struct unit *u, struct engine_step_time *t)
{
    struct engine_step *step = &u->step[KIND_PREFILL];
    int mbs = step->list.micro_batches;
    struct host_view v = engine_unit_view(&step->unit, queued_tokens(m, u), 0);
    struct engine_load load[SCHEDULE_MAX_MB] = {{0}};
    double core[SCHEDULE_MAX_MB] = {0}, extra = 0, rows = 0;
    for (int k = 0; k < u->ranks; k++) {
        struct share share[SCHEDULE_MAX_MB] = {{0}};
        double own = rank_chunk(m, u, &v, &m->prefill[u->first_prefill + k], share);
        extra = fmax(extra, own);
        for (int b = 0; b < mbs; b++) {
            load[b].tokens = fmax(load[b].tokens, share[b].tokens);
            load[b].unit_tokens += share[b].tokens / u->ranks;
            core[b] = fmax(core[b], share[b].core_us);
            load[b].head_calls = fmax(load[b].head_calls, share[b].calls);
        }
    }
    for (int b = 0; b < mbs; b++) {
        load[b].head_rows = load[b].head_calls;
        rows += load[b].tokens;
    }
    if (rows > u->rows_peak) {
        extra += (rows - u->rows_peak) * engine_token_bytes(&step->unit) / 1024 *
                 m->s->host->engine.fault * 1e-6;
        u->rows_peak = rows;
    }
    engine_step_time(step, &v, load, core, 0, t);
    return t->us * 1e-6 + extra;
}

static void prefill_done(struct sim *m, struct unit *u)
{
    const struct host_speed *h = m->s->host;
    for (int k = 0; k < u->ranks; k++) {
        struct rank *r = &m->prefill[u->first_prefill + k];
        while (r->queue.n && m->f[r->queue.head].computed >= request(m, r->queue.head)->prompt) {
            int32_t i = list_pop(m->f, &r->queue);
            const struct engine_request *q = request(m, i);
            m->f[i].produced = q->output > 0;
            first_token(m, i, u->end);
            if (q->output <= 1 || !m->mixed) r->resident -= q->prompt;
            if (q->output <= 1) {
                answer(m, i, u->end);
                continue;
            }
            double kb = m->mixed ? 0
                                 : (double)q->prompt * m->s->model->layers *
                                       engine_kv_row_bytes(&u->step[KIND_PREFILL].unit) / 1024;
            m->f[i].ready = u->end + kb * h->engine.transfer * 1e-6 / m->s->model->layers;
            list_push(m->f, &m->decode[m->f[i].decode].waiting, i);
        }
    }
}

/* ---- decode ---------------------------------------------------------------------------------- */

static void admit(struct sim *m, const struct unit *u, struct rank *r)
{
    while (r->n_active < u->role->max_batch && r->waiting.n &&
           m->f[r->waiting.head].ready <= m->now)
        r->active[r->n_active++] = list_pop(m->f, &r->waiting);
}

static double decode_step(struct sim *m, struct unit *u, struct engine_step_time *t)
{
    struct engine_step *step = &u->step[KIND_DECODE];
    int mbs = step->list.micro_batches, most = 0, all = 0;
    struct engine_load load[SCHEDULE_MAX_MB] = {{0}};
    double keys[SCHEDULE_MAX_MB] = {0}, parts[SCHEDULE_MAX_MB] = {0}, sum_keys = 0, extra = 0;
    for (int k = 0; k < u->ranks; k++) {
        struct rank *r = &m->decode[u->first_decode + k];
        struct engine_load own[SCHEDULE_MAX_MB] = {{0}};
        double own_keys[SCHEDULE_MAX_MB] = {0}, own_parts[SCHEDULE_MAX_MB] = {0};
        admit(m, u, r);
        for (int i = 0; i < r->n_active; i++) {
            const struct engine_request *q = request(m, r->active[i]);
            double len = q->prompt + m->f[r->active[i]].produced;
            int b = i % mbs;
            own[b].tokens++;
            own[b].sampled_rows += q->sampled;
            own[b].logprob_rows += q->logprobs;
            own_keys[b] += len;
            own_parts[b] += ceil(len / 512);
            sum_keys += len;
        }
        extra = fmax(extra, fault_s(m, r, u, r->n_active));
        if (r->n_active > most) most = r->n_active;
        all += r->n_active;
        for (int b = 0; b < mbs; b++) {
            load[b].tokens = fmax(load[b].tokens, own[b].tokens);
            load[b].unit_tokens += own[b].tokens / u->ranks;
            load[b].sampled_rows = fmax(load[b].sampled_rows, own[b].sampled_rows);
            load[b].logprob_rows = fmax(load[b].logprob_rows, own[b].logprob_rows);
            keys[b] = fmax(keys[b], own_keys[b]);
            parts[b] = fmax(parts[b], own_parts[b]);
        }
    }
    /* KV in coarse steps, so that the stages of the step before can be used again. */
    double kv = sum_keys * m->s->model->layers * engine_kv_row_bytes(&step->unit);
    kv = kv > 0 ? exp2(round(log2(kv) * 4) / 4) : 0;
    struct host_view v = engine_unit_view(&step->unit, (double)all / u->ranks, kv);
    double core[SCHEDULE_MAX_MB] = {0};
    for (int b = 0; b < mbs; b++) {
        core[b] = engine_keys_us(&step->unit, &v, load[b].tokens, keys[b], parts[b]);
        load[b].head_rows = load[b].tokens;
        load[b].head_calls = load[b].tokens > 0;
    }
    engine_step_time(step, &v, load, core, most, t);
    m->tokens[KIND_DECODE] += all;
    m->batch_rows += all;
    m->batch_steps += u->ranks;
    return t->us * 1e-6 + extra;
}

static void decode_done(struct sim *m, struct unit *u)
{
    for (int k = 0; k < u->ranks; k++) {
        struct rank *r = &m->decode[u->first_decode + k];
        int kept = 0;
        for (int i = 0; i < r->n_active; i++) {
            int32_t s = r->active[i];
            const struct engine_request *q = request(m, s);
            if (++m->f[s].produced < q->output) {
                r->active[kept++] = s;
                continue;
            }
            r->resident -= q->prompt + q->output - 1;
            answer(m, s, u->end);
        }
        r->n_active = kept;
    }
}

/* ---- units ----------------------------------------------------------------------------------- */

static bool can_prefill(const struct sim *m, const struct unit *u)
{
    for (int k = 0; u->prefills && k < u->ranks; k++)
        if (m->prefill[u->first_prefill + k].queue.n) return true;
    return false;
}

/* Whether it may decode at `at`, and when else. */
static bool can_decode(const struct sim *m, const struct unit *u, double at, double *when)
{
    bool can = false;
    for (int k = 0; u->decodes && k < u->ranks; k++) {
        const struct rank *r = &m->decode[u->first_decode + k];
        if (r->n_active) can = true;
        if (!r->waiting.n) continue;
        double ready = m->f[r->waiting.head].ready;
        if (ready <= at)
            can = true;
        else
            *when = fmin(*when, ready);
    }
    return can;
}

static void add_stages(double to[ENGINE_STAGES], const double us[STAGE_COUNT])
{
    static const int column[STAGE_COUNT] = {
        [STAGE_ATTN] = 0, [STAGE_ATTN_0] = 0, [STAGE_ATTN_1] = 0, [STAGE_DISPATCH] = 1,
        [STAGE_MLP] = 2, [STAGE_DENSE_MLP] = 2, [STAGE_SHARED] = 3, [STAGE_COMBINE] = 4,
        [STAGE_EMBED] = 5, [STAGE_HEAD] = 5};
    for (int i = 0; i < STAGE_COUNT; i++) to[column[i]] += us[i] * 1e-6;
}

static void begin_step(struct sim *m, struct unit *u, enum kind kind)
{
    struct engine_step_time t;
    double s = kind == KIND_PREFILL ? prefill_step(m, u, &t) : decode_step(m, u, &t);
    s += u->extra;
    u->extra = 0;
    u->running = u->last = kind;
    u->end = m->now + s;
    m->first_start[kind] = fmin(m->first_start[kind], m->now);
    m->last_end[kind] = fmax(m->last_end[kind], u->end);
    m->step_s[kind] += s;
    m->busy_s[kind] += t.compute_us * 1e-6;
    m->exposed_s[kind] += t.exposed_us * 1e-6;
    m->steps[kind]++;
    add_stages(m->stage_s[kind], t.stage_us);
}

/* Begins what can begin; the time of the next event, infinity without one. */
static double begin_steps(struct sim *m)
{
    double when = INFINITY;
    for (int i = 0; i < m->units; i++) {
        struct unit *u = &m->unit[i];
        if (u->running == KIND_NONE) {
            bool decode = can_decode(m, u, m->now, &when), prefill = can_prefill(m, u);
            if (prefill && !(decode && u->last == KIND_PREFILL))
                begin_step(m, u, KIND_PREFILL);
            else if (decode)
                begin_step(m, u, KIND_DECODE);
        }
        if (u->running != KIND_NONE) when = fmin(when, u->end);
    }
    return when;
}

static void end_steps(struct sim *m)
{
    for (int i = 0; i < m->units; i++) {
        struct unit *u = &m->unit[i];
        if (u->running == KIND_NONE || u->end > m->now) continue;
        enum kind kind = u->running;
        u->running = KIND_NONE;
        (kind == KIND_PREFILL ? prefill_done : decode_done)(m, u);
    }
}

static enum status simulate(struct sim *m)
{
    while (m->finished < m->s->n_requests) {
        send_out(m);
        double when = begin_steps(m);
        if (!isfinite(when))
            return error_set(ERR_RESOURCE, "%lld of %lld requests cannot run: a prompt needs more "
                             "KV pages than a rank has", (long long)(m->s->n_requests - m->finished),
                             (long long)m->s->n_requests);
        m->now = fmax(m->now, when);
        end_steps(m);
    }
    return OK;
}

/* ---- setup ----------------------------------------------------------------------------------- */

/* Mean share of each expert over the layers. */
static double *popularity_of(const struct engine_time_setup *s)
{
    const struct model_config *c = s->model;
    double *p = calloc((size_t)c->experts + 1, sizeof *p), sum = 0;
    for (int l = 0; p && l < c->layers; l++)
        for (int e = 0; e < c->experts; e++) p[e] += s->expert_load[(size_t)l * (size_t)c->experts + (size_t)e];
    for (int e = 0; p && e < c->experts; e++) sum += p[e];
    for (int e = 0; p && e < c->experts; e++) p[e] /= sum > 0 ? sum : 1;
    return p;
}

static int ranks_of(const struct job_role *r)
{
    return r->present ? r->units * r->ep : 0;
}

static struct engine_unit unit_facts(const struct sim *m, const struct job_role *role, bool decode,
                                     const double *popularity)
{
    const struct engine_time_setup *s = m->s;
    int ranks = ranks_of(&s->job->prefill) + ranks_of(&s->job->decode) + ranks_of(&s->job->mixed);
    int node = s->job->ranks_per_node > 0 ? s->job->ranks_per_node : ranks;
    return (struct engine_unit){
        .host = s->host, .model = s->model, .decode = decode, .fp8 = s->fp8_experts,
        .numerics = s->job->numerics, .ep = role->ep, .redundant = role->redundant_experts,
        .threads = s->job->threads_per_rank, .node_ranks = role->ep < node ? role->ep : node,
        .busy = (double)node * s->job->threads_per_rank, .popularity = popularity};
}

static enum status add_units(struct sim *m, const struct job_role *role, bool prefills,
                             bool decodes, const double *popularity)
{
    for (int i = 0; role->present && i < role->units; i++) {
        struct unit *u = &m->unit[m->units++];
        *u = (struct unit){.prefills = prefills, .decodes = decodes, .ranks = role->ep,
                           .role = role, .running = KIND_NONE, .last = KIND_NONE,
                           .first_prefill = i * role->ep, .first_decode = i * role->ep};
        for (int k = 0; k < 2; k++) {
            if (!(k ? decodes : prefills)) continue;
            struct engine_unit facts = unit_facts(m, role, k, popularity);
            TRY(engine_step_create(&facts, role->microbatches, role->overlap, &u->step[k]));
        }
    }
    return OK;
}

static enum status make_ranks(int n, int max_batch, struct rank **out)
{
    *out = calloc((size_t)n, sizeof **out);
    if (!*out) return error_set(ERR_RESOURCE, "out of memory");
    for (int i = 0; i < n; i++) {
        (*out)[i].active = calloc((size_t)max_batch + 1, sizeof *(*out)[i].active);
        if (!(*out)[i].active) return error_set(ERR_RESOURCE, "out of memory");
    }
    return OK;
}

static enum status setup_sim(struct sim *m, const double *popularity)
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
    struct decode_limits limits = {
        .units = d->units, .ranks_per_unit = d->ep, .pages = pages > 0 ? (uint32_t)pages : MANY_PAGES,
        .page_tokens = (uint32_t)job->kv.page_tokens,
        .max_batch = (uint32_t)(d->max_batch + d->max_batch / 4 + 1), .high_water = 0.95};
    TRY(decode_balance_init(&m->db, &limits));
    for (int k = 0; k < 2; k++) {
        m->first_start[k] = INFINITY;
        m->last_end[k] = -INFINITY;
    }
    return OK;
}

static void free_sim(struct sim *m)
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

static enum status latencies(const struct sim *m, struct engine_time *out)
{
    int64_t n = m->s->n_requests, ttft = 0, tpot = 0;
    double *a = malloc((size_t)(n + 1) * sizeof *a), *b = malloc((size_t)(n + 1) * sizeof *b);
    for (int64_t i = 0; a && b && i < n; i++) {
        const struct flight *f = &m->f[i];
        const struct engine_request *q = request(m, i);
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

static enum status figures(const struct sim *m, struct engine_time *out)
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

static void notes(const struct sim *m, struct engine_time *out)
{
    const struct engine_unit *u = &m->unit[0].step[m->unit[0].prefills ? 0 : 1].unit;
    out->oversubscribed = u->busy > m->s->host->cores;
    if (out->oversubscribed)
        snprintf(out->note, sizeof out->note, "%.0f threads on a node of %d cores: times are those "
                 "of enough cores, the run will take longer", u->busy, m->s->host->cores);
}

enum status engine_time_predict(const struct engine_time_setup *setup, struct engine_time *out)
{
    struct sim *m = calloc(1, sizeof *m);
    double *popularity = setup->expert_load && setup->model->experts ? popularity_of(setup) : NULL;
    if (!m) {
        free(popularity);
        return error_set(ERR_RESOURCE, "out of memory");
    }
    m->s = setup;
    enum status st = setup_sim(m, popularity);
    if (st == OK) st = simulate(m);
    if (st == OK) st = figures(m, out);
    if (st == OK) notes(m, out);
    free_sim(m);
    free(m);
    free(popularity);
    return st;
}
