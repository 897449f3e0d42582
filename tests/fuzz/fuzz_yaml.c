/* links: core config */
/* fuzz_yaml.c - any bytes as a job file: either an error with a message, or a job whose dump reads
 * back to the same job. clang -fsanitize=fuzzer,address. */
#include "config/job.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static enum status read_bytes(const void *data, size_t size, struct job *job)
{
    char path[64];
    int fd = memfd_create("job", 0);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    enum status st = job_read(path, 0, NULL, job);
    close(fd);
    return st;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct job a, b;
    error_clear();
    if (read_bytes(data, size, &a) != OK) {
        if (!*error_text()) abort();
        return 0;
    }
    char *text = job_yaml(&a);
    if (!text || read_bytes(text, strlen(text), &b) != OK || memcmp(&a, &b, sizeof a)) abort();
    free(text);
    struct job_facts facts = {.ranks = 8, .ranks_on_node = 8, .cores_per_node = 2, .experts = 256};
    if (job_resolve(&a, &facts) == OK && job_ranks(&a) != 8) abort();
    return 0;
}
