/* host_memory.c */
#include "core/host_memory.h"

#include <stdio.h>
#include <string.h>

/* The number in kB after `key`; 0 when the system does not say. */
static size_t read_kib(const char *path, const char *key)
{
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    char line[128];
    unsigned long kib = 0;
    size_t n = strlen(key);
    while (fgets(line, sizeof line, f))
        if (strncmp(line, key, n) == 0 && sscanf(line + n, " %lu kB", &kib) == 1) break;
    fclose(f);
    return (size_t)kib;
}

size_t host_memory_available(void)
{
    return read_kib("/proc/meminfo", "MemAvailable:") * 1024;
}

size_t process_memory_private(void)
{
    return read_kib("/proc/self/status", "RssAnon:") * 1024;
}
