/* report.c - `moebatch report`.
 *
 * 1. command line   2. open and check the file   3. read what it holds   4. summary   5. page
 */
#include "cmd/report.h"

#include "account/summary.h"
#include "cmd/cmd.h"
#include "cmd/report_html.h"
#include "cmd/report_read.h"
#include "cmd/report_run.h"
#include "cmd/report_study.h"
#include "cmd/report_trace.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct report_args {
    const char *file, *html, *trace;
    int rank; /* of the trace; -1 = the first with a whole step */
};

static void help(void)
{
    puts("moebatch report FILE.h5 [options]\n"
         "\n"
         "Prints the summary of a results file, also of an unfinished job's, and draws it.\n"
         "\n"
         "  --html OUT.html   a page with all charts, which needs no network\n"
         "  --trace FILE.json the trace of the run (run --trace): adds a picture of its schedule\n"
         "  --rank N          the rank of that picture; else the first with a whole step\n");
    cmd_help_exit_codes(stdout);
}

static enum status parse(int argc, char **argv, struct report_args *a)
{
    *a = (struct report_args){.rank = -1};
    const char *rank = NULL;
    const struct {
        const char *flag;
        const char **value;
    } flags[] = {{"--html", &a->html}, {"--trace", &a->trace}, {"--rank", &rank}};
    const size_t n_flags = sizeof flags / sizeof *flags;
    for (int i = 1; i < argc; i++) {
        size_t k = 0;
        while (k < n_flags && strcmp(argv[i], flags[k].flag) != 0) k++;
        if (k < n_flags && i + 1 >= argc)
            return error_set(ERR_USAGE, "%s needs a value: see moebatch report --help", argv[i]);
        if (k < n_flags)
            *flags[k].value = argv[++i];
        else if (argv[i][0] == '-')
            return error_set(ERR_USAGE, "unknown option %s: see moebatch report --help", argv[i]);
        else if (a->file)
            return error_set(ERR_USAGE, "two files, %s and %s: expected one", a->file, argv[i]);
        else
            a->file = argv[i];
    }
    if (!a->file) return error_set(ERR_USAGE, "no results file: moebatch report FILE.h5");
    if ((a->trace || rank) && !a->html)
        return error_set(ERR_USAGE, "%s adds to the page: give --html OUT.html too",
                         a->trace ? "--trace" : "--rank");
    if (rank && !a->trace) return error_set(ERR_USAGE, "--rank needs --trace FILE.json");
    char *end = NULL;
    if (rank) a->rank = (int)strtol(rank, &end, 10);
    if (rank && (*end || end == rank || a->rank < 0))
        return error_set(ERR_USAGE, "--rank %s: expected a number from 0", rank);
    return OK;
}

static void print_head(const struct report_file *f)
{
    char *program = report_attr(f, "program_version"), *start = report_attr(f, "start_utc");
    char *status = report_attr(f, "status");
    printf("# %s: %s, by %s, started %s\n", f->path, status ? status : "-", program ? program : "-",
           start ? start : "-");
    if (f->partial) puts("# PARTIAL: the job had not ended when this file was written");
    free(program);
    free(start);
    free(status);
}

/* The table of the terminal as text, to be freed. */
static char *summary_text(const struct summary *s)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f) return NULL;
    summary_print(s, NULL, f);
    fclose(f);
    return text;
}

/* run: NULL when the file has no run. */
static enum status write_body(const struct report_args *a, const struct report_file *f,
                              const struct report_run *run, FILE *out)
{
    if (run) {
        char line[300];
        const struct summary *s = &run->summary;
        snprintf(line, sizeof line, "%s: %s", s->valid ? "VALID" : "INVALID", s->reason);
        html_verdict(out, s->valid, line);
    }
    if (f->partial)
        html_verdict(out, false, "PARTIAL: the job had not ended when this file was written");
    if (run) TRY(report_run_html(run, out));
    if (report_study_found(f)) TRY(report_study_html(f, out));
    if (a->trace) TRY(report_trace_html(a->trace, a->rank, out));
    html_provenance(out, f);
    char *text = run ? summary_text(&run->summary) : NULL;
    if (text) html_folded(out, "the summary as text", text);
    free(text);
    return OK;
}

/* Whether both names lead to the same file. */
static bool same_file(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Writes beside the page and renames, so that a failure leaves no half page. */
static enum status write_page(const struct report_args *a, const struct report_file *f,
                              const struct report_run *run)
{
    char *tmp = NULL;
    if (asprintf(&tmp, "%s.tmp", a->html) < 0) return error_set(ERR_RESOURCE, "out of memory");
    FILE *out = fopen(tmp, "w");
    enum status st = OK;
    if (!out) st = error_set(ERR_RESOURCE, "%s: cannot write: %s", a->html, strerror(errno));
    if (out) {
        const char *slash = strrchr(a->file, '/');
        char title[256];
        snprintf(title, sizeof title, "moebatch: %s", slash ? slash + 1 : a->file);
        html_begin(out, title);
        st = write_body(a, f, run, out);
        html_end(out);
        bool bad = ferror(out) != 0;
        bad = fclose(out) != 0 || bad;
        if (st == OK && (bad || rename(tmp, a->html) != 0))
            st = error_set(ERR_RESOURCE, "%s: cannot write: %s", a->html, strerror(errno));
        if (st != OK) remove(tmp);
    }
    free(tmp);
    return st;
}

static enum status report_one(const struct report_args *a, const struct report_file *f)
{
    bool is_run = report_run_found(f), is_study = report_study_found(f);
    if (!is_run && !is_study)
        return error_set(ERR_INPUT,
                         "%s has neither /requests of a run nor /account/hourly or /sweep of a "
                         "study: nothing to report",
                         f->path);
    struct report_run *run = NULL;
    enum status st = is_run ? report_run_read(f, &run) : OK;
    if (st == OK) print_head(f);
    if (st == OK && is_run) summary_print(&run->summary, NULL, stdout);
    if (st == OK && is_study) st = report_study_print(f, stdout);
    if (st == OK && a->html) st = write_page(a, f, run);
    if (st == OK && a->html) printf("# page: %s\n", a->html);
    report_run_free(run);
    return st;
}

enum status cmd_report(int argc, char **argv)
{
    if (cmd_wants_help(argc, argv)) {
        help();
        return OK;
    }
    struct report_args args;
    TRY(parse(argc, argv, &args));
    if (args.html && same_file(args.html, args.file))
        return error_set(ERR_USAGE, "--html %s is the results file itself: choose another name",
                         args.html);
    struct report_file f;
    TRY(report_open(args.file, &f));
    enum status st = report_one(&args, &f);
    report_close(&f);
    return st;
}
