/* results.c - the writer of the results file; columns are in results_schema.c. */
#include "account/results.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "account/results_schema.h"
#include "account/table.h"

struct results_file {
    hid_t file;
    char *path, *tmp;
    struct results_shape shape;
    int64_t next;             /* index of the next request */
    int64_t outputs, prompts; /* values in /outputs/tokens, /outputs/prompt_logprobs */
    struct column column[REQUEST_COLUMNS];
    size_t request_bytes;
    char *row; /* one packed row of /requests */
    struct table tables[TABLE_COUNT];
    struct table requests, tokens, offsets, logprobs, prompt_logprobs, prompt_offsets;
};

const char *request_status_name(enum request_status status)
{
    static const char *const name[] = {"pending", "ok", "failed"};
    return name[status];
}

const char *finish_reason_name(enum finish_reason reason)
{
    static const char *const name[] = {"", "stop", "length", "error"};
    return name[reason];
}

enum status results_check_path(const char *path, bool force)
{
    if (!force && access(path, F_OK) == 0)
        return error_set(ERR_INPUT,
                         "results: %s exists and would be overwritten: pass --force, or choose "
                         "another name",
                         path);
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, (size_t)(slash - path + 1)) : strdup(".");
    if (!folder) return error_set(ERR_RESOURCE, "results: out of memory");
    enum status st = OK;
    if (access(folder, W_OK | X_OK) != 0)
        st = error_set(ERR_INPUT, "results: cannot write %s: folder %s: %s", path, folder,
                       strerror(errno));
    free(folder);
    return st;
}

static enum status create_tables(struct results_file *f)
{
    for (int i = 0; i < TABLE_COUNT; i++) {
        const struct table_schema *s = &results_tables[i];
        TRY(table_create(f->file, s->name, s->columns, s->n, s->row_bytes, &f->tables[i]));
    }
    f->request_bytes = request_columns(f->shape.id_bytes, f->shape.error_bytes, f->column);
    f->row = calloc(1, f->request_bytes);
    if (!f->row) return error_set(ERR_RESOURCE, "results: out of memory");
    TRY(table_create(f->file, "/requests", f->column, REQUEST_COLUMNS, f->request_bytes,
                     &f->requests));
    TRY(table_create_array(f->file, "/outputs/tokens", COLUMN_I32, "token id", &f->tokens));
    TRY(table_create_array(f->file, "/outputs/offsets", COLUMN_I64, "tokens", &f->offsets));
    if (f->shape.logprobs)
        TRY(table_create_array(f->file, "/outputs/logprobs", COLUMN_F32, "nat", &f->logprobs));
    if (f->shape.prompt_logprobs) {
        TRY(table_create_array(f->file, "/outputs/prompt_logprobs", COLUMN_F32, "nat",
                               &f->prompt_logprobs));
        TRY(table_create_array(f->file, "/outputs/prompt_offsets", COLUMN_I64, "tokens",
                               &f->prompt_offsets));
        TRY(table_append(&f->prompt_offsets, &f->prompts, 1));
    }
    return table_append(&f->offsets, &f->outputs, 1);
}

static enum status create_file(const char *path, hid_t *out)
{
    hid_t access_list = H5Pcreate(H5P_FILE_ACCESS);
    /* The newer format stores root attributes beyond 64 KiB (long host lists). */
    H5Pset_libver_bounds(access_list, H5F_LIBVER_V18, H5F_LIBVER_LATEST);
#if H5_VERSION_GE(1, 10, 7)
    /* Some parallel file systems refuse locks; one writer and a rename need none. */
    H5Pset_file_locking(access_list, 0, 1);
#endif
    *out = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, access_list);
    enum status st = *out < 0 ? table_hdf5_error(path) : OK;
    H5Pclose(access_list);
    return st;
}

enum status results_create(const char *path, const struct results_shape *shape,
                           struct results_file **out)
{
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* we print the reason ourselves */
    struct results_file *f = calloc(1, sizeof *f);
    if (!f) return error_set(ERR_RESOURCE, "results: out of memory");
    f->file = -1;
    f->shape = *shape;
    if (f->shape.id_bytes > RESULTS_ID_MAX) f->shape.id_bytes = RESULTS_ID_MAX;
    if (f->shape.error_bytes > RESULTS_ERROR_MAX) f->shape.error_bytes = RESULTS_ERROR_MAX;
    f->path = strdup(path);
    f->tmp = malloc(strlen(path) + 5);
    enum status st = OK;
    if (!f->path || !f->tmp) {
        st = error_set(ERR_RESOURCE, "results: out of memory");
        goto fail;
    }
    strcat(strcpy(f->tmp, path), ".tmp");
    st = create_file(f->tmp, &f->file);
    if (st == OK) st = create_tables(f);
    if (st != OK) goto fail;
    *out = f;
    return OK;
fail:
    results_abort(f);
    return st;
}

size_t results_clip(const char *text, size_t room)
{
    size_t n = text ? strlen(text) : 0;
    if (n <= room) return n;
    n = room;
    while (n > 0 && ((unsigned char)text[n] & 0xC0) == 0x80) n--;
    return n;
}

static void put_text(struct results_file *f, enum request_column c, const char *text)
{
    size_t room = f->column[c].bytes, n = results_clip(text, room);
    char *field = f->row + f->column[c].offset;
    if (n) memcpy(field, text, n);
    memset(field + n, 0, room - n);
}

static void put_value(struct results_file *f, enum request_column c, const void *value)
{
    memcpy(f->row + f->column[c].offset, value, f->column[c].bytes);
}

static enum status put_outputs(struct results_file *f, const struct request_row *r)
{
    size_t n = (size_t)r->output_tokens;
    TRY(table_append(&f->tokens, r->tokens, n));
    if (f->shape.logprobs && r->logprobs) TRY(table_append(&f->logprobs, r->logprobs, n));
    if (f->shape.logprobs && !r->logprobs) {
        const float none = NAN;
        for (size_t i = 0; i < n; i++) TRY(table_append(&f->logprobs, &none, 1));
    }
    f->outputs += r->output_tokens;
    TRY(table_append(&f->offsets, &f->outputs, 1));
    if (!f->shape.prompt_logprobs) return OK;
    if (r->prompt_logprobs) {
        TRY(table_append(&f->prompt_logprobs, r->prompt_logprobs, (size_t)r->prompt_tokens));
        f->prompts += r->prompt_tokens;
    }
    return table_append(&f->prompt_offsets, &f->prompts, 1);
}

enum status results_put_request(struct results_file *f, const struct request_row *r)
{
    if (r->index != f->next || r->output_tokens < 0)
        return error_set(ERR_BUG, "results: request %lld came where %lld was due",
                         (long long)r->index, (long long)f->next);
    f->next++;
    put_text(f, REQUEST_ID, r->custom_id);
    put_text(f, REQUEST_STATUS, request_status_name(r->status));
    put_text(f, REQUEST_ERROR, r->error);
    put_text(f, REQUEST_FINISH, finish_reason_name(r->finish));
    put_value(f, REQUEST_PROMPT, &r->prompt_tokens);
    put_value(f, REQUEST_CACHED, &r->cached_tokens);
    int32_t in_memory = r->cached_tokens - r->cached_tokens_disk;
    put_value(f, REQUEST_CACHED_MEMORY, &in_memory);
    put_value(f, REQUEST_CACHED_DISK, &r->cached_tokens_disk);
    put_value(f, REQUEST_OUTPUT, &r->output_tokens);
    put_value(f, REQUEST_OFFSET, &f->outputs);
    put_value(f, REQUEST_PREFILL_RANK, &r->prefill_rank);
    put_value(f, REQUEST_DECODE_RANK, &r->decode_rank);
    put_value(f, REQUEST_T_ARRIVAL, &r->t_arrival);
    put_value(f, REQUEST_T_PREFILL_START, &r->t_prefill_start);
    put_value(f, REQUEST_T_FIRST_TOKEN, &r->t_first_token);
    put_value(f, REQUEST_T_FINISH, &r->t_finish);
    TRY(table_append(&f->requests, f->row, 1));
    return put_outputs(f, r);
}

enum status results_put_steps(struct results_file *f, enum step_kind kind,
                              const struct step_row *rows, size_t n)
{
    return table_append(&f->tables[TABLE_STEPS_PREFILL + (int)kind], rows, n);
}

enum status results_put_ranks(struct results_file *f, const struct rank_row *rows, size_t n)
{
    return table_append(&f->tables[TABLE_RANKS], rows, n);
}

enum status results_put_attempts(struct results_file *f, const struct attempt_row *rows, size_t n)
{
    return table_append(&f->tables[TABLE_ATTEMPTS], rows, n);
}

enum status results_put_expert_load(struct results_file *f, const struct expert_load_row *rows,
                                    size_t n)
{
    return table_append(&f->tables[TABLE_EXPERT_LOAD], rows, n);
}

enum status results_put_links(struct results_file *f, const struct link_row *rows, size_t n)
{
    return table_append(&f->tables[TABLE_LINKS], rows, n);
}

enum status results_put_placement(struct results_file *f, const struct placement_row *rows,
                                  size_t n)
{
    return table_append(&f->tables[TABLE_PLACEMENT], rows, n);
}

enum status results_put_throughput(struct results_file *f, const struct throughput_row *row)
{
    return table_append(&f->tables[TABLE_THROUGHPUT], row, 1);
}

enum status results_put_account(struct results_file *f, const struct account *account,
                                const struct account_prices *prices)
{
    struct account_file_row row = {*account, *prices};
    return table_append(&f->tables[TABLE_ACCOUNT], &row, 1);
}

enum status results_put_attr(struct results_file *f, const char *key, const char *value)
{
    return table_put_attr(f->file, key, value);
}

/* f's tables that are not in f->tables. */
static void other_tables(struct results_file *f, struct table *out[6])
{
    struct table *all[] = {&f->requests, &f->tokens,          &f->offsets,
                           &f->logprobs, &f->prompt_logprobs, &f->prompt_offsets};
    memcpy(out, all, sizeof all);
}

static void release(struct results_file *f)
{
    struct table *other[6];
    other_tables(f, other);
    for (int i = 0; i < 6; i++) table_close(other[i]);
    for (int i = 0; i < TABLE_COUNT; i++) table_close(&f->tables[i]);
}

static enum status flush_all(struct results_file *f)
{
    struct table *other[6];
    other_tables(f, other);
    for (int i = 0; i < 6; i++) TRY(table_flush(other[i]));
    for (int i = 0; i < TABLE_COUNT; i++) TRY(table_flush(&f->tables[i]));
    return OK;
}

static enum status sync_and_rename(const struct results_file *f)
{
    int fd = open(f->tmp, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0 || rename(f->tmp, f->path) != 0) {
        int err = errno;
        if (fd >= 0) close(fd);
        return error_set(ERR_RESOURCE, "results: %s: %s", f->path, strerror(err));
    }
    close(fd);
    return OK;
}

enum status results_commit(struct results_file *f)
{
    enum status st = OK;
    if (f->next != f->shape.requests)
        st = error_set(ERR_BUG, "results: %lld of %lld requests were written", (long long)f->next,
                       (long long)f->shape.requests);
    if (st == OK) st = table_put_int_attr(f->file, "schema_version", RESULTS_SCHEMA_VERSION);
    if (st == OK) st = flush_all(f);
    release(f);
    if (st == OK && H5Fclose(f->file) < 0)
        st = table_hdf5_error(f->tmp);
    else if (st != OK)
        H5Fclose(f->file);
    f->file = -1;
    if (st == OK) st = sync_and_rename(f);
    results_abort(f); /* after a success the temporary file is gone: this only frees */
    return st;
}

void results_abort(struct results_file *f)
{
    if (!f) return;
    release(f);
    if (f->file >= 0) H5Fclose(f->file);
    if (f->tmp) unlink(f->tmp);
    free(f->path);
    free(f->tmp);
    free(f->row);
    free(f);
}

void results_hdf5_versions(char *compiled, char *loaded)
{
    unsigned major, minor, release_no;
    H5get_libversion(&major, &minor, &release_no);
    snprintf(loaded, 16, "%u.%u.%u", major & 0xff, minor & 0xff, release_no & 0xff);
    snprintf(compiled, 16, "%d.%d.%d", H5_VERS_MAJOR, H5_VERS_MINOR, H5_VERS_RELEASE);
}
