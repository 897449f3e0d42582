/* host_memory.h - memory of this host and of this process, as the kernel counts it. */
#ifndef CORE_HOST_MEMORY_H
#define CORE_HOST_MEMORY_H

#include <stddef.h>

/* Bytes that programs on this host can still allocate (MemAvailable); 0 when it does not say. */
size_t host_memory_available(void);

/* Bytes that this process has touched and shares with nobody (RssAnon); 0 likewise. */
size_t process_memory_private(void);

#endif
