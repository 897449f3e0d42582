/* request.c - life of a request, and the checks behind every way to read one. */
#include "requests/request.h"

#include "core/rng.h"
#include "requests/request_check.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void request_free(struct request *r)
{
    free(r->tokens);
    memset(r, 0, sizeof *r);
}

void request_reset(struct request *r, int64_t index, const struct job_sampling *defaults)
{
    int32_t *tokens = r->tokens;
    int32_t cap = r->cap_tokens;
    memset(r, 0, sizeof *r);
    r->tokens = tokens;
    r->cap_tokens = cap;
    r->index = index;
    r->max_tokens = defaults->max_tokens;
    r->top_k = defaults->top_k;
    r->temperature = (float)defaults->temperature;
    r->top_p = (float)defaults->top_p;
    r->seed = rng_u64(defaults->seed, (uint64_t)index);
    r->logprobs = defaults->logprobs;
    r->prompt_logprobs = defaults->prompt_logprobs;
    r->ignore_eos = defaults->ignore_eos;
}

/* Bytes of the UTF-8 character at s (1 to 4), 0 when it is none. */
static size_t utf8_length(const unsigned char *s, size_t n)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (s[0] < 0x80) return 1;
    size_t len = s[0] >= 0xf0 && s[0] < 0xf8 ? 4 : s[0] >= 0xe0 ? 3 : s[0] >= 0xc0 ? 2 : 0;
    if (!len || s[0] >= 0xf8 || len > n) return 0;
    uint32_t c = s[0] & (0x7fu >> len);
    for (size_t i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (s[i] & 0x3fu);
    }
    if (c < least[len] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return 0;
    return len;
}

/* Whether s[0..n) is UTF-8; *good is how many of its first `limit` bytes are whole characters. */
static bool utf8_valid(const char *s, size_t n, size_t limit, size_t *good)
{
    *good = 0;
    for (size_t i = 0; i < n;) {
        size_t len = utf8_length((const unsigned char *)s + i, n - i);
        if (!len) return false;
        i += len;
        if (i <= limit) *good = i;
    }
    return true;
}

static void clean_text(char *text)
{
    size_t n = strlen(text), i = 0;
    while (i < n) {
        size_t len = utf8_length((unsigned char *)text + i, n - i);
        if (!len || (unsigned char)text[i] < 0x20 || text[i] == 0x7f) {
            text[i] = '?';
            len = 1;
        }
        i += len;
    }
}

void request_fail(struct request *r, const char *fmt, ...)
{
    if (*r->error) return;
    char text[2 * REQUEST_ERROR_BYTES];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    clean_text(text);
    size_t good;
    utf8_valid(text, strlen(text), REQUEST_ERROR_BYTES - 1, &good);
    memcpy(r->error, text, good); /* the rest is zero since the reset */
}

void request_set_id(struct request *r, const char *name, size_t n)
{
    size_t good;
    if (n == 0) {
        request_fail(r, "custom_id is empty");
    } else if (!utf8_valid(name, n, REQUEST_ID_BYTES, &good) || memchr(name, 0, n)) {
        request_fail(r, "custom_id is not UTF-8 text");
    } else {
        memcpy(r->custom_id, name, good);
        r->custom_id[good] = '\0';
        if (n > REQUEST_ID_BYTES)
            request_fail(r, "custom_id has %zu bytes, at most %d are kept: shorten it", n,
                         REQUEST_ID_BYTES);
    }
}

bool request_reserve(struct request *r, int64_t n)
{
    if (n <= r->cap_tokens) return true;
    if (n > INT32_MAX) return false;
    int32_t *p = realloc(r->tokens, (size_t)n * sizeof *p);
    if (!p) return false;
    r->tokens = p;
    r->cap_tokens = (int32_t)n;
    return true;
}

static void check_vocabulary(struct request *r, int64_t vocab)
{
    for (int32_t i = 0; i < r->n_tokens; i++)
        if (r->tokens[i] < 0 || (vocab && r->tokens[i] >= vocab)) {
            request_fail(r,
                         "prompt token %d is %d, expected 0 to %" PRId64 ": tokenise with this "
                         "model's tokenizer (scripts/tokenize.py)",
                         i, r->tokens[i], (vocab ? vocab : INT32_MAX) - 1);
            return;
        }
    for (int i = 0; i < r->n_stop; i++)
        if (r->stop_token_ids[i] < 0 || (vocab && r->stop_token_ids[i] >= vocab)) {
            request_fail(r, "stop_token_ids[%d] is %d, expected 0 to %" PRId64, i,
                         r->stop_token_ids[i], (vocab ? vocab : INT32_MAX) - 1);
            return;
        }
}

void request_check(struct request *r, const struct request_limits *limits)
{
    if (*r->error) return;
    int64_t n = r->n_tokens, pool = limits->kv_pool_tokens;
    if (n == 0) {
        request_fail(r, "the prompt is empty: give it at least one token");
        return;
    }
    if (limits->context && n > limits->context) {
        request_fail(
            r, "the prompt has %" PRId64 " tokens, the model's context %" PRId64 ": shorten it", n,
            limits->context);
        return;
    }
    check_vocabulary(r, limits->vocab);
    if (limits->context && r->max_tokens > limits->context - n)
        r->max_tokens = (int32_t)(limits->context - n);
    /* The last output token is never attended to, so it needs no place. */
    int64_t places = n + (r->max_tokens > 1 ? r->max_tokens - 1 : 0);
    if (pool && n > pool)
        request_fail(r,
                     "the prompt has %" PRId64 " tokens, a rank's KV pool holds %" PRId64
                     ": raise kv.pages_per_rank",
                     n, pool);
    else if (pool && places > pool)
        request_fail(r,
                     "prompt and max_tokens need %" PRId64 " tokens of KV, a rank's pool holds "
                     "%" PRId64 ": lower max_tokens or raise kv.pages_per_rank",
                     places, pool);
}
