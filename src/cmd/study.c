/* study.c - `moebatch study STUDY.yaml`: reads the study, builds its plant, runs the sweep or the
 * days over all ranks, prints, writes. */
#include "cluster/study_day.h"
#include "cluster/study_plant.h"
#include "cluster/study_sweep.h"
#include "cmd/cmd.h"
#include "cmd/exchange_mpi.h"
#include "cmd/provenance.h"
#include "cmd/study_job.h"
#include "cmd/study_unit.h"
#include "core/clock.h"
#include "core/log.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SETS_MAX = 64 };

struct study_args {
    const char *path;
    const char *set[SETS_MAX];
    int n_set;
    bool fit, dump, force;
    double progress_s;
};

static void help(void)
{
    puts("moebatch study STUDY.yaml [options]   (alone, or started by mpirun to share the work)\n"
         "\n"
         "Predicts what prefill and decode units of a model on given hardware yield and cost:\n"
         "simulates whole days request by request, or runs a sweep over deployments.\n"
         "\n"
         "  --set KEY=VALUE  override a key, as often as wanted; the last wins\n"
         "  --fit-workload   print the session parameters that meet `targets`, and stop\n"
         "  --progress       a line every 5 s\n"
         "  --force          replace an existing results file\n"
         "  --dump-config    print the study with all its defaults, and stop\n"
         "  --hardware FILE  with a job file of `moebatch run` instead of a study: predicts the "
         "run\n"
         "                   on the host that `moebatch calibrate` measured into FILE (default\n"
         "                   inputs/hardware/this-machine.yaml); --set KEY=VALUE and --force as\n"
         "                   above, --output FILE.h5 keeps the figures\n"
         "  --unit ...       tables of one prefill and one decode unit: see study --unit --help\n"
         "\nKeys of the study file; `sweep: {KEY: [VALUE, ...]}` runs every combination:");
    study_help(stdout);
    puts("");
    cmd_help_exit_codes(stdout);
}

static enum status parse(int argc, char **argv, struct study_args *a)
{
    memset(a, 0, sizeof *a);
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--set") && i + 1 < argc) {
            if (a->n_set == SETS_MAX) return error_set(ERR_USAGE, "more than %d --set", SETS_MAX);
            a->set[a->n_set++] = argv[++i];
        } else if (!strcmp(argv[i], "--fit-workload"))
            a->fit = true;
        else if (!strcmp(argv[i], "--dump-config"))
            a->dump = true;
        else if (!strcmp(argv[i], "--force"))
            a->force = true;
        else if (!strcmp(argv[i], "--progress"))
            a->progress_s = 5;
        else if (argv[i][0] == '-' || a->path)
            return error_set(ERR_USAGE, "study: unexpected argument %s: see moebatch study --help",
                             argv[i]);
        else
            a->path = argv[i];
    }
    return a->path ? OK
                   : error_set(ERR_USAGE, "study: no study file given: moebatch study "
                                          "STUDY.yaml");
}

static enum status print_fit(const struct study *study)
{
    struct study s = *study;
    struct workload_means m;
    if (!s.has_targets)
        return error_set(ERR_INPUT, "--fit-workload: targets is missing from the study");
    TRY(workload_fit(&s.targets, s.seed, &s.session, &m));
    printf("# means                  target       fitted\n"
           "  prompt           %12.2f %12.2f tokens\n"
           "  output           %12.2f %12.2f tokens\n"
           "  hit_ratio        %12.4f %12.4f\n"
           "  kv_per_output    %12.2f %12.2f tokens\n"
           "# parameters: 400,000 sampled sessions; outputs exact\n"
           "session:\n  turns: %.6g\n  first_tokens: %.6g\n  output_tokens: %.6g\n"
           "  output_sigma: %.6g\n  # given\n  first_sigma: %g\n  followup_tokens: %g\n"
           "  followup_sigma: %g\n  returned: %g\n  think_s: %g\n  think_sigma: %g\n"
           "  max_prompt: %g\n",
           s.targets.prompt, m.prompt, s.targets.output, m.output, s.targets.hit_ratio, m.hit_ratio,
           s.targets.kv_per_output, m.kv_per_output, s.session.turns, s.session.first_tokens,
           s.session.output_tokens, s.session.output_sigma, s.session.first_sigma,
           s.session.followup_tokens, s.session.followup_sigma, s.session.returned,
           s.session.think_s, s.session.think_sigma, s.session.max_prompt);
    return OK;
}

/* What goes into the results file beside the figures. */
struct origin {
    char *line, *hosts; /* owned */
    char start_utc[32];
};

static enum status provenance(struct study_file *f, const struct study *s,
                              const struct origin *from)
{
    char utc[32], program[128], libraries[512];
    clock_utc(utc);
    snprintf(program, sizeof program, "moebatch %s", cmd_gitrev());
    provenance_libraries(libraries, sizeof libraries);
    char *yaml = study_yaml(s);
    if (!yaml || !from->line || !from->hosts) {
        free(yaml);
        return error_set(ERR_RESOURCE, "study: no memory");
    }
    const struct {
        const char *key, *value;
    } attrs[] = {{"study_yaml", yaml},
                 {"argv", from->line},
                 {"program_version", program},
                 {"git_revision", cmd_gitrev()},
                 {"libraries", libraries},
                 {"hosts", from->hosts},
                 {"level", study_level_name(s->level)},
                 {"start_utc", from->start_utc},
                 {"end_utc", utc}};
    enum status st = OK;
    for (size_t i = 0; i < sizeof attrs / sizeof *attrs && st == OK; i++)
        st = study_file_attr(f, attrs[i].key, attrs[i].value);
    free(yaml);
    return st;
}

struct outcome {
    const struct study *study;
    const struct study_plant *plant;
    const struct study_day *day;
    const struct study_sweep *sweep;
};

static enum status write_file(const struct outcome *o, const struct origin *from)
{
    struct study_file *f;
    if (!*o->study->results) return OK;
    TRY(study_file_create(o->study->results, &f));
    enum status st = provenance(f, o->study, from);
    if (st == OK && o->day) st = study_day_write(o->plant, o->day, f);
    if (st == OK && o->sweep) st = study_file_sweep(f, o->sweep->row, (size_t)o->sweep->n);
    if (st != OK) {
        study_file_abort(f);
        return st;
    }
    st = study_file_commit(f);
    if (st == OK) printf("# results: %s\n", o->study->results);
    return st;
}

static enum status run_sweep(const struct study *s, const struct sweep_axes *axes,
                             const struct exchange *ex, const struct origin *from)
{
    struct study_sweep sweep;
    TRY(study_sweep_run(s, axes, ex, &sweep));
    enum status st = OK;
    if (ex->rank == 0) {
        study_sweep_print(s, &sweep, stdout);
        struct outcome o = {.study = s, .sweep = &sweep};
        st = write_file(&o, from);
        for (int q = 0; st == OK && q < 4096; q++) { /* nothing left to resume */
            char path[STUDY_PATH_BYTES + 32];
            snprintf(path, sizeof path, "%s.points.%d", s->results, q);
            if (!*s->results || unlink(path) != 0) break;
        }
    }
    study_sweep_free(&sweep);
    return st;
}

static enum status run_days(const struct study *s, const struct exchange *ex, double progress_s,
                            const struct origin *from)
{
    struct study_plant *p = calloc(1, sizeof *p);
    struct study_day day = {.n_figures = 0};
    if (!p) return error_set(ERR_RESOURCE, "study: no memory");
    enum status st = study_plant_build(s, p);
    if (st == OK) st = study_plant_days(p);
    if (st == OK) st = study_day_run(p, ex, progress_s, &day);
    if (st == OK && ex->rank == 0) {
        struct outcome o = {.study = s, .plant = p, .day = &day};
        study_day_print(p, &day, stdout);
        st = write_file(&o, from);
    }
    study_day_free(&day);
    study_plant_free(p);
    free(p);
    return st;
}

enum status cmd_study(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--unit")) return cmd_study_unit(argc - 1, argv + 1);
    if (cmd_wants_help(argc, argv)) {
        help();
        return OK;
    }
    for (int i = 1; i < argc; i++)
        if (argv[i][0] != '-' && study_is_job(argv[i])) return cmd_study_job(argc, argv);
    struct study_args a;
    struct study s;
    struct exchange ex;
    TRY(parse(argc, argv, &a));
    struct sweep_axes *axes = calloc(1, sizeof *axes);
    if (!axes) return error_set(ERR_RESOURCE, "study: no memory");
    enum status st = study_read(a.path, a.n_set, a.set, &s, axes);
    if (st == OK && *s.results && !a.force && !a.dump && !a.fit && access(s.results, F_OK) == 0)
        st = error_set(ERR_INPUT,
                       "results: %s exists and would be overwritten: pass --force, or "
                       "choose another name",
                       s.results);
    if (st != OK) {
        free(axes);
        return st;
    }
    struct origin from = {.line = provenance_argv(argc, argv)};
    clock_utc(from.start_utc);
    st = exchange_mpi_create(&ex);
    if (st == OK) {
        from.hosts = provenance_hosts();
        if (a.dump || a.fit) {
            if (ex.rank == 0 && a.dump) study_dump(&s, stdout);
            if (ex.rank == 0 && a.fit) st = print_fit(&s);
        } else if (axes->n > 0)
            st = run_sweep(&s, axes, &ex, &from);
        else
            st = run_days(&s, &ex, a.progress_s, &from);
    }
    exchange_mpi_free(&ex);
    free(from.line);
    free(from.hosts);
    free(axes);
    return st;
}
