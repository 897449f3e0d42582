/* hash.h - a 64-bit and a 128-bit non-cryptographic hash for page chains, fingerprints and
 * duplicate detection, and CRC-32C for checksums of records on disk.
 */
#ifndef CORE_HASH_H
#define CORE_HASH_H

#include <stddef.h>
#include <stdint.h>

struct hash128 {
    uint64_t lo, hi;
};

uint64_t hash64(const void *data, size_t bytes, uint64_t seed);

/* For checksums of large blocks: the same kind of hash in eight lanes, as fast as memory. */
uint64_t hash64_bulk(const void *data, size_t bytes, uint64_t seed);

/* Chainable: the hash of a prefix page is hash128(tokens of the page, hash of the page before). */
struct hash128 hash128(const void *data, size_t bytes, struct hash128 seed);

/* CRC-32C (Castagnoli), start with crc = 0. */
uint32_t crc32c(uint32_t crc, const void *data, size_t bytes);

#endif
