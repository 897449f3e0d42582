/* links: core checkpoint */
/* fuzz_safetensors.c - a weight file of any bytes is refused with a message or yields views that
 * lie inside it and apart from each other; the quick scan and the JSON parser agree.
 *
 * clang, libFuzzer: make fuzz; build/fuzz/safetensors CORPUS SEEDS
 * Seeds: tests/fuzz/seeds_checkpoint.py
 */
#include "checkpoint/safetensors.h"

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors_internal.h"

#include <stdlib.h>
#include <string.h>

static void require(int ok)
{
    if (!ok) abort();
}

/* The quick scan and the JSON parser must give the same tensors, or the same message. */
static void require_same(const uint8_t *image, size_t size, enum status s,
                         const struct safetensors *a)
{
    struct safetensors b;
    char *text = strdup(error_text());
    error_clear();
    require(safetensors_parse_json("fuzz", image, size, &b) == s);
    require(strcmp(text, error_text()) == 0);
    free(text);
    if (s != OK) return;
    require(a->count == b.count);
    for (int i = 0; i < b.count; i++) {
        const struct tensor_view *x = &a->tensor[i], *y = &b.tensor[i];
        require(strcmp(x->name, y->name) == 0 && x->dtype == y->dtype && x->rank == y->rank);
        require(memcmp(x->shape, y->shape, sizeof x->shape) == 0);
        require(x->data == y->data && x->bytes == y->bytes);
    }
    safetensors_close(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors st;
    error_clear();
    /* A copy of its own size, so that a read past the end is seen. */
    uint8_t *image = malloc(size ? size : 1);
    memcpy(image, data, size);
    enum status s = safetensors_parse("fuzz", image, size, &st);
    require(s == OK || (s == ERR_INPUT && *error_text()));
    require_same(image, size, s, &st);
    if (s != OK) {
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
