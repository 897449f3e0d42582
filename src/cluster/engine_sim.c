/* engine_sim.c - the events of a job in simulated time: ends of steps and arrivals of KV at decode
 * ranks. Between two of them the router sends out what fits and idle units with work begin a step,
 * as engine/router.c, engine/tick.c, engine/prefill.c and engine/decode.c do.
 */
#include "cluster/engine_sim.h"

#include <math.h>

enum { MAX_PIECES = 1024 };

/* ---- lists ----------------------------------------------------------------------------------- */

static void list_push(struct engine_flight *f, struct engine_list *l, int32_t i)
{
    f[i].next = -1;
    if (l->n++ == 0)
        l->head = i;
    else
        f[l->tail].next = i;
    l->tail = i;
}

static int32_t list_pop(const struct engine_flight *f, struct engine_list *l)
{
    int32_t i = l->head;
    l->head = f[i].next;
    l->n--;
    return i;
}

/* ---- router ---------------------------------------------------------------------------------- */

static bool choose_ranks(struct engine_sim *m, int64_t i)
{
    const struct engine_request *q = engine_request_of(m, i);
    struct engine_flight *f = &m->f[i];
    uint32_t prompt = (uint32_t)q->prompt;
    const struct job_role *p = m->mixed ? &m->s->job->mixed : &m->s->job->prefill;
    f->pages = decode_expected_pages(prompt, (uint32_t)q->output, 0, m->db.mean_output,
                                     (uint32_t)m->s->job->kv.page_tokens);
    prefill_balance_room(&m->pb, (uint32_t)p->chunk_tokens, m->mixed ? &m->db : NULL, f->pages,
                         prompt, m->may);
    f->prefill = prefill_balance_pick(&m->pb, prompt, NULL, m->may);
    f->decode = -1;
    if (f->prefill < 0) return false;
    if (m->mixed)
        f->decode = f->prefill;
    else if (q->output > 1)
        f->decode = decode_balance_pick(&m->db, f->pages, prompt);
    return f->decode >= 0 || q->output <= 1;
}

static void send_out(struct engine_sim *m)
{
    const struct host_speed *h = m->s->host;
    for (; m->next < m->s->n_requests && choose_ranks(m, m->next); m->next++) {
        const struct engine_request *q = engine_request_of(m, m->next);
        struct engine_flight *f = &m->f[m->next];
        uint32_t cached = (uint32_t)q->cached;
        prefill_balance_add(&m->pb, f->prefill, cached, (uint32_t)q->prompt - cached);
        if (f->decode >= 0) decode_balance_add(&m->db, f->decode, f->pages);
        f->arrival = m->now;
        f->computed = q->cached;
        list_push(m->f, &m->prefill[f->prefill].queue, (int32_t)m->next);
        m->unit[0].extra += (h->engine.request + h->engine.prompt_token * q->prompt) * 1e-6;
    }
}

static void first_token(struct engine_sim *m, int64_t i, double at)
{
    const struct engine_request *q = engine_request_of(m, i);
    m->f[i].first = at;
    prefill_balance_done(&m->pb, m->f[i].prefill, (uint32_t)q->cached,
                         (uint32_t)(q->prompt - q->cached));
}

static void answer(struct engine_sim *m, int64_t i, double at)
{
    struct engine_flight *f = &m->f[i];
    f->finish = at;
    if (f->decode >= 0) decode_balance_remove(&m->db, f->decode, f->pages);
    decode_balance_finished(&m->db, (uint32_t)engine_request_of(m, i)->output);
    m->finished++;
}

/* ---- prefill --------------------------------------------------------------------------------- */

/* Rows of one micro-batch of one rank, added to the unit's largest. */
struct share {
    double tokens, core_us, calls;
};

/* KV in memory that was never used before costs page faults. */
static double fault_s(const struct engine_sim *m, struct engine_rank *r,
                      const struct engine_unit_state *u, double tokens)
{
    r->resident += tokens;
    if (r->resident <= r->resident_peak) return 0;
    double kb = (r->resident - r->resident_peak) * m->s->model->layers *
                engine_kv_row_bytes(&u->step[u->prefills ? 0 : 1].unit) / 1024;
    r->resident_peak = r->resident;
    return kb * m->s->host->engine.fault * 1e-6;
}

static void add_piece(const struct engine_sim *m, const struct engine_unit_state *u,
                      const struct host_view *v, int32_t i, double pos0, double n, struct share *to)
{
    if (!(n > 0)) return;
    const struct engine_request *q = engine_request_of(m, i);
    to->tokens += n;
    to->core_us += engine_segment_us(&u->step[KIND_PREFILL].unit, v, n, pos0);
    if (pos0 + n == q->prompt && q->output > 0) to->calls++;
}

/* The chunk of a rank, as prefill.c fills and cuts it. */
static double rank_chunk(struct engine_sim *m, struct engine_unit_state *u,
                         const struct host_view *v, struct engine_rank *r,
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
        want[n] =
            (struct prefill_piece){(uint32_t)m->f[i].computed,
                                   (uint32_t)(engine_request_of(m, i)->prompt - m->f[i].computed)};
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

static double queued_tokens(const struct engine_sim *m, const struct engine_unit_state *u)
{
    double sum = 0;
    for (int k = 0; k < u->ranks; k++) {
        const struct engine_rank *r = &m->prefill[u->first_prefill + k];
        for (int32_t i = r->queue.n ? r->queue.head : -1; i >= 0; i = m->f[i].next) {
            sum += engine_request_of(m, i)->prompt - m->f[i].computed;
            if (sum > (double)u->ranks * u->role->chunk_tokens) break;
        }
    }
    return fmin(sum, (double)u->ranks * u->role->chunk_tokens) / u->ranks;
}

static double prefill_step(struct engine_sim *m, struct engine_unit_state *u,
                           struct engine_step_time *t)
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

static void prefill_done(struct engine_sim *m, struct engine_unit_state *u)
{
    const struct host_speed *h = m->s->host;
    for (int k = 0; k < u->ranks; k++) {
        struct engine_rank *r = &m->prefill[u->first_prefill + k];
        while (r->queue.n &&
               m->f[r->queue.head].computed >= engine_request_of(m, r->queue.head)->prompt) {
            int32_t i = list_pop(m->f, &r->queue);
            const struct engine_request *q = engine_request_of(m, i);
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

static void admit(struct engine_sim *m, const struct engine_unit_state *u, struct engine_rank *r)
{
    while (r->n_active < u->role->max_batch && r->waiting.n &&
           m->f[r->waiting.head].ready <= m->now)
        r->active[r->n_active++] = list_pop(m->f, &r->waiting);
}

static double decode_step(struct engine_sim *m, struct engine_unit_state *u,
                          struct engine_step_time *t)
{
    struct engine_step *step = &u->step[KIND_DECODE];
    int mbs = step->list.micro_batches, most = 0, all = 0;
    struct engine_load load[SCHEDULE_MAX_MB] = {{0}};
    double keys[SCHEDULE_MAX_MB] = {0}, parts[SCHEDULE_MAX_MB] = {0}, sum_keys = 0, extra = 0;
    for (int k = 0; k < u->ranks; k++) {
        struct engine_rank *r = &m->decode[u->first_decode + k];
        struct engine_load own[SCHEDULE_MAX_MB] = {{0}};
        double own_keys[SCHEDULE_MAX_MB] = {0}, own_parts[SCHEDULE_MAX_MB] = {0};
        admit(m, u, r);
        for (int i = 0; i < r->n_active; i++) {
            const struct engine_request *q = engine_request_of(m, r->active[i]);
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

static void decode_done(struct engine_sim *m, struct engine_unit_state *u)
{
    for (int k = 0; k < u->ranks; k++) {
        struct engine_rank *r = &m->decode[u->first_decode + k];
        int kept = 0;
        for (int i = 0; i < r->n_active; i++) {
            int32_t s = r->active[i];
            const struct engine_request *q = engine_request_of(m, s);
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

static bool can_prefill(const struct engine_sim *m, const struct engine_unit_state *u)
{
    for (int k = 0; u->prefills && k < u->ranks; k++)
        if (m->prefill[u->first_prefill + k].queue.n) return true;
    return false;
}

/* Whether it may decode at `at`, and when else. */
static bool can_decode(const struct engine_sim *m, const struct engine_unit_state *u, double at,
                       double *when)
{
    bool can = false;
    for (int k = 0; u->decodes && k < u->ranks; k++) {
        const struct engine_rank *r = &m->decode[u->first_decode + k];
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
        [STAGE_ATTN] = 0,  [STAGE_ATTN_0] = 0,    [STAGE_ATTN_1] = 0, [STAGE_DISPATCH] = 1,
        [STAGE_MLP] = 2,   [STAGE_DENSE_MLP] = 2, [STAGE_SHARED] = 3, [STAGE_COMBINE] = 4,
        [STAGE_EMBED] = 5, [STAGE_HEAD] = 5};
    for (int i = 0; i < STAGE_COUNT; i++) to[column[i]] += us[i] * 1e-6;
}

static void begin_step(struct engine_sim *m, struct engine_unit_state *u, enum engine_kind kind)
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
static double begin_steps(struct engine_sim *m)
{
    double when = INFINITY;
    for (int i = 0; i < m->units; i++) {
        struct engine_unit_state *u = &m->unit[i];
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

static void end_steps(struct engine_sim *m)
{
    for (int i = 0; i < m->units; i++) {
        struct engine_unit_state *u = &m->unit[i];
        if (u->running == KIND_NONE || u->end > m->now) continue;
        enum engine_kind kind = u->running;
        u->running = KIND_NONE;
        (kind == KIND_PREFILL ? prefill_done : decode_done)(m, u);
    }
}

enum status engine_simulate(struct engine_sim *m)
{
    while (m->finished < m->s->n_requests) {
        send_out(m);
        double when = begin_steps(m);
        if (!isfinite(when))
            return error_set(ERR_RESOURCE,
                             "%lld of %lld requests cannot run: a prompt needs more "
                             "KV pages than a rank has",
                             (long long)(m->s->n_requests - m->finished),
                             (long long)m->s->n_requests);
        m->now = fmax(m->now, when);
        end_steps(m);
    }
    return OK;
}
