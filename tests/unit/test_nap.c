/* links: core */
/* test_nap.c - libraries find our sched_yield and usleep, and these sleep only when enabled. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/clock.h"
#include "core/nap.h"

#include <dlfcn.h>
#include <sched.h>
#include <unistd.h>

/* What a shared library would call is the definition in this executable. */
static void test_exported(void **state)
{
    (void)state;
    Dl_info ours, theirs;
    assert_true(dladdr((void *)(uintptr_t)nap_enable, &ours) != 0);
    void *yield = dlsym(RTLD_DEFAULT, "sched_yield"), *sleep = dlsym(RTLD_DEFAULT, "usleep");
    assert_true(dladdr(yield, &theirs) != 0);
    assert_ptr_equal(ours.dli_fbase, theirs.dli_fbase);
    assert_true(dladdr(sleep, &theirs) != 0);
    assert_ptr_equal(ours.dli_fbase, theirs.dli_fbase);
}

/* A sleep never ends early, so the lower bounds hold on any machine. */
static void test_naps(void **state)
{
    (void)state;
    nap_enable(88);
    double t0 = clock_now_s();
    for (int i = 0; i < 20; i++) assert_int_equal(sched_yield(), 0);
    assert_true(clock_now_s() - t0 >= 20 * 50e-6);
    t0 = clock_now_s();
    assert_int_equal(usleep(100), 0);
    assert_true(clock_now_s() - t0 >= 1e-3);
    nap_enable(1);
    t0 = clock_now_s();
    assert_int_equal(usleep(2000), 0);
    assert_true(clock_now_s() - t0 >= 2e-3);
    t0 = clock_now_s();
    int calls = 0;
    while (clock_now_s() - t0 < 0.1 && calls < 2000) {
        assert_int_equal(sched_yield(), 0);
        calls++;
    }
    assert_true(calls > 20); /* naps of 5 ms would allow just these */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exported),
        cmocka_unit_test(test_naps),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}
