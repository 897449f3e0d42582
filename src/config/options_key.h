/* options_key.h - lookup of keys in a table. Private to config/. */
#ifndef CONFIG_OPTIONS_KEY_H
#define CONFIG_OPTIONS_KEY_H

#include "config/options.h"

#define OPTION_KEY_BYTES 128

/* The row of a key, or NULL. */
const struct option *option_find(const struct option_table *t, const char *key);

/* The first key that begins with "key.", or NULL: `key` is no section. */
const char *option_of_group(const struct option_table *t, const char *key);

/* Notes that the section of `key` is there, if its table has a row for it. */
void option_mark_section(const struct option_table *t, const char *key, void *object);

/* The known key that the writer of an unknown one may have meant. */
const char *option_nearest(const struct option_table *t, const char *key);

#endif
