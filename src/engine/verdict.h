/* verdict.h - from what the ranks say of themselves to the one that everybody waits for.
 *
 * Plain data and text, no MPI, no clock: rank 0 feeds it with what all ranks answered, the thread
 * of a rank that cannot reach rank 0 with what the host's shared memory shows.
 */
#ifndef ENGINE_VERDICT_H
#define ENGINE_VERDICT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Where a rank is in the job; names in verdict.c. */
enum watch_phase {
    WATCH_START,
    WATCH_JOB,
    WATCH_UNITS,
    WATCH_SIZES,
    WATCH_WEIGHTS,
    WATCH_MODEL,
    WATCH_FILES,
    WATCH_SERVE,
    WATCH_RESULTS,
    WATCH_LEAVE,
    WATCH_PHASES
};

enum watch_wait {
    WATCH_NO,      /* computing, reading, writing */
    WATCH_MEET,    /* a collective call of the start */
    WATCH_ROWS,    /* DISPATCH or COMBINE */
    WATCH_WORD,    /* the leader's word on the next step */
    WATCH_REPORTS, /* leader: the others' reports of the last step */
    WATCH_WORK,    /* leader: nothing to do */
    WATCH_FIGURES, /* rank 0: closing figures */
    WATCH_LAST     /* the others: rank 0 writes the results */
};

enum watch_known {
    KNOWN_NOT,    /* nothing: a rank of another host that was not, or could not be, asked */
    KNOWN_SILENT, /* asked, no answer; what is known was seen by a rank of its host, if `seen` */
    KNOWN_ALIVE
};

/* What a rank does; then its set of awaited ranks, a bit each. Travels as it is. */
struct watch_report {
    int32_t rank, known, seen;
    int32_t phase, wait;
    int32_t kind;             /* of the step: 0 prefill, 1 decode, -1 none */
    int32_t stage, mb, layer; /* stage -1: none */
    int32_t meets;            /* collective calls of the start that it has come to */
    int64_t step;
    float quiet_s, silent_s; /* since it got on; since it gave any sign */
    char process;            /* state letter of /proc, 'X': gone, '?': not looked at */
    char what[31];           /* that it waits for: "dispatch rows" */
    uint8_t awaited[];
};

struct watch_name {
    char unit[16], host[48];
};

struct verdict {
    int rank;     /* everybody waits for it; -1: nobody in particular */
    bool answers; /* it answers and computes: slow, not lost */
    int waiting;  /* ranks that wait for it, directly or through others */
    char text[1400];
};

static inline bool watch_awaits(const struct watch_report *r, int rank)
{
    return r->awaited[rank / 8] >> (rank % 8) & 1;
}

/* reports: n of them, `bytes` apart, in order of ranks. names: [n]. */
void verdict_find(const void *reports, size_t bytes, const struct watch_name *names, int n,
                  double limit_s, struct verdict *out);

#endif
