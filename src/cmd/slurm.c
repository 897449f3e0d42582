/* slurm.c - `moebatch slurm JOB.yaml`: prints an sbatch file for that job. Nodes and memory follow
 * from the job and the model with the same functions that the start of `run` uses; the time is an
 * estimate, and says so. The script's body is slurm/run.sbatch, part of this program. */
#include "checkpoint/sizes.h"
#include "cmd/cmd.h"
#include "config/job_args.h"
#include "core/cpu.h"
#include "engine/memory.h"
#include "model/kernels_compose.h"
#include "requests/token_file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GIB ((double)(1u << 30))

extern const char slurm_script[] __attribute__((visibility("hidden")));
__asm__(".pushsection .rodata\n"
        "slurm_script:\n"
        ".incbin \"slurm/run.sbatch\"\n"
        ".byte 0\n"
        ".popsection\n");

/* Of the command line; 0: not given. */
struct slurm_args {
    double ranks, tasks, cores, gpus, memory_gib, gflops;
    const char *time;
    char **rest; /* what belongs to the job */
    int n_rest;
};

static const struct {
    const char *name;
    size_t offset;
    const char *doc;
} numbers[] = {
#define NUMBER(name, field, doc) {name, offsetof(struct slurm_args, field), doc}
    NUMBER("--ranks", ranks, "ranks of a job whose ep is auto"),
    NUMBER("--tasks-per-node", tasks, "ranks on a node (default 8)"),
    NUMBER("--cores-per-node", cores, "cores of a node (default: threads_per_rank a rank)"),
    NUMBER("--gpus-per-node", gpus, "GPUs of a node (default 0; backend cuda: one a rank)"),
    NUMBER("--memory", memory_gib, "GiB of a node: KV pages are limited to what fits"),
    NUMBER("--gflops", gflops, "speed of a rank in GFLOP/s, for the time (default: a guess)"),
#undef NUMBER
};
enum { NUMBERS = sizeof numbers / sizeof *numbers };

static void help(void)
{
    puts("moebatch slurm JOB.yaml [options] > job.sbatch && sbatch job.sbatch\n"
         "\n"
         "Prints an sbatch file for the job: nodes, tasks, CPUs, GPUs, memory and time limit from\n"
         "its numbers, and a body that stops it in time, requeues and resumes it. Partition,\n"
         "account, modules and the like: the site block of slurm/run.sbatch, or SBATCH_PARTITION\n"
         "and so on.\n");
    for (int i = 0; i < NUMBERS; i++) printf("  %-18s N     %s\n", numbers[i].name, numbers[i].doc);
    puts("  --time HH:MM:SS          instead of the estimate\n");
    job_args_help(stdout);
}

/* Takes our options out; the others are the job's. */
static enum status parse(int argc, char **argv, struct slurm_args *a)
{
    a->rest[a->n_rest++] = argv[0];
    for (int i = 1; i < argc; i++) {
        int k = 0;
        while (k < NUMBERS && strcmp(argv[i], numbers[k].name) != 0) k++;
        bool time = strcmp(argv[i], "--time") == 0;
        if (k == NUMBERS && !time) {
            a->rest[a->n_rest++] = argv[i];
            continue;
        }
        if (++i >= argc) return error_set(ERR_USAGE, "%s needs a value", argv[i - 1]);
        if (time) {
            a->time = argv[i];
            continue;
        }
        char *end = 0;
        double v = strtod(argv[i], &end);
        if (*end || !(v > 0))
            return error_set(ERR_USAGE, "%s is %s, expected a number above 0", argv[i - 1],
                             argv[i]);
        *(double *)((char *)a + numbers[k].offset) = v;
    }
    return OK;
}

/* What the sbatch file says. */
struct plan {
    int ranks, nodes, tasks, cpus, gpus;
    struct rank_memory memory; /* of the ranks of the fullest node, overhead apart */
    double overhead, node_bytes;
    double pages[2];           /* of a prefill or mixed rank, of a decode rank */
    bool pages_cut;            /* fewer than useful: they go on the command line */
    double flops, load_s, gflops, seconds;
    int64_t requests, tokens_in, tokens_out;
};

static enum status resolve(struct job *job, const struct slurm_args *a,
                           const struct model_config *cfg, struct plan *p)
{
    int asked = job_ranks(job);
    p->ranks = asked > 0 ? asked : (int)a->ranks;
    if (asked > 0 && a->ranks > 0 && (int)a->ranks != asked)
        return error_set(ERR_USAGE, "--ranks is %d, but the job's units are %d ranks",
                         (int)a->ranks, asked);
    if (p->ranks == 0 && !job->prefill.present && !job->mixed.present) p->ranks = 1;
    if (p->ranks == 0)
        return error_set(ERR_USAGE, "the job leaves ep to the number of ranks: give --ranks N");
    p->tasks = a->tasks > 0 ? (int)a->tasks : 8;
    if (p->tasks > p->ranks) p->tasks = p->ranks;
    p->nodes = (p->ranks + p->tasks - 1) / p->tasks;
    int cores = (int)a->cores;
    if (cores > 0 && cores < p->tasks)
        return error_set(ERR_USAGE, "--cores-per-node %d for %d tasks a node: lower "
                         "--tasks-per-node", cores, p->tasks);
    p->cpus = cores > 0 ? cores / p->tasks
              : job->threads_per_rank != JOB_AUTO ? job->threads_per_rank : 1;
    p->gpus = a->gpus > 0 ? (int)a->gpus : job->backend == JOB_BACKEND_CUDA ? p->tasks : 0;
    struct job_facts facts = {
        .ranks = p->ranks,
        .ranks_on_node = p->tasks,
        .cores_per_node = p->cpus * p->tasks,
        .experts = cfg->experts,
        .n_group = cfg->n_group,
    };
    return job_resolve(job, &facts);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static enum status rank_needs(const struct job *job, const struct checkpoint *ck,
                              enum rank_role role, double pages, struct rank_memory *out)
{
    const struct model_config *cfg = checkpoint_config(ck);
    const struct job_role *c = memory_role(job, role);
    struct kernels kernels;
    struct weights w;
    int isa = ISA_AVX512_BF16;
    while (!isa_supported((enum isa)isa, 0)) isa--;
    TRY(kernels_compose(job->isa != JOB_AUTO ? (enum isa)job->isa : (enum isa)isa, &kernels));
    TRY(weights_plan(ck, &kernels, (enum numerics)job->numerics,
                     (cfg->experts + c->redundant_experts) / c->ep, &w));
    int per_node = job->ranks_per_node > 0 ? job->ranks_per_node : c->ep;
    int nodes = (c->ep + per_node - 1) / per_node;
    enum status st = memory_of_rank(job, cfg, &w, role, nodes, pages, out);
    weights_free(&w);
    return st;
}

/* The fullest node holds consecutive ranks: as many as it has tasks of the hungrier kind. */
static void add_ranks(struct rank_memory *node, const struct rank_memory *rank, int ranks)
{
    node->shared = rank->shared > node->shared ? rank->shared : node->shared;
    node->experts += ranks * rank->experts;
    node->kv += ranks * rank->kv;
    node->buffers += ranks * rank->buffers;
    node->ep += ranks * rank->ep;
}

static double sum_of(const struct rank_memory *m)
{
    return m->shared + m->experts + m->kv + m->buffers + m->ep;
}

static enum status plan_memory(const struct job *job, const struct checkpoint *ck,
                               const struct slurm_args *a, struct plan *p)
{
    const struct model_config *cfg = checkpoint_config(ck);
    bool split = !job->mixed.present;
    enum rank_role roles[] = {split ? RANK_PREFILL : RANK_MIXED, RANK_DECODE};
    struct rank_memory needs[2] = {0}, node = {0};
    double page = (double)memory_page_bytes(job, cfg);
    int count[2] = {p->tasks, 0}, n = split ? 2 : 1;
    for (int i = 0; i < n; i++) {
        p->pages[i] = job->kv.pages_per_rank != JOB_AUTO
                          ? job->kv.pages_per_rank
                          : memory_useful_pages(job, cfg, roles[i]);
        TRY(rank_needs(job, ck, roles[i], p->pages[i], &needs[i]));
    }
    if (split) { /* both kinds of a unit smaller than a node share it */
        int many = sum_of(&needs[1]) > sum_of(&needs[0]);
        const struct job_role *c = many ? &job->decode : &job->prefill;
        int64_t ranks = (int64_t)c->units * c->ep;
        count[many] = ranks < p->tasks ? (int)ranks : p->tasks;
        count[!many] = p->tasks - count[many];
    }
    for (int i = 0; i < n; i++) add_ranks(&node, &needs[i], count[i]);
    /* Code, MPI's own buffers, the requests' index: measured at 40 to 90 MiB a rank. */
    p->overhead = GIB + p->tasks * 0.1 * GIB;
    double have = a->memory_gib * GIB, rest = sum_of(&node) - node.kv + p->overhead;
    if (have > 0 && rest + node.kv > have) {
        if (job->kv.pages_per_rank != JOB_AUTO || rest + p->tasks * page > have)
            return error_set(ERR_RESOURCE,
                             "%d ranks on a node need %.1f GiB and KV pages %.1f GiB, --memory is "
                             "%.1f GiB: lower --tasks-per-node, chunk_tokens, max_batch or "
                             "kv.pages_per_rank", p->tasks, rest / GIB, node.kv / GIB,
                             a->memory_gib);
        p->pages_cut = true;
        p->pages[0] = p->pages[1] = floor((have - rest) / p->tasks / page);
        node.kv = p->pages[0] * page * p->tasks;
    }
    p->memory = node;
    p->node_bytes = rest + node.kv;
    return OK;
}

/* ---- time ------------------------------------------------------------------------------------ */

/* Tokens of the file; of a large one every k-th request stands for k. */
static enum status count_tokens(const struct job *job, const struct model_config *cfg,
                                struct plan *p)
{
    enum { SAMPLE = 2000 };
    struct request_limits limits = {cfg->vocab, cfg->max_positions, 0};
    struct token_file *tf = 0;
    struct request r;
    memset(&r, 0, sizeof r);
    TRY(token_file_open(job->tokens, &job->sampling, &limits, &tf));
    enum status st = OK;
    p->requests = token_file_count(tf);
    int64_t step = p->requests / SAMPLE + 1;
    for (int64_t i = 0; i < p->requests && st == OK; i += step) {
        int64_t stands_for = p->requests - i < step ? p->requests - i : step;
        st = token_file_get(tf, i, &r);
        if (st != OK || r.error[0]) continue;
        p->tokens_in += r.n_tokens * stands_for;
        p->tokens_out += r.max_tokens * stands_for;
    }
    request_free(&r);
    token_file_close(tf);
    return st;
}

static enum status plan_time(const struct job *job, const struct checkpoint *ck,
                             const struct slurm_args *a, struct plan *p)
{
    struct model_sizes z;
    TRY(count_tokens(job, checkpoint_config(ck), p));
    model_sizes_compute(checkpoint_config(ck), ck, &z);
    p->flops = 2.0 * (double)z.params_active * (double)(p->tokens_in + p->tokens_out);
    p->gflops = a->gflops > 0 ? a->gflops : p->gpus ? 50e3 : 5.0 * p->cpus;
    p->load_s = (double)z.bytes_total / p->nodes / 1e9;
    p->seconds = 2 * (p->load_s + p->flops / (p->gflops * 1e9 * p->ranks)) + 300;
    return OK;
}

/* ---- output ---------------------------------------------------------------------------------- */

static void print_quoted(const char *word)
{
    bool plain = *word && strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                       "0123456789_./=,:+-") == strlen(word);
    putchar(' ');
    if (plain) {
        fputs(word, stdout);
        return;
    }
    putchar('\'');
    for (const char *c = word; *c; c++)
        if (*c == '\'')
            fputs("'\\''", stdout);
        else
            putchar(*c);
    putchar('\'');
}

static void print_sizes(const struct plan *p, const struct slurm_args *a)
{
    const struct rank_memory *m = &p->memory;
    printf("# ---- the size of this job\n"
           "# %d ranks, %d a node. Memory of the fullest node, GiB: %.2f shared weights, %.2f "
           "experts,\n# %.2f KV pages (%.0f a prefill or mixed rank, %.0f a decode rank%s),\n"
           "# %.2f activations, %.2f all-to-all, %.2f program and MPI.\n",
           p->ranks, p->tasks, m->shared / GIB, m->experts / GIB, m->kv / GIB, p->pages[0],
           p->pages[1], p->pages_cut ? ", cut to fit" : "", m->buffers / GIB, m->ep / GIB,
           p->overhead / GIB);
    if (!a->time)
        printf("# Time is an estimate: %lld requests, %lld prompt + at most %lld output tokens, "
               "%.3g FLOP\n# at %.4g GFLOP/s a rank (%s), %.0f s to load at 1 GB/s a node; twice "
               "that\n# + 300 s. A job that needs longer goes on after its time limit.\n",
               (long long)p->requests, (long long)p->tokens_in, (long long)p->tokens_out,
               p->flops, p->gflops, a->gflops > 0 ? "given" : "a guess: give --gflops", p->load_s);
    printf("#SBATCH --job-name=moebatch\n#SBATCH --nodes=%d\n#SBATCH --ntasks=%d\n"
           "#SBATCH --ntasks-per-node=%d\n#SBATCH --cpus-per-task=%d\n",
           p->nodes, p->ranks, p->tasks, p->cpus);
    if (p->gpus) printf("#SBATCH --gpus-per-node=%d\n", p->gpus);
    printf("#SBATCH --mem=%.0fG\n", ceil(p->node_bytes / GIB));
    /* At most a day: sites refuse more, and the job goes on anyway. */
    long minutes = (long)(fmin(p->seconds, 86400) / 60 / 5 + 1) * 5;
    if (minutes > 1440) minutes = 1440;
    if (a->time)
        printf("#SBATCH --time=%s\n", a->time);
    else
        printf("#SBATCH --time=%02ld:%02ld:00\n", minutes / 60, minutes % 60);
}

/* The file slurm/run.sbatch with other sizes and with the job filled in. */
static enum status print_script(const struct plan *p, const struct slurm_args *a)
{
    const char *about = strstr(slurm_script, "# Shortly before"),
               *sizes = strstr(slurm_script, "# ---- the size of this job"),
               *site = strstr(slurm_script, "# ---- this site"),
               *body = strstr(slurm_script, "# ---- from here on");
    if (!about || !sizes || !site || !body)
        return error_set(ERR_BUG, "slurm/run.sbatch has lost one of its headings");
    printf("#!/bin/bash\n"
           "# Printed by moebatch %s:  sbatch THIS_FILE [more options of moebatch run]\n#\n",
           cmd_gitrev());
    fwrite(about, 1, (size_t)(sizes - about), stdout);
    print_sizes(p, a);
    fwrite(site, 1, (size_t)(body - site), stdout);
    fputs("# ---- the job\nset --", stdout);
    for (int i = 1; i < a->n_rest; i++) print_quoted(a->rest[i]);
    if (p->pages_cut) printf(" --set kv.pages_per_rank=%.0f", p->pages[0]);
    fputs(" \"$@\"\n\n", stdout);
    fputs(body, stdout);
    return OK;
}

static enum status make(struct job *job, const struct slurm_args *a)
{
    struct plan p;
    struct checkpoint *ck = 0;
    memset(&p, 0, sizeof p);
    enum status st = checkpoint_open(job->model, &ck);
    if (st == OK) st = resolve(job, a, checkpoint_config(ck), &p);
    if (st == OK) st = plan_memory(job, ck, a, &p);
    if (st == OK) st = plan_time(job, ck, a, &p);
    if (st == OK) st = print_script(&p, a);
    checkpoint_close(ck);
    return st;
}

enum status cmd_slurm(int argc, char **argv)
{
    if (cmd_wants_help(argc, argv)) {
        help();
        return OK;
    }
    struct slurm_args a;
    memset(&a, 0, sizeof a);
    struct job_args *args = calloc(1, sizeof *args);
    a.rest = calloc((size_t)argc + 1, sizeof *a.rest);
    enum status st = args && a.rest ? OK : error_set(ERR_RESOURCE, "no memory for the job");
    if (st == OK) st = parse(argc, argv, &a);
    if (st == OK) st = job_args_parse(a.n_rest, a.rest, args);
    if (st == OK) st = make(&args->job, &a);
    free(a.rest);
    free(args);
    return st;
}
