/* bench_layer.c - `moebatch bench layer DIR`: one rank runs prefill and decode steps of a checkpoint;
 * what a MoE layer's stages cost, kernel by kernel, the bound of each, and what no kernel did. */
#include "cmd/bench.h"
#include "cmd/bench_timed.h"
#include "core/clock.h"
#include "model/forward.h"
#include "model/kernels_compose.h"

#include <getopt.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = 64, MAX_BATCHES = 16, DECODE_CONTEXT = 1024 };

struct options {
    const char *dir;
    int threads, isa, prompt, batch[MAX_BATCHES], batches, steps;
    enum numerics numerics;
};

/* A whole model on one rank. */
struct rig {
    struct options opt;
    struct timed timed;
    struct kernels k;
    struct bench_machine machine;
    struct checkpoint *ck;
    struct transport *transport;
    struct waiter waiter;
    struct weights w;
    struct placement place;
    struct replica_table *replica;
    struct ep_group *ep;
    struct model m;
    struct forward f;
    struct schedule prefill, decode;
    void *shared, *own, *cache;
    int max_batch, pages_each, context;
    int32_t *pages; /* [max_batch][pages_each] */
    int moe_layers;
    double stage_s[STAGE_COUNT + 1]; /* of MoE layers; the last: everything else */
    double last_s;                   /* when the stage under way began */
};

/* ---- command line ---- */

static void usage(void)
{
    fputs(
        "usage: moebatch bench layer DIR [options]\n"
        "  --threads T      threads (default: all cores)\n"
        "  --isa NAME       instruction set (default: the best)\n"
        "  --numerics N     checkpoint | bf16 | fp32\n"
        "  --prompt N       tokens of the prefill step (default 512)\n"
        "  --batch LIST     decode batches (default 1,8,32,128), context 1024 or the\n"
        "                   model's if that is less\n"
        "  --steps N        timed steps of each (default 3, the fastest counts)\n"
        "DIR is a checkpoint (moebatch model make writes one of any shape). Times are of one MoE\n"
        "layer, the mean over the model's. '%bound' compares with operations / peak or bytes /\n"
        "DRAM bandwidth, both measured in this run; what stays in caches can exceed 100.\n",
        stdout);
}

static enum status parse_numerics(const char *text, enum numerics *out)
{
    static const char *const names[] = {"checkpoint", "bf16", "fp32"};
    for (int i = 0; i < 3; i++)
        if (strcmp(text, names[i]) == 0) {
            *out = (enum numerics)i;
            return OK;
        }
    return error_set(ERR_USAGE, "--numerics: expected checkpoint, bf16 or fp32, found '%s'", text);
}

static enum status parse_one(int c, struct options *o)
{
    int count;
    switch (c) {
    case 't': return bench_parse_list("--threads", optarg, &o->threads, 1, &count);
    case 'p': return bench_parse_list("--prompt", optarg, &o->prompt, 1, &count);
    case 's': return bench_parse_list("--steps", optarg, &o->steps, 1, &count);
    case 'b': return bench_parse_list("--batch", optarg, o->batch, MAX_BATCHES, &o->batches);
    case 'n': return parse_numerics(optarg, &o->numerics);
    case 'i':
        o->isa = isa_parse(optarg);
        if (o->isa < 0) return error_set(ERR_USAGE, "--isa: unknown instruction set '%s'", optarg);
        return OK;
    default: return error_set(ERR_USAGE, "bench layer: see bench layer --help");
    }
}

static enum status parse(int argc, char **argv, struct options *o, bool *help)
{
    static const struct option table[] = {{"threads", 1, 0, 't'},  {"isa", 1, 0, 'i'},
                                          {"numerics", 1, 0, 'n'}, {"prompt", 1, 0, 'p'},
                                          {"batch", 1, 0, 'b'},    {"steps", 1, 0, 's'},
                                          {"help", 0, 0, 'h'},     {0, 0, 0, 0}};
    *o = (struct options){.threads = cpu_count(),
                          .isa = (int)bench_best_isa(),
                          .prompt = 512,
                          .batch = {1, 8, 32, 128},
                          .batches = 4,
                          .steps = 3};
    optind = 0;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "h", table, NULL)) != -1;) {
        *help = *help || c == 'h';
        if (c != 'h') TRY(parse_one(c, o));
    }
    if (*help) return OK;
    if (optind != argc - 1)
        return error_set(ERR_USAGE, "bench layer: which checkpoint? moebatch bench layer DIR");
    o->dir = argv[optind];
    bool positive = o->threads > 0 && o->prompt > 0 && o->steps > 0;
    for (int i = 0; i < o->batches; i++) positive = positive && o->batch[i] > 0;
    if (!positive) return error_set(ERR_USAGE, "bench layer: numbers must be positive");
    return OK;
}

/* ---- the model ---- */

static enum status no_memory(void)
{
    return error_set(ERR_RESOURCE, "bench layer: not enough memory");
}

static enum status place_experts(struct rig *r)
{
    const struct model_config *c = checkpoint_config(r->ck);
    struct eplb_shape shape = {r->moe_layers, c->experts, c->n_group, c->experts, 1, 1};
    TRY(eplb_place(&shape, 0, &r->place));
    int32_t *slots = calloc((size_t)(c->layers * c->experts), sizeof *slots);
    r->replica = calloc((size_t)c->layers, sizeof *r->replica);
    if (!slots || !r->replica) {
        free(slots);
        return no_memory();
    }
    enum status st = OK;
    for (int l = 0, moe = 0; l < c->layers && st == OK; l++) {
        if (!model_config_layer_is_moe(c, l)) continue;
        memcpy(slots + l * c->experts, placement_slots(&r->place, moe),
               (size_t)c->experts * sizeof *slots);
        st = replica_table_build(&r->place, moe, 1, 0, &r->replica[moe]);
        moe++;
    }
    if (st == OK) st = weights_pack_shared(&r->w, 0, 1, r->opt.threads);
    if (st == OK) st = weights_pack_experts(&r->w, slots, r->opt.threads);
    free(slots);
    return st;
}

static enum status load(struct rig *r)
{
    struct device *dev = r->timed.lane.dev;
    const struct model_config *c = checkpoint_config(r->ck);
    double t0 = clock_now_s();
    TRY(weights_plan(r->ck, &r->k, r->opt.numerics, c->experts, &r->w));
    r->shared = dev->alloc(dev, r->w.shared_bytes);
    r->own = dev->alloc(dev, r->w.private_bytes);
    if (!r->shared || !r->own) return no_memory();
    weights_attach(&r->w, r->shared, r->own);
    TRY(place_experts(r));
    double seconds = clock_now_s() - t0;
    printf("# packed %.1f MB in %.2f s, %.2f GB/s\n", (double)r->w.bytes_read / 1e6, seconds,
           (double)r->w.bytes_read / seconds / 1e9);
    return OK;
}

static enum status make_pages(struct rig *r)
{
    const struct model_config *c = checkpoint_config(r->ck);
    r->context = c->max_positions < DECODE_CONTEXT ? c->max_positions : DECODE_CONTEXT;
    int longest = r->opt.prompt > r->context ? r->opt.prompt : r->context;
    if (longest > c->max_positions)
        return error_set(ERR_INPUT, "%s: context is %d tokens, --prompt asks for %d", r->opt.dir,
                         c->max_positions, longest);
    r->max_batch = 1;
    for (int i = 0; i < r->opt.batches; i++)
        if (r->opt.batch[i] > r->max_batch) r->max_batch = r->opt.batch[i];
    r->pages_each = (longest + PAGE - 1) / PAGE;
    int pages = r->max_batch * r->pages_each;
    size_t page = model_page_bytes(c, model_kv_type(r->opt.numerics), PAGE);
    r->cache = r->timed.lane.dev->alloc(r->timed.lane.dev, page * (size_t)pages);
    r->pages = malloc((size_t)pages * sizeof *r->pages);
    if (!r->cache || !r->pages) return no_memory();
    /* Dealt out in turn, as a pool in use would be. */
    for (int b = 0; b < r->max_batch; b++)
        for (int i = 0; i < r->pages_each; i++)
            r->pages[b * r->pages_each + i] = i * r->max_batch + b;
    return OK;
}

static enum status no_head(void *arg, int mb)
{
    (void)arg;
    (void)mb;
    return OK;
}

/* A stage lasts until the next one is noted. */
static void note_stage(void *arg, const struct op *op, bool waiting)
{
    struct rig *r = arg;
    double now = clock_now_s();
    (void)waiting;
    r->stage_s[r->timed.stage] += now - r->last_s;
    r->last_s = now;
    bool moe = op->layer >= 0 && op->layer < r->m.cfg->layers &&
               model_config_layer_is_moe(r->m.cfg, op->layer);
    r->timed.stage = moe ? (int)op->stage : STAGE_COUNT; /* other layers: apart */
}

static enum status build(struct rig *r)
{
    const struct model_config *c = checkpoint_config(r->ck);
    bool moe[1024];
    if (c->layers > (int)(sizeof moe / sizeof *moe))
        return error_set(ERR_INPUT, "%s: %d layers, at most 1024", r->opt.dir, c->layers);
    for (int l = 0; l < c->layers; l++) moe[l] = model_config_layer_is_moe(c, l);
    int rows = r->opt.prompt > r->max_batch ? r->opt.prompt : r->max_batch;
    TRY(transport_create(MPI_COMM_SELF, 0, &r->transport));
    r->waiter.transport = r->transport;
    struct ep_params p = {.ep_size = 1,
                          .experts = c->experts,
                          .slots = c->experts,
                          .topk = c->topk,
                          .hidden = c->hidden,
                          .n_group = c->n_group,
                          .max_tokens = r->max_batch,
                          .chunk_tokens = rows,
                          .recv_rows_factor = 2,
                          .dispatch_type = model_dispatch_type(r->opt.numerics, r->w.experts_fp8),
                          .combine_type = model_combine_type(r->opt.numerics)};
    struct ep_placement place = {c->experts, r->place.shape.layers, r->place.slot_expert};
    TRY(ep_create(&p, &place, &r->waiter, &r->k, &r->timed.lane, &r->ep));
    struct model_limits limits = {rows, r->pages_each * PAGE, true, true};
    TRY(model_create(&r->w, &r->timed.lane, &limits, PAGE, r->max_batch * r->pages_each, r->cache,
                     &r->m));
    r->m.ep = r->ep;
    TRY(schedule_single_batch(c->layers, moe, 1, false, &r->prefill));
    TRY(schedule_single_batch(c->layers, moe, 1, true, &r->decode));
    forward_init(&r->f, &r->m, r->replica, 0, 0);
    r->f.head = no_head;
    r->f.hook_arg = r;
    r->f.runner.note = note_stage;
    r->f.runner.note_arg = r;
    return OK;
}

static enum status rig_open(struct rig *r)
{
    TRY(checkpoint_open(r->opt.dir, &r->ck));
    TRY(checkpoint_validate(r->ck));
    r->moe_layers = model_config_moe_layers(checkpoint_config(r->ck));
    if (r->moe_layers == 0)
        return error_set(ERR_INPUT, "%s: no layer has routed experts", r->opt.dir);
    struct kernels real = {0};
    TRY(kernels_compose((enum isa)r->opt.isa, &real));
    lane_init(&r->timed.lane, device_cpu(), r->opt.threads);
    timed_wrap(&r->timed, &real, &r->k);
    TRY(load(r));
    TRY(make_pages(r));
    return build(r);
}

static void rig_close(struct rig *r)
{
    struct device *dev = device_cpu();
    forward_free(&r->f);
    schedule_free(&r->prefill);
    schedule_free(&r->decode);
    ep_destroy(r->ep);
    if (r->m.cfg) model_free(&r->m);
    for (int l = 0; r->replica && l < checkpoint_config(r->ck)->layers; l++)
        replica_table_free(&r->replica[l]);
    free(r->replica);
    if (r->place.slot_expert) placement_free(&r->place);
    weights_free(&r->w);
    dev->free(dev, r->shared);
    dev->free(dev, r->own);
    dev->free(dev, r->cache);
    free(r->pages);
    transport_destroy(r->transport);
    lane_free(&r->timed.lane);
    checkpoint_close(r->ck);
}

/* ---- steps ---- */

/* Tokens that differ, so that their experts do. */
static int32_t token_of(const struct rig *r, int i)
{
    return (int32_t)((unsigned)i * 2654435761u % (unsigned)r->m.cfg->vocab);
}

static void fill_row(struct rig *r, int row, int position, const int32_t *pages)
{
    struct microbatch *b = &r->m.mb[0];
    b->tokens[row] = token_of(r, row + position);
    b->pos[row] = position;
    b->len[row] = position + 1;
    b->pages[row] = pages;
}

static enum status step(struct rig *r, bool decode, int rows)
{
    struct microbatch *b = &r->m.mb[0];
    b->m = rows;
    b->segments = decode ? 0 : 1;
    if (!decode) b->segment[0] = (struct segment){0, rows, 0, r->pages};
    for (int i = 0; i < rows; i++) {
        if (decode)
            fill_row(r, i, r->context - 1, r->pages + i * r->pages_each);
        else
            fill_row(r, i, i, r->pages);
    }
    r->m.mb[1].m = r->m.mb[1].segments = 0;
    timed_clear(&r->timed);
    memset(r->stage_s, 0, sizeof r->stage_s);
    r->timed.stage = STAGE_COUNT;
    r->last_s = clock_now_s();
    return forward_step(&r->f, decode ? &r->decode : &r->prefill, decode);
}

/* ---- the table ---- */

static double stage_kernels(const struct rig *r, int stage)
{
    double sum = 0;
    for (int i = 0; i < r->timed.entries; i++)
        if (r->timed.entry[i].stage == stage) sum += r->timed.entry[i].seconds;
    return sum;
}

static void print_stage(const struct rig *r, enum stage stage, double seconds, double layer)
{
    double per = 1.0 / r->moe_layers;
    char label[64];
    printf("%-44s %11.1f %9s %8s %7s %5s  %5.1f\n", stage_name(stage), seconds * per * 1e6, "", "",
           "", "", 100 * seconds / layer);
    for (int i = 0; i < r->timed.entries; i++) {
        const struct timed_entry *e = &r->timed.entry[i];
        if (e->stage != (int)stage) continue;
        struct bench_line line = {.label = label,
                                  .seconds = e->seconds * per,
                                  .flops = e->flops * per,
                                  .bytes = e->bytes * per,
                                  .peak_flops =
                                      e->f32 ? r->machine.f32_flops : r->machine.bf16_flops};
        snprintf(label, sizeof label, "  %s", e->label);
        bench_print_line(&r->machine, &line);
    }
    double rest = seconds - stage_kernels(r, (int)stage);
    printf("%-44s %11.1f %9s %8s %7s %5s  %5.1f\n", "  outside kernels", rest * per * 1e6, "", "",
           "", "", 100 * rest / layer);
}

/* What a step was: its seconds, by stage, and the kernels' notes. */
struct outcome {
    double wall_s, stage_s[STAGE_COUNT + 1];
    struct timed_entry entry[TIMED_MAX];
    int entries;
};

static enum status run_once(struct rig *r, bool decode, int rows, struct outcome *o)
{
    double t0 = clock_now_s();
    TRY(step(r, decode, rows));
    double wall = clock_now_s() - t0;
    if (o->wall_s > 0 && wall >= o->wall_s) return OK;
    o->wall_s = wall;
    o->entries = r->timed.entries;
    memcpy(o->stage_s, r->stage_s, sizeof o->stage_s);
    memcpy(o->entry, r->timed.entry, sizeof o->entry);
    return OK;
}

static void print_outcome(struct rig *r, bool decode, int rows, const struct outcome *o)
{
    double layer = 0;
    r->timed.entries = o->entries;
    memcpy(r->timed.entry, o->entry, sizeof o->entry);
    for (int s = 0; s < STAGE_COUNT; s++) layer += o->stage_s[s];
    printf("# %s, %d tokens: %.1f us a MoE layer, step %.3f ms\n", decode ? "decode" : "prefill",
           rows, layer / r->moe_layers * 1e6, o->wall_s * 1e3);
    printf("# %-42s %11s %9s %8s %7s %5s  %5s\n", "stage, kernels", "us", "GFLOP/s", "GB/s",
           "%bound", "by", "%");
    for (int s = 0; s < STAGE_COUNT; s++)
        if (o->stage_s[s] > 0) print_stage(r, (enum stage)s, o->stage_s[s], layer);
}

/* One step to grow the buffers, then the fastest of the timed ones. */
static enum status measure(struct rig *r, bool decode, int rows)
{
    struct outcome *o = calloc(1, sizeof *o);
    enum status st = o ? step(r, decode, rows) : no_memory();
    for (int i = 0; i < r->opt.steps && st == OK; i++) st = run_once(r, decode, rows, o);
    if (st == OK) print_outcome(r, decode, rows, o);
    free(o);
    return st;
}

enum status cmd_bench_layer(int argc, char **argv)
{
    bool help = false;
    struct rig *r = calloc(1, sizeof *r);
    if (!r) return no_memory();
    enum status st = parse(argc, argv, &r->opt, &help);
    if (st == OK && help) usage();
    if (st != OK || help) {
        free(r);
        return st;
    }
    st = bench_machine_measure(r->opt.threads, (enum isa)r->opt.isa, &r->machine);
    if (st == OK) st = rig_open(r);
    if (st == OK) st = measure(r, false, r->opt.prompt);
    for (int i = 0; i < r->opt.batches && st == OK; i++) st = measure(r, true, r->opt.batch[i]);
    rig_close(r);
    free(r);
    return st;
}
