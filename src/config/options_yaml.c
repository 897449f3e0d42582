/* options_yaml.c - a YAML document walked by an option table. libyaml's document API keeps line
 * and column with every node, which each error here names. */
#include "config/options.h"
#include "config/options_key.h"
#include "config/options_value.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#define FILE_BYTES_MAX (4u << 20) /* a job file is a few KB; more is a wrong path */

struct walk {
    const struct option_table *table;
    const char *name;
    yaml_document_t *doc;
    void *object;
};

#define AT(w, node) (w)->name, (node)->start_mark.line + 1, (node)->start_mark.column + 1

static const char *scalar(const yaml_node_t *node)
{
    return (const char *)node->data.scalar.value;
}

/* What a node is, for "found ...". */
static void describe(const yaml_node_t *node, char buf[OPTION_TEXT_BYTES])
{
    if (node->type == YAML_MAPPING_NODE)
        snprintf(buf, OPTION_TEXT_BYTES, "a mapping");
    else if (node->type == YAML_SEQUENCE_NODE)
        snprintf(buf, OPTION_TEXT_BYTES, "a list");
    else if (node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE && !*scalar(node))
        snprintf(buf, OPTION_TEXT_BYTES, "nothing");
    else
        snprintf(buf, OPTION_TEXT_BYTES, "%s\"%.180s\"",
                 node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE ? "" : "the text ",
                 scalar(node));
}

static enum status read_value(struct walk *w, const struct option *o, const yaml_node_t *node)
{
    bool plain =
        node->type == YAML_SCALAR_NODE && node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    bool legal = node->type == YAML_SCALAR_NODE &&
                 strlen(scalar(node)) == node->data.scalar.length && /* no NUL inside */
                 option_parse(o, scalar(node), !plain, w->object);
    if (legal) return OK;
    char found[OPTION_TEXT_BYTES], expected[OPTION_TEXT_BYTES];
    describe(node, found);
    option_expected(o, expected);
    return error_set(ERR_INPUT, "%s:%zu:%zu: %s: found %s, expected %s", AT(w, node), o->key, found,
                     expected);
}

static bool is_null_scalar(const yaml_node_t *node)
{
    return node->type == YAML_SCALAR_NODE && node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (!*scalar(node) || !strcmp(scalar(node), "null") || !strcmp(scalar(node), "~"));
}

static enum status walk_mapping(struct walk *w, const yaml_node_t *map, const char *section);

static enum status read_section(struct walk *w, const char *key, const yaml_node_t *value)
{
    const struct option *o = option_find(w->table, key);
    if (value->type == YAML_MAPPING_NODE) {
        option_mark_section(w->table, key, w->object);
        return walk_mapping(w, value, key);
    }
    if (o) return read_value(w, o, value);
    if (is_null_scalar(value)) return OK; /* a section with all its keys commented out */
    char found[OPTION_TEXT_BYTES];
    describe(value, found);
    return error_set(ERR_INPUT, "%s:%zu:%zu: %s: found %s, expected a mapping, as in {%s: ...}",
                     AT(w, value), key, found, option_of_group(w->table, key) + strlen(key) + 1);
}

static enum status unknown_key(struct walk *w, const yaml_node_t *node, const char *key)
{
    return error_set(ERR_INPUT, "%s:%zu:%zu: unknown key %s in this %s: did you mean %s?",
                     AT(w, node), key, w->table->what, option_nearest(w->table, key));
}

/* The same key twice: YAML would silently let one win. */
static enum status check_duplicate(struct walk *w, const yaml_node_t *map,
                                   const yaml_node_pair_t *pair, const yaml_node_t *name)
{
    const yaml_node_pair_t *p = map->data.mapping.pairs.start;
    for (; p < pair; p++) {
        const yaml_node_t *other = yaml_document_get_node(w->doc, p->key);
        if (other && other->type == YAML_SCALAR_NODE && !strcmp(scalar(other), scalar(name)))
            return error_set(ERR_INPUT, "%s:%zu:%zu: %s is given twice, first in line %zu",
                             AT(w, name), scalar(name), other->start_mark.line + 1);
    }
    return OK;
}

static enum status walk_mapping(struct walk *w, const yaml_node_t *map, const char *section)
{
    const yaml_node_pair_t *p = map->data.mapping.pairs.start;
    for (; p < map->data.mapping.pairs.top; p++) {
        const yaml_node_t *name = yaml_document_get_node(w->doc, p->key);
        const yaml_node_t *value = yaml_document_get_node(w->doc, p->value);
        if (!name || !value || name->type != YAML_SCALAR_NODE)
            return error_set(ERR_INPUT, "%s:%zu:%zu: found %s as a key, expected a name",
                             AT(w, name ? name : map),
                             name && name->type == YAML_MAPPING_NODE ? "a mapping" : "a list");
        char key[OPTION_KEY_BYTES];
        snprintf(key, sizeof key, "%s%s%s", section, *section ? "." : "", scalar(name));
        TRY(check_duplicate(w, map, p, name));
        const struct option *o = option_find(w->table, key);
        if (o && o->type != OPTION_SECTION)
            TRY(read_value(w, o, value));
        else if (option_of_group(w->table, key))
            TRY(read_section(w, key, value));
        else
            return unknown_key(w, name, key);
    }
    return OK;
}

static enum status walk_document(struct walk *w)
{
    const yaml_node_t *root = yaml_document_get_root_node(w->doc);
    if (!root)
        return error_set(ERR_INPUT, "%s: the file is empty, expected a %s", w->name,
                         w->table->what);
    if (root->type != YAML_MAPPING_NODE) {
        char found[OPTION_TEXT_BYTES];
        describe(root, found);
        return error_set(ERR_INPUT, "%s:%zu:%zu: found %s, expected the keys of a %s", AT(w, root),
                         found, w->table->what);
    }
    return walk_mapping(w, root, "");
}

static enum status load_document(yaml_parser_t *p, const char *name, yaml_document_t *doc)
{
    if (yaml_parser_load(p, doc)) return OK;
    if (p->error == YAML_MEMORY_ERROR) return error_set(ERR_RESOURCE, "%s: out of memory", name);
    return error_set(ERR_INPUT, "%s:%zu:%zu: not YAML: %s%s%s", name, p->problem_mark.line + 1,
                     p->problem_mark.column + 1, p->context ? p->context : "",
                     p->context ? ": " : "", p->problem ? p->problem : "malformed");
}

enum status options_parse(const struct option_table *t, const char *name, const void *text,
                          size_t bytes, void *object)
{
    yaml_parser_t parser;
    yaml_document_t doc;
    if (!yaml_parser_initialize(&parser)) return error_set(ERR_RESOURCE, "out of memory");
    yaml_parser_set_input_string(&parser, text, bytes);
    enum status st = load_document(&parser, name, &doc);
    if (st == OK) {
        struct walk w = {.table = t, .name = name, .doc = &doc, .object = object};
        bool single = yaml_document_get_root_node(&doc) != NULL;
        st = walk_document(&w);
        yaml_document_delete(&doc);
        if (st == OK && single && (st = load_document(&parser, name, &doc)) == OK) {
            const yaml_node_t *next = yaml_document_get_root_node(&doc);
            if (next)
                st = error_set(ERR_INPUT, "%s:%zu:%zu: a second YAML document, expected one",
                               AT(&w, next));
            yaml_document_delete(&doc);
        }
    }
    yaml_parser_delete(&parser);
    return st;
}

enum status options_read(const struct option_table *t, const char *path, void *object)
{
    FILE *f = fopen(path, "rb");
    if (!f) return error_set(ERR_INPUT, "cannot open %s %s: %s", t->what, path, strerror(errno));
    char *text = malloc(FILE_BYTES_MAX + 1);
    enum status st;
    if (!text) {
        st = error_set(ERR_RESOURCE, "out of memory");
    } else {
        size_t n = fread(text, 1, FILE_BYTES_MAX + 1, f);
        if (ferror(f))
            st = error_set(ERR_INPUT, "cannot read %s %s: %s", t->what, path, strerror(errno));
        else if (n > FILE_BYTES_MAX)
            st = error_set(ERR_INPUT, "%s: larger than %u MiB, expected a %s", path,
                           FILE_BYTES_MAX >> 20, t->what);
        else
            st = options_parse(t, path, text, n, object);
    }
    free(text);
    fclose(f);
    return st;
}
