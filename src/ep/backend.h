/* backend.h - what moves the rows: the host backend (host.c and its parts) over a transport;
 * on an accelerator dispatch and combine run inside kernels and are another backend.
 *
 * ep.c checks arguments and order of calls and keeps what all backends need: parameters, layout,
 * the expert table and each operation's routing. A backend adds its own state behind `impl`.
 */
#ifndef EP_BACKEND_H
#define EP_BACKEND_H

#include "ep/ep.h"
#include "ep/plan.h"

enum ep_state { EP_FREE, EP_SENT, EP_RECEIVED, EP_RETURNED };

/* One open operation. */
struct ep_op {
    enum ep_state state;
    enum ep_mode mode;
    int layer;
    uint64_t number; /* of this op index, counting both modes; odd and even alternate buffers */
    struct amat x;   /* borrowed until ep_combine_finish */
    struct ep_route route;
    int round; /* receive round the caller has */
    bool more;
    int32_t *begin, *rows; /* [local] of this round */
    int total;
};

struct ep_backend {
    const char *name;
    int (*signals)(int ranks, int clients, int nodes); /* of a window */
    enum status (*create)(struct ep_group *);          /* collective; sets impl */
    void (*destroy)(struct ep_group *);                /* collective */
    enum status (*dispatch_begin)(struct ep_group *, struct ep_op *);
    enum status (*dispatch_finish)(struct ep_group *, struct ep_op *, struct amat *rows);
    enum status (*dispatch_next)(struct ep_group *, struct ep_op *, struct amat *rows);
    enum status (*combine_begin)(struct ep_group *, struct ep_op *, enum dtype y_type,
                                 const void *y, int ldy);
    enum status (*combine_finish)(struct ep_group *, struct ep_op *, float *out, int ldo);
    const char *(*awaited)(const struct ep_group *, const struct ep_op *, uint8_t *marks);
    const struct ep_link *(*links)(const struct ep_group *, double *wait_s);
    void (*set_clocks)(struct ep_group *, const int64_t *ahead_us);
};
extern const struct ep_backend ep_backend_host;

struct ep_group {
    struct ep_params p;
    struct ep_layout layout;
    struct ep_table *table; /* [layers] */
    int layers;
    ep_choose_fn choose;
    void *choose_arg;
    struct waiter *waiter;
    const struct kernels *kernels;
    struct lane *lane;
    const struct topology *topo;
    struct ep_op op[EP_OPS];
    struct ep_stats stats;
    const struct ep_backend *backend;
    void *impl;
};

static inline int ep_op_index(const struct ep_group *g, const struct ep_op *op)
{
    return (int)(op - g->op);
}

#endif
