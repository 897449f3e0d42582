/* links: core config checkpoint device gemm attention moe schedule balance model transport ep */
/* test_sampling.c - the next token: greedy ties, top-k, top-p, temperature against the exact
 * distribution, dependence on (seed, position) alone, log-probabilities.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/rng.h"
#include "model/sampling.h"

#include <math.h>

enum { VOCAB = 50 };

static void fill(float *logits)
{
    for (int i = 0; i < VOCAB; i++) logits[i] = (float)rng_normal(11, (uint64_t)i) * 2;
}

static void test_greedy(void **state)
{
    float logits[VOCAB] = {0};
    struct sampler *s = sampler_create(VOCAB);
    struct sampling_params p = {0, 1, 0, 1};
    (void)state;
    logits[17] = logits[31] = 3;
    assert_int_equal(sampler_next(s, logits, &p, 0), 17); /* ties: the lower id */
    p.temperature = 1;
    p.top_k = 1;
    assert_int_equal(sampler_next(s, logits, &p, 0), 17);
    sampler_free(s);
}

/* Draws at many positions follow softmax(logits / T) within five standard deviations. */
static void check_frequencies(const struct sampling_params *base, const double *want)
{
    enum { DRAWS = 20000 };
    float logits[VOCAB];
    int seen[VOCAB] = {0};
    double worst = 0;
    fill(logits);
    struct sampler *s = sampler_create(VOCAB);
    for (int i = 0; i < DRAWS; i++) seen[sampler_next(s, logits, base, i)]++;
    for (int i = 0; i < VOCAB; i++) {
        double sigma = sqrt(want[i] * (1 - want[i]) / DRAWS) + 1e-12;
        double z = fabs((double)seen[i] / DRAWS - want[i]) / sigma;
        if (want[i] == 0)
            assert_int_equal(seen[i], 0);
        else if (z > worst)
            worst = z;
    }
    print_message("# worst deviation %.2f sigma of 5\n", worst);
    assert_true(worst < 5);
    sampler_free(s);
}

/* softmax over the allowed ids. */
static void expected(double temperature, const int *allowed, double *want)
{
    float logits[VOCAB];
    double sum = 0;
    fill(logits);
    for (int i = 0; i < VOCAB; i++)
        sum += want[i] = allowed[i] ? exp((double)logits[i] / temperature) : 0;
    for (int i = 0; i < VOCAB; i++) want[i] /= sum;
}

static int rank_of(const float *logits, int id)
{
    int rank = 0;
    for (int i = 0; i < VOCAB; i++) rank += logits[i] > logits[id];
    return rank;
}

static void test_distributions(void **state)
{
    float logits[VOCAB];
    double want[VOCAB], all[VOCAB];
    int allowed[VOCAB];
    (void)state;
    fill(logits);
    for (int i = 0; i < VOCAB; i++) allowed[i] = 1;
    struct sampling_params p = {0.7f, 1, 0, 42};
    expected((double)0.7f, allowed, want);
    check_frequencies(&p, want);

    p.top_k = 5;
    for (int i = 0; i < VOCAB; i++) allowed[i] = rank_of(logits, i) < 5;
    expected((double)0.7f, allowed, want);
    check_frequencies(&p, want);

    /* top-p: the smallest set of the most likely whose probability reaches 0.8 */
    p = (struct sampling_params){1, 0.8f, 0, 43};
    for (int i = 0; i < VOCAB; i++) allowed[i] = 1;
    expected(1, allowed, all);
    for (int i = 0; i < VOCAB; i++) {
        double before = 0;
        for (int j = 0; j < VOCAB; j++)
            if (rank_of(logits, j) < rank_of(logits, i)) before += all[j];
        allowed[i] = before < (double)0.8f;
    }
    expected(1, allowed, want);
    check_frequencies(&p, want);
}

static void test_counter_based(void **state)
{
    float logits[VOCAB];
    struct sampler *a = sampler_create(VOCAB), *b = sampler_create(VOCAB);
    struct sampling_params p = {1, 1, 0, 7}, q = {1, 1, 0, 8};
    int differ = 0;
    (void)state;
    fill(logits);
    for (int i = 0; i < 200; i++) {
        (void)sampler_next(b, logits, &q, 1000 + i); /* others' draws change nothing */
        assert_int_equal(sampler_next(a, logits, &p, i), sampler_next(b, logits, &p, i));
        differ += sampler_next(a, logits, &p, i) != sampler_next(a, logits, &q, i);
    }
    assert_true(differ > 50);
    sampler_free(a);
    sampler_free(b);
}

static void test_logprob(void **state)
{
    float logits[VOCAB];
    double sum = 0;
    (void)state;
    fill(logits);
    for (int i = 0; i < VOCAB; i++) sum += exp((double)sampler_logprob(logits, VOCAB, i));
    assert_true(fabs(sum - 1) < 1e-6);
    float big[2] = {1000, 990};
    assert_true(fabs((double)sampler_logprob(big, 2, 1) + 10.0000454) < 1e-5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_distributions),
        cmocka_unit_test(test_counter_based),
        cmocka_unit_test(test_logprob),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}
