/* token_hdf5.c - an HDF5 token file: /tokens, /offsets and optional columns. Rows are read in
 * blocks, so that requests taken in order cost one small read a thousand. A second block serves
 * those behind the furthest one: the program reads ahead and then takes what it has seen in another
 * order. */
#include "core/hash.h"
#include "requests/request_check.h"
#include "requests/token_source.h"

#include <hdf5.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_ROWS 1024
#define ID_BYTES (REQUEST_ID_BYTES + 4) /* one more than legal, so that longer ones show */

enum column {
    C_MAX_TOKENS,
    C_TEMPERATURE,
    C_TOP_P,
    C_TOP_K,
    C_SEED,
    C_LOGPROBS,
    C_PROMPT_LOGPROBS,
    C_IGNORE_EOS,
    C_COUNT
};

/* What a column may hold; a real one is read as double, the others as int64. */
static const struct {
    const char *name;
    bool real;
    double min, max;
} columns[C_COUNT] = {
    [C_MAX_TOKENS] = {"max_tokens", false, 0, INT32_MAX},
    [C_TEMPERATURE] = {"temperature", true, 0, 100},
    [C_TOP_P] = {"top_p", true, 0, 1},
    [C_TOP_K] = {"top_k", false, -1, INT32_MAX},
    [C_SEED] = {"seed", false, -0x1p63, 0x1p63},
    [C_LOGPROBS] = {"logprobs", false, 0, INT32_MAX},
    [C_PROMPT_LOGPROBS] = {"prompt_logprobs", false, 0, INT32_MAX},
    [C_IGNORE_EOS] = {"ignore_eos", false, 0, 1},
};

union cell {
    int64_t i;
    double d;
};

struct block {
    int64_t first, rows; /* rows held; 0: none */
    int64_t last;        /* row asked for last */
    int64_t offsets[BLOCK_ROWS + 1];
    union cell cells[C_COUNT][BLOCK_ROWS];
    char ids[BLOCK_ROWS][ID_BYTES];
};

struct source {
    struct token_source base;
    hid_t file, tokens, offsets, ids, id_type; /* ids < 0: no column */
    hid_t column[C_COUNT];                     /* < 0: not there */
    int64_t n_tokens;
    unsigned char *duplicate; /* one bit a row; NULL without ids */
    struct block front, behind;
};

static enum status bad_file(const char *path, const char *what)
{
    return error_set(ERR_INPUT, "token file %s: %s", path, what);
}

/* Length of a 1-D dataset, -1 when it is none. */
static int64_t length_of(hid_t set)
{
    hid_t space = H5Dget_space(set);
    hsize_t n = 0;
    bool flat = space >= 0 && H5Sget_simple_extent_ndims(space) == 1;
    if (flat) H5Sget_simple_extent_dims(space, &n, NULL);
    if (space >= 0) H5Sclose(space);
    return flat && n <= INT64_MAX ? (int64_t)n : -1;
}

static H5T_class_t class_of(hid_t set)
{
    hid_t type = H5Dget_type(set);
    H5T_class_t c = type >= 0 ? H5Tget_class(type) : H5T_NO_CLASS;
    if (type >= 0) H5Tclose(type);
    return c;
}

static bool is_unsigned(hid_t set)
{
    hid_t type = H5Dget_type(set);
    bool u = H5Tget_class(type) == H5T_INTEGER && H5Tget_sign(type) == H5T_SGN_NONE;
    H5Tclose(type);
    return u;
}

/* Reads set[first..first+n) as `type`. */
static bool read_rows(hid_t set, hid_t type, int64_t first, int64_t n, void *out)
{
    if (n == 0) return true;
    hsize_t start = (hsize_t)first, count = (hsize_t)n;
    hid_t file = H5Dget_space(set), memory = H5Screate_simple(1, &count, NULL);
    bool ok = file >= 0 && memory >= 0 &&
              H5Sselect_hyperslab(file, H5S_SELECT_SET, &start, NULL, &count, NULL) >= 0 &&
              H5Dread(set, type, memory, file, H5P_DEFAULT, out) >= 0;
    if (memory >= 0) H5Sclose(memory);
    if (file >= 0) H5Sclose(file);
    return ok;
}

/* Strings of fixed or variable length into the block's fixed cells. */
static bool read_ids(const struct source *s, struct block *b)
{
    int64_t first = b->first, n = b->rows;
    if (!H5Tis_variable_str(s->id_type)) {
        hid_t fixed = H5Tcopy(s->id_type);
        H5Tset_size(fixed, ID_BYTES);
        H5Tset_strpad(fixed, H5T_STR_NULLPAD);
        bool ok = read_rows(s->ids, fixed, first, n, b->ids);
        H5Tclose(fixed);
        return ok;
    }
    char *text[BLOCK_ROWS] = {0};
    if (!read_rows(s->ids, s->id_type, first, n, text)) return false;
    memset(b->ids, 0, (size_t)n * sizeof *b->ids);
    for (int64_t i = 0; i < n; i++)
        if (text[i]) memcpy(b->ids[i], text[i], strnlen(text[i], ID_BYTES));
    hsize_t count = (hsize_t)n;
    hid_t space = H5Screate_simple(1, &count, NULL);
    H5Dvlen_reclaim(s->id_type, space, H5P_DEFAULT, text);
    H5Sclose(space);
    return true;
}

static bool read_column(const struct source *s, int c, struct block *b)
{
    hid_t set = s->column[c];
    union cell *cells = b->cells[c];
    if (columns[c].real) return read_rows(set, H5T_NATIVE_DOUBLE, b->first, b->rows, cells);
    hid_t type = c == C_SEED && is_unsigned(set) ? H5T_NATIVE_UINT64 : H5T_NATIVE_INT64;
    return read_rows(set, type, b->first, b->rows, cells);
}

static bool in_block(const struct block *b, int64_t i)
{
    return i >= b->first && i < b->first + b->rows;
}

static enum status load_block(const struct source *s, const char *path, int64_t first, int64_t rows,
                              struct block *b)
{
    b->first = first;
    b->rows = rows;
    bool ok = read_rows(s->offsets, H5T_NATIVE_INT64, first, rows + 1, b->offsets);
    for (int c = 0; c < C_COUNT && ok; c++)
        if (s->column[c] >= 0) ok = read_column(s, c, b);
    if (ok && s->ids >= 0) ok = read_ids(s, b);
    if (ok) return OK;
    b->rows = 0;
    return bad_file(path, "rows cannot be read: the file is damaged");
}

/* The block with row i. Behind the front a whole block is worth its reading only where rows come
 * in steps so small that many are used; else the row alone. */
static enum status find_block(struct source *s, const char *path, int64_t i, struct block **out)
{
    enum { SMALL_STEP = 64 };
    bool is_behind = i < s->front.first;
    struct block *b = is_behind ? &s->behind : &s->front;
    bool alone = is_behind && (i <= b->last || i > b->last + SMALL_STEP);
    b->last = i;
    *out = b;
    if (in_block(b, i)) return OK;
    int64_t first = alone ? i : i / BLOCK_ROWS * BLOCK_ROWS, rows = alone ? 1 : BLOCK_ROWS;
    if (rows > s->base.count - first) rows = s->base.count - first;
    return load_block(s, path, first, rows, b);
}

static void close_source(struct token_source *base)
{
    struct source *s = (struct source *)base;
    if (s->id_type >= 0) H5Tclose(s->id_type);
    for (int c = 0; c < C_COUNT; c++)
        if (s->column[c] >= 0) H5Dclose(s->column[c]);
    if (s->ids >= 0) H5Dclose(s->ids);
    if (s->offsets >= 0) H5Dclose(s->offsets);
    if (s->tokens >= 0) H5Dclose(s->tokens);
    if (s->file >= 0) H5Fclose(s->file);
    free(s->duplicate);
    free(s);
}

/* A dataset by name; -1 when it is not there. */
static hid_t open_set(hid_t file, const char *name)
{
    return H5Lexists(file, name, H5P_DEFAULT) > 0 ? H5Dopen2(file, name, H5P_DEFAULT) : -1;
}

static enum status open_required(struct source *s, const char *path)
{
    s->tokens = open_set(s->file, "tokens");
    s->offsets = open_set(s->file, "offsets");
    if (s->tokens < 0 || s->offsets < 0)
        return bad_file(path, "expected the datasets /tokens (int32) and /offsets (int64)");
    s->n_tokens = length_of(s->tokens);
    s->base.count = length_of(s->offsets) - 1;
    if (class_of(s->tokens) != H5T_INTEGER || s->n_tokens < 0)
        return bad_file(path, "/tokens is no flat list of integers");
    if (class_of(s->offsets) != H5T_INTEGER || s->base.count < 0)
        return bad_file(path, "/offsets is no flat list of integers with requests + 1 entries");
    if (s->base.count >= UINT32_MAX) return bad_file(path, "more than 4e9 requests: split it");
    return OK;
}

static enum status open_columns(struct source *s, const char *path)
{
    for (int c = 0; c < C_COUNT; c++) {
        hid_t set = s->column[c] = open_set(s->file, columns[c].name);
        if (set < 0) continue;
        H5T_class_t k = class_of(set);
        bool fits = k == H5T_INTEGER || (k == H5T_ENUM && !columns[c].real) ||
                    (k == H5T_FLOAT && columns[c].real);
        if (!fits || length_of(set) != s->base.count)
            return error_set(
                ERR_INPUT, "token file %s: /%s: expected %" PRId64 " %s, one for each request",
                path, columns[c].name, s->base.count, columns[c].real ? "numbers" : "integers");
    }
    s->ids = open_set(s->file, "custom_id");
    if (s->ids < 0) return OK;
    s->id_type = H5Dget_type(s->ids);
    if (H5Tget_class(s->id_type) != H5T_STRING || length_of(s->ids) != s->base.count)
        return error_set(ERR_INPUT,
                         "token file %s: /custom_id: expected %" PRId64
                         " strings, one for each request",
                         path, s->base.count);
    return OK;
}

struct pass {
    struct source *s;
    const char *path;
    char *names; /* [BLOCK_ROWS][ID_BYTES] the block being added */
    enum status st;
};

static bool same_id(void *arg, uint32_t earlier, uint32_t now)
{
    struct pass *p = arg;
    struct block *b = NULL;
    p->st = find_block(p->s, p->path, earlier, &b);
    return p->st == OK && !memcmp(b->ids[earlier - b->first],
                                  p->names + (size_t)(now % BLOCK_ROWS) * ID_BYTES, ID_BYTES);
}

static enum status add_block(struct pass *p, struct id_set *ids, int64_t first)
{
    struct source *s = p->s;
    struct block *b = NULL;
    TRY(find_block(s, p->path, first, &b));
    memcpy(p->names, b->ids, sizeof b->ids);
    for (int64_t i = first; i < first + BLOCK_ROWS && i < s->base.count; i++) {
        const char *name = p->names + (size_t)(i - first) * ID_BYTES;
        bool seen = false;
        if (!*name) continue;
        if (!id_set_add(ids, (uint32_t)i, name, strnlen(name, ID_BYTES), same_id, p, &seen))
            return error_set(ERR_RESOURCE, "out of memory for the token file");
        TRY(p->st);
        if (seen) s->duplicate[i / 8] |= (unsigned char)(1u << i % 8);
    }
    return OK;
}

static enum status find_duplicates(struct source *s, const char *path)
{
    if (s->ids < 0) return OK;
    struct id_set ids = {0};
    struct pass p = {.s = s, .path = path, .names = malloc(sizeof s->front.ids)};
    s->base.bytes = (size_t)s->base.count / 8 + 1;
    s->duplicate = calloc(1, s->base.bytes);
    enum status st = p.names && s->duplicate ? OK : error_set(ERR_RESOURCE, "out of memory");
    for (int64_t i = 0; i < s->base.count && st == OK; i += BLOCK_ROWS) st = add_block(&p, &ids, i);
    s->base.peak_bytes = s->base.bytes + ids.peak_bytes;
    s->front.first = s->front.rows = 0; /* requests are read from the first row on */
    id_set_free(&ids);
    free(p.names);
    return st;
}

/* Of the whole file: what a request is also depends on where its tokens lie. */
static enum status hash_file(const char *path, uint64_t *out)
{
    enum { BYTES = 1 << 20 };
    FILE *f = fopen(path, "rb");
    char *buf = malloc(BYTES);
    uint32_t crc = 0;
    uint64_t total = 0;
    size_t n;
    enum status st = f && buf ? OK : bad_file(path, "cannot be read");
    while (st == OK && (n = fread(buf, 1, BYTES, f)) > 0) {
        crc = crc32c(crc, buf, n);
        total += n;
    }
    if (st == OK && ferror(f)) st = bad_file(path, "cannot be read");
    if (f) fclose(f);
    free(buf);
    *out = (uint64_t)crc << 32 ^ total;
    return st;
}

static enum status open_source(const char *path, struct parse_context *c, struct token_source **out)
{
    (void)c;
    struct source *s = calloc(1, sizeof *s);
    if (!s) return error_set(ERR_RESOURCE, "out of memory for the token file");
    s->base.ops = &token_hdf5;
    s->tokens = s->offsets = s->ids = s->id_type = -1;
    for (int i = 0; i < C_COUNT; i++) s->column[i] = -1;
    H5E_auto2_t print;
    void *print_arg;
    H5Eget_auto2(H5E_DEFAULT, &print, &print_arg);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* our message is enough */
    s->file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    enum status st = s->file >= 0 ? OK : bad_file(path, "cannot be opened, or is no HDF5 file");
    if (st == OK) st = open_required(s, path);
    if (st == OK) st = open_columns(s, path);
    if (st == OK) st = find_duplicates(s, path);
    if (st == OK) st = hash_file(path, &s->base.hash);
    H5Eset_auto2(H5E_DEFAULT, print, print_arg);
    if (st != OK) {
        close_source(&s->base);
        return st;
    }
    *out = &s->base;
    return OK;
}

static double value_of(const union cell *cell, int c)
{
    return columns[c].real ? cell->d : (double)cell->i;
}

static void apply_columns(const struct source *s, const struct block *b, int64_t row,
                          struct request *r)
{
    const union cell *cells[C_COUNT];
    for (int c = 0; c < C_COUNT; c++) {
        cells[c] = s->column[c] >= 0 ? &b->cells[c][row] : NULL;
        if (!cells[c]) continue;
        double v = value_of(cells[c], c);
        if (isnan(v) || v < columns[c].min || v > columns[c].max) {
            request_fail(r, "%s is %g, expected %g to %g", columns[c].name, v, columns[c].min,
                         columns[c].max);
            return;
        }
    }
    if (cells[C_MAX_TOKENS]) r->max_tokens = (int32_t)cells[C_MAX_TOKENS]->i;
    if (cells[C_TEMPERATURE]) r->temperature = (float)cells[C_TEMPERATURE]->d;
    if (cells[C_TOP_P]) r->top_p = (float)cells[C_TOP_P]->d;
    if (cells[C_TOP_K]) r->top_k = cells[C_TOP_K]->i < 0 ? 0 : (int32_t)cells[C_TOP_K]->i;
    if (cells[C_SEED]) r->seed = (uint64_t)cells[C_SEED]->i;
    if (cells[C_LOGPROBS]) r->logprobs = cells[C_LOGPROBS]->i != 0;
    if (cells[C_PROMPT_LOGPROBS]) r->prompt_logprobs = cells[C_PROMPT_LOGPROBS]->i != 0;
    if (cells[C_IGNORE_EOS]) r->ignore_eos = cells[C_IGNORE_EOS]->i != 0;
    if (r->top_p == 0) request_fail(r, "top_p is 0, expected more");
}

static enum status read_prompt(const struct source *s, const struct parse_context *c, int64_t begin,
                               int64_t end, struct request *r)
{
    if (begin < 0 || end < begin || end > s->n_tokens || end - begin > INT32_MAX) {
        request_fail(r, "offsets %" PRId64 " to %" PRId64 " are not inside the %" PRId64 " tokens",
                     begin, end, s->n_tokens);
        return OK;
    }
    r->n_tokens = (int32_t)(end - begin);
    int64_t context = c->limits.context;
    if (context && r->n_tokens > context) return OK; /* only counted; request_check fails it */
    if (!request_reserve(r, r->n_tokens))
        return error_set(ERR_RESOURCE, "out of memory for a prompt of %d tokens", r->n_tokens);
    if (!read_rows(s->tokens, H5T_NATIVE_INT32, begin, r->n_tokens, r->tokens))
        return bad_file(c->path, "/tokens cannot be read: the file is damaged");
    return OK;
}

static enum status get_request(struct token_source *base, struct parse_context *c, int64_t i,
                               struct request *r)
{
    struct source *s = (struct source *)base;
    struct block *b = NULL;
    TRY(find_block(s, c->path, i, &b));
    int64_t row = i - b->first;
    request_reset(r, i, &c->defaults);
    if (s->ids >= 0) {
        request_set_id(r, b->ids[row], strnlen(b->ids[row], ID_BYTES));
        if (s->duplicate[i / 8] >> i % 8 & 1)
            request_fail(r, "custom_id was given before: make it unique");
    } else {
        snprintf(r->custom_id, sizeof r->custom_id, "request-%" PRId64, i);
    }
    apply_columns(s, b, row, r);
    TRY(read_prompt(s, c, b->offsets[row], b->offsets[row + 1], r));
    request_check(r, &c->limits);
    return OK;
}

const struct token_source_ops token_hdf5 = {open_source, get_request, close_source};
