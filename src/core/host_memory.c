/* host_memory.c */
#include "core/host_memory.h"

#include <stdio.h>

size_t host_memory_available(void)
{
    FILE *f = fopen("/proc/meminfo", "r");
    if (!f) return 0;
    char line[128];
    unsigned long kib = 0;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %lu kB", &kib) == 1) break;
    fclose(f);
    return (size_t)kib * 1024;
}
