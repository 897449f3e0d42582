/* report_html.h - the frame of the page: head with the style, sections, tables, provenance. The
 * page refers to nothing outside itself. Text from the file is escaped (svg_escape).
 */
#ifndef CMD_REPORT_HTML_H
#define CMD_REPORT_HTML_H

#include "cmd/report_read.h"

#include <stdio.h>

void html_begin(FILE *out, const char *title);
void html_end(FILE *out);

/* A heading, a sentence on how to read what follows (NULL = none), and the figures until the
 * next section. */
void html_section(FILE *out, const char *heading, const char *text);

/* A row of headline figures: html_tiles_begin, html_tile..., html_tiles_end. */
void html_tiles_begin(FILE *out);
void html_tile(FILE *out, const char *value, const char *name);
void html_tiles_end(FILE *out);

/* The verdict as a coloured line; good = VALID. */
void html_verdict(FILE *out, bool good, const char *text);

/* Tables: the first column is text, the others numbers. cells are separated by '\t'. */
void html_table_begin(FILE *out, const char *heads);
void html_row(FILE *out, const char *cells);
void html_table_end(FILE *out);

/* Text as it is, folded away under a name. */
void html_folded(FILE *out, const char *name, const char *text);

/* The file's attributes: program, revision, command line, machines, libraries, job file. */
void html_provenance(FILE *out, const struct report_file *f);

#endif
