/* disk_dir.c - names, leases and the lock. */
#include "kvcache/disk_dir.h"

#include "core/clock.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static double seconds(const struct timespec *t)
{
    return (double)t->tv_sec + 1e-9 * (double)t->tv_nsec;
}

static double host_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return seconds(&t);
}

double disk_dir_now(const struct disk_dir *dir)
{
    double offset; /* either thread of a store may be setting it */
    __atomic_load(&dir->clock_offset, &offset, __ATOMIC_RELAXED);
    return host_now() + offset;
}

/* ---- names ---------------------------------------------------------------------------------- */

/* host.pid.rank.start: only letters, digits, dots and underscores, so that '-' separates. */
static void make_writer(int rank, char out[DISK_WRITER_MAX])
{
    char host[32] = "";
    struct timespec t;
    gethostname(host, sizeof host - 1);
    for (char *c = host; *c; c++)
        if (!isalnum((unsigned char)*c)) *c = '_';
    clock_gettime(CLOCK_REALTIME, &t);
    snprintf(out, DISK_WRITER_MAX, "%s.%ld.%d.%llx", host, (long)getpid(), rank,
             (unsigned long long)t.tv_sec * 1000000000u + (unsigned long long)t.tv_nsec);
}

void disk_name_make(const struct disk_dir *dir, uint64_t model, uint32_t number,
                    char out[DISK_NAME_MAX])
{
    snprintf(out, DISK_NAME_MAX, "kv-%016llx-%s-%06u.open", (unsigned long long)model, dir->writer,
             number);
}

void disk_name_suffix(const char *name, const char *suffix, char out[DISK_NAME_MAX])
{
    const char *dot = strrchr(name, '.');
    int stem = dot ? (int)(dot - name) : (int)strlen(name);
    snprintf(out, DISK_NAME_MAX, "%.*s%s", stem, name, suffix);
}

static bool copy_part(const char *from, const char *end, char out[DISK_WRITER_MAX])
{
    size_t n = (size_t)(end - from);
    if (n == 0 || n >= DISK_WRITER_MAX) return false;
    if (out) {
        memcpy(out, from, n);
        out[n] = '\0';
    }
    return true;
}

enum disk_file disk_name_parse(const char *name, uint64_t *model, char writer[DISK_WRITER_MAX])
{
    const char *dot = strrchr(name, '.');
    if (!dot || strlen(name) >= DISK_NAME_MAX) return DISK_FILE_OTHER;
    if (strcmp(dot, ".lease") == 0)
        return copy_part(name, dot, writer) ? DISK_FILE_LEASE : DISK_FILE_OTHER;
    const char *start = name + strlen("kv-0123456789abcdef-"), *dash = strrchr(name, '-');
    if (strncmp(name, "kv-", 3) != 0 || !dash || dash <= start || start[-1] != '-')
        return DISK_FILE_OTHER;
    char *end;
    uint64_t id = strtoull(name + 3, &end, 16);
    if (end != start - 1 || !copy_part(start, dash, writer)) return DISK_FILE_OTHER;
    if (model) *model = id;
    if (strcmp(dot, ".open") == 0) return DISK_FILE_OPEN;
    if (strcmp(dot, ".seg") == 0) return DISK_FILE_SEALED;
    return strcmp(dot, ".dying") == 0 ? DISK_FILE_DYING : DISK_FILE_OTHER;
}

/* ---- leases --------------------------------------------------------------------------------- */

static void lease_name(const char *writer, char out[DISK_NAME_MAX])
{
    snprintf(out, DISK_NAME_MAX, "%s.lease", writer);
}

/* The file system's time of a file just touched. */
static void set_clock(struct disk_dir *dir, int fd)
{
    struct stat st;
    if (fstat(fd, &st) != 0) return;
    double offset = seconds(&st.st_mtim) - host_now();
    __atomic_store(&dir->clock_offset, &offset, __ATOMIC_RELAXED);
}

bool disk_lease_write(struct disk_dir *dir, const char (*names)[DISK_NAME_MAX], size_t n)
{
    char name[DISK_NAME_MAX], fresh[DISK_NAME_MAX + 8];
    lease_name(dir->writer, name);
    snprintf(fresh, sizeof fresh, "%s.new", name);
    int fd = openat(dir->fd, fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) return false;
    bool ok = true;
    for (size_t i = 0; ok && i < n; i++) {
        char line[DISK_NAME_MAX + 2];
        int len = snprintf(line, sizeof line, "%s\n", names[i]);
        ok = write(fd, line, (size_t)len) == len;
    }
    set_clock(dir, fd);
    if (close(fd) != 0) ok = false;
    return ok && renameat(dir->fd, fresh, dir->fd, name) == 0;
}

bool disk_lease_renew(struct disk_dir *dir)
{
    char name[DISK_NAME_MAX];
    lease_name(dir->writer, name);
    int fd = openat(dir->fd, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    bool ok = futimens(fd, NULL) == 0;
    set_clock(dir, fd);
    close(fd);
    return ok;
}

/* The writer's process is on this host and gone. */
static bool process_gone(const struct disk_dir *dir, const char *writer)
{
    const char *own = strchr(dir->writer, '.'), *other = strchr(writer, '.');
    if (!own || !other || own - dir->writer != other - writer ||
        strncmp(dir->writer, writer, (size_t)(own - dir->writer)) != 0)
        return false;
    long pid = atol(other + 1);
    return pid > 0 && kill((pid_t)pid, 0) != 0 && errno == ESRCH;
}

bool disk_writer_alive(const struct disk_dir *dir, const char *writer)
{
    char name[DISK_NAME_MAX];
    struct stat st;
    if (strcmp(writer, dir->writer) == 0) return true;
    lease_name(writer, name);
    if (fstatat(dir->fd, name, &st, 0) != 0) return errno != ENOENT;
    return disk_dir_now(dir) - seconds(&st.st_mtim) < dir->lease_s && !process_gone(dir, writer);
}

static bool lease_lists(const struct disk_dir *dir, const char *lease, const char *name)
{
    const char *dot = strrchr(name, '.');
    size_t stem = dot ? (size_t)(dot - name) : strlen(name);
    char line[DISK_NAME_MAX + 2];
    int fd = openat(dir->fd, lease, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno != ENOENT;
    FILE *f = fdopen(fd, "r");
    if (!f) {
        close(fd);
        return true;
    }
    bool found = false;
    while (!found && fgets(line, sizeof line, f))
        found = strncmp(line, name, stem) == 0 && line[stem] == '.';
    if (ferror(f)) found = true;
    fclose(f);
    return found;
}

bool disk_segment_leased(const struct disk_dir *dir, const char *name)
{
    int fd = openat(dir->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d) {
        if (fd >= 0) close(fd);
        return true;
    }
    bool leased = false;
    char writer[DISK_WRITER_MAX];
    for (struct dirent *e = readdir(d); e && !leased; e = readdir(d))
        leased = disk_name_parse(e->d_name, NULL, writer) == DISK_FILE_LEASE &&
                 strcmp(writer, dir->writer) != 0 && lease_lists(dir, e->d_name, name) &&
                 disk_writer_alive(dir, writer);
    closedir(d);
    return leased;
}

/* ---- lock ----------------------------------------------------------------------------------- */

static const char lock_name[] = "evict.lock";

bool disk_lock_take(const struct disk_dir *dir)
{
    char stale[DISK_NAME_MAX];
    struct stat st;
    for (int attempt = 0; attempt < 2; attempt++) {
        int fd = openat(dir->fd, lock_name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0) {
            ssize_t n = write(fd, dir->writer, strlen(dir->writer));
            (void)n; /* who holds it is for the reader of the folder alone */
            close(fd);
            return true;
        }
        if (errno != EEXIST || fstatat(dir->fd, lock_name, &st, 0) != 0) return false;
        if (disk_dir_now(dir) - seconds(&st.st_mtim) < dir->lease_s) return false;
        /* Only one of those who find it stale moves it away. */
        snprintf(stale, sizeof stale, "%s.stale", dir->writer);
        if (renameat(dir->fd, lock_name, dir->fd, stale) == 0) unlinkat(dir->fd, stale, 0);
    }
    return false;
}

void disk_lock_drop(const struct disk_dir *dir)
{
    unlinkat(dir->fd, lock_name, 0);
}

/* ---- open, close ---------------------------------------------------------------------------- */

enum status disk_dir_open(const char *path, int rank, double lease_s, struct disk_dir *dir)
{
    memset(dir, 0, sizeof *dir);
    dir->lease_s = lease_s;
    if (mkdir(path, 0777) != 0 && errno != EEXIST)
        return error_set(ERR_INPUT, "kv.disk.dir: cannot make folder %s: %s", path,
                         strerror(errno));
    dir->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir->fd < 0)
        return error_set(ERR_INPUT, "kv.disk.dir: cannot open folder %s: %s", path,
                         strerror(errno));
    make_writer(rank, dir->writer);
    if (disk_lease_write(dir, NULL, 0)) return OK;
    enum status st =
        error_set(ERR_INPUT, "kv.disk.dir: cannot write to folder %s: %s", path, strerror(errno));
    close(dir->fd);
    return st;
}

void disk_dir_close(struct disk_dir *dir)
{
    char name[DISK_NAME_MAX];
    lease_name(dir->writer, name);
    unlinkat(dir->fd, name, 0);
    close(dir->fd);
}
