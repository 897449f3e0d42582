/* job.h - one job: what the job file, `--set` and the defaults say, and how it fits the ranks.
 *
 * struct job is plain data without pointers: rank 0 reads it, everybody else may receive its
 * bytes. Life: job_read (file and overrides) -> job_resolve (autos, legality, ranks) -> const.
 * Every key lives once, in the table of config/job.c, which drives YAML, `--set`, `--help`,
 * `--dump-config` and the text kept in the results file.
 *
 * Errors: ERR_INPUT for the file and its values, ERR_USAGE for `--set`, ERR_RESOURCE when the
 * units do not fit the ranks that mpirun started; the message names file:line:column, key,
 * what was found and what is legal.
 */
#ifndef CONFIG_JOB_H
#define CONFIG_JOB_H

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define JOB_AUTO (-1)       /* an integer or a choice that the program works out */
#define JOB_PATH_BYTES 1024 /* paths, with the final NUL */

/* JOB_AUTO in job.backend means auto; likewise for isa. */
enum job_backend { JOB_BACKEND_CPU, JOB_BACKEND_CUDA, JOB_BACKEND_CUDA_EMU };
enum job_numerics { JOB_NUMERICS_CHECKPOINT, JOB_NUMERICS_BF16, JOB_NUMERICS_FP32 };
enum job_prefix_cache { JOB_PREFIX_MEMORY, JOB_PREFIX_OFF };
enum job_order { JOB_ORDER_FILE, JOB_ORDER_PREFIX };
enum job_disk_write { JOB_DISK_ALL, JOB_DISK_REUSED, JOB_DISK_NONE };
enum job_transport { JOB_TRANSPORT_SHM, JOB_TRANSPORT_MPI }; /* JOB_AUTO: shm inside a node */

/* One kind of unit. A role that the job does not have is not `present` and has units 0. */
struct job_role {
    bool present;
    bool overlap;          /* communication of one micro-batch under computation of the other */
    int units;             /* communicators of this role */
    int ep;                /* ranks of one unit */
    int redundant_experts; /* extra expert slots of one unit */
    int chunk_tokens;      /* prompt tokens a rank takes in one prefill step; prefill, mixed */
    int max_batch;         /* requests a rank decodes in one step; decode, mixed */
    int microbatches;      /* 1 or 2 */
};

/* Defaults of a request's own fields. */
struct job_sampling {
    int max_tokens;
    int top_k; /* 0: no limit */
    double temperature, top_p;
    uint64_t seed;
    bool logprobs, prompt_logprobs, ignore_eos;
};

struct job {
    char model[JOB_PATH_BYTES];
    char tokens[JOB_PATH_BYTES];
    char results[JOB_PATH_BYTES];
    char responses[JOB_PATH_BYTES]; /* "": none */
    char prices[JOB_PATH_BYTES];
    char trace[JOB_PATH_BYTES]; /* "": none */
    int backend;                /* enum job_backend or JOB_AUTO */
    int isa;                    /* enum isa (core/cpu.h) or JOB_AUTO */
    int numerics;               /* enum job_numerics */
    int threads_per_rank;       /* JOB_AUTO until job_resolve */
    int ranks_per_node;         /* JOB_AUTO: real nodes; else size of virtual nodes */
    struct job_role prefill, decode, mixed;
    struct {
        int max_tokens_per_rank; /* rows a rank may send in one low-latency dispatch */
        double recv_rows_factor; /* normal mode's receive buffer over the mean load */
        int transport;           /* enum job_transport or JOB_AUTO */
    } ep;
    struct {
        int page_tokens;
        int pages_per_rank; /* JOB_AUTO: as many as the memory allows */
        int prefix_cache;   /* enum job_prefix_cache */
        struct {
            char dir[JOB_PATH_BYTES]; /* "": no disk tier */
            double bytes;             /* of all files there, open segments apart */
            int write;                /* enum job_disk_write */
        } disk;
    } kv;
    int order;        /* enum job_order; JOB_AUTO until job_resolve */
    int order_window; /* requests read ahead to find those that begin alike */
    struct job_sampling sampling;
    struct {
        char load[JOB_PATH_BYTES]; /* "": uniform load */
    } experts;
    double journal_fsync_s; /* seconds between fsyncs of the journal; 0: after every record */
    double watchdog_s;      /* a step that takes longer ends the job; 0: never */
    double progress_s;      /* seconds between progress lines in a log */
    bool strict;            /* the first failed request ends the job */
    bool force;             /* replace an existing results file */
    bool resume;            /* continue from the journal */
};

/* Reads a job file and applies n overrides "key.sub=value" in order, then checks what can be
 * checked without a model. path NULL: defaults and overrides only. On failure *job is undefined. */
enum status job_read(const char *path, int n, const char *const *overrides, struct job *job);

/* What the start knows: the ranks that mpirun started and the model's config.json. */
struct job_facts {
    int ranks;          /* size of MPI_COMM_WORLD */
    int ranks_on_node;  /* most ranks on one real node (for threads_per_rank) */
    int cores_per_node; /* cores those share */
    int experts;        /* routed experts; 0: a dense model */
    int n_group;        /* expert groups */
};

/* Fills the autos that the start can know (ep, redundant_experts, threads_per_rank,
 * ep.max_tokens_per_rank; `mixed: {units: 1, ep: ranks}` when no role was given) and refuses
 * what is not legal, with the arithmetic and the nearest legal values. */
enum status job_resolve(struct job *job, const struct job_facts *facts);

/* Ranks that the units ask for; 0 while an ep is still auto. */
int job_ranks(const struct job *job);

/* Writes the job as YAML that job_read reads back to the same struct. docs: each key with a
 * comment. */
void job_dump(const struct job *job, bool docs, FILE *out);

/* The same without comments as a string, for the results file; the caller frees it. NULL when
 * memory is short. */
char *job_yaml(const struct job *job);

/* Reads what job_yaml wrote. ERR_INPUT where that was another version with other keys. */
enum status job_parse(const char *yaml, struct job *job);

/* What differs between an earlier job, as job_yaml wrote it, and this one, each as "KEY was VALUE,
 * is VALUE; ...": what decides bits (model, tokens and isa apart, which the paths and `auto` do not
 * tell), and the rest. --force and --resume do not count. */
struct job_changes {
    char fixed[1024], free[1024];
};
enum status job_compare(const char *yaml, const struct job *job, struct job_changes *out);

/* The list of keys for --help. */
void job_help(FILE *out);

/* Names of choices as the job file writes them. */
const char *job_backend_name(int backend);
const char *job_numerics_name(int numerics);

#endif
