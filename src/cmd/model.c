/* model.c - the commands `model make` and `model show`. Options and output only: the work is in
 * checkpoint/.
 */
#include "checkpoint/checkpoint.h"
#include "checkpoint/sizes.h"
#include "checkpoint/synth.h"
#include "cmd/cmd_model.h"
#include "core/clock.h"
#include "core/log.h"

#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: moebatch model make --like NAME --out DIR [options]\n"
    "       moebatch model show DIR [--json] [--ep 1,8,32]\n"
    "\n"
    "make writes a checkpoint with random weights, the same bytes for the same options and seed.\n"
    "show prints architecture, parameters, bytes by component and per rank; a directory with\n"
    "only config.json will do.\n";

/* Shape options of `make`: each overrides one field of the model that --like names. */
static const struct shape_option {
    const char *name;
    size_t offset;
    int min, max;
    const char *help;
} shape_options[] = {
#define SHAPE(option, member, min, max, help)                         \
    {                                                                 \
        option, offsetof(struct model_config, member), min, max, help \
    }
    SHAPE("--layers", layers, 1, 1024, "layers in all"),
    SHAPE("--first-dense", first_dense, 0, 1024, "layers with a dense MLP at the start"),
    SHAPE("--vocab", vocab, 1, 1 << 24, "vocabulary"),
    SHAPE("--hidden", hidden, 1, 1 << 18, "width of the residual stream"),
    SHAPE("--heads", heads, 1, 4096, "attention heads"),
    SHAPE("--q-lora", q_lora, 0, 1 << 16, "rank of the query projection, 0 for a full one"),
    SHAPE("--kv-lora", kv_lora, 1, 1 << 16, "rank of the KV cache"),
    SHAPE("--dim-nope", dim_nope, 1, 1 << 13, "a head's dimensions without rope"),
    SHAPE("--dim-rope", dim_rope, 2, 1 << 13, "a head's dimensions with rope, even"),
    SHAPE("--dim-v", dim_v, 1, 1 << 13, "a head's value dimensions"),
    SHAPE("--intermediate", intermediate, 1, 1 << 20, "width of dense MLPs"),
    SHAPE("--moe-intermediate", moe_intermediate, 1, 1 << 18, "width of an expert"),
    SHAPE("--experts", experts, 1, 1 << 12, "routed experts"),
    SHAPE("--shared-experts", shared_experts, 1, 64, "shared experts"),
    SHAPE("--topk", topk, 1, 256, "experts a token"),
    SHAPE("--n-group", n_group, 1, 1 << 12, "expert groups"),
    SHAPE("--topk-group", topk_group, 1, 1 << 12, "groups a token may use"),
    SHAPE("--max-positions", max_positions, 1, 1 << 28, "context length"),
#undef SHAPE
};
enum { SHAPE_OPTIONS = sizeof shape_options / sizeof *shape_options };

static void print_help(void)
{
    printf("%s\nmake, shapes (default: the --like model's):\n", usage);
    for (int i = 0; i < SHAPE_OPTIONS; i++)
        printf("  %-18s N  %s\n", shape_options[i].name, shape_options[i].help);
    printf("\nmake, the rest:\n"
           "  --like NAME           deepseek-v3, deepseek-v2, deepseek-v2-lite, kimi-k2 or\n"
           "                        moonlight\n"
           "  --out DIR             directory to write\n"
           "  --dtype TYPE          bf16 (default), fp8 (128x128 blocks), f16, f32\n"
           "  --ue8m0               fp8: power-of-two scales\n"
           "  --tie                 lm_head is embed_tokens\n"
           "  --shards N            weight files (default 1)\n"
           "  --seed N              random seed (default 0)\n"
           "  --threads N           default: all cores\n"
           "  --force               replace a checkpoint in DIR\n");
}

static enum status parse_number(const char *option, const char *text, int64_t min, int64_t max,
                                int64_t *out)
{
    char *end = NULL;
    long long v = text ? strtoll(text, &end, 10) : 0;
    if (!text || !*text || *end || v < min || v > max)
        return error_set(ERR_USAGE, "%s is %s, expected an integer from %" PRId64 " to %" PRId64,
                         option, text ? text : "without a value", min, max);
    *out = v;
    return OK;
}

struct make_args {
    const char *like, *out;
    struct model_config cfg;
    struct synth_options opt;
};

static enum status parse_dtype(const char *text, enum tensor_dtype *dtype)
{
    static const struct {
        const char *name;
        enum tensor_dtype dtype;
    } types[] = {
        {"bf16", TENSOR_BF16}, {"fp8", TENSOR_E4M3}, {"f16", TENSOR_F16}, {"f32", TENSOR_F32}};
    for (int i = 0; i < 4; i++)
        if (text && strcmp(text, types[i].name) == 0) {
            *dtype = types[i].dtype;
            return OK;
        }
    return error_set(ERR_USAGE, "--dtype is %s, expected bf16, fp8, f16 or f32",
                     text ? text : "without a value");
}

/* One option at argv[0]; *used is how many arguments it took. */
static enum status parse_make_option(char **argv, struct make_args *a, int *used)
{
    int64_t v = 0;
    const char *name = argv[0], *value = argv[1];
    *used = 1;
    if (strcmp(name, "--force") == 0) return a->opt.force = true, OK;
    if (strcmp(name, "--ue8m0") == 0) return a->opt.ue8m0 = true, OK;
    if (strcmp(name, "--tie") == 0) return a->cfg.tie_embeddings = true, OK;
    *used = 2;
    if (strcmp(name, "--like") == 0) return OK; /* taken before the shapes */
    if (strcmp(name, "--dtype") == 0) return parse_dtype(value, &a->opt.dtype);
    if (strcmp(name, "--out") == 0) {
        if (!value) return error_set(ERR_USAGE, "--out is without a value, expected a directory");
        a->out = value;
        return OK;
    }
    if (strcmp(name, "--shards") == 0) {
        TRY(parse_number(name, value, 1, 99999, &v));
        a->opt.shards = (int)v;
        return OK;
    }
    if (strcmp(name, "--threads") == 0) {
        TRY(parse_number(name, value, 1, 4096, &v));
        a->opt.threads = (int)v;
        return OK;
    }
    if (strcmp(name, "--seed") == 0) {
        TRY(parse_number(name, value, 0, INT64_MAX, &v));
        a->opt.seed = (uint64_t)v;
        return OK;
    }
    for (int i = 0; i < SHAPE_OPTIONS; i++) {
        const struct shape_option *o = &shape_options[i];
        if (strcmp(name, o->name) != 0) continue;
        TRY(parse_number(name, value, o->min, o->max, &v));
        *(int *)((char *)&a->cfg + o->offset) = (int)v;
        return OK;
    }
    return error_set(ERR_USAGE, "model make: unknown option %s (see moebatch model --help)", name);
}

static enum status parse_make(int argc, char **argv, struct make_args *a)
{
    a->opt = (struct synth_options){.dtype = TENSOR_BF16, .shards = 1};
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], "--like") == 0) a->like = argv[i + 1];
    if (!a->like)
        return error_set(ERR_USAGE, "model make: --like is missing (see moebatch model --help)");
    TRY(synth_preset(a->like, &a->cfg));
    int dense = a->cfg.first_dense;
    a->cfg.first_dense = -1;
    for (int i = 1, used = 0; i < argc; i += used) TRY(parse_make_option(argv + i, a, &used));
    if (!a->out)
        return error_set(ERR_USAGE, "model make: --out is missing (see moebatch model --help)");
    /* A shortened model keeps at least one MoE layer, and its special tokens in the vocabulary. */
    struct model_config *c = &a->cfg;
    if (c->first_dense < 0) c->first_dense = dense < c->layers ? dense : c->layers - 1;
    for (int i = 0; i < c->eos_count; i++)
        if (c->eos[i] >= c->vocab) c->eos[i] = c->vocab - 1;
    if (c->bos >= c->vocab) c->bos = c->vocab > 1 ? c->vocab - 2 : 0;
    return OK;
}

static enum status cmd_make(int argc, char **argv)
{
    struct make_args a = {0};
    size_t bytes = 0;
    TRY(parse_make(argc, argv, &a));
    double t0 = clock_now_s();
    TRY(synth_write(a.out, &a.cfg, &a.opt, &bytes));
    double s = clock_now_s() - t0;
    log_info("%s: %.1f MB in %d file%s in %.2f s, %.2f GB/s", a.out, (double)bytes / 1e6,
             a.opt.shards, a.opt.shards == 1 ? "" : "s", s, (double)bytes / 1e9 / s);
    return OK;
}

/* ---- show ---- */

enum { EP_MAX = 32 };

struct show_args {
    const char *dir;
    bool json;
    int ep[EP_MAX], eps;
};

static enum status parse_show(int argc, char **argv, struct show_args *a)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            a->json = true;
        } else if (strcmp(argv[i], "--ep") == 0) {
            char *list = argv[i + 1] ? strdup(argv[i + 1]) : NULL, *save = NULL;
            enum status st = list ? OK
                                  : error_set(ERR_USAGE, "--ep is without a value, expected "
                                                         "group sizes such as 1,8,32");
            for (char *s = list ? strtok_r(list, ",", &save) : NULL; s && st == OK;
                 s = strtok_r(NULL, ",", &save)) {
                int64_t v = 0;
                st = a->eps < EP_MAX ? parse_number("--ep", s, 1, 1 << 20, &v)
                                     : error_set(ERR_USAGE, "--ep has more than %d sizes", EP_MAX);
                if (st == OK) a->ep[a->eps++] = (int)v;
            }
            free(list);
            TRY(st);
            i++;
        } else if (argv[i][0] != '-' && !a->dir) {
            a->dir = argv[i];
        } else {
            return error_set(ERR_USAGE, "model show: unexpected %s (see moebatch model --help)",
                             argv[i]);
        }
    }
    if (!a->dir) return error_set(ERR_USAGE, "model show: DIR is missing\n%s", usage);
    if (a->eps == 0) a->ep[a->eps++] = 1;
    return OK;
}

/* What is printed, gathered once for both forms. */
struct show {
    const char *dir;
    struct model_config cfg;
    bool weights;
    int tensors, files;
    struct hash128 fingerprint;
    struct model_sizes sizes;
};

static enum status gather(const char *dir, struct show *s)
{
    s->dir = dir;
    s->weights = checkpoint_has_weights(dir);
    if (!s->weights) {
        TRY(model_config_read(dir, &s->cfg));
        model_sizes_compute(&s->cfg, NULL, &s->sizes);
        return OK;
    }
    struct checkpoint *ck = NULL;
    TRY(checkpoint_open(dir, &ck));
    enum status st = checkpoint_validate(ck);
    if (st == OK) st = checkpoint_fingerprint(ck, &s->fingerprint);
    if (st == OK) {
        s->cfg = *checkpoint_config(ck);
        s->tensors = checkpoint_tensor_count(ck);
        s->files = checkpoint_file_count(ck);
        model_sizes_compute(&s->cfg, ck, &s->sizes);
    }
    checkpoint_close(ck);
    return st;
}

static void print_architecture(const struct show *s)
{
    const struct model_config *c = &s->cfg;
    const struct model_rope *r = &c->rope;
    printf("# %s: ", s->dir);
    if (s->weights)
        printf("%d tensors in %d file%s, checked, fingerprint %016" PRIx64 "%016" PRIx64 "\n",
               s->tensors, s->files, s->files == 1 ? "" : "s", s->fingerprint.hi,
               s->fingerprint.lo);
    else
        printf("from config.json (no weights here)\n");
    printf("model       %s, vocabulary %d, hidden %d, context %d\n", c->model_type, c->vocab,
           c->hidden, c->max_positions);
    printf("layers      %d: %d dense (width %d), %d with experts\n", c->layers,
           c->layers - s->sizes.moe_layers, c->intermediate, s->sizes.moe_layers);
    printf("attention   %d heads of %d + %d rope, value %d, q rank ", c->heads, c->dim_nope,
           c->dim_rope, c->dim_v);
    if (c->q_lora)
        printf("%d", c->q_lora);
    else
        printf("full");
    printf(", kv rank %d\n", c->kv_lora);
    printf("experts     %d routed of width %d, top-%d, %d group%s (%d used), %d shared\n",
           c->experts, c->moe_intermediate, c->topk, c->n_group, c->n_group == 1 ? "" : "s",
           c->topk_group, c->shared_experts);
    printf("gate        %s, %sscale %g\n", model_gate_name(c->gate),
           c->norm_topk ? "normalised, " : "", c->routed_scale);
    printf("rope        theta %g", r->theta);
    if (r->yarn) printf(", yarn factor %g from %d", r->factor, r->original_max);
    printf("%s\n", r->interleave ? "" : ", not interleaved");
    printf("weights     %s%s%s, embeddings %s\n", *c->dtype ? c->dtype : "type not given",
           c->quant.fp8 ? ", FP8 in 128x128 blocks" : "", c->quant.ue8m0 ? " (ue8m0)" : "",
           c->tie_embeddings ? "tied" : "not tied");
}

static void print_components(const struct model_sizes *z, double unit, const char *unit_name)
{
    printf("\n# component          parameters            bytes %12s\n", unit_name);
    for (int p = 0; p < PART_COUNT; p++)
        printf("%-15s %15" PRId64 " %16" PRId64 " %12.3f\n", tensor_part_name((enum tensor_part)p),
               z->params[p], z->bytes[p], (double)z->bytes[p] / unit);
    printf("%-15s %15" PRId64 " %16" PRId64 " %12.3f\n", "total", z->params_total, z->bytes_total,
           (double)z->bytes_total / unit);
    printf("%-15s %15" PRId64 "\n", "active a token", z->params_active);
    printf("# %.4g B parameters, %.4g B active a token\n", (double)z->params_total / 1e9,
           (double)z->params_active / 1e9);
}

static void print_text(const struct show *s, const struct show_args *a)
{
    const struct model_sizes *z = &s->sizes;
    bool small = z->bytes_total < (int64_t)1 << 33;
    double unit = small ? 1 << 20 : 1 << 30;
    const char *unit_name = small ? "MiB" : "GiB";
    print_architecture(s);
    print_components(z, unit, unit_name);
    printf("\n# a rank, %s; redundant: the fewest extra expert copies that fill the slots\n",
           unit_name);
    printf("#   ep  slots  redundant   replicated      experts        total\n");
    for (int i = 0; i < a->eps; i++) {
        struct model_rank_sizes r;
        model_sizes_rank(&s->cfg, z, a->ep[i], &r);
        printf("%6d %6d %10d %12.3f %12.3f %12.3f\n", a->ep[i], r.slots, r.redundant,
               (double)r.replicated / unit, (double)r.routed / unit,
               (double)(r.replicated + r.routed) / unit);
    }
}

static json_t *json_config(const struct model_config *c)
{
    json_t *o = json_pack("{s:s, s:s, s:s, s:b, s:b, s:b, s:s}", "model_type", c->model_type,
                          "dtype", c->dtype, "gate", model_gate_name(c->gate), "fp8", c->quant.fp8,
                          "ue8m0", c->quant.ue8m0, "tied", c->tie_embeddings, "rope",
                          c->rope.yarn ? "yarn" : "default");
    for (int i = 0; i < SHAPE_OPTIONS; i++) {
        char key[32];
        snprintf(key, sizeof key, "%s", shape_options[i].name + 2);
        for (char *p = key; *p; p++)
            if (*p == '-') *p = '_';
        int v = *(const int *)((const char *)c + shape_options[i].offset);
        json_object_set_new(o, key, json_integer(v));
    }
    return o;
}

static enum status print_json(const struct show *s, const struct show_args *a)
{
    const struct model_sizes *z = &s->sizes;
    json_t *parts = json_object(), *ranks = json_array();
    for (int p = 0; p < PART_COUNT; p++)
        json_object_set_new(parts, tensor_part_name((enum tensor_part)p),
                            json_pack("{s:I, s:I}", "parameters", (json_int_t)z->params[p], "bytes",
                                      (json_int_t)z->bytes[p]));
    for (int i = 0; i < a->eps; i++) {
        struct model_rank_sizes r;
        model_sizes_rank(&s->cfg, z, a->ep[i], &r);
        json_array_append_new(ranks, json_pack("{s:i, s:i, s:i, s:I, s:I}", "ep", a->ep[i], "slots",
                                               r.slots, "redundant", r.redundant,
                                               "replicated_bytes", (json_int_t)r.replicated,
                                               "expert_bytes", (json_int_t)r.routed));
    }
    json_t *o = json_pack("{s:s, s:s, s:o, s:I, s:I, s:I, s:o, s:o}", "directory", s->dir, "from",
                          s->weights ? "tensors" : "config.json", "config", json_config(&s->cfg),
                          "parameters", (json_int_t)z->params_total, "active_parameters",
                          (json_int_t)z->params_active, "bytes", (json_int_t)z->bytes_total,
                          "components", parts, "ranks", ranks);
    if (!o) return error_set(ERR_BUG, "model show: cannot build the JSON");
    if (s->weights) {
        char hex[33];
        snprintf(hex, sizeof hex, "%016" PRIx64 "%016" PRIx64, s->fingerprint.hi,
                 s->fingerprint.lo);
        json_object_set_new(o, "fingerprint", json_string(hex));
    }
    json_dumpf(o, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(o);
    return OK;
}

static enum status cmd_show(int argc, char **argv)
{
    struct show_args a = {0};
    struct show s = {0};
    TRY(parse_show(argc, argv, &a));
    TRY(gather(a.dir, &s));
    if (a.json) return print_json(&s, &a);
    print_text(&s, &a);
    return OK;
}

enum status cmd_model(int argc, char **argv)
{
    const char *sub = argc > 1 ? argv[1] : "";
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_help();
            return OK;
        }
    if (strcmp(sub, "make") == 0) return cmd_make(argc - 1, argv + 1);
    if (strcmp(sub, "show") == 0) return cmd_show(argc - 1, argv + 1);
    return error_set(ERR_USAGE, "model: found \"%s\", expected make or show\n%s", sub, usage);
}
