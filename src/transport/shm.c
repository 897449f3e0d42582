/* shm.c - unnamed shared memory and doorbells for the processes of one host.
 *
 * The first process makes a memfd and the others open it through /proc/PID/fd. Unlike a file in
 * /dev/shm it needs no name, no clean-up after a crash, and is not bound by the 64 MB that
 * containers give /dev/shm.
 */
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

/* The first process offers (pid, fd); all map; true if this process could. */
static int map_offered(int rank, const int offer[2], int own_fd, size_t bytes, void **base)
{
    int fd = own_fd;
    if (offer[1] < 0) return 0;
    if (rank != 0) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/fd/%d", offer[0], offer[1]);
        fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0) return 0;
    }
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    int err = errno;
    if (rank != 0) close(fd);
    errno = err;
    if (p == MAP_FAILED) return 0;
    *base = p;
    return 1;
}

enum status shm_map(MPI_Comm comm, size_t bytes, void **base)
{
    int rank, ok = 0, all = 0, fd = -1, err = 0;
    MPI_Comm_rank(comm, &rank);
    if (rank == 0) {
        fd = memfd_create("moebatch", MFD_CLOEXEC);
        if (fd >= 0 && ftruncate(fd, (off_t)bytes) != 0) {
            err = errno;
            close(fd);
            fd = -1;
        }
    }
    int offer[2] = {(int)getpid(), fd};
    MPI_Bcast(offer, 2, MPI_INT, 0, comm);
    ok = map_offered(rank, offer, fd, bytes, base);
    if (!ok && !err) err = errno;
    /* The offered descriptor must stay open until everybody has opened it. */
    MPI_Allreduce(&ok, &all, 1, MPI_INT, MPI_MIN, comm);
    if (fd >= 0) close(fd);
    if (all) return OK;
    if (ok) munmap(*base, bytes);
    *base = NULL;
    return error_set(ERR_RESOURCE,
                     "cannot share %.1f MiB between the processes of this host (%s): they must "
                     "run as one user and see each other in /proc",
                     (double)bytes / 1048576.0, err ? strerror(err) : "another rank failed");
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
