/* job.c - the table of the job file's keys, and reading and writing a job through it. What the
 * keys mean for the ranks is in job_resolve.c. */
#include "config/job.h"

#include "config/options.h"
#include "core/cpu.h"

#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(JOB_AUTO == OPTION_AUTO, "one value means auto");
_Static_assert(ISA_PORTABLE == 0 && ISA_AMX == 4 && ISA_COUNT == 5, "isas[] follows core/cpu.h");

static const char *const backends[] = {"cpu", "cuda", "cuda-emu", NULL};
static const char *const isas[] = {"portable", "avx2", "avx512", "avx512_bf16", "amx", NULL};
static const char *const numerics[] = {"checkpoint", "bf16", "fp32", NULL};
static const char *const prefix_caches[] = {"memory", "off", NULL};
static const char *const disk_writes[] = {"all", "reused", "none", NULL};
static const char *const orders[] = {"file", "prefix", NULL};
static const char *const transports[] = {"shm", "mpi", NULL};

#define FIELD(f) offsetof(struct job, f)
/* Whether results depend on a key; paths and isa are looked at by what they stand for. */
#define DECIDES(f)                  \
    (FIELD(f) == FIELD(numerics) || \
     (FIELD(f) >= FIELD(sampling) && FIELD(f) < FIELD(sampling) + sizeof(struct job_sampling)))
#define PATH(k, f, d, text)                                                                     \
    {                                                                                           \
        .key = k, .type = OPTION_STRING, .offset = FIELD(f), .bytes = JOB_PATH_BYTES, .def = d, \
        .unit = "", .doc = text                                                                 \
    }
#define INTEGER(k, f, d, lo, hi, u, text)                                                 \
    {                                                                                     \
        .key = k, .type = OPTION_INT, .offset = FIELD(f), .def = d, .min = lo, .max = hi, \
        .unit = u, .fixed = DECIDES(f), .doc = text                                       \
    }
#define INT_AUTO(k, f, d, lo, hi, u, text)                                                \
    {                                                                                     \
        .key = k, .type = OPTION_INT, .offset = FIELD(f), .def = d, .min = lo, .max = hi, \
        .may_auto = 1, .unit = u, .fixed = DECIDES(f), .doc = text                        \
    }
#define NUMBER(k, f, d, lo, hi, u, text)                                                     \
    {                                                                                        \
        .key = k, .type = OPTION_DOUBLE, .offset = FIELD(f), .def = d, .min = lo, .max = hi, \
        .unit = u, .fixed = DECIDES(f), .doc = text                                          \
    }
#define FLAG(k, f, d, text)                                                      \
    {                                                                            \
        .key = k, .type = OPTION_BOOL, .offset = FIELD(f), .def = d, .unit = "", \
        .fixed = DECIDES(f), .doc = text                                         \
    }
#define CHOICE(k, f, d, names, any, text)                                                \
    {                                                                                    \
        .key = k, .type = OPTION_CHOICE, .offset = FIELD(f), .def = d, .choices = names, \
        .may_auto = any, .unit = "", .fixed = DECIDES(f), .doc = text                    \
    }
#define SECTION(k, f, text)                                                              \
    {                                                                                    \
        .key = k, .type = OPTION_SECTION, .offset = FIELD(f), .def = "null", .unit = "", \
        .doc = text                                                                      \
    }

/* What every role has; the union of both kinds is a mixed unit. */
#define ROLE(r)                                                                                   \
    INTEGER(#r ".units", r.units, "1", 1, 65536, "units", "units, each one communicator"),        \
        INT_AUTO(#r ".ep", r.ep, "auto", 1, 65536, "ranks",                                       \
                 "ranks of a unit, all in one all-to-all"),                                       \
        INT_AUTO(#r ".redundant_experts", r.redundant_experts, "auto", 0, 65536, "experts",       \
                 "extra expert slots of a unit for replicas of busy experts"),                    \
        INTEGER(#r ".microbatches", r.microbatches, "2", 1, 2, "", "batches a step is cut into"), \
        FLAG(#r ".overlap", r.overlap, "true",                                                    \
             "move one micro-batch's data while the other one computes")
#define ROLE_PREFILL(r)                                                                 \
    INTEGER(#r ".chunk_tokens", r.chunk_tokens, "16384", 1, 1 << 24, "tokens per rank", \
            "prompt tokens of one prefill step")
#define ROLE_DECODE(r)                                                            \
    INTEGER(#r ".max_batch", r.max_batch, "128", 1, 1 << 20, "requests per rank", \
            "requests that decode together")

static const struct option job_options[] = {
    PATH("model", model, NULL, "checkpoint, a Hugging Face directory"),
    PATH("tokens", tokens, NULL, "requests, .jsonl (OpenAI batch form) or .h5"),
    PATH("results", results, NULL, "results, .h5"),
    PATH("responses", responses, "null", "also OpenAI batch responses, as they complete"),
    CHOICE("backend", backend, "auto", backends, 1, "where kernels run"),
    CHOICE("isa", isa, "auto", isas, 1, "CPU instructions; auto: the best that every rank has"),
    CHOICE("numerics", numerics, "checkpoint", numerics, 0,
           "number formats: as the checkpoint, no FP8 activations, or the FP32 reference"),
    INT_AUTO("threads_per_rank", threads_per_rank, "auto", 1, 4096, "threads",
             "OpenMP threads; auto: cores of the node over its ranks"),
    INT_AUTO("ranks_per_node", ranks_per_node, "auto", 1, 65536, "ranks",
             "a number makes virtual nodes; auto: the real ones"),
    SECTION("prefill", prefill.present, "units that compute prompts"),
    ROLE(prefill),
    ROLE_PREFILL(prefill),
    SECTION("decode", decode.present, "units that generate tokens"),
    ROLE(decode),
    ROLE_DECODE(decode),
    SECTION("mixed", mixed.present, "units that do both; instead of prefill and decode"),
    ROLE(mixed),
    ROLE_PREFILL(mixed),
    ROLE_DECODE(mixed),
    INT_AUTO("ep.max_tokens_per_rank", ep.max_tokens_per_rank, "auto", 1, 1 << 20, "tokens",
             "rows a rank may send in one decode dispatch; auto: max_batch"),
    NUMBER("ep.recv_rows_factor", ep.recv_rows_factor, "2", 0.001, 1024, "",
           "prefill's receive buffer over the mean number of rows"),
    CHOICE("ep.transport", ep.transport, "auto", transports, 1,
           "how ranks reach each other; auto: shm inside a node, mpi between nodes"),
    INTEGER("kv.page_tokens", kv.page_tokens, "64", 1, 4096, "tokens", "tokens of a KV page"),
    INT_AUTO("kv.pages_per_rank", kv.pages_per_rank, "auto", 1, INT_MAX, "pages",
             "KV pages of a rank; auto: what the memory allows"),
    CHOICE("kv.prefix_cache", kv.prefix_cache, "memory", prefix_caches, 0,
           "keep pages of prompts for requests that begin alike"),
    PATH("kv.disk.dir", kv.disk.dir, "null",
         "folder that keeps pages of prompts for other jobs; shared by any number of jobs"),
    NUMBER("kv.disk.bytes", kv.disk.bytes, "64e9", 1e6, 1e18, "bytes",
           "most that the folder may hold, beside one open segment per writing rank"),
    CHOICE("kv.disk.write", kv.disk.write, "all", disk_writes, 0,
           "pages that go there: all, those of prompts that came again, none"),
    CHOICE("order", order, "auto", orders, 1,
           "prefix: requests that begin alike go out together; auto: with a prefix cache"),
    INTEGER("order_window", order_window, "16384", 1, 1 << 24, "requests",
            "read ahead to find them; none goes out more than 4 times as many places late"),
    INTEGER("sampling.max_tokens", sampling.max_tokens, "64", 0, INT_MAX, "tokens",
            "output tokens of a request; 0: score the prompt"),
    NUMBER("sampling.temperature", sampling.temperature, "0", 0, 100, "", "0: greedy"),
    NUMBER("sampling.top_p", sampling.top_p, "1", 0, 1, "", "probability mass to sample from"),
    INTEGER("sampling.top_k", sampling.top_k, "0", 0, INT_MAX, "tokens", "0: no limit"),
    {.key = "sampling.seed",
     .type = OPTION_UINT64,
     .offset = FIELD(sampling.seed),
     .def = "0",
     .fixed = 1,
     .unit = "",
     .doc = "request i without a seed uses hash(seed, i)"},
    FLAG("sampling.logprobs", sampling.logprobs, "false", "keep the chosen tokens' logprobs"),
    FLAG("sampling.prompt_logprobs", sampling.prompt_logprobs, "false",
         "keep the prompt tokens' logprobs"),
    FLAG("sampling.ignore_eos", sampling.ignore_eos, "false", "generate past end tokens"),
    PATH("experts.load", experts.load, "null", "expert load: results file of an earlier run"),
    PATH("prices", prices, "inputs/prices/deepseek_r1.yaml", "price table"),
    PATH("trace", trace, "null", "timeline for Perfetto, .json"),
    NUMBER("journal_fsync_s", journal_fsync_s, "5", 0, 86400, "s",
           "time between fsyncs of the journal; 0: every record"),
    NUMBER("watchdog_s", watchdog_s, "600", 0, 864000, "s",
           "a job without progress for so long ends; 0: never"),
    NUMBER("progress_s", progress_s, "5", 0.1, 86400, "s", "time between progress lines"),
    FLAG("strict", strict, "false", "the first request that fails ends the job"),
    FLAG("force", force, "false", "replace an existing results file"),
    FLAG("resume", resume, "false", "continue an interrupted job from its journal"),
};

static const struct option_table table = {
    .what = "job file",
    .options = job_options,
    .n = sizeof job_options / sizeof *job_options,
};

/* The paths without a default must be given. */
static enum status check_required(const char *path, const struct job *job)
{
    for (int i = 0; i < table.n; i++) {
        const struct option *o = &table.options[i];
        if (o->type == OPTION_STRING && !o->def && !((const char *)job)[o->offset])
            return error_set(ERR_INPUT, "%s: %s is missing: add \"%s: PATH\" (%s)",
                             path ? path : "job", o->key, o->key, o->doc);
    }
    return OK;
}

static enum status check_roles(const char *path, const struct job *job)
{
    const char *name = path ? path : "job";
    if (job->mixed.present && (job->prefill.present || job->decode.present))
        return error_set(ERR_INPUT,
                         "%s: mixed and %s are both given: units are either mixed or split; take "
                         "one away, as in --set mixed=null",
                         name, job->prefill.present ? "prefill" : "decode");
    if (job->prefill.present != job->decode.present)
        return error_set(ERR_INPUT,
                         "%s: %s is given without %s: prompts and tokens need both kinds of "
                         "units; add %s or use mixed instead",
                         name, job->prefill.present ? "prefill" : "decode",
                         job->prefill.present ? "decode" : "prefill",
                         job->prefill.present ? "decode" : "prefill");
    return OK;
}

static enum status check_values(const char *path, const struct job *job)
{
    const char *name = path ? path : "job";
    const struct job_role *roles[] = {&job->prefill, &job->decode, &job->mixed};
    const char *names[] = {"prefill", "decode", "mixed"};
    if (job->sampling.top_p <= 0)
        return error_set(ERR_INPUT, "%s: sampling.top_p: found 0, expected a number above 0", name);
    if (job->kv.disk.dir[0] && job->kv.prefix_cache == JOB_PREFIX_OFF)
        return error_set(ERR_INPUT,
                         "%s: kv.disk.dir is given, but kv.prefix_cache is off: pages from disk "
                         "enter the prefix cache, so set it to memory, or kv.disk.dir to null",
                         name);
    for (int i = 1; i < 3; i++)
        if (roles[i]->present && job->ep.max_tokens_per_rank != JOB_AUTO &&
            roles[i]->max_batch > job->ep.max_tokens_per_rank)
            return error_set(ERR_INPUT,
                             "%s: %s.max_batch is %d, but the dispatch buffer holds %d tokens a "
                             "rank: set ep.max_tokens_per_rank to %d or auto, or lower "
                             "%s.max_batch",
                             name, names[i], roles[i]->max_batch, job->ep.max_tokens_per_rank,
                             roles[i]->max_batch, names[i]);
    return OK;
}

enum status job_read(const char *path, int n, const char *const *overrides, struct job *job)
{
    options_defaults(&table, job, sizeof *job);
    if (path) TRY(options_read(&table, path, job));
    for (int i = 0; i < n; i++) TRY(options_set(&table, overrides[i], job));
    TRY(check_required(path, job));
    TRY(check_roles(path, job));
    return check_values(path, job);
}

void job_dump(const struct job *job, bool docs, FILE *out)
{
    options_dump(&table, job, docs, out);
}

char *job_yaml(const struct job *job)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *m = open_memstream(&text, &bytes);
    if (!m) return NULL;
    job_dump(job, false, m);
    if (fclose(m) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

enum status job_parse(const char *yaml, struct job *job)
{
    options_defaults(&table, job, sizeof *job);
    return options_parse(&table, "earlier job", yaml, strlen(yaml), job);
}

enum status job_compare(const char *yaml, const struct job *job, struct job_changes *out)
{
    struct job before;
    TRY(job_parse(yaml, &before));
    before.force = job->force;
    before.resume = job->resume;
    options_differ(&table, 1, &before, job, out->fixed, sizeof out->fixed);
    options_differ(&table, 0, &before, job, out->free, sizeof out->free);
    return OK;
}

void job_help(FILE *out)
{
    options_help(&table, out);
}

const char *job_backend_name(int backend)
{
    return backend == JOB_AUTO ? "auto" : backends[backend];
}

const char *job_numerics_name(int value)
{
    return numerics[value];
}
