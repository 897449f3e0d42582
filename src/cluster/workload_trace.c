/* workload_trace.c - reading the two kinds of traces. */
#include "cluster/workload_trace.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct reader {
    const char *path;
    int line;
    struct workload_trace *t;
    size_t cap, blocks_cap;
};

/* A number after `"name":`, or false. */
static bool json_number(const char *line, const char *name, double *out)
{
    char key[64];
    snprintf(key, sizeof key, "\"%s\"", name);
    const char *at = strstr(line, key);
    if (!at || !(at = strchr(at + strlen(key), ':'))) return false;
    char *end;
    *out = strtod(at + 1, &end);
    return end != at + 1;
}

static enum status take_blocks(struct reader *r, const char *line, struct trace_row *row)
{
    struct workload_trace *t = r->t;
    const char *at = strstr(line, "\"hash_ids\"");
    row->first_block = (uint32_t)t->n_blocks;
    row->n_blocks = 0;
    if (!at || !(at = strchr(at, '['))) return OK;
    for (at++; *at && *at != ']';) {
        char *end;
        unsigned long id = strtoul(at, &end, 10);
        if (end == at || id >= 1u << 30)
            return error_set(ERR_INPUT, "%s:%d: hash_ids: expected numbers below 2^30", r->path,
                             r->line);
        if (t->n_blocks == r->blocks_cap) {
            r->blocks_cap = r->blocks_cap ? 2 * r->blocks_cap : 1 << 16;
            uint32_t *b = realloc(t->blocks, r->blocks_cap * sizeof *b);
            if (!b) return error_set(ERR_RESOURCE, "no memory for %s", r->path);
            t->blocks = b;
        }
        t->blocks[t->n_blocks++] = (uint32_t)id;
        row->n_blocks++;
        if (id + 1 > t->max_block) t->max_block = (uint32_t)id + 1;
        at = end + strspn(end, ", ");
    }
    return OK;
}

static enum status take_row(struct reader *r, double t_s, double prompt, double output,
                            struct trace_row row)
{
    struct workload_trace *t = r->t;
    if (!(prompt >= 1 && prompt <= 4e6) || !(output >= 0 && output <= 65535))
        return error_set(ERR_INPUT,
                         "%s:%d: %g prompt and %g output tokens, expected 1 to 4,000,000 and 0 to "
                         "65,535",
                         r->path, r->line, prompt, output);
    if (!(t_s >= 0) || (t->n && t_s < t->row[t->n - 1].t_s))
        return error_set(ERR_INPUT, "%s:%d: time %g s after %g s: a trace must be sorted by time",
                         r->path, r->line, t_s, t->n ? t->row[t->n - 1].t_s : 0);
    if (t->n == r->cap) {
        r->cap = r->cap ? 2 * r->cap : 1 << 14;
        struct trace_row *rows = realloc(t->row, r->cap * sizeof *rows);
        if (!rows) return error_set(ERR_RESOURCE, "no memory for %s", r->path);
        t->row = rows;
    }
    row.t_s = t_s;
    row.prompt = (uint32_t)prompt;
    row.output = output < 1 ? 1 : (uint32_t)output; /* the prompt's own token */
    t->prompt_tokens += row.prompt;
    t->output_tokens += row.output;
    t->row[t->n++] = row;
    return OK;
}

static enum status jsonl_line(struct reader *r, const char *line)
{
    double ms, prompt, output;
    struct trace_row row;
    if (!json_number(line, "timestamp", &ms) || !json_number(line, "input_length", &prompt) ||
        !json_number(line, "output_length", &output))
        return error_set(ERR_INPUT, "%s:%d: expected timestamp, input_length and output_length",
                         r->path, r->line);
    TRY(take_blocks(r, line, &row));
    return take_row(r, ms / 1e3, prompt, output, row);
}

static enum status csv_line(struct reader *r, const char *line)
{
    double t_s, prompt, output;
    if (r->line == 1 && strstr(line, "arrived_at")) return OK;
    if (sscanf(line, "%lf,%lf,%lf", &t_s, &prompt, &output) != 3)
        return error_set(ERR_INPUT,
                         "%s:%d: expected arrived_at,num_prefill_tokens,num_decode_tokens", r->path,
                         r->line);
    return take_row(r, t_s, prompt, output, (struct trace_row){0});
}

enum status workload_trace_read(const char *path, struct workload_trace *out)
{
    size_t n = strlen(path), room = 0;
    bool json = n > 6 && !strcmp(path + n - 6, ".jsonl");
    if (!json && !(n > 4 && !strcmp(path + n - 4, ".csv")))
        return error_set(ERR_INPUT, "workload.trace: %s: expected a name ending in .jsonl or .csv",
                         path);
    FILE *f = fopen(path, "r");
    if (!f) return error_set(ERR_INPUT, "workload.trace: %s: %s", path, strerror(errno));
    memset(out, 0, sizeof *out);
    struct reader r = {.path = path, .t = out};
    char *line = NULL;
    enum status st = OK;
    while (st == OK && getline(&line, &room, f) > 0) {
        r.line++;
        if (line[strspn(line, " \t\r\n")] == '\0') continue;
        st = json ? jsonl_line(&r, line) : csv_line(&r, line);
    }
    free(line);
    fclose(f);
    if (st == OK && out->n == 0) st = error_set(ERR_INPUT, "%s: the trace is empty", path);
    if (st != OK) workload_trace_free(out);
    return st;
}

void workload_trace_free(struct workload_trace *t)
{
    free(t->row);
    free(t->blocks);
    memset(t, 0, sizeof *t);
}
