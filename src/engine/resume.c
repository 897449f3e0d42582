/* resume.c - see resume.h. */
#include "engine/resume.h"

#include "core/clock.h"
#include "core/cpu.h"
#include "core/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TEXT = 1536 };

bool resume_wanted(const struct job *job)
{
    const char *restarts = getenv("SLURM_RESTART_COUNT");
    return job->resume || (restarts && atoi(restarts) > 0);
}

/* "; " and more text, cut off at the end. */
static void add(char text[TEXT], const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(char text[TEXT], const char *fmt, ...)
{
    size_t used = strlen(text);
    if (used && used + 3 < TEXT) {
        memcpy(text + used, "; ", 3);
        used += 2;
    }
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text + used, TEXT - used, fmt, ap);
    va_end(ap);
}

static void add_path(char text[TEXT], const char *key, const char *was, const char *is)
{
    if (strcmp(was, is) == 0)
        add(text, "%s: %s has changed since", key, is);
    else
        add(text, "%s: %s is not what %s was", key, is, was);
}

static enum status refuse(const struct job *job, const char *what)
{
    return error_set(ERR_INPUT,
                     "resume: the journal of %s was written by another job: %s: change that back "
                     "to go on with it, choose another results name, or start with --force and "
                     "without --resume to discard it",
                     job->results, what);
}

/* The journal's job file beside ours. A version that had other keys wrote one that we cannot read:
 * then the hashes decide alone. */
static void compare_settings(const struct journal_job *before, const struct job *job,
                             struct job_changes *changes)
{
    memset(changes, 0, sizeof *changes);
    if (job_compare(before->yaml, job, changes) == OK) return;
    error_clear();
    log_warn("resume: the job file of the attempts before cannot be read by this version");
}

static enum status settle_isa(struct engine *e, const struct journal_job *before)
{
    int isa = isa_parse(before->isa);
    const char *why = "";
    char what[128];
    if (isa < 0) return OK;
    if (e->job.isa != JOB_AUTO && e->job.isa != isa) {
        snprintf(what, sizeof what, "isa was %s, is %s", before->isa,
                 isa_name((enum isa)e->job.isa));
        return refuse(&e->job, what);
    }
    if (!isa_supported((enum isa)isa, &why))
        return error_set(ERR_RESOURCE,
                         "resume: the journal of %s was computed with isa %s, which needs the "
                         "instruction set %s that this host does not have, and another isa has "
                         "other bits: go on where it has it, or start with --force and without "
                         "--resume",
                         e->job.results, before->isa, why);
    e->job.isa = isa;
    return OK;
}

enum status resume_peek(struct engine *e)
{
    bool found = false;
    struct journal_identity identity;
    char *dir = journal_dir_of(e->job.results);
    if (!dir) return error_set(ERR_RESOURCE, "no memory to look for a journal");
    enum status st = resume_wanted(&e->job) ? journal_identify(dir, &found, &identity) : OK;
    free(dir);
    if (st != OK || !found) return st;
    struct job_changes changes;
    compare_settings(&identity.job, &e->job, &changes);
    st = changes.fixed[0] ? refuse(&e->job, changes.fixed) : settle_isa(e, &identity.job);
    if (st == OK && changes.free[0])
        log_info("resume: since the first attempt %s; results do not depend on it", changes.free);
    journal_identity_free(&identity);
    return st;
}

/* All that is different, also what only the files themselves tell. */
static enum status check_same(const struct engine *e, const struct journal_job *before,
                              const struct journal_job *now)
{
    struct job_changes changes;
    struct job was;
    char what[TEXT] = "";
    if (before->model == now->model && before->tokens == now->tokens &&
        before->settings == now->settings && before->requests == now->requests)
        return OK;
    compare_settings(before, &e->job, &changes);
    if (changes.fixed[0]) add(what, "%s", changes.fixed);
    if (strcmp(before->isa, now->isa) != 0) add(what, "isa was %s, is %s", before->isa, now->isa);
    bool known = job_parse(before->yaml, &was) == OK;
    if (!known) error_clear();
    if (before->model != now->model)
        add_path(what, "model", known ? was.model : "it", e->job.model);
    if (before->tokens != now->tokens || before->requests != now->requests)
        add_path(what, "tokens", known ? was.tokens : "it", e->job.tokens);
    if (before->requests != now->requests)
        add(what, "requests were %lld, are %lld", (long long)before->requests,
            (long long)now->requests);
    return refuse(&e->job, what[0] ? what : "its settings differ");
}

static enum status go_on(struct engine *e, const struct journal_job *now, const char *dir)
{
    struct journal_report r;
    double begin = clock_now_s();
    TRY(journal_resume(dir, now, e->job.journal_fsync_s, &r, &e->journal));
    e->attempt = (int)r.attempts;
    e->resumed_s = r.last_t;
    log_info("resumed: attempt %d, %lld of %lld requests are finished; %lld torn bytes dropped",
             e->attempt + 1, (long long)r.finished, (long long)r.requests,
             (long long)r.dropped_bytes);
    log_info("resumed: %.1f MB of journal read in %.2f s", (double)r.bytes * 1e-6,
             clock_now_s() - begin);
    if (r.missing_segments)
        log_warn("resume: %d segment(s) of %s are missing: what they held is computed again",
                 r.missing_segments, dir);
    return OK;
}

enum status resume_open(struct engine *e, const struct journal_job *now, const char *dir)
{
    bool found = false;
    struct journal_identity identity;
    if (!resume_wanted(&e->job) || access(dir, F_OK) != 0)
        return journal_create(dir, now, e->job.force, e->job.journal_fsync_s, &e->journal);
    TRY(journal_identify(dir, &found, &identity));
    if (!found) return go_on(e, now, dir);
    enum status st = check_same(e, &identity.job, now);
    journal_identity_free(&identity);
    return st == OK ? go_on(e, now, dir) : st;
}
