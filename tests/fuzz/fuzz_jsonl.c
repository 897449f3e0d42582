/* links: core config requests */
/* fuzz_jsonl.c - any bytes as a token file: every request is either legal in all its fields or has
 * an error in clean UTF-8. clang -fsanitize=fuzzer,address; -close_fd_mask=2 hides the warnings
 * about unknown fields. */
#include "requests/token_file.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct request *r, const struct request_limits *l)
{
    if (strlen(r->custom_id) > REQUEST_ID_BYTES) abort();
    for (const char *s = r->error; *s; s++)
        if ((unsigned char)*s < 0x20) abort();
    if (*r->error) return;
    if (r->n_tokens < 1 || r->n_tokens > l->context || !*r->custom_id) abort();
    if (r->max_tokens < 0 || r->n_tokens + r->max_tokens > l->context) abort();
    if (!(r->temperature >= 0) || !(r->top_p > 0 && r->top_p <= 1) || r->top_k < 0) abort();
    for (int i = 0; i < r->n_tokens; i++)
        if (r->tokens[i] < 0 || r->tokens[i] >= l->vocab) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct job_sampling defaults = {.max_tokens = 4, .top_p = 1};
    static const struct request_limits limits = {.vocab = 100, .context = 50, .kv_pool_tokens = 64};
    static char path[] = "/tmp/fuzz-jsonl-XXXXXX.jsonl";
    static int fd = -1;
    if (fd < 0) fd = mkstemps(path, 6);
    if (ftruncate(fd, 0) || pwrite(fd, data, size, 0) != (ssize_t)size) abort();
    struct token_file *tf = NULL;
    struct request r = {0};
    error_clear();
    if (token_file_open(path, &defaults, &limits, &tf) != OK) abort();
    for (int64_t i = 0; i < token_file_count(tf); i++) {
        if (token_file_get(tf, i, &r) != OK) abort();
        check(&r, &limits);
    }
    request_free(&r);
    token_file_close(tf);
    return 0;
}
