/* links: core checkpoint */
/* fuzz_config.c - any config.json and generation_config.json (separated by a NUL byte) are refused
 * with a message or give a configuration whose numbers fit together: every shape positive, and
 * written and read again the same rules still hold.
 */
#include "checkpoint/model_config.h"
#include "checkpoint/names.h"
#include "checkpoint/sizes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void require(int ok)
{
    if (!ok) abort();
}

static enum status check_spec(void *ctx, const struct tensor_spec *s)
{
    (void)ctx;
    int64_t elements;
    require(s->shape[0] > 0 && s->shape[1] > 0 && s->shape[0] < INT32_MAX);
    require(!__builtin_mul_overflow(s->shape[0], s->shape[1], &elements));
    require(strlen(s->name) < TENSOR_NAME_MAX - 16);
    return OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config c;
    const char *text = (const char *)data;
    const char *cut = size ? memchr(text, 0, size) : NULL;
    size_t bytes = cut ? (size_t)(cut - text) : size;
    error_clear();
    enum status s = model_config_parse("dir/config.json", text, bytes, cut ? cut + 1 : NULL,
                                       cut ? size - bytes - 1 : 0, &c);
    if (s != OK) {
        require(s == ERR_INPUT && *error_text());
        return 0;
    }
    require(c.experts % c.n_group == 0 && c.topk_group <= c.n_group);
    require(c.topk <= c.topk_group * (c.experts / c.n_group));
    require(c.dim_rope % 2 == 0 && c.eos_count <= MODEL_EOS_MAX);
    require(isfinite(model_config_softmax_scale(&c)) && model_config_softmax_scale(&c) > 0);
    require(isfinite(model_config_rope_scale(&c)));
    if ((int64_t)c.layers * c.experts > 2000) return 0; /* only for the fuzzer's speed */
    require(tensor_specs_visit(&c, check_spec, NULL) == OK);
    struct model_sizes z;
    model_sizes_compute(&c, NULL, &z);
    require(z.params_total > 0 && z.params_active > 0 && z.params_active <= z.params_total);
    return 0;
}
