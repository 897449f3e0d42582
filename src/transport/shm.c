/* shm.c - unnamed shared memory (a memfd of the first process) and doorbells for the processes of
 * one host.
 */
#include "transport/shm.h"

#include "core/host_memory.h"
#include "transport/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* What the first process tells the others. */
struct offer {
    int pid, fd, error; /* fd < 0: there is none, for this errno */
    unsigned long long bytes;
};

static void make_offer(bool reserve, struct offer *o)
{
    o->pid = (int)getpid();
    o->fd = memfd_create("moebatch", MFD_CLOEXEC);
    o->error = o->fd < 0 || ftruncate(o->fd, (off_t)o->bytes) ? errno
               : reserve ? posix_fallocate(o->fd, 0, (off_t)o->bytes)
                         : 0;
    if (o->error == 0) return;
    if (o->fd >= 0) close(o->fd);
    o->fd = -1;
}

/* Others open the first one's descriptor through /proc/PID/fd. */
static enum status map_offered(const struct offer *o, const char *what, bool own, void **base)
{
    char path[64];
    int fd = o->fd;
    double gib = (double)o->bytes / (1 << 30);
    if (fd < 0)
        return error_set(
            ERR_RESOURCE,
            "%s, shared by the ranks of a host, needs %.2f GiB; %.2f GiB are free (%s)", what, gib,
            (double)host_memory_available() / (1 << 30), strerror(o->error));
    snprintf(path, sizeof path, "/proc/%d/fd/%d", o->pid, o->fd);
    if (!own && (fd = open(path, O_RDWR | O_CLOEXEC)) < 0)
        return error_set(
            ERR_RESOURCE,
            "cannot open %s, %s (%.2f GiB) that process %d shares: %s; the processes of "
            "a host must run as one user and see each other in /proc",
            path, what, gib, o->pid, strerror(errno));
    void *p = mmap(NULL, o->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    int error = errno;
    if (!own) close(fd);
    if (p == MAP_FAILED)
        return error_set(ERR_RESOURCE, "cannot map %s (%.2f GiB): %s", what, gib, strerror(error));
    *base = p;
    return OK;
}

enum status shm_map(MPI_Comm comm, const char *what, bool reserve, size_t *bytes, void **base)
{
    int rank = 0;
    struct offer o = {.bytes = *bytes ? *bytes : 1};
    MPI_Comm_rank(comm, &rank);
    if (rank == 0) make_offer(reserve, &o);
    MPI_Bcast(&o, (int)sizeof o, MPI_BYTE, 0, comm);
    *base = NULL;
    *bytes = (size_t)o.bytes;
    enum status st = map_offered(&o, what, rank == 0, base);
    /* The offered descriptor must stay open until everybody has opened it. */
    int ok = st == OK, all = 0;
    MPI_Allreduce(&ok, &all, 1, MPI_INT, MPI_MIN, comm);
    if (rank == 0 && o.fd >= 0) close(o.fd);
    if (all) return OK;
    shm_unmap(*base, *bytes);
    *base = NULL;
    return st != OK ? st : error_set(ERR_RESOURCE, "another rank of this host cannot map %s", what);
}

void shm_unmap(void *base, size_t bytes)
{
    if (base) munmap(base, bytes);
}

static long futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *timeout)
{
    return syscall(SYS_futex, (void *)word, op, value, timeout, NULL, 0);
}

void doorbell_ring(struct doorbell *d, uint32_t rings, uint32_t key, uint64_t value)
{
    uint32_t now = atomic_fetch_add(&d->count, rings) + rings;
    if (!atomic_load(&d->sleeping)) return;
    uint32_t watched = atomic_load(&d->key), target = atomic_load(&d->value);
    if (watched != 0 && key != 0) {
        if (key != watched) return;
        now = (uint32_t)value;
    }
    if ((watched == 0 || key != 0) && (int32_t)(now - target) < 0) return;
    /* Of several ranks past the target one makes the system call. */
    if (atomic_exchange(&d->sleeping, 0)) futex(&d->count, FUTEX_WAKE, INT_MAX, NULL);
}

/* No wake-up is lost: a writer raises its signal, adds to count, then reads sleeping; the sleeper
 * sets sleeping, then the kernel compares count with `seen` (all sequentially consistent). Either
 * the writer sees a sleeper and what it watches, or the kernel sees the new count and does not
 * sleep. Rings that are not enough wake nobody, which is the point. */
void doorbell_sleep(struct doorbell *d, uint32_t seen, struct watch watch, long timeout_us)
{
    struct timespec ts = {timeout_us / 1000000, timeout_us % 1000000 * 1000};
    atomic_store(&d->key, watch.key);
    atomic_store(&d->value, watch.value);
    atomic_store(&d->sleeping, 1);
    futex(&d->count, FUTEX_WAIT, seen, &ts);
    atomic_store(&d->sleeping, 0);
}
