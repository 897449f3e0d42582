/* bench_timed.h - a table of kernels that notes what each call costs, for `moebatch bench layer`.
 *
 * timed_wrap hands out a struct kernels whose functions call the real ones and add up, per
 * (stage, kernel, shape), calls, seconds, operations and the bytes that the call must move (weights
 * once, activations in and out). One table at a time; calls on another lane than t->lane are passed
 * on without a note.
 */
#ifndef CMD_BENCH_TIMED_H
#define CMD_BENCH_TIMED_H

#include "device/kernels.h"

enum { TIMED_MAX = 256, TIMED_LABEL = 40 };

struct timed_entry {
    int stage;               /* whatever timed->stage was */
    char label[TIMED_LABEL]; /* "gemm fp8 4096x7168" */
    int calls;
    double seconds, flops, bytes;
    bool f32; /* which peak bounds it: FP32's, else BF16's */
};

struct timed {
    struct lane lane;
    struct kernels real;
    int stage; /* set by the caller before each stage */
    struct timed_entry entry[TIMED_MAX];
    int entries;
};

/* t must live as long as `out` is used. */
void timed_wrap(struct timed *t, const struct kernels *real, struct kernels *out);

/* Forgets all notes. */
void timed_clear(struct timed *t);

#endif
