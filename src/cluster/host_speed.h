/* host_speed.h - what the CPUs of one host can do, as `moebatch calibrate` measured them: the
 * figures from which engine_stage.h puts stage times together.
 *
 * A YAML file like those of hardware.h (name, source, then sections), read by one option table.
 * Where a figure is a curve its value is a list of numbers in one string. Times are microseconds
 * of one thread; `one` was measured with one busy core, `all` with every core busy, and what lies
 * between is interpolated. Plain data without pointers.
 *
 * Linear figures: time = sum of coefficient x feature, the coefficients fitted (non-negative,
 * relative least squares) to measured points; host_features.h computes the features for
 * calibration and prediction alike.
 *
 * Errors: ERR_INPUT with file, line, key, found and expected.
 */
#ifndef CLUSTER_HOST_SPEED_H
#define CLUSTER_HOST_SPEED_H

#include "core/status.h"

#include <stdbool.h>
#include <stdio.h>

enum {
    SPEED_TEXT = 256,
    SPEED_ROWS = 17, /* rows of a block at which products are measured */
    SPEED_FOOTPRINTS = 10,
    SPEED_COEFS = 8,
    SPEED_RANKS = 8 /* sizes of the all-to-all in one file */
};

enum speed_cores { SPEED_ONE, SPEED_ALL, SPEED_CORES };

/* Weight types; the order of device/kernels.h's enum dtype. */
enum speed_type { SPEED_F32, SPEED_BF16, SPEED_FP8, SPEED_TYPES };

/* Kernels over rows. */
enum speed_rows {
    SPEED_RMSNORM,
    SPEED_CONVERT_BF16,
    SPEED_CONVERT_FP8,
    SPEED_SILU,
    SPEED_ADD,
    SPEED_ROPE,
    SPEED_GATE,
    SPEED_KV_WRITE,
    SPEED_GATHER,
    SPEED_COPY,
    SPEED_EMBED,
    SPEED_GREEDY,
    SPEED_SORT,
    SPEED_LOGPROB,
    SPEED_ROW_OPS
};

enum speed_ep_part {
    SPEED_DISPATCH_BEGIN,
    SPEED_DISPATCH_FINISH,
    SPEED_COMBINE_BEGIN,
    SPEED_COMBINE_FINISH,
    SPEED_EP_PARTS
};

/* One packed matrix type. Tables are by rows of a block of activations; a block of weights is
 * 128 deep and one panel wide. */
struct speed_gemm {
    double block[SPEED_CORES][SPEED_ROWS]; /* us of a block, weights in a cache */
    double cold[SPEED_CORES][SPEED_ROWS];  /* us of a block, weights from memory */
    double shallow[SPEED_ROWS];            /* us of a block only 32 deep */
    double panel[SPEED_ROWS];              /* us more for each panel: output */
    double pack[SPEED_ROWS];               /* us for each 128-deep block of activations */
    double call;                           /* us of a product besides */
    double cold_call; /* us more of a product whose weights come from memory: the first lines */
};

struct host_speed {
    char name[SPEED_TEXT], source[SPEED_TEXT];
    int kind; /* 0: cpu */
    char host[SPEED_TEXT], cpu[SPEED_TEXT], isa[SPEED_TEXT], date[SPEED_TEXT];
    int cores;              /* busy in `all` */
    int panel[SPEED_TYPES]; /* columns */
    struct {
        double mb[SPEED_FOOTPRINTS]; /* read again and again by all threads together */
        double share[SPEED_CORES][SPEED_FOOTPRINTS]; /* 0: as in `block`, 1: as in `cold` */
    } footprint;
    double fork[SPEED_CORES]; /* us to wake and join two threads, all threads */
    struct speed_gemm gemm[SPEED_TYPES];
    double rows[SPEED_ROW_OPS][SPEED_COEFS];
    double prefill_attention[SPEED_COEFS];
    double decode_attention[SPEED_COEFS];
    struct {
        int n;
        double ranks[SPEED_RANKS];
        double part[SPEED_RANKS][2][SPEED_EP_PARTS][SPEED_COEFS]; /* normal, low latency */
    } ep;
    struct {
        int n;
        double ranks[SPEED_RANKS];        /* of a unit */
        double prefill_step[SPEED_RANKS]; /* us of a step besides its kernels */
        double decode_step[SPEED_RANKS];
        double op;           /* us of an operation of the schedule */
        double row;          /* us of a request in a decode step */
        double request;      /* us of a request from file to journal */
        double prompt_token; /* us of reading and sending a prompt's token */
        double fault;        /* us for each KB of memory used the first time */
        double transfer;     /* us for each KB of KV sent to another rank */
    } engine;
};

/* Rows at which the tables are measured: [SPEED_ROWS] ascending. */
extern const double host_speed_rows[SPEED_ROWS];

enum status host_speed_read(const char *path, struct host_speed *out);
void host_speed_write(const struct host_speed *s, FILE *out);

/* Reads path, or what `moebatch calibrate` writes when path is NULL or empty; a missing file is
 * ERR_INPUT whose remedy names `moebatch calibrate`. */
#define HOST_SPEED_DEFAULT "inputs/hardware/this-machine.yaml"
enum status host_speed_find(const char *path, struct host_speed *out);

#endif
