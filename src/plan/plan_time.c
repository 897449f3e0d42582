/* plan_time.c - see plan_time.h. */
#include "plan/plan_time.h"

#include "cluster/engine_time.h"
#include "config/installed.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

/* ---- which model ----------------------------------------------------------------------------- */

/* What `moebatch calibrate` writes says what the ranks compute on. */
static bool is_host_file(const char *path)
{
    char line[512];
    bool found = false;
    FILE *f = fopen(path, "r");
    if (!f) return false;
    while (!found && fgets(line, sizeof line, f)) found = strncmp(line, "kind:", 5) == 0;
    fclose(f);
    return found;
}

static void find_file(const char *name, char path[600])
{
    bool is_path = !name || strchr(name, '/') || strstr(name, ".yaml");
    snprintf(path, 600, is_path ? "%s" : "inputs/hardware/%s.yaml",
             name ? name : HOST_SPEED_DEFAULT);
    (void)installed_find(path, 600);
}

/* ---- this engine on a calibrated host -------------------------------------------------------- */

static enum status by_engine(const struct plan *p, const char *path, struct plan_time *t)
{
    struct host_speed host;
    struct engine_time e;
    TRY(host_speed_read(path, &host));
    snprintf(t->hardware, sizeof t->hardware, "%.400s (%.150s)", path, host.name);
    struct engine_time_setup setup = {
        .host = &host,
        .model = p->model,
        .job = &p->job,
        .fp8_experts = p->experts_fp8,
        .pages = {p->role[0].pages, p->role[p->roles - 1].pages},
        .expert_load = p->expert_load,
        .requests = p->tokens.list,
        .n_requests = p->tokens.n,
    };
    TRY(engine_time_predict(&setup, &e));
    t->by = PLAN_TIME_ENGINE;
    t->total_s = e.total_s * (double)p->tokens.step;
    t->prefill_s = e.prefill_span_s * (double)p->tokens.step;
    t->decode_s = e.decode_span_s * (double)p->tokens.step;
    t->prefill_tokens_per_s = e.prefill_tokens_per_s;
    t->decode_tokens_per_s = e.decode_tokens_per_s;
    t->batch = e.mean_batch;
    t->ttft_s = e.ttft_s.mean;
    t->tpot_s = e.tpot_s.mean;
    snprintf(t->note, sizeof t->note, "%s%s",
             e.oversubscribed ? "More threads than cores: the figures are less sure. " : "",
             e.note);
    return OK;
}

/* ---- full steps on GPUs ---------------------------------------------------------------------- */

static enum status unit_of(const struct plan *p, const struct hardware *hw,
                           const struct plan_role *r, enum unit_role role, struct unit_speed **out)
{
    struct unit_config c;
    unit_config_defaults(&c, role);
    c.combine = UNIT_COMBINE_GROUP_TREE;
    c.ep = r->job->ep;
    c.redundant_experts = r->job->redundant_experts;
    c.micro_batches = r->job->microbatches;
    c.overlap = r->job->overlap;
    *(role == UNIT_PREFILL ? &c.chunk_tokens : &c.max_batch) =
        role == UNIT_PREFILL ? r->job->chunk_tokens : r->job->max_batch;
    return unit_speed_create(hw, p->model, &c, out);
}

/* Full chunks until the prompts are computed; the last step as long as the others. */
static void prefill_by_units(const struct plan *p, const struct plan_role *r, struct unit_speed *u,
                             struct plan_time *t)
{
    const struct plan_tokens *k = &p->tokens;
    double tokens = k->prompt - k->cached, ranks = (double)r->job->units * r->job->ep, pairs = 0;
    if (tokens <= 0) return;
    for (int64_t i = 0; i < k->n; i++)
        pairs += (double)k->step *
                 unit_prompt_pairs(k->list[i].prompt - k->list[i].cached, k->list[i].cached);
    double steps = ceil(tokens / (ranks * r->job->chunk_tokens)), each = tokens / ranks / steps;
    t->prefill_step_s = unit_prefill_step_s(u, each, pairs / tokens * each);
    t->prefill_s = steps * t->prefill_step_s;
    t->prefill_tokens_per_s = tokens / t->prefill_s;
}

/* The batch that job, requests and KV pages allow, until all tokens are there, but no answer faster
 * than a token a step. The first token of each comes from prefill. */
static void decode_by_units(const struct plan *p, const struct plan_role *r, struct unit_speed *u,
                            struct plan_time *t)
{
    const struct plan_tokens *k = &p->tokens;
    double ranks = (double)r->job->units * r->job->ep, n = (double)(k->requests - k->bad);
    double tokens = k->output - n, longest = 0;
    if (n <= 0 || tokens <= 0) return;
    double kv = (k->prompt + 0.5 * k->output) / n;
    for (int64_t i = 0; i < k->n; i++) longest = fmax(longest, k->list[i].output - 1.0);
    t->batch = fmin(r->job->max_batch, ceil(n / ranks));
    t->batch = fmax(1, fmin(t->batch, unit_max_batch(u, kv)));
    t->decode_step_s = t->tpot_s = unit_decode_step_s(u, t->batch, kv);
    t->decode_s = fmax(longest, ceil(tokens / (ranks * t->batch))) * t->decode_step_s;
    t->decode_tokens_per_s = tokens / t->decode_s;
}

static enum status by_units(const struct plan *p, const char *path, struct plan_time *t)
{
    struct hardware hw;
    struct unit_speed *prefill = 0, *decode = 0;
    TRY(hardware_read(path, &hw));
    snprintf(t->hardware, sizeof t->hardware, "%.400s (%.60s)", path, hw.name);
    enum status st = unit_of(p, &hw, &p->role[0], UNIT_PREFILL, &prefill);
    if (st == OK) st = unit_of(p, &hw, &p->role[p->roles - 1], UNIT_DECODE, &decode);
    if (st == OK) {
        unit_memory(prefill, &t->gpu[0]);
        unit_memory(decode, &t->gpu[p->roles - 1]);
        prefill_by_units(p, &p->role[0], prefill, t);
        decode_by_units(p, &p->role[p->roles - 1], decode, t);
        const char *more = unit_extrapolated(prefill), *also = unit_extrapolated(decode);
        t->by = PLAN_TIME_UNITS;
        /* Mixed units do one or the other; else both go on at once after the first step. */
        t->total_s = p->roles == 1 ? t->prefill_s + t->decode_s
                                   : t->prefill_step_s + fmax(t->prefill_s, t->decode_s);
        snprintf(t->note, sizeof t->note,
                 "Full batches, no queues or ramps; nothing of this was "
                 "measured here.%s%s%s%s",
                 more ? " Prefill: " : "", more ? more : "", also ? " Decode: " : "",
                 also ? also : "");
    }
    unit_speed_free(prefill);
    unit_speed_free(decode);
    hardware_free(&hw);
    return st;
}

/* ---- together -------------------------------------------------------------------------------- */

static void add_account(const struct plan *p, struct plan_time *t)
{
    struct account_usage u = {
        .gpu_seconds = t->total_s * p->ranks,
        .wall_s = t->total_s,
        .ranks = p->ranks,
        .nodes = p->hosts,
        .hit_tokens = p->tokens.cached,
        .miss_tokens = p->tokens.prompt - p->tokens.cached,
        .output_tokens = p->tokens.output,
    };
    t->account = account_compute(&u, &p->prices);
}

enum status plan_time_predict(const struct plan *p, const char *hardware, struct plan_time *t)
{
    char path[600];
    memset(t, 0, sizeof *t);
    t->prefill_tokens_per_s = t->decode_tokens_per_s = t->ttft_s = t->tpot_s = NAN;
    find_file(hardware, path);
    if (!hardware && access(path, R_OK) != 0) {
        snprintf(t->why, sizeof t->why,
                 "no hardware file: `moebatch calibrate` measures this machine "
                 "(%s), or give --hardware h800 and the like",
                 HOST_SPEED_DEFAULT);
        return OK;
    }
    if (access(path, R_OK) != 0) {
        struct hardware hw; /* says which there are */
        TRY(hardware_find("inputs/hardware", hardware, &hw));
        hardware_free(&hw);
    }
    if (p->tokens.n == 0) {
        snprintf(t->why, sizeof t->why, "no request of %s can run", p->job.tokens);
        return OK;
    }
    enum status st = is_host_file(path) ? by_engine(p, path, t) : by_units(p, path, t);
    if (st == OK) {
        add_account(p, t);
        return OK;
    }
    if (!t->hardware[0]) return st; /* the file itself */
    snprintf(t->why, sizeof t->why, "%s", error_text());
    error_clear();
    t->by = PLAN_TIME_NONE;
    return OK;
}

/* ---- print ----------------------------------------------------------------------------------- */

static const char *seconds(char buf[32], double s)
{
    if (isnan(s)) return "-";
    snprintf(buf, 32, s < 1 ? "%.4f s" : s < 600 ? "%.2f s" : s < 36000 ? "%.0f s" : "%.3g s", s);
    return buf;
}

static void print_phase(const char *name, double rate, double span, double step, FILE *out)
{
    char a[32], b[32];
    if (isnan(rate)) return;
    fprintf(out, "  %-10s %14.1f tokens/s over %s", name, rate, seconds(a, span));
    if (step > 0) fprintf(out, ", steps of %s", seconds(b, step));
    fputc('\n', out);
}

static void print_money(const struct plan *p, const struct plan_time *t, FILE *out)
{
    const struct account *a = &t->account;
    char m[32] = "-";
    if (!isnan(a->margin_on_cost)) snprintf(m, sizeof m, "%.1f %%", 100 * a->margin_on_cost);
    fprintf(out,
            "  cost      $ %-12.6g = %.1f GPU-seconds (a rank is billed as one GPU) x $ %g an "
            "hour\n",
            a->cost_usd, a->gpu_seconds, p->prices.usd_per_gpu_hour);
    fprintf(out, "  revenue   $ %-12.6g profit $ %.6g, margin on cost %s\n", a->revenue_usd,
            a->profit_usd, m);
}

static const char *model_name(enum plan_time_by by)
{
    if (by == PLAN_TIME_ENGINE)
        return "this engine's job in simulated time, of kernels measured there "
               "(cluster/engine_time)";
    return "steps of GPU units, one GPU a rank, level calibrated: kernel tables and constants "
           "from\n"
           "# traces (cluster/unit_model)";
}

/* Instead of the host's memory above. */
static void print_gpu_memory(const struct plan *p, const struct plan_time *t, FILE *out)
{
    const double gb = 1e9;
    if (t->by != PLAN_TIME_UNITS) return;
    fprintf(out, "# %-12s %9s %9s %9s %9s %9s %9s %9s %14s\n", "GB of a GPU", "holds", "weights",
            "experts", "buffers", "steps", "reserve", "for KV", "tokens of KV");
    for (int i = 0; i < p->roles; i++) {
        const struct unit_memory *m = &t->gpu[i];
        fprintf(out, "  %-12s %9.1f %9.1f %9.1f %9.1f %9.1f %9.1f %9.1f %14.0f\n",
                rank_role_name(p->role[i].role), m->capacity / gb,
                (m->replicated + m->absorbed) / gb, m->routed / gb, m->comm / gb,
                m->activation / gb, m->reserve / gb, m->kv / gb, m->kv / m->kv_per_token);
    }
}

void plan_time_print(const struct plan *p, const struct plan_time *t, FILE *out)
{
    char a[32], b[32];
    if (t->by == PLAN_TIME_NONE) {
        fprintf(out, "\n# no prediction: %s\n", t->why);
        return;
    }
    fprintf(out, "\n# predicted, not measured; hardware %s\n# by %s\n", t->hardware,
            model_name(t->by));
    print_gpu_memory(p, t, out);
    print_phase("prefill", t->prefill_tokens_per_s, t->prefill_s, t->prefill_step_s, out);
    print_phase("decode", t->decode_tokens_per_s, t->decode_s, t->decode_step_s, out);
    if (t->batch > 0) fprintf(out, "  mean batch of a rank %.1f", t->batch);
    if (!isnan(t->ttft_s)) fprintf(out, ", TTFT %s", seconds(a, t->ttft_s));
    if (!isnan(t->tpot_s)) fprintf(out, ", TPOT %s", seconds(b, t->tpot_s));
    if (t->batch > 0) fputc('\n', out);
    fprintf(out, "  time      %s for the file, if every answer is as long as max_tokens\n",
            seconds(a, t->total_s));
    print_money(p, t, out);
    if (t->note[0]) fprintf(out, "  %s\n", t->note);
}
