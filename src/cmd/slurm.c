/* slurm.c - `moebatch slurm JOB.yaml`: prints an sbatch file for that job. Nodes, memory and time
 * are plan/'s numbers. The script's body is slurm/run.sbatch, part of this program. */
#include "checkpoint/sizes.h"
#include "cmd/cmd.h"
#include "cmd/host_args.h"
#include "config/job_args.h"
#include "plan/plan_time.h"

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

static void help(void)
{
    puts("moebatch slurm JOB.yaml [options] > job.sbatch && sbatch job.sbatch\n"
         "\n"
         "Prints an sbatch file for the job: nodes, tasks, CPUs, GPUs, memory and time limit from\n"
         "`moebatch plan`'s numbers, and a body that stops it in time, requeues and resumes it.\n"
         "Partition, account, modules and the like: the site block of slurm/run.sbatch, or\n"
         "SBATCH_PARTITION and so on.\n");
    host_args_help(HOST_ARGS_SLURM, stdout);
    job_args_help(stdout);
}

/* What the sbatch file says besides the plan. */
struct sizes {
    int tasks, cpus, gpus;
    double margin, node_bytes; /* margin: beside what the plan counts */
    double load_s, seconds;
    double flops, gflops; /* of the estimate without a hardware file */
    struct plan_time time;
};

static enum status choose_tasks(const struct job *job, const struct host_args *a, int *ranks,
                                struct sizes *z)
{
    int asked = job_ranks(job);
    *ranks = asked > 0 ? asked : (int)a->ranks;
    if (asked > 0 && a->ranks > 0 && (int)a->ranks != asked)
        return error_set(ERR_USAGE, "--ranks is %d, but the job's units are %d ranks",
                         (int)a->ranks, asked);
    if (*ranks == 0 && !job->prefill.present && !job->mixed.present) *ranks = 1;
    if (*ranks == 0)
        return error_set(ERR_USAGE, "the job leaves ep to the number of ranks: give --ranks N");
    z->tasks = a->tasks > 0 ? (int)a->tasks : 8;
    if (z->tasks > *ranks) z->tasks = *ranks;
    int cores = (int)a->cores;
    if (cores > 0 && cores < z->tasks)
        return error_set(ERR_USAGE,
                         "--cores-per-node %d for %d tasks a node: lower "
                         "--tasks-per-node",
                         cores, z->tasks);
    z->cpus = cores > 0                           ? cores / z->tasks
              : job->threads_per_rank != JOB_AUTO ? job->threads_per_rank
                                                  : 1;
    z->gpus = a->gpus > 0 ? (int)a->gpus : job->backend == JOB_BACKEND_CUDA ? z->tasks : 0;
    return OK;
}

/* Slurm counts what the plan does not: page cache of the model's files, the launcher, libraries. */
static double margin_of(int tasks)
{
    return GIB + tasks * 0.1 * GIB;
}

static enum status make_plan(const struct job *job, const struct host_args *a, struct sizes *z,
                             struct plan *p)
{
    int ranks = 0;
    TRY(choose_tasks(job, a, &ranks, z));
    z->margin = margin_of(z->tasks);
    double have = a->memory_gib * GIB - z->margin;
    if (a->memory_gib > 0 && have <= 0) have = 1;
    struct plan_setup setup = {
        .job = job,
        .ranks = ranks,
        .ranks_per_host = z->tasks,
        .cores_per_host = z->cpus * z->tasks,
        .host_bytes = a->memory_gib > 0 ? have : -1,
    };
    TRY(plan_make(&setup, p));
    z->node_bytes = memory_sum(&p->host) + z->margin;
    if (plan_check(p) == OK) return OK;
    error_clear();
    double kv = p->host.kv + p->host.index;
    plan_free(p);
    return error_set(
        ERR_RESOURCE,
        "%d ranks on a node need %.1f GiB and KV pages %.1f GiB, --memory is %.1f GiB: "
        "lower --tasks-per-node, chunk_tokens, max_batch or kv.pages_per_rank",
        z->tasks, (z->node_bytes - kv) / GIB, kv / GIB, a->memory_gib);
}

/* Twice the predicted time, or without a hardware file twice what the FLOPs take at some speed; too
 * little only costs a restart. */
static enum status choose_time(const struct plan *p, const struct host_args *a, struct sizes *z)
{
    struct model_sizes m;
    model_sizes_compute(p->model, p->ck, &m);
    z->load_s = (double)m.bytes_total / p->hosts / 1e9;
    TRY(plan_time_predict(p, a->hardware, &z->time));
    z->flops = 2.0 * (double)m.params_active * (p->tokens.prompt + p->tokens.output);
    z->gflops = a->gflops > 0 ? a->gflops : z->gpus ? 50e3 : 5.0 * z->cpus;
    double work = z->time.by != PLAN_TIME_NONE && a->gflops <= 0
                      ? z->time.total_s
                      : z->flops / (z->gflops * 1e9 * p->ranks);
    z->seconds = 2 * (z->load_s + work) + 300;
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

static void print_time(const struct plan *p, const struct sizes *z, bool given)
{
    printf("# Time is an estimate: %lld requests, %.0f prompt + at most %.0f output tokens, ",
           (long long)p->tokens.requests, p->tokens.prompt, p->tokens.output);
    if (z->time.by != PLAN_TIME_NONE && !given)
        printf("%.0f s predicted\n# by %s", z->time.total_s, z->time.hardware);
    else
        printf("%.3g FLOP\n# at %.4g GFLOP/s a rank (%s)", z->flops, z->gflops,
               given ? "given" : "a guess: give --hardware or --gflops");
    printf(", %.0f s to load at 1 GB/s a node; twice that + 300 s.\n"
           "# A job that needs longer goes on after its time limit.\n",
           z->load_s);
}

static void print_sizes(const struct plan *p, const struct sizes *z, const struct host_args *a)
{
    const struct rank_memory *m = &p->host;
    printf("# ---- the size of this job\n"
           "# %d ranks, %d a node. Memory of the fullest node, GiB: %.2f shared weights, %.2f "
           "experts,\n# %.2f KV pages (%d a %s rank, %d a decode rank%s),\n"
           "# %.2f activations, %.2f all-to-all, %.2f program and MPI, %.2f to spare.\n",
           p->ranks, z->tasks, m->shared / GIB, m->experts / GIB, (m->kv + m->index) / GIB,
           p->role[0].pages, rank_role_name(p->role[0].role), p->role[p->roles - 1].pages,
           p->pages_cut ? ", cut to fit" : "", (m->activations + m->growth) / GIB, m->ep / GIB,
           (m->requests + m->program) / GIB, z->margin / GIB);
    if (!a->time) print_time(p, z, a->gflops > 0);
    printf("#SBATCH --job-name=moebatch\n#SBATCH --nodes=%d\n#SBATCH --ntasks=%d\n"
           "#SBATCH --ntasks-per-node=%d\n#SBATCH --cpus-per-task=%d\n",
           p->hosts, p->ranks, z->tasks, z->cpus);
    if (z->gpus) printf("#SBATCH --gpus-per-node=%d\n", z->gpus);
    printf("#SBATCH --mem=%.0fG\n", ceil(z->node_bytes / GIB));
    /* At most a day: sites refuse more, and the job goes on anyway. */
    long minutes = (long)(fmin(z->seconds, 86400) / 60 / 5 + 1) * 5;
    if (minutes > 1440) minutes = 1440;
    if (a->time)
        printf("#SBATCH --time=%s\n", a->time);
    else
        printf("#SBATCH --time=%02ld:%02ld:00\n", minutes / 60, minutes % 60);
}

/* The file slurm/run.sbatch with other sizes and with the job filled in. */
static enum status print_script(const struct plan *p, const struct sizes *z,
                                const struct host_args *a)
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
    print_sizes(p, z, a);
    fwrite(site, 1, (size_t)(body - site), stdout);
    fputs("# ---- the job\nset --", stdout);
    for (int i = 1; i < a->n_rest; i++) print_quoted(a->rest[i]);
    int least = p->role[0].pages < p->role[p->roles - 1].pages ? p->role[0].pages
                                                               : p->role[p->roles - 1].pages;
    if (p->pages_cut) printf(" --set kv.pages_per_rank=%d", least);
    fputs(" \"$@\"\n\n", stdout);
    fputs(body, stdout);
    return OK;
}

static enum status make(const struct job *job, const struct host_args *a)
{
    struct plan p;
    struct sizes z;
    memset(&z, 0, sizeof z);
    TRY(make_plan(job, a, &z, &p));
    enum status st = choose_time(&p, a, &z);
    if (st == OK) st = print_script(&p, &z, a);
    plan_free(&p);
    return st;
}

enum status cmd_slurm(int argc, char **argv)
{
    if (cmd_wants_help(argc, argv)) {
        help();
        return OK;
    }
    struct host_args a;
    struct job_args *args = calloc(1, sizeof *args);
    enum status st = args ? OK : error_set(ERR_RESOURCE, "no memory for the job");
    if (st == OK) st = host_args_parse(HOST_ARGS_SLURM, argc, argv, &a);
    if (st == OK) st = job_args_parse(a.n_rest, a.rest, args);
    if (st == OK) st = make(&args->job, &a);
    if (args) host_args_free(&a);
    free(args);
    return st;
}
