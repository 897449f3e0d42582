/* request_parse.c - OpenAI batch lines. The long list of prompt tokens is read by a scanner and
 * blanked out; jansson judges all the rest of the line, so that no form of JSON is understood
 * twice. */
#include "requests/request_parse.h"

#include "core/log.h"
#include "requests/json_scan.h"
#include "requests/request_check.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

enum kind {
    F_INT,     /* int32 field in min..max */
    F_FLOAT,   /* float field in min..max */
    F_BOOL,    /* true or false */
    F_SWITCH,  /* true, false, or a count (of alternatives): on */
    F_SEED,    /* any 64-bit integer */
    F_STOPS,   /* list of token ids */
    F_PROMPT,  /* handled apart */
    F_IGNORED, /* legal, without effect here */
    F_NEUTRAL  /* only the value that has no effect: min, false, null or empty */
};

struct field {
    const char *name;
    enum kind kind;
    size_t offset; /* in struct request */
    double min, max;
    const char *remedy; /* F_NEUTRAL */
};

#define AT(f) offsetof(struct request, f)
static const struct field fields[] = {
    {"prompt", F_PROMPT, 0, 0, 0, NULL},
    {"max_tokens", F_INT, AT(max_tokens), 0, INT32_MAX, NULL},
    {"temperature", F_FLOAT, AT(temperature), 0, 100, NULL},
    {"top_p", F_FLOAT, AT(top_p), 0, 1, NULL},
    {"top_k", F_INT, AT(top_k), -1, INT32_MAX, NULL},
    {"seed", F_SEED, AT(seed), 0, 0, NULL},
    {"logprobs", F_SWITCH, AT(logprobs), 0, 0, NULL},
    {"prompt_logprobs", F_SWITCH, AT(prompt_logprobs), 0, 0, NULL},
    {"ignore_eos", F_BOOL, AT(ignore_eos), 0, 0, NULL},
    {"stop_token_ids", F_STOPS, 0, 0, 0, NULL},
    {"messages", F_IGNORED, 0, 0, 0, NULL}, /* a chat line has failed before */
    {"model", F_IGNORED, 0, 0, 0, NULL},
    {"user", F_IGNORED, 0, 0, 0, NULL},
    {"n", F_NEUTRAL, 0, 1, 0, "give one line for each answer (scripts/tokenize.py --n)"},
    {"best_of", F_NEUTRAL, 0, 1, 0, "give one line for each answer (scripts/tokenize.py --n)"},
    {"echo", F_NEUTRAL, 0, 0, 0, "the prompt is in the token file; prompt_logprobs scores it"},
    {"stop", F_NEUTRAL, 0, 0, 0, "text is unknown here; give stop_token_ids"},
    {"stream", F_NEUTRAL, 0, 0, 0, "responses are written as they complete"},
    {"suffix", F_NEUTRAL, 0, 0, 0, "put it into the prompt"},
    {"logit_bias", F_NEUTRAL, 0, 0, 0, "not supported"},
    {"presence_penalty", F_NEUTRAL, 0, 0, 0, "not supported"},
    {"frequency_penalty", F_NEUTRAL, 0, 0, 0, "not supported"},
    {"repetition_penalty", F_NEUTRAL, 0, 1, 0, "not supported"},
    {"min_p", F_NEUTRAL, 0, 0, 0, "not supported"},
    {"min_tokens", F_NEUTRAL, 0, 0, 0, "not supported; ignore_eos generates max_tokens"},
    {"use_beam_search", F_NEUTRAL, 0, 0, 0, "not supported"},
};

/* A line being parsed. */
struct parse {
    struct parse_context *c;
    struct request *r;
    int64_t line_no;
    bool have_prompt; /* the scanner read it */
    bool no_memory;
};

#define FAIL(p, fmt, ...) request_fail((p)->r, "line %" PRId64 ": " fmt, (p)->line_no, __VA_ARGS__)

static void describe(const json_t *v, char buf[64])
{
    switch (json_typeof(v)) {
    case JSON_OBJECT: snprintf(buf, 64, "an object"); break;
    case JSON_ARRAY: snprintf(buf, 64, "a list"); break;
    case JSON_STRING: snprintf(buf, 64, "\"%.40s\"", json_string_value(v)); break;
    case JSON_INTEGER: snprintf(buf, 64, "%" JSON_INTEGER_FORMAT, json_integer_value(v)); break;
    case JSON_REAL: snprintf(buf, 64, "%g", json_real_value(v)); break;
    case JSON_TRUE: snprintf(buf, 64, "true"); break;
    case JSON_FALSE: snprintf(buf, 64, "false"); break;
    default: snprintf(buf, 64, "null"); break;
    }
}

static void wrong(struct parse *p, const char *name, const json_t *v, const char *expected)
{
    char found[64];
    describe(v, found);
    FAIL(p, "body.%s is %s, expected %s", name, found, expected);
}

static void warn_unknown(struct parse *p, const char *where, const char *name)
{
    struct warned *w = &p->c->warned;
    char full[WARNED_BYTES];
    snprintf(full, sizeof full, "%s%s", where, name);
    for (int i = 0; i < w->n; i++)
        if (!strcmp(w->names[i], full)) return;
    if (w->n == WARNED_FIELDS) return;
    memcpy(w->names[w->n++], full, sizeof full);
    for (char *s = full; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f) *s = '?'; /* nothing drives the terminal */
    log_warn("%s:%" PRId64 ": unknown field %s is ignored, here and in later lines", p->c->path,
             p->line_no, full);
}

static void read_int(struct parse *p, const struct field *f, const json_t *v)
{
    json_int_t i = json_integer_value(v);
    if (json_is_integer(v) && (double)i >= f->min && (double)i <= f->max) {
        *(int32_t *)((char *)p->r + f->offset) = (int32_t)i;
        return;
    }
    char expected[64];
    snprintf(expected, sizeof expected, "an integer of at least %g", f->min);
    wrong(p, f->name, v, expected);
}

static void read_float(struct parse *p, const struct field *f, const json_t *v)
{
    double d = json_number_value(v);
    if (json_is_number(v) && isfinite(d) && d >= f->min && d <= f->max) {
        *(float *)((char *)p->r + f->offset) = (float)d;
        return;
    }
    char expected[64];
    snprintf(expected, sizeof expected, "a number in %g to %g", f->min, f->max);
    wrong(p, f->name, v, expected);
}

static void read_switch(struct parse *p, const struct field *f, const json_t *v)
{
    bool count = f->kind == F_SWITCH && json_is_integer(v) && json_integer_value(v) >= 0;
    if (json_is_boolean(v) || count)
        *(bool *)((char *)p->r + f->offset) = count || json_is_true(v);
    else
        wrong(p, f->name, v, f->kind == F_SWITCH ? "true, false or a count" : "true or false");
}

static void read_stops(struct parse *p, const struct field *f, const json_t *v)
{
    size_t n = json_array_size(v);
    if (!json_is_array(v) || n > REQUEST_MAX_STOP) {
        wrong(p, f->name, v, "a list of at most 16 token ids");
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *e = json_array_get(v, i);
        json_int_t id = json_integer_value(e);
        if (!json_is_integer(e) || id != (int32_t)id) {
            wrong(p, f->name, e, "token ids in its list");
            return;
        }
        p->r->stop_token_ids[p->r->n_stop++] = (int32_t)id;
    }
}

static void check_neutral(struct parse *p, const struct field *f, const json_t *v)
{
    bool neutral = json_is_number(v)   ? json_number_value(v) == f->min
                   : json_is_array(v)  ? json_array_size(v) == 0
                   : json_is_object(v) ? json_object_size(v) == 0
                   : json_is_string(v) ? json_string_length(v) == 0
                                       : json_is_false(v);
    if (neutral) return;
    char found[64];
    describe(v, found);
    FAIL(p, "body.%s is %s: %s", f->name, found, f->remedy);
}

static void read_prompt_list(struct parse *p, const json_t *list)
{
    size_t n = json_array_size(list);
    const json_t *first = json_array_get(list, 0);
    if (json_is_string(first)) {
        FAIL(p, "body.prompt holds %s: tokenise it first with scripts/tokenize.py", "text");
        return;
    }
    if (json_is_array(first)) {
        if (n > 1)
            FAIL(p, "body.prompt holds %zu prompts: give one line for each", n);
        else
            read_prompt_list(p, first);
        return;
    }
    if (!request_reserve(p->r, (int64_t)n)) {
        p->no_memory = true;
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *e = json_array_get(list, i);
        json_int_t id = json_integer_value(e);
        if (!json_is_integer(e) || id != (int32_t)id) {
            char found[64], name[32];
            describe(e, found);
            snprintf(name, sizeof name, "%zu", i);
            FAIL(p, "body.prompt[%s] is %s, expected a token id", name, found);
            return;
        }
        p->r->tokens[i] = (int32_t)id;
    }
    p->r->n_tokens = (int32_t)n;
}

static void read_prompt(struct parse *p, const json_t *body)
{
    const json_t *v = json_object_get(body, "prompt");
    if (p->have_prompt) return;
    if (!v)
        FAIL(p, "body.prompt is missing, expected a list of token ids%s", "");
    else if (json_is_string(v))
        FAIL(p, "body.prompt is %s: tokenise it first with scripts/tokenize.py", "text");
    else if (!json_is_array(v))
        wrong(p, "prompt", v, "a list of token ids");
    else
        read_prompt_list(p, v);
}

static void read_field(struct parse *p, const char *name, const json_t *v)
{
    const struct field *f = fields, *end = fields + sizeof fields / sizeof *fields;
    while (f < end && strcmp(f->name, name)) f++;
    if (f == end) {
        warn_unknown(p, "body.", name);
        return;
    }
    if (json_is_null(v)) return; /* null everywhere: the default */
    switch (f->kind) {
    case F_INT: read_int(p, f, v); break;
    case F_FLOAT: read_float(p, f, v); break;
    case F_BOOL:
    case F_SWITCH: read_switch(p, f, v); break;
    case F_SEED:
        if (json_is_integer(v))
            p->r->seed = (uint64_t)json_integer_value(v);
        else
            wrong(p, name, v, "an integer");
        break;
    case F_STOPS: read_stops(p, f, v); break;
    case F_NEUTRAL: check_neutral(p, f, v); break;
    case F_PROMPT:
    case F_IGNORED: break;
    }
}

static bool is_chat(const json_t *root, const json_t *body)
{
    const char *url = json_string_value(json_object_get(root, "url"));
    return json_object_get(body, "messages") || (url && !strcmp(url, "/v1/chat/completions"));
}

static void read_envelope(struct parse *p, json_t *root)
{
    const json_t *id = json_object_get(root, "custom_id");
    const json_t *method = json_object_get(root, "method"), *url = json_object_get(root, "url");
    char found[64];
    if (!id)
        FAIL(p, "custom_id is missing%s", "");
    else if (!json_is_string(id))
        FAIL(p, "custom_id is %s, expected text", (describe(id, found), found));
    else
        request_set_id(p->r, json_string_value(id), json_string_length(id));
    if (is_chat(root, json_object_get(root, "body")))
        FAIL(p, "a chat line: turn it into tokens first with %s", "scripts/tokenize.py");
    if (method && (!json_is_string(method) || strcmp(json_string_value(method), "POST")))
        FAIL(p, "method is %s, expected \"POST\"", (describe(method, found), found));
    if (url && (!json_is_string(url) || strcmp(json_string_value(url), "/v1/completions")))
        FAIL(p, "url is %s, expected \"/v1/completions\"", (describe(url, found), found));
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value) if (strcmp(key, "custom_id") && strcmp(key, "method") &&
                                              strcmp(key, "url") && strcmp(key, "body"))
        warn_unknown(p, "", key);
}

static void read_body(struct parse *p, json_t *root)
{
    json_t *body = json_object_get(root, "body"), *value;
    const char *key;
    char found[64];
    if (!body || !json_is_object(body)) {
        if (body) describe(body, found);
        FAIL(p, "body is %s, expected an object", body ? found : "missing");
        return;
    }
    read_prompt(p, body);
    json_object_foreach(body, key, value) read_field(p, key, value);
    if (p->r->top_p == 0) FAIL(p, "body.top_p is %s, expected more", "0");
    if (p->r->top_k < 0) p->r->top_k = 0; /* -1: no limit, as elsewhere */
}

/* Reads the prompt if it is a plain list of integers and blanks it in the line. */
static void scan_prompt(struct parse *p, struct json_slice line)
{
    struct json_slice body, prompt;
    if (!json_member(line, "body", &body) || !json_member(body, "prompt", &prompt)) return;
    /* A number takes at least two bytes with its comma; more than the context is only counted. */
    int64_t cap = (int64_t)(prompt.n / 2), context = p->c->limits.context;
    if (context && cap > context + 1) cap = context + 1;
    if (prompt.n < 2 || prompt.at[0] != '[') return;
    if (!request_reserve(p->r, cap)) {
        p->no_memory = true;
        return;
    }
    struct json_ints ints = {.values = p->r->tokens, .cap = cap};
    if (!json_ints(prompt, &ints) || ints.n > INT32_MAX) return;
    memset(prompt.at, ' ', prompt.n);
    prompt.at[0] = '[';
    prompt.at[1] = ']';
    p->have_prompt = true;
    p->r->n_tokens = (int32_t)ints.n;
    if (ints.bad_at >= 0)
        FAIL(p, "body.prompt[%" PRId64 "] is %" PRId64 ", expected a token id", ints.bad_at,
             ints.bad);
}

static void copy_id(void *arg, const char *text, size_t n)
{
    struct request *r = arg;
    request_set_id(r, text, n);
    memset(r->error, 0, sizeof r->error); /* the full parser judges it again */
}

/* The checks that HDF5 shares know no lines. */
static void add_line_number(struct parse *p)
{
    char text[REQUEST_ERROR_BYTES];
    memcpy(text, p->r->error, sizeof text);
    if (!*text || !strncmp(text, "line ", 5)) return;
    memset(p->r->error, 0, sizeof p->r->error);
    FAIL(p, "%s", text);
}

bool request_parse(struct parse_context *c, char *line, size_t n, int64_t line_no, int64_t index,
                   struct request *r)
{
    struct parse p = {.c = c, .r = r, .line_no = line_no};
    request_reset(r, index, &c->defaults);
    request_peek_id(line, n, copy_id, r); /* a broken line still has a name, if it can be found */
    scan_prompt(&p, (struct json_slice){line, n});
    if (p.no_memory) return false;

    json_error_t e;
    json_t *root = json_loadb(line, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
    if (!root) {
        if (json_error_code(&e) == json_error_out_of_memory) return false;
        memset(r->error, 0, sizeof r->error);
        FAIL(&p, "not JSON: %s (column %d)", e.text, e.column);
        return true;
    }
    if (!json_is_object(root)) {
        FAIL(&p, "expected an object with custom_id and body%s", "");
    } else {
        read_envelope(&p, root);
        read_body(&p, root);
        request_check(r, &c->limits);
        add_line_number(&p);
    }
    json_decref(root);
    return !p.no_memory;
}

void request_peek_id(const char *line, size_t n, void (*use)(void *arg, const char *text, size_t n),
                     void *arg)
{
    struct json_slice s = {(char *)(uintptr_t)line, n}, v; /* the scanner does not write */
    if (!json_member(s, "custom_id", &v) || v.n < 2 || v.at[0] != '"') return;
    if (!memchr(v.at, '\\', v.n)) {
        use(arg, v.at + 1, v.n - 2);
        return;
    }
    json_t *text = json_loadb(v.at, v.n, JSON_DECODE_ANY, NULL);
    if (text) use(arg, json_string_value(text), json_string_length(text));
    json_decref(text);
}
