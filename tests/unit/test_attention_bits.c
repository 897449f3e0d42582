/* links: core device attention */
/* test_attention_bits.c - what must not change a single bit: the chunks of a prompt, the number
 * of threads, what lies beyond the causal mask, the batch, the pages. Rerun alone: make
 * unit-attention_bits.
 */
#include "test_attention_case.h"

static void same_bits(const char *what, enum isa isa, const float *a, const float *b, size_t n)
{
    if (memcmp(a, b, n * sizeof *a) == 0) return;
    size_t i = 0;
    while (memcmp(a + i, b + i, sizeof *a) == 0) i++;
    fail_msg("%s on %s: number %zu of %zu is %a, expected %a", what, isa_name(isa), i, n, b[i],
             a[i]);
}

static void test_prefill_chunks_and_threads(void **state)
{
    (void)state;
    static const int chunks[] = {1, 7, 64, 65, 130, 200};
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        struct kernels k;
        if (!path_ready((enum isa)isa, &k)) continue;
        for (int t = 0; t < 2; t++) {
            struct sequence s = sequence_make(t ? DT_BF16 : DT_F32, 3, 38, 6, 36, 200);
            size_t n = (size_t)(s.total * s.heads * s.v);
            float *whole = sequence_run(&s, &k, 1, s.total);
            for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++)
                for (int threads = 1; threads <= 2; threads++) {
                    char what[40];
                    snprintf(what, sizeof what, "chunks of %d, %d threads", chunks[c], threads);
                    float *out = sequence_run(&s, &k, threads, chunks[c]);
                    same_bits(what, (enum isa)isa, whole, out, n);
                    free(out);
                }
            free(whole);
            sequence_free(&s);
        }
    }
}

/* Keys after a query hold infinities and NaN: nothing of them may be seen before. */
static void test_prefill_mask(void **state)
{
    (void)state;
    enum { TOTAL = 100 };
    static const int poisoned[] = {1, 33, 64, 99};
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        struct kernels k;
        if (!path_ready((enum isa)isa, &k)) continue;
        for (int t = 0; t < 2; t++)
            for (size_t c = 0; c < sizeof poisoned / sizeof *poisoned; c++) {
                struct sequence s = sequence_make(t ? DT_BF16 : DT_F32, 2, 10, 4, 18, TOTAL);
                float *clean = sequence_run(&s, &k, 1, TOTAL);
                size_t unit = dtype_bytes(s.type), at = (size_t)poisoned[c];
                for (size_t i = at; i < TOTAL; i++) { /* a NaN, or numbers whose sums overflow */
                    int byte = i % 2 ? 0xff : 0x7f;
                    memset((char *)s.k + i * 20 * unit, byte, 20 * unit);
                    memset((char *)s.val + i * 36 * unit, 0xff, 36 * unit);
                    memset((char *)s.kr + i * 4 * unit, byte, 4 * unit);
                }
                float *out = sequence_run(&s, &k, 1, TOTAL);
                same_bits("poisoned future", (enum isa)isa, clean, out, at * 36);
                for (size_t i = at * 36; i < TOTAL * 36; i++) assert_true(isnan(out[i]));
                free(clean);
                free(out);
                sequence_free(&s);
            }
    }
}

static void test_decode_batch_pages_threads(void **state)
{
    (void)state;
    static const int len[] = {1500, 1, 64, 513, 512, 129};
    enum { M = 6, HEADS = 70, LATENT = 20 };
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        struct kernels k;
        if (!path_ready((enum isa)isa, &k)) continue;
        for (int t = 0; t < 2; t++) {
            struct batch b = batch_make(t ? DT_BF16 : DT_F32, M, len, HEADS, LATENT, 6);
            size_t one = HEADS * LATENT;
            float *all = batch_run(&b, &k, 1, 0, M, 64, 1);
            float *out = batch_run(&b, &k, 2, 0, M, 64, 2);
            same_bits("other pages, 2 threads", (enum isa)isa, all, out, M * one);
            free(out);
            out = batch_run(&b, &k, 3, 0, M, 7, 3);
            same_bits("pages of 7 tokens", (enum isa)isa, all, out, M * one);
            free(out);
            out = batch_run(&b, &k, 20, 0, M, 16, 4); /* more threads than units: by parts */
            same_bits("parts side by side", (enum isa)isa, all, out, M * one);
            free(out);
            for (int i = 0; i < M; i++)
                for (int threads = 1; threads <= 3; threads += 2) {
                    out = batch_run(&b, &k, threads, i, 1, 64, 5);
                    same_bits("a batch of one", (enum isa)isa, all + (size_t)i * one, out, one);
                    free(out);
                }
            free(all);
            batch_free(&b);
        }
    }
}

/* A head's numbers are its own, however many heads share its tile: whole, half and single vectors
 * of heads, values packed or not. */
static void test_decode_number_of_heads(void **state)
{
    (void)state;
    static const int len[] = {200, 65, 640, 1}, heads[] = {1, 3, 8, 9, 16, 17, 32, 33, 40};
    enum { M = 4, HEADS = 70, LATENT = 52, ROPE = 6 };
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        struct kernels k;
        if (!path_ready((enum isa)isa, &k)) continue;
        for (int t = 0; t < 2; t++) {
            struct batch all = batch_make(t ? DT_BF16 : DT_F32, M, len, HEADS, LATENT, ROPE);
            float *whole = batch_run(&all, &k, 1, 0, M, 64, 1);
            for (size_t c = 0; c < sizeof heads / sizeof *heads; c++) {
                int n = heads[c];
                struct batch some = all;
                size_t row = (size_t)(n * (LATENT + ROPE));
                some.heads = n;
                some.q = malloc(M * row * sizeof *some.q);
                for (size_t i = 0; i < M; i++)
                    memcpy(some.q + i * row, all.q + i * HEADS * (LATENT + ROPE),
                           row * sizeof *some.q);
                float *out = batch_run(&some, &k, 1, 0, M, 64, 2);
                char what[40];
                snprintf(what, sizeof what, "%d heads", n);
                for (size_t i = 0; i < M; i++)
                    same_bits(what, (enum isa)isa, whole + i * HEADS * LATENT,
                              out + i * (size_t)(n * LATENT), (size_t)(n * LATENT));
                free(out);
                free(some.q);
            }
            free(whole);
            batch_free(&all);
        }
    }
}

/* Thread 0 serves communication during a long call. */
static void count_poll(void *arg)
{
    ++*(int *)arg;
}

static void test_polls(void **state)
{
    (void)state;
    struct kernels k;
    assert_true(path_ready(ISA_PORTABLE, &k));
    enum { TOTAL = 640 };
    struct sequence s = sequence_make(DT_F32, 2, 64, 32, 64, TOTAL);
    int polls = 0;
    struct lane lane __attribute__((cleanup(lane_free)));
    lane_init(&lane, 0, 1);
    lane.poll = count_poll;
    lane.poll_arg = &polls;
    float *out = malloc((size_t)(TOTAL * 2 * 64) * sizeof *out);
    struct mla_prefill_args a = {
        .kv_type = DT_F32,
        .heads = 2,
        .dim_nope = 64,
        .dim_rope = 32,
        .dim_v = 64,
        .softmax_scale = s.scale,
        .m = TOTAL,
        .q = s.q,
        .ldq = 192,
        .k_nope = s.k,
        .v = s.val,
        .ldk = 128,
        .ldv = 128,
        .k_rope = s.kr,
        .ldr = 32,
        .out = out,
        .ldo = 128,
    };
    k.mla_prefill(&lane, &a);
    assert_true(polls > 5); /* several milliseconds at one poll per 200 us or slower tile */
    free(out);
    sequence_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill_chunks_and_threads),
        cmocka_unit_test(test_prefill_mask),
        cmocka_unit_test(test_decode_batch_pages_threads),
        cmocka_unit_test(test_decode_number_of_heads),
        cmocka_unit_test(test_polls),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}
