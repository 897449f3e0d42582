/* options.c - operations over a whole table: defaults, overrides, dump, help, and the lookup of
 * keys with its "did you mean". YAML files are read in options_yaml.c. */
#include "config/options.h"

#include "config/options_key.h"
#include "config/options_value.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

void options_defaults(const struct option_table *t, void *object, size_t bytes)
{
    memset(object, 0, bytes);
    for (int i = 0; i < t->n; i++) {
        const struct option *o = &t->options[i];
        if (o->def && o->type != OPTION_SECTION) option_parse(o, o->def, false, object);
    }
}

const struct option *option_find(const struct option_table *t, const char *key)
{
    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->options[i].key, key)) return &t->options[i];
    return NULL;
}

const char *option_of_group(const struct option_table *t, const char *key)
{
    size_t n = strlen(key);
    for (int i = 0; i < t->n; i++)
        if (!strncmp(t->options[i].key, key, n) && t->options[i].key[n] == '.')
            return t->options[i].key;
    return NULL;
}

void option_mark_section(const struct option_table *t, const char *key, void *object)
{
    char section[OPTION_KEY_BYTES];
    const char *dot = strchr(key, '.');
    size_t n = dot ? (size_t)(dot - key) : strlen(key);
    if (n >= sizeof section) return;
    memcpy(section, key, n);
    section[n] = '\0';
    const struct option *o = option_find(t, section);
    if (o && o->type == OPTION_SECTION) *(bool *)((char *)object + o->offset) = true;
}

#define WORD_MAX 63

int options_distance(const char *a, const char *b)
{
    int la = (int)strnlen(a, WORD_MAX), lb = (int)strnlen(b, WORD_MAX);
    int row[WORD_MAX + 1];
    for (int j = 0; j <= lb; j++) row[j] = j;
    for (int i = 1; i <= la; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= lb; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[lb];
}

const char *option_nearest(const struct option_table *t, const char *key)
{
    const char *best = NULL;
    const char *last = strrchr(key, '.') ? strrchr(key, '.') + 1 : key;
    int least = 0;
    for (int i = 0; i < t->n; i++) {
        const char *k = t->options[i].key;
        const char *k_last = strrchr(k, '.') ? strrchr(k, '.') + 1 : k;
        /* A right word in the wrong section is nearer than any misspelling. */
        int d = strcmp(last, k_last) ? 2 * options_distance(key, k) : 1;
        if (!best || d < least) {
            best = k;
            least = d;
        }
    }
    return best;
}

enum status options_set(const struct option_table *t, const char *assignment, void *object)
{
    const char *eq = strchr(assignment, '=');
    char key[OPTION_KEY_BYTES];
    if (!eq || eq == assignment || (size_t)(eq - assignment) >= sizeof key)
        return error_set(ERR_USAGE, "--set %.200s: expected key=value, as in decode.max_batch=64",
                         assignment);
    memcpy(key, assignment, (size_t)(eq - assignment));
    key[eq - assignment] = '\0';
    const struct option *o = option_find(t, key);
    if (!o && option_of_group(t, key))
        return error_set(ERR_USAGE, "--set %.200s: %s is a section: set one of its keys, as in %s",
                         assignment, key, option_of_group(t, key));
    if (!o)
        return error_set(ERR_USAGE, "--set %.200s: unknown key %s: did you mean %s?", assignment,
                         key, option_nearest(t, key));
    if (!option_parse(o, eq + 1, false, object)) {
        char expected[OPTION_TEXT_BYTES];
        option_expected(o, expected);
        return error_set(ERR_USAGE, "--set: %s: found \"%.200s\", expected %s", key, eq + 1,
                         expected);
    }
    if (o->type != OPTION_SECTION) option_mark_section(t, key, object);
    return OK;
}

static void print_docs(const struct option *o, int column, FILE *out)
{
    if (column < 44) fprintf(out, "%*s", 44 - column, "");
    fprintf(out, "  # %s%s%s%s", o->doc, *o->unit ? " [" : "", o->unit, *o->unit ? "]" : "");
}

static void dump_line(const struct option *o, const char *name, int indent, const void *object,
                      int docs, FILE *out)
{
    char *text = NULL;
    size_t n = 0;
    FILE *m = open_memstream(&text, &n);
    if (!m) return;
    fprintf(m, "%*s%s:", indent, "", name);
    if (o->type != OPTION_SECTION) fputc(' ', m);
    option_print(o, object, m);
    fclose(m);
    fputs(text, out);
    if (docs) print_docs(o, (int)n, out);
    fputc('\n', out);
    free(text);
}

/* A key of a section: "name", or "sub.name" under a heading of its own. */
static void dump_key(const struct option *o, const char *name, char sub[OPTION_KEY_BYTES],
                     const void *object, int docs, FILE *out)
{
    const char *dot = strchr(name, '.');
    int len = dot ? (int)(dot - name) : 0;
    if (dot && (strncmp(sub, name, (size_t)len) || sub[len])) fprintf(out, "  %.*s:\n", len, name);
    snprintf(sub, OPTION_KEY_BYTES, "%.*s", len, name);
    dump_line(o, dot ? dot + 1 : name, dot ? 4 : 2, object, docs, out);
}

void options_dump(const struct option_table *t, const void *object, int docs, FILE *out)
{
    char open[OPTION_KEY_BYTES] = ""; /* the section whose keys are being written */
    char sub[OPTION_KEY_BYTES] = "";  /* and the one inside it */
    bool there = true;
    for (int i = 0; i < t->n; i++) {
        const struct option *o = &t->options[i];
        const char *dot = strchr(o->key, '.');
        int len = dot ? (int)(dot - o->key) : (int)strlen(o->key);
        if (o->type == OPTION_SECTION) {
            there = *(const bool *)((const char *)object + o->offset);
            if (there) dump_line(o, o->key, 0, object, docs, out);
            snprintf(open, sizeof open, "%s", o->key);
        } else if (!dot) {
            dump_line(o, o->key, 0, object, docs, out);
        } else {
            if (strncmp(open, o->key, (size_t)len) || open[len]) {
                snprintf(open, sizeof open, "%.*s", len, o->key);
                fprintf(out, "%s:\n", open);
                there = true;
            }
            if (there) dump_key(o, dot + 1, sub, object, docs, out);
        }
    }
}

/* A value as the YAML has it, cut off where it gets long. */
static void value_text(const struct option *o, const void *object, char text[OPTION_TEXT_BYTES])
{
    FILE *m = fmemopen(text, OPTION_TEXT_BYTES, "w");
    text[0] = '\0';
    if (!m) return;
    if (o->type == OPTION_SECTION)
        fputs(*(const bool *)((const char *)object + o->offset) ? "given" : "not given", m);
    else
        option_print(o, object, m);
    fclose(m);
    text[OPTION_TEXT_BYTES - 1] = '\0';
}

/* Whether an object has the section of a key; keys without one are always there. */
static bool has_section(const struct option_table *t, const char *key, const void *object)
{
    char section[OPTION_KEY_BYTES];
    const char *dot = strchr(key, '.');
    snprintf(section, sizeof section, "%.*s", dot ? (int)(dot - key) : 0, key);
    const struct option *o = dot ? option_find(t, section) : NULL;
    return !o || o->type != OPTION_SECTION || *(const bool *)((const char *)object + o->offset);
}

void options_differ(const struct option_table *t, int fixed, const void *before, const void *now,
                    char *text, size_t bytes)
{
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < t->n; i++) {
        const struct option *o = &t->options[i];
        char was[OPTION_TEXT_BYTES], is[OPTION_TEXT_BYTES];
        if (!o->fixed != !fixed || !has_section(t, o->key, before) || !has_section(t, o->key, now))
            continue;
        value_text(o, before, was);
        value_text(o, now, is);
        if (strcmp(was, is) == 0 || used >= bytes) continue;
        used += (size_t)snprintf(text + used, bytes - used, "%s%s was %s, is %s", used ? "; " : "",
                                 o->key, was, is);
    }
}

void options_help(const struct option_table *t, FILE *out)
{
    for (int i = 0; i < t->n; i++) {
        const struct option *o = &t->options[i];
        char expected[OPTION_TEXT_BYTES];
        option_expected(o, expected);
        if (o->type == OPTION_SECTION) {
            fprintf(out, "  %s\n      %s\n", o->key, o->doc);
            continue;
        }
        fprintf(out, "  %s = %s\n      %s", o->key, o->def ? o->def : "(required)", o->doc);
        fprintf(out, "%s%s: %s\n", *o->unit ? ", " : "", o->unit, expected);
    }
}
