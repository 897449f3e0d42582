/* host_speed.c - see host_speed.h. One list of keys drives reading and writing; curves pass
 * through the option table as strings of numbers. */
#include "cluster/host_speed.h"

#include "config/options.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LIST_TEXT = 2048, LISTS_MAX = 96, COEFS_ALL = SPEED_RANKS * SPEED_COEFS };

/* A list of numbers: `most` of them at offset; of those kept per rank count, fewer may be there. */
struct list_key {
    const char *key;
    size_t offset;
    int most;
    bool by_ranks;
    const char *doc;
};

#define AT(f) offsetof(struct host_speed, f)
#define LIST(k, f, n, text)      \
    {                            \
        k, AT(f), n, false, text \
    }
#define GEMM(name, t)                                                                              \
    LIST("gemm_" name ".one", gemm[t].block[SPEED_ONE], SPEED_ROWS,                                \
         "us of a block, weights cached, one core busy; at 1 2 3 4 5 6 8 10 12 16 24 32 48 64 96 " \
         "128 192 rows"),                                                                          \
        LIST("gemm_" name ".all", gemm[t].block[SPEED_ALL], SPEED_ROWS, "all cores busy"),         \
        LIST("gemm_" name ".cold_one", gemm[t].cold[SPEED_ONE], SPEED_ROWS,                        \
             "weights from memory"),                                                               \
        LIST("gemm_" name ".cold_all", gemm[t].cold[SPEED_ALL], SPEED_ROWS,                        \
             "weights from memory"),                                                               \
        LIST("gemm_" name ".shallow", gemm[t].shallow, SPEED_ROWS, "us of a block 32 deep"),       \
        LIST("gemm_" name ".panel", gemm[t].panel, SPEED_ROWS, "us more for a panel"),             \
        LIST("gemm_" name ".pack", gemm[t].pack, SPEED_ROWS,                                       \
             "us to pack 128 columns of the rows"),                                                \
        LIST("gemm_" name ".call", gemm[t].call, 1, "us of a product besides"),                    \
        LIST("gemm_" name ".cold_call", gemm[t].cold_call, 1,                                      \
             "us more to begin on a matrix that is in memory")
#define ROWS(name, op) \
    LIST("rows." name, rows[op], SPEED_COEFS, "us: call, row, element, element far away")
#define ENGINE(k, text) LIST("engine." #k, engine.k, 1, text)
#define BY_RANKS(k, f, n, text) \
    {                           \
        k, AT(f), n, true, text \
    }

static const struct list_key lists[] = {
    LIST("footprint.mb", footprint.mb, SPEED_FOOTPRINTS, "bytes read in turn, by all threads"),
    LIST("footprint.one", footprint.share[SPEED_ONE], SPEED_FOOTPRINTS,
         "0: as from a cache, 1: as from memory; one core busy"),
    LIST("footprint.all", footprint.share[SPEED_ALL], SPEED_FOOTPRINTS, "all cores busy"),
    LIST("fork.two", fork[SPEED_ONE], 1, "us to wake and join two threads"),
    LIST("fork.all", fork[SPEED_ALL], 1, "us to wake and join a thread on every core"),
    GEMM("f32", SPEED_F32),
    GEMM("bf16", SPEED_BF16),
    GEMM("fp8", SPEED_FP8),
    ROWS("rmsnorm", SPEED_RMSNORM),
    ROWS("convert_bf16", SPEED_CONVERT_BF16),
    ROWS("convert_fp8", SPEED_CONVERT_FP8),
    ROWS("silu", SPEED_SILU),
    ROWS("add", SPEED_ADD),
    ROWS("rope", SPEED_ROPE),
    ROWS("gate", SPEED_GATE),
    ROWS("kv_write", SPEED_KV_WRITE),
    ROWS("gather", SPEED_GATHER),
    ROWS("copy", SPEED_COPY),
    ROWS("embed", SPEED_EMBED),
    ROWS("greedy", SPEED_GREEDY),
    ROWS("sort", SPEED_SORT),
    ROWS("logprob", SPEED_LOGPROB),
    LIST("attention.prefill", prefill_attention, SPEED_COEFS,
         "us: call, tile, key packed, pair x dim_k, pair, pair x dim_v, query x dim_v, x dim_k"),
    LIST("attention.decode", decode_attention, SPEED_COEFS,
         "us: call, tile, key packed, pair x dim_k, pair, pair x latent, part x latent, query"),
    BY_RANKS("engine.ranks", engine.ranks, SPEED_RANKS, "ranks of the units measured"),
    BY_RANKS("engine.prefill_step", engine.prefill_step, SPEED_RANKS, "us of a step besides"),
    BY_RANKS("engine.decode_step", engine.decode_step, SPEED_RANKS, "us of a step besides"),
    ENGINE(op, "us of an operation of the schedule"),
    ENGINE(row, "us of a request in a decode step"),
    ENGINE(request, "us of a request from file to journal"),
    ENGINE(prompt_token, "us of reading and sending a token of a prompt"),
    ENGINE(fault, "us for each KB of memory that is used for the first time"),
    ENGINE(transfer, "us for each KB of KV sent to another rank"),
    BY_RANKS("ep.ranks", ep.ranks, SPEED_RANKS, "ranks of the all-to-alls measured"),
};
enum { LISTS = sizeof lists / sizeof *lists, EP_KEYS = 2 * SPEED_EP_PARTS };

static const char *const ep_keys[2][SPEED_EP_PARTS] = {
    {"ep.normal_dispatch_begin", "ep.normal_dispatch_finish", "ep.normal_combine_begin",
     "ep.normal_combine_finish"},
    {"ep.decode_dispatch_begin", "ep.decode_dispatch_finish", "ep.decode_combine_begin",
     "ep.decode_combine_finish"}};

/* What the option table fills. */
struct host_text {
    char name[SPEED_TEXT], source[SPEED_TEXT];
    int kind;
    char host[SPEED_TEXT], cpu[SPEED_TEXT], isa[SPEED_TEXT], date[SPEED_TEXT];
    int cores, panel[SPEED_TYPES];
    char list[LISTS][LIST_TEXT], ep[2][SPEED_EP_PARTS][LIST_TEXT];
};

static const char *const kinds[] = {"cpu", NULL};

#define TEXT(k, text)                                                              \
    {                                                                              \
        .key = #k, .type = OPTION_STRING, .offset = offsetof(struct host_text, k), \
        .bytes = SPEED_TEXT, .def = "", .unit = "", .doc = text                    \
    }
#define COUNT(k, f, hi, text)                                                              \
    {                                                                                      \
        .key = k, .type = OPTION_INT, .offset = offsetof(struct host_text, f), .def = "1", \
        .min = 1, .max = hi, .unit = "", .doc = text                                       \
    }

static const struct option plain[] = {
    TEXT(name, "what the tables call it"),
    TEXT(source, "where the figures come from"),
    {.key = "kind",
     .type = OPTION_CHOICE,
     .offset = offsetof(struct host_text, kind),
     .def = "cpu",
     .choices = kinds,
     .unit = "",
     .doc = "what the ranks compute on"},
    TEXT(host, "where it was measured"),
    TEXT(cpu, "processor"),
    TEXT(isa, "instruction set of the kernels"),
    TEXT(date, "when it was measured, UTC"),
    COUNT("cores", cores, 65536, "cores busy in `all`"),
    COUNT("panel.f32", panel[SPEED_F32], 4096, "columns of a panel of packed weights"),
    COUNT("panel.bf16", panel[SPEED_BF16], 4096, "columns of a panel of packed weights"),
    COUNT("panel.fp8", panel[SPEED_FP8], 4096, "columns of a panel of packed weights"),
};
enum { PLAIN = sizeof plain / sizeof *plain };

/* The rows of the table: fixed ones, then a string for each list. */
static struct option_table table_make(struct option rows[PLAIN + LISTS + EP_KEYS])
{
    int n = PLAIN;
    memcpy(rows, plain, sizeof plain);
    for (int i = 0; i < LISTS; i++)
        rows[n++] =
            (struct option){.key = lists[i].key,
                            .type = OPTION_STRING,
                            .bytes = LIST_TEXT,
                            .def = "",
                            .unit = "",
                            .offset = offsetof(struct host_text, list) + (size_t)i * LIST_TEXT,
                            .doc = lists[i].doc};
    for (int i = 0; i < EP_KEYS; i++)
        rows[n++] =
            (struct option){.key = ep_keys[i / SPEED_EP_PARTS][i % SPEED_EP_PARTS],
                            .type = OPTION_STRING,
                            .bytes = LIST_TEXT,
                            .def = "",
                            .unit = "",
                            .offset = offsetof(struct host_text, ep) + (size_t)i * LIST_TEXT,
                            .doc = "us: call, token, row, byte of a row, slot, number of a token; "
                                   "for each of ep.ranks"};
    return (struct option_table){.what = "host file", .options = rows, .n = n};
}

/* Numbers of `text` into out; want: how many (0: any up to most). */
static enum status numbers(const char *path, const char *key, const char *text, int want, int most,
                           double *out, int *n)
{
    *n = 0;
    for (;;) {
        while (*text == ' ' || *text == ',') text++;
        if (!*text) break;
        char *end;
        double v = strtod(text, &end);
        if (end == text || !isfinite(v) || v < 0)
            return error_set(ERR_INPUT,
                             "%s: %s: found '%.20s', expected numbers of at least 0 "
                             "with spaces between: run moebatch calibrate again",
                             path, key, text);
        if (*n == most)
            return error_set(ERR_INPUT, "%s: %s: more than %d numbers", path, key, most);
        out[(*n)++] = v;
        text = end;
    }
    if (want && *n != want)
        return error_set(ERR_INPUT,
                         "%s: %s: found %d numbers, expected %d: run moebatch "
                         "calibrate again",
                         path, key, *n, want);
    return OK;
}

static enum status read_ep(const char *path, const struct host_text *t, struct host_speed *out)
{
    for (int mode = 0; mode < 2; mode++)
        for (int part = 0; part < SPEED_EP_PARTS; part++) {
            double all[COEFS_ALL];
            int n, want = out->ep.n * SPEED_COEFS;
            TRY(numbers(path, ep_keys[mode][part], t->ep[mode][part], want, COEFS_ALL, all, &n));
            for (int i = 0; i < n; i++)
                out->ep.part[i / SPEED_COEFS][mode][part][i % SPEED_COEFS] = all[i];
        }
    return OK;
}

/* Curves must rise with the footprint's sizes. */
static enum status check(const char *path, const struct host_speed *s)
{
    for (int i = 1; i < SPEED_FOOTPRINTS; i++)
        if (!(s->footprint.mb[i] > s->footprint.mb[i - 1]))
            return error_set(ERR_INPUT,
                             "%s: footprint.mb: found %g after %g, expected ascending "
                             "sizes",
                             path, s->footprint.mb[i], s->footprint.mb[i - 1]);
    for (int t = 0; t < SPEED_TYPES; t++)
        for (int i = 0; i < SPEED_ROWS; i++)
            if (!(s->gemm[t].block[SPEED_ALL][i] > 0 && s->gemm[t].block[SPEED_ONE][i] > 0))
                return error_set(ERR_INPUT,
                                 "%s: gemm_*.one, gemm_*.all: found 0, expected times "
                                 "above 0",
                                 path);
    if (s->ep.n < 1 || s->engine.n < 1)
        return error_set(ERR_INPUT,
                         "%s: ep.ranks and engine.ranks are empty, expected at least "
                         "1: run moebatch calibrate again",
                         path);
    return OK;
}

static enum status convert(const char *path, const struct host_text *t, struct host_speed *out)
{
    memset(out, 0, sizeof *out);
    memcpy(out->name, t->name, SPEED_TEXT);
    memcpy(out->source, t->source, SPEED_TEXT);
    memcpy(out->host, t->host, SPEED_TEXT);
    memcpy(out->cpu, t->cpu, SPEED_TEXT);
    memcpy(out->isa, t->isa, SPEED_TEXT);
    memcpy(out->date, t->date, SPEED_TEXT);
    out->kind = t->kind;
    out->cores = t->cores;
    memcpy(out->panel, t->panel, sizeof out->panel);
    int by_ranks[4] = {0, 0, 0, 0}, k = 0;
    for (int i = 0; i < LISTS; i++) {
        const struct list_key *l = &lists[i];
        double *to = (double *)(void *)((char *)out + l->offset);
        int n;
        TRY(numbers(path, l->key, t->list[i], l->by_ranks ? 0 : l->most, l->most, to, &n));
        if (l->by_ranks) by_ranks[k++] = n;
    }
    if (by_ranks[1] != by_ranks[0] || by_ranks[2] != by_ranks[0])
        return error_set(ERR_INPUT,
                         "%s: engine.ranks has %d numbers, engine.prefill_step %d, "
                         "engine.decode_step %d: expected as many of each",
                         path, by_ranks[0], by_ranks[1], by_ranks[2]);
    out->engine.n = by_ranks[0];
    out->ep.n = by_ranks[3];
    TRY(read_ep(path, t, out));
    return check(path, out);
}

enum status host_speed_read(const char *path, struct host_speed *out)
{
    struct option rows[PLAIN + LISTS + EP_KEYS];
    struct option_table table = table_make(rows);
    struct host_text *t = malloc(sizeof *t);
    struct host_speed *s = malloc(sizeof *s);
    enum status st = t && s ? OK : error_set(ERR_RESOURCE, "no memory to read %s", path);
    if (st == OK) options_defaults(&table, t, sizeof *t);
    if (st == OK) st = options_read(&table, path, t);
    if (st == OK) st = convert(path, t, s);
    if (st == OK) *out = *s;
    free(t);
    free(s);
    return st;
}

static void print_list(char *to, int n, const double *v)
{
    size_t at = 0;
    to[0] = '\0';
    for (int i = 0; i < n; i++)
        at += (size_t)snprintf(to + at, LIST_TEXT - at, "%s%.5g", i ? " " : "", v[i]);
}

void host_speed_write(const struct host_speed *s, FILE *out)
{
    struct option rows[PLAIN + LISTS + EP_KEYS];
    struct option_table table = table_make(rows);
    struct host_text *t = calloc(1, sizeof *t);
    if (!t) return;
    memcpy(t->name, s->name, SPEED_TEXT);
    memcpy(t->source, s->source, SPEED_TEXT);
    memcpy(t->host, s->host, SPEED_TEXT);
    memcpy(t->cpu, s->cpu, SPEED_TEXT);
    memcpy(t->isa, s->isa, SPEED_TEXT);
    memcpy(t->date, s->date, SPEED_TEXT);
    t->kind = s->kind;
    t->cores = s->cores;
    memcpy(t->panel, s->panel, sizeof t->panel);
    for (int i = 0; i < LISTS; i++) {
        const struct list_key *l = &lists[i];
        int n = !l->by_ranks ? l->most : !strncmp(l->key, "ep.", 3) ? s->ep.n : s->engine.n;
        print_list(t->list[i], n, (const double *)(const void *)((const char *)s + l->offset));
    }
    for (int mode = 0; mode < 2; mode++)
        for (int part = 0; part < SPEED_EP_PARTS; part++) {
            double all[COEFS_ALL];
            for (int r = 0; r < s->ep.n; r++)
                memcpy(all + (size_t)r * SPEED_COEFS, s->ep.part[r][mode][part],
                       sizeof(double) * SPEED_COEFS);
            print_list(t->ep[mode][part], s->ep.n * SPEED_COEFS, all);
        }
    options_dump(&table, t, 1, out);
    free(t);
}

enum status host_speed_find(const char *path, struct host_speed *out)
{
    if (!path || !*path) path = HOST_SPEED_DEFAULT;
    if (access(path, R_OK) != 0)
        return error_set(ERR_INPUT,
                         "%s: cannot read it: run moebatch calibrate on this machine, "
                         "with mpirun -np N for jobs of N ranks in a unit",
                         path);
    return host_speed_read(path, out);
}
