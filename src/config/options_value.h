/* options_value.h - one value of an option: from text and to text. Private to config/. */
#ifndef CONFIG_OPTIONS_VALUE_H
#define CONFIG_OPTIONS_VALUE_H

#include "config/options.h"

#include <stdbool.h>

#define OPTION_TEXT_BYTES 256

/* Parses a scalar into the field of *object; false when it is not legal. quoted: the YAML scalar
 * stood in quotes, so that it can only be a string. The field changes only on success. */
bool option_parse(const struct option *o, const char *text, bool quoted, void *object);

/* What is legal: "an integer in 1..4096 or auto", "one of auto, cpu, cuda". */
void option_expected(const struct option *o, char buf[OPTION_TEXT_BYTES]);

/* Writes the value as a YAML scalar. */
void option_print(const struct option *o, const void *object, FILE *out);

#endif
