/* study_unit.c - `moebatch study --unit`: what one prefill unit and one decode unit do by batch
 * size: step, TPOT, throughput, exposed communication, bounds of the stages, memory.
 *
 * 1. read the file and the flags   2. read hardware, model and load
 * 3. for each level and role: the table, the stages of its last row, the memory
 */
#include "cmd/study_unit.h"

#include "cluster/unit_load.h"
#include "cluster/unit_model.h"
#include "cmd/cmd.h"
#include "cmd/provenance.h"
#include "cmd/study_unit_rows.h"
#include "config/options.h"
#include "core/clock.h"

#include <math.h>
#include <mpi.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define PATH_BYTES 512

struct unit_role_study {
    bool present, overlap, mtp;
    int ep, nodes, redundant_experts, microbatches, tokens, kv;
    double acceptance;
};

struct unit_study {
    char results[PATH_BYTES], hardware[PATH_BYTES], hardware_dir[PATH_BYTES], model[PATH_BYTES],
        load[PATH_BYTES];
    double imbalance;
    int level, combine;
    struct unit_role_study prefill, decode;
};

static const char *const levels[] = {"tables", "calibrated", "both", NULL};
static const char *const combines[] = {"node", "group_tree", NULL};

#define AT(f) .offset = offsetof(struct unit_study, f)
#define TEXT(k, f, d, text)                                                                \
    {                                                                                      \
        .key = k, .type = OPTION_STRING, AT(f), .bytes = PATH_BYTES, .def = d, .unit = "", \
        .doc = text                                                                        \
    }
#define INT(k, f, d, lo, hi, a, text)                                                       \
    {                                                                                       \
        .key = k, .type = OPTION_INT, AT(f), .def = d, .min = lo, .max = hi, .may_auto = a, \
        .unit = "", .doc = text                                                             \
    }
#define BOOL(k, f, d, text)                                                     \
    {                                                                           \
        .key = k, .type = OPTION_BOOL, AT(f), .def = d, .unit = "", .doc = text \
    }
#define CHOICE(k, f, d, list, text)                                                                \
    {                                                                                              \
        .key = k, .type = OPTION_CHOICE, AT(f), .def = d, .choices = list, .unit = "", .doc = text \
    }
#define NUM(k, f, d, lo, hi, text)                                                          \
    {                                                                                       \
        .key = k, .type = OPTION_DOUBLE, AT(f), .def = d, .min = lo, .max = hi, .unit = "", \
        .doc = text                                                                         \
    }
#define ROLE(r, e)                                                                             \
    INT(#r ".ep", r.ep, e, 1, 65536, 0, "GPUs of the unit"),                                   \
        INT(#r ".nodes", r.nodes, "0", 0, 65536, 0, "0: as few as hold ep GPUs"),              \
        INT(#r ".redundant_experts", r.redundant_experts, "auto", 0, 65536, 1, "extra slots"), \
        INT(#r ".microbatches", r.microbatches, "2", 1, 2, 0, "1 or 2"),                       \
        BOOL(#r ".overlap", r.overlap, "true", "communication under computation")

static const struct option rows[] = {
    TEXT("results", results, "null", "results, .h5, replaced where it exists"),
    TEXT("hardware", hardware, "h800", "name in hardware_dir, or path of a YAML file"),
    TEXT("hardware_dir", hardware_dir, "inputs/hardware", "where hardware files are"),
    TEXT("model", model, "inputs/shapes/deepseek-v3", "directory with a config.json"),
    CHOICE("level", level, "both", levels, "kernel tables only, or with trace constants"),
    CHOICE("combine", combine, "node", combines, "what COMBINE sends between nodes"),
    NUM("imbalance", imbalance, "0", 0, 1000, "largest / mean rank load; 0: from load, or 1"),
    TEXT("load", load, "",
         "expert load, placed by EPLB: results of a run (.h5), or text, one number an expert"),
    ROLE(prefill, "32"),
    INT("prefill.chunk_tokens", prefill.tokens, "16384", 1, 1 << 24, 0, "tokens of a GPU and step"),
    INT("prefill.prompt_tokens", prefill.kv, "4096", 1, 1 << 24, 0, "length of a prompt"),
    ROLE(decode, "144"),
    INT("decode.max_batch", decode.tokens, "128", 1, 1 << 20, 0, "requests of a GPU"),
    INT("decode.mean_kv", decode.kv, "4989", 1, 1 << 24, 0, "mean context of a request"),
    BOOL("decode.mtp", decode.mtp, "false", "speculate one token a step"),
    NUM("decode.mtp_acceptance", decode.acceptance, "0.85", 0, 1, "share of them kept"),
};
static const struct option_table table = {"unit study", rows, sizeof rows / sizeof *rows};

void cmd_study_unit_help(FILE *out)
{
    fputs("moebatch study --unit [FILE.yaml] [--set KEY=VALUE]... [--hardware NAME] "
          "[--model DIR]\n                      [--level tables|calibrated|both]\n\n"
          "Keys of the file and of --set:\n",
          out);
    options_help(&table, out);
}

static enum status parse_args(int argc, char **argv, struct unit_study *s)
{
    static const char *const flags[] = {"--hardware", "--model", "--level"};
    options_defaults(&table, s, sizeof *s);
    for (int i = 1; i < argc; i++)
        if (argv[i][0] != '-') {
            TRY(options_read(&table, argv[i], s));
        } else if (strcmp(argv[i], "--unit")) {
            i++; /* the value of a flag */
        }
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] != '-' || !strcmp(argv[i], "--unit")) continue;
        if (i + 1 == argc) return error_set(ERR_USAGE, "%s needs a value", argv[i]);
        char text[PATH_BYTES + 32] = "";
        for (int f = 0; f < 3; f++)
            if (!strcmp(argv[i], flags[f]))
                snprintf(text, sizeof text, "%s=%s", flags[f] + 2, argv[i + 1]);
        if (!*text && strcmp(argv[i], "--set"))
            return error_set(ERR_USAGE, "unknown option %s: see moebatch study --unit --help",
                             argv[i]);
        TRY(options_set(&table, *text ? text : argv[i + 1], s));
        i++;
    }
    return OK;
}

static void print_stages(const struct unit_step *s)
{
    puts("# stage        us_a_microbatch  bound     launch   memory  compute  network  latency  "
         "kernels");
    for (int i = 0; i < STAGE_COUNT; i++) {
        const struct stage_time *t = &s->stage[i];
        if (t->us <= 0) continue;
        printf("  %-12s %15.1f  %-8s %8.1f %8.1f %8.1f %8.1f %8.1f %8.1f\n",
               stage_name((enum stage)i), t->us, stage_bound_name(t->bound), t->part[BOUND_LAUNCH],
               t->part[BOUND_MEMORY], t->part[BOUND_COMPUTE], t->part[BOUND_NETWORK],
               t->part[BOUND_LATENCY], t->part[BOUND_KERNELS]);
    }
    printf("# step: layers %.2f ms, MTP %.2f ms, overhead %.2f ms; compute %.2f, communication "
           "%.2f, exposed %.2f ms\n",
           s->layers_s * 1e3, s->mtp_s * 1e3, s->overhead_s * 1e3, s->compute_s * 1e3,
           s->comm_s * 1e3, s->exposed_s * 1e3);
}

static void print_memory(const struct unit_speed *u, double kv)
{
    struct unit_memory m;
    unit_memory(u, &m);
    puts("# memory of a GPU, GB: capacity  replicated  experts  absorbed  buffers  workspace  "
         "reserve  kv_cache");
    printf("  %30.1f %11.1f %8.1f %9.1f %8.1f %10.1f %8.1f %9.1f\n", m.capacity * 1e-9,
           m.replicated * 1e-9, m.routed * 1e-9, m.absorbed * 1e-9, m.comm * 1e-9,
           m.activation * 1e-9, m.reserve * 1e-9, m.kv * 1e-9);
    printf("# %.0f KV tokens fit a GPU (%.0f bytes each): %.0f requests of %.0f tokens\n",
           unit_kv_tokens(u), m.kv_per_token, floor(unit_kv_tokens(u) / kv), kv);
}

static void print_prefill(struct unit_speed *u, const struct unit_role_study *r, int gpus_per_node,
                          struct unit_rows *rows)
{
    struct unit_step s = {0};
    puts("# tokens_a_gpu    step_ms  exposed_ms  tok/s/GPU  tok/s/node");
    for (int tokens = r->tokens / 8 > 0 ? r->tokens / 8 : 1;; tokens *= 2) {
        if (tokens > r->tokens) tokens = r->tokens;
        double prompt = r->kv < tokens ? r->kv : tokens;
        unit_prefill_step(u, tokens, tokens / prompt * unit_prompt_pairs(prompt, 0), &s);
        printf("  %12d %10.1f %11.1f %10.0f %11.0f\n", tokens, s.step_s * 1e3, s.exposed_s * 1e3,
               tokens / s.step_s, tokens / s.step_s * gpus_per_node);
        unit_rows_batch(rows, tokens, &s, (double)NAN, tokens / s.step_s, gpus_per_node, true);
        if (tokens == r->tokens) break;
    }
    print_stages(&s);
    print_memory(u, r->kv);
    unit_rows_stages(rows, &s);
    unit_rows_memory(rows, u);
}

static void print_decode(struct unit_speed *u, const struct unit_role_study *r, int gpus_per_node,
                         struct unit_rows *rows)
{
    struct unit_step s = {0};
    double yield = unit_tokens_per_step(u), most = unit_max_batch(u, r->kv);
    puts("# batch_a_gpu    step_ms    TPOT_ms  tok/s/request  tok/s/GPU  tok/s/node  exposed_ms");
    for (int b = r->tokens / 8 > 0 ? r->tokens / 8 : 1, add = b;; b += add) {
        if (b > r->tokens) b = r->tokens;
        unit_decode_step(u, b, r->kv, &s);
        double rate = b * yield / s.step_s;
        printf("  %11d %10.2f %10.2f %14.2f %10.0f %11.0f %11.2f%s\n", b, s.step_s * 1e3,
               s.step_s / yield * 1e3, yield / s.step_s, rate, rate * gpus_per_node,
               s.exposed_s * 1e3, b > most ? "  KV does not fit" : "");
        unit_rows_batch(rows, b, &s, s.step_s / yield, rate, gpus_per_node, b <= most);
        if (b >= r->tokens) break;
    }
    printf("# largest batch that fits: %.0f of max_batch %d\n", most, r->tokens);
    print_stages(&s);
    print_memory(u, r->kv);
    unit_rows_stages(rows, &s);
    unit_rows_memory(rows, u);
}

struct expert_load {
    float *load; /* [layers, experts] owned; NULL: none */
    int layers;
};

static enum status study_role(const struct unit_study *study, const struct hardware *hw,
                              const struct model_config *m, const struct expert_load *load,
                              enum unit_role role, enum unit_level level, struct unit_rows *rows)
{
    const struct unit_role_study *r = role == UNIT_PREFILL ? &study->prefill : &study->decode;
    struct unit_config c;
    struct unit_speed *u;
    unit_config_defaults(&c, role);
    c.level = level;
    c.combine = (enum unit_combine)study->combine;
    c.ep = r->ep, c.nodes = r->nodes, c.redundant_experts = r->redundant_experts;
    c.micro_batches = r->microbatches, c.overlap = r->overlap;
    c.imbalance = study->imbalance, c.load = load->load, c.load_layers = load->layers;
    *(role == UNIT_PREFILL ? &c.chunk_tokens : &c.max_batch) = r->tokens;
    c.mtp = r->mtp, c.mtp_acceptance = r->acceptance;
    TRY(unit_speed_create(hw, m, &c, &u));
    printf("\n# %s unit of %s on %s, level %s: EP%d on %d nodes, %d slots a GPU, imbalance %.3f, "
           "%d micro-batches, overlap %s",
           role == UNIT_PREFILL ? "prefill" : "decode", study->model, hw->name, levels[level],
           unit_gpus(u), unit_nodes(u), unit_slots_per_gpu(u), unit_imbalance(u), c.micro_batches,
           c.overlap ? "on" : "off");
    if (role == UNIT_PREFILL)
        printf(", prompts of %d tokens, COMBINE %s\n", r->kv, combines[c.combine]);
    else
        printf(", KV %d, MTP %s%s", r->kv, c.mtp ? "on, acceptance " : "off\n", "");
    if (role == UNIT_DECODE && c.mtp) printf("%.2f\n", c.mtp_acceptance);
    if (unit_extrapolated(u)) printf("# %s\n", unit_extrapolated(u));
    rows->role = role == UNIT_PREFILL ? "prefill" : "decode";
    rows->level = levels[level];
    (role == UNIT_PREFILL ? print_prefill : print_decode)(u, r, hw->gpus_per_node, rows);
    unit_speed_free(u);
    return OK;
}

static enum status study_levels(const struct unit_study *s, const struct hardware *hw,
                                const struct model_config *m, const struct expert_load *load,
                                struct unit_rows *rows)
{
    printf("# hardware %s: %s\n", hw->name, hw->source);
    for (int level = UNIT_TABLES; level <= UNIT_CALIBRATED; level++) {
        if (s->level != 2 && s->level != level) continue;
        TRY(study_role(s, hw, m, load, UNIT_PREFILL, (enum unit_level)level, rows));
        TRY(study_role(s, hw, m, load, UNIT_DECODE, (enum unit_level)level, rows));
    }
    return OK;
}

static enum status write_results(const struct unit_study *s, const struct unit_rows *rows, int argc,
                                 char **argv)
{
    struct study_file *f;
    char libraries[512], program[128], utc[32];
    char *words = provenance_argv(argc, argv), *line = NULL, *yaml = NULL;
    if (words && asprintf(&line, "moebatch study%s", words + strlen("moebatch")) < 0) line = NULL;
    size_t bytes = 0;
    FILE *m = open_memstream(&yaml, &bytes);
    if (m) options_dump(&table, s, 0, m);
    bool dumped = m && fclose(m) == 0;
    enum status st = line && dumped ? study_file_create(s->results, &f)
                                    : error_set(ERR_RESOURCE, "study: no memory");
    if (st == OK) {
        snprintf(program, sizeof program, "moebatch %s", cmd_gitrev());
        provenance_libraries(libraries, sizeof libraries);
        clock_utc(utc);
        const char *const attrs[][2] = {{"study_yaml", yaml},
                                        {"argv", line},
                                        {"program_version", program},
                                        {"git_revision", cmd_gitrev()},
                                        {"libraries", libraries},
                                        {"start_utc", utc},
                                        {"end_utc", utc}};
        for (size_t i = 0; i < sizeof attrs / sizeof *attrs && st == OK; i++)
            st = study_file_attr(f, attrs[i][0], attrs[i][1]);
        if (st == OK) st = unit_rows_write(rows, f);
        if (st == OK)
            st = study_file_commit(f);
        else
            study_file_abort(f);
        if (st == OK) printf("# results: %s\n", s->results);
    }
    free(words);
    free(line);
    free(yaml);
    return st;
}

/* Under mpirun every rank does the same (little) work and one speaks. */
static bool silence_others(bool *speaks)
{
    int started = 0, rank = 0;
    MPI_Initialized(&started);
    if (started) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    *speaks = rank == 0;
    return rank == 0 || freopen("/dev/null", "w", stdout);
}

enum status cmd_study_unit(int argc, char **argv)
{
    bool speaks;
    if (!silence_others(&speaks)) return error_set(ERR_RESOURCE, "cannot open /dev/null");
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            cmd_study_unit_help(stdout);
            return OK;
        }
    struct unit_study s;
    struct hardware hw;
    struct model_config m;
    struct expert_load load = {NULL, 0};
    TRY(parse_args(argc, argv, &s));
    TRY(hardware_find(s.hardware_dir, s.hardware, &hw));
    enum status st = model_config_read(s.model, &m);
    if (st == OK && *s.load) st = unit_load_read(s.load, &m, &load.load, &load.layers);
    struct unit_rows *rows = calloc(1, sizeof *rows);
    if (st == OK && !rows) st = error_set(ERR_RESOURCE, "study: no memory");
    if (st == OK) st = study_levels(&s, &hw, &m, &load, rows);
    if (st == OK && *s.results && speaks) st = write_results(&s, rows, argc, argv);
    free(rows);
    free(load.load);
    hardware_free(&hw);
    return st;
}
