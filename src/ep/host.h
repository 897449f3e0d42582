/* host.h - the host backend's state; shared by the host*.c files. */
#ifndef EP_HOST_H
#define EP_HOST_H

#include "ep/backend.h"
#include "ep/probe.h"

/* Rows copied in one visit of the progress hook: about 1 ms at 7 KiB a row. */
enum { HOST_HOOK_ROWS = 512, HOST_ALL_ROWS = 1 << 30 };

/* How far my tokens have gone to one node. */
struct host_sender {
    int rounds;       /* that carry rows of mine to this node */
    int round, token; /* next to look at */
    bool open;        /* the round's rows are being sent */
    uint64_t posted;  /* ring entries put so far, for ever counting up */
};

/* A source of another node whose gateway I am. A record is a struct ep_entry with those of its
 * struct ep_forward that ask for reduction: what the gateway sums once the rows are staged. */
struct host_client {
    uint64_t forwarded;    /* ring entries that I passed on */
    uint64_t staged_need;  /* ranks done staging rows of it */
    int records, returned; /* kept, of them sent back */
    char *record;          /* [chunk_tokens][layout.record_bytes], or NULL */
};

/* Signals count up for ever, so what an op needs is counted up for ever too. */
struct host_op {
    struct host_sender *send;      /* [nodes] */
    int32_t *need;                 /* [ranks] rows of mine still to go to it in its open round */
    uint64_t *credit_used;         /* [ranks] */
    struct host_client *client;    /* [clients] */
    int32_t *staged;               /* [ranks] rows of mine that it stages for its gateway */
    int32_t *reducers;             /* [nodes] ranks that do */
    int32_t *begin, *total, *mine; /* [slots] of struct ep_counted */
    struct ep_counted counted;
    int32_t *count_row; /* [1 + slots] what I tell the others */
    bool counting;      /* normal mode: the others' counts are still coming */
    bool sending;       /* rows of mine have still to go */
    uint64_t counts_uses[EP_PARITY], fixed_uses[EP_PARITY];
    uint64_t arrived_need;  /* sources done, over all rounds so far */
    uint64_t returned_need; /* COMBINE messages */
    char *packed;           /* low latency: [layout.packed][row_bytes] */
};

struct host {
    struct window *window;
    struct transport *transport;
    struct host_op op[EP_OPS];
    char *scratch;    /* a put too large for transport_reserve */
    int *client_rank; /* [clients] sources whose gateway I am */
    int clients;
    int *my_client;    /* [nodes] my index at my gateway there */
    int *gateway;      /* [nodes] */
    int *gateway_here; /* [ranks] the source's gateway into my node */
    int *client_there; /* [ranks] the source's client index at that gateway */
    char *gathered;    /* [topk] rows of combine_type, then their sum in FP32 */
    struct lane quiet; /* one thread, no polling: a kernel call inside progress or a thread */
    int32_t *source_rows, *staged_rows; /* [ranks] scratch of COMBINE */
    struct probe probe;
    bool working;       /* progress is running; a hook must not enter it again */
    enum status failed; /* what progress met inside a hook */
};

/* Signal numbers of a window. */
enum host_signal {
    SIG_COUNTS,
    SIG_FIXED = SIG_COUNTS + EP_PARITY,
    SIG_ARRIVED = SIG_FIXED + EP_PARITY,
    SIG_RETURNED,
    SIG_FIRST_ARRAY
};
int host_signal(const struct ep_group *g, int op, enum host_signal which);
int host_signal_credit(const struct ep_group *g, int op, int dest);
int host_signal_ring(const struct ep_group *g, int op, int client);   /* entries, at the gateway */
int host_signal_taken(const struct ep_group *g, int op, int node);    /* entries, at the source */
int host_signal_staged(const struct ep_group *g, int op, int client); /* at the gateway */
int host_signals(const struct ep_group *g);
uint64_t host_value(const struct ep_group *g, int signal);

/* Rows that are worth waking a thread to copy them. */
int host_grain(const struct ep_group *g);
/* Where `bytes` for a peer's window are to be written; host_put sends them. */
void *host_stage(struct ep_group *g, int peer, size_t offset, size_t bytes);
enum status host_put(struct ep_group *g, int peer, size_t offset, void *staged, size_t bytes);

/* Writes token t's row (data, scales) and its tag. */
void host_write_row(const struct ep_group *g, const struct ep_op *op, int index, char *row);
/* Rows at `base`, `pitch` bytes apart, as a matrix. */
struct amat host_rows(const struct ep_group *g, const char *base, size_t pitch);
/* Where the receive buffer of a rank of my node holds a row. */
char *host_receive_row(const struct ep_group *g, int i, int rank, int row);
/* Notes at `offset` of the peer's window what its next signal is about, then signals. */
enum status host_signal_end(struct ep_group *g, int peer, size_t offset, uint32_t stamp,
                            int signal);

/* Everything that can move now, up to `budget` rows an op (host_normal.c). */
enum status host_progress(struct ep_group *g, int budget);

/* A signal of this rank and the value that it has to reach. */
struct host_need {
    int signal;
    uint64_t value;
};
/* Waits until need(op) is there, making progress for both ops meanwhile. */
enum status host_wait(struct ep_group *g, struct ep_op *op,
                      struct host_need (*need)(struct ep_group *, struct ep_op *));
/* Normal mode: all counts of the operation. */
struct host_need host_counts_need(const struct ep_group *g, int i);

enum status host_normal_begin(struct ep_group *g, struct ep_op *op);
enum status host_normal_receive(struct ep_group *g, struct ep_op *op, struct amat *rows);
enum status host_normal_next(struct ep_group *g, struct ep_op *op, struct amat *rows);
enum status host_lowlatency_begin(struct ep_group *g, struct ep_op *op);
enum status host_lowlatency_receive(struct ep_group *g, struct ep_op *op, struct amat *rows);
/* Decides which of my rows come back summed; returns how many COMBINE messages I shall get. */
uint64_t host_combine_plan(struct ep_group *g, struct ep_op *op);
/* As a gateway: signals missing before a client's sums can be made; 0 also if there are none. */
uint64_t host_staged_missing(const struct ep_group *g, int i, int client);
/* As a gateway: sums what the node's ranks staged for a client, up to `budget` rows. */
enum status host_combine_reduce(struct ep_group *g, int i, int client, int budget);
enum status host_combine_begin(struct ep_group *g, struct ep_op *op, enum dtype y_type,
                               const void *y, int ldy);
enum status host_combine_finish(struct ep_group *g, struct ep_op *op, float *out, int ldo);

#endif
