/* plan_tokens.h - what a token file asks for: counts, lengths, and the list of its requests.
 * Answers are taken to be as long as max_tokens allows; only a run knows where they stop.
 */
#ifndef PLAN_PLAN_TOKENS_H
#define PLAN_PLAN_TOKENS_H

#include "checkpoint/model_config.h"
#include "cluster/engine_time.h"
#include "config/job.h"

#include <stdint.h>

struct plan_tokens {
    int64_t requests, bad;       /* of the file; that cannot run */
    char first_error[300];       /* of the first bad one */
    int64_t step;                /* every step-th was read and stands for so many */
    struct engine_request *list; /* [n] those read that can run, in the file's order; `cached` in
                                * full pages that an earlier request has too; owned */
    int64_t n;
    double prompt, cached, output;   /* tokens of all that can run */
    int32_t longest_prompt, longest; /* prompt; prompt and output */
    double index_bytes;              /* that rank 0 keeps of the file while it runs */
};

/* Reads the token file: all of it, of a very long one every k-th request. */
enum status plan_tokens_read(const struct job *job, const struct model_config *model,
                             struct plan_tokens *out);
void plan_tokens_free(struct plan_tokens *t);

/* Requests of the file that a pool of so many tokens cannot hold; the last token of an answer needs
 * no place. */
int64_t plan_tokens_beyond(const struct plan_tokens *t, int64_t pool_tokens);

#endif
