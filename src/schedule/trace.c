/* trace.c - the JSON array form of the trace event format, streamed: one "X" event an op, two
 * metadata events a track and a rank. Times in microseconds.
 */
#include "schedule/trace.h"

#include <errno.h>
#include <string.h>

void trace_buf_init(struct trace_buf *buf, struct trace_event *events, size_t cap)
{
    *buf = (struct trace_buf){.events = events, .cap = cap};
}

static enum status trace_fail(const struct trace_writer *w, const char *what)
{
    return error_set(ERR_RESOURCE, "%s: cannot %s the trace: %s", w->path, what, strerror(errno));
}

enum status trace_open(struct trace_writer *w, const char *path)
{
    memset(w, 0, sizeof *w);
    if (strlen(path) >= sizeof w->path)
        return error_set(ERR_INPUT, "trace path has %zu characters, at most %zu are supported",
                         strlen(path), sizeof w->path - 1);
    memcpy(w->path, path, strlen(path) + 1);
    w->file = fopen(path, "w");
    if (!w->file) return trace_fail(w, "create");
    fputs("[", w->file);
    return OK;
}

static void trace_separate(struct trace_writer *w)
{
    fputs(w->written++ ? ",\n" : "\n", w->file);
}

/* A JSON string; control characters become spaces. */
static void trace_string(FILE *f, const char *text)
{
    fputc('"', f);
    for (const char *c = text; *c; c++) {
        if (*c == '"' || *c == '\\') fputc('\\', f);
        fputc((unsigned char)*c < 0x20 ? ' ' : *c, f);
    }
    fputc('"', f);
}

/* A track's place among its rank's. */
static int trace_order(int mb, int lane)
{
    return mb * OP_LANES + lane;
}

/* A track's id: of this rank alone, and never a pid of the file. Perfetto takes tid 0 for the
 * process's own thread, the one with tid = pid: with small ids, tracks of ranks 1 to 3 fell
 * together with another lane of theirs. */
static int trace_tid(int rank, int order)
{
    return 10 * (rank + 1) + 1 + order;
}

static void trace_names(struct trace_writer *w, const struct trace_rank *rank)
{
    char fallback[32];
    snprintf(fallback, sizeof fallback, "rank %d", rank->rank);
    trace_separate(w);
    fprintf(w->file,
            "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%d,\"args\":{\"name\":", rank->rank);
    trace_string(w->file, rank->name ? rank->name : fallback);
    fputs("}}", w->file);
    trace_separate(w);
    fprintf(w->file,
            "{\"name\":\"process_sort_index\",\"ph\":\"M\",\"pid\":%d,"
            "\"args\":{\"sort_index\":%d}}",
            rank->rank, rank->rank);
    bool used[SCHEDULE_MAX_MB * OP_LANES] = {false};
    for (size_t i = 0; i < rank->n; i++)
        used[trace_order(rank->events[i].mb % SCHEDULE_MAX_MB, rank->events[i].lane % OP_LANES)] =
            true;
    for (int mb = 0; mb < SCHEDULE_MAX_MB; mb++)
        for (int lane = 0; lane < OP_LANES; lane++) {
            int order = trace_order(mb, lane), tid = trace_tid(rank->rank, order);
            if (!used[order]) continue;
            trace_separate(w);
            fprintf(w->file,
                    "{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":%d,\"tid\":%d,"
                    "\"args\":{\"name\":\"micro-batch %d %s\"}}",
                    rank->rank, tid, mb, lane == OP_COMM ? "communication" : "compute");
            trace_separate(w);
            fprintf(w->file,
                    "{\"name\":\"thread_sort_index\",\"ph\":\"M\",\"pid\":%d,\"tid\":%d,"
                    "\"args\":{\"sort_index\":%d}}",
                    rank->rank, tid, order);
        }
}

enum status trace_write_rank(struct trace_writer *w, const struct trace_rank *rank)
{
    trace_names(w, rank);
    for (size_t i = 0; i < rank->n; i++) {
        const struct trace_event *e = &rank->events[i];
        trace_separate(w);
        fprintf(w->file,
                "{\"name\":\"%s(%d)\",\"cat\":\"%s\",\"ph\":\"X\",\"ts\":%.3f,\"dur\":%.3f,"
                "\"pid\":%d,\"tid\":%d,\"args\":{\"layer\":%d}}",
                stage_name((enum stage)e->stage), e->mb,
                e->lane == OP_COMM ? "communication" : "compute", e->t0 * 1e6,
                (e->t1 - e->t0) * 1e6, rank->rank,
                trace_tid(rank->rank, trace_order(e->mb, e->lane)), e->layer);
    }
    return ferror(w->file) ? trace_fail(w, "write") : OK;
}

enum status trace_close(struct trace_writer *w)
{
    fputs("\n]\n", w->file);
    bool failed = ferror(w->file) != 0;
    failed = fclose(w->file) != 0 || failed;
    w->file = NULL;
    return failed ? trace_fail(w, "write") : OK;
}

enum status trace_write(const char *path, const struct trace_rank *ranks, int n_ranks)
{
    struct trace_writer w;
    TRY(trace_open(&w, path));
    enum status st = OK;
    for (int i = 0; i < n_ranks && st == OK; i++) st = trace_write_rank(&w, &ranks[i]);
    enum status closed = trace_close(&w);
    return st != OK ? st : closed;
}
