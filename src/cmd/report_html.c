/* report_html.c - see report_html.h. */
#include "cmd/report_html.h"

#include "cmd/report_svg.h"

#include <stdlib.h>
#include <string.h>

static const char style[] =
    "body{margin:0;background:#fff;color:#1d2330;font:14px/1.45 system-ui,'DejaVu Sans',Arial,"
    "sans-serif}\n"
    "main{width:1120px;max-width:96vw;margin:0 auto;padding:20px 0 60px}\n"
    "h1{font-size:22px;margin:8px 0 2px}\n"
    "h2{font-size:17px;margin:34px 0 4px;padding-top:12px;border-top:1px solid #dde1e7}\n"
    "p{margin:2px 0 10px;color:#4a5363;max-width:900px}\n"
    "svg{display:inline-block;max-width:100%;height:auto;margin:6px 0 8px;vertical-align:top}\n"
    ".row{display:flex;flex-wrap:wrap;align-items:flex-start;gap:0 20px}\n"
    ".verdict{display:inline-block;padding:4px 12px;border-radius:4px;font-weight:600;margin:8px "
    "0}\n"
    ".good{background:#dcf2ea;color:#00573f}.bad{background:#fbe3d6;color:#8a3200}\n"
    ".tiles{display:flex;flex-wrap:wrap;gap:10px;margin:10px 0}\n"
    ".tile{border:1px solid #dde1e7;border-radius:6px;padding:8px 14px;min-width:112px}\n"
    ".tile b{display:block;font-size:19px;font-weight:600}.tile "
    "span{color:#4a5363;font-size:12px}\n"
    "table{border-collapse:collapse;margin:8px 0 12px;font-variant-numeric:tabular-nums}\n"
    "th,td{padding:3px 12px 3px 0;text-align:right;border-bottom:1px solid #eceff3}\n"
    "th{color:#4a5363;font-weight:600;font-size:12.5px;white-space:nowrap}\n"
    "th:first-child,td:first-child{text-align:left}\n"
    "table.facts td{text-align:left;vertical-align:top;overflow-wrap:anywhere}\n"
    "table.facts td:first-child{white-space:nowrap;color:#4a5363}\n"
    "pre{font:12.5px/1.4 'DejaVu Sans Mono',Consolas,monospace;background:#f6f7f9;padding:10px "
    "12px;"
    "overflow-x:auto;border-radius:4px}\n"
    ".wide{overflow-x:auto}\n"
    "summary{cursor:pointer;color:#0a5a94;margin:4px 0}\n"
    "svg text{font-family:system-ui,'DejaVu Sans',Arial,sans-serif;fill:" SVG_INK "}\n"
    "svg .title{font-size:14px;font-weight:600}svg .note{font-size:12px;fill:#4a5363}\n"
    "svg .axis{font-size:12px}svg .tick{font-size:11.5px}\n"
    "svg .halo{paint-order:stroke;stroke:#fff;stroke-width:3px}\n"
    "svg .in{font-size:10.5px;fill:#fff;pointer-events:none}\n"
    "svg .dark{fill:#1d2330}\n"
    "svg rect{shape-rendering:crispEdges}\n"
    "svg .grid{stroke:#e6e9ee;stroke-width:1}svg .base{stroke:#8a93a3;stroke-width:1}\n"
    "svg .level{stroke:#333a45;stroke-width:1;stroke-dasharray:5 4}\n";

void html_begin(FILE *out, const char *title)
{
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>",
          out);
    svg_escape(out, title);
    fprintf(out, "</title>\n<style>\n%s</style>\n</head>\n<body>\n<main>\n<h1>", style);
    svg_escape(out, title);
    fputs("</h1>\n", out);
}

void html_end(FILE *out)
{
    fputs("</main>\n</body>\n</html>\n", out);
}

void html_section(FILE *out, const char *heading, const char *text)
{
    fputs("<h2>", out);
    svg_escape(out, heading);
    fputs("</h2>\n", out);
    if (!text) return;
    fputs("<p>", out);
    svg_escape(out, text);
    fputs("</p>\n", out);
}

void html_tiles_begin(FILE *out)
{
    fputs("<div class=\"tiles\">\n", out);
}

void html_tile(FILE *out, const char *value, const char *name)
{
    fputs("<div class=\"tile\"><b>", out);
    svg_escape(out, value);
    fputs("</b><span>", out);
    svg_escape(out, name);
    fputs("</span></div>\n", out);
}

void html_tiles_end(FILE *out)
{
    fputs("</div>\n", out);
}

void html_verdict(FILE *out, bool good, const char *text)
{
    fprintf(out, "<div class=\"verdict %s\">", good ? "good" : "bad");
    svg_escape(out, text);
    fputs("</div>\n", out);
}

/* One <tr> of the cells in `cells`. */
static void put_cells(FILE *out, const char *cells, const char *tag)
{
    fputs("<tr>", out);
    char *copy = strdup(cells), *rest = copy;
    for (const char *cell; copy && (cell = strsep(&rest, "\t"));) {
        fprintf(out, "<%s>", tag);
        svg_escape(out, cell);
        fprintf(out, "</%s>", tag);
    }
    free(copy);
    fputs("</tr>\n", out);
}

void html_table_begin(FILE *out, const char *heads)
{
    fputs("<table>\n", out);
    put_cells(out, heads, "th");
}

void html_row(FILE *out, const char *cells)
{
    put_cells(out, cells, "td");
}

void html_table_end(FILE *out)
{
    fputs("</table>\n", out);
}

void html_folded(FILE *out, const char *name, const char *text)
{
    fputs("<details><summary>", out);
    svg_escape(out, name);
    fputs("</summary><pre>", out);
    svg_escape(out, text);
    fputs("</pre></details>\n", out);
}

void html_provenance(FILE *out, const struct report_file *f)
{
    static const struct {
        const char *key, *name;
    } facts[] = {
        {"status", "status"},       {"program_version", "program"},    {"git_revision", "revision"},
        {"argv", "command"},        {"start_utc", "start, UTC"},       {"end_utc", "end, UTC"},
        {"hosts", "hosts"},         {"isa", "instruction set"},        {"transport", "transport"},
        {"libraries", "libraries"}, {"schema_version", "file format"},
    };
    static const struct {
        const char *key, *name;
    } texts[] = {{"job_yaml", "job file as it was resolved"},
                 {"study_yaml", "study file as it was resolved"}};

    html_section(out, "Provenance", NULL);
    fputs("<table class=\"facts\">\n", out);
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) {
        char *value = report_attr(f, facts[i].key);
        if (!value) continue;
        fprintf(out, "<tr><td>%s</td><td>", facts[i].name);
        svg_escape(out, value);
        fputs("</td></tr>\n", out);
        free(value);
    }
    fputs("</table>\n", out);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        char *value = report_attr(f, texts[i].key);
        if (value) html_folded(out, texts[i].name, value);
        free(value);
    }
}
