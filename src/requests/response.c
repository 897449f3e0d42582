/* response.c - JSON of one response, written without a tree: outputs are long lists. */
#include "requests/response.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

static void write_string(FILE *out, const char *s)
{
    fputc('"', out);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            fprintf(out, "\\u%04x", c);
        else
            fputc(c, out);
    }
    fputc('"', out);
}

static void write_tokens(FILE *out, const int32_t *tokens, int n)
{
    fputc('[', out);
    for (int i = 0; i < n; i++) fprintf(out, "%s%" PRId32, i ? "," : "", tokens[i]);
    fputc(']', out);
}

/* 9 digits give back the same float; JSON has no NaN or infinity. */
static void write_floats(FILE *out, const float *values, int n)
{
    fputc('[', out);
    for (int i = 0; i < n; i++)
        if (isfinite(values[i]))
            fprintf(out, "%s%.9g", i ? "," : "", (double)values[i]);
        else
            fprintf(out, "%snull", i ? "," : "");
    fputc(']', out);
}

static void write_choice(FILE *out, const struct response *r)
{
    fputs("{\"index\":0,\"text\":null,\"token_ids\":", out);
    write_tokens(out, r->tokens, r->n_tokens);
    fputs(",\"finish_reason\":", out);
    write_string(out, r->finish_reason ? r->finish_reason : "");
    fputs(",\"logprobs\":", out);
    if (r->logprobs) {
        fputs("{\"token_logprobs\":", out);
        write_floats(out, r->logprobs, r->n_tokens);
        fputc('}', out);
    } else {
        fputs("null", out);
    }
    if (r->prompt_logprobs) {
        fputs(",\"prompt_logprobs\":", out);
        write_floats(out, r->prompt_logprobs, r->prompt_tokens);
    }
    fputc('}', out);
}

static void write_body(FILE *out, const struct response *r)
{
    fprintf(out,
            "{\"id\":\"cmpl-%" PRId64 "\",\"object\":\"text_completion\",\"model\":", r->index);
    write_string(out, r->model ? r->model : "");
    fputs(",\"choices\":[", out);
    write_choice(out, r);
    fprintf(out,
            "],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%" PRId64
            ",\"prompt_tokens_details\":{\"cached_tokens\":%d}}}",
            r->prompt_tokens, r->n_tokens, (int64_t)r->prompt_tokens + r->n_tokens,
            r->cached_tokens);
}

enum status response_write(FILE *out, const struct response *r)
{
    fprintf(out, "{\"id\":\"batch_req_%" PRId64 "\",\"custom_id\":", r->index);
    write_string(out, r->custom_id);
    if (r->error && *r->error) {
        fputs(",\"response\":null,\"error\":{\"code\":\"invalid_request\",\"message\":", out);
        write_string(out, r->error);
        fputs("}}\n", out);
    } else {
        fprintf(out,
                ",\"response\":{\"status_code\":200,\"request_id\":\"req_%" PRId64 "\","
                "\"body\":",
                r->index);
        write_body(out, r);
        fputs("},\"error\":null}\n", out);
    }
    if (ferror(out))
        return error_set(ERR_RESOURCE, "cannot write the responses: %s", strerror(errno));
    return OK;
}
