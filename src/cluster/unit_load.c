/* unit_load.c - see unit_load.h. */
#include "cluster/unit_load.h"

#include "account/results.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Keeps layers with any token: the others have no routed experts, or the run had fewer layers. */
static int keep_loaded(const double *from, int layers, int experts, float *to)
{
    int kept = 0;
    for (int l = 0; l < layers; l++) {
        double sum = 0;
        for (int e = 0; e < experts; e++) {
            double v = from[(size_t)l * (size_t)experts + (size_t)e];
            to[(size_t)kept * (size_t)experts + (size_t)e] = (float)v;
            sum += v;
        }
        kept += sum > 0;
    }
    return kept;
}

static enum status read_results(const char *path, const struct model_config *m, float **load,
                                int *layers)
{
    size_t cells = (size_t)m->layers * (size_t)m->experts;
    double *all = calloc(cells + 1, sizeof *all);
    float *kept = calloc(cells + 1, sizeof *kept);
    enum status st = all && kept ? OK : error_set(ERR_RESOURCE, "no memory for the expert load");
    if (st == OK) st = results_read_expert_load(path, m->layers, m->experts, all);
    if (st == OK) *layers = keep_loaded(all, m->layers, m->experts, kept);
    if (st == OK && !*layers)
        st = error_set(ERR_INPUT,
                       "experts.load: /experts/load of %s counts no token: give a run "
                       "that computed some",
                       path);
    free(all);
    if (st == OK)
        *load = kept;
    else
        free(kept);
    return st;
}

static bool separates(int c)
{
    return c == ',' || c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

static enum status read_text(const char *path, int experts, float **out)
{
    FILE *f = fopen(path, "r");
    if (!f) return error_set(ERR_INPUT, "cannot open expert load %s", path);
    float *load = calloc((size_t)experts + 1, sizeof *load);
    double v;
    int n = 0;
    for (int c; load && (c = fgetc(f)) != EOF;) {
        if (c == '#')
            while ((c = fgetc(f)) != EOF && c != '\n') {}
        if (c == EOF || separates(c)) continue;
        ungetc(c, f);
        if (fscanf(f, "%lf", &v) != 1 || !(v >= 0)) break;
        if (n < experts) load[n] = (float)v;
        n++;
    }
    bool whole = feof(f);
    fclose(f);
    if (load && whole && n == experts) {
        *out = load;
        return OK;
    }
    free(load);
    return error_set(ERR_INPUT, "%s: %d numbers >= 0%s, expected one for each of %d experts", path,
                     n, whole ? "" : " and then something else", experts);
}

enum status unit_load_read(const char *path, const struct model_config *model, float **load,
                           int *layers)
{
    size_t n = strlen(path);
    if (n > 3 && !strcmp(path + n - 3, ".h5")) return read_results(path, model, load, layers);
    *layers = 1;
    return read_text(path, model->experts, load);
}
