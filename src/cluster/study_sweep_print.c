/* study_sweep_print.c - a sweep on the terminal. */
#include "cluster/study_sweep.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { ALL_ROWS = 64, FRONT_ROWS = 40, CHEAP_ROWS = 10, REASONS = 12, REASON_TEXT = 48 };

static void print_head(FILE *out)
{
    fputs("#         batch   TPOT_ms  TTFT_s  tok/s/req  dec_tok/s/GPU  pre_tok/s/GPU  P:D_GPUs  "
          "tok/s/GPU  $/Mtok   margin%  values\n",
          out);
}

static void print_row(const struct study_sweep_row *r, FILE *out)
{
    fprintf(out, "%c%c%c%6d %6.0f %9.2f %7.2f %10.2f %14.0f %14.0f %9.3f %10.0f %7.4f %9.1f  %s\n",
            r->best ? '*' : ' ', r->pareto ? 'P' : ' ', r->extrapolated ? 'e' : ' ', r->point,
            r->batch, 1e3 * r->tpot_s, r->ttft_s, r->tokens_per_s_request,
            r->decode_tokens_per_s_gpu, r->prefill_tokens_per_s_gpu, r->prefill_gpus_per_decode_gpu,
            r->tokens_per_s_gpu, r->usd_per_m_output, 100 * r->margin_on_cost, r->values);
}

/* Cheapest within the SLO first, then the cheapest of the others. */
static int by_cost(const void *x, const void *y)
{
    const struct study_sweep_row *a = *(const struct study_sweep_row *const *)x;
    const struct study_sweep_row *b = *(const struct study_sweep_row *const *)y;
    if (a->meets_slo != b->meets_slo) return a->meets_slo ? -1 : 1;
    if (a->usd_per_m_output != b->usd_per_m_output)
        return a->usd_per_m_output < b->usd_per_m_output ? -1 : 1;
    return a->point - b->point;
}

/* Fast requests first. */
static int by_speed(const void *x, const void *y)
{
    const struct study_sweep_row *a = *(const struct study_sweep_row *const *)x;
    const struct study_sweep_row *b = *(const struct study_sweep_row *const *)y;
    if (a->tokens_per_s_request != b->tokens_per_s_request)
        return a->tokens_per_s_request > b->tokens_per_s_request ? -1 : 1;
    return a->point - b->point;
}

static void print_some(const struct study_sweep_row **row, int n, int most, const char *what,
                       FILE *out)
{
    fprintf(out, "# %s%s\n", what, n > most ? " (not all)" : "");
    print_head(out);
    /* of a long front every k-th, both ends included */
    for (int i = 0, last = -1; i < most && i < n; i++) {
        int at = n > most ? (int)((double)i * (n - 1) / (most - 1) + 0.5) : i;
        if (at != last) print_row(row[at], out);
        last = at;
    }
}

struct choice {
    const char *word; /* "decode.ep=72", not terminated */
    size_t len;
    const struct study_sweep_row *best;
};

/* What each value of each axis can reach: the cheapest point within the SLO that has it. */
static void print_choices(const struct study_sweep *w, FILE *out)
{
    enum { CHOICES = 256 };
    struct choice c[CHOICES];
    int n = 0;
    for (int i = 0; i < w->n; i++) {
        const struct study_sweep_row *r = &w->row[i];
        for (const char *word = r->values; *word;) {
            size_t len = strcspn(word, " ");
            int k = 0;
            while (k < n && (c[k].len != len || memcmp(c[k].word, word, len) != 0)) k++;
            if (k == n && n < CHOICES) c[n++] = (struct choice){word, len, NULL};
            if (k < n && r->feasible && r->meets_slo &&
                (!c[k].best || r->usd_per_m_output < c[k].best->usd_per_m_output))
                c[k].best = r;
            word += len + strspn(word + len, " ");
        }
    }
    fputs("# the cheapest within the SLO for each value\n", out);
    print_head(out);
    for (int k = 0; k < n; k++) {
        fprintf(out, "# %.*s%s\n", (int)c[k].len, c[k].word, c[k].best ? "" : ": none");
        if (c[k].best) print_row(c[k].best, out);
    }
}

/* Like reasons differ in their numbers only: compare what comes before the first digit. */
static void count_reasons(const struct study_sweep *w, FILE *out)
{
    struct {
        const struct study_sweep_row *first;
        char text[REASON_TEXT];
        int n;
    } r[REASONS];
    int kinds = 0, impossible = 0, others = 0;
    for (int i = 0; i < w->n; i++) {
        const struct study_sweep_row *row = &w->row[i];
        if (row->feasible) continue;
        impossible++;
        char text[REASON_TEXT];
        size_t len = strcspn(row->reason, "0123456789");
        snprintf(text, sizeof text, "%.*s", (int)len, row->reason);
        bool fits = strstr(row->reason, "does not fit") != NULL; /* begins with the model's name */
        if (fits) snprintf(text, sizeof text, "does not fit");
        int k = 0;
        while (k < kinds && strcmp(r[k].text, text) != 0) k++;
        if (k == REASONS) {
            others++;
            continue;
        }
        if (k == kinds) {
            r[kinds].first = row;
            r[kinds].n = 0;
            memcpy(r[kinds++].text, text, sizeof text);
        }
        r[k].n++;
    }
    if (!impossible) return;
    fprintf(out, "# %d points cannot be:\n", impossible);
    for (int k = 0; k < kinds; k++)
        fprintf(out, "  %7d like point %d (%s): %s\n", r[k].n, r[k].first->point,
                r[k].first->values, r[k].first->reason);
    if (others) fprintf(out, "  %7d for other reasons\n", others);
}

void study_sweep_print(const struct study *s, const struct study_sweep *w, FILE *out)
{
    fprintf(out,
            "# sweep: %d points, %d taken over from before; SLO: TTFT %g s, TPOT %g ms\n"
            "# *: cheapest within the SLO; P: on the Pareto front of tok/s/request, "
            "tok/s/GPU, $/Mtok;\n# e: an all-to-all beyond the measured EP sizes, extrapolated\n",
            w->n, w->resumed, s->slo.ttft_s, s->slo.tpot_ms);
    const struct study_sweep_row **row = calloc((size_t)w->n + 1, sizeof *row);
    int feasible = 0, front = 0, meets = 0;
    for (int i = 0; i < w->n && row; i++) {
        meets += w->row[i].feasible && w->row[i].meets_slo;
        if (w->row[i].feasible) row[feasible++] = &w->row[i];
    }
    fprintf(out, "# %d points are possible, %d of them within the SLO\n", feasible, meets);
    if (feasible && feasible <= ALL_ROWS) {
        print_head(out);
        for (int i = 0; i < feasible; i++) print_row(row[i], out);
    } else if (feasible) {
        qsort(row, (size_t)feasible, sizeof *row, by_cost);
        print_some(row, feasible < CHEAP_ROWS ? feasible : CHEAP_ROWS, CHEAP_ROWS,
                   meets ? "the cheapest within the SLO" : "nothing within the SLO; the cheapest",
                   out);
        for (int i = 0; i < w->n; i++)
            if (w->row[i].feasible && w->row[i].pareto) row[front++] = &w->row[i];
        qsort(row, (size_t)front, sizeof *row, by_speed);
        print_some(row, front, FRONT_ROWS, "the Pareto front", out);
        if (meets) print_choices(w, out);
    }
    count_reasons(w, out);
    free(row);
}
