/* token_file.h - reads requests from a token file: JSONL in OpenAI batch form, or HDF5.
 *
 * token_file_open passes once over the file and keeps 16 bytes a request (at most 36 while it
 * looks for duplicate custom_ids), so a million requests cost 16 MB; token_file_get parses one
 * request when it is needed, in any order. Reading is plain pread: one thread at a time, no MPI.
 * Rank 0 owns the file.
 *
 * JSONL: {"custom_id", "method": "POST", "url": "/v1/completions", "body": {"prompt": [ids], ...}}
 * a line; blank lines are skipped. HDF5: /tokens (int32, flat), /offsets (int64, requests + 1) and
 * optional columns of one value a request: custom_id (string), max_tokens, temperature, top_p,
 * top_k, seed, logprobs, prompt_logprobs, ignore_eos; without custom_id request i is "request-i".
 *
 * Errors: a file that cannot be opened or is no such file is ERR_INPUT; a bad line or row is a
 * request with `error` set and status OK.
 */
#ifndef REQUESTS_TOKEN_FILE_H
#define REQUESTS_TOKEN_FILE_H

#include "config/job.h"
#include "core/status.h"
#include "requests/request.h"

#include <stddef.h>

struct token_file;

/* Opens path (.jsonl, .h5, .hdf5). defaults and limits are copied. */
enum status token_file_open(const char *path, const struct job_sampling *defaults,
                            const struct request_limits *limits, struct token_file **out);

/* Requests in the file, good and bad. */
int64_t token_file_count(const struct token_file *tf);

/* Fills *out (zeroed before its first use, then reusable; request_free at the end) with request i.
 * Fails only when the file can no longer be read or memory is short. */
enum status token_file_get(struct token_file *tf, int64_t i, struct request *out);

/* A hash of the file's bytes and their number, as they were when it was opened. */
uint64_t token_file_hash(const struct token_file *tf);

/* Bytes held for the index, now and at most while the file was opened. */
size_t token_file_bytes(const struct token_file *tf);
size_t token_file_peak_bytes(const struct token_file *tf);

void token_file_close(struct token_file *tf);

#endif
