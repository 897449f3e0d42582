/* hash.c - multiply-fold hashing over 8-byte words; CRC-32C by the processor's instruction where
 * there is one.
 */
#include "core/hash.h"

#include <string.h>

static uint64_t hash_fold(uint64_t a, uint64_t b)
{
    __extension__ typedef unsigned __int128 u128;
    u128 p = (u128)a * b;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

uint64_t hash64(const void *data, size_t bytes, uint64_t seed)
{
    const uint8_t *p = data;
    uint64_t h = seed ^ 0x243f6a8885a308d3u ^ bytes;
    size_t left = bytes;
    for (; left >= 8; left -= 8, p += 8) {
        uint64_t w;
        memcpy(&w, p, 8);
        h = hash_fold(h ^ w, 0x9e3779b97f4a7c15u) + 0x13198a2e03707344u;
    }
    if (left) {
        uint64_t w = 0;
        memcpy(&w, p, left);
        h = hash_fold(h ^ w, 0x9e3779b97f4a7c15u) + 0x13198a2e03707344u;
    }
    h ^= h >> 29;
    return hash_fold(h ^ 0xa4093822299f31d0u, 0xbf58476d1ce4e5b9u ^ seed);
}

uint64_t hash64_bulk(const void *data, size_t bytes, uint64_t seed)
{
    enum { LANES = 8 };
    const uint8_t *p = data;
    uint64_t lane[LANES];
    size_t left = bytes;
    for (int i = 0; i < LANES; i++)
        lane[i] = seed ^ (0x243f6a8885a308d3u + (uint64_t)i * 0x9e3779b97f4a7c15u);
    for (; left >= 8 * LANES; left -= 8 * LANES, p += 8 * LANES)
        for (int i = 0; i < LANES; i++) {
            uint64_t w;
            memcpy(&w, p + 8 * i, 8);
            lane[i] = hash_fold(lane[i] ^ w, 0x9e3779b97f4a7c15u) + 0x13198a2e03707344u;
        }
    return hash64(p, left, hash64(lane, sizeof lane, bytes));
}

struct hash128 hash128(const void *data, size_t bytes, struct hash128 seed)
{
    struct hash128 h;
    h.lo = hash64(data, bytes, seed.lo ^ 0x082efa98ec4e6c89u);
    h.hi = hash64(data, bytes, seed.hi ^ (h.lo + 0x452821e638d01377u));
    return h;
}

/* A nibble at a time: small table, no start-up work. Both work on the inverted value. */
static uint32_t crc_portable(uint32_t crc, const uint8_t *p, size_t bytes)
{
    static const uint32_t nibble[16] = {0x00000000u, 0x105ec76fu, 0x20bd8edeu, 0x30e349b1u,
                                        0x417b1dbcu, 0x5125dad3u, 0x61c69362u, 0x7198540du,
                                        0x82f63b78u, 0x92a8fc17u, 0xa24bb5a6u, 0xb21572c9u,
                                        0xc38d26c4u, 0xd3d3e1abu, 0xe330a81au, 0xf36e6f75u};
    for (size_t i = 0; i < bytes; i++) {
        crc ^= p[i];
        crc = (crc >> 4) ^ nibble[crc & 15u];
        crc = (crc >> 4) ^ nibble[crc & 15u];
    }
    return crc;
}

#ifdef __x86_64__
/* One instruction for eight bytes, every three cycles: faster than any disk. */
__attribute__((target("sse4.2"))) static uint32_t crc_sse42(uint32_t crc, const uint8_t *p,
                                                            size_t bytes)
{
    uint64_t wide = crc;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        wide = __builtin_ia32_crc32di(wide, word);
    }
    crc = (uint32_t)wide;
    for (; bytes; bytes--, p++) crc = __builtin_ia32_crc32qi(crc, *p);
    return crc;
}
#endif

uint32_t crc32c(uint32_t crc, const void *data, size_t bytes)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("sse4.2")) return ~crc_sse42(~crc, data, bytes);
#endif
    return ~crc_portable(~crc, data, bytes);
}
