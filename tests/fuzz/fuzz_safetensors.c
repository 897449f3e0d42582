/* links: core checkpoint */
/* fuzz_safetensors.c - a weight file of any bytes is refused with a message or yields views that
 * lie inside it and apart from each other.
 *
 * make fuzz  * clang, libFuzzer: make fuzz-safetensors; seeds: tests/fuzz/seeds_checkpoint.py * clang, libFuzzer: make fuzz-safetensors; seeds: tests/fuzz/seeds_checkpoint.py build/fuzz/safetensors CORPUS SEEDS; seeds: tests/fuzz/seeds_checkpoint.py
 */
#include "checkpoint/safetensors.h"

#include "checkpoint/checkpoint.h"

#include <stdlib.h>
#include <string.h>

static void require(int ok)
{
    if (!ok) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors st;
    error_clear();
    /* A copy of its own size, so that a read past the end is seen. */
    uint8_t *image = malloc(size ? size : 1);
    memcpy(image, data, size);
    enum status s = safetensors_parse("fuzz", image, size, &st);
    if (s != OK) {
        require(s == ERR_INPUT && *error_text());
        free(image);
        return 0;
    }
    const uint8_t *end = st.map + st.header_bytes;
    for (int i = 0; i < st.count; i++) {
        const struct tensor_view *t = &st.tensor[i];
        size_t bytes = tensor_dtype_bytes(t->dtype);
        for (int d = 0; d < TENSOR_MAX_RANK; d++) bytes *= (size_t)t->shape[d];
        require(bytes == t->bytes && t->rank <= TENSOR_MAX_RANK);
        require(t->bytes == 0 || (const uint8_t *)t->data >= end);
        require((const uint8_t *)t->data + t->bytes <= st.map + st.map_bytes);
        if (t->bytes) end = (const uint8_t *)t->data + t->bytes;
        volatile uint8_t sum = 0;
        for (size_t b = 0; b < t->bytes; b++) sum = (uint8_t)(sum + ((const uint8_t *)t->data)[b]);
    }
    safetensors_close(&st);
    free(image);
    return 0;
}
