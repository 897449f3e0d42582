/* response.h - writes one finished request as a line of an OpenAI batch output file.
 *
 * {"id", "custom_id", "response": {"status_code": 200, "request_id", "body": {"object":
 * "text_completion", "model", "choices": [...], "usage": {...}}}, "error": null}; a failed
 * request has "response": null and "error": {"code", "message"}. `text` is null: this program
 * speaks tokens, scripts/tokenize.py fills the text afterwards.
 */
#ifndef REQUESTS_RESPONSE_H
#define REQUESTS_RESPONSE_H

#include "core/status.h"

#include <stdint.h>
#include <stdio.h>

/* All borrowed for the call. */
struct response {
    int64_t index;
    const char *custom_id;
    const char *model;
    const char *error;            /* NULL or "": the request succeeded */
    const char *finish_reason;    /* "stop" or "length" */
    const int32_t *tokens;        /* [n_tokens] output */
    const float *logprobs;        /* [n_tokens] or NULL */
    const float *prompt_logprobs; /* [prompt_tokens], the first NaN, or NULL */
    int n_tokens, prompt_tokens, cached_tokens;
};

/* Writes the line with its newline. ERR_RESOURCE when the stream refuses it (disk full). */
enum status response_write(FILE *out, const struct response *r);

#endif
