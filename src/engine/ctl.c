/* ctl.c - one MPI tag, a header in front of every message. */
#include "engine/ctl.h"

#include <stdlib.h>
#include <string.h>

enum { CTL_TAG = 7, CTL_BURST = 64 };

struct ctl_message {
    struct ctl_message *next;
    MPI_Request request;
    int peer;
    size_t bytes; /* with the header */
    /* 16-byte header: kind, unused; then the payload */
    _Alignas(16) unsigned char data[];
};

struct ctl {
    MPI_Comm comm;
    int rank;
    ctl_handler handler;
    void *arg;
    struct ctl_message *sends;                /* not yet complete */
    struct ctl_message *receives, **recv_end; /* being received, in order of arrival */
    struct ctl_message *self, **self_end;     /* to myself, next poll */
    int outstanding;
};

enum { HEADER_BYTES = 16 };

enum status ctl_create(MPI_Comm comm, ctl_handler handler, void *arg, struct ctl **out)
{
    struct ctl *c = calloc(1, sizeof *c);
    if (!c) return error_set(ERR_RESOURCE, "no memory for the control plane");
    MPI_Comm_dup(comm, &c->comm);
    MPI_Comm_set_name(c->comm, "control");
    MPI_Comm_rank(c->comm, &c->rank);
    c->handler = handler;
    c->arg = arg;
    c->recv_end = &c->receives;
    c->self_end = &c->self;
    *out = c;
    return OK;
}

static void free_list(struct ctl_message *m)
{
    while (m) {
        struct ctl_message *next = m->next;
        free(m);
        m = next;
    }
}

void ctl_destroy(struct ctl *c)
{
    if (!c) return;
    free_list(c->sends);
    free_list(c->receives);
    free_list(c->self);
    MPI_Comm_free(&c->comm);
    free(c);
}

static struct ctl_message *message_new(size_t bytes)
{
    struct ctl_message *m = malloc(sizeof *m + bytes);
    if (m) {
        m->next = 0;
        m->bytes = bytes;
    }
    return m;
}

enum status ctl_send(struct ctl *c, int to, enum ctl_kind kind, const struct ctl_part *part,
                     int parts)
{
    size_t bytes = HEADER_BYTES;
    for (int i = 0; i < parts; i++) bytes += part[i].bytes;
    struct ctl_message *m = message_new(bytes);
    if (!m) return error_set(ERR_RESOURCE, "no memory for a message of %zu bytes", bytes);
    int32_t head[4] = {(int32_t)kind, 0, 0, 0};
    memcpy(m->data, head, sizeof head);
    unsigned char *p = m->data + HEADER_BYTES;
    for (int i = 0; i < parts; i++) {
        if (part[i].bytes) memcpy(p, part[i].data, part[i].bytes);
        p += part[i].bytes;
    }
    m->peer = to;
    if (to == c->rank) {
        *c->self_end = m;
        c->self_end = &m->next;
        return OK;
    }
    MPI_Isend(m->data, (int)bytes, MPI_BYTE, to, CTL_TAG, c->comm, &m->request);
    m->next = c->sends;
    c->sends = m;
    c->outstanding++;
    return OK;
}

static void deliver(struct ctl *c, struct ctl_message *m)
{
    int32_t head[4];
    memcpy(head, m->data, sizeof head);
    c->handler(c->arg, m->peer, (enum ctl_kind)head[0], m->data + HEADER_BYTES,
               m->bytes - HEADER_BYTES);
    free(m);
}

static void poll_sends(struct ctl *c)
{
    for (struct ctl_message **at = &c->sends; *at;) {
        struct ctl_message *m = *at;
        int done = 0;
        MPI_Test(&m->request, &done, MPI_STATUS_IGNORE);
        if (!done) {
            at = &m->next;
            continue;
        }
        *at = m->next;
        c->outstanding--;
        free(m);
    }
}

static enum status start_receives(struct ctl *c)
{
    for (int i = 0; i < CTL_BURST; i++) {
        int flag = 0, count = 0;
        MPI_Message handle;
        MPI_Status info;
        MPI_Improbe(MPI_ANY_SOURCE, CTL_TAG, c->comm, &flag, &handle, &info);
        if (!flag) return OK;
        MPI_Get_count(&info, MPI_BYTE, &count);
        struct ctl_message *m = message_new((size_t)count);
        if (!m) return error_set(ERR_RESOURCE, "no memory for a message of %d bytes", count);
        m->peer = info.MPI_SOURCE;
        MPI_Imrecv(m->data, count, MPI_BYTE, &handle, &m->request);
        *c->recv_end = m;
        c->recv_end = &m->next;
    }
    return OK;
}

/* Delivered in order of arrival: a large message holds up the ones behind it for a moment, which
 * keeps the order between two ranks. */
static void finish_receives(struct ctl *c)
{
    while (c->receives) {
        struct ctl_message *m = c->receives;
        int done = 0;
        MPI_Test(&m->request, &done, MPI_STATUS_IGNORE);
        if (!done) return;
        c->receives = m->next;
        if (!c->receives) c->recv_end = &c->receives;
        deliver(c, m);
    }
}

enum status ctl_poll(struct ctl *c)
{
    poll_sends(c);
    TRY(start_receives(c));
    finish_receives(c);
    struct ctl_message *m = c->self;
    c->self = 0;
    c->self_end = &c->self;
    while (m) {
        struct ctl_message *next = m->next;
        deliver(c, m);
        m = next;
    }
    return OK;
}

int ctl_outstanding(const struct ctl *c)
{
    return c->outstanding;
}
