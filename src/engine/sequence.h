/* sequence.h - one request while a rank works on it: tokens, KV pages, what was generated.
 *
 * Lists of sequences are singly linked FIFO queues. A sequence owns its arrays; its pages belong
 * to the rank's pool and are given back by sequence_drop_pages.
 */
#ifndef ENGINE_SEQUENCE_H
#define ENGINE_SEQUENCE_H

#include "core/hash.h"
#include "core/status.h"
#include "engine/wire.h"
#include "kvcache/page_pool.h"

#include <stdbool.h>

struct fetch;

struct sequence {
    struct sequence *next;
    struct wire_params p;
    struct wire_prefilled f;
    int32_t *prompt; /* [n_prompt]; NULL on decode ranks */
    int32_t *pages;  /* [max_pages] page table */
    int n_pages, max_pages;
    int computed;          /* prompt tokens whose KV is there (cached ones included) */
    bool admitted;         /* pages of the whole prompt are held */
    uint64_t admission;    /* order of admission to decoding, for choosing a victim */
    int32_t *out;          /* [n_out] generated tokens, capacity max_tokens */
    float *logprob;        /* [n_out] or NULL */
    float *prompt_logprob; /* [n_prompt] or NULL */
    int n_out;
    bool stopped;
    int kv_received;       /* CTL_KV messages so far; START says how many */
    bool started;          /* START has arrived */
    struct hash128 *chain; /* [n_chain] hashes of the prompt's full pages; NULL until needed */
    uint32_t n_chain;
    struct fetch *fetch;             /* its pages on their way from disk (engine/disk.c), or NULL */
    bool disk_looked;                /* its prefix was looked for on disk */
    uint32_t disk_first, disk_pages; /* pages of the prompt that its fetch brought */
    char *host_kv; /* pages moved to host memory: [layers][n_pages][page bytes] or NULL */
};

struct sequence_list {
    struct sequence *head, **tail;
    int n;
};

/* NULL when out of memory. Pages for prompt + max_tokens at most. */
struct sequence *sequence_new(const struct wire_params *p, int page_tokens);
void sequence_free(struct sequence *s);

/* Appends a generated token; true when the sequence is complete. eos: the model's end tokens. */
bool sequence_append(struct sequence *s, int32_t token, float logprob, const int *eos, int n_eos);

/* Returns all pages to the pool. */
void sequence_drop_pages(struct sequence *s, struct page_pool *pool);

void sequence_list_init(struct sequence_list *l);
void sequence_push(struct sequence_list *l, struct sequence *s);
struct sequence *sequence_pop(struct sequence_list *l);
/* Unlinks s; false if it is not in the list. */
bool sequence_remove(struct sequence_list *l, struct sequence *s);
struct sequence *sequence_find(const struct sequence_list *l, int64_t index);

#endif
