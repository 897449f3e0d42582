/* links: core */
/* test_lock.c - one holder at a time, whoever comes, stops, dies or takes over. Rerun alone:
 * make unit-lock
 *
 * The lock's file is included, so that this test does not need the rest of engine/ (and MPI). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "engine/lock.c"

static char folder[64], results[96], lock_path[112];
static const struct lock_times quick = {.stale_s = 0.6, .beat_s = 0.05, .patience_s = 0.2};

static int setup(void **state)
{
    (void)state;
    error_clear();
    snprintf(folder, sizeof folder, "/tmp/moebatch_lock_XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(results, sizeof results, "%s/r.h5", folder);
    snprintf(lock_path, sizeof lock_path, "%s.lock", results);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

static void write_lock(const char *text)
{
    FILE *f = fopen(lock_path, "w");
    fputs(text, f);
    fclose(f);
}

/* Sets its last beat back. */
static void age(const char *path, double s)
{
    struct timespec t[2];
    clock_gettime(CLOCK_REALTIME, &t[0]);
    t[0].tv_sec -= (time_t)s;
    t[1] = t[0];
    assert_int_equal(utimensat(AT_FDCWD, path, t, 0), 0);
}

static void test_second_is_refused(void **state)
{
    (void)state;
    struct lock one, two;
    const struct lock_times quick = {.stale_s = 3, .beat_s = 0.2, .patience_s = 0};
    assert_int_equal(lock_take(results, &quick, &one), OK);
    assert_int_equal(lock_take(results, &quick, &two), ERR_RESOURCE);
    assert_non_null(strstr(error_text(), "is being written by another job (process "));
    error_clear();
    clock_sleep_us(3500000); /* beats keep it, beyond the time at which it would be stale */
    assert_int_equal(lock_take(results, &quick, &two), ERR_RESOURCE);
    error_clear();
    assert_int_equal(lock_check(&one), OK);
    lock_release(&one);
    assert_int_not_equal(access(lock_path, F_OK), 0);
    assert_int_equal(lock_take(results, &quick, &two), OK);
    lock_release(&two);
    lock_release(&two); /* nothing twice */
}

/* A lock of another host: only its age counts. */
static void test_stale(void **state)
{
    (void)state;
    struct lock lock;
    const struct lock_times calm = {.stale_s = 30, .beat_s = 5, .patience_s = 0.1};
    write_lock("elsewhere 1 11111111-2222-3333-4444-555555555555 4026531836 99\n");
    assert_int_equal(lock_take(results, &calm, &lock), ERR_RESOURCE);
    assert_non_null(strstr(error_text(), "process 1 on elsewhere, last seen "));
    error_clear();
    age(lock_path, 40);
    assert_int_equal(lock_take(results, &calm, &lock), OK);
    lock_release(&lock);
    /* The usual time is a minute. */
    write_lock("elsewhere 1 - 0 0\n");
    age(lock_path, 50);
    const struct lock_times impatient = {LOCK_STALE_S, LOCK_BEAT_S, 0};
    assert_int_equal(lock_take(results, &impatient, &lock), ERR_RESOURCE);
    assert_non_null(strstr(error_text(), "last seen 5"));
    error_clear();
    age(lock_path, 61);
    const struct lock_times short_of = {LOCK_STALE_S, LOCK_BEAT_S, 0.1};
    assert_int_equal(lock_take(results, &short_of, &lock), OK);
    lock_release(&lock);
    /* One whose maker died before it had written a word. */
    write_lock("");
    assert_int_equal(lock_take(results, &calm, &lock), ERR_RESOURCE);
    error_clear();
    age(lock_path, 40);
    assert_int_equal(lock_take(results, &calm, &lock), OK);
    lock_release(&lock);
}

/* A process of this host that is gone needs no minute; one that only has its number is another. */
static void test_ended_process(void **state)
{
    (void)state;
    struct lock lock;
    pid_t child = fork();
    if (child == 0) _exit(lock_take(results, &quick, &lock) == OK ? 0 : 1);
    int how;
    waitpid(child, &how, 0);
    assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
    assert_int_equal(access(lock_path, F_OK), 0);
    assert_int_equal(lock_take(results, NULL, &lock), OK);
    lock_release(&lock);
    struct holder me;
    char text[256];
    describe_self(&me);
    snprintf(text, sizeof text, "%s %d %s %llu %llu\n", me.host, me.pid, me.boot, me.space,
             me.started - 1);
    write_lock(text);
    assert_int_equal(lock_take(results, NULL, &lock), OK);
    lock_release(&lock);
    /* The same number in another container, or of another start of the host, tells nothing. */
    snprintf(text, sizeof text, "%s %d %s %llu %llu\n", me.host, 1 << 22, me.boot, me.space + 1,
             me.started);
    write_lock(text);
    const struct lock_times calm = {.stale_s = 30, .beat_s = 5, .patience_s = 0};
    assert_int_equal(lock_take(results, &calm, &lock), ERR_RESOURCE);
    error_clear();
}

/* In a child: takes the lock and holds it until `hold` is closed. 0: had it all the time. */
static int child_holds(const struct lock_times *times, int hold)
{
    struct lock lock;
    char byte;
    if (lock_take(results, times, &lock) != OK) return 1;
    if (read(hold, &byte, 1) < 0) return 2;
    bool kept = lock_check(&lock) == OK;
    lock_release(&lock);
    return kept ? 0 : 3;
}

static int exit_of(pid_t child)
{
    int how;
    waitpid(child, &how, 0);
    return WIFEXITED(how) ? WEXITSTATUS(how) : 99;
}

/* A job that stood still until another took its lock notices, says so, and leaves the other's
 * alone. */
static void test_taken_over(void **state)
{
    (void)state;
    struct lock slow;
    struct lock_times rare = quick;
    int hold[2];
    rare.beat_s = 1e6; /* as if stopped */
    assert_int_equal(lock_take(results, &rare, &slow), OK);
    age(lock_path, 2);
    assert_int_equal(pipe(hold), 0);
    pid_t child = fork();
    if (child == 0) {
        close(hold[1]);
        _exit(child_holds(&quick, hold[0]));
    }
    close(hold[0]);
    char text[256] = "";
    for (int i = 0; i < 5000 && (!text[0] || strcmp(text, slow.text) == 0); i++) {
        clock_sleep_us(2000);
        read_text(lock_path, text, sizeof text);
    }
    beat(&slow);
    assert_int_equal(lock_check(&slow), ERR_RESOURCE);
    assert_non_null(strstr(error_text(), "stood still"));
    error_clear();
    lock_release(&slow);
    close(hold[1]);
    assert_int_equal(exit_of(child), 0);
    assert_int_not_equal(access(lock_path, F_OK), 0);
}

/* Many at once on a stale lock: exactly one gets it, and what they leave is nothing. */
static void test_race(void **state)
{
    (void)state;
    enum { JOBS = 8, ROUNDS = 6 };
    const struct lock_times times = {.stale_s = 5, .beat_s = 0.5, .patience_s = 0.5};
    alarm(120); /* two holders would be waited for in vain */
    for (int round = 0; round < ROUNDS; round++) {
        int go[2], hold[2];
        write_lock("elsewhere 1 - 0 0\n");
        age(lock_path, 20);
        if (round % 2) { /* a takeover that was cut off */
            char guard[160];
            snprintf(guard, sizeof guard, "%s.takeover", lock_path);
            fclose(fopen(guard, "w"));
            age(guard, 20);
        }
        assert_int_equal(pipe(go), 0);
        assert_int_equal(pipe(hold), 0);
        for (int i = 0; i < JOBS; i++) {
            if (fork() != 0) continue;
            char byte;
            close(go[1]);
            close(hold[1]);
            if (read(go[0], &byte, 1) < 0) _exit(2); /* all start when the parent closes it */
            _exit(child_holds(&times, hold[0]));
        }
        close(go[1]);
        for (int i = 0; i < JOBS - 1; i++) assert_int_equal(exit_of(-1), 1);
        close(hold[1]);
        assert_int_equal(exit_of(-1), 0);
        close(go[0]);
        close(hold[0]);
        assert_int_not_equal(access(lock_path, F_OK), 0);
    }
    alarm(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_second_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stale, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ended_process, setup, teardown),
        cmocka_unit_test_setup_teardown(test_taken_over, setup, teardown),
        cmocka_unit_test_setup_teardown(test_race, setup, teardown),
    };
    return cmocka_run_group_tests_name("lock", tests, NULL, NULL);
}
