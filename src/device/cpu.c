/* cpu.c - the CPU device: heap memory, inline lanes, polling instead of streams. */
#include "core/clock.h"
#include "device/device.h"

#include <stdlib.h>
#include <string.h>

/* calloc leaves large blocks to the kernel's zero pages: a KV pool costs memory only as it fills.
 * The block's own address is kept in front of the aligned one. */
static void *cpu_alloc(struct device *dev, size_t bytes)
{
    enum { ALIGN = 64 };
    (void)dev;
    if (bytes > SIZE_MAX - 2 * ALIGN) return 0;
    char *block = calloc(1, bytes + 2 * ALIGN);
    if (!block) return 0;
    char *p = block + 2 * ALIGN - (uintptr_t)block % ALIGN;
    memcpy(p - sizeof block, &block, sizeof block);
    return p;
}

static void cpu_free(struct device *dev, void *p)
{
    (void)dev;
    if (!p) return;
    char *block;
    memcpy(&block, (char *)p - sizeof block, sizeof block);
    free(block);
}

static enum status cpu_copy(struct lane *lane, void *dst, const void *src, size_t bytes)
{
    (void)lane;
    memcpy(dst, src, bytes);
    return OK;
}

static void cpu_record(struct lane *lane, struct event *event)
{
    (void)lane;
    event->impl = 0;
}

static void cpu_wait(struct lane *lane, const struct event *event)
{
    (void)lane;
    (void)event;
}

static enum status cpu_sync(struct lane *lane)
{
    (void)lane;
    return OK;
}

struct device *device_cpu(void)
{
    static struct device cpu = {
        .name = "cpu",
        .alloc = cpu_alloc,
        .free = cpu_free,
        .copy_in = cpu_copy,
        .copy_out = cpu_copy,
        .record = cpu_record,
        .wait = cpu_wait,
        .sync = cpu_sync,
    };
    return &cpu;
}
