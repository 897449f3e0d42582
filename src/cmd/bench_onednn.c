/* bench_onednn.c */
#include "cmd/bench_onednn.h"
#include "cmd/bench.h"

#if defined(__has_include)
#if __has_include(<oneapi/dnnl/dnnl.h>)
#include <oneapi/dnnl/dnnl.h>
#define HAVE_DNNL_HEADER (DNNL_VERSION_MAJOR == 2)
#endif
#endif

#if HAVE_DNNL_HEADER
#include <dlfcn.h>
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The functions used, by their names without dnnl_. */
#define DNNL_FUNCTIONS(X)                                                                    \
    X(version)                                                                               \
    X(engine_create) X(engine_destroy) X(stream_create) X(stream_destroy) X(stream_wait)     \
        X(memory_desc_init_by_tag) X(matmul_desc_init) X(primitive_desc_create)              \
            X(primitive_desc_destroy) X(primitive_desc_query_md) X(primitive_create)         \
                X(primitive_destroy) X(primitive_execute) X(memory_create) X(memory_destroy) \
                    X(memory_desc_get_size)

static struct {
    void *library;
    char version_text[32];
#define X(name) __typeof__(dnnl_##name) *name;
    DNNL_FUNCTIONS(X)
#undef X
} lib;

bool onednn_open(const char **why)
{
    if (lib.library) return true;
    void *h = dlopen("libdnnl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!h) {
        *why = "libdnnl.so.2 is not installed";
        return false;
    }
    bool complete = true;
    void *symbol;
#define X(name)                       \
    symbol = dlsym(h, "dnnl_" #name); \
    complete = complete && symbol;    \
    memcpy(&lib.name, &symbol, sizeof symbol);
    DNNL_FUNCTIONS(X)
#undef X
    if (!complete || lib.version()->major != 2) {
        *why = "libdnnl.so.2 has another interface";
        dlclose(h);
        return false;
    }
    lib.library = h;
    const dnnl_version_t *v = lib.version();
    snprintf(lib.version_text, sizeof lib.version_text, "%d.%d.%d", v->major, v->minor, v->patch);
    return true;
}

const char *onednn_version(void)
{
    return lib.version_text;
}

struct product {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t primitive;
    dnnl_memory_t memory[3];
    void *data[3];
    dnnl_exec_arg_t args[3];
};

static bool product_make(struct product *p, int m, int n, int k)
{
    dnnl_dims_t dims[3] = {{m, k}, {k, n}, {m, n}};
    const dnnl_data_type_t types[3] = {dnnl_bf16, dnnl_bf16, dnnl_f32};
    const dnnl_format_tag_t tags[3] = {dnnl_ab, dnnl_format_tag_any, dnnl_ab};
    const dnnl_query_t what[3] = {dnnl_query_src_md, dnnl_query_weights_md, dnnl_query_dst_md};
    const int arg[3] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
    dnnl_memory_desc_t md[3];
    dnnl_matmul_desc_t op;
    if (lib.engine_create(&p->engine, dnnl_cpu, 0)) return false;
    if (lib.stream_create(&p->stream, p->engine, dnnl_stream_default_flags)) return false;
    for (int i = 0; i < 3; i++)
        if (lib.memory_desc_init_by_tag(&md[i], 2, dims[i], types[i], tags[i])) return false;
    if (lib.matmul_desc_init(&op, &md[0], &md[1], NULL, &md[2])) return false;
    if (lib.primitive_desc_create(&p->desc, &op, NULL, p->engine, NULL)) return false;
    if (lib.primitive_create(&p->primitive, p->desc)) return false;
    for (int i = 0; i < 3; i++) {
        const dnnl_memory_desc_t *d = lib.primitive_desc_query_md(p->desc, what[i], 0);
        size_t bytes = lib.memory_desc_get_size(d);
        p->data[i] = aligned_alloc(64, (bytes + 63) / 64 * 64);
        if (!p->data[i]) return false;
        uint16_t *h = p->data[i];
        for (size_t j = 0; j < bytes / 2; j++) h[j] = (uint16_t)(0x3f00 + j % 61);
        if (lib.memory_create(&p->memory[i], d, p->engine, p->data[i])) return false;
        p->args[i] = (dnnl_exec_arg_t){arg[i], p->memory[i]};
    }
    return true;
}

static void product_destroy(struct product *p)
{
    for (int i = 0; i < 3; i++) {
        if (p->memory[i]) lib.memory_destroy(p->memory[i]);
        free(p->data[i]);
    }
    if (p->primitive) lib.primitive_destroy(p->primitive);
    if (p->desc) lib.primitive_desc_destroy(p->desc);
    if (p->stream) lib.stream_destroy(p->stream);
    if (p->engine) lib.engine_destroy(p->engine);
}

static void product_run(void *arg)
{
    struct product *p = arg;
    lib.primitive_execute(p->primitive, p->stream, 3, p->args);
    lib.stream_wait(p->stream);
}

double onednn_bf16_seconds(int threads, int m, int n, int k, double budget_s)
{
    struct product p = {0};
    int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    double seconds = product_make(&p, m, n, k) ? bench_seconds(product_run, &p, budget_s) : 0;
    omp_set_num_threads(before);
    product_destroy(&p);
    return seconds;
}

#else

bool onednn_open(const char **why)
{
    *why = "built without oneDNN 2's headers (libdnnl-dev)";
    return false;
}

const char *onednn_version(void)
{
    return "";
}

double onednn_bf16_seconds(int threads, int m, int n, int k, double budget_s)
{
    (void)threads, (void)m, (void)n, (void)k, (void)budget_s;
    return 0;
}

#endif
