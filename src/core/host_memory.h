/* host_memory.h - how much memory programs on this host can still allocate. */
#ifndef CORE_HOST_MEMORY_H
#define CORE_HOST_MEMORY_H

#include <stddef.h>

/* MemAvailable of the kernel, bytes; 0 when it does not say. */
size_t host_memory_available(void);

#endif
