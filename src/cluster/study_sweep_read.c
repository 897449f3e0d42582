/* study_sweep_read.c - takes the `sweep:` section out of a study file: lists are no values of an
 * option table. The section's lines are blanked, so that line numbers stay. */
#include "cluster/study.h"

#include <string.h>
#include <yaml.h>

enum status sweep_take(const char *path, char *text, size_t bytes, struct sweep_axes *axes);

#define AT(node) path, (node)->start_mark.line + 1, (node)->start_mark.column + 1

static enum status take_value(const char *path, const yaml_node_t *n, struct sweep_axis *axis)
{
    if (!n || n->type != YAML_SCALAR_NODE || n->data.scalar.length >= SWEEP_TEXT)
        return error_set(ERR_INPUT, "%s: sweep: %s: expected plain values, shorter than %d", path,
                         axis->key, SWEEP_TEXT);
    if (axis->n == SWEEP_VALUES)
        return error_set(ERR_INPUT, "%s:%zu:%zu: sweep: %s has more than %d values", AT(n),
                         axis->key, SWEEP_VALUES);
    strcpy(axis->value[axis->n++], (const char *)n->data.scalar.value);
    return OK;
}

static enum status take_axis(const char *path, yaml_document_t *doc, const yaml_node_t *key,
                             const yaml_node_t *value, struct sweep_axes *axes)
{
    if (axes->n == SWEEP_AXES)
        return error_set(ERR_INPUT, "%s:%zu:%zu: sweep has more than %d keys", AT(key), SWEEP_AXES);
    struct sweep_axis *axis = &axes->axis[axes->n++];
    if (key->type != YAML_SCALAR_NODE || key->data.scalar.length >= SWEEP_TEXT)
        return error_set(ERR_INPUT, "%s:%zu:%zu: sweep: expected a key like decode.ep", AT(key));
    strcpy(axis->key, (const char *)key->data.scalar.value);
    if (value->type == YAML_SCALAR_NODE) return take_value(path, value, axis);
    if (value->type != YAML_SEQUENCE_NODE ||
        value->data.sequence.items.start == value->data.sequence.items.top)
        return error_set(ERR_INPUT, "%s:%zu:%zu: sweep: %s: expected a list, as in [16, 32]",
                         AT(value), axis->key);
    for (yaml_node_item_t *i = value->data.sequence.items.start; i < value->data.sequence.items.top;
         i++)
        TRY(take_value(path, yaml_document_get_node(doc, *i), axis));
    return OK;
}

static void blank_lines(char *text, size_t from, size_t to)
{
    size_t line = 0;
    for (char *p = text; *p; p++) {
        if (*p == '\n')
            line++;
        else if (line >= from && line < to)
            *p = ' ';
    }
}

static enum status take_section(const char *path, yaml_document_t *doc, char *text,
                                struct sweep_axes *axes)
{
    yaml_node_t *root = yaml_document_get_root_node(doc);
    if (!root || root->type != YAML_MAPPING_NODE) return OK; /* the option table complains */
    for (yaml_node_pair_t *p = root->data.mapping.pairs.start; p < root->data.mapping.pairs.top;
         p++) {
        yaml_node_t *key = yaml_document_get_node(doc, p->key);
        yaml_node_t *map = yaml_document_get_node(doc, p->value);
        if (!key || !map || key->type != YAML_SCALAR_NODE ||
            strcmp((const char *)key->data.scalar.value, "sweep"))
            continue;
        if (map->type != YAML_MAPPING_NODE)
            return error_set(ERR_INPUT,
                             "%s:%zu:%zu: sweep: expected keys with lists, as in "
                             "{decode.ep: [72, 144]}",
                             AT(map));
        for (yaml_node_pair_t *a = map->data.mapping.pairs.start; a < map->data.mapping.pairs.top;
             a++)
            TRY(take_axis(path, doc, yaml_document_get_node(doc, a->key),
                          yaml_document_get_node(doc, a->value), axes));
        blank_lines(text, key->start_mark.line, map->end_mark.line + (map->end_mark.column > 0));
    }
    return OK;
}

enum status sweep_take(const char *path, char *text, size_t bytes, struct sweep_axes *axes)
{
    yaml_parser_t parser;
    yaml_document_t doc;
    if (!yaml_parser_initialize(&parser))
        return error_set(ERR_RESOURCE, "no memory for the YAML parser");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, bytes);
    enum status st = OK;
    if (yaml_parser_load(&parser, &doc)) { /* broken YAML: options_parse says where */
        st = take_section(path, &doc, text, axes);
        yaml_document_delete(&doc);
    }
    yaml_parser_delete(&parser);
    return st;
}
