/* host_cost.h - the time of one kernel call on a measured host: struct host_speed's figures put
 * together for given sizes.
 *
 * The formulas follow what the kernels do: a product is cut into 128-deep blocks of one panel of
 * weights, met by at most 192 rows at a time (gemm/driver.c); attention into tiles of 64 queries
 * and 64 keys; row kernels wake their threads beyond a size of their own. Plain arithmetic, times
 * in microseconds; calibration fits with the same features.
 */
#ifndef CLUSTER_HOST_COST_H
#define CLUSTER_HOST_COST_H

#include "cluster/host_speed.h"

/* How a call finds the host. */
struct host_view {
    const struct host_speed *s;
    double threads;  /* of the rank */
    double all;      /* 0: one core of the host is busy .. 1: all are */
    double cold;     /* 0: weights come from a cache .. 1: from memory */
    double busy, mb; /* as host_view_make was asked */
};

/* busy: cores at work on the host; footprint_mb: what they all read again and again. */
struct host_view host_view_make(const struct host_speed *s, int threads, double busy,
                                double footprint_mb);

/* How many groups (experts, heads) have how many rows: expectation. */
enum { HOST_SPREAD_MAX = 96 };
struct host_spread {
    int n;
    double rows[HOST_SPREAD_MAX], groups[HOST_SPREAD_MAX];
};
/* `groups` groups of exactly `rows` rows. */
struct host_spread host_spread_equal(double groups, double rows);
/* Adds `groups` groups that each get one of `draws` independent rows with probability p. */
void host_spread_binomial(struct host_spread *s, double groups, double draws, double p);
/* Groups with any row; rows altogether. */
double host_spread_busy(const struct host_spread *s);
double host_spread_rows(const struct host_spread *s);

/* Weights of a product: [n0 + n1, k], each source with panels of its own. */
struct host_weights {
    enum speed_type type;
    int n0, n1, k;
};
double host_weights_bytes(const struct host_speed *s, const struct host_weights *w);
double host_product_us(const struct host_view *v, const struct host_weights *w,
                       const struct host_spread *spread);
double host_dense_us(const struct host_view *v, const struct host_weights *w, double m);

/* m rows of n numbers. */
double host_rows_us(const struct host_view *v, enum speed_rows op, double m, double n);
enum { HOST_NEAR_ELEMENTS = 1 << 17 };
void host_rows_features(double m, double n, double f[SPEED_COEFS]);

struct host_heads {
    int heads, dim_nope, dim_rope, dim_v, kv_lora;
};
/* One chunk of m queries at position pos0. */
void host_prefill_features(const struct host_heads *h, double m, double pos0,
                           double f[SPEED_COEFS]);
double host_prefill_us(const struct host_view *v, const struct host_heads *h, double m,
                       double pos0);
/* m requests with `keys` keys in sum, in `parts` parts of at most 512 keys. */
void host_decode_features(const struct host_heads *h, double m, double keys, double parts,
                          double f[SPEED_COEFS]);
double host_decode_us(const struct host_view *v, const struct host_heads *h, double m, double keys,
                      double parts);

/* tokens of a rank with topk rows each, of `bytes` bytes in the payload and `hidden` numbers;
 * slots: of the unit. */
void host_ep_features(double tokens, double topk, double bytes, double hidden, double slots,
                      double f[SPEED_COEFS]);
/* ranks must be among s->ep.ranks; low_latency 0 or 1. */
double host_ep_us(const struct host_speed *s, int ranks, int low_latency, enum speed_ep_part part,
                  const double f[SPEED_COEFS]);
/* Index of ranks in a list, -1: not measured. */
int host_ranks_find(const double *list, int n, int ranks);

double host_dot(const double *coef, const double *f);

/* Non-negative least squares of errors / scale: x[points][SPEED_COEFS], y[points]; scale NULL: y
 * itself, so of relative errors. Features of index >= n_features are ignored and get 0. */
void host_fit(int points, int n_features, const double (*x)[SPEED_COEFS], const double *y,
              const double *scale, double coef[SPEED_COEFS]);

#endif
