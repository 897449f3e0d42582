/* options.h - a table of options and everything that can be done with one: defaults, YAML with
 * line and column in every error, "key.sub=value" overrides, help, and a dump that reads back.
 *
 * A table describes the fields of one plain struct. Keys are paths of at most three parts
 * ("decode.max_batch", "kv.disk.dir"), those of a third part after the others of their section. A
 * first part that groups others may have its own row of type OPTION_SECTION:
 * a bool that says whether the section was given; sections without a row just group.
 * The table and the struct belong to the caller. Whoever has a struct to fill writes a table, not
 * a parser; there is never a second list of the keys.
 */
#ifndef CONFIG_OPTIONS_H
#define CONFIG_OPTIONS_H

#include "core/status.h"

#include <stddef.h>
#include <stdio.h>

enum option_type {
    OPTION_SECTION, /* bool: the section is there; `section: null` takes it away */
    OPTION_INT,     /* int */
    OPTION_UINT64,  /* uint64_t */
    OPTION_DOUBLE,  /* double */
    OPTION_BOOL,    /* bool */
    OPTION_CHOICE,  /* int: index into choices */
    OPTION_STRING   /* char[bytes]; null is "" */
};

#define OPTION_AUTO (-1) /* value of an int or a choice that says auto */

struct option {
    const char *key;
    enum option_type type;
    size_t offset;              /* of the field */
    size_t bytes;               /* OPTION_STRING: size of the array, with the NUL */
    const char *def;            /* default as YAML writes it; NULL: none, zero */
    double min, max;            /* numbers: legal range, both ends included */
    const char *const *choices; /* OPTION_CHOICE: names, NULL-terminated */
    int may_auto;               /* an int or a choice may be "auto" */
    int fixed;                  /* decides results: a resumed job must have the same */
    const char *unit;           /* "" when it has none */
    const char *doc;            /* one line */
};

struct option_table {
    const char *what; /* "job file", for messages */
    const struct option *options;
    int n;
};

/* Zeroes the struct of `bytes` bytes and writes every default. */
void options_defaults(const struct option_table *t, void *object, size_t bytes);

/* Reads a YAML file over what *object holds. ERR_INPUT with file:line:column. */
enum status options_read(const struct option_table *t, const char *path, void *object);

/* The same from memory; `name` stands for the path in messages. */
enum status options_parse(const struct option_table *t, const char *name, const void *text,
                          size_t bytes, void *object);

/* Applies one "key.sub=value". ERR_USAGE. */
enum status options_set(const struct option_table *t, const char *assignment, void *object);

/* Writes *object as YAML; docs != 0 adds unit and doc as comments. Sections that are not there
 * are left out. */
void options_dump(const struct option_table *t, const void *object, int docs, FILE *out);

/* Writes "KEY was VALUE, is VALUE; ..." for all options with this `fixed` that differ between two
 * objects, cut off where it gets too long. A section that only one of them has counts as one. */
void options_differ(const struct option_table *t, int fixed, const void *before, const void *now,
                    char *text, size_t bytes);

/* The keys with default, range, unit and doc. */
void options_help(const struct option_table *t, FILE *out);

/* Edit distance between two short words, for "did you mean"; exposed for its test. */
int options_distance(const char *a, const char *b);

#endif
